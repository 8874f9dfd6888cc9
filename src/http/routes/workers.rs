//! Workers: processes that take jobs from queues and run them.

use std::collections::BTreeSet;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, post, web};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::job_views::{JobObject, ProgressObject};
use super::reads::{read, written};
use crate::domain::credits::Credits;
use crate::domain::hold::Overrun;
use crate::domain::ids::{JobId, LeaseId, WorkerId, WorkspaceId};
use crate::domain::jobs::{
    Job, JobLease, LeaseBeat, QueueNames, QueueSettings, Runner, Worker, WorkerBeat, WorkerState,
};
use crate::domain::metadata::Metadata;
use crate::domain::text::{FieldCode, FieldError, JobKind, Label, QueueName};
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::body::{self, refuse, whole};
use crate::http::connection::Exchange;
use crate::http::extract::{OperatorCaller, no_query, worker_id};
use crate::http::json_object::JsonObject;
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::queues::{LeaseRequest, Leased};

const MAX_QUEUES: usize = 100;
/// How many jobs one heartbeat names: as many as a worker may run at once.
const MAX_BEATS: usize = 256;
/// A heartbeat comes so many times in a lease, so that one that is late loses nothing.
const BEATS_PER_LEASE: i32 = 3;

/// A process that runs jobs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterWorkerRequest {
    /// For people, such as the name of its machine.
    name: Label,
    /// The queues that it takes jobs of: 1 to 100.
    #[serde(deserialize_with = "queue_names")]
    #[schema(min_items = 1, max_items = 100)]
    queues: Vec<QueueName>,
    /// How many jobs it runs at once, for people to read. What limits it is the `max` with which it takes jobs.
    #[serde(deserialize_with = "slots")]
    #[schema(minimum = 1, maximum = 256)]
    slots: i32,
    /// What its owner tells of it, such as the kind of its processor.
    labels: Option<Metadata>,
    /// Of its program.
    version: Option<Label>,
}

/// A worker that may take jobs now.
#[derive(Debug, Serialize, ToSchema)]
pub struct RegisteredWorker {
    worker_id: WorkerId,
    /// How often it must send a heartbeat, in seconds, also while it has no job.
    heartbeat_s: i32,
    /// The shortest lease of its queues, in seconds: without a heartbeat for so long, it loses its jobs.
    lease_s: i32,
}

/// How many jobs a worker takes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseJobsRequest {
    /// Only jobs of these queues. All that the worker has named, by default.
    #[serde(default, deserialize_with = "optional_queue_names")]
    #[schema(required = false, min_items = 1, max_items = 100)]
    queues: Option<Vec<QueueName>>,
    /// As many as it can run now.
    #[serde(default = "one", deserialize_with = "max_jobs")]
    #[schema(required = false, minimum = 1, maximum = 32)]
    max: usize,
    /// How long to wait for the first one, in seconds.
    #[serde(default, deserialize_with = "wait_s")]
    #[schema(required = false, minimum = 0, maximum = 20)]
    wait_s: u64,
}

/// A job that the worker has now.
#[derive(Debug, Serialize, ToSchema)]
pub struct LeasedJob {
    job_id: JobId,
    /// Whoever ends the job must name it.
    lease_id: LeaseId,
    queue: QueueName,
    kind: JobKind,
    /// Absent of a job that no workspace has sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_id: Option<WorkspaceId>,
    #[schema(value_type = Object)]
    args: JobObject,
    /// The number of this attempt, from 1.
    attempt: i32,
    max_attempts: i32,
    /// How long the attempt may take, in seconds.
    timeout_s: i64,
    /// When it must be over.
    deadline: Timestamp,
    /// Without a heartbeat before, the worker loses the job.
    leased_until: Timestamp,
    /// What is reserved for a metered job.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_credits: Option<Credits>,
    /// What becomes of a cost beyond that.
    #[serde(skip_serializing_if = "Option::is_none")]
    overrun: Option<Overrun>,
    /// Of the request that has sent the job.
    correlation_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

/// The jobs that the worker has got, maybe none.
#[derive(Debug, Serialize, ToSchema)]
pub struct LeasedJobs {
    jobs: Vec<LeasedJob>,
    /// How often the worker must send a heartbeat, in seconds.
    heartbeat_s: i32,
    /// Whether it is to stop when its jobs are done. Then it gets none.
    drain: bool,
}

/// The jobs that a worker still runs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatRequest {
    #[serde(default, deserialize_with = "beats")]
    #[schema(required = false, max_items = 256)]
    leases: Vec<LeaseBeatRequest>,
    /// `true`: the worker is about to stop, and gets no more jobs.
    #[serde(default)]
    #[schema(required = false)]
    drain: bool,
}

/// A job that is still run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseBeatRequest {
    job_id: JobId,
    lease_id: LeaseId,
    /// How far it is: an object of at most 1 KiB, for callers to read. Without it, what was told before stays.
    #[schema(value_type = Option<Object>)]
    progress: Option<ProgressObject>,
}

/// What a worker is told.
#[derive(Debug, Serialize, ToSchema)]
pub struct HeartbeatAnswer {
    /// Jobs that it does not have any more: it must stop them, and need not end them. Those are among them that it has ended itself
    /// meanwhile.
    lost: Vec<JobId>,
    /// Jobs that nobody wants any more: it should stop them, and say that they have failed.
    cancel: Vec<JobId>,
    /// It gets no more jobs, and should end when it has done those that it has.
    drain: bool,
    /// How often it must send a heartbeat from now on, in seconds: an operator may have changed its queues.
    heartbeat_s: i32,
}

const fn one() -> usize {
    1
}

fn slots<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    whole(deserializer, &(1..=256))
}

fn max_jobs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    whole(deserializer, &(1..=32))
}

fn wait_s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    whole(deserializer, &(0..=20))
}

fn queue_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<QueueName>, D::Error> {
    let names: BTreeSet<QueueName> = BTreeSet::deserialize(deserializer)?;
    let refused = || refuse(FieldError::new(FieldCode::Invalid, format!("must have from 1 to {MAX_QUEUES} names")));
    (1..=MAX_QUEUES).contains(&names.len()).then(|| names.into_iter().collect()).ok_or_else(refused)
}

fn optional_queue_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<QueueName>>, D::Error> {
    queue_names(deserializer).map(Some)
}

fn beats<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LeaseBeatRequest>, D::Error> {
    let beats = Vec::deserialize(deserializer)?;
    let refused = || refuse(FieldError::new(FieldCode::Invalid, format!("must have at most {MAX_BEATS} jobs")));
    (beats.len() <= MAX_BEATS).then_some(beats).ok_or_else(refused)
}

impl From<Leased> for LeasedJob {
    fn from(Leased { job, lease }: Leased) -> Self {
        let Job { job_id, queue, kind, workspace_id, args, attempt, max_attempts, held_credits, .. } = job;
        let JobLease { lease_id, started_at, leased_until, deadline, .. } = lease;
        Self {
            job_id,
            lease_id,
            queue,
            kind,
            workspace_id,
            args: JsonObject::from_stored(args).unwrap_or_default(),
            attempt,
            max_attempts,
            timeout_s: i64::try_from(deadline.since(started_at).as_secs()).unwrap_or(i64::MAX),
            deadline,
            leased_until,
            held_credits,
            overrun: job.hold.map(|hold| hold.overrun),
            correlation_id: job.correlation_id,
            traceparent: job.traceparent,
        }
    }
}

/// The worker in the path, if the caller has registered it.
pub(super) async fn own_worker(
    caller: &OperatorCaller<scope::Workers>,
    request: &HttpRequest,
) -> Result<Worker, Problem> {
    let worker = read(AppState::of(request).jobs.worker(worker_id(request)?)).await?;
    let is_own = |worker: &Worker| worker.subject == caller.principal.subject && worker.runner == Runner::Worker;
    worker.filter(is_own).ok_or_else(|| Problem::plain(Code::WorkerNotFound))
}

/// Register a worker
///
/// A process that is to run jobs begins with this. From then on it takes jobs with its `worker_id`, and sends one heartbeat for
/// all of them. A worker that is not heard of for a minute is `gone`, and is forgotten after a day; its next heartbeat brings it
/// back until then. Only tokens with the same `sub` can speak for it.
#[utoipa::path(
    tag = "workers",
    request_body(content = RegisterWorkerRequest, example = json!({
        "name": "gpu-1", "queues": ["video_processing"], "slots": 4, "labels": {"gpu": "l4"}, "version": "2.1.0"
    })),
    responses((status = 201, description = "The worker is registered.", body = RegisteredWorker, example = json!({
        "worker_id": "019a0000-0000-7000-8000-00000000000e", "heartbeat_s": 20, "lease_s": 60
    }))),
    extensions(("x-scope" = json!("workers")), ("x-key" = json!("none"))),
    security(("bearer" = []))
)]
#[post("/v1/workers")]
pub async fn register_worker(
    caller: OperatorCaller<scope::Workers>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let state = AppState::of(&request);
    let sent = body::read::<RegisterWorkerRequest>(&request, &mut payload, "RegisterWorker", false).await?.value;
    let known = state.queues.settings();
    if let Some(unknown) = sent.queues.iter().find(|queue| !known.contains_key(*queue)) {
        return Err(Problem::field(Code::InvalidField, "/queues", format!("there is no queue {unknown}")));
    }
    let lease_s = shortest_lease(state, &sent.queues);
    let now = state.clock.now();
    let worker = Worker {
        worker_id: WorkerId(state.clock.new_id()),
        name: sent.name,
        subject: caller.principal.subject.clone(),
        runner: Runner::Worker,
        queues: QueueNames(sent.queues),
        slots: sent.slots,
        labels: sent.labels,
        version: sent.version,
        state: WorkerState::Active,
        started_at: now,
        seen_at: now,
    };
    read(state.jobs.register_worker(&worker)).await?;
    let registered = RegisteredWorker { worker_id: worker.worker_id, heartbeat_s: heartbeat_s(lease_s), lease_s };
    let mut answer = private_json(&request, &registered)?;
    *answer.status_mut() = StatusCode::CREATED;
    Ok(answer)
}

const fn heartbeat_s(lease_s: i32) -> i32 {
    lease_s / BEATS_PER_LEASE
}

/// Of the queues that exist.
fn shortest_lease(state: &AppState, queues: &[QueueName]) -> i32 {
    let known = state.queues.settings();
    let leases = queues.iter().filter_map(|queue| known.get(queue)).map(|settings| settings.lease_s);
    leases.min().unwrap_or(*QueueSettings::LEASE_S.start())
}

/// Lease jobs
///
/// Takes ready jobs, as many as the worker can run now, and waits for the first one if there is none. It has them until their
/// leases end: each heartbeat that names them makes their leases longer. A draining worker gets none, after a second. If the
/// answer is lost, so are these leases: after a while, the jobs are tried again. A worker that closes its connection meanwhile
/// gets none.
#[utoipa::path(
    tag = "workers",
    params(("worker_id" = WorkerId, Path, description = "The worker.")),
    request_body(content = LeaseJobsRequest, example = json!({"max": 4, "wait_s": 20})),
    responses((status = 200, description = "The jobs.", body = LeasedJobs, example = json!({"jobs": [{
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "lease_id": "5b0ab0a5-0d4e-4f0a-8a54-6c0a3e9f7c21",
        "queue": "video_processing", "kind": "video_processing.analyse",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "args": {"video": "s3://videos/17.mp4"}, "attempt": 1,
        "max_attempts": 5, "timeout_s": 7200, "deadline": "2026-01-31T11:00:00.000000Z",
        "leased_until": "2026-01-31T09:01:00.000000Z", "held_credits": "20", "overrun": "charge_available",
        "correlation_id": "checkout-17"
    }], "heartbeat_s": 20, "drain": false}))),
    extensions(
        ("x-problems" = json!(["worker-not-found"])), ("x-scope" = json!("workers")), ("x-key" = json!("none"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workers/{worker_id}/lease")]
pub async fn lease_jobs(
    caller: OperatorCaller<scope::Workers>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let state = AppState::of(&request);
    let sent = body::read::<LeaseJobsRequest>(&request, &mut payload, "LeaseJobs", true).await?.value;
    let worker = own_worker(&caller, &request).await?;
    if let Some(other) = sent.queues.iter().flatten().find(|queue| !worker.queues.0.contains(queue)) {
        let detail = format!("the worker was not registered for the queue {other}");
        return Err(Problem::field(Code::InvalidField, "/queues", detail));
    }
    let heartbeat_s = heartbeat_s(shortest_lease(state, &worker.queues.0));
    let drain = worker.state == WorkerState::Draining;
    // It waits in vain for a moment, so that it does not ask again at once.
    let (queues, wait_s) =
        if drain { (Vec::new(), sent.wait_s.min(1)) } else { (sent.queues.unwrap_or(worker.queues.0), sent.wait_s) };
    let wanted = LeaseRequest {
        worker_id: worker.worker_id,
        runner: Runner::Worker,
        queues,
        most: sent.max,
        wait: Duration::from_secs(wait_s),
    };
    let lease = async {
        tokio::select! {
            leased = state.queues.lease(wanted) => leased,
            // The worker has gone away: no job is for it.
            () = closed(&request) => Ok(Vec::new()),
        }
    };
    let leased = written(state, lease).await?;
    let jobs = leased.into_iter().map(LeasedJob::from).collect();
    private_json(&request, &LeasedJobs { jobs, heartbeat_s, drain })
}

/// Waits until the caller has closed its connection.
async fn closed(request: &HttpRequest) {
    match Exchange::of(request) {
        Some(exchange) => exchange.closed().await,
        None => std::future::pending().await,
    }
}

/// Send a heartbeat
///
/// Says that the worker lives, and which jobs it still runs: their leases begin again. The answer says which it does not have
/// any more and which it should stop. A worker that is about to stop says so with `drain`: its request for jobs ends at once, and
/// it gets no more. A body has at most 64 KiB, so tell the progress only of jobs in which it has changed.
#[utoipa::path(
    tag = "workers",
    params(("worker_id" = WorkerId, Path, description = "The worker.")),
    request_body(content = HeartbeatRequest, example = json!({"leases": [{
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "lease_id": "5b0ab0a5-0d4e-4f0a-8a54-6c0a3e9f7c21",
        "progress": {"frames": 400}
    }]})),
    responses((status = 200, description = "What the worker is told.", body = HeartbeatAnswer, example = json!({
        "lost": [], "cancel": ["8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c"], "drain": false, "heartbeat_s": 20
    }))),
    extensions(
        ("x-problems" = json!(["worker-not-found"])), ("x-scope" = json!("workers")), ("x-key" = json!("none"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workers/{worker_id}/heartbeat")]
pub async fn send_heartbeat(
    caller: OperatorCaller<scope::Workers>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let state = AppState::of(&request);
    let sent = body::read::<HeartbeatRequest>(&request, &mut payload, "Heartbeat", true).await?.value;
    let Worker { worker_id, queues, .. } = own_worker(&caller, &request).await?;
    let leases = sent.leases.into_iter().map(|lease| LeaseBeat {
        job_id: lease.job_id,
        lease_id: lease.lease_id,
        progress: lease.progress.map(JsonObject::into_text),
    });
    let beat = WorkerBeat { worker_id, is_draining: sent.drain, leases: leases.collect() };
    let told = written(state, state.queues.beat(beat)).await?;
    let heartbeat_s = heartbeat_s(shortest_lease(state, &queues.0));
    let answer = HeartbeatAnswer { lost: told.lost, cancel: told.canceled, drain: told.is_draining, heartbeat_s };
    private_json(&request, &answer)
}
