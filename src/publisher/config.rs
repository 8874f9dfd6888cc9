//! The publisher's rhythm, and the reason for each of its times.

use std::time::Duration;

/// How long a lease lasts: how late events may be when a publisher dies without giving it back.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// How often to look for events that another replica committed. With the reading and the append it
/// keeps them within 50 ms.
const SHARED_HEADS_EVERY: Duration = Duration::from_millis(20);
/// The same when all commits are in this process and signal: only a net below the signals.
const EMBEDDED_HEADS_EVERY: Duration = Duration::from_secs(1);
/// How often a partition without events asks whether its stream still ends where it should: how long
/// a wiped stream stays empty while nothing happens.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How often lag and divergences are looked up for the metrics and `/readyz`.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// How often a partition is appended to under load: its events gather in between, because an append
/// costs as much as dozens of events. The first event after a pause does not wait.
const STEP_EVERY: Duration = Duration::from_millis(20);
/// How often it is recorded what was published: once for all partitions, because it is a transaction
/// that waits for the disk. Until then a crash lets the next publisher find out from the stream.
const RECORD_EVERY: Duration = Duration::from_millis(100);
/// How long publishing what is there may hold up a stop.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// The publisher's rhythm.
#[derive(Clone, Copy, Debug)]
pub struct PublisherConfig {
    pub lease_ttl: Duration,
    pub heads_every: Duration,
    pub probe_every: Duration,
    pub status_every: Duration,
    pub step_every: Duration,
    pub record_every: Duration,
    pub stop_within: Duration,
}

impl PublisherConfig {
    /// For a database that several replicas write to.
    #[must_use]
    pub const fn shared() -> Self {
        Self {
            lease_ttl: LEASE_TTL,
            heads_every: SHARED_HEADS_EVERY,
            probe_every: PROBE_EVERY,
            status_every: STATUS_EVERY,
            step_every: STEP_EVERY,
            record_every: RECORD_EVERY,
            stop_within: STOP_WITHIN,
        }
    }

    /// For the embedded database, which only this process writes to.
    #[must_use]
    pub const fn embedded() -> Self {
        Self { heads_every: EMBEDDED_HEADS_EVERY, ..Self::shared() }
    }
}
