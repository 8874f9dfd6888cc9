//! Leases: which worker runs a job, until when, and what became of its attempts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::job::{Job, JobError};
use crate::domain::ids::{JobId, LeaseId, WorkerId, WorkspaceId};
use crate::domain::text::QueueName;
use crate::domain::time::Timestamp;

/// The longest text that a worker tells of a job, as JSON.
pub const MAX_PROGRESS_BYTES: usize = 1024;

/// A job that a worker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobLease {
    pub job_id: JobId,
    pub lease_id: LeaseId,
    pub worker_id: WorkerId,
    pub queue: QueueName,
    pub workspace_id: Option<WorkspaceId>,
    pub started_at: Timestamp,
    /// Each heartbeat moves it, at most up to the deadline.
    pub leased_until: Timestamp,
    /// When the attempt must be over.
    pub deadline: Timestamp,
    /// What the worker has told last, as JSON.
    pub progress: Option<String>,
}

/// How an attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    Completed,
    Failed,
    Lost,
}

impl AttemptOutcome {
    pub const ALL: [Self; 3] = [Self::Completed, Self::Failed, Self::Lost];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Lost => "lost",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

/// An attempt that is over. Those that were given back do not count, and are not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobAttempt {
    pub job_id: JobId,
    pub attempt: i32,
    pub worker_id: WorkerId,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    pub outcome: AttemptOutcome,
    pub error: Option<JobError>,
}

impl JobAttempt {
    pub(super) fn new(
        job: &Job,
        lease: &JobLease,
        outcome: AttemptOutcome,
        error: Option<JobError>,
        now: Timestamp,
    ) -> Self {
        let JobLease { worker_id, started_at, .. } = *lease;
        Self { job_id: job.job_id, attempt: job.attempt, worker_id, started_at, ended_at: now, outcome, error }
    }
}
