//! For operators: the jobs of a queue, and those of any workspace.

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::job_views::JobView;
use super::ops::{ReasonRequest, act};
use super::reads::{read, written};
use crate::domain::ids::JobId;
use crate::domain::jobs::Runner;
use crate::domain::text::QueueName;
use crate::http::auth::scope;
use crate::http::body;
use crate::http::extract::{OperatorCaller, job_id, no_query, query};
use crate::http::pages::Limit;
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::jobs::{JobRecord, ListedJob};

const CANCEL: &str = "job.cancel";

/// Which jobs of a queue.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueuedState {
    /// Those that wait for a worker, in the order in which they are taken.
    Ready,
    /// Those that workers have, the one that was taken first, first.
    Running,
}

/// Which jobs, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct QueuedJobParams {
    #[param(inline)]
    queue: QueueName,
    /// Ready jobs by default.
    #[serde(default = "ready")]
    #[param(required = false, inline)]
    state: QueuedState,
    /// Of ready jobs: those for workers, by default, or the server's own.
    #[serde(default = "for_workers")]
    #[param(required = false, inline)]
    runner: Runner,
    /// Maximum number of jobs.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
}

const fn ready() -> QueuedState {
    QueuedState::Ready
}

const fn for_workers() -> Runner {
    Runner::Worker
}

/// The front of a queue.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueuedJobList {
    items: Vec<JobView>,
    /// Whether there are more jobs behind these.
    has_more: bool,
}

/// List the jobs of a queue
///
/// The jobs that are taken next, or those that run, of all workspaces.
#[utoipa::path(
    tag = "operations",
    params(QueuedJobParams),
    responses((status = 200, description = "The jobs.", body = QueuedJobList, example = json!({
        "items": [{
            "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "queue": "video_processing",
            "kind": "video_processing.analyse", "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "state": "ready",
            "priority": 5, "run_at": "2026-01-31T09:00:00.000000Z", "attempt": 0, "max_attempts": 5,
            "created_at": "2026-01-31T09:00:00.000000Z"
        }],
        "has_more": false
    }))),
    extensions(("x-problems" = json!(["queue-not-found"])), ("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/jobs")]
pub async fn list_queued_jobs(
    _: OperatorCaller<scope::OpsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let QueuedJobParams { queue, state: wanted, runner, limit } = query(&request)?;
    let (state, one_more) = (AppState::of(&request), limit.get() + 1);
    if !state.queues.settings().contains_key(&queue) {
        return Err(Problem::plain(Code::QueueNotFound));
    }
    let jobs = &state.jobs;
    let mut found = match wanted {
        QueuedState::Ready => read(jobs.next_jobs(&queue, runner, one_more)).await?,
        QueuedState::Running => read(jobs.running_jobs(&queue, one_more)).await?,
    };
    let has_more = found.len() > limit.rows();
    found.truncate(limit.rows());
    let items = found.into_iter().map(|job| JobView::from(ListedJob::from(job))).collect();
    private_json(&request, &QueuedJobList { items, has_more })
}

async fn any_job(request: &HttpRequest) -> Result<JobRecord, Problem> {
    let found = read(AppState::of(request).jobs.job(job_id(request)?, None)).await?;
    found.ok_or_else(|| Problem::plain(Code::JobNotFound))
}

/// Get any job
///
/// A job of any workspace, or of the server itself, with its lease and its attempts.
#[utoipa::path(
    tag = "operations",
    params(("job_id" = JobId, Path, description = "The job.")),
    responses((status = 200, description = "The job.", body = JobView, example = json!({
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "queue": "default", "kind": "system.periods", "state": "completed",
        "priority": 5, "run_at": "2026-01-31T09:00:00.000000Z", "attempt": 1, "max_attempts": 1, "args": {},
        "created_at": "2026-01-31T09:00:00.000000Z", "finished_at": "2026-01-31T09:00:00.100000Z", "attempts": []
    }))),
    extensions(("x-problems" = json!(["job-not-found"])), ("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/jobs/{job_id}")]
pub async fn get_any_job(_: OperatorCaller<scope::OpsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    private_json(&request, &JobView::from(any_job(&request).await?))
}

/// Cancel any job
///
/// Like its workspace would: a job that no worker has is ended, and the worker of one that runs is asked to stop. A command
/// whose last attempt got no answer is ended too: look yourself whether it has taken effect.
#[utoipa::path(
    tag = "operations",
    params(("job_id" = JobId, Path, description = "The job.")),
    request_body(content = ReasonRequest, example = json!({"reason": "It blocks the queue"})),
    responses((status = 200, description = "The job, as it is now.", body = JobView, example = json!({
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "queue": "video_processing", "kind": "video_processing.analyse",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "state": "canceled", "priority": 5,
        "run_at": "2026-01-31T09:00:00.000000Z", "attempt": 0, "max_attempts": 5, "args": {"video": "s3://videos/17.mp4"},
        "error": {"class": "canceled", "detail": "the job was canceled"}, "created_at": "2026-01-31T09:00:00.000000Z",
        "finished_at": "2026-01-31T09:00:30.000000Z", "attempts": []
    }))),
    extensions(("x-problems" = json!(["job-not-found"])), ("x-scope" = json!("ops:write"))),
    security(("bearer" = []))
)]
#[post("/v1/ops/jobs/{job_id}/cancel")]
pub async fn cancel_any_job(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let state = AppState::of(&request);
    let reason = body::read::<ReasonRequest>(&request, &mut payload, CANCEL, false).await?.value.reason;
    let job = any_job(&request).await?.listed.job;
    if !job.state.is_final() {
        let told = serde_json::json!({"state": job.state}).to_string();
        let act = act(state, &caller, [CANCEL, &job.job_id.to_string()], reason, [Some(told), None]);
        read(state.operations.keep_act(&act)).await?;
        written(state, state.queues.cancel(vec![job.job_id], true)).await?;
    }
    private_json(&request, &JobView::from(any_job(&request).await?))
}
