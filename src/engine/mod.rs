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
mod command_queue;
mod config;
mod decide;
mod dependencies;
mod dry_run;
mod fair_queue;
mod lane;
mod partition_breaker;
mod port;
mod reply;
mod state_cache;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use chrono::TimeDelta;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::command_queue::{CommandQueue, QueuedCommand};
pub use self::config::EngineConfig;
pub use self::dependencies::CommitSignal;
use self::dependencies::Dependencies;
pub use self::dry_run::{DryRun, DryRunEvent};
use self::lane::Lane;
pub use self::port::Decide;
use self::reply::outcome;
pub use self::reply::{EngineError, Reply};
pub use crate::domain::batch::{EventWriter, InvalidEvent, Render, Rendered};
use crate::domain::commands::Envelope;
use crate::domain::ids::Partition;
use crate::domain::plan::PlanVersion;
use crate::store::Store;
use crate::telemetry::metric;

/// The handle to all lanes. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    dependencies: Arc<Dependencies>,
    max_clock_ahead: Option<TimeDelta>,
    /// The queue of each lane.
    queues: Vec<Arc<CommandQueue>>,
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
        let offered_plans = watch::Sender::default();
        let dependencies = Arc::new(Dependencies { store, render, events, signal, offered_plans });
        let (broken, tasks) = (CancellationToken::new(), TaskTracker::new());
        let queues = (0..config.lanes.max(1))
            .map(|number| {
                let queue = Arc::new(CommandQueue::new(config));
                let lane = Lane::new(number, Arc::clone(&dependencies), Arc::clone(&queue), config);
                let guard = LaneGuard { queue: Arc::clone(&queue), broken: broken.clone() };
                tasks.spawn(async move {
                    let _guard = guard;
                    lane.run().await;
                });
                queue
            })
            .collect();
        tasks.close();
        Self { inner: Arc::new(Inner { dependencies, max_clock_ahead: config.max_clock_ahead, queues, broken, tasks }) }
    }

    /// Waits until the command is decided and its result is durable.
    pub async fn submit(&self, envelope: Envelope) -> Result<Reply, EngineError> {
        let partition = usize::from(Partition::of(envelope.workspace_id).number());
        let lane = partition % self.inner.queues.len();
        let queue = self.inner.queues.get(lane).ok_or(EngineError::Failed)?;
        let (reply_to, answer) = oneshot::channel();
        queue.push(QueuedCommand { envelope, reply_to, queued_at: Instant::now() })?;
        answer.await.map_err(|_| EngineError::Unavailable)?
    }

    /// What the command would do now. Nothing is written, and its key is not used.
    pub async fn dry_run(&self, envelope: &Envelope) -> Result<DryRun, EngineError> {
        let done = self.inner.dependencies.dry_run(envelope, self.inner.max_clock_ahead).await;
        let outcome = outcome(done.as_ref().map(|dry_run| &dry_run.reply).map_err(|error| *error));
        metrics::counter!(metric::ENGINE_DRY_RUNS, "type" => envelope.command.name(), "outcome" => outcome)
            .increment(1);
        done
    }

    /// Tells the engine which plans are offered, in their newest versions: refusals name those that would help.
    pub fn offer_plans(&self, plans: Vec<Arc<PlanVersion>>) {
        self.inner.dependencies.offered_plans.send_replace(plans.into());
    }

    /// Completes when a lane has ended without being stopped, which only a defect can cause. Its partitions get
    /// no more answers, so the process should be restarted.
    pub async fn broken(&self) {
        self.inner.broken.cancelled().await;
    }

    /// Takes no more commands, finishes the queued ones, and returns when all lanes have ended.
    pub async fn stop(&self) {
        self.inner.queues.iter().for_each(|queue| queue.close());
        self.inner.tasks.wait().await;
    }
}

/// Notices when a lane ends unexpectedly, also by a panic.
struct LaneGuard {
    queue: Arc<CommandQueue>,
    broken: CancellationToken,
}

impl Drop for LaneGuard {
    fn drop(&mut self) {
        if self.queue.abandon() {
            tracing::error!("a lane ended unexpectedly");
            self.broken.cancel();
        }
    }
}

#[async_trait]
impl Decide for Engine {
    async fn decide(&self, envelope: Envelope) -> Result<Reply, EngineError> {
        self.submit(envelope).await
    }

    async fn dry_run(&self, envelope: &Envelope) -> Result<DryRun, EngineError> {
        Self::dry_run(self, envelope).await
    }
}
