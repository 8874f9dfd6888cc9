//! One decision of a batch, and what a defect in it comes to.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::reply::EngineError;
use crate::domain::batch::{Batch, Outcome};
use crate::domain::commands::Envelope;

/// Decides one command; a panic in a decision is that command's failure and nobody else's. The
/// batch is not torn by it: a decision only reads, and its effects are applied afterwards.
pub(super) fn decide(batch: &mut Batch<'_>, envelope: &Envelope) -> Result<Outcome, EngineError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| batch.run(envelope)));
    match outcome {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => {
            tracing::error!(%error, command_id = %envelope.message_id, "an event breaks its contract");
            Err(EngineError::Failed)
        }
        Err(_) => {
            tracing::error!(command_id = %envelope.message_id, command = envelope.command.name(), "a decision panicked");
            Err(EngineError::Failed)
        }
    }
}
