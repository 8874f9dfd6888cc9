//! Stores that fail between any two steps, and workers that vanish: in the end each hold is ended once, what is captured is what
//! was reported, and nothing is left.

use std::collections::BTreeMap;

use uuid::Uuid;
use visionscope_billing::domain::hold::Overrun;
use visionscope_billing::domain::ids::JobId;
use visionscope_billing::domain::jobs::{JobLease, JobState, Submission};
use visionscope_billing::queues::{EndOfJob, JobEnd};

use crate::databases::Database;
use crate::world::{World, cost, failure, held};

/// A small generator of numbers that look random (Marsaglia's xorshift), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

const JOBS: u64 = 60;

/// What a worker does with its job, or nothing: it vanishes.
fn end_of(random: &mut Random) -> Option<JobEnd> {
    match random.below(8) {
        0 => None,
        1 => Some(failure(true)),
        2 => Some(failure(false)),
        3 => Some(JobEnd::Release),
        4 => Some(cost(0)),
        _ => Some(cost(i64::try_from(random.below(5) + 1).unwrap())),
    }
}

async fn step(world: &World, random: &mut Random, sent: &mut u64, running: &mut Vec<JobLease>) {
    match random.below(5) {
        0 | 1 if *sent < JOBS => {
            let number = u128::from(*sent);
            let workspace_id = Some(world.workspaces[usize::try_from(*sent % 2).unwrap()]);
            let hold = (random.below(4) > 0).then(|| held(5, Overrun::ChargeAvailable));
            let submission = Submission { workspace_id, ..world.job(number, hold) };
            // Who gets no answer sends it again with the same key, and may give up.
            if world.queues.submit(submission.clone()).await.is_ok() || random.below(2) == 0 {
                *sent += 1;
            } else {
                let _ = world.queues.submit(submission).await;
                *sent += 1;
            }
        }
        2 => running.extend(world.claim(usize::try_from(random.below(4) + 1).unwrap()).await),
        3 => {
            let ends: Vec<_> = std::mem::take(running)
                .into_iter()
                .filter_map(|lease| {
                    let JobLease { job_id, lease_id, worker_id, .. } = lease;
                    Some(EndOfJob { job_id, lease_id, worker_id: Some(worker_id), end: end_of(random)? })
                })
                .collect();
            if !ends.is_empty() && world.queues.end(ends.clone()).await.is_err() && random.below(2) == 0 {
                let _ = world.queues.end(ends).await;
            }
        }
        _ => {
            if random.below(10) == 0 {
                let number = random.below(JOBS);
                let _ = world.queues.cancel(vec![JobId(Uuid::from_u128(number.into()))], false).await;
            }
            world.pass(i64::try_from(random.below(90)).unwrap());
            let _ = world.queues.promote().await;
        }
    }
}

/// Until no job is left.
async fn drain(world: &World, random: &mut Random) {
    world.jobs.fail_every(0);
    for _ in 0..200 {
        if world.integers("select cast(count(*) as bigint) from jobs").await == [0] {
            return;
        }
        world.pass(600);
        world.queues.promote().await.unwrap();
        for lease in world.claim(32).await {
            let JobLease { job_id, lease_id, worker_id, .. } = lease;
            if let Some(end) = end_of(random) {
                world.queues.end(vec![EndOfJob { job_id, lease_id, worker_id: Some(worker_id), end }]).await.unwrap();
            }
        }
    }
    panic!("jobs are left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_each_hold_is_ended_once_and_charged_what_was_reported() {
    for kind in Database::ALL {
        for seed in 1..=6 {
            let (world, mut random) = (World::with(kind, 2).await, Random(seed * 7919));
            let (mut sent, mut running) = (0, Vec::new());
            world.jobs.fail_every(u32::try_from(2 + seed).unwrap());
            for _ in 0..300 {
                step(&world, &mut random, &mut sent, &mut running).await;
            }
            drain(&world, &mut random).await;
            check(&world, seed).await;
            world.audit_and_close().await;
        }
    }
}

async fn check(world: &World, seed: u64) {
    let left = "select cast((select count(*) from job_leases) as bigint),
        cast((select count(*) from credit_holds where state = 'open') as bigint)";
    assert_eq!(world.integers(left).await, [0, 0], "{kind:?} {seed}: nothing is left", kind = world.kind);
    // The completed jobs that have cost something, with what their workers reported.
    let captured = "select cast(coalesce((select sum(captured_credits) from jobs_done), 0) as bigint),
        cast(coalesce((select sum(credits) from usage_logs), 0) as bigint),
        cast(coalesce((select sum(captured) from credit_holds), 0) as bigint)";
    let sums = world.integers(captured).await;
    assert!(sums[0] > 0 && sums.iter().all(|sum| *sum == sums[0]), "{kind:?} {seed}: {sums:?}", kind = world.kind);
    let mut states: BTreeMap<JobState, u32> = BTreeMap::new();
    for workspace_id in &world.workspaces {
        for listed in world.database.server_store.jobs(*workspace_id, None, 1000).await.unwrap() {
            let (job, finished) = (listed.job, listed.finished.unwrap());
            *states.entry(job.state).or_default() += 1;
            let is_charged = job.state == JobState::Completed && job.is_metered();
            let reported = job.actual.as_ref().and_then(|actual| actual.credits).filter(|_| is_charged);
            let reported = reported.filter(|credits| credits.is_positive());
            assert_eq!(finished.captured, reported, "{:?} {seed}: {job:?}", world.kind);
        }
    }
    // Each metered job that was taken is told of once, and its end once.
    let told = "select cast((select count(*) from event_outbox where event_type = 'JobSubmitted') as bigint),
        cast((select count(*) from event_outbox where event_type in ('JobCompleted', 'JobFailed')) as bigint),
        cast((select count(*) from jobs_done where hold_id is not null) as bigint)";
    let told = world.integers(told).await;
    assert!(told.iter().all(|count| *count == told[0]), "{:?} {seed}: {told:?}", world.kind);
    let failed = "select cast((select count(*) from jobs_done where state = 'failed') as bigint),
        cast((select count(*) from dead_letters where source = 'job' and state = 'open') as bigint)";
    let failed = world.integers(failed).await;
    assert_eq!(failed[0], failed[1], "{:?} {seed}: a letter for each job that has failed", world.kind);
    assert!(states.len() >= 3, "{:?} {seed}: {states:?}", world.kind);
}
