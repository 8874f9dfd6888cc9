//! What the commits of this process hand to its publisher: the events themselves, so that they need
//! not be read back from the database.
//!
//! Only what is committed gets here, and everything here is also in the outbox. So it may be forgotten
//! at any time: an event that is missing here is read there. What is kept of a partition is always a
//! run without a gap; behind a gap (another replica committed between, or a commit's answer was lost)
//! a new run begins. Nothing is kept for partitions that this process does not publish.

use std::array;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::event::EventRecord;
use crate::domain::ids::{PARTITIONS, Partition};
use crate::stream::{batch_len, entry_bytes};

/// What is kept of a partition at most: the commits of two tenths of a second at 10,000 events per
/// second. A partition that is held up takes no room from others, and all together keep 32 MiB.
const MAX_KEPT_EVENTS: usize = 2048;
const MAX_KEPT_BYTES: usize = 2 * 1024 * 1024;

/// The way from the commits to the publisher of one process. Cheap to clone and to call; it never
/// waits.
#[derive(Clone, Debug)]
pub struct Handover {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// A bit per partition that has new events.
    waiting: AtomicU32,
    notify: Notify,
    runs: [Mutex<Kept>; PARTITIONS as usize],
}

#[derive(Debug, Default)]
struct Kept {
    /// Whether this process publishes the partition.
    is_wanted: bool,
    /// The last event that was committed here, kept or not.
    head: i64,
    run: VecDeque<EventRecord>,
    bytes: usize,
}

impl Default for Handover {
    fn default() -> Self {
        Self::new()
    }
}

impl Handover {
    #[must_use]
    pub fn new() -> Self {
        let runs = array::from_fn(|_| Mutex::default());
        Self { inner: Arc::new(Inner { waiting: AtomicU32::new(0), notify: Notify::new(), runs }) }
    }

    /// To be called after a commit, with its events in the order of each partition's sequence.
    pub fn committed(&self, events: Vec<EventRecord>) {
        let mut bits = 0;
        for event in events {
            bits |= bit(event.partition);
            self.kept(event.partition).push(event);
        }
        if bits != 0 && self.inner.waiting.fetch_or(bits, Ordering::AcqRel) == 0 {
            self.inner.notify.notify_one();
        }
    }

    /// Waits for a commit. It does not take it: being dropped loses nothing.
    pub(super) async fn signalled(&self) {
        self.inner.notify.notified().await;
    }

    /// The partitions with commits since the last call, and their last events.
    pub(super) fn heads(&self) -> Vec<(Partition, i64)> {
        let waiting = self.inner.waiting.swap(0, Ordering::AcqRel);
        let has_events = |partition: &Partition| waiting & bit(*partition) != 0;
        Partition::all().filter(has_events).map(|partition| (partition, self.kept(partition).head)).collect()
    }

    /// Begins or ends to keep the events of a partition.
    pub(super) fn want(&self, partition: Partition, is_wanted: bool) {
        let mut kept = self.kept(partition);
        kept.is_wanted = is_wanted;
        if !is_wanted {
            kept.forget();
        }
    }

    /// The events right after that one, as many as fit into one append, and whether more of them are
    /// kept. Nothing, if the next event is not kept.
    pub(super) fn take(&self, partition: Partition, after: i64) -> Option<(Vec<EventRecord>, bool)> {
        let mut kept = self.kept(partition);
        let behind = kept.run.iter().take_while(|event| event.seq <= after).count();
        drop(kept.remove(behind));
        let is_next = kept.run.front().is_some_and(|event| event.seq == after + 1);
        let fits = if is_next { batch_len(kept.run.make_contiguous()) } else { return None };
        Some((kept.remove(fits), !kept.run.is_empty()))
    }

    fn kept(&self, partition: Partition) -> MutexGuard<'_, Kept> {
        // Nothing is done under the lock that could leave it half done.
        self.inner.runs[usize::from(partition.number())].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn push(&mut self, event: EventRecord) {
        self.head = self.head.max(event.seq);
        if !self.is_wanted {
            return;
        }
        if self.run.back().is_some_and(|last| last.seq + 1 != event.seq) {
            self.forget();
        }
        let bytes = self.bytes + entry_bytes(&event);
        if self.run.len() == MAX_KEPT_EVENTS || bytes > MAX_KEPT_BYTES {
            self.forget();
            return;
        }
        self.bytes = bytes;
        self.run.push_back(event);
    }

    /// Takes so many from the front.
    fn remove(&mut self, count: usize) -> Vec<EventRecord> {
        let removed: Vec<_> = self.run.drain(..count).collect();
        self.bytes -= removed.iter().map(entry_bytes).sum::<usize>();
        removed
    }

    fn forget(&mut self) {
        (self.run, self.bytes) = (VecDeque::new(), 0);
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
    use crate::stream::MAX_BATCH_EVENTS;

    fn event(partition: u8, seq: i64, bytes: usize) -> EventRecord {
        EventRecord {
            event_id: EventId(Uuid::from_u128(1)),
            event_type: EventType::LowCreditWarning,
            schema_version: 1,
            partition: Partition::new(partition).unwrap(),
            seq,
            workspace_id: WorkspaceId(Uuid::from_u128(2)),
            workspace_seq: seq,
            recorded_at: Timestamp::from_micros(0),
            correlation_id: "c".into(),
            causation_id: Uuid::from_u128(3),
            traceparent: None,
            metadata: None,
            data: "x".repeat(bytes),
        }
    }

    fn events(seqs: std::ops::RangeInclusive<i64>) -> Vec<EventRecord> {
        seqs.map(|seq| event(1, seq, 10)).collect()
    }

    fn wanted() -> (Handover, Partition) {
        let (handover, partition) = (Handover::new(), Partition::new(1).unwrap());
        handover.want(partition, true);
        (handover, partition)
    }

    fn seqs(taken: Option<(Vec<EventRecord>, bool)>) -> Option<(Vec<i64>, bool)> {
        taken.map(|(events, is_more)| (events.iter().map(|event| event.seq).collect(), is_more))
    }

    #[tokio::test]
    async fn signals_fall_into_one_and_none_is_lost() {
        let (handover, one) = wanted();
        let two = Partition::new(15).unwrap();
        handover.clone().committed(vec![event(1, 4, 1), event(15, 9, 1), event(1, 5, 1)]);
        handover.committed(events(6..=6));
        handover.signalled().await;
        assert_eq!(handover.heads(), [(one, 6), (two, 9)]);
        assert_eq!(handover.heads(), []);
        handover.committed(vec![event(15, 10, 1)]);
        tokio::time::timeout(Duration::from_secs(5), handover.signalled()).await.unwrap();
        assert_eq!(handover.heads(), [(two, 10)]);
    }

    #[test]
    fn a_run_is_taken_where_it_continues_and_only_there() {
        let (handover, p) = wanted();
        handover.committed(events(4..=6));
        handover.committed(events(7..=7));
        assert_eq!(seqs(handover.take(p, 2)), None);
        assert_eq!(seqs(handover.take(p, 5)), Some((vec![6, 7], false)));
        assert_eq!(seqs(handover.take(p, 7)), None);
        handover.committed(events(8..=9));
        assert_eq!(seqs(handover.take(p, 9)), None);
        assert_eq!(seqs(handover.take(p, 7)), None, "what is behind the position is forgotten");
    }

    #[test]
    fn behind_a_gap_a_new_run_begins() {
        let (handover, p) = wanted();
        handover.committed(events(1..=3));
        handover.committed(events(6..=8));
        assert_eq!(seqs(handover.take(p, 0)), None);
        assert_eq!(seqs(handover.take(p, 5)), Some((vec![6, 7, 8], false)));
        handover.committed(events(9..=9));
        handover.committed(events(2..=2));
        assert_eq!(seqs(handover.take(p, 1)), Some((vec![2], false)), "numbers that were given anew");
    }

    #[test]
    fn one_append_takes_no_more_than_it_may() {
        let (handover, p) = wanted();
        let batch = i64::from(MAX_BATCH_EVENTS);
        handover.committed(events(1..=batch + 2));
        assert_eq!(seqs(handover.take(p, 0)), Some(((1..=batch).collect(), true)));
        assert_eq!(seqs(handover.take(p, batch)), Some((vec![batch + 1, batch + 2], false)));
    }

    #[test]
    fn what_is_kept_is_bounded_in_events_and_bytes() {
        let (handover, p) = wanted();
        let bound = i64::try_from(MAX_KEPT_EVENTS).unwrap();
        for seq in 1..=bound + 3 {
            handover.committed(events(seq..=seq));
            assert!(handover.kept(p).bytes <= MAX_KEPT_BYTES);
        }
        assert_eq!(seqs(handover.take(p, 0)), None);
        assert_eq!(seqs(handover.take(p, bound + 1)), Some((vec![bound + 2, bound + 3], false)));
        for seq in 1..=5 {
            handover.committed(vec![event(1, seq, MAX_KEPT_BYTES / 4)]);
        }
        assert_eq!(seqs(handover.take(p, 4)), Some((vec![5], false)));
        assert_eq!(handover.kept(p).bytes, 0);
    }

    #[test]
    fn nothing_is_kept_of_partitions_that_are_published_elsewhere() {
        let handover = Handover::new();
        let p = Partition::new(1).unwrap();
        handover.committed(events(1..=3));
        assert_eq!((seqs(handover.take(p, 0)), handover.heads()), (None, vec![(p, 3)]));
        handover.want(p, true);
        handover.committed(events(4..=5));
        handover.want(p, false);
        assert_eq!(seqs(handover.take(p, 3)), None);
    }
}
