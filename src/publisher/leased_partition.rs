//! A leased partition of the publisher, and when its next step is due.

use std::time::Duration;

use tokio::time::Instant;

use super::breaker::Backoff;
use super::partition::Progress;
use crate::domain::ids::PARTITIONS;
use crate::store::queries::{Lease, Publication};

pub(super) struct LeasedPartition {
    pub(super) lease: Lease,
    /// None while a step runs.
    pub(super) progress: Option<Progress>,
    pub(super) is_signalled: bool,
    /// The last event known to be in the outbox.
    pub(super) head: i64,
    /// The head when the last step began.
    pub(super) head_at_step_start: i64,
    /// The last event believed to be in the stream.
    pub(super) appended_seq: i64,
    /// The last event recorded as published. Later than `appended_seq` after the stream lost its tail.
    pub(super) recorded_seq: i64,
    pub(super) next_probe: Instant,
    /// The first probe from then on also trims the stream.
    pub(super) next_trim: Instant,
    /// No step begins before this: it spaces appends, and retries after a failure.
    pub(super) not_before: Instant,
    pub(super) backoff: Option<Backoff>,
    pub(super) is_stopped: bool,
}

impl LeasedPartition {
    pub(super) fn new(lease: Lease, now: Instant, probe_interval: Duration) -> Self {
        // Spreads the probes of all partitions over the interval.
        let offset = u32::from(lease.partition.number()) + 1;
        Self {
            progress: Some(Progress::new(lease.clone())),
            is_signalled: true,
            head: lease.published_seq,
            head_at_step_start: lease.published_seq,
            appended_seq: lease.published_seq,
            recorded_seq: lease.published_seq,
            next_probe: now + probe_interval / u32::from(PARTITIONS) * offset,
            next_trim: now,
            not_before: now,
            backoff: None,
            is_stopped: lease.diverged_seq.is_some(),
            lease,
        }
    }

    pub(super) fn has_lease(&self, lease: &Lease) -> bool {
        (self.lease.epoch, self.lease.generation) == (lease.epoch, lease.generation)
    }

    /// After a step found no events: corrects the head, unless it has risen since the step began.
    pub(super) fn found_no_events(&mut self, position: i64) {
        if self.head == self.head_at_step_start {
            self.head = self.head.min(position);
        }
    }

    /// What is in the stream and not recorded yet.
    pub(super) fn unrecorded(&self) -> Option<Publication> {
        let is_unrecorded = self.appended_seq > self.recorded_seq;
        is_unrecorded.then(|| Publication { lease: self.lease.clone(), seq_to: self.appended_seq })
    }

    /// When the next step may begin. None while a step runs or the partition is stopped.
    pub(super) fn next_step(&self) -> Option<Instant> {
        let progress = self.progress.as_ref().filter(|_| !self.is_stopped)?;
        let has_work = self.is_signalled || self.head > progress.position;
        Some(if has_work { self.not_before } else { self.not_before.max(self.next_probe) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::Partition;

    #[test]
    fn an_event_committed_while_a_step_finds_nothing_is_not_missed() {
        let partition = Partition::new(3).unwrap();
        let owner = String::from("one");
        let lease =
            Lease { partition, owner, epoch: 1, generation: 1, published_seq: 4, floor_seq: 1, diverged_seq: None };
        let mut leased = LeasedPartition::new(lease, Instant::now(), Duration::from_secs(5));
        (leased.head, leased.head_at_step_start) = (6, 6);
        leased.found_no_events(4);
        assert_eq!(leased.head, 4, "the head was wrong");
        (leased.head_at_step_start, leased.head) = (4, 5);
        leased.found_no_events(4);
        assert_eq!(leased.head, 5, "event 5 was committed meanwhile");
    }
}
