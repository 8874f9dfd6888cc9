//! Errors of a store, and the timeouts of its operations.

use std::time::Duration;

/// An error, by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Another writer was first, or a unique key is taken. Nothing was written. Load and decide again.
    #[error("conflicting write: {0}")]
    Conflict(String),
    /// The database cannot be reached, is too slow, or is full. A commit in progress may or may not have
    /// taken effect; sending the command again with its idempotency key answers that.
    #[error("database unavailable: {0}")]
    Unavailable(String),
    /// A row that was read or written breaks an invariant. A retry cannot help.
    #[error("corrupt: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// The database does not have this version's schema.
    pub(super) fn other_schema(reason: &dyn std::fmt::Display) -> Self {
        Self::Corrupt(format!(
            "the database has another version of the schema ({reason}). If it is empty, run `visionscope migrate`. \
             Otherwise start the server that made it, or use an empty database: before the first release there is no \
             way from one schema to the next"
        ))
    }
}

/// The timeout of one operation, which is a handful of statements. It is longer than the timeouts for connections,
/// locks and statements, whose errors name the reason.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs an operation under [`ANSWER_TIMEOUT`].
pub(super) async fn with_answer_timeout<T>(
    work: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    with_timeout(ANSWER_TIMEOUT, work).await
}

/// Runs an operation under a timeout.
pub(super) async fn with_timeout<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(StoreError::Unavailable(format!("no answer within {limit:?}"))))
}
