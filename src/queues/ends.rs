//! The ends of attempts: what workers say of their jobs.

use std::collections::HashMap;

use super::handle::{Inner, QueueError, Queues};
use super::job_end::{EndAnswer, EndOfJob, JobEnd};
use crate::domain::ids::JobId;
use crate::domain::jobs::{FoundJobs, Job, JobChanges, JobState};
use crate::store::jobs::JobSelection;

impl Queues {
    /// Ends jobs, each at most once. The answers are in their order.
    pub async fn end(&self, ends: Vec<EndOfJob>) -> Result<Vec<EndAnswer>, QueueError> {
        self.0.end(ends).await
    }

    /// Ends jobs that nobody wants any more, or asks their workers to. A command that may have taken effect is ended only if that
    /// does not matter. Returns each as it is then.
    pub async fn cancel(&self, ids: Vec<JobId>, even_in_doubt: bool) -> Result<Vec<Job>, QueueError> {
        self.0.cancel(ids, even_in_doubt).await
    }
}

impl Inner {
    pub(super) async fn end(&self, ends: Vec<EndOfJob>) -> Result<Vec<EndAnswer>, QueueError> {
        let which = JobSelection::ById(ends.iter().map(|end| end.job_id).collect());
        let (mut answers, mut settling) = (Vec::new(), Vec::new());
        self.change(&which, &mut |found| {
            let mut changes = JobChanges::default();
            answers = ends.iter().map(|end| self.end_one(end, &found, &mut changes)).collect();
            changes.fill_up(&found, self.parts.clock.now());
            let unsettled = changes.updated.iter().chain(&found.jobs).filter(|job| job.state == JobState::Settling);
            settling = unsettled.cloned().collect();
            changes
        })
        .await?;
        // What cannot be settled now is done by the promoter.
        let settled = self.settle(settling).await.unwrap_or_default();
        let ended = |(end, answer): (&EndOfJob, EndAnswer)| match (&answer, settled.get(&end.job_id)) {
            (EndAnswer::Ended(JobState::Settling), Some(state)) => EndAnswer::Ended(*state),
            _ => answer,
        };
        Ok(ends.iter().zip(answers).map(ended).collect())
    }

    fn end_one(&self, end: &EndOfJob, found: &FoundJobs, changes: &mut JobChanges) -> EndAnswer {
        let EndOfJob { job_id, lease_id, worker_id, end } = end;
        let now = self.parts.clock.now();
        let leased = found.leased(*job_id, *lease_id);
        let leased = leased.filter(|(_, lease)| worker_id.is_none_or(|worker_id| worker_id == lease.worker_id));
        let Some((job, lease)) = leased else {
            let ended = found.ended_by(*job_id, *lease_id);
            return ended.map_or(EndAnswer::LeaseLost, |job| EndAnswer::Ended(job.state));
        };
        let Some(settings) = found.settings(&job.queue) else { return EndAnswer::LeaseLost };
        match end.clone() {
            JobEnd::Complete(completion) => {
                if let Err(refused) = completion.check(job) {
                    return EndAnswer::Refused(refused);
                }
                changes.complete(job.clone(), lease, completion, settings, now);
            }
            JobEnd::Fail(failure) => changes.fail(job.clone(), lease, failure, settings, self.share(), now),
            JobEnd::Release => changes.release(job.clone(), settings, now),
        }
        let after = changes.state_of(*job_id).unwrap_or(job.state);
        EndAnswer::Ended(after)
    }

    async fn cancel(&self, ids: Vec<JobId>, even_in_doubt: bool) -> Result<Vec<Job>, QueueError> {
        let which = JobSelection::ById(ids);
        let (mut after, mut settling) = (Vec::new(), Vec::new());
        self.change(&which, &mut |found| {
            let (mut changes, now) = (JobChanges::default(), self.parts.clock.now());
            for job in &found.jobs {
                let Some(settings) = found.settings(&job.queue) else { continue };
                changes.cancel(job.clone(), even_in_doubt, settings, now);
            }
            let over = changes.finished.iter().chain(&found.finished).map(|finished| &finished.job);
            after = found.jobs.iter().chain(&changes.updated).chain(over).cloned().collect();
            settling = changes.updated.iter().filter(|job| job.state == JobState::Settling).cloned().collect();
            changes
        })
        .await?;
        // The promoter does it otherwise.
        let _ = self.settle(settling).await;
        let by_id: HashMap<_, _> = after.into_iter().map(|job| (job.job_id, job)).collect();
        Ok(by_id.into_values().collect())
    }
}
