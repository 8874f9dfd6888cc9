//! Cleaning: deletes rows that nobody needs any more, bit by bit.
//!
//! One task per process, without coordination: deleting what is gone does nothing. A step is a short transaction for
//! each table, behind the commands, and the pause after it is longer than it was. So it may run at any time, and be stopped at any time.

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::store::cleaning::Leftover;
use crate::store::{Cleaning, StoreError};
use crate::telemetry::metric;

/// How long usage by the hour is kept.
const KEEP_USAGE_HOURS: chrono::TimeDelta = chrono::TimeDelta::days(400);
/// How long a dead letter is kept that was resolved.
const KEEP_RESOLVED_LETTERS: chrono::TimeDelta = chrono::TimeDelta::days(90);
/// How long a notification is kept.
const KEEP_NOTIFICATIONS: chrono::TimeDelta = chrono::TimeDelta::days(400);
/// How long a worker is kept that is gone.
const KEEP_GONE_WORKERS: chrono::TimeDelta = chrono::TimeDelta::days(1);
/// The pause after a step is so many times as long as the step.
const PAUSE_FACTOR: u32 = 4;

#[derive(Clone, Copy, Debug)]
pub struct CleaningConfig {
    /// The pause after everything was cleaned.
    pub interval: Duration,
    /// How many rows of a table one step deletes at most.
    pub max_rows: u32,
}

impl Default for CleaningConfig {
    fn default() -> Self {
        Self { interval: Duration::from_mins(10), max_rows: 500 }
    }
}

#[derive(Clone)]
pub struct Cleaner {
    pub config: CleaningConfig,
    pub store: Arc<dyn Cleaning>,
    pub clock: Arc<dyn Clock>,
}

impl Cleaner {
    /// Runs until `stopping` is cancelled.
    pub async fn run(self, stopping: CancellationToken) {
        let cleaning = async {
            loop {
                if let Err(error) = self.clean().await {
                    tracing::warn!(%error, "old rows could not be deleted; trying again");
                }
                sleep(self.config.interval).await;
            }
        };
        // A step that is given up is rolled back.
        tokio::select! {
            () = stopping.cancelled() => {}
            () = cleaning => {}
        }
    }

    /// Deletes all that can be deleted by now. Returns how many rows.
    pub async fn clean(&self) -> Result<u64, StoreError> {
        let now = self.clock.now();
        let mut all = 0;
        for (leftover, name) in [
            (Leftover::OldBuilds, "old_builds"),
            (Leftover::UsageHours(now.minus(KEEP_USAGE_HOURS)), "usage_hours"),
            (Leftover::ResolvedLetters(now.minus(KEEP_RESOLVED_LETTERS)), "dead_letters"),
            (Leftover::Notifications(now.minus(KEEP_NOTIFICATIONS)), "notifications"),
            (Leftover::FinishedJobs(now), "jobs"),
            (Leftover::GoneWorkers(now.minus(KEEP_GONE_WORKERS)), "workers"),
        ] {
            loop {
                let begun = Instant::now();
                let deleted = self.store.clean(leftover, self.config.max_rows).await?;
                if deleted == 0 {
                    break;
                }
                all += deleted;
                counter!(metric::CLEANED_ROWS, "leftover" => name).increment(deleted);
                sleep(begun.elapsed() * PAUSE_FACTOR).await;
            }
        }
        Ok(all)
    }
}
