//! The server's own jobs: schedules that fire once, and work that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use visionscope_billing::clock::Clock as _;
use visionscope_billing::domain::commands::Envelope;
use visionscope_billing::domain::jobs::{JobState, Queue, Submission, SystemSchedule};
use visionscope_billing::domain::text::{JobKind, QueueName};
use visionscope_billing::engine::{Decide, DryRun, Engine, EngineError, Reply};
use visionscope_billing::http::JobCommands;
use visionscope_billing::queues::{OwnWork, Queues, ScheduledWork};
use visionscope_billing::store::jobs::Jobs as _;

use crate::databases::Database;
use crate::world::World;

/// Counts the firings of the periods, and fails the first so many.
#[derive(Default)]
struct Counted {
    fails: u32,
    runs: AtomicU32,
}

#[async_trait]
impl ScheduledWork for Counted {
    async fn run(&self, schedule: SystemSchedule) -> Result<(), String> {
        if schedule != SystemSchedule::Periods {
            return Ok(());
        }
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        if run < self.fails { Err("the database is away".into()) } else { Ok(()) }
    }
}

impl Counted {
    /// Waits until it has run so often.
    async fn has_run(&self, times: u32) {
        for _ in 0..500 {
            if self.runs.load(Ordering::SeqCst) >= times {
                // Nothing more comes.
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert_eq!(self.runs.load(Ordering::SeqCst), times);
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it has run {} times", self.runs.load(Ordering::SeqCst));
    }
}

fn work(counted: &Arc<Counted>) -> OwnWork {
    OwnWork { commands: Arc::new(JobCommands), scheduled: Arc::clone(counted) as _ }
}

/// A server that runs its own jobs.
struct Working {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Working {
    fn start(queues: &Queues, counted: &Arc<Counted>) -> Self {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(queues.clone().work(work(counted), stop.clone())), stop }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

async fn begin_schedules(world: &World) {
    let all = SystemSchedule::ALL.map(|schedule| schedule.begin(world.clock.now()));
    world.jobs.create_schedules(&all).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_fires_once_on_two_servers_and_again_when_its_time_has_come() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        begin_schedules(&world).await;
        let (counted, other) = (Arc::new(Counted::default()), world.other_server().await);
        let servers = [&world.queues, &other].map(|queues| Working::start(queues, &counted));
        for times in 1..=3 {
            let (one, two) = tokio::join!(world.queues.promote(), other.promote());
            one.and(two).unwrap();
            counted.has_run(times).await;
            world.queues.promote().await.unwrap();
            world.pass(10);
        }
        for server in servers {
            server.stop().await;
        }
        drop(other);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduled_work_that_fails_is_done_by_the_next_firing_and_leaves_no_letter() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        begin_schedules(&world).await;
        let counted = Arc::new(Counted { fails: 2, ..Counted::default() });
        let server = Working::start(&world.queues, &counted);
        for times in 1..=3 {
            world.queues.promote().await.unwrap();
            counted.has_run(times).await;
            world.pass(10);
        }
        let of = |state: &str| {
            format!("(select count(*) from jobs_done where kind = 'system.periods' and state = '{state}')")
        };
        let (failed, completed) = (of("failed"), of("completed"));
        let sql = format!("select {failed}, {completed}, (select count(*) from dead_letters)");
        for n in 0.. {
            match world.integers(&sql).await[..] {
                [2, 1, 0] => break,
                ref found => assert!(n < 100, "{found:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server.stop().await;
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_goes_on_while_its_queue_is_paused() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let all = world.jobs.queues().await.unwrap();
        let before = all.into_iter().find(|queue| queue.queue.as_str() == "default").unwrap();
        let mut after = before.clone();
        (after.settings.is_paused, after.settings.max_running) = (true, Some(1));
        change_queue(&world, &before, &after).await;
        begin_schedules(&world).await;
        let counted = Arc::new(Counted::default());
        let server = Working::start(&world.queues, &counted);
        world.queues.promote().await.unwrap();
        counted.has_run(1).await;
        server.stop().await;
        world.audit_and_close().await;
    }
}

async fn change_queue(world: &World, before: &Queue, after: &Queue) {
    world.jobs.change_queue(before, after, &world.act()).await.unwrap();
    world.queues.refresh().await.unwrap();
}

/// An engine that does what it is told, and loses the answers of the first so many commands, or panics after them.
struct Forgetful {
    engine: Engine,
    forgets: AtomicU32,
    panics: bool,
}

#[async_trait]
impl Decide for Forgetful {
    async fn decide(&self, envelope: Envelope) -> Result<Reply, EngineError> {
        let reply = self.engine.submit(envelope).await;
        let forget = |left: u32| left.checked_sub(1);
        if self.forgets.fetch_update(Ordering::SeqCst, Ordering::SeqCst, forget).is_ok() {
            assert!(!self.panics, "for a test");
            return Err(EngineError::Unavailable);
        }
        reply
    }

    async fn dry_run(&self, _: &Envelope) -> Result<DryRun, EngineError> {
        Err(EngineError::Failed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_answer_is_lost_takes_effect_once_however_few_attempts_it_has() {
    for (kind, panics) in [(Database::Sqlite, false), (Database::Postgres, false), (Database::Sqlite, true)] {
        let world = World::with(kind, 1).await;
        let engine = Forgetful { engine: world.engine.clone(), forgets: AtomicU32::new(3), panics };
        let server = world.server_with(Arc::new(engine)).await;
        let deduction = |number| Submission {
            queue: QueueName::new("billing").unwrap(),
            kind: JobKind::new("billing.deduct_credits").unwrap(),
            args: r#"{"feature_code":"render","credits":"5"}"#.into(),
            max_attempts: Some(1),
            ..world.job(number, None)
        };
        for number in 1..=2 {
            server.submit(deduction(number)).await.unwrap();
        }
        let working = Working::start(&server, &Arc::default());
        let mut states = Vec::new();
        for _ in 0..200 {
            let jobs = [world.record(1).await, world.record(2).await];
            states = jobs.iter().map(|record| record.listed.job.state).collect();
            if states.iter().all(|state| *state == JobState::Completed) {
                break;
            }
            assert!(!states.contains(&JobState::Failed), "{jobs:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            world.pass(600);
            server.promote().await.unwrap();
        }
        assert_eq!(states, [JobState::Completed; 2]);
        assert_eq!(world.balance().await, (990, 0), "each was charged once");
        working.stop().await;
        drop(server);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_own_jobs_are_taken_from_every_queue() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let counted = Arc::new(Counted::default());
        let server = Working::start(&world.queues, &counted);
        // Its kind was routed there before, or is by another server.
        let other = Submission {
            queue: QueueName::new("notifications").unwrap(),
            kind: JobKind::new("system.periods").unwrap(),
            workspace_id: None,
            ..world.job(1, None)
        };
        world.queues.submit(other).await.unwrap();
        counted.has_run(1).await;
        server.stop().await;
        world.audit_and_close().await;
    }
}
