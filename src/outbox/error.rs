//! Why an operator's command failed.

use crate::store::StoreError;
use crate::stream::StreamError;

#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Stream(#[from] StreamError),
}
