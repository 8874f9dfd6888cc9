//! The publisher's metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::health::PublisherHealth;
use crate::store::queries::PartitionStatus;
use crate::telemetry::metric;

pub(super) fn record_append_time(time: Duration) {
    histogram!(metric::PUBLISHER_APPEND_SECONDS).record(time.as_secs_f64());
}

pub(super) fn count_published(events: usize) {
    counter!(metric::OUTBOX_PUBLISHED).increment(u64::try_from(events).unwrap_or(u64::MAX));
}

pub(super) fn report_streams(partitions: &[PartitionStatus]) {
    let held = |status: &PartitionStatus| status.published_seq.saturating_sub(status.floor_seq) + 1;
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 events are out of reach")]
    gauge!(metric::STREAM_EVENTS).set(partitions.iter().map(held).sum::<i64>() as f64);
}

pub(super) fn report_groups(lags: &BTreeMap<String, i64>) {
    for (group, lag) in lags {
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; a lag of 2^53 events is out of reach")]
        gauge!(metric::GROUP_LAG_EVENTS, "group" => group.clone()).set(*lag as f64);
    }
}

pub(super) fn report_health(health: &PublisherHealth) {
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; a lag of 2^53 events is out of reach")]
    gauge!(metric::OUTBOX_LAG_EVENTS).set(health.lag_events as f64);
    gauge!(metric::OUTBOX_LAG_SECONDS).set(health.lag.as_secs_f64());
    gauge!(metric::PUBLISHER_BREAKER_STATE).set(f64::from(health.breaker.number()));
    let diverged = u32::try_from(health.diverged.len()).unwrap_or(u32::MAX);
    gauge!(metric::PUBLISHER_DIVERGED_PARTITIONS).set(f64::from(diverged));
}
