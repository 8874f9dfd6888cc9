//! The scheduler: sends the commands that time asks for, through the same engine as everybody's.
//!
//! Every replica runs one. They need no agreement: a period's boundary has a key of its own and is
//! found passed by the state, and an expiry that is booked leaves nothing to book. What is due is
//! read in the database; the decision is made under the workspace's lock like any other.
//!
//! Nothing depends on it for correctness: expired credits cannot be spent before they are booked,
//! and a command that meets an ended period passes the boundary itself.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::commands::{AdvancePeriod, Envelope, ExpireGrants};
use crate::engine::{Engine, Reply};
use crate::store::queries::{DueWork, DueWorkspace};
use crate::store::{Store, StoreError};
use crate::telemetry::metric;

/// How many of its commands may be under way: enough to fill batches, few beside the callers'.
const CONCURRENCY: usize = 64;
/// How long one look for due work may take.
const TICK_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    pub interval: Duration,
    /// How many workspaces one look takes on.
    pub batch: u32,
}

pub struct Scheduler {
    pub config: SchedulerConfig,
    pub store: Arc<dyn Store>,
    pub engine: Engine,
    pub clock: Arc<dyn Clock>,
}

impl Scheduler {
    /// Runs until it is told to stop.
    pub async fn run(self, stopping: CancellationToken) {
        while !stopping.is_cancelled() {
            let ticked = tokio::select! {
                () = stopping.cancelled() => return,
                ticked = tokio::time::timeout(TICK_TIMEOUT, self.tick()) => ticked,
            };
            let more = match ticked {
                Ok(Ok(done)) => done > 0,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "due work could not be read; trying again");
                    false
                }
                Err(_) => {
                    tracing::warn!("a look for due work took too long; trying again");
                    false
                }
            };
            if !more {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(self.config.interval) => {}
                }
            }
        }
    }

    /// Does what is due now, at most one batch of each kind. Returns how many commands took effect.
    /// Boundaries come first, and a failing look for one kind keeps nobody from the other.
    pub async fn tick(&self) -> Result<usize, StoreError> {
        let batch = self.config.batch;
        let boundaries = self.send_all(self.store.due_boundaries(self.clock.now(), batch).await).await;
        let expiries = self.send_all(self.store.due_expiries(self.clock.now(), batch).await).await;
        Ok(boundaries? + expiries?)
    }

    async fn send_all(&self, due: Result<Vec<DueWorkspace>, StoreError>) -> Result<usize, StoreError> {
        let done = stream::iter(due?)
            .map(|due| self.send(due))
            .buffer_unordered(CONCURRENCY)
            .filter(|took_effect| futures::future::ready(*took_effect))
            .count()
            .await;
        Ok(done)
    }

    async fn send(&self, due: DueWorkspace) -> bool {
        match self.engine.submit(self.envelope(due)).await {
            Ok(Reply::Decided { rejection: None, .. }) => {
                let work = match due.work {
                    DueWork::Boundary { .. } => "boundary",
                    DueWork::Expiry => "expiry",
                };
                metrics::counter!(metric::SCHEDULER_COMMANDS, "work" => work).increment(1);
                true
            }
            Ok(Reply::Decided { rejection: Some(rejection), .. }) => {
                tracing::error!(%rejection, workspace_id = %due.workspace_id, "due work was refused");
                false
            }
            Ok(Reply::Replayed(_) | Reply::KeyReused | Reply::Nothing) => false,
            Err(error) => {
                tracing::warn!(%error, workspace_id = %due.workspace_id, "due work must wait");
                false
            }
        }
    }

    fn envelope(&self, due: DueWorkspace) -> Envelope {
        let (command_id, now) = (self.clock.new_command_id(), self.clock.now());
        match due.work {
            DueWork::Expiry => ExpireGrants::envelope(command_id, due.workspace_id, now),
            DueWork::Boundary { subscription_id, period_end } => {
                AdvancePeriod::envelope(command_id, due.workspace_id, subscription_id, period_end, now)
            }
        }
    }
}
