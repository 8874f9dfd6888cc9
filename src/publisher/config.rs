//! The publisher's intervals and timeouts, each with its reason.

use std::time::Duration;

/// How long a lease lasts: the longest delay of events after a publisher died without releasing it.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// How often to poll for events that another replica committed. Together with reading and appending, events are
/// published within 50 ms.
const SHARED_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The same when this process makes all commits. Their signals make polling a safety net only.
const EMBEDDED_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often the stream of an idle partition is checked: the longest time that a wiped stream stays empty while
/// there are no events.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// How often lag and divergences are read for the metrics and `/readyz`.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How often a busy partition is appended to. Its events gather in between, because an append costs as much as
/// dozens of events. The first event after a pause does not wait.
const APPEND_INTERVAL: Duration = Duration::from_millis(20);
/// How often the published positions are recorded, for all partitions in one transaction, because it waits for
/// the disk. After a crash the next publisher finds unrecorded events in the stream.
const RECORD_INTERVAL: Duration = Duration::from_millis(100);
/// How often the streams are trimmed, and old records of batches deleted: the longest time that an event stays after it
/// may be removed.
const TRIM_INTERVAL: Duration = Duration::from_mins(1);
/// How long publishing the remaining events may delay a stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long what was published is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Events in the streams.
    pub events: Duration,
    /// Records of batches in the database.
    pub batches: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct PublisherConfig {
    pub lease_ttl: Duration,
    pub poll_interval: Duration,
    pub probe_interval: Duration,
    pub status_interval: Duration,
    pub append_interval: Duration,
    pub record_interval: Duration,
    pub trim_interval: Duration,
    /// Without it, this publisher removes nothing.
    pub retention: Option<Retention>,
    pub stop_timeout: Duration,
}

impl PublisherConfig {
    /// For a database that several replicas write to.
    #[must_use]
    pub const fn shared() -> Self {
        Self {
            lease_ttl: LEASE_TTL,
            poll_interval: SHARED_POLL_INTERVAL,
            probe_interval: PROBE_INTERVAL,
            status_interval: STATUS_INTERVAL,
            append_interval: APPEND_INTERVAL,
            record_interval: RECORD_INTERVAL,
            trim_interval: TRIM_INTERVAL,
            retention: None,
            stop_timeout: STOP_TIMEOUT,
        }
    }

    /// For the embedded database, which only this process writes to.
    #[must_use]
    pub const fn embedded() -> Self {
        Self { poll_interval: EMBEDDED_POLL_INTERVAL, ..Self::shared() }
    }
}
