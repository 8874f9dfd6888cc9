//! The bytes of a document or a page: compressed for a caller that accepts it, and with an `ETag`, so that a caller that
//! has them already gets 304 without a body.

use std::io::Write as _;
use std::sync::OnceLock;

use actix_web::http::header::{
    AcceptEncoding, CACHE_CONTROL, CONTENT_ENCODING, ContentEncoding, ETAG, Encoding, EntityTag, Header as _,
    HeaderValue, IfNoneMatch, TryIntoHeaderValue as _, VARY,
};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::problem::{Code, Problem};

/// Smaller bodies fit into one packet anyway.
const MIN_COMPRESSED_BYTES: usize = 1024;
const JSON: &str = "application/json";

/// Bytes with their validator.
#[derive(Clone, Debug)]
pub struct Representation {
    media_type: &'static str,
    plain: Bytes,
    /// Compressed for the first caller that accepts it. None if that makes it no smaller, or if it is not worth it.
    gzip: OnceLock<Option<Bytes>>,
    level: Compression,
    etag: EntityTag,
}

impl Representation {
    /// A document that is kept and sent often.
    #[must_use]
    pub fn document(media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        Self::new(media_type, bytes.into(), Compression::best())
    }

    fn new(media_type: &'static str, plain: Bytes, level: Compression) -> Self {
        let digest = Sha256::digest(&plain);
        let tag = digest.iter().take(16).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        // Weak: it is the same for both encodings.
        Self { media_type, plain, gzip: OnceLock::new(), level, etag: EntityTag::new_weak(tag) }
    }

    /// The answer to a request. `response` has the other headers.
    #[must_use]
    pub fn answer(&self, request: &HttpRequest, mut response: HttpResponseBuilder) -> HttpResponse {
        response.append_header((VARY, HeaderValue::from_static("accept-encoding")));
        if let Ok(etag) = self.etag.clone().try_into_value() {
            response.insert_header((ETAG, etag));
        }
        if self.is_known_to(request) {
            return response.status(actix_web::http::StatusCode::NOT_MODIFIED).finish();
        }
        response.content_type(self.media_type);
        match accepts_gzip(request).then(|| self.gzip()).flatten() {
            Some(gzip) => response.insert_header((CONTENT_ENCODING, ContentEncoding::Gzip)).body(gzip.clone()),
            None => response.body(self.plain.clone()),
        }
    }

    fn gzip(&self) -> Option<&Bytes> {
        let is_worth_it = self.plain.len() >= MIN_COMPRESSED_BYTES;
        self.gzip.get_or_init(|| if is_worth_it { gzip(&self.plain, self.level) } else { None }).as_ref()
    }

    fn is_known_to(&self, request: &HttpRequest) -> bool {
        match IfNoneMatch::parse(request) {
            Ok(IfNoneMatch::Any) => true,
            Ok(IfNoneMatch::Items(known)) => known.iter().any(|etag| etag.weak_eq(&self.etag)),
            Err(_) => false,
        }
    }
}

/// Answers with JSON that only this caller may see.
pub fn private_json(request: &HttpRequest, value: &impl Serialize) -> Result<HttpResponse, Problem> {
    let bytes = serde_json::to_vec(value).map_err(|error| {
        tracing::error!(%error, "an answer cannot be written as JSON");
        Problem::plain(Code::InternalError)
    })?;
    let mut response = HttpResponse::Ok();
    response.insert_header((CACHE_CONTROL, HeaderValue::from_static("private, no-cache")));
    Ok(Representation::new(JSON, bytes.into(), Compression::fast()).answer(request, response))
}

fn gzip(plain: &[u8], level: Compression) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(plain).ok()?;
    let compressed = encoder.finish().ok()?;
    (compressed.len() < plain.len()).then(|| compressed.into())
}

/// Whether the answer is sent compressed.
pub fn accepts_gzip(request: &HttpRequest) -> bool {
    let supported = [Encoding::gzip(), Encoding::identity()];
    let chosen = AcceptEncoding::parse(request).ok().and_then(|accepted| accepted.negotiate(supported.iter()));
    chosen == Some(Encoding::gzip())
}
