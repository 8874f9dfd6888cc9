//! The scheduler: submits commands for ended periods, and for expired holds and grants, to the engine.
//!
//! Every replica runs one, without coordination: the command for a boundary has a fixed idempotency key, and a
//! second expiry of the same grants finds nothing to do. Due work is read from the database without locks; the
//! engine decides it like any other command.
//!
//! Correctness does not depend on it: expired credits cannot be spent even before their expiry is booked, and a
//! command that meets an ended period starts the next one first.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::commands::{AdvancePeriod, Envelope, ExpireGrants, ExpireHolds, WarnOfExpiry};
use crate::engine::{Engine, Reply};
use crate::store::queries::{DueWork, DueWorkspace};
use crate::store::{Store, StoreError};
use crate::telemetry::metric;

/// How many of its commands run at once: enough to fill batches, and few beside the callers'.
const CONCURRENCY: usize = 64;
/// How long one tick may take.
const TICK_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    pub interval: Duration,
    /// How many workspaces one tick handles, for each kind of due work.
    pub max_workspaces: u32,
}

#[derive(Clone)]
pub struct Scheduler {
    pub config: SchedulerConfig,
    pub store: Arc<dyn Store>,
    pub engine: Engine,
    pub clock: Arc<dyn Clock>,
}

impl Scheduler {
    /// Runs until `stopping` is cancelled.
    pub async fn run(self, stopping: CancellationToken) {
        while !stopping.is_cancelled() {
            let ticked = tokio::select! {
                () = stopping.cancelled() => return,
                ticked = tokio::time::timeout(TICK_TIMEOUT, self.tick()) => ticked,
            };
            let has_progress = match ticked {
                Ok(Ok(commands)) => commands > 0,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "due work could not be read; trying again");
                    false
                }
                Err(_) => {
                    tracing::warn!("reading or doing due work took too long; trying again");
                    false
                }
            };
            if !has_progress {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(self.config.interval) => {}
                }
            }
        }
    }

    /// Does what is due now, up to the limit. Returns how many commands took effect. Boundaries come first; if
    /// one kind of due work cannot be read, the others are still done.
    pub async fn tick(&self) -> Result<usize, StoreError> {
        let limit = self.config.max_workspaces;
        let boundaries = self.submit_all(self.store.due_boundaries(self.clock.now(), limit).await).await;
        let holds = self.submit_all(self.store.due_holds(self.clock.now(), limit).await).await;
        let expiries = self.submit_all(self.store.due_expiries(self.clock.now(), limit).await).await;
        let warnings = self.submit_all(self.store.due_warnings(self.clock.now(), limit).await).await;
        Ok(boundaries? + holds? + expiries? + warnings?)
    }

    async fn submit_all(&self, due: Result<Vec<DueWorkspace>, StoreError>) -> Result<usize, StoreError> {
        let commands = stream::iter(due?)
            .map(|due| self.submit(due))
            .buffer_unordered(CONCURRENCY)
            .filter(|took_effect| futures::future::ready(*took_effect))
            .count()
            .await;
        Ok(commands)
    }

    async fn submit(&self, due: DueWorkspace) -> bool {
        match self.engine.submit(self.envelope(due)).await {
            Ok(Reply::Decided { rejection: None, .. }) => {
                let work = match due.work {
                    DueWork::Boundary { .. } => "boundary",
                    DueWork::HoldExpiry => "hold_expiry",
                    DueWork::Expiry => "expiry",
                    DueWork::ExpiryWarning => "expiry_warning",
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
                tracing::warn!(%error, workspace_id = %due.workspace_id, "due work is delayed");
                false
            }
        }
    }

    fn envelope(&self, due: DueWorkspace) -> Envelope {
        let (command_id, now) = (self.clock.new_command_id(), self.clock.now());
        match due.work {
            DueWork::HoldExpiry => ExpireHolds::envelope(command_id, due.workspace_id, now),
            DueWork::Expiry => ExpireGrants::envelope(command_id, due.workspace_id, now),
            DueWork::ExpiryWarning => WarnOfExpiry::envelope(command_id, due.workspace_id, now),
            DueWork::Boundary { subscription_id, period_end } => {
                AdvancePeriod::envelope(command_id, due.workspace_id, subscription_id, period_end, now)
            }
        }
    }
}
