//! The health of the publisher, for `/readyz` and the metrics.

use std::time::Duration;

use super::breaker::BreakerState;
use crate::domain::ids::Partition;
use crate::domain::time::Timestamp;
use crate::store::queries::PartitionStatus;

/// Publishing counts as degraded when the oldest unpublished event is this old. Normally an event is published
/// within milliseconds, and under load within two appends.
const DEGRADED_LAG: Duration = Duration::from_secs(10);

/// A degraded publisher never makes a server unready, because commands do not need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublisherHealth {
    pub breaker: BreakerState,
    /// Whether the last access to the outbox failed.
    pub is_outbox_down: bool,
    /// Partitions that stopped because their stream differs from the outbox.
    pub diverged: Vec<Partition>,
    /// How many partitions this process publishes.
    pub leased: usize,
    /// Unpublished events of all partitions, whoever publishes them.
    pub lag_events: i64,
    /// The age of the oldest of them.
    pub lag: Duration,
}

impl PublisherHealth {
    /// Whether events are late, or soon will be. The breaker counts only while this process has leases: a standby
    /// publisher makes no calls that could close it again.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        (self.leased > 0 && self.breaker != BreakerState::Closed)
            || self.is_outbox_down
            || !self.diverged.is_empty()
            || self.lag >= DEGRADED_LAG
    }

    pub(super) fn update_lag(&mut self, partitions: &[PartitionStatus], now: Timestamp) {
        self.diverged = partitions.iter().filter(|p| p.diverged_seq.is_some()).map(|p| p.partition).collect();
        self.lag_events = partitions.iter().map(|p| p.seq.saturating_sub(p.published_seq).max(0)).sum();
        let oldest = partitions.iter().filter_map(|p| p.oldest_waiting_at).min();
        self.lag = oldest.map_or(Duration::ZERO, |oldest| now.since(oldest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_counts_only_while_there_are_leases() {
        let failing = PublisherHealth { breaker: BreakerState::Failing, leased: 1, ..PublisherHealth::default() };
        assert!(failing.is_degraded());
        assert!(!PublisherHealth { leased: 0, ..failing }.is_degraded());
    }

    #[test]
    fn lag_is_the_number_of_unpublished_events_and_the_age_of_the_oldest() {
        let status = |number, seq, published_seq, oldest: Option<i64>| PartitionStatus {
            partition: Partition::new(number).unwrap(),
            generation: 1,
            seq,
            published_seq,
            floor_seq: 1,
            diverged_seq: (number == 2).then_some(7),
            owner: None,
            epoch: 0,
            leased_until: None,
            oldest_waiting_at: oldest.map(Timestamp::from_micros),
        };
        let mut health = PublisherHealth::default();
        assert!(!health.is_degraded());
        let now = Timestamp::from_micros(20_000_000);
        health.update_lag(&[status(0, 5, 5, None), status(1, 9, 4, Some(5_000_000))], now);
        assert_eq!((health.lag_events, health.lag), (5, Duration::from_secs(15)));
        assert!(health.is_degraded());
        health.update_lag(&[status(0, 5, 5, None), status(2, 9, 9, None)], now);
        assert_eq!((health.lag_events, health.lag, health.diverged.len()), (0, Duration::ZERO, 1));
        assert!(health.is_degraded());
    }
}
