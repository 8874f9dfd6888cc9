//! The end of an attempt: a worker has completed or failed it, gives it back, or is lost.

use chrono::TimeDelta;

use super::changes::JobChanges;
use super::job::{ActualUse, Job, JobError, JobOutcome, JobState, MAX_DAYS_WAITING};
use super::lease::{AttemptOutcome, JobAttempt, JobLease};
use super::queue::QueueSettings;
use crate::domain::credits::Credits;
use crate::domain::hold::Overrun;
use crate::domain::time::Timestamp;

/// The longest time after which a worker can have a job tried again.
const MAX_RETRY_AFTER: TimeDelta = TimeDelta::hours(24);

/// The shortest delay of a command that is still in doubt after its last attempt.
const DOUBT_DELAY: TimeDelta = TimeDelta::hours(1);

/// What a worker says of a job that it has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// JSON.
    pub result: Option<String>,
    /// What a metered job has cost.
    pub actual: Option<ActualUse>,
}

/// Why a completion changes nothing: the worker can send another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionRefused {
    /// The job is not metered, so it costs nothing.
    NotMetered,
    /// The cost is beyond the hold, and the job was sent with `reject` for that.
    ExceedsHold { requested: Credits, held: Credits },
    /// The feature has no price: the cost is a number of credits.
    NotPriced,
    /// The amount is too large.
    OutOfRange,
}

/// What a worker says of a job that it could not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub error: JobError,
    pub is_retryable: bool,
    /// Wins over the delay of the queue. At most 24 hours.
    pub retry_after: Option<TimeDelta>,
}

impl Completion {
    /// Whether the job can end like that.
    pub fn check(&self, job: &Job) -> Result<(), CompletionRefused> {
        let Some(actual) = &self.actual else { return Ok(()) };
        let Some(hold) = &job.hold else { return Err(CompletionRefused::NotMetered) };
        let requested = match (actual.credits, actual.quantity) {
            (Some(credits), _) => credits,
            (None, Some(quantity)) => {
                let unit_price = job.unit_price.ok_or(CompletionRefused::NotPriced)?;
                quantity.cost(unit_price).map_err(|_| CompletionRefused::OutOfRange)?
            }
            (None, None) => return Ok(()),
        };
        match job.held_credits {
            Some(most) if requested > most && hold.overrun == Overrun::Reject => {
                Err(CompletionRefused::ExceedsHold { requested, held: most })
            }
            _ => Ok(()),
        }
    }
}

impl JobChanges {
    /// A worker has done its job.
    pub fn complete(
        &mut self,
        job: Job,
        lease: &JobLease,
        completion: Completion,
        settings: &QueueSettings,
        now: Timestamp,
    ) {
        self.end_lease(&job, lease, AttemptOutcome::Completed, None, now);
        let Completion { result, actual } = completion;
        let job = Job { result, actual, error: None, ended_by: Some(lease.lease_id), ..job };
        self.end(job, JobOutcome::Completed, settings, now);
    }

    /// A worker could not do its job: it is tried again, or is over. `share` is drawn between 0 and 1.
    pub fn fail(
        &mut self,
        job: Job,
        lease: &JobLease,
        failure: Failure,
        settings: &QueueSettings,
        share: f64,
        now: Timestamp,
    ) {
        self.end_lease(&job, lease, AttemptOutcome::Failed, Some(failure.error.clone()), now);
        let job = Job { ended_by: Some(lease.lease_id), ..job };
        self.end_attempt(job, failure, settings, share, now);
    }

    /// Nothing was heard of the worker until the lease was over. It counts as an attempt: a job that kills its workers must end.
    pub fn lose(&mut self, job: Job, lease: &JobLease, settings: &QueueSettings, share: f64, now: Timestamp) {
        let text = if lease.leased_until >= lease.deadline {
            format!("the attempt has taken longer than {} seconds", settings.timeout_s)
        } else {
            "nothing was heard of the worker".to_owned()
        };
        let error = JobError::new(JobError::LOST, &text);
        self.end_lease(&job, lease, AttemptOutcome::Lost, Some(error.clone()), now);
        let failure = Failure { error, is_retryable: true, retry_after: None };
        self.end_attempt(job, failure, settings, share, now);
    }

    /// A worker gives its job back: another one gets it at once, and the attempt does not count.
    pub fn release(&mut self, job: Job, settings: &QueueSettings, now: Timestamp) {
        self.ended_leases.push(job.job_id);
        let job = Job { attempt: job.attempt.saturating_sub(1), ..job };
        if job.cancel_requested_at.is_some() && !job.is_in_doubt() {
            self.end(job, JobOutcome::Canceled, settings, now);
        } else {
            self.update(Job { state: JobState::Ready, ..job }, now);
        }
    }

    /// Nobody wants the job any more. A worker that has it is asked to stop; it may complete it all the same, and so may the next
    /// attempt of a command that is in doubt, unless that does not matter. Returns whether anything has changed.
    pub fn cancel(&mut self, job: Job, even_in_doubt: bool, settings: &QueueSettings, now: Timestamp) -> bool {
        match job.state {
            JobState::Waiting | JobState::Ready | JobState::Capped if even_in_doubt || !job.is_in_doubt() => {
                let error = job.error.or_else(|| Some(JobError::new(JobError::CANCELED, "the job was canceled")));
                self.end(Job { error, ..job }, JobOutcome::Canceled, settings, now);
                true
            }
            JobState::Settling | JobState::Completed | JobState::Failed | JobState::Canceled | JobState::Rejected => {
                false
            }
            _ if job.cancel_requested_at.is_none() => {
                self.update(Job { cancel_requested_at: Some(now), ..job }, now);
                true
            }
            _ => false,
        }
    }

    /// Ends a job that has waited for a worker for too long. Returns whether it has.
    pub fn expire(&mut self, job: Job, settings: &QueueSettings, now: Timestamp) -> bool {
        let can_expire = job.state.is_pending() && !job.is_in_doubt();
        let has_expired = can_expire && job.run_at.plus(TimeDelta::days(MAX_DAYS_WAITING)) <= now;
        if has_expired {
            let text = format!("no worker has taken the job for {MAX_DAYS_WAITING} days");
            let error = Some(JobError::new(JobError::EXPIRED, &text));
            self.end(Job { error, ..job }, JobOutcome::Failed, settings, now);
        }
        has_expired
    }

    fn end_lease(
        &mut self,
        job: &Job,
        lease: &JobLease,
        outcome: AttemptOutcome,
        error: Option<JobError>,
        now: Timestamp,
    ) {
        self.ended_leases.push(job.job_id);
        self.attempts.push(JobAttempt::new(job, lease, outcome, error, now));
    }

    fn end_attempt(&mut self, job: Job, failure: Failure, settings: &QueueSettings, share: f64, now: Timestamp) {
        let Failure { error, is_retryable, retry_after } = failure;
        let (is_canceled, is_last) = (job.cancel_requested_at.is_some(), job.attempt >= job.max_attempts);
        let job = Job { error: Some(error), ..job };
        if !job.is_in_doubt() && (is_canceled || is_last || !is_retryable) {
            let outcome = if is_canceled { JobOutcome::Canceled } else { JobOutcome::Failed };
            return self.end(job, outcome, settings, now);
        }
        let wanted = retry_after.map(|wanted| wanted.clamp(TimeDelta::zero(), MAX_RETRY_AFTER));
        let mut delay = wanted.unwrap_or_else(|| settings.retry_delays_s.after(job.attempt, share));
        if is_last {
            delay = delay.max(DOUBT_DELAY);
        }
        self.update(Job { run_at: now.plus(delay), ..job }.pending(None, now), now);
    }
}
