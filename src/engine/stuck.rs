//! Which partitions a lane leaves alone for a while.
//!
//! A partition whose lock is held elsewhere (a paused replica, an operator's session), or whose
//! statements run into a timeout, costs the lane a whole timeout each time it is tried, and the lane's
//! other partitions wait. So after a slow failure its commands are answered at once for a growing
//! time, and then it is tried in a transaction of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::domain::ids::Partition;

/// A failure that took this long was a wait that ran out. Others are told at once and cost nothing.
pub(super) const SLOW: Duration = Duration::from_millis(400);
/// How long a partition is left alone after its first slow failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// How a partition is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// Together with the others.
    Usual,
    /// In a transaction of its own: it was stuck the last time.
    Alone,
    /// Not at all.
    Refused,
}

#[derive(Debug, Default)]
pub(super) struct Stuck {
    partitions: BTreeMap<Partition, Pause>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Instant,
    length: Duration,
}

impl Stuck {
    pub(super) fn treatment(&self, partition: Partition, now: Instant) -> Treatment {
        match self.partitions.get(&partition) {
            None => Treatment::Usual,
            Some(pause) if pause.until <= now => Treatment::Alone,
            Some(_) => Treatment::Refused,
        }
    }

    pub(super) fn failed_slowly(&mut self, partition: Partition, now: Instant) {
        let known = self.partitions.get(&partition);
        let length = known.map_or(FIRST_PAUSE, |pause| (pause.length * 2).min(LONGEST_PAUSE));
        self.partitions.insert(partition, Pause { until: now + length, length });
    }

    pub(super) fn succeeded(&mut self, partition: Partition) {
        self.partitions.remove(&partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_partition_is_left_alone_for_a_growing_time_until_it_succeeds() {
        let (mut stuck, start) = (Stuck::default(), Instant::now());
        let one = Partition::new(1).unwrap();
        assert_eq!(stuck.treatment(one, start), Treatment::Usual);
        let mut now = start;
        for pause_ms in [500, 1000, 2000, 4000, 8000, 8000] {
            stuck.failed_slowly(one, now);
            assert_eq!(stuck.treatment(one, now + Duration::from_millis(pause_ms - 1)), Treatment::Refused);
            now += Duration::from_millis(pause_ms);
            assert_eq!(stuck.treatment(one, now), Treatment::Alone);
        }
        assert_eq!(stuck.treatment(Partition::new(2).unwrap(), now), Treatment::Usual);
        stuck.succeeded(one);
        assert_eq!(stuck.treatment(one, now), Treatment::Usual);
    }
}
