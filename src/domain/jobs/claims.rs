//! Claims: workers get jobs, the lowest rank first.

use std::collections::{HashMap, HashSet};

use super::changes::JobChanges;
use super::found::{FoundJobs, Running};
use super::job::{Job, JobState, Line};
use super::lease::JobLease;
use super::queue::QueueSettings;
use crate::domain::ids::{LeaseId, WorkerId};
use crate::domain::time::Timestamp;

/// A place for one job: who gets it, and under which lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub worker_id: WorkerId,
    pub lease_id: LeaseId,
}

impl JobChanges {
    /// Gives ready jobs to the seats, in their order. A job whose workspace has as many running as it may is set aside.
    #[must_use]
    pub fn claim(
        jobs: Vec<Job>,
        seats: &[Seat],
        settings: &QueueSettings,
        mut running: Running,
        now: Timestamp,
    ) -> Self {
        let mut changes = Self::default();
        let mut seats = seats.iter();
        if settings.is_paused {
            return changes;
        }
        for job in jobs {
            if running.room_of(job.workspace_id, settings) == 0 {
                changes.update(Job { state: JobState::Capped, ..job }, now);
                continue;
            }
            if running.room(settings) == 0 {
                break;
            }
            let Some(seat) = seats.next() else { break };
            *running.by_workspace.entry(job.workspace_id).or_default() += 1;
            let deadline = now.plus(settings.timeout());
            changes.leases.push(JobLease {
                job_id: job.job_id,
                lease_id: seat.lease_id,
                worker_id: seat.worker_id,
                queue: job.queue.clone(),
                workspace_id: job.workspace_id,
                started_at: now,
                leased_until: now.plus(settings.lease()).min(deadline),
                deadline,
                progress: None,
            });
            changes.update(
                Job { state: JobState::Running, attempt: job.attempt.saturating_add(1), ended_by: None, ..job },
                now,
            );
        }
        changes
    }

    /// Makes ready what was set aside, as far as the workspaces may run more jobs now that these leases have ended.
    pub fn fill_up(&mut self, found: &FoundJobs, now: Timestamp) {
        let mut running = found.running.clone();
        let ended: HashSet<_> = self.ended_leases.iter().collect();
        for lease in found.leases.values().filter(|lease| ended.contains(&lease.job_id)) {
            let of_queue = running.entry(lease.queue.clone()).or_default();
            *of_queue.by_workspace.entry(lease.workspace_id).or_default() -= 1;
        }
        for job in &found.capped {
            let Some(queue) = found.queues.get(&job.queue) else { continue };
            let of_queue = running.entry(job.queue.clone()).or_default();
            if of_queue.room_of(job.workspace_id, &queue.settings) > 0 {
                *of_queue.by_workspace.entry(job.workspace_id).or_default() += 1;
                self.update(Job { state: JobState::Ready, ..job.clone() }, now);
            }
        }
    }

    /// Makes ready again what was set aside long ago: a claim sets it aside again if it must.
    #[must_use]
    pub fn bring_back(jobs: Vec<Job>, now: Timestamp) -> Self {
        let mut changes = Self::default();
        for job in jobs {
            changes.update(Job { state: JobState::Ready, ..job }, now);
        }
        changes
    }

    /// Makes ready what waits for its time. `last` has the last rank of each line, and is kept up to date.
    #[must_use]
    pub fn promote(jobs: Vec<Job>, last: &mut HashMap<Line, Timestamp>, now: Timestamp) -> Self {
        let mut changes = Self::default();
        for job in jobs {
            changes.update(job.pending_behind(last, now), now);
        }
        changes
    }
}
