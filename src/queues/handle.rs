//! What the parts of the queues hold together, and what a request calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::domain::jobs::{Job, QueueSettings, Submission};
use crate::domain::text::QueueName;
use crate::engine::{Engine, Rendered};
use crate::store::{Store, StoreError, jobs::Jobs};

/// What queues need of the other parts.
#[derive(Clone)]
pub struct Parts {
    pub jobs: Arc<dyn Jobs>,
    pub store: Arc<dyn Store>,
    pub engine: Engine,
    pub clock: Arc<dyn Clock>,
}

/// The handle to all queues. Cheap to clone.
#[derive(Clone)]
pub struct Queues(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) parts: Parts,
    /// As they were read last.
    pub(super) settings: watch::Sender<Arc<BTreeMap<QueueName, QueueSettings>>>,
    sent: mpsc::Sender<Sent>,
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
    pub(super) fn new(parts: Parts, sent: mpsc::Sender<Sent>) -> Self {
        Self(Arc::new(Inner { parts, settings: watch::Sender::default(), sent }))
    }

    /// Reads the queues again: an operator may have changed them.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let queues = self.0.parts.jobs.queues().await?;
        let settings = queues.into_iter().map(|queue| (queue.queue, queue.settings)).collect();
        self.0.settings.send_replace(Arc::new(settings));
        Ok(())
    }

    /// The queues, as they were read last.
    #[must_use]
    pub fn settings(&self) -> Arc<BTreeMap<QueueName, QueueSettings>> {
        Arc::clone(&self.0.settings.borrow())
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
