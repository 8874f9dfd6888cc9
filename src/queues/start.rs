//! Starts the tasks of the queues.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::handle::{Inner, Parts, Queues, Received};
use super::{beats, dispatcher, submitter};
use crate::store::StoreError;

/// How often the queues are read again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

impl Queues {
    /// Reads the queues, and starts to take jobs, to give them to workers, and to hear of them. The tasks end when the last
    /// handle is dropped.
    pub async fn start(parts: Parts) -> Result<Self, StoreError> {
        let (queues, Received { jobs, workers, beats }) = Self::new(parts);
        queues.refresh().await?;
        tokio::spawn(submitter::run(Arc::downgrade(&queues.0), jobs));
        tokio::spawn(dispatcher::run(Arc::downgrade(&queues.0), workers));
        tokio::spawn(beats::run(Arc::downgrade(&queues.0), beats));
        tokio::spawn(follow_settings(Arc::downgrade(&queues.0)));
        Ok(queues)
    }
}

/// Reads the queues now and then: an operator may have changed them.
async fn follow_settings(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(REFRESH_INTERVAL).await;
        let Some(inner) = inner.upgrade() else { return };
        if let Err(error) = Queues(inner).refresh().await {
            tracing::warn!(%error, "the queues could not be read; trying again");
        }
    }
}
