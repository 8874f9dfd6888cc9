//! A workspace that sends all it can does not delay or displace the others.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use visionscope_billing::clock::Clock;
use visionscope_billing::domain::ids::WorkspaceId;
use visionscope_billing::engine::{EngineConfig, EngineError, Reply};

use crate::databases::Database;
use crate::world::{ONE_LANE, World, outcome, outcomes};

type Answers = Vec<JoinHandle<Result<Reply, EngineError>>>;

/// Long enough for a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Sends deductions of one credit, and gives them time to be queued or refused.
async fn send(world: &World, workspaces: &[WorkspaceId], count: usize) -> Answers {
    let envelope = |n: usize| world.deduction(workspaces[n % workspaces.len()], &format!("k{n}"), "render", "1", None);
    let submit = |envelope| {
        let engine = world.engine.clone();
        tokio::spawn(async move { engine.submit(envelope).await })
    };
    let answers = (0..count).map(envelope).map(submit).collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    answers
}

/// The answers that are there already.
async fn answered(answers: &mut Answers) -> Vec<Result<Reply, EngineError>> {
    let (done, waiting) = std::mem::take(answers).into_iter().partition::<VecDeque<_>, _>(JoinHandle::is_finished);
    answers.extend(waiting);
    all(done.into()).await
}

async fn all(answers: Answers) -> Vec<Result<Reply, EngineError>> {
    let all = futures::future::join_all(answers);
    tokio::time::timeout(TEST_TIMEOUT, all).await.unwrap().into_iter().map(Result::unwrap).collect()
}

async fn provisioned(world: &World, count: usize) -> Vec<WorkspaceId> {
    let workspaces: Vec<_> = (0..count).map(|_| WorkspaceId(world.clock.new_id())).collect();
    for workspace_id in &workspaces {
        world.provision(*workspace_id).await;
    }
    workspaces
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_workspace_is_in_the_next_batch_behind_a_flood() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let quiet = provisioned(&world, 1).await;
        let closed = world.store.gate.forget_permits(Semaphore::MAX_PERMITS);
        let mut flood = send(&world, &[world.workspace_id], 400).await;
        let quiet = send(&world, &quiet, 1).await;
        // The batch in progress, and the next.
        world.store.gate.add_permits(2);
        assert_eq!(outcomes(&all(quiet).await), ["accepted"], "{database:?}");
        let done = answered(&mut flood).await.len();
        assert!(done <= 100, "batches stay short while others wait: {done} commands were done before");
        world.store.gate.add_permits(closed);
        assert!(all(flood).await.iter().all(|reply| outcome(reply) == "accepted"));
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_flood_sends_beyond_its_share_is_refused_at_once() {
    let world = World::with(Database::Sqlite, EngineConfig { queue_capacity: 40, ..ONE_LANE }).await;
    let quiet = provisioned(&world, 5).await;
    let closed = world.store.gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut flood = send(&world, &[world.workspace_id], 100).await;
    let refused = answered(&mut flood).await;
    assert!(refused.iter().all(|reply| outcome(reply) == "over share"), "{:?}", outcomes(&refused));
    assert!(refused.len() >= 40, "at most its share of 20 waits, besides the batch in progress: {}", refused.len());
    let quiet = send(&world, &quiet, 5).await;
    world.store.gate.add_permits(closed);
    assert_eq!(outcomes(&all(quiet).await), ["accepted"; 5], "there is room for the others");
    assert!(all(flood).await.iter().all(|reply| outcome(reply) == "accepted"));
    world.audit_and_close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_at_once_and_queued_commands_are_finished() {
    let config = EngineConfig { queue_capacity: 4, max_batch: 2, ..ONE_LANE };
    let world = World::with(Database::Sqlite, config).await;
    let workspaces = provisioned(&world, 20).await;
    let closed = world.store.gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut answers = send(&world, &workspaces, 20).await;
    let refused = answered(&mut answers).await;
    assert!(refused.iter().all(|reply| outcome(reply) == "overloaded"), "{:?}", outcomes(&refused));
    assert!((14..=16).contains(&refused.len()), "all but the queue and the batch in progress: {}", refused.len());
    world.store.gate.add_permits(closed);
    assert!(all(answers).await.iter().all(|reply| outcome(reply) == "accepted"));
    world.audit_and_close().await;
}
