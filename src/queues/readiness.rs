//! Wakes the dispatcher when this server has made jobs ready.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::domain::text::QueueName;

/// The queues that have got ready jobs since the dispatcher looked.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    queues: Mutex<BTreeSet<QueueName>>,
    notify: Notify,
}

impl Readiness {
    pub(super) fn tell(&self, queues: BTreeSet<QueueName>) {
        if !queues.is_empty() {
            self.queues.lock().unwrap_or_else(PoisonError::into_inner).extend(queues);
            self.notify.notify_one();
        }
    }

    /// Cancel-safe: what was told is kept until it is returned.
    pub(super) async fn wait(&self) -> BTreeSet<QueueName> {
        self.notify.notified().await;
        std::mem::take(&mut *self.queues.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
