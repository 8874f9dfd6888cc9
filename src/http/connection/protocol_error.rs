//! Answers to what is no request: malformed, too large or too slow for HTTP itself.
//!
//! actix answers these before any route or middleware, without a body (`send_error_response` in
//! `actix-http/src/h1/dispatcher.rs`). The connection replaces its answer by a problem with the same status.

use actix_web::http::StatusCode;

use crate::http::problem::{Code, PROBLEM_JSON, Problem};
use crate::telemetry::metric;

/// The code of an answer that actix gave by itself; none for a status that it is not known to give.
pub fn code_of(answer: &[u8]) -> Option<Code> {
    match answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)? {
        b"400" => Some(Code::MalformedRequest),
        b"408" => Some(Code::RequestTimeout),
        b"431" => Some(Code::HeadersTooLarge),
        _ => None,
    }
}

/// The whole answer. The connection closes after it.
pub fn answer(code: Code) -> Vec<u8> {
    let status = code.status();
    let label = status.to_string();
    metrics::counter!(metric::HTTP_REQUESTS, "method" => "OTHER", "route" => "unmatched", "status" => label)
        .increment(1);
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let body = Problem::plain(code).to_json();
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\nconnection: close\r\n\
        cache-control: no-store\r\nx-content-type-options: nosniff\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
