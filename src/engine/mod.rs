//! The engine: gathers concurrent commands into batches and makes each batch one transaction.
//!
//! [`Engine::submit`] queues an envelope in the lane that owns its workspace's partition and waits for the
//! answer. A lane (see [`lane`]) forms the next batch while the last one commits. The domain decides commands
//! and their answers ([`crate::domain::batch`]); the engine decides when they run, in which batch, and what
//! happens when the database fails.
//!
//! Deliberately absent: any wait for Redis. After a commit the events go to a [`CommitSignal`], which never
//! waits.

mod batch_executor;
mod config;
mod decide;
mod dependencies;
mod lane;
mod partition_breaker;
mod reply;
mod state_cache;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::config::EngineConfig;
pub use self::dependencies::CommitSignal;
use self::dependencies::Dependencies;
use self::lane::{Lane, QueuedCommand};
pub use self::reply::{EngineError, Reply};
pub use crate::domain::batch::{EventWriter, InvalidEvent, Render, Rendered};
use crate::domain::commands::Envelope;
use crate::domain::ids::Partition;
use crate::store::Store;

/// The handle to all lanes. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    lanes: Vec<mpsc::Sender<QueuedCommand>>,
    stopping: CancellationToken,
    /// Cancelled when a lane ends without being stopped.
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
        let dependencies = Arc::new(Dependencies { store, render, events, signal });
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let broken = CancellationToken::new();
        let lanes = (0..config.lanes.max(1))
            .map(|number| {
                let (sender, queue) = mpsc::channel(config.queue_capacity.max(1));
                let lane = Lane::new(number, Arc::clone(&dependencies), queue, config, stopping.clone());
                let guard = LaneGuard { stopping: stopping.clone(), broken: broken.clone() };
                tasks.spawn(async move {
                    let _guard = guard;
                    lane.run().await;
                });
                sender
            })
            .collect();
        tasks.close();
        Self { inner: Arc::new(Inner { lanes, stopping, broken, tasks }) }
    }

    /// Waits until the command is decided and its result is durable.
    pub async fn submit(&self, envelope: Envelope) -> Result<Reply, EngineError> {
        if self.inner.stopping.is_cancelled() {
            return Err(EngineError::Stopping);
        }
        let partition = usize::from(Partition::of(envelope.workspace_id).number());
        let lane = partition % self.inner.lanes.len();
        let (reply_to, answer) = oneshot::channel();
        let sender = self.inner.lanes.get(lane).ok_or(EngineError::Failed)?;
        let command = QueuedCommand { envelope, reply_to, queued_at: Instant::now() };
        sender.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => EngineError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => EngineError::Stopping,
        })?;
        answer.await.map_err(|_| EngineError::Failed)?
    }

    /// Completes when a lane has ended without being stopped, which only a defect can cause. Its partitions get
    /// no more answers, so the process should be restarted.
    pub async fn broken(&self) {
        self.inner.broken.cancelled().await;
    }

    /// Takes no more commands, finishes the queued ones, and returns when all lanes have ended.
    pub async fn stop(&self) {
        self.inner.stopping.cancel();
        self.inner.tasks.wait().await;
    }
}

/// Notices when a lane ends unexpectedly, also by a panic.
struct LaneGuard {
    stopping: CancellationToken,
    broken: CancellationToken,
}

impl Drop for LaneGuard {
    fn drop(&mut self) {
        if !self.stopping.is_cancelled() {
            tracing::error!("a lane ended unexpectedly");
            self.broken.cancel();
        }
    }
}
