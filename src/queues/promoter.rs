//! The promoter: what happens to jobs because time has passed, or because a server was killed.

use std::collections::{BTreeSet, HashMap};
use std::sync::PoisonError;
use std::time::Duration;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::handle::{Inner, QueueError, Queues};
use super::measure;
use crate::domain::ids::JobId;
use crate::domain::jobs::{JobChanges, JobState, Runner, SystemSchedule};
use crate::domain::text::{JobKind, QueueName};
use crate::store::jobs::{JobSelection, QueueLoad};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// With every so many looks, the metrics are told what there is to do.
const REPORT_EVERY: u32 = 10;
/// How many jobs one transaction changes.
const MAX_JOBS: u32 = 500;
/// How many of these one look has.
const MAX_ROUNDS: usize = 10;
/// After so long, a job that was set aside is looked at again.
const SET_ASIDE_FOR: TimeDelta = TimeDelta::seconds(60);
/// After so long, a hold that is being placed, captured or released is somebody else's who was killed.
const UNSETTLED_FOR: TimeDelta = TimeDelta::seconds(5);
/// After so long without a heartbeat, a worker is gone.
const GONE_AFTER: TimeDelta = TimeDelta::seconds(60);
/// How many jobs at the front of a queue are looked at whether they have waited for too long, and how often. Workers pass them
/// over meanwhile.
const FRONT: u32 = 32;
const EXPIRY_INTERVAL: Duration = Duration::from_mins(1);
/// A hold that expires earlier than this is extended: so long, no server need run.
const HOLD_RESERVE: TimeDelta = TimeDelta::hours(12);

/// How many jobs one look has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promoted {
    pub ready: usize,
    pub lost: usize,
    pub settled: usize,
    pub extended: usize,
}

impl Queues {
    /// Looks after the jobs until `stopping` is cancelled.
    pub async fn run(self, stopping: CancellationToken) {
        let promoting = async {
            let mut looked_at = tokio::time::Instant::now();
            for look in 0_u32.. {
                if look % REPORT_EVERY == 0
                    && let Err(error) = self.report().await
                {
                    tracing::warn!(%error, "the load of the queues could not be read; trying again");
                }
                let has_waited = looked_at.elapsed() >= EXPIRY_INTERVAL;
                let promoted = self.promote().await;
                let expired = if has_waited { self.expire().await } else { Ok(0) };
                if let Err(error) = promoted.and(expired) {
                    tracing::warn!(%error, "jobs could not be looked after; trying again");
                }
                if has_waited {
                    looked_at = tokio::time::Instant::now();
                }
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            () = stopping.cancelled() => {}
            () = promoting => {}
        }
    }

    /// Tells the metrics what each queue has to do.
    async fn report(&self) -> Result<(), QueueError> {
        let parts = &self.0.parts;
        measure::report(parts.jobs.queue_loads(QueueLoad::MAX_COUNTED).await?, parts.clock.now());
        Ok(())
    }

    /// Does all that is due now. If one part of it cannot be done, the others still are.
    pub async fn promote(&self) -> Result<Promoted, QueueError> {
        let inner = &self.0;
        let fired = inner.fire_schedules().await;
        let (ready, lost) = (inner.promote_due().await, inner.end_lost().await);
        let (settled, extended) = (inner.settle_left().await, inner.extend_ending().await);
        inner.parts.jobs.retire_workers(inner.parts.clock.now().minus(GONE_AFTER)).await?;
        fired?;
        Ok(Promoted { ready: ready?, lost: lost?, settled: settled?, extended: extended? })
    }

    /// Ends the jobs that have waited for a worker for too long, and brings back what was set aside long ago. Returns how many
    /// have ended.
    pub async fn expire(&self) -> Result<usize, QueueError> {
        self.0.bring_back().await?;
        let mut all = 0;
        for queue in self.settings().keys() {
            for runner in Runner::ALL {
                let which = JobSelection::Ready { queue: queue.clone(), runner, limit: FRONT };
                loop {
                    let expired = self.0.expire_front(&which).await?;
                    all += expired;
                    if expired == 0 {
                        break;
                    }
                }
            }
        }
        Ok(all)
    }
}

impl Inner {
    async fn fire_schedules(&self) -> Result<(), QueueError> {
        let now = self.parts.clock.now();
        let queue_of = |kind: &JobKind| self.parts.routes.of(kind.as_str()).queue.clone();
        let queues: BTreeSet<QueueName> =
            SystemSchedule::ALL.iter().map(|schedule| queue_of(&schedule.kind())).collect();
        let which = JobSelection::Schedules { now, queues: queues.into_iter().collect() };
        let new_id = || JobId(self.parts.clock.new_id());
        self.change(&which, &mut |found| JobChanges::fire(found, queue_of, new_id, now)).await
    }

    async fn promote_due(&self) -> Result<usize, QueueError> {
        let mut all = 0;
        // The rest comes with the next look, after what else is due.
        for _ in 0..MAX_ROUNDS {
            let (now, mut promoted) = (self.parts.clock.now(), 0);
            self.change(&JobSelection::Due { now, limit: MAX_JOBS }, &mut |mut found| {
                promoted = found.jobs.len();
                JobChanges::promote(found.jobs, &mut found.last_ranks, now)
            })
            .await?;
            all += promoted;
            if promoted < usize::try_from(MAX_JOBS).unwrap_or(usize::MAX) {
                break;
            }
        }
        Ok(all)
    }

    /// Takes jobs from workers that were not heard of. While the server or its database was away, none could be heard: so each
    /// worker has half a lease to be heard again, in which it sends a heartbeat if it lives.
    async fn end_lost(&self) -> Result<usize, QueueError> {
        let (now, mut lost, mut settling) = (self.parts.clock.now(), 0, Vec::new());
        let since = *self.listening_since.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = self
            .change(&JobSelection::Lost { now, limit: MAX_JOBS }, &mut |found| {
                let mut changes = JobChanges::default();
                for job in found.jobs.iter().filter(|job| job.state == JobState::Running) {
                    let (Some(lease), Some(settings)) = (found.leases.get(&job.job_id), found.settings(&job.queue))
                    else {
                        continue;
                    };
                    // A heartbeat may have come meanwhile.
                    if lease.leased_until <= now && since.plus(settings.lease() / 2) <= now {
                        changes.lose(job.clone(), lease, settings, self.share(), now);
                    }
                }
                lost = changes.ended_leases.len();
                changes.fill_up(&found, now);
                settling = changes.updated.iter().filter(|job| job.state == JobState::Settling).cloned().collect();
                changes
            })
            .await;
        if changed.is_err() {
            *self.listening_since.lock().unwrap_or_else(PoisonError::into_inner) = self.parts.clock.now();
        }
        changed?;
        self.settle(settling).await?;
        Ok(lost)
    }

    /// Holds that are being placed, captured or released by nobody any more. They are noted as taken first, so that no other
    /// server takes them too, and what cannot be done now does not keep others waiting.
    async fn settle_left(&self) -> Result<usize, QueueError> {
        let (now, mut jobs) = (self.parts.clock.now(), Vec::new());
        let which = JobSelection::Unsettled { before: now.minus(UNSETTLED_FOR), limit: MAX_JOBS };
        self.change(&which, &mut |found| {
            jobs.clone_from(&found.jobs);
            JobChanges::touch(found.jobs, now)
        })
        .await?;
        let count = jobs.len();
        let (holding, settling): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.state == JobState::Holding);
        let (placed, settled) = (self.place_holds(holding).await, self.settle(settling).await);
        placed?;
        settled?;
        Ok(count)
    }

    /// What nobody has brought back: its workspace may run more by now.
    async fn bring_back(&self) -> Result<(), QueueError> {
        let now = self.parts.clock.now();
        let which = JobSelection::SetAside { before: now.minus(SET_ASIDE_FOR), limit: MAX_JOBS };
        self.change(&which, &mut |found| JobChanges::bring_back(found.jobs, now)).await
    }

    async fn extend_ending(&self) -> Result<usize, QueueError> {
        let before = self.parts.clock.now().plus(HOLD_RESERVE);
        let jobs = self.parts.jobs.jobs_with_ending_holds(before, MAX_JOBS).await?;
        let count = jobs.len();
        self.extend_holds(jobs).await?;
        Ok(count)
    }

    /// The jobs at the front of a queue are those that have waited for the longest.
    async fn expire_front(&self, which: &JobSelection) -> Result<usize, QueueError> {
        let (now, mut expired, mut settling) = (self.parts.clock.now(), 0, Vec::new());
        self.change(which, &mut |found| {
            let mut changes = JobChanges::default();
            let settings: HashMap<_, _> = found.queues.values().map(|queue| (&queue.queue, &queue.settings)).collect();
            expired = 0;
            for job in found.jobs.iter().cloned() {
                let Some(settings) = settings.get(&job.queue) else { continue };
                expired += usize::from(changes.expire(job, settings, now));
            }
            settling.clone_from(&changes.updated);
            changes
        })
        .await?;
        self.settle(settling).await?;
        Ok(expired)
    }
}
