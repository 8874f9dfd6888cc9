//! What a worker says of a job that it ends, and what it is answered.

use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::jobs::{Completion, CompletionRefused, Failure, JobState};

/// A worker ends one of its jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndOfJob {
    pub job_id: JobId,
    pub lease_id: LeaseId,
    /// Who says so, if it is told.
    pub worker_id: Option<WorkerId>,
    pub end: JobEnd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEnd {
    Complete(Completion),
    Fail(Failure),
    /// It was not begun, or can be begun again: another worker may have it.
    Release,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndAnswer {
    /// The job's state now. The same for a completion or a failure that is sent again, until another worker has the job.
    Ended(JobState),
    /// The worker does not have the job any more.
    LeaseLost,
    /// The worker still has the job, and can end it otherwise.
    Refused(CompletionRefused),
}
