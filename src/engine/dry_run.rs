//! Dry runs: a command is decided like any other, and nothing of it is written.
//!
//! The snapshot is read without locks, in one consistent view. So the command does the same later, unless something else
//! has changed its workspace or the catalogue of plans meanwhile. A dry run takes no place in a lane and no connection
//! that commands use: it delays no command.

use chrono::TimeDelta;

use super::decide::{decide, latest_received_at};
use super::dependencies::Dependencies;
use super::reply::{EngineError, Reply};
use crate::domain::batch::Batch;
use crate::domain::cloud_event::AnyEventType;
use crate::domain::commands::{Command, Envelope};
use crate::domain::plan_preview::PlanPreview;
use crate::domain::snapshot::KeySet;
use crate::store::StoreError;

/// What a command would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    pub reply: Reply,
    /// In the order in which they would be raised.
    pub events: Vec<DryRunEvent>,
    /// Of a change of plan that would be accepted.
    pub plan_preview: Option<PlanPreview>,
}

/// An event that would be raised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRunEvent {
    pub event_type: AnyEventType,
    /// Its data as JSON.
    pub data: String,
    /// Whether it tells of work that is due before the command, and not of the command itself.
    pub is_due_work: bool,
}

impl Dependencies {
    /// Decides the command on the rows as they are now, and drops what it would write.
    pub(super) async fn dry_run(
        &self,
        envelope: &Envelope,
        max_clock_ahead: Option<TimeDelta>,
    ) -> Result<DryRun, EngineError> {
        let mut keys = KeySet::default();
        envelope.add_keys(&mut keys);
        let mut snapshot = self.store.snapshot(&keys).await.map_err(|error| engine_error(&error))?;
        snapshot.offered_plans = self.offered_plans.borrow().clone();
        if latest_received_at(&snapshot, max_clock_ahead).is_some_and(|latest| envelope.received_at > latest) {
            tracing::error!("this machine's clock is ahead of the database's; dry runs are refused");
            return Err(EngineError::Unavailable);
        }
        let is_plan_change = matches!(envelope.command, Command::ProcessSubscriptionChange(_));
        let before = snapshot.workspaces.get(&envelope.workspace_id).filter(|_| is_plan_change).cloned();
        let mut batch = Batch::new(snapshot, &*self.render, &*self.events);
        let reply = Reply::from(decide(&mut batch, envelope)?);
        let (changes, snapshot) = batch.finish();
        let events = changes.events.into_iter().map(|event| DryRunEvent {
            event_type: event.event_type,
            data: event.data,
            is_due_work: event.causation_id != envelope.message_id.0,
        });
        let is_accepted = matches!(reply, Reply::Decided { rejection: None, .. });
        let (before, after) = (before.filter(|_| is_accepted), snapshot.workspaces.get(&envelope.workspace_id));
        let now = envelope.received_at;
        let plan_preview = before.zip(after).map(|(before, after)| PlanPreview::new(&before.as_of(now), after, now));
        Ok(DryRun { reply, events: events.collect(), plan_preview })
    }
}

fn engine_error(error: &StoreError) -> EngineError {
    match error {
        StoreError::Unavailable(_) | StoreError::Conflict(_) => {
            tracing::warn!(%error, "the rows for a dry run could not be read");
            EngineError::Unavailable
        }
        StoreError::Corrupt(_) => {
            tracing::error!(%error, "the rows for a dry run could not be read");
            EngineError::Failed
        }
    }
}
