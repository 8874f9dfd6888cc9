//! For operators: what the server does again and again.

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::ops::{ReasonRequest, act};
use super::reads::{change, read};
use crate::domain::ids::JobId;
use crate::domain::jobs::{Schedule, SystemSchedule};
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::body;
use crate::http::extract::{OperatorCaller, no_query};
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;

/// A schedule of the server.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Schedule)]
pub struct ScheduleView {
    schedule: SystemSchedule,
    /// The time between two firings, in seconds.
    interval_s: i64,
    is_paused: bool,
    next_at: Timestamp,
    /// When it has fired last, and the job of that: `GET /v1/ops/jobs/{job_id}` shows what became of it, for an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    fired_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<JobId>,
    /// Who has changed it last: the `sub` of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_by: Option<String>,
    changed_at: Timestamp,
}

/// The schedules of the server.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScheduleList {
    items: Vec<ScheduleView>,
    /// Always false: the list is complete.
    has_more: bool,
}

impl ScheduleView {
    /// None of a schedule that another version of the server has.
    fn new(schedule: Schedule) -> Option<Self> {
        let known = SystemSchedule::of(&schedule.kind)?;
        let Schedule { next_at, is_paused, fired_at, job_id, changed_by, changed_at, .. } = schedule;
        let interval_s = known.interval().num_seconds();
        Some(Self { schedule: known, interval_s, is_paused, next_at, fired_at, job_id, changed_by, changed_at })
    }
}

/// List the schedules
///
/// What the server does again and again: each time one of the replicas sends a job of its own, unless the last one is not over.
#[utoipa::path(
    tag = "operations",
    responses((status = 200, description = "The schedules.", body = ScheduleList, example = json!({
        "items": [{
            "schedule": "periods", "interval_s": 10, "is_paused": false, "next_at": "2026-01-31T09:00:10.000000Z",
            "fired_at": "2026-01-31T09:00:00.000000Z", "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c",
            "changed_at": "2026-01-31T08:00:00.000000Z"
        }],
        "has_more": false
    }))),
    extensions(("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/schedules")]
pub async fn list_schedules(_: OperatorCaller<scope::OpsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let schedules = read(AppState::of(&request).jobs.schedules()).await?;
    let items = schedules.into_iter().filter_map(ScheduleView::new).collect();
    private_json(&request, &ScheduleList { items, has_more: false })
}

async fn change_schedule(
    caller: &OperatorCaller<scope::OpsWrite>,
    request: &HttpRequest,
    mut payload: web::Payload,
    action: &str,
    apply: impl Fn(Schedule, Timestamp) -> Schedule,
) -> Result<HttpResponse, Problem> {
    no_query(request)?;
    let state = AppState::of(request);
    let reason = body::read::<ReasonRequest>(request, &mut payload, action, false).await?.value.reason;
    let not_found = || Problem::plain(Code::ScheduleNotFound);
    let name = request.match_info().get("schedule").unwrap_or_default();
    let known = SystemSchedule::ALL.into_iter().find(|known| known.as_str() == name).ok_or_else(not_found)?;
    let schedules = read(state.jobs.schedules()).await?;
    let before = schedules.into_iter().find(|found| found.kind == known.kind()).ok_or_else(not_found)?;
    let told = |schedule: &Schedule| {
        let Schedule { is_paused, next_at, .. } = schedule;
        Some(serde_json::json!({"is_paused": is_paused, "next_at": next_at}).to_string())
    };
    let now = state.clock.now();
    let after = Schedule {
        changed_by: Some(caller.principal.subject.clone()),
        changed_at: now.max(before.changed_at.next()),
        ..apply(before.clone(), now)
    };
    let act = act(state, caller, [action, known.as_str()], reason, [told(&before), told(&after)]);
    change(Code::ScheduleChanged, state.jobs.change_schedule(&before, &after, &act)).await?;
    private_json(request, &ScheduleView::new(after))
}

/// Pause a schedule
///
/// It does not fire until it is resumed. What is due is still recorded by the next command of its workspace.
#[utoipa::path(
    tag = "operations",
    params(("schedule" = SystemSchedule, Path, description = "The schedule.")),
    request_body(content = ReasonRequest, example = json!({"reason": "Before the restore"})),
    responses((status = 200, description = "It is paused.", body = ScheduleView, example = json!({
        "schedule": "periods", "interval_s": 10, "is_paused": true, "next_at": "2026-01-31T09:00:10.000000Z",
        "changed_by": "operator-1", "changed_at": "2026-01-31T09:00:05.000000Z"
    }))),
    extensions(("x-problems" = json!(["schedule-not-found", "schedule-changed"])), ("x-scope" = json!("ops:write"))),
    security(("bearer" = []))
)]
#[post("/v1/ops/schedules/{schedule}/pause")]
pub async fn pause_schedule(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let apply = |schedule, _| Schedule { is_paused: true, ..schedule };
    change_schedule(&caller, &request, payload, "schedule.pause", apply).await
}

/// Resume a schedule
///
/// It fires again, at once if its time has passed.
#[utoipa::path(
    tag = "operations",
    params(("schedule" = SystemSchedule, Path, description = "The schedule.")),
    request_body(content = ReasonRequest, example = json!({"reason": "After the restore"})),
    responses((status = 200, description = "It runs.", body = ScheduleView, example = json!({
        "schedule": "periods", "interval_s": 10, "is_paused": false, "next_at": "2026-01-31T09:00:10.000000Z",
        "changed_by": "operator-1", "changed_at": "2026-01-31T09:10:05.000000Z"
    }))),
    extensions(("x-problems" = json!(["schedule-not-found", "schedule-changed"])), ("x-scope" = json!("ops:write"))),
    security(("bearer" = []))
)]
#[post("/v1/ops/schedules/{schedule}/resume")]
pub async fn resume_schedule(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let apply = |schedule, _| Schedule { is_paused: false, ..schedule };
    change_schedule(&caller, &request, payload, "schedule.resume", apply).await
}

/// Run a schedule now
///
/// It fires within a second, unless it is paused or its last job is not over.
#[utoipa::path(
    tag = "operations",
    params(("schedule" = SystemSchedule, Path, description = "The schedule.")),
    request_body(content = ReasonRequest, example = json!({"reason": "The disk is nearly full"})),
    responses((status = 200, description = "It fires next.", body = ScheduleView, example = json!({
        "schedule": "cleaning", "interval_s": 600, "is_paused": false, "next_at": "2026-01-31T09:10:05.000000Z",
        "changed_by": "operator-1", "changed_at": "2026-01-31T09:10:05.000000Z"
    }))),
    extensions(("x-problems" = json!(["schedule-not-found", "schedule-changed"])), ("x-scope" = json!("ops:write"))),
    security(("bearer" = []))
)]
#[post("/v1/ops/schedules/{schedule}/run")]
pub async fn run_schedule(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let apply = |schedule, now| Schedule { next_at: now, ..schedule };
    change_schedule(&caller, &request, payload, "schedule.run", apply).await
}
