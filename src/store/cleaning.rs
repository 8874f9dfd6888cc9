//! The store as the cleaning sees it.

use async_trait::async_trait;

use super::error::StoreError;
use crate::domain::time::Timestamp;

/// Rows that nobody needs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// All of builds that are older than the one in use.
    OldBuilds,
    /// The figures in use of hours before an instant.
    UsageHours(Timestamp),
    /// Dead letters that were resolved before an instant, and those of jobs that were discarded. Discarded ones of consumers
    /// are kept: they say why figures are incomplete.
    ResolvedLetters(Timestamp),
    /// Notifications of what happened before an instant.
    Notifications(Timestamp),
    /// Jobs that are over and need not be kept after an instant, with their attempts. A job whose dead letter is open is kept.
    FinishedJobs(Timestamp),
    /// Workers that are gone and were seen before an instant.
    GoneWorkers(Timestamp),
}

/// A store whose leftovers can be deleted bit by bit.
#[async_trait]
pub trait Cleaning: Send + Sync {
    /// Deletes at most so many rows of each table. Returns how many it has deleted: 0 if there are none.
    async fn clean(&self, leftover: Leftover, limit: u32) -> Result<u64, StoreError>;
}
