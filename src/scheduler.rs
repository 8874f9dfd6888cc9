//! The scheduler: submits commands for ended periods, and for expired holds and grants, to the engine.
//!
//! A schedule of the server fires once, on whichever replica notices first; should two of them book the same, the command for a
//! boundary has a fixed idempotency key, and a second expiry of the same grants finds nothing to do. Due work is read from the
//! database without locks; the engine decides it like any other command.
//!
//! Correctness does not depend on it: expired credits cannot be spent even before their expiry is booked, and a
//! command that meets an ended period starts the next one first.

use std::sync::Arc;

use futures::stream::{self, StreamExt};

use crate::clock::Clock;
use crate::domain::commands::{AdvancePeriod, Envelope, ExpireGrants, ExpireHolds, WarnOfExpiry};
use crate::engine::{Engine, Reply};
use crate::store::queries::{DueWork, DueWorkspace};
use crate::store::{Store, StoreError};
use crate::telemetry::metric;

/// How many of its commands run at once: enough to fill batches, and few beside the callers'.
const CONCURRENCY: usize = 64;

/// What may be due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The end of a billing period.
    Boundaries,
    /// The expiry of a hold.
    Holds,
    /// The expiry of a grant, or the beginning of one while there is debt.
    Expiries,
    /// The announcement of an expiry.
    Warnings,
}

#[derive(Clone)]
pub struct Scheduler {
    /// How many workspaces are read at once.
    pub max_workspaces: u32,
    pub store: Arc<dyn Store>,
    pub engine: Engine,
    pub clock: Arc<dyn Clock>,
}

impl Scheduler {
    pub const MAX_WORKSPACES: u32 = 200;

    /// Books all work of this kind that is due. Returns how many commands took effect.
    pub async fn book_all(&self, work: Due) -> Result<usize, StoreError> {
        let mut all = 0;
        loop {
            let commands = self.book(work).await?;
            if commands == 0 {
                return Ok(all);
            }
            all += commands;
        }
    }

    /// Books work of this kind that is due now, up to the limit. Returns how many commands took effect.
    pub async fn book(&self, work: Due) -> Result<usize, StoreError> {
        let (now, limit) = (self.clock.now(), self.max_workspaces);
        let due = match work {
            Due::Boundaries => self.store.due_boundaries(now, limit).await,
            Due::Holds => self.store.due_holds(now, limit).await,
            Due::Expiries => self.store.due_expiries(now, limit).await,
            Due::Warnings => self.store.due_warnings(now, limit).await,
        };
        Ok(self.submit_all(due?).await)
    }

    async fn submit_all(&self, due: Vec<DueWorkspace>) -> usize {
        let submitted = stream::iter(due).map(|due| self.submit(due)).buffer_unordered(CONCURRENCY);
        submitted.filter(|took_effect| futures::future::ready(*took_effect)).count().await
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
