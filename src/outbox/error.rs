//! Why an operator's command could not be finished.

use crate::store::StoreError;
use crate::stream::StreamError;

/// Why an operation could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Stream(#[from] StreamError),
}
