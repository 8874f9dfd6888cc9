//! Cleaning: deletes rows that nobody needs any more, bit by bit.
//!
//! Deleting what is gone does nothing, so nothing is lost if two servers clean at once. A step is a short transaction for each
//! table, behind the commands, and the pause after it is longer than it was. So it may run at any time, and be stopped at any
//! time.

use std::sync::Arc;

use metrics::counter;
use tokio::time::{Instant, sleep};

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

#[derive(Clone)]
pub struct Cleaner {
    /// How many rows of a table one step deletes at most.
    pub max_rows: u32,
    pub store: Arc<dyn Cleaning>,
    pub clock: Arc<dyn Clock>,
}

impl Cleaner {
    pub const MAX_ROWS: u32 = 500;

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
                let deleted = self.store.clean(leftover, self.max_rows).await?;
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
