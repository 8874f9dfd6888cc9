//! The server's own jobs: schedules that fire once, and work that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use visionscope_billing::clock::Clock as _;
use visionscope_billing::domain::jobs::SystemSchedule;
use visionscope_billing::http::JobCommands;
use visionscope_billing::queues::{OwnWork, ScheduledWork};
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

async fn begin_schedules(world: &World) {
    let all = SystemSchedule::ALL.map(|schedule| schedule.begin(world.clock.now()));
    world.jobs.create_schedules(&all).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_fires_once_on_two_servers_and_again_when_its_time_has_come() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        begin_schedules(&world).await;
        let (counted, stop) = (Arc::new(Counted::default()), CancellationToken::new());
        let other = world.other_server().await;
        let servers =
            [&world.queues, &other].map(|queues| tokio::spawn(queues.clone().work(work(&counted), stop.clone())));
        for times in 1..=3 {
            let (one, two) = tokio::join!(world.queues.promote(), other.promote());
            one.and(two).unwrap();
            counted.has_run(times).await;
            world.queues.promote().await.unwrap();
            world.pass(10);
        }
        stop.cancel();
        for server in servers {
            server.await.unwrap();
        }
        drop(other);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduled_work_that_fails_is_tried_again_and_does_not_pile_up() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        begin_schedules(&world).await;
        let (counted, stop) = (Arc::new(Counted { fails: 2, ..Counted::default() }), CancellationToken::new());
        let server = tokio::spawn(world.queues.clone().work(work(&counted), stop.clone()));
        for times in 1..=3 {
            world.queues.promote().await.unwrap();
            counted.has_run(times).await;
            // The job waits for its next attempt, so the firings meanwhile send no other.
            world.pass(10);
        }
        let [jobs] = world.integers("select count(*) from jobs where kind = 'system.periods'").await[..] else {
            panic!()
        };
        assert_eq!(jobs, 0, "the third attempt has done it");
        stop.cancel();
        server.await.unwrap();
        world.audit_and_close().await;
    }
}
