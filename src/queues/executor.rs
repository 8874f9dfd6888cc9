//! The executor: this server is a worker too, for the jobs that are its own.
//!
//! A job that is a command has its own idempotency key in the engine, so an attempt that is made again, here or by another
//! server, gets the answer of the first one.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::join_all;
use metrics::counter;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::commands::error_of;
use super::handle::{LeaseRequest, Leased, Queues};
use super::job_end::{EndOfJob, JobEnd};
use crate::domain::commands::{Command, Envelope};
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::jobs::{
    Completion, Failure, Job, JobError, LeaseBeat, MAX_ARGS_BYTES, QueueNames, Runner, SystemSchedule, Worker,
    WorkerBeat, WorkerState,
};
use crate::domain::metadata::Metadata;
use crate::domain::text::{IdempotencyKey, JobKind, Label};
use crate::engine::{EngineError, Reply};
use crate::telemetry::metric;

/// How many jobs are run together, and how many of these batches at once.
const BATCH: usize = 32;
const BATCHES: usize = 4;
/// How long it waits for jobs at a time.
const WAIT: Duration = Duration::from_secs(20);
/// How often it says that it lives. The shortest lease is longer.
const BEAT: Duration = Duration::from_secs(5);
/// The pause after something has failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long its jobs may take to end when the server stops. Those that do not are tried again, or fired again.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one firing of a schedule may take: less than an attempt of any queue that is sensible for it.
const SCHEDULED_TIMEOUT: Duration = Duration::from_mins(4);

/// Reads the commands of jobs.
pub trait ParseCommand: Send + Sync {
    fn parse(&self, kind: &JobKind, args: &str) -> Result<(Command, Option<Metadata>), JobError>;
}

/// Does what a schedule of the server is for.
#[async_trait]
pub trait ScheduledWork: Send + Sync {
    async fn run(&self, schedule: SystemSchedule) -> Result<(), String>;
}

/// How the jobs are done that are the server's own.
#[derive(Clone)]
pub struct OwnWork {
    pub commands: Arc<dyn ParseCommand>,
    pub scheduled: Arc<dyn ScheduledWork>,
}

struct Executor {
    queues: Queues,
    work: OwnWork,
    worker_id: WorkerId,
    /// The leases that are to be extended.
    running: Mutex<HashMap<JobId, LeaseId>>,
}

impl Queues {
    /// Runs the jobs that are the server's own until `stopping` is cancelled.
    pub async fn work(self, work: OwnWork, stopping: CancellationToken) {
        let worker_id = WorkerId(self.0.parts.clock.new_id());
        let executor = Arc::new(Executor { queues: self, work, worker_id, running: Mutex::default() });
        let batches = TaskTracker::new();
        tokio::select! {
            () = stopping.cancelled() => {}
            () = executor.take_commands(&batches) => {}
            () = executor.take_scheduled(&batches) => {}
            () = executor.beat() => {}
        }
        batches.close();
        if tokio::time::timeout(STOP_TIMEOUT, batches.wait()).await.is_err() {
            tracing::warn!("stopped before all of the server's own jobs were done; they are tried again");
        }
    }
}

impl Executor {
    async fn take_commands(self: &Arc<Self>, batches: &TaskTracker) {
        let free = Arc::new(Semaphore::new(BATCHES));
        while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
            let leased = self.lease(Runner::Server).await;
            if leased.is_empty() {
                continue;
            }
            let executor = Arc::clone(self);
            batches.spawn(async move {
                executor.run(leased).await;
                drop(permit);
            });
        }
    }

    /// What is scheduled may take minutes: no command and no other schedule waits for it. There is one job of each schedule.
    async fn take_scheduled(self: &Arc<Self>, batches: &TaskTracker) {
        loop {
            for job in self.lease(Runner::System).await {
                let executor = Arc::clone(self);
                batches.spawn(async move { executor.run(vec![job]).await });
            }
        }
    }

    /// Of all queues, also of those that another server has created, or that such jobs went to before.
    async fn lease(&self, runner: Runner) -> Vec<Leased> {
        let queues = self.queues.settings().keys().cloned().collect();
        let wanted = LeaseRequest { worker_id: self.worker_id, runner, queues, most: BATCH, wait: WAIT };
        match self.queues.lease(wanted).await {
            Ok(leased) => leased,
            Err(error) => {
                tracing::warn!(%error, "the server's own jobs could not be taken; trying again");
                tokio::time::sleep(PAUSE).await;
                Vec::new()
            }
        }
    }

    /// Says that this server lives, and which jobs it runs.
    async fn beat(&self) {
        while let Err(error) = self.queues.0.parts.jobs.register_worker(&self.worker()).await {
            tracing::warn!(%error, "this server could not be registered as a worker; trying again");
            tokio::time::sleep(PAUSE).await;
        }
        loop {
            tokio::time::sleep(BEAT).await;
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let leases = running.into_iter().map(|(job_id, lease_id)| LeaseBeat { job_id, lease_id, progress: None });
            let beat = WorkerBeat { worker_id: self.worker_id, is_draining: false, leases: leases.collect() };
            if let Err(error) = self.queues.beat(beat).await {
                tracing::warn!(%error, "a heartbeat could not be sent; trying again");
            }
        }
    }

    fn worker(&self) -> Worker {
        let now = self.queues.0.parts.clock.now();
        Worker {
            worker_id: self.worker_id,
            name: Label::from_stored("visionscope"),
            subject: "server".to_owned(),
            runner: Runner::Server,
            queues: QueueNames(self.queues.settings().keys().cloned().collect()),
            slots: i32::try_from(BATCH * BATCHES).unwrap_or(i32::MAX),
            labels: None,
            version: Some(Label::from_stored(env!("CARGO_PKG_VERSION"))),
            state: WorkerState::Active,
            started_at: now,
            seen_at: now,
        }
    }

    async fn run(&self, jobs: Vec<Leased>) {
        let leases: Vec<_> = jobs.iter().map(|Leased { lease, .. }| (lease.job_id, lease.lease_id)).collect();
        self.running.lock().unwrap_or_else(PoisonError::into_inner).extend(leases.iter().copied());
        let ends = join_all(jobs.iter().map(|leased| async {
            // One that panics is a defect. The others of its batch go on.
            let end = AssertUnwindSafe(self.end_of(&leased.job)).catch_unwind().await;
            end.unwrap_or_else(|_| {
                tracing::error!(job_id = %leased.job.job_id, kind = %leased.job.kind, "a job of the server has panicked");
                counter!(metric::TASK_PANICS, "task" => "own_jobs").increment(1);
                failed(JobError::new(JobError::UNAVAILABLE, "the attempt has panicked"), true)
            })
        }));
        let ends = ends.await;
        let ends = leases.iter().zip(ends).map(|(&(job_id, lease_id), end)| EndOfJob {
            job_id,
            lease_id,
            worker_id: Some(self.worker_id),
            end,
        });
        // What cannot be told is tried again when the lease is over.
        let _ = self.queues.end(ends.collect()).await;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|job_id, _| !leases.iter().any(|(ended, _)| ended == job_id));
    }

    /// Does a job.
    async fn end_of(&self, job: &Job) -> JobEnd {
        if let Some(schedule) = SystemSchedule::of(&job.kind) {
            return self.scheduled(schedule).await;
        }
        let parts = &self.queues.0.parts;
        let Some(workspace_id) = job.workspace_id else {
            return failed(JobError::new("no_workspace", "a command needs a workspace"), false);
        };
        let (command, metadata) = match self.work.commands.parse(&job.kind, &job.args) {
            Ok(parsed) => parsed,
            Err(error) => return failed(error, false),
        };
        let key = IdempotencyKey::system(format_args!("job {}", job.job_id));
        let (message_id, now) = (parts.clock.new_command_id(), parts.clock.now());
        let envelope = Envelope {
            actor: job.actor.clone(),
            correlation_id: job.correlation_id.clone(),
            causation_id: Some(job.job_id.0),
            traceparent: job.traceparent.clone(),
            metadata,
            ..Envelope::internal(message_id, workspace_id, key, now, command)
        };
        end_of_reply(parts.engine.decide(envelope).await, job.is_in_doubt())
    }
}

impl Executor {
    async fn scheduled(&self, schedule: SystemSchedule) -> JobEnd {
        match tokio::time::timeout(SCHEDULED_TIMEOUT, self.work.scheduled.run(schedule)).await {
            Ok(Ok(())) => JobEnd::Complete(Completion::default()),
            Ok(Err(error)) => {
                tracing::error!(
                    schedule = schedule.as_str(),
                    error,
                    "what is scheduled has failed; the next firing does it"
                );
                failed(JobError::new("failed", &error), false)
            }
            // What was not done in time is done the next time.
            Err(_) => {
                tracing::warn!(schedule = schedule.as_str(), "what is scheduled takes long; the next firing goes on");
                JobEnd::Complete(Completion::default())
            }
        }
    }
}

/// What the engine's answer means for the job. One that was in doubt before is so until there is an answer.
fn end_of_reply(reply: Result<Reply, EngineError>, is_in_doubt: bool) -> JobEnd {
    match reply {
        Ok(Reply::Decided { answer, rejection: None } | Reply::Replayed(answer)) if answer.status < 300 => {
            let result = Some(answer.body).filter(|body| body.len() <= MAX_ARGS_BYTES);
            JobEnd::Complete(Completion { result, actual: None })
        }
        Ok(Reply::Decided { answer, rejection }) => {
            // One that is not recorded may be accepted later.
            failed(error_of(&answer), rejection.is_some_and(|rejection| !rejection.is_recorded()))
        }
        Ok(Reply::Replayed(answer)) => failed(error_of(&answer), false),
        Ok(Reply::KeyReused | Reply::Nothing) => {
            failed(JobError::new("failed", "the command could not be decided"), false)
        }
        // Nothing was done, and another server does it at once.
        Err(EngineError::Stopping) => JobEnd::Release,
        Err(error) => {
            let may_be_done = is_in_doubt || error == EngineError::Unavailable;
            let class = if may_be_done { JobError::UNAVAILABLE } else { "not_done" };
            failed(JobError::new(class, &error.to_string()), true)
        }
    }
}

fn failed(error: JobError, is_retryable: bool) -> JobEnd {
    JobEnd::Fail(Failure { error, is_retryable, retry_after: None })
}
