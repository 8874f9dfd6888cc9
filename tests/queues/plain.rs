//! Jobs that cost nothing: retries, lost workers, releases, caps, and jobs that nobody takes.

use std::collections::BTreeSet;

use uuid::Uuid;
use visionscope_billing::clock::Clock;
use visionscope_billing::domain::ids::{LeaseId, WorkerId};
use visionscope_billing::domain::jobs::{
    BeatAnswer, Completion, JobState, LeaseBeat, QueueSettings, Submission, WorkerBeat,
};
use visionscope_billing::domain::operator_act::OperatorAct;
use visionscope_billing::domain::text::{Label, UniqueKey};
use visionscope_billing::queues::{Accepted, EndAnswer, EndOfJob, JobEnd};
use visionscope_billing::store::jobs::Jobs;

use crate::databases::Database;
use crate::world::{World, failure, queue};

fn done() -> JobEnd {
    JobEnd::Complete(Completion::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_a_lost_worker_is_tried_again_and_its_lease_is_worth_nothing() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        world.queues.submit(world.job(1, None)).await.unwrap();
        let lost = world.claim_one().await;
        world.pass(59);
        assert_eq!(world.queues.promote().await.unwrap().lost, 0);
        // Its worker lives.
        let lease = LeaseBeat { job_id: lost.job_id, lease_id: lost.lease_id, progress: None };
        let beat = WorkerBeat { worker_id: lost.worker_id, is_draining: false, leases: vec![lease] };
        assert_eq!(world.queues.beat(beat.clone()).await, Ok(BeatAnswer::default()));
        world.pass(59);
        assert_eq!(world.queues.promote().await.unwrap().lost, 0);
        world.pass(1);
        assert_eq!(world.queues.promote().await.unwrap().lost, 1);
        assert_eq!(world.end(&lost, done()).await, EndAnswer::LeaseLost);
        let lost_job = BeatAnswer { lost: vec![lost.job_id], ..BeatAnswer::default() };
        assert_eq!(world.queues.beat(beat).await, Ok(lost_job));
        world.pass(60);
        world.queues.promote().await.unwrap();
        let lease = world.claim_one().await;
        assert_eq!(world.end(&lost, done()).await, EndAnswer::LeaseLost);
        // Who guesses another worker's id or lease ends nothing.
        for (lease_id, worker) in [(LeaseId(Uuid::nil()), lease.worker_id), (lease.lease_id, WorkerId(Uuid::nil()))] {
            let end = EndOfJob { job_id: lease.job_id, lease_id, worker_id: Some(worker), end: done() };
            assert_eq!(world.queues.end(vec![end]).await.unwrap(), [EndAnswer::LeaseLost]);
        }
        assert_eq!(world.end(&lease, done()).await, EndAnswer::Ended(JobState::Completed));
        assert_eq!(world.record(1).await.attempts.len(), 2);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_job_is_taken_again_at_once_and_its_attempt_does_not_count() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let once = Submission { max_attempts: Some(1), ..world.job(1, None) };
        world.queues.submit(once).await.unwrap();
        for _ in 0..3 {
            let lease = world.claim_one().await;
            assert_eq!(world.end(&lease, JobEnd::Release).await, EndAnswer::Ended(JobState::Ready));
        }
        let lease = world.claim_one().await;
        assert_eq!(world.end(&lease, failure(true)).await, EndAnswer::Ended(JobState::Failed));
        assert_eq!(world.record(1).await.attempts.len(), 1);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_jobs_that_are_sent_at_once_are_stored_once_each() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        // Two of each, and those of one unique key are one job.
        let unique =
            |number| Submission { unique_key: Some(UniqueKey::new("video-17").unwrap()), ..world.job(number, None) };
        let sent = (0..200).map(|number| world.job(number % 100, None)).chain((200..220).map(unique));
        let answers = futures::future::join_all(sent.map(|sent| world.queues.submit(sent))).await;
        let job_id = |answer| match answer {
            Ok(Accepted::Job(job)) => job.job_id,
            other => panic!("{other:?}"),
        };
        let jobs: BTreeSet<_> = answers.into_iter().map(job_id).collect();
        assert_eq!(jobs.len(), 101);
        assert_eq!(world.integers("select cast(count(*) as bigint) from jobs").await, [101]);
        world.audit_and_close().await;
    }
}

/// What an operator does to the queue.
async fn change_queue(world: &World, change: impl FnOnce(&mut QueueSettings)) {
    let before = world.jobs.queues().await.unwrap().into_iter().find(|one| one.queue == queue()).unwrap();
    let mut after = before.clone();
    change(&mut after.settings);
    let act = OperatorAct {
        audit_id: world.clock.new_id(),
        at: world.clock.now(),
        actor: "operator-1".into(),
        action: "queue.change".into(),
        target: queue().as_str().into(),
        reason: Label::new("A test").unwrap(),
        before: None,
        after: None,
    };
    world.jobs.change_queue(&before, &after, &act).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_runs_as_many_jobs_as_its_queue_allows() {
    for kind in Database::ALL {
        let world = World::with(kind, 2).await;
        change_queue(&world, |settings| {
            (settings.max_running_per_workspace, settings.max_running) = (Some(2), Some(3));
        })
        .await;
        for number in 0..20 {
            let workspace_id = Some(world.workspaces[usize::from(number >= 10)]);
            world.queues.submit(Submission { workspace_id, ..world.job(number, None) }).await.unwrap();
        }
        let (mut done_jobs, mut running) = (0, Vec::new());
        while done_jobs < 20 {
            running.extend(world.claim(32).await);
            if done_jobs == 12 {
                // What was set aside is brought back by the jobs that run.
                change_queue(&world, |settings| {
                    (settings.max_running_per_workspace, settings.max_running) = (None, None);
                })
                .await;
            }
            for workspace_id in &world.workspaces {
                let of_one = running.iter().filter(|lease| lease.workspace_id == Some(*workspace_id)).count();
                assert!(done_jobs >= 12 || (of_one <= 2 && running.len() <= 3), "{of_one} of {}", running.len());
            }
            assert!(!running.is_empty(), "none is left aside");
            let lease = running.remove(0);
            assert_eq!(world.end(&lease, done()).await, EndAnswer::Ended(JobState::Completed));
            done_jobs += 1;
        }
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_no_worker_takes_for_a_week_fails() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        world.queues.submit(world.job(1, None)).await.unwrap();
        world.pass(7 * 86_400 - 1);
        assert_eq!(world.queues.expire().await.unwrap(), 0);
        world.pass(1);
        assert_eq!(world.queues.expire().await.unwrap(), 1);
        let job = world.record(1).await.listed.job;
        assert_eq!((job.state, job.error.unwrap().class.as_str()), (JobState::Failed, "expired"));
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_was_set_aside_and_that_nobody_brings_back_is_ready_after_a_minute() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        world.queues.submit(world.job(1, None)).await.unwrap();
        world.database.execute(&["update jobs set state = 'capped'"]).await;
        world.pass(59);
        world.queues.expire().await.unwrap();
        assert_eq!(world.claim(1).await, []);
        world.pass(1);
        world.queues.expire().await.unwrap();
        assert_eq!(world.claim(1).await.len(), 1);
        world.audit_and_close().await;
    }
}
