//! Starts the tasks of the queues.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc::Receiver};

use super::handle::{Inner, Parts, Queues, Received};
use super::{beats, dispatcher, submitter};
use crate::background::keep_running;
use crate::store::StoreError;

/// How often the queues are read again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

impl Queues {
    /// Reads the queues, and starts to take jobs, to give them to workers, and to hear of them. The tasks end when the last
    /// handle is dropped.
    pub async fn start(parts: Parts) -> Result<Self, StoreError> {
        let (queues, Received { jobs, workers, beats }) = Self::new(parts);
        queues.refresh().await?;
        keep("submitter", &queues, jobs, submitter::run);
        keep("dispatcher", &queues, workers, dispatcher::run);
        keep("heartbeats", &queues, beats, beats::run);
        let inner = Arc::downgrade(&queues.0);
        tokio::spawn(async move { keep_running("queue_settings", || follow_settings(inner.clone())).await });
        Ok(queues)
    }
}

/// Runs a task that receives something. One that panics goes on with what comes next.
fn keep<T, F>(
    name: &'static str,
    queues: &Queues,
    received: Receiver<T>,
    task: impl Fn(Weak<Inner>, OwnedMutexGuard<Receiver<T>>) -> F + Send + Sync + 'static,
) where
    T: Send + 'static,
    F: Future<Output = ()> + Send,
{
    let (inner, received) = (Arc::downgrade(&queues.0), Arc::new(Mutex::new(received)));
    tokio::spawn(async move {
        keep_running(name, || async { task(inner.clone(), Arc::clone(&received).lock_owned().await).await }).await;
    });
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
