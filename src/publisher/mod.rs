//! The publisher: brings events from the outbox to the stream, each exactly once and in order.
//!
//! One task per process. It leases every partition that is free; is handed the events
//! of this process's commits ([`Handover`]) and polls for others; and moves each partition on its own (`partition.rs`): a partition
//! that is diverged or slow holds up no other. Leases are taken by whoever comes first, so one replica
//! publishes and the others stand by: they take over what is given back or expires. Leases only save
//! work: that an event is never doubled or lost follows from compare-and-append alone.
//!
//! Commands never wait for anything here. The stream may be down for as long as it likes: the circuit
//! breaker keeps the loop from running hot, and events wait in the outbox.
//!
//! Deliberately absent: dealing partitions out among replicas (one publishes more than one database
//! writes); which stream or which database it is; and any state on disk: where a partition stands is
//! what the outbox has recorded and what the stream holds.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::breaker::BreakerState;
pub use self::config::PublisherConfig;
pub use self::handover::Handover;
pub use self::health::PublisherHealth;
use self::partition::Ends;
use self::run::Run;
use crate::clock::Clock;
use crate::store::Outbox;
use crate::stream::EventStream;

mod breaker;
mod config;
mod handover;
mod health;
mod measure;
mod partition;
mod run;
mod slot;

/// A publisher that is about to run.
pub struct Publisher {
    ends: Ends,
    clock: Arc<dyn Clock>,
    config: PublisherConfig,
}

impl Publisher {
    #[must_use]
    pub fn new(
        outbox: Arc<dyn Outbox>,
        stream: Arc<dyn EventStream>,
        handover: Handover,
        clock: Arc<dyn Clock>,
        config: PublisherConfig,
    ) -> Self {
        let owner = clock.new_id().to_string();
        Self { ends: Ends::new(outbox, stream, handover, owner), clock, config }
    }

    /// Starts the task. When `stop` is cancelled it publishes what is there, for a bounded time, and
    /// gives its leases back.
    #[must_use]
    pub fn spawn(self, stop: CancellationToken) -> PublisherHandle {
        let (report, health) = watch::channel(PublisherHealth::default());
        let run = Run::new(Arc::new(self.ends), self.clock, self.config, report);
        PublisherHandle { task: tokio::spawn(run.run(stop)), health }
    }
}

/// A running publisher.
#[derive(Debug)]
pub struct PublisherHandle {
    task: JoinHandle<()>,
    health: watch::Receiver<PublisherHealth>,
}

impl PublisherHandle {
    /// How it is, now and from now on. A closed channel means that the task is gone.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<PublisherHealth> {
        self.health.clone()
    }

    /// Waits until the task has ended. Bounded by the configuration once it was told to stop.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the publisher did not end by itself");
        }
    }
}
