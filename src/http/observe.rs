//! Middleware for every request: span, correlation id, limits on headers, security headers, metrics. It also replaces
//! every error response that is not a problem.
//!
//! A span has the method, the matched route and the status. Spans, log lines and labels never contain a query string,
//! a body or a token.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use actix_cors::CorsError;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{Error, HttpMessage as _, HttpResponse, ResponseError as _, web};
use opentelemetry::propagation::Extractor;
use tracing::Span;
use tracing::field::Empty;
use tracing_actix_web::RootSpanBuilder;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::connection::{AnswerBody, Exchange};
use super::extract::RequestContext;
use super::problem::{Code, PROBLEM_JSON, Problem};
use super::state::AppState;
use crate::telemetry::metric;

/// The header that connects the requests of one business transaction.
pub const X_CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
/// Maximum length of a correlation id, which is stored with every command and event.
const MAX_CORRELATION_ID_LEN: usize = 128;
/// Maximum number of header fields. actix refuses more than 96, without a body.
const MAX_HEADERS: usize = 64;
/// Maximum size of all names and values. actix refuses more than 128 KiB, without a body.
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
                propagator.extract(&HeaderExtractor(request.headers()))
            });
            // This fails if no trace layer is installed, and then no parent is needed.
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

/// The route label of a request that matches no pattern. A path is never a label.
const UNMATCHED: &str = "unmatched";

/// The pattern that the path matches. Finding it costs as much as routing, so it is cached in the request.
#[derive(Clone)]
struct Route(Option<Rc<str>>);

impl Route {
    fn of(request: &ServiceRequest) -> Self {
        let cached = request.extensions().get::<Self>().cloned();
        cached.unwrap_or_else(|| {
            let route = Self(request.match_pattern().map(Rc::from));
            request.extensions_mut().insert(route.clone());
            route
        })
    }

    fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or(UNMATCHED)
    }
}

struct HeaderExtractor<'a>(&'a HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Handles HEAD like GET, without the body.
pub async fn head_as_get(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if *request.method() != Method::HEAD {
        return Ok(next.call(request).await?.map_into_left_body());
    }
    request.head_mut().method = Method::GET;
    Ok(next.call(request).await?.map_body(|_, body| HeadBody(body)).map_into_right_body())
}

/// The body of an answer to HEAD. actix would read it to its end, and send nothing of it: an export would be read for
/// nobody.
struct HeadBody<B>(B);

impl<B: MessageBody> MessageBody for HeadBody<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.0.size()
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Poll::Ready(None)
    }
}

/// The middleware of all routes.
pub async fn observe(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let started = Instant::now();
    let answering = Exchange::of(request.request()).map(|exchange| exchange.begin(request.request()));
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
    record_refusal(&response, started);
    if is_error_without_problem(&response) {
        response = replace_with_problem(response);
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
    let exchange = Exchange::of(response.request()).cloned();
    let has_unread_chunks = exchange.as_ref().is_some_and(Exchange::has_unread_chunks);
    if has_unread_chunks || AppState::of(response.request()).health.is_draining() {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
        if let Some(exchange) = exchange {
            exchange.end_with_this_answer();
        }
    }
    record_metrics(&response, method, &route, started);
    Ok(response.map_body(|_, body| BoxBody::new(AnswerBody::new(body, answering))))
}

/// The caller's id if there is exactly one and it is valid, else a new one.
fn correlation_id(request: &ServiceRequest) -> String {
    let mut values = request.headers().get_all(X_CORRELATION_ID);
    let sent = values.next().and_then(|value| value.to_str().ok()).filter(|_| values.next().is_none());
    let is_valid =
        |id: &&str| (1..=MAX_CORRELATION_ID_LEN).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    sent.filter(is_valid).map_or_else(
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

/// Whether this is an error response that is not a problem.
fn is_error_without_problem(response: &ServiceResponse) -> bool {
    let status = response.status();
    (status.is_client_error() || status.is_server_error())
        && response.headers().get(CONTENT_TYPE).is_none_or(|value| value != PROBLEM_JSON)
}

fn replace_with_problem(response: ServiceResponse) -> ServiceResponse {
    let status = response.status();
    let cors = response.response().error().and_then(|error| error.as_error::<CorsError>());
    let code = match cors {
        Some(CorsError::OriginNotAllowed) => Code::OriginNotAllowed,
        _ => Code::of_status(status),
    };
    let problem = Problem::plain(code).error_response();
    let status_kept = StatusCode::from_u16(code.status()).is_ok_and(|known| known == status);
    if !status_kept {
        tracing::debug!(%status, "answered an error status that has no code");
    }
    response.into_response(problem)
}

/// Removes the error value that actix attaches to a response. The tracing middleware would log it a second time, as
/// a warning for every mistake of a caller.
fn without_error(response: ServiceResponse) -> ServiceResponse {
    let (request, response) = response.into_parts();
    let (mut head, body) = response.into_parts();
    let mut plain = HttpResponse::with_body(head.status(), body);
    std::mem::swap(plain.headers_mut(), head.headers_mut());
    ServiceResponse::new(request, plain)
}

/// Records the time of a refusal that protects the server; does nothing for other responses.
fn record_refusal(response: &ServiceResponse, started: Instant) {
    let problem = response.response().error().and_then(|error| error.as_error::<Problem>());
    if let Some(refusal) = problem.and_then(|problem| problem.refusal) {
        metrics::histogram!(metric::HTTP_REFUSAL_SECONDS, "reason" => refusal.reason())
            .record(started.elapsed().as_secs_f64());
    }
}

fn record_metrics(response: &ServiceResponse, method: &'static str, route: &Route, started: Instant) {
    let route = route.as_str().to_owned();
    let status = response.status().as_str().to_owned();
    metrics::counter!(metric::HTTP_REQUESTS, "method" => method, "route" => route.clone(), "status" => status)
        .increment(1);
    metrics::histogram!(metric::HTTP_REQUEST_SECONDS, "method" => method, "route" => route)
        .record(started.elapsed().as_secs_f64());
}

/// A label from a fixed set, whatever method was sent.
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
