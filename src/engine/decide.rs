//! Decides one command of a batch, and contains its defects.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::TimeDelta;

use super::reply::EngineError;
use crate::domain::batch::{Batch, Outcome};
use crate::domain::commands::Envelope;
use crate::domain::snapshot::Snapshot;
use crate::domain::time::Timestamp;

/// The latest `received_at` that the clock check allows.
pub(super) fn latest_received_at(snapshot: &Snapshot, max_clock_ahead: Option<TimeDelta>) -> Option<Timestamp> {
    Some(snapshot.database_now?.plus(max_clock_ahead?))
}

/// A panic fails only its own command. It cannot leave the batch half changed: a decision only reads, and its
/// effects are applied afterwards.
pub(super) fn decide(batch: &mut Batch<'_>, envelope: &Envelope) -> Result<Outcome, EngineError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| batch.run(envelope)));
    match outcome {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => {
            tracing::error!(%error, command_id = %envelope.message_id, "an event violates its schema");
            Err(EngineError::Failed)
        }
        Err(_) => {
            tracing::error!(command_id = %envelope.message_id, command = envelope.command.name(), "a decision panicked");
            Err(EngineError::Failed)
        }
    }
}
