//! The settler: places the holds of metered jobs, and captures or releases them when the jobs are over.
//!
//! The engine's answer and the job's row are two transactions. After a crash between them, the command is sent again with the
//! same key, gets the same answer, and the row follows.

use std::collections::{BTreeSet, HashMap, HashSet};

use futures::future::join_all;

use super::commands::{self, HoldAnswer};
use super::handle::{Inner, QueueError};
use super::measure::Measured;
use crate::domain::commands::Envelope;
use crate::domain::ids::JobId;
use crate::domain::jobs::{FoundJobs, Job, JobChanges, JobError, JobState, Settlement};
use crate::domain::time::Timestamp;
use crate::engine::{EngineError, Rendered, Reply};
use crate::store::StoreError;
use crate::store::jobs::{DecideJobs, JobSelection};

/// A capture, and the release if it was refused.
const ROUNDS: usize = 2;
/// How often a change is tried again that has met another one.
const MAX_CONFLICTS: usize = 3;

/// What became of the hold of a job, and the job after it.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) job: Option<Job>,
    pub(super) answer: HoldAnswer,
}

type Placements = HashMap<JobId, Result<Placed, QueueError>>;

impl From<EngineError> for QueueError {
    /// The job is stored, and its step is done later.
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Overloaded
            | EngineError::WaitedTooLong
            | EngineError::OverShare
            | EngineError::Stopping
            | EngineError::Unavailable => Self::Unavailable,
            EngineError::Failed => Self::Failed,
        }
    }
}

impl Inner {
    /// Changes jobs, also if others change them at the same time.
    pub(super) async fn change(&self, which: &JobSelection, decide: DecideJobs<'_>) -> Result<(), QueueError> {
        if matches!(which, JobSelection::ById(ids) if ids.is_empty()) {
            return Ok(());
        }
        let (mut conflicts, mut ready, mut measured) = (0, BTreeSet::new(), Measured::default());
        let mut decide = |found: FoundJobs| {
            let changes = decide(found);
            measured = Measured::of(&changes);
            let all = changes.inserted.iter().chain(&changes.updated);
            ready = all.filter(|job| job.state == JobState::Ready).map(|job| job.queue.clone()).collect();
            changes
        };
        loop {
            match self.parts.jobs.change_jobs(which, &mut decide).await {
                Ok(()) => {
                    measured.record();
                    self.ready.tell(ready);
                    return Ok(());
                }
                Err(StoreError::Conflict(_)) if conflicts < MAX_CONFLICTS => conflicts += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Places the holds of jobs, and writes what became of them.
    pub(super) async fn place_holds(&self, jobs: Vec<Job>) -> Result<Placements, QueueError> {
        let placing = jobs.iter().map(|job| async { (job.job_id, self.place_hold(job).await) });
        let mut placements = Placements::new();
        for (job_id, answer) in join_all(placing).await {
            let placed = answer.map(|answer| Placed { job: None, answer });
            placements.insert(job_id, placed.map_err(QueueError::from));
        }
        let placed = placements.iter().filter(|(_, placed)| placed.is_ok());
        let which = JobSelection::ById(placed.map(|(job_id, _)| *job_id).collect());
        let mut after: Vec<Job> = Vec::new();
        self.change(&which, &mut |found| {
            let changes = self.write_holds(&jobs, &found, &placements);
            let over = found.finished.iter().map(|finished| &finished.job);
            after = found.jobs.iter().chain(&changes.updated).chain(&changes.inserted).chain(over).cloned().collect();
            changes
        })
        .await?;
        for job in after {
            if let Some(Ok(placed)) = placements.get_mut(&job.job_id) {
                placed.job = Some(job);
            }
        }
        Ok(placements)
    }

    async fn place_hold(&self, job: &Job) -> Result<HoldAnswer, EngineError> {
        let now = self.parts.clock.now();
        let envelope = commands::place_hold(job, self.parts.clock.new_command_id(), now).ok_or(EngineError::Failed)?;
        let workspace_id = envelope.workspace_id;
        match self.parts.engine.decide(envelope).await? {
            Reply::Decided { answer, rejection: Some(rejection) } if !rejection.is_recorded() => {
                Ok(HoldAnswer::RefusedForNow(answer))
            }
            Reply::Decided { answer, .. } => commands::hold_answer(answer),
            Reply::Replayed(answer) => {
                let answer = commands::hold_answer(answer)?;
                let HoldAnswer::Placed(placed) = &answer else { return Ok(answer) };
                let found = self.parts.store.hold(workspace_id, placed.hold_id).await;
                let found = found.map_err(|_| EngineError::Unavailable)?;
                Ok(if found.is_some_and(|listed| listed.hold.is_open()) { answer } else { HoldAnswer::Over })
            }
            Reply::KeyReused | Reply::Nothing => Err(EngineError::Failed),
        }
    }

    fn write_holds(&self, jobs: &[Job], found: &FoundJobs, placements: &Placements) -> JobChanges {
        let (mut changes, now) = (JobChanges::default(), self.parts.clock.now());
        let mut last_ranks = found.last_ranks.clone();
        for job in found.jobs.iter().filter(|job| job.state == JobState::Holding).cloned() {
            let Some(Ok(Placed { answer, .. })) = placements.get(&job.job_id) else { continue };
            let Some(settings) = found.settings(&job.queue) else { continue };
            match answer {
                HoldAnswer::Placed(held) => changes.held(job, *held, &mut last_ranks, settings, now),
                HoldAnswer::Refused(_, error) => changes.reject(job, error.clone(), settings, now),
                HoldAnswer::RefusedForNow(answer) => changes.forget(job, commands::error_of(answer), settings, now),
                HoldAnswer::Over => {
                    let error = JobError::new(JobError::EXPIRED, "the hold of the job is over");
                    changes.forget(job, error, settings, now);
                }
            }
        }
        changes.inserted = self.forgotten(jobs, found, placements, now);
        changes
    }

    /// Jobs that somebody else has forgotten, because their holds were refused for the moment: here they are placed.
    fn forgotten(&self, jobs: &[Job], found: &FoundJobs, placements: &Placements, now: Timestamp) -> Vec<Job> {
        let finished = found.finished.iter().map(|finished| &finished.job);
        let known: HashSet<_> = found.jobs.iter().chain(finished).map(|job| job.job_id).collect();
        let (mut revived, settings) = (JobChanges::default(), self.settings.borrow().clone());
        for job in jobs.iter().filter(|job| job.state == JobState::Holding && !known.contains(&job.job_id)) {
            let Some(Ok(Placed { answer: HoldAnswer::Placed(held), .. })) = placements.get(&job.job_id) else {
                continue;
            };
            let Some(settings) = settings.get(&job.queue) else { continue };
            revived.held(job.clone(), *held, &mut HashMap::new(), settings, now);
        }
        revived.updated
    }

    /// Captures or releases the holds of jobs that are over. Returns the states of those that have left. What cannot be done now
    /// is done later.
    pub(super) async fn settle(&self, jobs: Vec<Job>) -> Result<HashMap<JobId, JobState>, QueueError> {
        let (mut left, mut ended) = (jobs, HashMap::new());
        for _ in 0..ROUNDS {
            let changes = self.settle_once(left).await?;
            ended.extend(changes.finished.into_iter().map(|finished| (finished.job.job_id, finished.job.state)));
            left = changes.updated;
            if left.is_empty() {
                break;
            }
        }
        Ok(ended)
    }

    /// The jobs whose cost was refused are updated: their holds are to be released.
    async fn settle_once(&self, jobs: Vec<Job>) -> Result<JobChanges, QueueError> {
        let settling = jobs.iter().map(|job| async { (job.job_id, (job.outcome, self.end_hold(job).await)) });
        let settled: HashMap<_, _> = join_all(settling).await.into_iter().collect();
        let which = JobSelection::ById(settled.keys().copied().collect());
        let mut written = JobChanges::default();
        self.change(&which, &mut |found| {
            let (mut changes, now) = (JobChanges::default(), self.parts.clock.now());
            for job in found.jobs.iter().filter(|job| job.state == JobState::Settling).cloned() {
                let Some((outcome, Ok(settlement))) = settled.get(&job.job_id) else { continue };
                let Some(settings) = found.settings(&job.queue).filter(|_| *outcome == job.outcome) else { continue };
                changes.settle(job, settlement.clone(), settings, now);
            }
            written.clone_from(&changes);
            changes
        })
        .await?;
        Ok(written)
    }

    async fn end_hold(&self, job: &Job) -> Result<Settlement, EngineError> {
        let (message_id, now) = (self.parts.clock.new_command_id(), self.parts.clock.now());
        let envelope = commands::end_hold(job, message_id, now).ok_or(EngineError::Failed)?;
        let command = envelope.command.clone();
        let answer = self.answer(envelope).await?;
        commands::settlement(&command, &answer)
    }

    async fn answer(&self, envelope: Envelope) -> Result<Rendered, EngineError> {
        match self.parts.engine.decide(envelope).await? {
            // It may be accepted another time.
            Reply::Decided { rejection: Some(rejection), .. } if !rejection.is_recorded() => {
                Err(EngineError::Unavailable)
            }
            Reply::Decided { answer, .. } | Reply::Replayed(answer) => Ok(answer),
            Reply::KeyReused | Reply::Nothing => Err(EngineError::Failed),
        }
    }

    /// Lets the holds of jobs last longer that are not over.
    pub(super) async fn extend_holds(&self, jobs: Vec<Job>) -> Result<(), QueueError> {
        let extending = jobs.iter().map(|job| async {
            let (message_id, now) = (self.parts.clock.new_command_id(), self.parts.clock.now());
            let envelope = commands::extend_hold(job, message_id, now)?;
            let answer = self.answer(envelope).await;
            // What is not known now is asked again.
            answer.ok().map(|answer| (job.job_id, commands::expires_at(&answer)))
        });
        let extended: HashMap<_, _> = join_all(extending).await.into_iter().flatten().collect();
        let which = JobSelection::ById(extended.keys().copied().collect());
        self.change(&which, &mut |found| {
            let (mut changes, now) = (JobChanges::default(), self.parts.clock.now());
            for job in found.jobs.iter().filter(|job| job.hold_expires_at.is_some()).cloned() {
                if let Some(expires_at) = extended.get(&job.job_id) {
                    changes.extend(job, *expires_at, now);
                }
            }
            changes
        })
        .await
    }
}
