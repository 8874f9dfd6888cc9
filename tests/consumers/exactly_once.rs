//! Every event is counted once: with several runners, with runners that die, and with a store that fails.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use sqlx::{ConnectOptions, Connection, Executor};
use visionscope_billing::clock::Clock as _;
use visionscope_billing::store::Consumption;

use crate::databases::Database;
use crate::faulty_consumption::FaultyConsumption;
use crate::world::{NO_LEASE, Random, World};

const LEASE: Duration = Duration::from_secs(10);
const COMMANDS: usize = 250;
const ABORTS: u32 = 50;
const FAULTS: u32 = 25;
const LOST_ANSWERS: u32 = 5;
/// Many more than it takes to meet all faults.
const MAX_ROUNDS: u32 = 300;
/// Longer than a store waits for an answer.
const HANG: Duration = Duration::from_secs(6);

async fn finish(world: World) {
    world.wait_until_taken(1).await;
    assert_eq!(world.letters().await, [""; 0], "good events raise no dead letter");
    world.assert_figures(1).await;
    assert_eq!(world.database.store.audit(5).await.unwrap(), []);
    world.close().await;
}

async fn two_runners(kind: Database) {
    let world = World::on(kind, 12).await;
    let runners = [world.consume(NO_LEASE), world.consume(NO_LEASE)];
    world.random_commands(&mut Random(1), COMMANDS).await;
    world.wait_until_taken(1).await;
    for runner in runners {
        runner.stop().await;
    }
    let kinds = world.integers("select cast(count(distinct kind) as bigint) from notifications").await;
    assert_eq!(kinds, [[6]], "the history has notifications of every kind");
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runners_on_one_sqlite_database_count_each_event_once() {
    two_runners(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runners_on_one_postgres_database_count_each_event_once() {
    two_runners(Database::Postgres).await;
}

async fn aborted_runners(kind: Database) {
    let world = World::on(kind, 12).await;
    let aborts = async {
        let mut random = Random(3);
        for _ in 0..ABORTS {
            let runner = world.consume(NO_LEASE);
            tokio::time::sleep(Duration::from_millis(random.below(40))).await;
            runner.abort().await;
        }
    };
    let mut random = Random(2);
    tokio::join!(world.random_commands(&mut random, COMMANDS), aborts);
    let last = world.consume(LEASE);
    world.wait_until_taken(1).await;
    last.stop().await;
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runners_that_are_aborted_on_sqlite_count_each_event_once() {
    aborted_runners(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runners_that_are_aborted_on_postgres_count_each_event_once() {
    aborted_runners(Database::Postgres).await;
}

async fn failing_store(kind: Database) {
    let world = World::on(kind, 12).await;
    let store = Arc::new(FaultyConsumption::new(world.database.server_store.clone(), FAULTS, LOST_ANSWERS));
    let runner = world.consume_from(Arc::clone(&store) as Arc<dyn Consumption>, NO_LEASE);
    let mut random = Random(4);
    let mut rounds = 0;
    while store.is_failing() {
        world.random_commands(&mut random, 5).await;
        world.wait_until_taken(1).await;
        rounds += 1;
        assert!(rounds < MAX_ROUNDS, "the faults are not met");
    }
    runner.stop().await;
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_store_that_fails_and_loses_answers_has_each_event_once() {
    failing_store(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_store_that_fails_and_loses_answers_has_each_event_once() {
    failing_store(Database::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_database_that_does_not_answer_is_tried_again() {
    let world = World::on(Database::Sqlite, 4).await;
    world.random_commands(&mut Random(5), 40).await;
    let mut other = world.sqlite().connect().await.unwrap();
    other.execute("begin immediate").await.unwrap();
    let runner = world.consume(LEASE);
    tokio::time::sleep(HANG).await;
    other.execute("rollback").await.unwrap();
    other.close().await.unwrap();
    world.wait_until_taken(1).await;
    runner.stop().await;
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_database_that_does_not_answer_is_tried_again() {
    let world = World::on(Database::Postgres, 4).await;
    world.random_commands(&mut Random(5), 40).await;
    let mut other = world.database.postgres_options().connect().await.unwrap();
    other.execute("begin; lock table usage_days in access exclusive mode").await.unwrap();
    let runner = world.consume(LEASE);
    tokio::time::sleep(HANG).await;
    let taken = world.integers("select cast(sum(seq) as bigint) from consumer_cursors").await;
    assert_eq!(taken, [[0]], "no cursor moves without its rows");
    other.execute("rollback").await.unwrap();
    other.close().await.unwrap();
    world.wait_until_taken(1).await;
    runner.stop().await;
    finish(world).await;
}

async fn a_year(kind: Database) {
    let world = World::on(kind, 5).await;
    let runner = world.consume(LEASE);
    let mut random = Random(9);
    let begun = world.clock.now();
    for week in 1..=52 {
        world.clock.set(begun.plus(TimeDelta::weeks(week)));
        world.random_commands(&mut random, 8).await;
    }
    world.wait_until_taken(1).await;
    runner.stop().await;
    // Every workspace has one closed statement for each month that it was subscribed, and those without events too.
    let periods = "select cast((select count(*) from statements where closed_at is not null) as bigint),
        cast((select count(*) from event_outbox where event_type = 'CreditReset') as bigint)";
    let counted = world.integers(periods).await.remove(0);
    assert!(counted[0] >= 5 * 6 && counted[1] >= 5 * 6, "{counted:?}");
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_year_on_sqlite_is_counted_exactly() {
    a_year(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_year_on_postgres_is_counted_exactly() {
    a_year(Database::Postgres).await;
}
