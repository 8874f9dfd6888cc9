//! For operators: the workers.

use std::collections::HashMap;

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::ops::{ReasonRequest, act};
use super::reads::{change, read};
use crate::domain::ids::WorkerId;
use crate::domain::jobs::{Runner, Worker, WorkerState};
use crate::domain::metadata::Metadata;
use crate::domain::text::{Label, QueueName};
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::body;
use crate::http::extract::{OperatorCaller, no_query, worker_id};
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;

/// How many workers are shown.
const MAX_WORKERS: u32 = 1000;

/// A worker.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Worker)]
pub struct WorkerView {
    worker_id: WorkerId,
    name: Label,
    /// The `sub` of the token that has registered it.
    subject: String,
    /// `server` for a server that runs jobs of its own.
    runner: Runner,
    queues: Vec<QueueName>,
    /// How many jobs it runs at once.
    slots: i32,
    /// How many jobs it has.
    running: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Metadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Label>,
    state: WorkerState,
    started_at: Timestamp,
    /// Up to ten seconds ago while it lives.
    seen_at: Timestamp,
}

/// The workers, the one that was seen last, first.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkerList {
    items: Vec<WorkerView>,
    /// Whether there are more than 1,000.
    has_more: bool,
}

impl WorkerView {
    fn new(worker: Worker, running: i64) -> Self {
        Self {
            worker_id: worker.worker_id,
            name: worker.name,
            subject: worker.subject,
            runner: worker.runner,
            queues: worker.queues.0,
            slots: worker.slots,
            running,
            labels: worker.labels,
            version: worker.version,
            state: worker.state,
            started_at: worker.started_at,
            seen_at: worker.seen_at,
        }
    }
}

async fn busy(state: &AppState) -> Result<HashMap<WorkerId, i64>, Problem> {
    Ok(read(state.jobs.busy_workers()).await?.into_iter().collect())
}

/// List the workers
///
/// The processes that run jobs, and how many jobs each has. One that was not heard of for a minute is `gone`, and is forgotten
/// after a day.
#[utoipa::path(
    tag = "operations",
    responses((status = 200, description = "The workers.", body = WorkerList, example = json!({
        "items": [{
            "worker_id": "019a0000-0000-7000-8000-00000000000e", "name": "gpu-1", "subject": "video-workers",
            "runner": "worker", "queues": ["video_processing"], "slots": 4, "running": 3, "labels": {"gpu": "l4"},
            "version": "2.1.0", "state": "active", "started_at": "2026-01-31T08:00:00.000000Z",
            "seen_at": "2026-01-31T09:00:00.000000Z"
        }],
        "has_more": false
    }))),
    extensions(("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/workers")]
pub async fn list_workers(_: OperatorCaller<scope::OpsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let state = AppState::of(&request);
    let (mut workers, running) = (read(state.jobs.workers(MAX_WORKERS + 1)).await?, busy(state).await?);
    let has_more = workers.len() > MAX_WORKERS as usize;
    workers.truncate(MAX_WORKERS as usize);
    let view = |worker: Worker| {
        let running = running.get(&worker.worker_id).copied().unwrap_or_default();
        WorkerView::new(worker, running)
    };
    private_json(&request, &WorkerList { items: workers.into_iter().map(view).collect(), has_more })
}

async fn set_state(
    caller: &OperatorCaller<scope::OpsWrite>,
    request: &HttpRequest,
    mut payload: web::Payload,
    (action, after): (&str, WorkerState),
) -> Result<HttpResponse, Problem> {
    no_query(request)?;
    let (state, id) = (AppState::of(request), worker_id(request)?);
    let reason = body::read::<ReasonRequest>(request, &mut payload, action, false).await?.value.reason;
    let found = read(state.jobs.worker(id)).await?.filter(|worker| worker.runner == Runner::Worker);
    let before = found.ok_or_else(|| Problem::new(Code::WorkerNotFound, "there is no such worker"))?;
    let told = |state: WorkerState| Some(serde_json::json!({"state": state}).to_string());
    let act = act(state, caller, [action, &id.to_string()], reason, [told(before.state), told(after)]);
    let after = Worker { state: after, ..before.clone() };
    change(Code::WorkerChanged, state.jobs.change_worker(&before, &after, &act)).await?;
    let running = busy(state).await?.get(&id).copied().unwrap_or_default();
    private_json(request, &WorkerView::new(after, running))
}

/// Drain a worker
///
/// It gets no more jobs, and is told so with its next heartbeat: it ends when it has done those that it has.
#[utoipa::path(
    tag = "operations",
    params(("worker_id" = WorkerId, Path, description = "The worker.")),
    request_body(content = ReasonRequest, example = json!({"reason": "The machine is to be replaced"})),
    responses((status = 200, description = "It is draining.", body = WorkerView, example = json!({
        "worker_id": "019a0000-0000-7000-8000-00000000000e", "name": "gpu-1", "subject": "video-workers",
        "runner": "worker", "queues": ["video_processing"], "slots": 4, "running": 3, "state": "draining",
        "started_at": "2026-01-31T08:00:00.000000Z", "seen_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(("x-problems" = json!(["worker-not-found", "worker-changed"])), ("x-scope" = json!("ops:write"))),
    security(("bearer" = []))
)]
#[post("/v1/ops/workers/{worker_id}/drain")]
pub async fn drain_worker(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    set_state(&caller, &request, payload, ("worker.drain", WorkerState::Draining)).await
}

/// Resume a worker
///
/// It gets jobs again, if it has not ended meanwhile.
#[utoipa::path(
    tag = "operations",
    params(("worker_id" = WorkerId, Path, description = "The worker.")),
    request_body(content = ReasonRequest, example = json!({"reason": "The machine stays"})),
    responses((status = 200, description = "It gets jobs again.", body = WorkerView, example = json!({
        "worker_id": "019a0000-0000-7000-8000-00000000000e", "name": "gpu-1", "subject": "video-workers",
        "runner": "worker", "queues": ["video_processing"], "slots": 4, "running": 0, "state": "active",
        "started_at": "2026-01-31T08:00:00.000000Z", "seen_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(("x-problems" = json!(["worker-not-found", "worker-changed"])), ("x-scope" = json!("ops:write"))),
    security(("bearer" = []))
)]
#[post("/v1/ops/workers/{worker_id}/resume")]
pub async fn resume_worker(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    set_state(&caller, &request, payload, ("worker.resume", WorkerState::Active)).await
}
