//! A store whose changes of jobs fail when a test wants it: before they are written, or after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use visionscope_billing::domain::ids::{JobId, WorkerId, WorkspaceId};
use visionscope_billing::domain::jobs::{FinishedJob, Job, Queue, Runner, Schedule, Worker};
use visionscope_billing::domain::operator_act::OperatorAct;
use visionscope_billing::domain::text::QueueName;
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::store::jobs::{DecideJobs, DecideLeases, JobRecord, JobSelection, Jobs, ListedJob, QueueLoad};
use visionscope_billing::store::{ServerStore, StoreError};

pub struct FaultyJobs {
    inner: Arc<dyn ServerStore>,
    /// Every so many changes fail, by turns before and after they are written. None fails if it is 0.
    every: AtomicU32,
    changes: AtomicU32,
}

impl FaultyJobs {
    pub fn over(inner: Arc<dyn ServerStore>) -> Self {
        Self { inner, every: AtomicU32::new(0), changes: AtomicU32::new(0) }
    }

    pub fn fail_every(&self, every: u32) {
        self.every.store(every, Ordering::SeqCst);
        self.changes.store(0, Ordering::SeqCst);
    }
}

fn away() -> StoreError {
    StoreError::Unavailable("for a test".into())
}

#[async_trait]
impl Jobs for FaultyJobs {
    async fn change_jobs(&self, which: &JobSelection, decide: DecideJobs<'_>) -> Result<(), StoreError> {
        let every = self.every.load(Ordering::SeqCst);
        let number = self.changes.fetch_add(1, Ordering::SeqCst);
        let fails = every > 0 && number % every == every - 1;
        let is_before = (number / every.max(1)).is_multiple_of(2);
        if fails && is_before {
            return Err(away());
        }
        self.inner.change_jobs(which, decide).await?;
        if fails { Err(away()) } else { Ok(()) }
    }

    async fn change_leases(
        &self,
        jobs: &[JobId],
        workers: &[WorkerId],
        decide: DecideLeases<'_>,
    ) -> Result<(), StoreError> {
        self.inner.change_leases(jobs, workers, decide).await
    }

    async fn register_worker(&self, worker: &Worker) -> Result<(), StoreError> {
        self.inner.register_worker(worker).await
    }

    async fn change_worker(&self, before: &Worker, after: &Worker, act: &OperatorAct) -> Result<(), StoreError> {
        self.inner.change_worker(before, after, act).await
    }

    async fn worker(&self, worker_id: WorkerId) -> Result<Option<Worker>, StoreError> {
        self.inner.worker(worker_id).await
    }

    async fn workers(&self, limit: u32) -> Result<Vec<Worker>, StoreError> {
        self.inner.workers(limit).await
    }

    async fn retire_workers(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.inner.retire_workers(before).await
    }

    async fn queues(&self) -> Result<Vec<Queue>, StoreError> {
        self.inner.queues().await
    }

    async fn create_queues(&self, queues: &[Queue]) -> Result<(), StoreError> {
        self.inner.create_queues(queues).await
    }

    async fn change_queue(&self, before: &Queue, after: &Queue, act: &OperatorAct) -> Result<(), StoreError> {
        self.inner.change_queue(before, after, act).await
    }

    async fn schedules(&self) -> Result<Vec<Schedule>, StoreError> {
        self.inner.schedules().await
    }

    async fn create_schedules(&self, schedules: &[Schedule]) -> Result<(), StoreError> {
        self.inner.create_schedules(schedules).await
    }

    async fn change_schedule(&self, before: &Schedule, after: &Schedule, act: &OperatorAct) -> Result<(), StoreError> {
        self.inner.change_schedule(before, after, act).await
    }

    async fn jobs_with_ending_holds(&self, before: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError> {
        self.inner.jobs_with_ending_holds(before, limit).await
    }

    async fn job(&self, job_id: JobId, workspace_id: Option<WorkspaceId>) -> Result<Option<JobRecord>, StoreError> {
        self.inner.job(job_id, workspace_id).await
    }

    async fn draining_workers(&self, limit: u32) -> Result<Vec<WorkerId>, StoreError> {
        self.inner.draining_workers(limit).await
    }

    async fn queue_loads(&self, most: u32) -> Result<Vec<QueueLoad>, StoreError> {
        self.inner.queue_loads(most).await
    }

    async fn busy_workers(&self) -> Result<Vec<(WorkerId, i64)>, StoreError> {
        self.inner.busy_workers().await
    }

    async fn next_jobs(&self, queue: &QueueName, runner: Runner, limit: u32) -> Result<Vec<Job>, StoreError> {
        self.inner.next_jobs(queue, runner, limit).await
    }

    async fn running_jobs(&self, queue: &QueueName, limit: u32) -> Result<Vec<Job>, StoreError> {
        self.inner.running_jobs(queue, limit).await
    }

    async fn finished_jobs(&self, ids: &[JobId]) -> Result<Vec<FinishedJob>, StoreError> {
        self.inner.finished_jobs(ids).await
    }

    async fn jobs(
        &self,
        workspace_id: WorkspaceId,
        start_at: Option<(Timestamp, JobId)>,
        limit: u32,
    ) -> Result<Vec<ListedJob>, StoreError> {
        self.inner.jobs(workspace_id, start_at, limit).await
    }
}
