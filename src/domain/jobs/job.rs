//! A job: its row, its states, and what it charges.

use std::collections::HashMap;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::credits::{Credits, PositiveCredits, Quantity};
use crate::domain::dead_letter::{DeadLetter, FailedJob, FailedWork};
use crate::domain::hold::Overrun;
use crate::domain::ids::{HoldId, JobId, LeaseId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::text::{FeatureCode, JobKind, QueueName, UniqueKey, UserId};
use crate::domain::time::Timestamp;

/// The longest arguments of a job, and the longest result, as JSON.
pub const MAX_ARGS_BYTES: usize = 16 * 1024;
/// How far ahead a job may be planned. A hold lasts seven days at most.
pub const MAX_DAYS_AHEAD: i64 = 6;
/// After so many days of waiting for a worker, a job fails.
pub const MAX_DAYS_WAITING: i64 = 7;
/// The longest text of an error that is kept.
const MAX_ERROR_BYTES: usize = 2048;
const MAX_CLASS_BYTES: usize = 64;
/// The head start of each priority over the one below.
const HEAD_START: TimeDelta = TimeDelta::seconds(60);
/// How far apart the jobs of a workspace rank that wait in a queue: whoever sends thousands at once delays the others by a
/// few.
const SPACING: TimeDelta = TimeDelta::milliseconds(100);

/// Where a job is. The last four are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Its hold is being placed.
    Holding,
    /// It waits for its time: that it was sent for, or that of the next attempt.
    Waiting,
    /// It waits for a worker.
    Ready,
    /// It waits until another job of its workspace ends: as many run as may run at once.
    Capped,
    /// A worker has it.
    Running,
    /// It is over, and its hold is being captured or released.
    Settling,
    Completed,
    Failed,
    Canceled,
    /// Its hold was refused.
    Rejected,
}

impl JobState {
    pub const ALL: [Self; 10] = [
        Self::Holding,
        Self::Waiting,
        Self::Ready,
        Self::Capped,
        Self::Running,
        Self::Settling,
        Self::Completed,
        Self::Failed,
        Self::Canceled,
        Self::Rejected,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Holding => "holding",
            Self::Waiting => "waiting",
            Self::Ready => "ready",
            Self::Capped => "capped",
            Self::Running => "running",
            Self::Settling => "settling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Rejected => "rejected",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled | Self::Rejected)
    }

    /// Whether no worker has it yet, and it is not over.
    #[must_use]
    pub const fn is_pending(self) -> bool {
        matches!(self, Self::Waiting | Self::Ready | Self::Capped)
    }
}

/// Who runs a kind of job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Runner {
    /// This server itself: a command.
    Server,
    /// This server itself: what a schedule is for. Neither a pause nor a cap of the queue holds it up.
    System,
    /// A worker of its own.
    Worker,
}

impl Runner {
    pub const ALL: [Self; 3] = [Self::Server, Self::System, Self::Worker];

    /// The commands and the schedules of this server are its own; every other kind is for workers.
    #[must_use]
    pub fn of(kind: &JobKind) -> Self {
        match kind.as_str().split_once('.') {
            Some(("billing", _)) => Self::Server,
            Some(("system", _)) => Self::System,
            _ => Self::Worker,
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::System => "system",
            Self::Worker => "worker",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|runner| runner.as_str() == text)
    }
}

/// What a metered job reserves when it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobHold {
    pub feature_code: FeatureCode,
    /// Either this or `quantity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credits: Option<PositiveCredits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantity: Option<Quantity>,
    /// What becomes of what the job costs beyond its hold.
    pub overrun: Overrun,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
}

/// What a metered job has really cost. All that is held, if it says neither `credits` nor `quantity`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActualUse {
    /// Zero if it was free: then the hold is released.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credits: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantity: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
}

/// Why an attempt has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobError {
    /// What kind of error it is, such as `timeout`.
    pub class: String,
    pub text: String,
}

impl JobError {
    /// The lease was over before the job was.
    pub const LOST: &'static str = "lost";
    /// It has waited for a worker for too long.
    pub const EXPIRED: &'static str = "expired";
    pub const CANCELED: &'static str = "canceled";
    /// A command got no answer.
    pub const UNAVAILABLE: &'static str = "unavailable";
    /// What it has cost could not be charged.
    pub const CAPTURE_REFUSED: &'static str = "capture_refused";

    /// Texts are cut, and have no control characters: PostgreSQL stores no NUL.
    #[must_use]
    pub fn new(class: &str, text: &str) -> Self {
        Self { class: bounded(class, MAX_CLASS_BYTES), text: bounded(text, MAX_ERROR_BYTES) }
    }
}

fn bounded(text: &str, most: usize) -> String {
    let plain = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    text[..text.floor_char_boundary(most)].chars().map(plain).collect()
}

/// How a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    Completed,
    Failed,
    Canceled,
}

impl JobOutcome {
    pub const ALL: [Self; 3] = [Self::Completed, Self::Failed, Self::Canceled];

    #[must_use]
    pub const fn state(self) -> JobState {
        match self {
            Self::Completed => JobState::Completed,
            Self::Failed => JobState::Failed,
            Self::Canceled => JobState::Canceled,
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.state().as_str()
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

/// The dead letter that a job tries again, and the act of the operator who wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayedLetter {
    pub dead_letter_id: Uuid,
    pub replay_id: Uuid,
}

/// Jobs that rank one behind the other: those of a queue, a workspace and a priority.
pub type Line = (QueueName, WorkspaceId, i16);

/// Work that waits in a queue, runs, or is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub job_id: JobId,
    pub queue: QueueName,
    pub kind: JobKind,
    pub runner: Runner,
    /// None of this server's own jobs.
    pub workspace_id: Option<WorkspaceId>,
    pub state: JobState,
    /// From 0 to 9. A higher one goes first.
    pub priority: i16,
    /// The place in the queue: the lowest goes first.
    pub rank: Timestamp,
    /// When it is ready: for the first time, or for the next attempt.
    pub run_at: Timestamp,
    /// The attempts that have begun and count.
    pub attempt: i32,
    pub max_attempts: i32,
    /// JSON.
    pub args: String,
    /// No other job of the workspace and the kind has it until this one is over.
    pub unique_key: Option<UniqueKey>,
    /// Of the request: the same key with another body is refused.
    pub fingerprint: [u8; 32],
    pub hold: Option<JobHold>,
    pub hold_id: Option<HoldId>,
    pub held_credits: Option<Credits>,
    /// The price at which a quantity is captured.
    pub unit_price: Option<Credits>,
    pub hold_expires_at: Option<Timestamp>,
    pub outcome: Option<JobOutcome>,
    /// JSON.
    pub result: Option<String>,
    pub actual: Option<ActualUse>,
    /// The lease of the last attempt, if its worker has completed or failed it: the same sent again has the same answer.
    pub ended_by: Option<LeaseId>,
    pub cancel_requested_at: Option<Timestamp>,
    /// Of the last attempt that has failed.
    pub error: Option<JobError>,
    pub replays: Option<ReplayedLetter>,
    pub actor: String,
    pub correlation_id: String,
    pub causation_id: Option<Uuid>,
    pub traceparent: Option<String>,
    pub created_at: Timestamp,
    /// Since when it is in its state, or its row as it is.
    pub changed_at: Timestamp,
}

/// A job that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedJob {
    pub job: Job,
    pub finished_at: Timestamp,
    /// From then on it may be deleted.
    pub keep_until: Timestamp,
    pub captured: Option<Credits>,
}

impl Job {
    #[must_use]
    pub const fn is_metered(&self) -> bool {
        self.hold.is_some()
    }

    /// Whether it is a command whose last attempt may have taken effect. Its next attempt has the same idempotency key, and finds
    /// out; so it does not end before one has an answer, neither as failed nor as canceled.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        let is_unknown = |error: &JobError| [JobError::LOST, JobError::UNAVAILABLE].contains(&error.class.as_str());
        self.runner == Runner::Server && self.error.as_ref().is_some_and(is_unknown)
    }

    /// Its place in the queue behind the last job of its workspace that has the same priority.
    #[must_use]
    pub fn rank_behind(&self, last: Option<Timestamp>) -> Timestamp {
        let own = self.run_at.minus(HEAD_START * i32::from(self.priority));
        last.map_or(own, |last| own.max(last.plus(SPACING)))
    }

    #[must_use]
    pub fn line(&self) -> Option<Line> {
        Some((self.queue.clone(), self.workspace_id?, self.priority))
    }

    /// The letter of a job that has failed for the last time. A job that tries a letter again keeps that letter.
    #[must_use]
    pub(super) fn letter(&self, now: Timestamp) -> DeadLetter {
        let Self { job_id, queue, workspace_id, kind, error, replays, .. } = self;
        let work = FailedWork::Job(FailedJob { queue: queue.clone(), workspace_id: *workspace_id, job_id: *job_id });
        let (class, text) = error.as_ref().map_or(("", ""), |JobError { class, text }| (class, text));
        let id = replays.map_or(job_id.0, |replays| replays.dead_letter_id);
        let letter = DeadLetter::new(id, work, kind.as_str(), [class, text], now);
        DeadLetter { attempts: self.attempt.max(1), replay_id: replays.map(|replays| replays.replay_id), ..letter }
    }

    /// Like [`Self::pending`], behind the last of its line, which it is then.
    #[must_use]
    pub(super) fn pending_behind(self, last: &mut HashMap<Line, Timestamp>, now: Timestamp) -> Self {
        let line = self.line();
        let job = self.pending(line.as_ref().and_then(|line| last.get(line).copied()), now);
        if let Some(line) = line.filter(|_| job.state == JobState::Ready && job.attempt == 0) {
            last.insert(line, job.rank);
        }
        job
    }

    /// Waiting, or ready if its time has come. A job that has run before keeps its place.
    #[must_use]
    pub(super) fn pending(self, last: Option<Timestamp>, now: Timestamp) -> Self {
        if self.run_at > now {
            return Self { state: JobState::Waiting, ..self };
        }
        let rank = if self.attempt > 0 { self.rank } else { self.rank_behind(last) };
        Self { state: JobState::Ready, rank, ..self }
    }
}
