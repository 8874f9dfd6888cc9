//! The submitter: stores jobs that are sent at the same time in one transaction, and places their holds.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use tokio::sync::{OwnedMutexGuard, Semaphore, mpsc};

use super::commands::HoldAnswer;
use super::handle::{Accepted, Inner, QueueError, Sent};
use super::settler::Placed;
use crate::domain::ids::JobId;
use crate::domain::jobs::{JobChanges, JobState, Submission, Submitted};
use crate::store::jobs::{JobSelection, SentJobs};

/// How many jobs are stored together.
const MAX_BATCH: usize = 128;
/// How many batches are on their way at once: while one waits for its holds, the next one is stored.
const MAX_BATCHES: usize = 4;

pub(super) async fn run(inner: Weak<Inner>, mut received: OwnedMutexGuard<mpsc::Receiver<Sent>>) {
    let batches = Arc::new(Semaphore::new(MAX_BATCHES));
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while received.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let (Some(inner), Ok(permit)) = (inner.upgrade(), Arc::clone(&batches).acquire_owned().await) else { return };
        let batch = std::mem::take(&mut batch);
        tokio::spawn(async move {
            let (submissions, replies): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|sent| (sent.submission, sent.reply)).unzip();
            let answers = inner.take(submissions).await;
            for (place, reply) in replies.into_iter().enumerate() {
                let answer = match &answers {
                    Ok(answers) => answers.get(place).cloned().unwrap_or(Err(QueueError::Failed)),
                    Err(error) => Err(*error),
                };
                // Who has gone away asks again with the same key.
                let _ = reply.send(answer);
            }
            drop(permit);
        });
    }
}

impl Inner {
    /// Stores jobs, places their holds, and answers each.
    async fn take(&self, submissions: Vec<Submission>) -> Result<Vec<Result<Accepted, QueueError>>, QueueError> {
        let answers = self.store_new(submissions).await?;
        // A hold that was refused before is refused again, with the same answer.
        let needs_hold = |answer: &Submitted| match answer {
            Submitted::New(job) => (job.state == JobState::Holding).then(|| job.clone()),
            Submitted::Existing(job) => {
                matches!(job.state, JobState::Holding | JobState::Rejected).then(|| job.clone())
            }
            Submitted::KeyReused | Submitted::NoQueue => None,
        };
        let holding: HashMap<_, _> = answers.iter().filter_map(needs_hold).map(|job| (job.job_id, job)).collect();
        let mut held = self.place_holds(holding.into_values().collect()).await?;
        Ok(answers.into_iter().map(|answer| accepted(answer, &mut held)).collect())
    }

    async fn store_new(&self, submissions: Vec<Submission>) -> Result<Vec<Submitted>, QueueError> {
        let now = self.parts.clock.now();
        let settings = Arc::clone(&self.settings.borrow());
        let lines: BTreeSet<_> = submissions.iter().filter_map(Submission::line).collect();
        let which = JobSelection::Sent(SentJobs {
            ids: submissions.iter().map(|sent| sent.job_id).collect::<BTreeSet<_>>().into_iter().collect(),
            unique_keys: submissions
                .iter()
                .filter_map(Submission::unique)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            lines: lines.into_iter().collect(),
        });
        let mut answers = Vec::new();
        self.change(&which, &mut |found| {
            let (changes, decided) = JobChanges::submit(submissions.clone(), &found, &settings, now);
            answers = decided;
            changes
        })
        .await?;
        Ok(answers)
    }
}

fn accepted(answer: Submitted, held: &mut HashMap<JobId, Result<Placed, QueueError>>) -> Result<Accepted, QueueError> {
    let job = match answer {
        Submitted::New(job) | Submitted::Existing(job) => job,
        Submitted::KeyReused => return Ok(Accepted::KeyReused),
        Submitted::NoQueue => return Ok(Accepted::NoQueue),
    };
    match held.get(&job.job_id).cloned() {
        None => Ok(Accepted::Job(Box::new(job))),
        Some(Err(error)) => Err(error),
        Some(Ok(Placed { job: after, answer })) => Ok(match answer {
            HoldAnswer::Placed(_) => Accepted::Job(Box::new(after.unwrap_or(job))),
            HoldAnswer::Refused(answer, _) | HoldAnswer::RefusedForNow(answer) => Accepted::Refused(answer),
            // The first one who sent it was faster.
            HoldAnswer::Over => match after.filter(|job| job.state != JobState::Holding) {
                Some(job) => Accepted::Job(Box::new(job)),
                None => Accepted::Over,
            },
        }),
    }
}
