//! The engine: gathers concurrent commands into batches and makes each batch one transaction.
//!
//! [`Engine::submit`] hands an envelope to the lane that owns its workspace's partition and waits
//! for the answer. A lane (see [`lane`]) forms the next batch while the last one commits. What is
//! decided, and what is answered, is the domain's ([`crate::domain::batch`]); the engine only knows
//! when, with which others, and what to do when the database fails.
//!
//! Deliberately absent: any wait for Redis. After a commit the publisher is told, and that is all.

mod decide;
mod lane;
mod memory;
mod parts;
mod reply;
mod stuck;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::lane::{Job, Lane};
use self::parts::Parts;
pub use self::parts::{CommitSignal, EngineConfig};
pub use self::reply::{EngineError, Reply};
pub use crate::domain::batch::{EventWriter, InvalidEvent, Render, Rendered};
use crate::domain::commands::Envelope;
use crate::domain::ids::Partition;
use crate::store::Store;

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
