//! The event buffer: committed events of this process, so that its publisher need not read them from the
//! database.
//!
//! It holds committed events only, and all of them are in the outbox too. So it may drop events at any time: the
//! publisher reads missing ones from the outbox. The buffered events of a partition have consecutive numbers.
//! After a gap (another replica committed in between, or a commit's answer was lost) the buffer is emptied first.
//! Events of partitions that this process does not publish are not buffered.

use std::array;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::cloud_event::EventRecord;
use crate::domain::ids::{PARTITIONS, Partition};
use crate::stream::{append_len, entry_bytes};

/// Limits per partition: 0.2 seconds of commits at 10,000 events per second, so that a blocked partition takes no
/// room from others. All partitions together buffer at most 32 MiB.
const MAX_BUFFERED_EVENTS: usize = 2048;
const MAX_BUFFERED_BYTES: usize = 2 * 1024 * 1024;

/// Passes events from the commits to the publisher of one process. Cheap to clone and to call; it never waits.
#[derive(Clone, Debug)]
pub struct EventBuffer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// One bit per partition with new commits.
    changed: AtomicU32,
    notify: Notify,
    partitions: [Mutex<PartitionBuffer>; PARTITIONS as usize],
}

#[derive(Debug, Default)]
struct PartitionBuffer {
    /// Whether this process publishes the partition.
    is_enabled: bool,
    /// The last event that this process committed, buffered or not.
    head: i64,
    /// With consecutive numbers.
    events: VecDeque<EventRecord>,
    bytes: usize,
}

impl Default for EventBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl EventBuffer {
    #[must_use]
    pub fn new() -> Self {
        let partitions = array::from_fn(|_| Mutex::default());
        Self { inner: Arc::new(Inner { changed: AtomicU32::new(0), notify: Notify::new(), partitions }) }
    }

    /// To be called after each commit, with its events in the order of each partition's `seq`.
    pub fn committed(&self, events: Vec<EventRecord>) {
        let mut bits = 0;
        for event in events {
            bits |= bit(event.partition);
            self.partition(event.partition).push(event);
        }
        if bits != 0 && self.inner.changed.fetch_or(bits, Ordering::AcqRel) == 0 {
            self.inner.notify.notify_one();
        }
    }

    /// Waits for a commit. Cancel-safe: the commit is still there for [`Self::take_heads`].
    pub(super) async fn wait_for_commit(&self) {
        self.inner.notify.notified().await;
    }

    /// The partitions with commits since the last call, and their heads.
    pub(super) fn take_heads(&self) -> Vec<(Partition, i64)> {
        let changed = self.inner.changed.swap(0, Ordering::AcqRel);
        let is_changed = |partition: &Partition| changed & bit(*partition) != 0;
        Partition::all().filter(is_changed).map(|partition| (partition, self.partition(partition).head)).collect()
    }

    /// Starts or stops to buffer a partition's events.
    pub(super) fn set_enabled(&self, partition: Partition, is_enabled: bool) {
        let mut buffer = self.partition(partition);
        buffer.is_enabled = is_enabled;
        if !is_enabled {
            buffer.clear();
        }
    }

    /// The events right after that number, as many as fit into one append, and whether the buffer has more. None
    /// if the next event is not buffered.
    pub(super) fn take_after(&self, partition: Partition, after: i64) -> Option<(Vec<EventRecord>, bool)> {
        let mut buffer = self.partition(partition);
        let published = buffer.events.iter().take_while(|event| event.seq <= after).count();
        drop(buffer.remove_first(published));
        if buffer.events.front().is_none_or(|event| event.seq != after + 1) {
            return None;
        }
        let len = append_len(buffer.events.make_contiguous());
        Some((buffer.remove_first(len), !buffer.events.is_empty()))
    }

    fn partition(&self, partition: Partition) -> MutexGuard<'_, PartitionBuffer> {
        // No code under the lock can panic halfway through a change.
        self.inner.partitions[usize::from(partition.number())].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartitionBuffer {
    fn push(&mut self, event: EventRecord) {
        self.head = self.head.max(event.seq);
        if !self.is_enabled {
            return;
        }
        if self.events.back().is_some_and(|last| last.seq + 1 != event.seq) {
            self.clear();
        }
        let bytes = self.bytes + entry_bytes(&event);
        if self.events.len() == MAX_BUFFERED_EVENTS || bytes > MAX_BUFFERED_BYTES {
            self.clear();
            return;
        }
        self.bytes = bytes;
        self.events.push_back(event);
    }

    fn remove_first(&mut self, count: usize) -> Vec<EventRecord> {
        let removed: Vec<_> = self.events.drain(..count).collect();
        self.bytes -= removed.iter().map(entry_bytes).sum::<usize>();
        removed
    }

    fn clear(&mut self) {
        (self.events, self.bytes) = (VecDeque::new(), 0);
    }
}

fn bit(partition: Partition) -> u32 {
    1 << partition.number()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::domain::event::EventType;
    use crate::domain::ids::{EventId, WorkspaceId};
    use crate::domain::time::Timestamp;
    use crate::stream::MAX_APPEND_EVENTS;

    fn event(partition: u8, seq: i64, bytes: usize) -> EventRecord {
        EventRecord {
            event_id: EventId(Uuid::from_u128(1)),
            event_type: EventType::LowCreditWarning.into(),
            schema_version: 1,
            partition: Partition::new(partition).unwrap(),
            seq,
            workspace_id: WorkspaceId(Uuid::from_u128(2)),
            workspace_seq: seq,
            recorded_at: Timestamp::from_micros(0),
            correlation_id: "c".into(),
            causation_id: Uuid::from_u128(3),
            traceparent: None,
            data: "x".repeat(bytes),
        }
    }

    fn events(seqs: std::ops::RangeInclusive<i64>) -> Vec<EventRecord> {
        seqs.map(|seq| event(1, seq, 10)).collect()
    }

    fn enabled() -> (EventBuffer, Partition) {
        let (buffer, partition) = (EventBuffer::new(), Partition::new(1).unwrap());
        buffer.set_enabled(partition, true);
        (buffer, partition)
    }

    fn seqs(taken: Option<(Vec<EventRecord>, bool)>) -> Option<(Vec<i64>, bool)> {
        taken.map(|(events, has_more)| (events.iter().map(|event| event.seq).collect(), has_more))
    }

    #[tokio::test]
    async fn signals_are_coalesced_and_never_lost() {
        let (buffer, one) = enabled();
        let two = Partition::new(15).unwrap();
        buffer.clone().committed(vec![event(1, 4, 1), event(15, 9, 1), event(1, 5, 1)]);
        buffer.committed(events(6..=6));
        buffer.wait_for_commit().await;
        assert_eq!(buffer.take_heads(), [(one, 6), (two, 9)]);
        assert_eq!(buffer.take_heads(), []);
        buffer.committed(vec![event(15, 10, 1)]);
        tokio::time::timeout(Duration::from_secs(5), buffer.wait_for_commit()).await.unwrap();
        assert_eq!(buffer.take_heads(), [(two, 10)]);
    }

    #[test]
    fn only_the_events_right_after_the_given_number_are_taken() {
        let (buffer, p) = enabled();
        buffer.committed(events(4..=6));
        buffer.committed(events(7..=7));
        assert_eq!(seqs(buffer.take_after(p, 2)), None);
        assert_eq!(seqs(buffer.take_after(p, 5)), Some((vec![6, 7], false)));
        assert_eq!(seqs(buffer.take_after(p, 7)), None);
        buffer.committed(events(8..=9));
        assert_eq!(seqs(buffer.take_after(p, 9)), None);
        assert_eq!(seqs(buffer.take_after(p, 7)), None, "events up to the given number are dropped");
    }

    #[test]
    fn a_gap_empties_the_buffer() {
        let (buffer, p) = enabled();
        buffer.committed(events(1..=3));
        buffer.committed(events(6..=8));
        assert_eq!(seqs(buffer.take_after(p, 0)), None);
        assert_eq!(seqs(buffer.take_after(p, 5)), Some((vec![6, 7, 8], false)));
        buffer.committed(events(9..=9));
        buffer.committed(events(2..=2));
        assert_eq!(
            seqs(buffer.take_after(p, 1)),
            Some((vec![2], false)),
            "after a restore, numbers are assigned again"
        );
    }

    #[test]
    fn takes_at_most_one_append_of_events() {
        let (buffer, p) = enabled();
        let limit = i64::from(MAX_APPEND_EVENTS);
        buffer.committed(events(1..=limit + 2));
        assert_eq!(seqs(buffer.take_after(p, 0)), Some(((1..=limit).collect(), true)));
        assert_eq!(seqs(buffer.take_after(p, limit)), Some((vec![limit + 1, limit + 2], false)));
    }

    #[test]
    fn the_buffer_is_bounded_in_events_and_bytes() {
        let (buffer, p) = enabled();
        let bound = i64::try_from(MAX_BUFFERED_EVENTS).unwrap();
        for seq in 1..=bound + 3 {
            buffer.committed(events(seq..=seq));
            assert!(buffer.partition(p).bytes <= MAX_BUFFERED_BYTES);
        }
        assert_eq!(seqs(buffer.take_after(p, 0)), None);
        assert_eq!(seqs(buffer.take_after(p, bound + 1)), Some((vec![bound + 2, bound + 3], false)));
        for seq in 1..=5 {
            buffer.committed(vec![event(1, seq, MAX_BUFFERED_BYTES / 4)]);
        }
        assert_eq!(seqs(buffer.take_after(p, 4)), Some((vec![5], false)));
        assert_eq!(buffer.partition(p).bytes, 0);
    }

    #[test]
    fn events_of_partitions_published_elsewhere_are_not_buffered() {
        let buffer = EventBuffer::new();
        let p = Partition::new(1).unwrap();
        buffer.committed(events(1..=3));
        assert_eq!((seqs(buffer.take_after(p, 0)), buffer.take_heads()), (None, vec![(p, 3)]));
        buffer.set_enabled(p, true);
        buffer.committed(events(4..=5));
        buffer.set_enabled(p, false);
        assert_eq!(seqs(buffer.take_after(p, 3)), None);
    }
}
