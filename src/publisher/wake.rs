//! The signal from a commit to the publisher: which partitions have new events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

use crate::domain::ids::Partition;

/// Tells the publisher of this process that a partition has new events. Cheap to clone and to call:
/// signals of one partition that nobody took yet fall into one. It is only a hint; an event without
/// a signal is found by polling.
#[derive(Clone, Debug, Default)]
pub struct Wake {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// A bit per partition.
    waiting: AtomicU32,
    notify: Notify,
}

impl Wake {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// To be called after the commit.
    pub fn notify(&self, partition: Partition) {
        let before = self.inner.waiting.fetch_or(bit(partition), Ordering::AcqRel);
        if before == 0 {
            self.inner.notify.notify_one();
        }
    }

    /// Waits for a signal. It does not take it: being dropped loses nothing.
    pub(super) async fn signalled(&self) {
        self.inner.notify.notified().await;
    }

    pub(super) fn take(&self) -> Vec<Partition> {
        let waiting = self.inner.waiting.swap(0, Ordering::AcqRel);
        Partition::all().filter(|partition| waiting & bit(*partition) != 0).collect()
    }
}

fn bit(partition: Partition) -> u32 {
    1 << partition.number()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signals_fall_into_one_and_none_is_lost() {
        let wake = Wake::new();
        let (one, two) = (Partition::new(1).unwrap(), Partition::new(15).unwrap());
        for partition in [one, two, one] {
            wake.clone().notify(partition);
        }
        wake.signalled().await;
        assert_eq!(wake.take(), [one, two]);
        assert_eq!(wake.take(), []);
        wake.notify(two);
        tokio::time::timeout(std::time::Duration::from_secs(5), wake.signalled()).await.unwrap();
        assert_eq!(wake.take(), [two]);
    }
}
