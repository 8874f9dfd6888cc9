//! Jobs of a workspace: sending, reading and canceling them.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use chrono::TimeDelta;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::job_views::{JobObject, JobView};
use super::reads::{read, require_known_workspace, written};
use crate::domain::credits::{PositiveCredits, Quantity, SentQuantity};
use crate::domain::hold::Overrun;
use crate::domain::ids::{JobId, WorkspaceId};
use crate::domain::jobs::{JobHold, JobState, MAX_DAYS_AHEAD, Runner, Submission};
use crate::domain::metadata::Metadata;
use crate::domain::text::{FeatureCode, JobKind, UniqueKey, UserId};
use crate::domain::time::Timestamp;
use crate::http::auth::{Principal, RequiredScope as _, scope};
use crate::http::body::{self, Body, object, string_enum, whole};
use crate::http::extract::{RequestContext, WorkspaceCaller, idempotency_key, job_id, no_query, query};
use crate::http::job_commands::CommandKind;
use crate::http::pages::{Cursor, CursorText, Limit, ListKey, id_of, place_of};
use crate::http::problem::{Code, Problem};
use crate::http::render::refused;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::http::submit::traceparent;
use crate::queues::Accepted;
use crate::store::jobs::{JobRecord, ListedJob};

/// How many rows a list reads at once behind its filters, and how often.
const CHUNK: u32 = 200;
const MAX_CHUNKS: u32 = 5;
const SUBMIT: &str = "SubmitJob";

/// A job to do.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitJobRequest {
    kind: JobKind,
    /// What its worker needs to know: an object of at most 16 KiB.
    #[serde(default)]
    #[schema(value_type = Object, required = false)]
    args: JobObject,
    /// From 0 to 9. A higher one goes first: each is worth a minute of waiting.
    #[serde(default = "default_priority", deserialize_with = "priority")]
    #[schema(required = false, minimum = 0, maximum = 9)]
    priority: i16,
    /// When it is to run, at most six days ahead. At once by default.
    run_at: Option<Timestamp>,
    /// After so many attempts it fails: 1 to 100. If its queue allows fewer, it gets those.
    #[serde(default, deserialize_with = "max_attempts")]
    #[schema(required = false, minimum = 1, maximum = 100)]
    max_attempts: Option<i32>,
    /// Until this job is over, another one of the same kind with the same key is not taken: its answer is this job, with the
    /// status 200.
    unique_key: Option<UniqueKey>,
    /// Reserves what the job may cost. It is charged when the job is completed, and given back otherwise.
    #[serde(default, deserialize_with = "optional_hold")]
    #[schema(required = false)]
    hold: Option<JobHoldRequest>,
}

/// What a job may cost. Exactly one of `credits` and `quantity` is required.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobHoldRequest {
    feature_code: FeatureCode,
    /// How much to reserve. Either this or `quantity`.
    credits: Option<PositiveCredits>,
    /// How much will be used, at most, at the unit price of the feature. Either this or `credits`.
    #[schema(value_type = Option<SentQuantity>)]
    quantity: Option<Quantity>,
    /// What becomes of a cost beyond the hold. With `reject`, the job cannot be completed with it.
    #[serde(default, deserialize_with = "string_enum")]
    #[schema(required = false)]
    overrun: Overrun,
    user_id: Option<UserId>,
    metadata: Option<Metadata>,
}

/// Which jobs, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct JobParams {
    /// `next` of the previous page. Send the same filters with it.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of jobs of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Only jobs in this state.
    #[param(required = false, inline)]
    state: Option<JobState>,
    /// Only jobs of this kind.
    #[param(required = false, inline)]
    kind: Option<JobKind>,
}

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobPage {
    /// With filters, a page may have fewer jobs than there are, or none, and more behind it.
    items: Vec<JobView>,
    /// Whether there may be more jobs after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
}

const fn default_priority() -> i16 {
    Submission::DEFAULT_PRIORITY
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i16, D::Error> {
    whole(deserializer, &(0..=9))
}

fn max_attempts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    whole(deserializer, &(1..=100)).map(Some)
}

fn optional_hold<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<JobHoldRequest>, D::Error> {
    object(deserializer).map(Some)
}

impl JobHoldRequest {
    fn into_hold(self) -> Result<JobHold, Problem> {
        let Self { feature_code, credits, quantity, overrun, user_id, metadata } = self;
        if credits.is_some() == quantity.is_some() {
            let detail = "exactly one of credits and quantity is required";
            return Err(Problem::field(Code::InvalidField, "/hold/credits", detail));
        }
        Ok(JobHold { feature_code, credits, quantity, overrun, user_id, metadata })
    }
}

impl SubmitJobRequest {
    /// What does not depend on the caller and the path.
    fn check(&self, principal: &Principal, now: Timestamp) -> Result<(), Problem> {
        if self.run_at.is_some_and(|at| at > now.plus(TimeDelta::days(MAX_DAYS_AHEAD))) {
            let detail = format!("must be at most {MAX_DAYS_AHEAD} days ahead");
            return Err(Problem::field(Code::InvalidField, "/run_at", detail));
        }
        if self.hold.is_some() {
            require_scope(principal, scope::CreditsWrite::SCOPE)?;
        }
        if Runner::of(&self.kind) == Runner::Worker {
            return Ok(());
        }
        let Some(command) = CommandKind::of(&self.kind) else {
            let detail = "jobs of this kind are the server's own, and cannot be sent";
            return Err(Problem::field(Code::InvalidField, "/kind", detail));
        };
        require_scope(principal, command.scope)?;
        if self.hold.is_some() {
            return Err(Problem::field(Code::InvalidField, "/hold", "a job that is a command needs no hold"));
        }
        command.check(self.args.text())
    }
}

pub(super) fn require_scope(principal: &Principal, scope: crate::http::auth::Scope) -> Result<(), Problem> {
    if principal.has_scope(scope) { Ok(()) } else { Err(Problem::missing_scope(scope.as_str())) }
}

/// Submit a job
///
/// Puts work into a queue, from which a worker takes it. A job with a `hold` is metered: the hold reserves what the job may
/// cost, under the rules of a deduction. When a worker completes the job, what it has really cost is charged; if it fails or is
/// canceled, the hold is released. Raises `JobSubmitted` with the hold, `JobCompleted` with the charge, and `JobFailed` with the
/// release. The kinds `billing.deduct_credits`, `billing.purchase_credits`, `billing.reset_monthly_credits`,
/// `billing.process_subscription_change` and `billing.cancel_subscription` are commands: `args` is the body of the command, this
/// server runs it, and the token needs its scope. All other kinds are for workers.
///
/// The same `Idempotency-Key` with the same body gets the same job, as it is then. Keys of jobs and of commands are apart. A
/// `hold` also needs the scope `credits:write`.
#[utoipa::path(
    tag = "jobs",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace that pays.")),
    request_body(content = SubmitJobRequest, examples(
        ("with_hold" = (summary = "With a hold", value = json!({
            "kind": "video_processing.analyse", "args": {"video": "s3://videos/17.mp4"},
            "hold": {"feature_code": "video.render", "credits": "20", "user_id": "user-7"}
        }))),
        ("plain" = (summary = "Without a hold", value = json!({
            "kind": "notifications.email", "args": {"to": "user-7"}, "priority": 7, "unique_key": "welcome user-7"
        })))
    )),
    responses(
        (status = 200, description = "Another job has the unique key: that job, as it is now. Nothing was sent.", body = JobView,
            example = json!({
            "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "queue": "notifications", "kind": "notifications.email",
            "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "state": "ready", "priority": 7,
            "run_at": "2026-01-31T09:00:00.000000Z", "attempt": 0, "max_attempts": 10, "args": {"to": "user-7"},
            "unique_key": "welcome user-7", "created_at": "2026-01-31T09:00:00.000000Z"
        })),
        (status = 202, description = "The job, as it is now.", body = JobView, example = json!({
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "queue": "video_processing", "kind": "video_processing.analyse",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "state": "ready", "priority": 5,
        "run_at": "2026-01-31T09:00:00.000000Z", "attempt": 0, "max_attempts": 5, "args": {"video": "s3://videos/17.mp4"},
        "hold_id": "019a0000-0000-7000-8000-000000000008", "held_credits": "20",
        "created_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(("x-problems" = json!([
        "job-over", "insufficient-credits", "feature-not-found", "feature-disabled", "limit-exceeded", "feature-not-priced",
        "rate-exceeded", "too-many-holds", "hold-spans-too-many-grants"
    ])), ("x-scope" = json!("jobs:write")), ("x-key" = json!("no dry run"))),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/jobs")]
pub async fn submit_job(
    caller: WorkspaceCaller<scope::JobsWrite>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let (state, workspace_id) = (AppState::of(&request), caller.workspace_id);
    let key = idempotency_key(request.headers())?;
    let _permit = state.limits.commands.acquire(workspace_id)?;
    let Body { value, fingerprint } = body::read::<SubmitJobRequest>(&request, &mut payload, SUBMIT, false).await?;
    value.check(&caller.principal, state.clock.now())?;
    require_known_workspace(state, workspace_id).await?;
    let submission = Submission {
        job_id: JobId::of_key(workspace_id, &key),
        queue: state.queues.routes().of(value.kind.as_str()).queue.clone(),
        kind: value.kind,
        workspace_id: Some(workspace_id),
        args: value.args.into_text(),
        priority: value.priority,
        run_at: value.run_at,
        max_attempts: value.max_attempts,
        unique_key: value.unique_key,
        fingerprint,
        hold: value.hold.map(JobHoldRequest::into_hold).transpose()?,
        replays: None,
        actor: caller.principal.subject.clone(),
        correlation_id: RequestContext::correlation_id_of(&request),
        causation_id: None,
        traceparent: traceparent(request.headers()),
    };
    match written(state, state.queues.submit(submission)).await? {
        Accepted::Job(job) => {
            let is_own = job.job_id == JobId::of_key(workspace_id, &key);
            let mut answer = private_json(&request, &JobView::from(*job))?;
            *answer.status_mut() = if is_own { StatusCode::ACCEPTED } else { StatusCode::OK };
            Ok(answer)
        }
        Accepted::Refused(answer) => Ok(refused(answer)),
        Accepted::KeyReused => Err(Problem::plain(Code::IdempotencyKeyReused)),
        Accepted::Over => Err(Problem::plain(Code::JobOver)),
        Accepted::NoQueue => {
            tracing::error!("a queue that jobs are routed to does not exist");
            Err(Problem::plain(Code::InternalError))
        }
    }
}

/// List jobs
///
/// The jobs of the workspace, the newest first. Those that are over are listed as long as they are kept.
#[utoipa::path(
    tag = "jobs",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace."), JobParams),
    responses((status = 200, description = "A page of jobs.", body = JobPage, example = json!({
        "items": [{
            "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "queue": "video_processing",
            "kind": "video_processing.analyse", "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
            "state": "completed", "priority": 5, "run_at": "2026-01-31T09:00:00.000000Z", "attempt": 1, "max_attempts": 5,
            "hold_id": "019a0000-0000-7000-8000-000000000008", "held_credits": "20", "captured_credits": "17.5",
            "created_at": "2026-01-31T09:00:00.000000Z", "finished_at": "2026-01-31T09:03:00.000000Z"
        }],
        "has_more": false
    }))),
    extensions(("x-problems" = json!(["invalid-cursor"])), ("x-scope" = json!("jobs:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/jobs")]
pub async fn list_jobs(
    caller: WorkspaceCaller<scope::JobsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let JobParams { cursor, limit, state: wanted, kind } = query(&request)?;
    let (state, workspace_id) = (AppState::of(&request), caller.workspace_id);
    let key = ListKey::new("jobs", &(workspace_id, wanted, &kind));
    let mut last = None;
    if let Some(cursor) = &cursor {
        let [at, high, low] = key.parse::<3>(cursor)?.place;
        last = Some((Timestamp::from_micros(at), JobId(id_of([high, low]))));
    } else {
        require_known_workspace(state, workspace_id).await?;
    }
    let is_wanted = |listed: &ListedJob| {
        wanted.is_none_or(|wanted| wanted == listed.job.state)
            && kind.as_ref().is_none_or(|kind| *kind == listed.job.kind)
    };
    let (mut items, mut has_more) = (Vec::new(), true);
    for _ in 0..MAX_CHUNKS {
        // A job that is over may have been deleted since the page before, so its row need not be there.
        let rows = read(state.jobs.jobs(workspace_id, last, CHUNK + 1)).await?;
        has_more = rows.len() > CHUNK as usize;
        for listed in rows {
            let place = (listed.job.created_at, listed.job.job_id);
            if last == Some(place) {
                continue;
            }
            if items.len() >= limit.rows() {
                has_more = true;
                break;
            }
            last = Some(place);
            items.extend(is_wanted(&listed).then(|| JobView::from(listed)));
        }
        if !has_more || items.len() >= limit.rows() {
            break;
        }
    }
    let next = last.filter(|_| has_more).map(|(at, id)| {
        let [high, low] = place_of(id.0);
        key.cursor([at.micros(), high, low], &id)
    });
    private_json(&request, &JobPage { items, has_more, next })
}

/// The job in the path, which must be one of the workspace.
async fn own_job<S>(caller: &WorkspaceCaller<S>, request: &HttpRequest) -> Result<JobRecord, Problem> {
    let state = AppState::of(request);
    let found = read(state.jobs.job(job_id(request)?, Some(caller.workspace_id))).await?;
    found.ok_or_else(|| Problem::plain(Code::JobNotFound))
}

/// Get a job
///
/// The job with its arguments, its result, its lease and its attempts. One that is over is kept for some time: a week, and 30
/// days if it has failed.
#[utoipa::path(
    tag = "jobs",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace."),
        ("job_id" = JobId, Path, description = "The job.")
    ),
    responses((status = 200, description = "The job.", body = JobView, example = json!({
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "queue": "video_processing", "kind": "video_processing.analyse",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "state": "running", "priority": 5,
        "run_at": "2026-01-31T09:00:00.000000Z", "attempt": 2, "max_attempts": 5, "args": {"video": "s3://videos/17.mp4"},
        "hold_id": "019a0000-0000-7000-8000-000000000008", "held_credits": "20",
        "error": {"class": "lost", "detail": "nothing was heard of the worker"},
        "created_at": "2026-01-31T09:00:00.000000Z",
        "lease": {
            "worker_id": "019a0000-0000-7000-8000-00000000000e", "started_at": "2026-01-31T09:02:00.000000Z",
            "leased_until": "2026-01-31T09:03:40.000000Z", "deadline": "2026-01-31T11:02:00.000000Z",
            "progress": {"frames": 400}
        },
        "attempts": [{
            "attempt": 1, "worker_id": "019a0000-0000-7000-8000-00000000000f",
            "started_at": "2026-01-31T09:00:00.000000Z", "ended_at": "2026-01-31T09:01:00.000000Z", "outcome": "lost",
            "error": {"class": "lost", "detail": "nothing was heard of the worker"}
        }]
    }))),
    extensions(("x-problems" = json!(["job-not-found"])), ("x-scope" = json!("jobs:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/jobs/{job_id}")]
pub async fn get_job(caller: WorkspaceCaller<scope::JobsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    private_json(&request, &JobView::from(own_job(&caller, &request).await?))
}

/// Cancel a job
///
/// Ends a job that no worker has, and releases its hold. If a worker has it, the worker is asked to stop, with its next
/// heartbeat; until then it may still complete the job. A command whose last attempt got no answer may have taken effect: it is
/// tried once more, to know. A job that is over stays as it is. The answer is the job as it is then;
/// sent again, nothing more happens.
#[utoipa::path(
    tag = "jobs",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace."),
        ("job_id" = JobId, Path, description = "The job.")
    ),
    responses((status = 200, description = "The job, as it is now.", body = JobView, example = json!({
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "queue": "video_processing", "kind": "video_processing.analyse",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "state": "canceled", "priority": 5,
        "run_at": "2026-01-31T09:00:00.000000Z", "attempt": 0, "max_attempts": 5, "args": {"video": "s3://videos/17.mp4"},
        "error": {"class": "canceled", "detail": "the job was canceled"}, "created_at": "2026-01-31T09:00:00.000000Z",
        "finished_at": "2026-01-31T09:00:30.000000Z", "attempts": []
    }))),
    extensions(("x-problems" = json!(["job-not-found"])), ("x-scope" = json!("jobs:write")), ("x-key" = json!("none"))),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/jobs/{job_id}/cancel")]
pub async fn cancel_job(
    caller: WorkspaceCaller<scope::JobsWrite>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let state = AppState::of(&request);
    let job = own_job(&caller, &request).await?.listed.job;
    if !job.state.is_final() {
        written(state, state.queues.cancel(vec![job.job_id], false)).await?;
    }
    private_json(&request, &JobView::from(own_job(&caller, &request).await?))
}
