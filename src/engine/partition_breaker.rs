//! A circuit breaker for each partition of a lane.
//!
//! When another session holds a partition's lock (a paused replica, an operator's session), or its statements
//! time out, each attempt costs the lane a whole timeout, and the lane's other partitions wait. So after a slow
//! failure the partition's commands are refused at once for a growing time. Then one transaction of its own
//! tries it again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::domain::ids::Partition;

/// A failure that took this long was a timeout. Faster failures cost the lane nothing and open no breaker.
pub(super) const SLOW_FAILURE: Duration = Duration::from_millis(400);
/// How long a partition is refused after its first slow failure. Each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartitionState {
    /// Its commands share a transaction with those of other partitions.
    Closed,
    /// Its commands get a transaction of their own, as a trial.
    HalfOpen,
    /// Its commands are refused.
    Open,
}

/// The partitions whose last attempt failed slowly; all others are closed.
#[derive(Debug, Default)]
pub(super) struct PartitionBreaker {
    pauses: BTreeMap<Partition, Pause>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Instant,
    length: Duration,
}

impl PartitionBreaker {
    pub(super) fn state(&self, partition: Partition, now: Instant) -> PartitionState {
        match self.pauses.get(&partition) {
            None => PartitionState::Closed,
            Some(pause) if pause.until <= now => PartitionState::HalfOpen,
            Some(_) => PartitionState::Open,
        }
    }

    pub(super) fn record_slow_failure(&mut self, partition: Partition, now: Instant) {
        let last = self.pauses.get(&partition);
        let length = last.map_or(FIRST_PAUSE, |pause| (pause.length * 2).min(LONGEST_PAUSE));
        self.pauses.insert(partition, Pause { until: now + length, length });
    }

    pub(super) fn record_success(&mut self, partition: Partition) {
        self.pauses.remove(&partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_stays_open_for_a_growing_time_until_it_succeeds() {
        let (mut breaker, start) = (PartitionBreaker::default(), Instant::now());
        let one = Partition::new(1).unwrap();
        assert_eq!(breaker.state(one, start), PartitionState::Closed);
        let mut now = start;
        for pause_ms in [500, 1000, 2000, 4000, 8000, 8000] {
            breaker.record_slow_failure(one, now);
            assert_eq!(breaker.state(one, now + Duration::from_millis(pause_ms - 1)), PartitionState::Open);
            now += Duration::from_millis(pause_ms);
            assert_eq!(breaker.state(one, now), PartitionState::HalfOpen);
        }
        assert_eq!(breaker.state(Partition::new(2).unwrap(), now), PartitionState::Closed);
        breaker.record_success(one);
        assert_eq!(breaker.state(one, now), PartitionState::Closed);
    }
}
