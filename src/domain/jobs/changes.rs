//! What is written when jobs change: all of it in one transaction, or nothing.

use chrono::TimeDelta;
use uuid::Uuid;

use super::job::{FinishedJob, Job, JobOutcome, JobState, Runner};
use super::lease::{JobAttempt, JobLease};
use super::queue::QueueSettings;
use super::schedule::Schedule;
use crate::domain::credits::Credits;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::ids::JobId;
use crate::domain::time::Timestamp;

/// How long a failed job is kept. While its dead letter is open, it is kept for longer.
const KEEP_FAILED: TimeDelta = TimeDelta::days(30);

/// How long a job of a schedule is kept: there are many of them, and they tell little.
const KEEP_OWN: TimeDelta = TimeDelta::hours(1);

/// Changed rows. No job is in it twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobChanges {
    pub inserted: Vec<Job>,
    /// Jobs that are not over, as they are now.
    pub updated: Vec<Job>,
    /// Jobs that are over. They leave the others.
    pub finished: Vec<FinishedJob>,
    pub leases: Vec<JobLease>,
    /// Jobs that no worker has any more.
    pub ended_leases: Vec<JobId>,
    pub attempts: Vec<JobAttempt>,
    /// New letters, and those that were tried again in vain.
    pub letters: Vec<DeadLetter>,
    /// Jobs that are deleted, as if they had never been sent.
    pub forgotten: Vec<JobId>,
    pub schedules: Vec<Schedule>,
    /// Letters that were tried again with success.
    pub resolved_letters: Vec<(Uuid, Timestamp)>,
}

impl JobChanges {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The state that a changed job is in.
    #[must_use]
    pub fn state_of(&self, job_id: JobId) -> Option<JobState> {
        let finished = self.finished.iter().map(|finished| &finished.job);
        self.updated.iter().chain(finished).find(|job| job.job_id == job_id).map(|job| job.state)
    }

    /// Notes that somebody looks after these jobs now: others come first the next time.
    #[must_use]
    pub fn touch(jobs: Vec<Job>, now: Timestamp) -> Self {
        let mut changes = Self::default();
        for job in jobs {
            changes.update(job, now);
        }
        changes
    }

    /// The job is not over.
    pub(super) fn update(&mut self, job: Job, now: Timestamp) {
        self.updated.push(Job { changed_at: now, ..job });
    }

    /// The job is over. A metered one has its hold captured or released next. The letter of a failed job is written now, so
    /// that it is there before the hold is released. What a schedule is for needs no letter: the next firing does it again.
    pub(super) fn end(&mut self, job: Job, outcome: JobOutcome, settings: &QueueSettings, now: Timestamp) {
        let job = Job { outcome: Some(outcome), cancel_requested_at: None, ..job };
        match (outcome, job.replays) {
            _ if job.runner == Runner::System => {}
            (JobOutcome::Completed, Some(replays)) => self.resolved_letters.push((replays.dead_letter_id, now)),
            (JobOutcome::Failed, _) | (JobOutcome::Canceled, Some(_)) => {
                self.letters.push(job.letter(now));
            }
            (JobOutcome::Completed | JobOutcome::Canceled, None) => {}
        }
        if job.hold_id.is_some() {
            self.update(Job { state: JobState::Settling, ..job }, now);
        } else {
            self.finish(job, None, settings, now);
        }
    }

    /// The job leaves the others.
    pub(super) fn finish(&mut self, job: Job, captured: Option<Credits>, settings: &QueueSettings, now: Timestamp) {
        let state = job.outcome.map_or(JobState::Rejected, JobOutcome::state);
        let keep = match state {
            _ if job.runner == Runner::System => KEEP_OWN,
            JobState::Failed => KEEP_FAILED,
            _ => TimeDelta::hours(i64::from(settings.keep_done_h)),
        };
        let job = Job { state, hold_expires_at: None, changed_at: now, ..job };
        self.finished.push(FinishedJob { job, finished_at: now, keep_until: now.plus(keep), captured });
    }
}
