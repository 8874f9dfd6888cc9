//! The store as queues and workers see it.
//!
//! There is one way to change jobs: name which, and say what becomes of the rows that were found. The rows are locked before
//! and written after, in one transaction, so that two servers never decide on the same job.

use async_trait::async_trait;
use uuid::Uuid;

use super::columns::{Stored, Value};
use super::error::StoreError;
use crate::domain::credits::Credits;
use crate::domain::ids::{JobId, WorkerId, WorkspaceId};
use crate::domain::jobs::{
    FinishedJob, FoundJobs, FoundLeases, Job, JobAttempt, JobChanges, JobLease, LeaseChanges, Line, Queue, Runner,
    Schedule, Worker,
};
use crate::domain::operator_act::OperatorAct;
use crate::domain::text::{JobKind, QueueName, UniqueKey};
use crate::domain::time::Timestamp;

/// Which jobs to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobSelection {
    /// What is known of jobs that are sent: those with these ids or unique keys, and the last ranks of these lines.
    Sent(SentJobs),
    /// Ready jobs of a queue, the lowest rank first. Those that somebody else is changing are left out.
    Ready { queue: QueueName, runner: Runner, limit: u32 },
    /// Jobs whose time has come, with the last ranks of their lines.
    Due { now: Timestamp, limit: u32 },
    /// Jobs whose hold has been placed, captured or released since before that instant, and is still being so. The oldest
    /// first, without those that somebody else is changing.
    Unsettled { before: Timestamp, limit: u32 },
    /// Jobs that were set aside before that instant. The oldest first, as above.
    SetAside { before: Timestamp, limit: u32 },
    /// Jobs whose lease is over.
    Lost { now: Timestamp, limit: u32 },
    /// Schedules that are due, with the jobs of theirs that are not over, and these queues.
    Schedules { now: Timestamp, queues: Vec<QueueName> },
    /// These jobs, whatever their state.
    ById(Vec<JobId>),
}

/// What tells jobs that are sent from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentJobs {
    pub ids: Vec<JobId>,
    pub unique_keys: Vec<(Option<WorkspaceId>, JobKind, UniqueKey)>,
    pub lines: Vec<Line>,
}

/// Decides what becomes of jobs. It may be called again, with what was found then.
pub type DecideJobs<'d> = &'d mut (dyn FnMut(FoundJobs) -> JobChanges + Send);

/// Decides what becomes of leases and workers.
pub type DecideLeases<'d> = &'d mut (dyn FnMut(FoundLeases) -> LeaseChanges + Send);

#[async_trait]
pub trait Jobs: Send + Sync {
    /// Finds jobs, and writes what the function makes of them, all of it or nothing. It is a conflict if another transaction
    /// was faster.
    async fn change_jobs(&self, which: &JobSelection, decide: DecideJobs<'_>) -> Result<(), StoreError>;

    /// Finds the leases of jobs, and workers, and writes what the function makes of them.
    async fn change_leases(
        &self,
        jobs: &[JobId],
        workers: &[WorkerId],
        decide: DecideLeases<'_>,
    ) -> Result<(), StoreError>;

    async fn register_worker(&self, worker: &Worker) -> Result<(), StoreError>;

    /// Changes a worker. It is a conflict if it is no longer what it was before.
    async fn change_worker(&self, before: &Worker, after: &Worker, act: &OperatorAct) -> Result<(), StoreError>;

    async fn worker(&self, worker_id: WorkerId) -> Result<Option<Worker>, StoreError>;

    /// Those that were seen last: at most so many.
    async fn workers(&self, limit: u32) -> Result<Vec<Worker>, StoreError>;

    /// Workers that get no more jobs: at most so many.
    async fn draining_workers(&self, limit: u32) -> Result<Vec<WorkerId>, StoreError>;

    /// Notes that workers are gone that were seen before that instant. Returns how many.
    async fn retire_workers(&self, before: Timestamp) -> Result<u64, StoreError>;

    /// All queues, by name.
    async fn queues(&self) -> Result<Vec<Queue>, StoreError>;

    /// Stores the queues that do not exist yet.
    async fn create_queues(&self, queues: &[Queue]) -> Result<(), StoreError>;

    /// Changes a queue. It is a conflict if it is no longer what it was before.
    async fn change_queue(&self, before: &Queue, after: &Queue, act: &OperatorAct) -> Result<(), StoreError>;

    /// All schedules, by their kind.
    async fn schedules(&self) -> Result<Vec<Schedule>, StoreError>;

    /// Stores the schedules that do not exist yet.
    async fn create_schedules(&self, schedules: &[Schedule]) -> Result<(), StoreError>;

    /// Changes a schedule. It is a conflict if it is no longer what it was before.
    async fn change_schedule(&self, before: &Schedule, after: &Schedule, act: &OperatorAct) -> Result<(), StoreError>;

    /// Jobs whose holds expire before that instant while the jobs are not over. The first one first.
    async fn jobs_with_ending_holds(&self, before: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError>;

    /// A job, over or not, with its lease and its attempts. With a workspace given, only if it is its job.
    async fn job(&self, job_id: JobId, workspace_id: Option<WorkspaceId>) -> Result<Option<JobRecord>, StoreError>;

    /// What each queue has to do for each runner. Jobs that are due are counted up to so many.
    async fn queue_loads(&self, most: u32) -> Result<Vec<QueueLoad>, StoreError>;

    /// How many jobs each worker has that has any.
    async fn busy_workers(&self) -> Result<Vec<(WorkerId, i64)>, StoreError>;

    /// The next jobs of a queue, in the order in which they are taken: at most so many.
    async fn next_jobs(&self, queue: &QueueName, runner: Runner, limit: u32) -> Result<Vec<Job>, StoreError>;

    /// The jobs of a queue that workers have, the one that was taken first, first: at most so many.
    async fn running_jobs(&self, queue: &QueueName, limit: u32) -> Result<Vec<Job>, StoreError>;

    /// Those of these jobs that are over.
    async fn finished_jobs(&self, ids: &[JobId]) -> Result<Vec<FinishedJob>, StoreError>;

    /// Jobs of a workspace, over or not, the newest first: at most so many, from a position on. The page begins with that job,
    /// or with the one before it.
    async fn jobs(
        &self,
        workspace_id: WorkspaceId,
        start_at: Option<(Timestamp, JobId)>,
        limit: u32,
    ) -> Result<Vec<ListedJob>, StoreError>;
}

/// What a queue has to do for a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueLoad {
    pub queue: QueueName,
    pub runner: Runner,
    /// Jobs that workers have.
    pub running: i64,
    /// Jobs that are ready, up to a largest count.
    pub due: i64,
    /// When the one was planned for that is taken next.
    pub oldest: Option<Timestamp>,
}

impl QueueLoad {
    /// Up to so many due jobs are counted where people and metrics look: more would read too much.
    pub const MAX_COUNTED: u32 = 10_000;
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedJob {
    pub job: Job,
    pub finished: Option<Finished>,
}

/// When a job was over, and what it has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    pub at: Timestamp,
    pub captured: Option<Credits>,
}

/// All that is known of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    pub listed: ListedJob,
    pub lease: Option<JobLease>,
    /// In their order.
    pub attempts: Vec<JobAttempt>,
}

/// The key of a letter that was tried again with success.
pub(super) fn resolved_key(dead_letter_id: &Uuid, at: Timestamp) -> Vec<Value<'_>> {
    vec![dead_letter_id.to_value(), Value::Timestamptz(at)]
}
