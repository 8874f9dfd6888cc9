//! What the readiness probe is told by the rest of the program.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crate::domain::time::Timestamp;

/// How long a command that could not be written keeps the server from being ready, in microseconds:
/// a few rounds of a probe.
const REFUSED_WRITE_COUNTS_US: i64 = 5_000_000;
/// What the composition root tells the readiness probe.
#[derive(Debug, Default)]
pub struct Health {
    is_draining: AtomicBool,
    is_stream_degraded: AtomicBool,
    /// When a command last could not be written, in microseconds since 1970; 0 when one was written
    /// since.
    refused_write_at: AtomicI64,
}

impl Health {
    /// The server is about to stop: nothing new shall be sent here.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Whether the publisher has trouble with Redis. Commands do not depend on it.
    pub fn set_stream_degraded(&self, is_degraded: bool) {
        self.is_stream_degraded.store(is_degraded, Ordering::Relaxed);
    }

    /// What became of a command's write. A database can answer reads and refuse writes: its disk is
    /// full, or it follows another.
    pub fn saw_write(&self, was_refused: bool, now: Timestamp) {
        let at = if was_refused { now.micros() } else { 0 };
        if at != self.refused_write_at.load(Ordering::Relaxed) {
            self.refused_write_at.store(at, Ordering::Relaxed);
        }
    }

    /// Whether the last command could not be written, and that not long ago. It ends by itself, because
    /// a server that gets no commands could not find out that they can be written again.
    #[must_use]
    pub fn are_writes_refused(&self, now: Timestamp) -> bool {
        let at = self.refused_write_at.load(Ordering::Relaxed);
        at != 0 && now.micros().saturating_sub(at) < REFUSED_WRITE_COUNTS_US
    }

    #[must_use]
    pub fn is_stream_degraded(&self) -> bool {
        self.is_stream_degraded.load(Ordering::Relaxed)
    }
}
