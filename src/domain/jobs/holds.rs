//! The hold of a metered job: what becomes of the job when it is placed or refused, and when it is over.

use std::collections::HashMap;

use super::changes::JobChanges;
use super::job::{Job, JobError, JobOutcome, JobState, Line};
use super::queue::QueueSettings;
use crate::domain::credits::Credits;
use crate::domain::ids::HoldId;
use crate::domain::time::Timestamp;

/// A hold that was placed for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub hold_id: HoldId,
    pub credits: Credits,
    pub unit_price: Option<Credits>,
    pub expires_at: Timestamp,
}

/// What the engine has answered at the end of a metered job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    Captured(Credits),
    /// Released, or over by itself.
    Released,
    /// The cost could not be charged, for this reason.
    CaptureRefused(String),
}

impl JobChanges {
    /// The job's hold is placed: it can run. `last` has the last rank of each line, and is kept up to date.
    pub fn held(
        &mut self,
        job: Job,
        held: Held,
        last: &mut HashMap<Line, Timestamp>,
        settings: &QueueSettings,
        now: Timestamp,
    ) {
        let Held { hold_id, credits, unit_price, expires_at } = held;
        let job = Job {
            hold_id: Some(hold_id),
            held_credits: Some(credits),
            unit_price,
            hold_expires_at: Some(expires_at),
            ..job
        };
        if job.cancel_requested_at.is_some() {
            let error = Some(JobError::new(JobError::CANCELED, "the job was canceled"));
            self.end(Job { error, ..job }, JobOutcome::Canceled, settings, now);
        } else {
            self.update(job.pending_behind(last, now), now);
        }
    }

    /// The job's hold was refused, but might not be if it were sent again: it was never sent. One that tries a letter again is
    /// kept: the letter is about it from now on.
    pub fn forget(&mut self, job: Job, error: JobError, settings: &QueueSettings, now: Timestamp) {
        if job.replays.is_some() {
            self.reject(job, error, settings, now);
        } else {
            self.forgotten.push(job.job_id);
        }
    }

    /// The job's hold was refused: it never runs.
    pub fn reject(&mut self, job: Job, error: JobError, settings: &QueueSettings, now: Timestamp) {
        if job.replays.is_some() {
            let failed = Job { error: Some(error.clone()), ..job.clone() };
            self.letters.push(failed.letter(now));
        }
        self.finish(Job { error: Some(error), ..job }, None, settings, now);
    }

    /// The job's hold lasts until then, or is over by itself: then it is not extended again, and the cost is charged like a
    /// deduction of then.
    pub fn extend(&mut self, job: Job, hold_expires_at: Option<Timestamp>, now: Timestamp) {
        self.update(Job { hold_expires_at, ..job }, now);
    }

    /// The job's hold is over, and the job with it. If the cost was refused, the job has failed, and what is left of its hold is
    /// released next.
    pub fn settle(&mut self, job: Job, settlement: Settlement, settings: &QueueSettings, now: Timestamp) {
        match settlement {
            Settlement::Captured(credits) => self.finish(job, Some(credits), settings, now),
            Settlement::Released => self.finish(job, None, settings, now),
            Settlement::CaptureRefused(reason) => {
                let text = format!("the cost could not be charged: {reason}");
                let error = Some(JobError::new(JobError::CAPTURE_REFUSED, &text));
                let job = Job { outcome: Some(JobOutcome::Failed), error, state: JobState::Settling, ..job };
                self.letters.push(job.letter(now));
                self.update(job, now);
            }
        }
    }
}
