//! Starts the tasks of the queues.

use std::sync::Arc;

use super::handle::{Parts, Queues, Received};
use super::{beats, dispatcher, submitter};
use crate::store::StoreError;

impl Queues {
    /// Reads the queues, and starts to take jobs, to give them to workers, and to hear of them. The tasks end when the last handle is dropped.
    pub async fn start(parts: Parts) -> Result<Self, StoreError> {
        let (queues, Received { jobs, workers, beats }) = Self::new(parts);
        queues.refresh().await?;
        tokio::spawn(submitter::run(Arc::downgrade(&queues.0), jobs));
        tokio::spawn(dispatcher::run(Arc::downgrade(&queues.0), workers));
        tokio::spawn(beats::run(Arc::downgrade(&queues.0), beats));
        Ok(queues)
    }
}
