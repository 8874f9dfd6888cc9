//! What a change of jobs is decided on: rows that the store has locked and read.

use std::collections::{BTreeMap, HashMap};

use super::job::{FinishedJob, Job, JobState, Line};
use super::lease::JobLease;
use super::queue::{Queue, QueueSettings};
use super::schedule::Schedule;
use crate::domain::ids::{JobId, LeaseId, WorkspaceId};
use crate::domain::text::QueueName;
use crate::domain::time::Timestamp;

/// The rows that were asked for. Those that do not exist are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundJobs {
    /// Locked, in the order in which they were asked for.
    pub jobs: Vec<Job>,
    pub leases: HashMap<JobId, JobLease>,
    /// Jobs that are over.
    pub finished: Vec<FinishedJob>,
    pub queues: BTreeMap<QueueName, Queue>,
    /// What runs in the queues that have a cap.
    pub running: BTreeMap<QueueName, Running>,
    /// The next jobs that were set aside, of the workspaces of the jobs.
    pub capped: Vec<Job>,
    /// Schedules that are due.
    pub schedules: Vec<Schedule>,
    /// The last rank of each line.
    pub last_ranks: HashMap<Line, Timestamp>,
}

impl FoundJobs {
    /// A running job and its lease, if that is the one.
    #[must_use]
    pub fn leased(&self, job_id: JobId, lease_id: LeaseId) -> Option<(&Job, &JobLease)> {
        let lease = self.leases.get(&job_id).filter(|lease| lease.lease_id == lease_id)?;
        let job = self.jobs.iter().find(|job| job.job_id == job_id && job.state == JobState::Running)?;
        Some((job, lease))
    }

    /// The job that the worker of that lease has ended before, as it is now.
    #[must_use]
    pub fn ended_by(&self, job_id: JobId, lease_id: LeaseId) -> Option<&Job> {
        let mut all = self.jobs.iter().chain(self.finished.iter().map(|finished| &finished.job));
        all.find(|job| job.job_id == job_id && job.ended_by == Some(lease_id))
    }

    #[must_use]
    pub fn settings(&self, queue: &QueueName) -> Option<&QueueSettings> {
        self.queues.get(queue).map(|queue| &queue.settings)
    }
}

/// The jobs of a queue that run. It is only counted where a queue has a cap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    pub by_workspace: HashMap<Option<WorkspaceId>, i64>,
}

impl Running {
    /// Without those of schedules, which are of no workspace.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.by_workspace.iter().filter(|(workspace_id, _)| workspace_id.is_some()).map(|(_, count)| count).sum()
    }

    /// How many more jobs of the queue may run.
    #[must_use]
    pub fn room(&self, settings: &QueueSettings) -> i64 {
        let room = settings.max_running.map(|most| i64::from(most).saturating_sub(self.total()).max(0));
        room.unwrap_or(i64::MAX)
    }

    /// How many more jobs of the workspace may run.
    #[must_use]
    pub fn room_of(&self, workspace_id: Option<WorkspaceId>, settings: &QueueSettings) -> i64 {
        let Some(most) = settings.max_running_per_workspace else { return i64::MAX };
        i64::from(most).saturating_sub(self.by_workspace.get(&workspace_id).copied().unwrap_or_default()).max(0)
    }
}
