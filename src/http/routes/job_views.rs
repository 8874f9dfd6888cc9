//! Jobs, as answers show them.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::credits::Credits;
use crate::domain::ids::{HoldId, JobId, WorkerId, WorkspaceId};
use crate::domain::jobs::{
    AttemptOutcome, Job, JobAttempt, JobError, JobLease, JobState, MAX_ARGS_BYTES, MAX_PROGRESS_BYTES,
};
use crate::domain::text::{JobKind, QueueName, UniqueKey};
use crate::domain::time::Timestamp;
use crate::http::json_object::JsonObject;
use crate::store::jobs::{Finished, JobRecord, ListedJob};

/// The arguments of a job, and its result.
pub type JobObject = JsonObject<MAX_ARGS_BYTES>;
/// What a worker tells of a job that it runs.
pub type ProgressObject = JsonObject<MAX_PROGRESS_BYTES>;

/// Why an attempt has failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobError)]
pub struct JobErrorView {
    /// What kind of error it is, such as `timeout`; `lost` if nothing was heard of the worker.
    class: String,
    detail: String,
}

/// A worker has the job.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobLease)]
pub struct JobLeaseView {
    worker_id: WorkerId,
    started_at: Timestamp,
    /// Without another heartbeat the job is taken from the worker then.
    leased_until: Timestamp,
    /// When the attempt must be over.
    deadline: Timestamp,
    /// What the worker has told last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    progress: Option<ProgressObject>,
}

/// An attempt that is over.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobAttempt)]
pub struct JobAttemptView {
    /// From 1. Attempts that were given back do not count, and are not kept.
    attempt: i32,
    worker_id: WorkerId,
    started_at: Timestamp,
    ended_at: Timestamp,
    outcome: AttemptOutcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<JobErrorView>,
}

/// A job. A list shows it without its arguments, result, lease and attempts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobView {
    job_id: JobId,
    queue: QueueName,
    kind: JobKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_id: Option<WorkspaceId>,
    state: JobState,
    /// From 0 to 9. A higher one goes first: each is worth a minute of waiting.
    priority: i16,
    /// When it is ready: for the first time, or for the next attempt.
    run_at: Timestamp,
    /// The attempts that have begun and count.
    attempt: i32,
    max_attempts: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    args: Option<JobObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_key: Option<UniqueKey>,
    /// Of a metered job.
    #[serde(skip_serializing_if = "Option::is_none")]
    hold_id: Option<HoldId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_credits: Option<Credits>,
    /// What a metered job has cost, once that is charged.
    #[serde(skip_serializing_if = "Option::is_none")]
    captured_credits: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    result: Option<JobObject>,
    /// Of the last attempt that has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<JobErrorView>,
    /// The dead letter of another job that this one tries again.
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter_id: Option<Uuid>,
    /// Since when its worker is asked to stop it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_requested_at: Option<Timestamp>,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<JobLeaseView>,
    /// Those that are over, in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<JobAttemptView>>,
}

impl From<JobError> for JobErrorView {
    fn from(JobError { class, text }: JobError) -> Self {
        Self { class, detail: text }
    }
}

impl From<JobLease> for JobLeaseView {
    fn from(lease: JobLease) -> Self {
        let JobLease { worker_id, started_at, leased_until, deadline, progress, .. } = lease;
        Self { worker_id, started_at, leased_until, deadline, progress: progress.and_then(JsonObject::from_stored) }
    }
}

impl From<JobAttempt> for JobAttemptView {
    fn from(attempt: JobAttempt) -> Self {
        let JobAttempt { attempt, worker_id, started_at, ended_at, outcome, error, .. } = attempt;
        Self { attempt, worker_id, started_at, ended_at, outcome, error: error.map(JobErrorView::from) }
    }
}

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        let args = JsonObject::from_stored(job.args);
        Self {
            job_id: job.job_id,
            queue: job.queue,
            kind: job.kind,
            workspace_id: job.workspace_id,
            state: job.state,
            priority: job.priority,
            run_at: job.run_at,
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            args,
            unique_key: job.unique_key,
            hold_id: job.hold_id,
            held_credits: job.held_credits,
            captured_credits: None,
            result: job.result.and_then(JsonObject::from_stored),
            error: job.error.map(JobErrorView::from),
            dead_letter_id: job.replays.map(|replays| replays.dead_letter_id),
            cancel_requested_at: job.cancel_requested_at,
            created_at: job.created_at,
            finished_at: None,
            lease: None,
            attempts: None,
        }
    }
}

impl From<ListedJob> for JobView {
    fn from(ListedJob { job, finished }: ListedJob) -> Self {
        Self { args: None, result: None, ..Self::from(job) }.finished(finished)
    }
}

impl From<JobRecord> for JobView {
    fn from(JobRecord { listed, lease, attempts }: JobRecord) -> Self {
        let attempts = attempts.into_iter().map(JobAttemptView::from).collect();
        Self { lease: lease.map(JobLeaseView::from), attempts: Some(attempts), ..Self::from(listed.job) }
            .finished(listed.finished)
    }
}

impl JobView {
    fn finished(self, finished: Option<Finished>) -> Self {
        let captured_credits = finished.and_then(|finished| finished.captured);
        Self { finished_at: finished.map(|finished| finished.at), captured_credits, ..self }
    }
}
