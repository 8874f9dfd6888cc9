//! The state that the readiness probe reports.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::time::Timestamp;
use crate::store::Store;

/// How often the database is asked whether it answers.
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// A database that answers more slowly is not ready for commands.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a failed write makes the server not ready, in microseconds: a few intervals of a probe.
const WRITE_FAILURE_TTL_US: i64 = 5_000_000;

/// Health flags, set by the rest of the program and read by the readiness probe.
#[derive(Debug, Default)]
pub struct Health {
    is_draining: AtomicBool,
    is_stream_degraded: AtomicBool,
    is_database_down: AtomicBool,
    /// When the last command could not be written, in microseconds since 1970; 0 if it could.
    failed_write_at_us: AtomicI64,
}

impl Health {
    /// The server is about to stop and should get no new requests.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Asks the database again and again whether it answers, until `stop` is cancelled. A probe only reads the result: it
    /// does not wait behind requests, and many probes are no load for the database.
    pub async fn watch_database(&self, store: &dyn Store, stop: CancellationToken) {
        loop {
            let answer = tokio::time::timeout(PING_TIMEOUT, store.ping()).await;
            let is_down = !matches!(answer, Ok(Ok(())));
            if self.is_database_down.swap(is_down, Ordering::Relaxed) != is_down {
                if is_down {
                    tracing::warn!(?answer, "the database does not answer");
                } else {
                    tracing::info!("the database answers again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PING_INTERVAL) => {}
            }
        }
    }

    #[must_use]
    pub fn is_database_down(&self) -> bool {
        self.is_database_down.load(Ordering::Relaxed)
    }

    /// Whether the publisher cannot reach Redis. Commands do not depend on it.
    pub fn set_stream_degraded(&self, is_degraded: bool) {
        self.is_stream_degraded.store(is_degraded, Ordering::Relaxed);
    }

    /// Records whether a command could be written. A database can serve reads and refuse writes, for example when its
    /// disk is full or it is a standby.
    pub fn record_write_result(&self, has_failed: bool, now: Timestamp) {
        let at = if has_failed { now.micros() } else { 0 };
        if at != self.failed_write_at_us.load(Ordering::Relaxed) {
            self.failed_write_at_us.store(at, Ordering::Relaxed);
        }
    }

    /// Whether the last command could not be written, a short time ago. This expires, because a server that is not
    /// ready gets no commands and could not find out that writes work again.
    #[must_use]
    pub fn are_writes_failing(&self, now: Timestamp) -> bool {
        let at = self.failed_write_at_us.load(Ordering::Relaxed);
        at != 0 && now.micros().saturating_sub(at) < WRITE_FAILURE_TTL_US
    }

    #[must_use]
    pub fn is_stream_degraded(&self) -> bool {
        self.is_stream_degraded.load(Ordering::Relaxed)
    }
}
