//! Workers: the processes that run jobs, and their heartbeats.

use std::collections::HashMap;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::job::Runner;
use super::lease::JobLease;
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::metadata::Metadata;
use crate::domain::text::{Label, QueueName};
use crate::domain::time::Timestamp;

/// How often it is noted that a worker lives.
const NOTED_EVERY: TimeDelta = TimeDelta::seconds(10);

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Active,
    /// It is to finish its jobs, and gets no more.
    Draining,
    /// Nothing was heard of it for a while.
    Gone,
}

impl WorkerState {
    pub const ALL: [Self; 3] = [Self::Active, Self::Draining, Self::Gone];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Gone => "gone",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// The queues that a worker takes jobs of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QueueNames(pub Vec<QueueName>);

/// A process that runs jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    pub worker_id: WorkerId,
    /// For people.
    pub name: Label,
    /// The `sub` of the token that has registered it. Nobody else speaks for it.
    pub subject: String,
    pub runner: Runner,
    pub queues: QueueNames,
    /// How many jobs it runs at once.
    pub slots: i32,
    /// What its owner tells of it, such as the kind of its processor.
    pub labels: Option<Metadata>,
    /// Of its program.
    pub version: Option<Label>,
    pub state: WorkerState,
    pub started_at: Timestamp,
    /// Up to ten seconds ago while it lives.
    pub seen_at: Timestamp,
}

/// A worker says that it lives, and which jobs it still runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerBeat {
    pub worker_id: WorkerId,
    /// It takes no more jobs.
    pub is_draining: bool,
    pub leases: Vec<LeaseBeat>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseBeat {
    pub job_id: JobId,
    pub lease_id: LeaseId,
    /// What the worker tells of the job, as JSON. None leaves what it has told before.
    pub progress: Option<String>,
}

/// What a worker is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BeatAnswer {
    /// Jobs that it does not have any more.
    pub lost: Vec<JobId>,
    /// Jobs that nobody wants any more: it is to stop them.
    pub canceled: Vec<JobId>,
    pub is_draining: bool,
}

/// What heartbeats are decided on. The leases and the workers are locked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundLeases {
    pub leases: Vec<JobLease>,
    /// The jobs of the leases that somebody has canceled.
    pub canceled: Vec<JobId>,
    pub workers: Vec<Worker>,
}

/// What heartbeats change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseChanges {
    pub leases: Vec<JobLease>,
    pub workers: Vec<Worker>,
}

impl JobLease {
    /// The lease after a heartbeat. It never becomes shorter, and never lasts beyond its deadline.
    fn extended(&self, lease: TimeDelta, progress: Option<String>, now: Timestamp) -> Self {
        let leased_until = now.plus(lease).min(self.deadline).max(self.leased_until);
        Self { leased_until, progress: progress.or_else(|| self.progress.clone()), ..self.clone() }
    }
}

impl LeaseChanges {
    /// Takes the heartbeats of some workers. The answers are in their order.
    #[must_use]
    pub fn beat(
        found: FoundLeases,
        beats: &[WorkerBeat],
        lease_of: impl Fn(&QueueName) -> Option<TimeDelta>,
        now: Timestamp,
    ) -> (Self, Vec<BeatAnswer>) {
        let mut leases: HashMap<_, _> = found.leases.into_iter().map(|lease| (lease.job_id, lease)).collect();
        let mut workers: HashMap<_, _> = found.workers.into_iter().map(|worker| (worker.worker_id, worker)).collect();
        let (mut extended, mut seen) = (HashMap::new(), HashMap::new());
        let mut answers = Vec::with_capacity(beats.len());
        for beat in beats {
            let mut answer = BeatAnswer::default();
            for LeaseBeat { job_id, lease_id, progress } in &beat.leases {
                let is_own = |lease: &&mut JobLease| (lease.lease_id, lease.worker_id) == (*lease_id, beat.worker_id);
                let Some(lease) = leases.get_mut(job_id).filter(is_own) else {
                    answer.lost.push(*job_id);
                    continue;
                };
                *lease = lease.extended(lease_of(&lease.queue).unwrap_or_default(), progress.clone(), now);
                extended.insert(*job_id, lease.clone());
                if found.canceled.contains(job_id) {
                    answer.canceled.push(*job_id);
                }
            }
            if let Some(worker) = workers.get_mut(&beat.worker_id) {
                let state = match worker.state {
                    _ if beat.is_draining => WorkerState::Draining,
                    WorkerState::Gone => WorkerState::Active,
                    state => state,
                };
                answer.is_draining = state == WorkerState::Draining;
                if worker.seen_at.plus(NOTED_EVERY) <= now || worker.state != state {
                    *worker = Worker { state, seen_at: now, ..worker.clone() };
                    seen.insert(worker.worker_id, worker.clone());
                }
            }
            answers.push(answer);
        }
        (Self { leases: extended.into_values().collect(), workers: seen.into_values().collect() }, answers)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(1_000_000_000_000_000).plus(TimeDelta::seconds(seconds))
    }

    fn worker(number: u128, state: WorkerState) -> Worker {
        Worker {
            worker_id: WorkerId(Uuid::from_u128(number)),
            name: Label::new("gpu-1").unwrap(),
            subject: "workers".into(),
            runner: Runner::Worker,
            queues: QueueNames(vec![QueueName::new("default").unwrap()]),
            slots: 4,
            labels: None,
            version: None,
            state,
            started_at: at(0),
            seen_at: at(0),
        }
    }

    fn lease(number: u128) -> JobLease {
        JobLease {
            job_id: JobId(Uuid::from_u128(number)),
            lease_id: LeaseId(Uuid::from_u128(100 + number)),
            worker_id: WorkerId(Uuid::from_u128(1)),
            queue: QueueName::new("default").unwrap(),
            workspace_id: None,
            started_at: at(0),
            leased_until: at(30),
            deadline: at(100),
            progress: Some("1".into()),
        }
    }

    fn beat(worker: u128, leases: &[(u128, u128)], progress: Option<&str>) -> WorkerBeat {
        let lease = |(job, lease): &(u128, u128)| LeaseBeat {
            job_id: JobId(Uuid::from_u128(*job)),
            lease_id: LeaseId(Uuid::from_u128(*lease)),
            progress: progress.map(str::to_owned),
        };
        let leases = leases.iter().map(lease).collect();
        WorkerBeat { worker_id: WorkerId(Uuid::from_u128(worker)), is_draining: false, leases }
    }

    fn run(found: &FoundLeases, beats: &[WorkerBeat], now: i64) -> (LeaseChanges, Vec<BeatAnswer>) {
        LeaseChanges::beat(found.clone(), beats, |_| Some(TimeDelta::seconds(30)), at(now))
    }

    #[test]
    fn a_heartbeat_extends_the_leases_of_its_worker_and_tells_what_is_lost_or_canceled() {
        let found = FoundLeases {
            leases: vec![lease(1), lease(2)],
            canceled: vec![JobId(Uuid::from_u128(2))],
            workers: vec![worker(1, WorkerState::Active)],
        };
        let ids = |ids: &[JobId]| ids.iter().map(|id| id.0.as_u128()).collect::<Vec<_>>();
        // Its own, one of another lease, one that is gone, and one of another worker.
        let beats = [beat(1, &[(1, 101), (2, 102), (2, 999), (3, 103)], None), beat(2, &[(1, 101)], None)];
        let (mut changes, answers) = run(&found, &beats, 20);
        changes.leases.sort_by_key(|lease| lease.job_id);
        assert_eq!(changes.leases.iter().map(|lease| lease.leased_until).collect::<Vec<_>>(), [at(50), at(50)]);
        assert_eq!((ids(&answers[0].lost), ids(&answers[0].canceled)), (vec![2, 3], vec![2]));
        assert_eq!(ids(&answers[1].lost), [1]);
        assert_eq!(changes.workers[0].seen_at, at(20));
    }

    #[test]
    fn a_lease_becomes_neither_shorter_nor_longer_than_its_deadline_and_keeps_what_was_told() {
        let found = FoundLeases { leases: vec![lease(1)], ..FoundLeases::default() };
        for (now, progress, until, told) in
            [(-20, None, 30, "1"), (0, Some("2"), 30, "2"), (60, None, 90, "1"), (90, None, 100, "1")]
        {
            let (changes, _) = run(&found, &[beat(1, &[(1, 101)], progress)], now);
            let lease = &changes.leases[0];
            assert_eq!((lease.leased_until, lease.progress.as_deref()), (at(until), Some(told)), "{now}");
        }
    }

    #[test]
    fn it_is_noted_now_and_then_that_a_worker_lives() {
        for (state, now, noted, is_draining) in [
            (WorkerState::Active, 9, None, false),
            (WorkerState::Active, 10, Some(WorkerState::Active), false),
            (WorkerState::Draining, 10, Some(WorkerState::Draining), true),
            (WorkerState::Draining, 1, None, true),
            (WorkerState::Gone, 1, Some(WorkerState::Active), false),
        ] {
            let found = FoundLeases { workers: vec![worker(1, state)], ..FoundLeases::default() };
            let (changes, answers) = run(&found, &[beat(1, &[], None)], now);
            assert_eq!(changes.workers.first().map(|worker| worker.state), noted, "{state:?} {now}");
            assert_eq!(answers[0].is_draining, is_draining);
            // It says itself that it stops.
            let last = WorkerBeat { is_draining: true, ..beat(1, &[], None) };
            let (changes, answers) = run(&found, &[last], 1);
            let noted = changes.workers.first().map(|worker| worker.state);
            assert_eq!(noted, (state != WorkerState::Draining).then_some(WorkerState::Draining));
            assert!(answers[0].is_draining);
        }
    }
}
