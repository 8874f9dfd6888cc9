//! The engine: gathers concurrent commands into batches and makes each batch one transaction.
//!
//! [`Engine::submit`] hands an envelope to the lane that owns its workspace's partition and waits
//! for the answer. A lane (see [`lane`]) forms the next batch while the last one commits. What is
//! decided, and what is answered, is the domain's ([`crate::domain::batch`]); the engine only knows
//! when, with which others, and what to do when the database fails.
//!
//! Deliberately absent: any wait for Redis. After a commit the publisher is told, and that is all.

mod lane;
mod memory;
mod stuck;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::lane::{Job, Lane};
use crate::domain::batch::{Batch, Outcome};
pub use crate::domain::batch::{EventWriter, InvalidEvent, Render, Rendered};
use crate::domain::commands::Envelope;
use crate::domain::event::EventRecord;
use crate::domain::ids::Partition;
use crate::domain::rejection::Rejection;
use crate::store::Store;

/// How the engine is sized.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// How many lanes there are; each owns every n-th partition.
    pub lanes: usize,
    /// How many commands may wait in one lane; one more is answered 503 at once.
    pub queue_capacity: usize,
    /// How many commands one transaction may hold.
    pub max_batch: usize,
    /// How much memory the states of workspaces may take that the lanes remember, about.
    pub memory_bytes: usize,
    /// How far this machine's clock may be ahead of the database's. Time never runs backwards within a
    /// workspace, so a command from a clock that is far ahead would take the workspace along for good.
    pub max_clock_ahead: Option<Duration>,
}

/// What a caller gets for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Decided now. `rejection` is there when it was refused (for a `Retry-After`).
    Decided { answer: Rendered, rejection: Option<Rejection> },
    /// Decided before: the stored answer, byte for byte.
    Replayed(Rendered),
    /// The key was used with another body.
    KeyReused,
    /// An internal command that found nothing to do.
    Nothing,
}

/// Why there is no answer. Whether the command took effect is unknown after `Unavailable` and
/// `Failed`; sending it again with the same key settles it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The lane's queue is full: nothing was done.
    #[error("too many commands are waiting")]
    Overloaded,
    /// The engine is stopping: nothing was done.
    #[error("the server is shutting down")]
    Stopping,
    #[error("the database is unavailable")]
    Unavailable,
    /// A defect; it is in the log.
    #[error("the command failed")]
    Failed,
}

/// Told after a commit which events it wrote, in the order of each partition's sequence.
pub trait CommitSignal: Send + Sync + 'static {
    fn committed(&self, events: Vec<EventRecord>);
}

/// What the lanes work with.
pub(crate) struct Parts {
    pub store: Arc<dyn Store>,
    pub render: Arc<dyn Render>,
    pub events: Arc<dyn EventWriter>,
    pub signal: Arc<dyn CommitSignal>,
}

/// The entry to all lanes. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    lanes: Vec<mpsc::Sender<Job>>,
    stopping: CancellationToken,
    /// Cancelled when a lane ended though nobody stopped it.
    broken: CancellationToken,
    tasks: TaskTracker,
}

impl Engine {
    /// Starts the lanes.
    #[must_use]
    pub fn start(
        config: &EngineConfig,
        store: Arc<dyn Store>,
        render: Arc<dyn Render>,
        events: Arc<dyn EventWriter>,
        signal: Arc<dyn CommitSignal>,
    ) -> Self {
        let parts = Arc::new(Parts { store, render, events, signal });
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let broken = CancellationToken::new();
        let lanes = (0..config.lanes.max(1))
            .map(|number| {
                let (sender, queue) = mpsc::channel(config.queue_capacity.max(1));
                let lane = Lane::new(number, Arc::clone(&parts), queue, config, stopping.clone());
                let watch = Watch { stopping: stopping.clone(), broken: broken.clone() };
                tasks.spawn(async move {
                    let _watch = watch;
                    lane.run().await;
                });
                sender
            })
            .collect();
        tasks.close();
        Self { inner: Arc::new(Inner { lanes, stopping, broken, tasks }) }
    }

    /// Waits until the command is decided and durable.
    pub async fn submit(&self, envelope: Envelope) -> Result<Reply, EngineError> {
        if self.inner.stopping.is_cancelled() {
            return Err(EngineError::Stopping);
        }
        let partition = usize::from(Partition::of(envelope.workspace_id).number());
        let lane = partition % self.inner.lanes.len();
        let (answer, answered) = oneshot::channel();
        let sender = self.inner.lanes.get(lane).ok_or(EngineError::Failed)?;
        sender.try_send(Job { envelope, answer, queued_at: Instant::now() }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => EngineError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => EngineError::Stopping,
        })?;
        answered.await.map_err(|_| EngineError::Failed)?
    }

    /// Ready when a lane has ended by itself, which only a defect makes it do: its partitions get no
    /// answers any more, so the process should be replaced.
    pub async fn broken(&self) {
        self.inner.broken.cancelled().await;
    }

    /// Takes no more commands, finishes those that wait, and returns when all lanes have ended.
    pub async fn stop(&self) {
        self.inner.stopping.cancel();
        self.inner.tasks.wait().await;
    }
}

/// Tells when a lane ends, by a panic too.
struct Watch {
    stopping: CancellationToken,
    broken: CancellationToken,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.stopping.is_cancelled() {
            tracing::error!("a lane ended by itself");
            self.broken.cancel();
        }
    }
}

/// Decides one command; a panic in a decision is that command's failure and nobody else's. The
/// batch is not torn by it: a decision only reads, and its effects are applied afterwards.
fn decide(batch: &mut Batch<'_>, envelope: &Envelope) -> Result<Outcome, EngineError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| batch.run(envelope)));
    match outcome {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => {
            tracing::error!(%error, command_id = %envelope.message_id, "an event breaks its contract");
            Err(EngineError::Failed)
        }
        Err(_) => {
            tracing::error!(command_id = %envelope.message_id, command = envelope.command.name(), "a decision panicked");
            Err(EngineError::Failed)
        }
    }
}

impl From<Outcome> for Reply {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Accepted(answer) => Self::Decided { answer, rejection: None },
            Outcome::Refused { rejection, answer } => Self::Decided { answer, rejection: Some(rejection) },
            Outcome::Replayed(answer) => Self::Replayed(answer),
            Outcome::KeyReused => Self::KeyReused,
            Outcome::Nothing => Self::Nothing,
        }
    }
}
