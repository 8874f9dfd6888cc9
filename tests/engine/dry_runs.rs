//! Dry runs: they use neither a lane nor a lock, and leave nothing behind.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use visionscope_billing::clock::{Clock, SystemClock};
use visionscope_billing::domain::commands::Envelope;
use visionscope_billing::domain::snapshot::KeySet;
use visionscope_billing::engine::{EngineConfig, EngineError, Reply};
use visionscope_billing::store::{Reads, Store};

use crate::databases::Database;
use crate::world::{ONE_LANE, PANICS, VIOLATES_SCHEMA, World, engine_over, outcome};

fn deduction(world: &World, key: &str, credits: &str) -> Envelope {
    world.deduction(world.workspace_id, key, "render", credits, None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_waits_for_no_lane_and_no_lock_and_writes_nothing() {
    for database in Database::ALL {
        let world = World::on(database).await;
        assert_eq!(outcome(&world.deduct("a", "1").await), "accepted");
        let transactions = world.store.faults.transactions.load(Ordering::SeqCst);
        let mut locked = world.database.store.begin().await.unwrap();
        locked.load(&KeySet { workspaces: [world.workspace_id].into(), ..KeySet::default() }).await.unwrap();
        let before = world.store.workspace(world.workspace_id).await.unwrap();
        for (key, credits, expected) in
            [("b", "999", "accepted"), ("c", "999.000001", "refused"), ("b", "999", "accepted")]
        {
            let dry_run = world.engine.dry_run(&deduction(&world, key, credits)).await.unwrap();
            assert_eq!(outcome(&Ok(dry_run.reply)), expected);
        }
        assert_eq!(world.store.workspace(world.workspace_id).await.unwrap(), before);
        assert_eq!(world.store.faults.transactions.load(Ordering::SeqCst), transactions);
        drop(locked);
        assert_eq!(outcome(&world.deduct("b", "999").await), "accepted", "the key was not used");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_sees_what_another_replica_has_just_written() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let other = world.with_engine(engine_over(Arc::clone(&world.store) as Arc<dyn Store>, &ONE_LANE));
        for n in 1..=5 {
            assert_eq!(outcome(&other.deduct(&format!("k{n}"), "10").await), "accepted");
            let dry_run = world.engine.dry_run(&deduction(&world, "d", "1")).await.unwrap();
            let Reply::Decided { answer, rejection: None } = dry_run.reply else { panic!("{:?}", dry_run.reply) };
            let receipt: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(receipt["current_credits"], (1000 - 10 * n - 1).to_string());
        }
        other.engine.stop().await;
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_whose_decision_fails_is_an_error_of_its_own() {
    for database in Database::ALL {
        let world = World::on(database).await;
        for credits in [PANICS, VIOLATES_SCHEMA] {
            let failed = world.engine.dry_run(&deduction(&world, "k", credits)).await;
            assert_eq!(failed.unwrap_err(), EngineError::Failed);
        }
        assert!(world.engine.dry_run(&deduction(&world, "k", "1")).await.is_ok());
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_far_ahead_of_the_database_gets_no_dry_run() {
    let config = EngineConfig { max_clock_ahead: Some(chrono::TimeDelta::seconds(10)), ..ONE_LANE };
    let world = World::with(Database::Postgres, config).await;
    for (ahead_s, is_answered) in [(0, true), (60, false)] {
        world.clock.set(SystemClock.now().plus(chrono::TimeDelta::seconds(ahead_s)));
        let answer = world.engine.dry_run(&deduction(&world, "k", "1")).await;
        assert_eq!(answer.is_ok(), is_answered, "{answer:?}");
    }
    world.audit_and_close().await;
}
