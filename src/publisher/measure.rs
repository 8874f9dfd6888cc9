//! The publisher's metrics: their names in one place.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::health::PublisherHealth;

/// Events that are durable but not recorded as published, over all partitions.
pub const LAG_EVENTS: &str = "visionscope_outbox_lag_events";
/// The age of the oldest of them.
pub const LAG_SECONDS: &str = "visionscope_outbox_lag_seconds";
/// Events appended by this process, or found to be in the stream already.
pub const PUBLISHED_TOTAL: &str = "visionscope_outbox_published_total";
/// How long an append took that was answered.
pub const APPEND_SECONDS: &str = "visionscope_outbox_append_seconds";
/// The circuit breaker around the stream: 0 closed, 1 failing, 2 open.
pub const BREAKER_STATE: &str = "visionscope_outbox_breaker_state";
/// Partitions whose publishing is stopped because the stream says something else than the outbox.
pub const DIVERGED_PARTITIONS: &str = "visionscope_outbox_diverged_partitions";

/// Tells the recorder what the metrics mean.
pub fn describe() {
    describe_gauge!(LAG_EVENTS, Unit::Count, "Events that wait to be published");
    describe_gauge!(LAG_SECONDS, Unit::Seconds, "Age of the oldest event that waits to be published");
    describe_counter!(PUBLISHED_TOTAL, Unit::Count, "Events published by this process");
    describe_histogram!(APPEND_SECONDS, Unit::Seconds, "Time of one append to the stream");
    describe_gauge!(BREAKER_STATE, "Circuit breaker around the stream: 0 closed, 1 failing, 2 open");
    describe_gauge!(DIVERGED_PARTITIONS, Unit::Count, "Partitions whose stream differs from the outbox");
}

pub(super) fn append_took(time: Duration) {
    histogram!(APPEND_SECONDS).record(time.as_secs_f64());
}

pub(super) fn published(events: usize) {
    counter!(PUBLISHED_TOTAL).increment(u64::try_from(events).unwrap_or(u64::MAX));
}

pub(super) fn report(health: &PublisherHealth) {
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; a lag of 2^53 events is out of reach")]
    gauge!(LAG_EVENTS).set(health.lag_events as f64);
    gauge!(LAG_SECONDS).set(health.lag.as_secs_f64());
    gauge!(BREAKER_STATE).set(f64::from(health.breaker.number()));
    let diverged = u32::try_from(health.diverged.len()).unwrap_or(u32::MAX);
    gauge!(DIVERGED_PARTITIONS).set(f64::from(diverged));
}
