//! The publisher's metrics.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::health::PublisherHealth;
use crate::telemetry::metric;

pub(super) fn record_append_time(time: Duration) {
    histogram!(metric::PUBLISHER_APPEND_SECONDS).record(time.as_secs_f64());
}

pub(super) fn count_published(events: usize) {
    counter!(metric::OUTBOX_PUBLISHED).increment(u64::try_from(events).unwrap_or(u64::MAX));
}

pub(super) fn report_health(health: &PublisherHealth) {
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; a lag of 2^53 events is out of reach")]
    gauge!(metric::OUTBOX_LAG_EVENTS).set(health.lag_events as f64);
    gauge!(metric::OUTBOX_LAG_SECONDS).set(health.lag.as_secs_f64());
    gauge!(metric::PUBLISHER_BREAKER_STATE).set(f64::from(health.breaker.number()));
    let diverged = u32::try_from(health.diverged.len()).unwrap_or(u32::MAX);
    gauge!(metric::PUBLISHER_DIVERGED_PARTITIONS).set(f64::from(diverged));
}
