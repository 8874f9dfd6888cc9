//! What the parts of the queues hold together, and what a request calls.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::job_end::{EndOfJob, JobEnd};
use super::readiness::Readiness;
use crate::clock::Clock;
use crate::domain::ids::WorkerId;
use crate::domain::jobs::{BeatAnswer, Job, JobLease, JobState, QueueSettings, Routes, Runner, Submission, WorkerBeat};
use crate::domain::text::QueueName;
use crate::domain::time::Timestamp;
use crate::engine::{Decide, Rendered};
use crate::store::{Store, StoreError, jobs::Jobs};

/// How many jobs may wait to be stored.
const MAX_SENT: usize = 4096;
/// How many jobs one request gets.
const MAX_LEASED: usize = 32;
/// Also a worker that does not want to wait waits for so long: as long as a claim may take.
const SHORTEST_WAIT: Duration = Duration::from_millis(250);
/// How often this server itself waits for jobs.
const OWN_SEATS: usize = 2;
/// How many workers may be draining at once: others get jobs a little longer.
const MAX_DRAINING: u32 = 4096;
/// How many workers may wait for jobs, and for an answer to a heartbeat.
const MAX_WAITING: usize = 4096;

/// What queues need of the other parts.
#[derive(Clone)]
pub struct Parts {
    pub jobs: Arc<dyn Jobs>,
    pub store: Arc<dyn Store>,
    pub engine: Arc<dyn Decide>,
    /// The queue of each kind of job.
    pub routes: Routes,
    pub clock: Arc<dyn Clock>,
}

/// The handle to all queues. Cheap to clone.
#[derive(Clone)]
pub struct Queues(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) parts: Parts,
    /// As they were read last.
    pub(super) settings: watch::Sender<Arc<BTreeMap<QueueName, QueueSettings>>>,
    /// Workers that get no more jobs, as they were read last.
    pub(super) draining: watch::Sender<Arc<HashSet<WorkerId>>>,
    sent: mpsc::Sender<Sent>,
    waiting: mpsc::Sender<Waiting>,
    beating: mpsc::Sender<Beating>,
    pub(super) ready: Arc<Readiness>,
    /// Nobody gets a job any more.
    pub(super) closing: CancellationToken,
    /// Since when this server can take jobs from workers that are not heard of.
    pub(super) listening_since: Mutex<Timestamp>,
    /// One for each worker that may wait for jobs.
    seats: Arc<Semaphore>,
    runtime: Handle,
}

/// A worker asks for jobs.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    pub worker_id: WorkerId,
    pub runner: Runner,
    /// Any of these will do. Those that do not exist are left out. None if the worker is draining.
    pub queues: Vec<QueueName>,
    /// As many jobs as it can run now: at most 32.
    pub most: usize,
    /// How long it waits for the first one.
    pub wait: Duration,
}

/// A job that a worker has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    pub job: Job,
    pub lease: JobLease,
}

/// A worker that waits for jobs.
pub(super) struct Waiting {
    pub(super) worker_id: WorkerId,
    pub(super) runner: Runner,
    pub(super) queues: Vec<QueueName>,
    pub(super) most: usize,
    pub(super) until: Instant,
    pub(super) reply: oneshot::Sender<HandedOver>,
    pub(super) _seat: Option<OwnedSemaphorePermit>,
}

/// Jobs on their way to a worker. If it does not take them, because it has gone away, they are given back.
pub(super) struct HandedOver {
    leased: Vec<Leased>,
    inner: Arc<Inner>,
}

impl HandedOver {
    pub(super) fn new(leased: Vec<Leased>, inner: &Arc<Inner>) -> Self {
        Self { leased, inner: Arc::clone(inner) }
    }

    fn take(mut self) -> Vec<Leased> {
        std::mem::take(&mut self.leased)
    }
}

impl Drop for HandedOver {
    /// If it cannot be written now, the leases end by themselves.
    fn drop(&mut self) {
        let left = std::mem::take(&mut self.leased);
        if left.is_empty() {
            return;
        }
        let given_back = left.into_iter().map(|Leased { lease, .. }| EndOfJob {
            job_id: lease.job_id,
            lease_id: lease.lease_id,
            worker_id: Some(lease.worker_id),
            end: JobEnd::Release,
        });
        let (inner, given_back) = (Arc::clone(&self.inner), given_back.collect());
        self.inner.runtime.spawn(async move { inner.end(given_back).await });
    }
}

/// A heartbeat that waits to be taken.
pub(super) struct Beating {
    pub(super) beat: WorkerBeat,
    pub(super) reply: oneshot::Sender<Result<BeatAnswer, QueueError>>,
}

/// What the tasks of the queues receive.
pub(super) struct Received {
    pub(super) jobs: mpsc::Receiver<Sent>,
    pub(super) workers: mpsc::Receiver<Waiting>,
    pub(super) beats: mpsc::Receiver<Beating>,
}

/// A job that waits to be stored.
pub(super) struct Sent {
    pub(super) submission: Submission,
    pub(super) reply: oneshot::Sender<Result<Accepted, QueueError>>,
}

/// What became of a job that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is new, was sent before, or another one has its unique key: the job as it is now.
    Job(Box<Job>),
    /// Its hold was refused: the answer that a deduction would get.
    Refused(Rendered),
    /// Another job was sent with the same idempotency key.
    KeyReused,
    /// The idempotency key is that of a job that is over and forgotten.
    Over,
    NoQueue,
}

/// Why there is no answer. The same request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Nothing was done.
    #[error("too many jobs are waiting to be stored")]
    Overloaded,
    /// It may have taken effect.
    #[error("the database is unavailable")]
    Unavailable,
    /// A defect. The log has the details.
    #[error("the job could not be read or written")]
    Failed,
}

impl From<StoreError> for QueueError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(_) | StoreError::Unavailable(_) => {
                tracing::warn!(%error, "jobs could not be changed");
                Self::Unavailable
            }
            StoreError::Corrupt(_) => {
                tracing::error!(%error, "jobs could not be changed");
                Self::Failed
            }
        }
    }
}

impl Queues {
    /// The handle, and what its tasks receive.
    pub(super) fn new(parts: Parts) -> (Self, Received) {
        let ((sent, jobs), (waiting, workers)) = (mpsc::channel(MAX_SENT), mpsc::channel(MAX_WAITING + OWN_SEATS));
        let (beating, beats) = mpsc::channel(MAX_WAITING);
        let inner = Inner {
            listening_since: Mutex::new(parts.clock.now()),
            parts,
            settings: watch::Sender::default(),
            draining: watch::Sender::default(),
            sent,
            waiting,
            beating,
            ready: Arc::default(),
            closing: CancellationToken::new(),
            seats: Arc::new(Semaphore::new(MAX_WAITING)),
            runtime: Handle::current(),
        };
        (Self(Arc::new(inner)), Received { jobs, workers, beats })
    }

    /// A worker lives, and still runs these jobs. What it is told holds from now on.
    pub async fn beat(&self, beat: WorkerBeat) -> Result<BeatAnswer, QueueError> {
        let (reply, answer) = oneshot::channel();
        self.0.beating.try_send(Beating { beat, reply }).map_err(|_| QueueError::Overloaded)?;
        answer.await.map_err(|_| QueueError::Unavailable)?
    }

    /// Jobs for a worker: at least one if there is one in time, and none otherwise.
    pub async fn lease(&self, request: LeaseRequest) -> Result<Vec<Leased>, QueueError> {
        let LeaseRequest { worker_id, runner, mut queues, most, wait } = request;
        queues.retain(|queue| self.0.settings.borrow().contains_key(queue));
        let most = most.clamp(1, MAX_LEASED);
        // The caller has read the worker just now.
        if !queues.is_empty() && self.0.draining.borrow().contains(&worker_id) {
            self.0.draining.send_modify(|draining| Arc::make_mut(draining).retain(|other| *other != worker_id));
        }
        // Workers do not take the places of the server itself.
        let seat = match runner {
            Runner::Server | Runner::System => None,
            Runner::Worker => Some(Arc::clone(&self.0.seats).try_acquire_owned().map_err(|_| QueueError::Overloaded)?),
        };
        let (reply, answer) = oneshot::channel();
        let until = Instant::now() + wait.max(SHORTEST_WAIT);
        let waiting = Waiting { worker_id, runner, queues, most, until, reply, _seat: seat };
        self.0.waiting.try_send(waiting).map_err(|_| QueueError::Overloaded)?;
        answer.await.map(HandedOver::take).map_err(|_| QueueError::Unavailable)
    }

    /// Gives no more jobs to workers, and lets those that wait go: the server stops.
    pub fn close(&self) {
        self.0.closing.cancel();
    }

    /// Reads again what operators change: the queues, and which workers are draining.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let queues = self.0.parts.jobs.queues().await?;
        let settings = queues.into_iter().map(|queue| (queue.queue, queue.settings)).collect();
        self.0.settings.send_replace(Arc::new(settings));
        let draining: HashSet<_> = self.0.parts.jobs.draining_workers(MAX_DRAINING).await?.into_iter().collect();
        if **self.0.draining.borrow() != draining {
            self.0.draining.send_replace(Arc::new(draining));
        }
        Ok(())
    }

    /// The queues, as they were read last.
    #[must_use]
    pub fn settings(&self) -> Arc<BTreeMap<QueueName, QueueSettings>> {
        Arc::clone(&self.0.settings.borrow())
    }

    /// Which queue the jobs of each kind go to.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.0.parts.routes
    }

    /// Places the holds of jobs that were stored otherwise than by [`Self::submit`]. What cannot be done now is done later.
    pub async fn begin(&self, mut jobs: Vec<Job>) {
        jobs.retain(|job| job.state == JobState::Holding);
        let _ = self.0.place_holds(jobs).await;
    }

    /// Takes a job. A metered one is answered when its hold is placed or refused.
    pub async fn submit(&self, submission: Submission) -> Result<Accepted, QueueError> {
        let (reply, answer) = oneshot::channel();
        self.0.sent.try_send(Sent { submission, reply }).map_err(|_| QueueError::Overloaded)?;
        answer.await.map_err(|_| QueueError::Unavailable)?
    }
}

impl Inner {
    /// A number from 0 to 1, at random.
    pub(super) fn share(&self) -> f64 {
        let bits = u32::try_from(self.parts.clock.new_id().as_u128() & u128::from(u32::MAX)).unwrap_or_default();
        f64::from(bits) / f64::from(u32::MAX)
    }
}
