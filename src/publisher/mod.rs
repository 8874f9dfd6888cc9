//! The publisher: brings events from the outbox to the stream, each exactly once and in order.
//!
//! One task per process. It leases every free partition, gets this process's events from its commits
//! ([`EventBuffer`]), and polls the outbox for events of other replicas. Each partition is published
//! independently (`partition.rs`): a diverged or slow partition does not delay the others.
//!
//! The first replica leases all partitions and publishes; the others stand by and take over leases that are
//! released or expire. Leases only save work: compare-and-append alone ensures that no event is doubled or lost.
//!
//! Commands never wait for the publisher. While the stream is down, events wait in the outbox, and the circuit
//! breaker keeps the loop from running hot.
//!
//! Deliberately absent: sharing partitions among replicas (one publisher is faster than one database writes);
//! knowledge of which stream or database it is; and state on disk, because the outbox records how far a
//! partition is published, and the stream shows it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::breaker::BreakerState;
pub use self::config::{PublisherConfig, Retention};
pub use self::event_buffer::EventBuffer;
pub use self::health::PublisherHealth;
use self::partition::PublisherContext;
use self::publisher_loop::PublisherLoop;
use crate::clock::Clock;
use crate::store::Outbox;
use crate::stream::EventStream;

mod breaker;
mod config;
mod event_buffer;
mod failure_log;
mod group_lag;
mod health;
mod leased_partition;
mod measure;
mod partition;
mod periodic_task;
mod publisher_loop;
mod work;

/// A publisher that is not running yet.
pub struct Publisher {
    context: PublisherContext,
    clock: Arc<dyn Clock>,
    config: PublisherConfig,
}

impl Publisher {
    #[must_use]
    pub fn new(
        outbox: Arc<dyn Outbox>,
        stream: Arc<dyn EventStream>,
        events: EventBuffer,
        clock: Arc<dyn Clock>,
        config: PublisherConfig,
    ) -> Self {
        let owner = clock.new_id().to_string();
        Self { context: PublisherContext::new(outbox, stream, events, owner), clock, config }
    }

    /// Starts the task. When `stop` is cancelled, it publishes the remaining events within the stop timeout and
    /// releases its leases.
    #[must_use]
    pub fn spawn(self, stop: CancellationToken) -> PublisherHandle {
        let (report, health) = watch::channel(PublisherHealth::default());
        let publisher = PublisherLoop::new(Arc::new(self.context), self.clock, self.config, report);
        PublisherHandle { task: tokio::spawn(publisher.run(stop)), health }
    }
}

/// A running publisher.
#[derive(Debug)]
pub struct PublisherHandle {
    task: JoinHandle<()>,
    health: watch::Receiver<PublisherHealth>,
}

impl PublisherHandle {
    /// Its current and later health. A closed channel means that the task has ended.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<PublisherHealth> {
        self.health.clone()
    }

    /// Waits until the task has ended: after `stop`, within the stop timeout.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the publisher task failed");
        }
    }
}
