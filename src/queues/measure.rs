//! The metrics of jobs: what a change of them has done.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use metrics::{counter, gauge, histogram};

use crate::domain::jobs::{AttemptOutcome, JobChanges};
use crate::domain::text::QueueName;
use crate::domain::time::Timestamp;
use crate::store::jobs::QueueLoad;
use crate::telemetry::metric;

/// What each queue has to do.
#[allow(clippy::cast_precision_loss, reason = "gauges are floats; there are at most some thousand jobs in one")]
pub(super) fn report(loads: Vec<QueueLoad>, now: Timestamp) {
    for QueueLoad { queue, runner, running, due, oldest } in loads {
        let waited = oldest.map_or(Duration::ZERO, |oldest| now.since(oldest));
        let labels = [("queue", queue.to_string()), ("runner", runner.as_str().to_owned())];
        gauge!(metric::JOBS_DUE, &labels).set(due as f64);
        gauge!(metric::JOBS_RUNNING, &labels).set(running as f64);
        gauge!(metric::JOBS_OLDEST_DUE_SECONDS, &labels).set(waited.as_secs_f64());
    }
}

/// What is counted once the changes are committed.
#[derive(Debug, Default)]
pub(super) struct Measured {
    events: BTreeMap<(QueueName, &'static str), u64>,
    waits: Vec<(QueueName, Duration)>,
    runs: Vec<(QueueName, Duration)>,
}

impl Measured {
    pub(super) fn of(changes: &JobChanges) -> Self {
        let mut measured = Self::default();
        let finished = changes.finished.iter().map(|finished| &finished.job);
        let jobs: HashMap<_, _> = changes.updated.iter().chain(finished).map(|job| (job.job_id, job)).collect();
        for job in &changes.inserted {
            measured.count(&job.queue, "submitted");
        }
        for lease in &changes.leases {
            let waited = jobs.get(&lease.job_id).map(|job| lease.started_at.since(job.run_at));
            measured.waits.extend(waited.map(|waited| (lease.queue.clone(), waited)));
        }
        for attempt in &changes.attempts {
            let Some(job) = jobs.get(&attempt.job_id) else { continue };
            measured.runs.push((job.queue.clone(), attempt.ended_at.since(attempt.started_at)));
            match attempt.outcome {
                AttemptOutcome::Lost => measured.count(&job.queue, "lost"),
                AttemptOutcome::Failed if job.state.is_pending() => measured.count(&job.queue, "retried"),
                AttemptOutcome::Failed | AttemptOutcome::Completed => {}
            }
        }
        for job in jobs.into_values().filter(|job| job.state.is_final()) {
            measured.count(&job.queue, job.state.as_str());
        }
        measured
    }

    fn count(&mut self, queue: &QueueName, event: &'static str) {
        *self.events.entry((queue.clone(), event)).or_default() += 1;
    }

    pub(super) fn record(self) {
        for ((queue, event), count) in self.events {
            counter!(metric::JOBS, "queue" => queue.to_string(), "event" => event).increment(count);
        }
        for (queue, waited) in self.waits {
            histogram!(metric::JOB_WAIT_SECONDS, "queue" => queue.to_string()).record(waited.as_secs_f64());
        }
        for (queue, took) in self.runs {
            histogram!(metric::JOB_RUN_SECONDS, "queue" => queue.to_string()).record(took.as_secs_f64());
        }
    }
}
