//! What may go wrong in a store, and that nothing in it is waited for for ever.

use std::time::Duration;

/// What went wrong, by what may be done about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else's write came between, or a unique key was taken: nothing was written. Loading
    /// and deciding again may give another result.
    #[error("conflicting write: {0}")]
    Conflict(String),
    /// The database cannot be reached, is too slow, or is full. Whether a commit that was under way
    /// took effect is unknown; the command's idempotency key settles it.
    #[error("database unavailable: {0}")]
    Unavailable(String),
    /// What was read or written breaks an invariant. Trying again cannot help.
    #[error("corrupt: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// The database's history of migrations is not this server's.
    pub(super) fn other_schema(reason: &dyn std::fmt::Display) -> Self {
        Self::Corrupt(format!(
            "the database has another version of the schema ({reason}). Start the server that made it, or give this \
             one an empty database: before the first release there is no way from one schema to the next"
        ))
    }
}

/// How long one operation of a store, of a handful of statements, may take before it is given up: longer than the
/// waits for connections, locks and statements, which tell the reason.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits for an operation of a handful of statements.
pub(super) async fn in_time<T>(work: impl Future<Output = Result<T, StoreError>> + Send) -> Result<T, StoreError> {
    within(ANSWER_TIMEOUT, work).await
}

/// Waits for an operation of a store, but not for ever.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(StoreError::Unavailable(format!("no answer within {limit:?}"))))
}
