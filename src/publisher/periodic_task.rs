//! When a periodic task of the publisher runs next.

use std::time::Duration;

use tokio::time::Instant;

use super::breaker::Backoff;
use crate::store::StoreError;

pub(super) struct PeriodicTask {
    /// None while it runs.
    pub(super) next_run: Option<Instant>,
    backoff: Backoff,
}

impl PeriodicTask {
    pub(super) fn new(first_run: Instant) -> Self {
        Self { next_run: Some(first_run), backoff: Backoff::new() }
    }

    /// Whether it is due; if so, it counts as running.
    pub(super) fn start_if_due(&mut self, now: Instant) -> bool {
        self.next_run.take_if(|next_run| *next_run <= now).is_some()
    }

    /// Schedules the next run: after `interval`, or with backoff after a failure.
    pub(super) fn finished<T>(&mut self, result: &Result<T, StoreError>, interval: Duration) {
        let pause = if result.is_ok() {
            self.backoff = Backoff::new();
            interval
        } else {
            self.backoff.next_pause()
        };
        self.next_run = Some(Instant::now() + pause);
    }
}
