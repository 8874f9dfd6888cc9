//! Wakes the consumers when this process has committed events.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::Notify;

use crate::domain::cloud_event::EventRecord;
use crate::domain::ids::{PARTITIONS, Partition};

/// Passes the numbers of committed events to the consumers of this process. Cheap to clone and to call; it never waits.
#[derive(Clone, Debug, Default)]
pub struct Wakeup(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    notify: Notify,
    /// The last event of each partition that this process has committed.
    heads: [AtomicI64; PARTITIONS as usize],
}

impl Wakeup {
    /// To be called after each commit.
    pub fn committed(&self, events: &[EventRecord]) {
        for event in events {
            self.0.heads[usize::from(event.partition.number())].fetch_max(event.seq, Ordering::Relaxed);
        }
        if !events.is_empty() {
            self.0.notify.notify_one();
        }
    }

    /// Waits for a commit. Cancel-safe.
    pub(super) async fn wait(&self) {
        self.0.notify.notified().await;
    }

    pub(super) fn head(&self, partition: Partition) -> i64 {
        self.0.heads[usize::from(partition.number())].load(Ordering::Relaxed)
    }
}
