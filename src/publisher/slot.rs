//! The loop's bookkeeping: a leased partition and when it is due, and the chores that come again.

use std::time::Duration;

use tokio::time::Instant;

use super::breaker::Backoff;
use super::partition::Progress;
use crate::domain::ids::PARTITIONS;
use crate::store::StoreError;
use crate::store::queries::{Lease, Publication};

/// A leased partition.
pub(super) struct Slot {
    pub(super) lease: Lease,
    /// Away while a step is under way.
    pub(super) progress: Option<Progress>,
    pub(super) is_signalled: bool,
    /// The last event known to be in the outbox.
    pub(super) head: i64,
    /// The same when the last step began.
    pub(super) head_before: i64,
    /// The last event believed to be in the stream, and the last one recorded as published. After the
    /// stream lost its tail, the first is before the second.
    pub(super) appended: i64,
    pub(super) recorded: i64,
    pub(super) probe_at: Instant,
    /// After a step nothing is begun before this, and after a failure nothing tried.
    pub(super) not_before: Instant,
    pub(super) backoff: Option<Backoff>,
    pub(super) is_stopped: bool,
}

impl Slot {
    pub(super) fn new(lease: Lease, now: Instant, probe_every: Duration) -> Self {
        // The partitions take turns with their probes.
        let turn = u32::from(lease.partition.number()) + 1;
        Self {
            progress: Some(Progress::of(lease.clone())),
            is_signalled: true,
            head: lease.published_seq,
            head_before: lease.published_seq,
            appended: lease.published_seq,
            recorded: lease.published_seq,
            probe_at: now + probe_every / u32::from(PARTITIONS) * turn,
            not_before: now,
            backoff: None,
            is_stopped: lease.diverged_seq.is_some(),
            lease,
        }
    }

    pub(super) fn is_same(&self, lease: &Lease) -> bool {
        (self.lease.epoch, self.lease.generation) == (lease.epoch, lease.generation)
    }

    /// A step that began with this head found nothing: then there is nothing up to it, but what came
    /// while it looked is still to be done.
    pub(super) fn found_nothing(&mut self, position: i64) {
        if self.head == self.head_before {
            self.head = self.head.min(position);
        }
    }

    /// What is in the stream and not recorded yet.
    pub(super) fn unrecorded(&self) -> Option<Publication> {
        let is_unrecorded = self.appended > self.recorded;
        is_unrecorded.then(|| Publication { lease: self.lease.clone(), seq_to: self.appended })
    }

    /// When the next step may begin; never while one is under way or the partition is stopped.
    pub(super) fn due(&self) -> Option<Instant> {
        let progress = self.progress.as_ref().filter(|_| !self.is_stopped)?;
        let has_work = self.is_signalled || self.head > progress.position;
        Some(if has_work { self.not_before } else { self.not_before.max(self.probe_at) })
    }
}

/// A task that comes again and again, and is away while it is under way.
pub(super) struct Chore {
    pub(super) at: Option<Instant>,
    pub(super) backoff: Backoff,
}

impl Chore {
    pub(super) fn new(at: Instant) -> Self {
        Self { at: Some(at), backoff: Backoff::new() }
    }

    pub(super) fn begins(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    pub(super) fn again<T>(&mut self, result: &Result<T, StoreError>, after: Duration) {
        let pause = if result.is_ok() {
            self.backoff = Backoff::new();
            after
        } else {
            self.backoff.pause()
        };
        self.at = Some(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::Partition;

    #[test]
    fn what_comes_while_a_step_finds_nothing_is_still_to_be_done() {
        let partition = Partition::new(3).unwrap();
        let owner = String::from("one");
        let lease = Lease { partition, owner, epoch: 1, generation: 1, published_seq: 4, diverged_seq: None };
        let mut slot = Slot::new(lease, Instant::now(), Duration::from_secs(5));
        (slot.head, slot.head_before) = (6, 6);
        slot.found_nothing(4);
        assert_eq!(slot.head, 4, "the number was wrong");
        (slot.head_before, slot.head) = (4, 5);
        slot.found_nothing(4);
        assert_eq!(slot.head, 5, "it was committed meanwhile");
    }
}
