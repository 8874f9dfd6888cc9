//! What happens around every request: a span, a correlation id, bounds on the headers, the security
//! headers, metrics, and the guarantee that every error is a problem.
//!
//! A span holds the method, the matched route and the status. No query string, no body and no
//! token ever gets into a span, a log line or a label.

use std::rc::Rc;
use std::time::Instant;

use actix_cors::CorsError;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _, HttpResponse, ResponseError as _, web};
use opentelemetry::propagation::Extractor;
use tracing::Span;
use tracing::field::Empty;
use tracing_actix_web::RootSpanBuilder;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::extract::RequestContext;
use super::problem::{Code, PROBLEM_JSON, Problem};
use super::state::AppState;
use crate::telemetry::metric;

/// The header that ties the requests of one business transaction together.
pub const X_CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
/// The longest correlation id; it is stored with every command and event.
const MAX_CORRELATION_ID_LEN: usize = 128;
/// The most header fields. actix itself stops at 96, with an empty answer.
const MAX_HEADERS: usize = 64;
/// The most bytes of all names and values. actix itself stops at 128 KiB, with an empty answer.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Builds the span of a request.
#[derive(Debug)]
pub struct RootSpan;

impl RootSpanBuilder for RootSpan {
    fn on_request_start(request: &ServiceRequest) -> Span {
        let method = method_label(request.method());
        let route = Route::of(request);
        let route = route.as_str();
        let span = tracing::info_span!(
            "request",
            http.method = method,
            http.route = route,
            http.status_code = Empty,
            correlation_id = Empty,
            otel.name = Empty,
            otel.kind = "server",
            otel.status_code = Empty,
        );
        if !span.is_disabled() {
            span.record("otel.name", format!("{method} {route}"));
            let parent = opentelemetry::global::get_text_map_propagator(|propagator| {
                propagator.extract(&Carrier(request.headers()))
            });
            // It fails when no trace layer is installed, and then there is nothing to be done.
            let _ = span.set_parent(parent);
        }
        span
    }

    fn on_request_end<B: MessageBody>(span: Span, outcome: &Result<ServiceResponse<B>, Error>) {
        let status = match outcome {
            Ok(response) => response.status(),
            Err(error) => error.as_response_error().status_code(),
        };
        span.record("http.status_code", status.as_u16());
        span.record("otel.status_code", if status.is_server_error() { "ERROR" } else { "OK" });
    }
}

/// The route of a request that no pattern matches: paths are not labels.
const UNMATCHED: &str = "unmatched";

/// The pattern of a request's path. To find it costs as much as routing, so it is kept with the request.
#[derive(Clone)]
struct Route(Option<Rc<str>>);

impl Route {
    fn of(request: &ServiceRequest) -> Self {
        let kept = request.extensions().get::<Self>().cloned();
        kept.unwrap_or_else(|| {
            let route = Self(request.match_pattern().map(Rc::from));
            request.extensions_mut().insert(route.clone());
            route
        })
    }

    fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or(UNMATCHED)
    }
}

struct Carrier<'a>(&'a HeaderMap);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// A HEAD is answered as the GET that it asks about; actix leaves the body away by itself.
pub async fn head_as_get(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if *request.method() == Method::HEAD {
        request.head_mut().method = Method::GET;
    }
    next.call(request).await
}

/// The middleware around all routes.
pub async fn observe(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let started = Instant::now();
    let method = method_label(request.method());
    let route = Route::of(&request);
    let correlation_id = correlation_id(&request);
    Span::current().record("correlation_id", correlation_id.as_str());
    request.extensions_mut().insert(RequestContext { correlation_id: correlation_id.clone() });
    let mut response = if are_headers_too_large(request.headers()) {
        request.into_response(Problem::plain(Code::HeadersTooLarge).error_response())
    } else {
        next.call(request).await?.map_into_boxed_body()
    };
    if is_foreign_error(&response) {
        response = as_problem(response);
    } else if response.response().error().is_some() {
        response = without_error(response);
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::try_from(correlation_id) {
        headers.insert(X_CORRELATION_ID, value);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    measure(&response, method, &route, started);
    Ok(response)
}

/// The caller's id if there is exactly one and it is sound, else a new one.
fn correlation_id(request: &ServiceRequest) -> String {
    let mut values = request.headers().get_all(X_CORRELATION_ID);
    let sent = values.next().and_then(|value| value.to_str().ok()).filter(|_| values.next().is_none());
    let is_sound =
        |id: &&str| (1..=MAX_CORRELATION_ID_LEN).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    sent.filter(is_sound).map_or_else(
        || {
            let state = request.app_data::<web::Data<AppState>>().expect("the server is built with its state");
            state.clock.new_id().to_string()
        },
        ToOwned::to_owned,
    )
}

fn are_headers_too_large(headers: &HeaderMap) -> bool {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES
}

/// Whether an error was answered by something that knows no problems.
fn is_foreign_error(response: &ServiceResponse) -> bool {
    let status = response.status();
    (status.is_client_error() || status.is_server_error())
        && response.headers().get(CONTENT_TYPE).is_none_or(|value| value != PROBLEM_JSON)
}

fn as_problem(response: ServiceResponse) -> ServiceResponse {
    let status = response.status();
    let cors = response.response().error().and_then(|error| error.as_error::<CorsError>());
    let code = match cors {
        Some(CorsError::OriginNotAllowed) => Code::OriginNotAllowed,
        _ => Code::of_status(status),
    };
    let problem = Problem::plain(code).error_response();
    let status_kept = StatusCode::from_u16(code.status()).is_ok_and(|known| known == status);
    if !status_kept {
        tracing::debug!(%status, "answered an error without a code of its own");
    }
    response.into_response(problem)
}

/// The same response without the error value that actix attaches for loggers: the tracing middleware
/// would log it a second time, at the level of a warning for every mistake of a caller.
fn without_error(response: ServiceResponse) -> ServiceResponse {
    let (request, response) = response.into_parts();
    let (mut head, body) = response.into_parts();
    let mut plain = HttpResponse::with_body(head.status(), body);
    std::mem::swap(plain.headers_mut(), head.headers_mut());
    ServiceResponse::new(request, plain)
}

fn measure(response: &ServiceResponse, method: &'static str, route: &Route, started: Instant) {
    let route = route.as_str().to_owned();
    let status = response.status().as_str().to_owned();
    metrics::counter!(metric::HTTP_REQUESTS, "method" => method, "route" => route.clone(), "status" => status)
        .increment(1);
    metrics::histogram!(metric::HTTP_REQUEST_SECONDS, "method" => method, "route" => route)
        .record(started.elapsed().as_secs_f64());
}

/// A closed set of labels, whatever method was sent.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}
