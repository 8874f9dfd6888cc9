//! Workers that wait for jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, timeout};
use uuid::Uuid;
use visionscope_billing::clock::Clock as _;
use visionscope_billing::domain::ids::WorkerId;
use visionscope_billing::domain::jobs::{Completion, JobState, Runner, Submission, Worker, WorkerBeat, WorkerState};
use visionscope_billing::domain::text::{JobKind, QueueName};
use visionscope_billing::queues::{EndOfJob, JobEnd, LeaseRequest, Leased};
use visionscope_billing::store::jobs::Jobs as _;

use crate::databases::Database;
use crate::world::{World, queue, worker};

fn request(worker: u128, queues: &[&str], most: usize, wait: Duration) -> LeaseRequest {
    LeaseRequest {
        worker_id: WorkerId(Uuid::from_u128(worker)),
        runner: Runner::Worker,
        queues: queues.iter().map(|name| QueueName::new(name).unwrap()).collect(),
        most,
        wait,
    }
}

const LONG: Duration = Duration::from_secs(20);
const VIDEO: [&str; 1] = ["video_processing"];

fn numbers(leased: &[Leased]) -> Vec<u128> {
    leased.iter().map(|leased| leased.job.job_id.0.as_u128()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_waits_gets_a_job_as_soon_as_it_is_sent() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let begun = Instant::now();
        let none = world.queues.lease(request(1, &VIDEO, 1, Duration::from_millis(300))).await.unwrap();
        assert!(none.is_empty() && begun.elapsed() >= Duration::from_millis(300));
        // The pauses are long by now.
        let (queues, waiting) = (world.queues.clone(), request(1, &VIDEO, 5, LONG));
        let waiting = tokio::spawn(async move { queues.lease(waiting).await });
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let sent = Instant::now();
        world.queues.submit(world.job(1, None)).await.unwrap();
        assert_eq!(numbers(&waiting.await.unwrap().unwrap()), [1]);
        assert!(sent.elapsed() < Duration::from_millis(500), "{:?}", sent.elapsed());
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_workers_share_the_jobs_and_no_job_has_two() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let workers = (0..100).map(|worker| world.queues.lease(request(worker, &VIDEO, 3, LONG)));
        let send = async {
            for number in 0..300 {
                world.queues.submit(world.job(number, None)).await.unwrap();
            }
        };
        let (answers, ()) = tokio::join!(join_all(workers), send);
        let mut seen: BTreeSet<_> = BTreeSet::new();
        let mut count = 0;
        for leased in answers.into_iter().map(Result::unwrap) {
            assert!((1..=3).contains(&leased.len()), "{}", leased.len());
            assert!(leased.iter().all(|one| one.lease.worker_id == leased[0].lease.worker_id));
            count += leased.len();
            seen.extend(numbers(&leased));
        }
        assert_eq!(seen.len(), count);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_are_served_in_the_proportion_of_their_weights() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let names = ["billing", "default", "notifications"];
        for number in 0..300 {
            let name = names[usize::try_from(number % 3).unwrap()];
            let kind = JobKind::new("mail.send").unwrap();
            let submission = Submission { queue: QueueName::new(name).unwrap(), kind, ..world.job(number, None) };
            world.queues.submit(submission).await.unwrap();
        }
        let mut served: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..75 {
            let leased = world.queues.lease(request(1, &names, 1, LONG)).await.unwrap();
            *served.entry(leased[0].job.queue.as_str().to_owned()).or_default() += 1;
        }
        assert_eq!(served.into_values().collect::<Vec<_>>(), [40, 20, 15], "8, 4 and 3");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_has_gone_away_gets_nothing_and_holds_nothing() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        for worker in 0..20 {
            let gone = world.queues.lease(request(worker, &VIDEO, 10, LONG));
            assert!(timeout(Duration::from_millis(5), gone).await.is_err(), "there is no job");
        }
        world.queues.submit(world.job(1, None)).await.unwrap();
        let leased = world.queues.lease(request(99, &VIDEO, 10, LONG)).await.unwrap();
        assert_eq!((numbers(&leased), leased[0].job.attempt), (vec![1], 1));
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_given_back_that_was_on_its_way_to_a_worker_that_has_gone_away() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let mut waiting = Box::pin(world.queues.lease(request(1, &VIDEO, 1, LONG)));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        world.queues.submit(world.job(1, None)).await.unwrap();
        let state = async || world.record(1).await.listed.job.state;
        while state().await != JobState::Running {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The answer is there, and nobody reads it.
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(waiting);
        let again = world.queues.lease(request(2, &VIDEO, 1, LONG)).await.unwrap().remove(0);
        assert_eq!(again.job.attempt, 1, "it counts once");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_drained_while_it_waits_gets_nothing_more() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let worker = worker(1, world.clock.now());
        world.jobs.register_worker(&worker).await.unwrap();
        let waiting = world.queues.lease(request(1, &VIDEO, 1, LONG));
        let drain = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let after = Worker { state: WorkerState::Draining, ..worker.clone() };
            world.jobs.change_worker(&worker, &after, &world.act()).await.unwrap();
        };
        // The server reads it every second.
        let (leased, ()) = timeout(LONG / 2, async { tokio::join!(waiting, drain) }).await.unwrap();
        assert_eq!(numbers(&leased.unwrap()), [] as [u128; 0]);
        world.queues.submit(world.job(1, None)).await.unwrap();
        let leased = world.queues.lease(request(2, &VIDEO, 1, LONG)).await.unwrap();
        assert_eq!(numbers(&leased), [1]);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_has_half_a_lease_to_be_heard_after_an_outage() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let state = async || world.record(1).await.listed.job.state;
        world.queues.submit(world.job(1, None)).await.unwrap();
        world.claim_one().await;
        // The lease, of 60 s, is over while this server is away.
        world.pass(61);
        let begun = world.other_server().await;
        begun.promote().await.unwrap();
        world.pass(29);
        begun.promote().await.unwrap();
        assert_eq!(state().await, JobState::Running);
        // And then its database is.
        world.jobs.fail_every(1);
        begun.promote().await.unwrap_err();
        world.jobs.fail_every(0);
        world.pass(29);
        begun.promote().await.unwrap();
        assert_eq!(state().await, JobState::Running);
        world.pass(1);
        begun.promote().await.unwrap();
        assert_eq!(state().await, JobState::Waiting);
        drop(begun);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_says_that_it_stops_need_not_wait_on() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let other = world.other_server().await;
        let worker = worker(1, world.clock.now());
        world.jobs.register_worker(&worker).await.unwrap();
        // Its heartbeat comes to this server or to the other one.
        for queues in [&world.queues, &other] {
            let begun = Instant::now();
            let say = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let beat = WorkerBeat { worker_id: worker.worker_id, is_draining: true, leases: Vec::new() };
                assert!(queues.beat(beat).await.unwrap().is_draining);
            };
            let (leased, ()) = tokio::join!(world.queues.lease(request(1, &VIDEO, 1, LONG)), say);
            assert!(leased.unwrap().is_empty() && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            // An operator wants it to go on.
            let stored = world.jobs.worker(worker.worker_id).await.unwrap().unwrap();
            assert_eq!(stored.state, WorkerState::Draining);
            world.jobs.change_worker(&stored, &worker, &world.act()).await.unwrap();
        }
        drop(other);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_another_server_has_taken_or_given_back_is_found() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let other = world.other_server().await;
        let waiting = world.queues.lease(request(1, &VIDEO, 1, LONG));
        let send = other.submit(world.job(1, None));
        let (leased, answer) = tokio::join!(waiting, send);
        let (lease, _) = (leased.unwrap().remove(0).lease, answer.unwrap());
        let end = |end| EndOfJob { job_id: lease.job_id, lease_id: lease.lease_id, worker_id: None, end };
        other.end(vec![end(JobEnd::Release)]).await.unwrap();
        let again = world.queues.lease(request(1, &VIDEO, 1, LONG)).await.unwrap().remove(0);
        assert_eq!((again.job.attempt, again.job.queue.clone()), (1, queue()));
        let late = other.end(vec![end(JobEnd::Complete(Completion::default()))]).await.unwrap();
        assert_eq!(late, [visionscope_billing::queues::EndAnswer::LeaseLost]);
        drop(other);
        world.audit_and_close().await;
    }
}
