//! Log lines for partitions that diverge or fail.

use super::partition::StepError;
use crate::store::StoreError;
use crate::stream::{LATER_GENERATION, StreamError};

pub(super) fn log_divergence(partition: u8, seq: i64) {
    if seq == LATER_GENERATION {
        tracing::error!(partition, "consumers read a later generation than the database's; publishing is stopped");
    } else {
        tracing::error!(partition, seq, "the stream differs from the outbox; publishing is stopped");
    }
}

/// Logs a warning for the first failure in a row, and an error each time for one that cannot heal by itself.
pub(super) fn log_failure(partition: u8, error: &StepError, is_first: bool) {
    match error {
        StepError::Outbox(StoreError::Corrupt(_))
        | StepError::Stream(StreamError::Corrupt(_) | StreamError::Configuration(_)) => {
            tracing::error!(partition, %error, "a partition cannot be published");
        }
        _ if is_first => tracing::warn!(partition, %error, "publishing is delayed"),
        _ => tracing::debug!(partition, %error, "publishing is delayed"),
    }
}
