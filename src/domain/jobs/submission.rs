//! A job that is sent: what its row is at first.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::changes::JobChanges;
use super::found::FoundJobs;
use super::job::{FinishedJob, Job, JobHold, JobState, Line, ReplayedLetter, Runner};
use super::queue::QueueSettings;
use crate::domain::ids::{JobId, WorkspaceId};
use crate::domain::text::{JobKind, QueueName, UniqueKey};
use crate::domain::time::Timestamp;

/// A job before it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    pub job_id: JobId,
    pub queue: QueueName,
    pub kind: JobKind,
    pub workspace_id: Option<WorkspaceId>,
    /// JSON.
    pub args: String,
    pub priority: i16,
    /// At once, if None.
    pub run_at: Option<Timestamp>,
    /// At most as many as the queue allows.
    pub max_attempts: Option<i32>,
    pub unique_key: Option<UniqueKey>,
    pub fingerprint: [u8; 32],
    pub hold: Option<JobHold>,
    pub replays: Option<ReplayedLetter>,
    pub actor: String,
    pub correlation_id: String,
    pub causation_id: Option<Uuid>,
    pub traceparent: Option<String>,
}

impl Submission {
    pub const DEFAULT_PRIORITY: i16 = 5;
    pub const MAX_PRIORITY: i16 = 9;

    /// Its row. `last` has the last rank of each line, and is kept up to date. A metered job waits for its hold first.
    #[must_use]
    pub fn into_job(self, settings: &QueueSettings, last: &mut HashMap<Line, Timestamp>, now: Timestamp) -> Job {
        let most = settings.max_attempts;
        let run_at = self.run_at.map_or(now, |run_at| run_at.max(now));
        let is_metered = self.hold.is_some();
        let job = Job {
            job_id: self.job_id,
            queue: self.queue,
            runner: Runner::of(&self.kind),
            kind: self.kind,
            workspace_id: self.workspace_id,
            state: JobState::Holding,
            priority: self.priority.clamp(0, Self::MAX_PRIORITY),
            rank: run_at,
            run_at,
            attempt: 0,
            max_attempts: self.max_attempts.unwrap_or(most).clamp(1, most.max(1)),
            args: self.args,
            unique_key: self.unique_key,
            fingerprint: self.fingerprint,
            hold: self.hold,
            hold_id: None,
            held_credits: None,
            unit_price: None,
            hold_expires_at: None,
            outcome: None,
            result: None,
            actual: None,
            ended_by: None,
            cancel_requested_at: None,
            error: None,
            replays: self.replays,
            actor: self.actor,
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            traceparent: self.traceparent,
            created_at: now,
            changed_at: now,
        };
        if is_metered { job } else { job.pending_behind(last, now) }
    }
}

impl FinishedJob {
    /// The job that tries the letter of this one again. Its unique key is left out: an operator wants it, whatever else is
    /// about the same.
    #[must_use]
    pub fn again(self, job_id: JobId, queue: QueueName, letter: ReplayedLetter, run_at: Timestamp) -> Submission {
        let Job { kind, workspace_id, args, priority, max_attempts, fingerprint, hold, .. } = self.job;
        Submission {
            job_id,
            queue,
            kind,
            workspace_id,
            args,
            priority,
            run_at: Some(run_at),
            max_attempts: Some(max_attempts),
            unique_key: None,
            fingerprint,
            hold,
            replays: Some(letter),
            actor: self.job.actor,
            correlation_id: self.job.correlation_id,
            causation_id: Some(self.job.job_id.0),
            traceparent: self.job.traceparent,
        }
    }
}

/// What became of a job that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    New(Job),
    /// It was sent before, or another one has its unique key: the job as it is now.
    Existing(Job),
    /// Another job was sent with the same idempotency key.
    KeyReused,
    /// There is no such queue.
    NoQueue,
}

impl JobChanges {
    /// Takes jobs that were sent. Of those that are sent twice, the first one is taken. The queues are those of the server.
    #[must_use]
    pub fn submit(
        submissions: Vec<Submission>,
        found: &FoundJobs,
        queues: &BTreeMap<QueueName, QueueSettings>,
        now: Timestamp,
    ) -> (Self, Vec<Submitted>) {
        let mut changes = Self::default();
        let mut last: HashMap<Line, Timestamp> = found.last_ranks.clone();
        let mut answers = Vec::with_capacity(submissions.len());
        for submission in submissions {
            let finished = found.finished.iter().map(|finished| &finished.job);
            let mut known = found.jobs.iter().chain(finished).chain(&changes.inserted);
            if let Some(job) = known.find(|job| submission.is_answered_by(job)) {
                let is_other = job.job_id == submission.job_id && job.fingerprint != submission.fingerprint;
                answers.push(if is_other { Submitted::KeyReused } else { Submitted::Existing(job.clone()) });
                continue;
            }
            let Some(settings) = queues.get(&submission.queue) else {
                answers.push(Submitted::NoQueue);
                continue;
            };
            let job = submission.into_job(settings, &mut last, now);
            answers.push(Submitted::New(job.clone()));
            changes.inserted.push(job);
        }
        (changes, answers)
    }
}

impl Submission {
    /// The jobs that it ranks behind.
    #[must_use]
    pub fn line(&self) -> Option<Line> {
        Some((self.queue.clone(), self.workspace_id?, self.priority))
    }

    /// What only one job may be about at a time.
    #[must_use]
    pub fn unique(&self) -> Option<(Option<WorkspaceId>, JobKind, UniqueKey)> {
        Some((self.workspace_id, self.kind.clone(), self.unique_key.clone()?))
    }

    /// Whether it is that job, or must wait until that one is over.
    fn is_answered_by(&self, job: &Job) -> bool {
        let has_its_key = || {
            !job.state.is_final()
                && self.unique_key.is_some()
                && (self.workspace_id, &self.kind, &self.unique_key) == (job.workspace_id, &job.kind, &job.unique_key)
        };
        job.job_id == self.job_id || has_its_key()
    }
}
