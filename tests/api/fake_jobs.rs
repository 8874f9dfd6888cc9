//! Queues without jobs, and a worker of every id, for tests of the HTTP layer alone.

use async_trait::async_trait;
use visionscope_billing::domain::ids::{JobId, WorkerId, WorkspaceId};
use visionscope_billing::domain::jobs::{
    FinishedJob, FoundJobs, FoundLeases, Job, Queue, QueueNames, Runner, Schedule, SystemSchedule, Worker, WorkerState,
    default_queues,
};
use visionscope_billing::domain::operator_act::OperatorAct;
use visionscope_billing::domain::text::{Label, QueueName};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::store::StoreError;
use visionscope_billing::store::jobs::{DecideJobs, DecideLeases, JobRecord, JobSelection, Jobs, ListedJob, QueueLoad};

use crate::fake::FakeStore;

fn queues() -> Vec<Queue> {
    let at = Timestamp::from_micros(0);
    default_queues()
        .into_iter()
        .map(|(queue, settings)| Queue { queue, settings, changed_by: None, changed_at: at })
        .collect()
}

#[async_trait]
impl Jobs for FakeStore {
    /// Takes everything, and keeps nothing.
    async fn change_jobs(&self, _: &JobSelection, decide: DecideJobs<'_>) -> Result<(), StoreError> {
        let queues = queues().into_iter().map(|queue| (queue.queue.clone(), queue)).collect();
        decide(FoundJobs { queues, ..FoundJobs::default() });
        self.answer(())
    }

    async fn change_leases(&self, _: &[JobId], _: &[WorkerId], decide: DecideLeases<'_>) -> Result<(), StoreError> {
        decide(FoundLeases::default());
        self.answer(())
    }

    async fn register_worker(&self, _: &Worker) -> Result<(), StoreError> {
        self.answer(())
    }

    async fn change_worker(&self, _: &Worker, _: &Worker, _: &OperatorAct) -> Result<(), StoreError> {
        self.answer(())
    }

    async fn worker(&self, worker_id: WorkerId) -> Result<Option<Worker>, StoreError> {
        let at = Timestamp::from_micros(0);
        self.answer(Some(Worker {
            worker_id,
            name: Label::new("gpu-1").unwrap(),
            subject: "tester".into(),
            runner: Runner::Worker,
            queues: QueueNames(queues().into_iter().map(|queue| queue.queue).collect()),
            slots: 1,
            labels: None,
            version: None,
            state: WorkerState::Active,
            started_at: at,
            seen_at: at,
        }))
    }

    async fn workers(&self, _: u32) -> Result<Vec<Worker>, StoreError> {
        self.answer(Vec::new())
    }

    async fn retire_workers(&self, _: Timestamp) -> Result<u64, StoreError> {
        self.answer(0)
    }

    async fn queues(&self) -> Result<Vec<Queue>, StoreError> {
        Ok(queues())
    }

    async fn create_queues(&self, _: &[Queue]) -> Result<(), StoreError> {
        self.answer(())
    }

    async fn change_queue(&self, _: &Queue, _: &Queue, _: &OperatorAct) -> Result<(), StoreError> {
        self.answer(())
    }

    async fn schedules(&self) -> Result<Vec<Schedule>, StoreError> {
        self.answer(SystemSchedule::ALL.map(|schedule| schedule.begin(Timestamp::from_micros(0))).into())
    }

    async fn create_schedules(&self, _: &[Schedule]) -> Result<(), StoreError> {
        self.answer(())
    }

    async fn change_schedule(&self, _: &Schedule, _: &Schedule, _: &OperatorAct) -> Result<(), StoreError> {
        self.answer(())
    }

    async fn jobs_with_ending_holds(&self, _: Timestamp, _: u32) -> Result<Vec<Job>, StoreError> {
        self.answer(Vec::new())
    }

    async fn job(&self, _: JobId, _: Option<WorkspaceId>) -> Result<Option<JobRecord>, StoreError> {
        self.answer(None)
    }

    async fn draining_workers(&self, _: u32) -> Result<Vec<WorkerId>, StoreError> {
        Ok(Vec::new())
    }

    async fn queue_loads(&self, _: u32) -> Result<Vec<QueueLoad>, StoreError> {
        let load =
            |queue: Queue| QueueLoad { queue: queue.queue, runner: Runner::Worker, running: 0, due: 0, oldest: None };
        self.answer(queues().into_iter().map(load).collect())
    }

    async fn busy_workers(&self) -> Result<Vec<(WorkerId, i64)>, StoreError> {
        self.answer(Vec::new())
    }

    async fn next_jobs(&self, _: &QueueName, _: Runner, _: u32) -> Result<Vec<Job>, StoreError> {
        self.answer(Vec::new())
    }

    async fn running_jobs(&self, _: &QueueName, _: u32) -> Result<Vec<Job>, StoreError> {
        self.answer(Vec::new())
    }

    async fn finished_jobs(&self, _: &[JobId]) -> Result<Vec<FinishedJob>, StoreError> {
        self.answer(Vec::new())
    }

    async fn jobs(&self, _: WorkspaceId, _: Option<(Timestamp, JobId)>, _: u32) -> Result<Vec<ListedJob>, StoreError> {
        self.answer(Vec::new())
    }
}
