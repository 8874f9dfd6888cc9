//! The documentation page: Swagger UI, served from this binary.
//!
//! It loads nothing from other hosts, which a strict Content-Security-Policy enforces. It has no session: to try a
//! request, a user pastes a bearer token.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use actix_web::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, LOCATION, REFERRER_POLICY};
use actix_web::{HttpRequest, HttpResponse, web};
use utoipa_swagger_ui::Config;

use super::problem::{Code, Problem};
use super::representation::Representation;

/// The path of the page.
pub const ROOT: &str = "/docs";
/// The files of the page. The page itself has an empty name.
pub const FILES: &str = "/docs/{file:.*}";
/// The files that the page loads, and their media types. No other file of the bundle is served.
const SERVED: [(&str, &str); 8] = [
    ("", "text/html; charset=utf-8"),
    ("index.html", "text/html; charset=utf-8"),
    ("index.css", "text/css"),
    ("swagger-ui.css", "text/css"),
    ("swagger-ui-bundle.js", "text/javascript"),
    ("swagger-ui-standalone-preset.js", "text/javascript"),
    ("swagger-initializer.js", "text/javascript"),
    ("favicon-32x32.png", "image/png"),
];
/// Allows scripts, styles and requests of this origin only, and no frames or forms. The icons of the bundle are
/// `data:` URLs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn configure(config: &mut web::ServiceConfig) {
    config
        .route("/", web::get().to(redirect_to_docs))
        .route(ROOT, web::get().to(redirect_to_docs))
        .route(FILES, web::get().to(get_docs_file));
}

/// The files by name, made when the first one is sent.
static DOCUMENTS: LazyLock<BTreeMap<&'static str, Representation>> = LazyLock::new(files);

fn files() -> BTreeMap<&'static str, Representation> {
    // Without the badge of an external validator, and without the field for other documents.
    let ui = Config::from("/openapi.json").use_base_layout().validator_url("none").try_it_out_enabled(true);
    let ui = Arc::new(ui);
    let file = |(name, media_type): (&'static str, &'static str)| {
        let file = utoipa_swagger_ui::serve(name, Arc::clone(&ui)).ok().flatten()?;
        Some((name, Representation::document(media_type, file.bytes.into_owned())))
    };
    SERVED.into_iter().filter_map(file).collect()
}

#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
async fn redirect_to_docs() -> HttpResponse {
    HttpResponse::PermanentRedirect().insert_header((LOCATION, "/docs/")).finish()
}

#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
async fn get_docs_file(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let name = request.match_info().get("file").unwrap_or_default();
    let file = DOCUMENTS.get(name).ok_or_else(|| Problem::plain(Code::NotFound))?;
    let mut response = HttpResponse::Ok();
    response
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .insert_header((CACHE_CONTROL, "no-cache"));
    Ok(file.answer(&request, response))
}
