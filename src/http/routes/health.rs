//! Probes, metrics, the OpenAPI document and the schemas of events. They need no token.

use actix_web::http::header::{CACHE_CONTROL, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, get};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::problem::{Code, Problem};
use crate::http::state::AppState;

/// The health of the server.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    Ok,
    /// Commands work; events reach the stream late.
    Degraded,
}

/// The answer of a probe.
#[derive(Debug, Serialize, ToSchema)]
pub struct HealthReport {
    status: HealthStatus,
}

fn healthy(status: HealthStatus) -> HttpResponse {
    HttpResponse::Ok().json(HealthReport { status })
}

/// Check that the process runs
///
/// Answers while the process runs. Does not check the database.
#[utoipa::path(
    tag = "service",
    responses((status = 200, description = "The process runs.", body = HealthReport, example = json!({"status": "ok"}))),
    security(())
)]
#[get("/livez")]
#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
pub async fn get_livez() -> HttpResponse {
    healthy(HealthStatus::Ok)
}

/// Check that the server accepts commands
///
/// The status is `degraded` while events wait for Redis; commands do not depend on it. The answer is 503 while the database
/// does not answer (it is asked twice a second, and has a second), while the server is stopping, and after a command that could not be written
/// (the disk may be full), until another one is written, for at most five seconds.
#[utoipa::path(
    tag = "service",
    responses((status = 200, description = "The server accepts commands.", body = HealthReport, example = json!({"status": "ok"}))),
    extensions(("x-problems" = json!(["unavailable", "shutting-down"]))),
    security(())
)]
#[get("/readyz")]
#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
pub async fn get_readyz(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let state = AppState::of(&request);
    if state.health.is_draining() {
        return Err(Problem::plain(Code::ShuttingDown));
    }
    if state.health.are_writes_failing(state.clock.now()) {
        return Err(Problem::new(Code::Unavailable, "the database does not accept writes"));
    }
    if state.health.is_database_down() {
        return Err(Problem::plain(Code::Unavailable));
    }
    let is_degraded = state.health.is_stream_degraded();
    Ok(healthy(if is_degraded { HealthStatus::Degraded } else { HealthStatus::Ok }))
}

/// Read the metrics
///
/// Metrics in the Prometheus text format. They name no workspace. Where `server.ops_bind` is set, they are on that port
/// and not on this one.
#[utoipa::path(
    tag = "service",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain; version=0.0.4",
        example = json!("visionscope_http_requests_total{method=\"GET\",route=\"/livez\",status=\"200\"} 1\n"))),
    security(())
)]
#[get("/metrics")]
#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
pub async fn get_metrics(request: HttpRequest) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body((AppState::of(&request).metrics)())
}

/// Read this document
///
/// The OpenAPI document of this server, made from the routes it serves.
#[utoipa::path(
    tag = "service",
    responses((status = 200, description = "The document.", body = Object, content_type = "application/json",
        example = json!({"openapi": "3.1.0", "info": {"title": "VisionScope Billing", "version": "0.1.0"}, "paths": {}}))),
    security(())
)]
#[get("/openapi.json")]
#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
pub async fn get_openapi(request: HttpRequest) -> HttpResponse {
    AppState::of(&request).documents.openapi.answer(&request, revalidated())
}

/// Read a schema of events
///
/// The JSON Schema of the `data` of one type of event in one version, such as `CreditConsumed.v1.json`, or of the
/// attributes of all events, `event.json`.
#[utoipa::path(
    tag = "service",
    params(("file_name" = String, Path, description = "The name of the schema's file.", example = "CreditConsumed.v1.json")),
    responses((status = 200, description = "The schema.", body = Object, content_type = "application/schema+json",
        example = json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:visionscope:event:CreditConsumed:1"}))),
    extensions(("x-problems" = json!(["not-found"]))),
    security(())
)]
#[get("/schemas/events/{file_name}")]
#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
pub async fn get_event_schema(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let name = request.match_info().get("file_name").unwrap_or_default();
    let schema = AppState::of(&request).documents.schemas.get(name).ok_or_else(|| Problem::plain(Code::NotFound))?;
    Ok(schema.answer(&request, revalidated()))
}

/// Anybody may keep the answer, and asks each time whether it is still the same.
fn revalidated() -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.insert_header((CACHE_CONTROL, HeaderValue::from_static("no-cache")));
    response
}
