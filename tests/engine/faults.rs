//! Answers when a batch, or one command of it, cannot be written.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use visionscope_billing::clock::{Clock, SystemClock};
use visionscope_billing::domain::ids::{Partition, WorkspaceId};
use visionscope_billing::domain::snapshot::KeySet;
use visionscope_billing::engine::EngineConfig;

use crate::databases::Database;
use crate::faulty_store::Fault;
use crate::world::{PANICS, VIOLATES_SCHEMA, World, outcome, outcomes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_does_not_affect_the_rest_of_its_batch() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let replies = world.deduct_in_one_batch(&[("a", "400"), ("b", "601"), ("c", "600"), ("d", "1")]).await;
        assert_eq!(outcomes(&replies), ["accepted", "refused", "accepted", "refused"]);
        assert_eq!(world.balance().await, "0");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_commands_are_written_in_one_transaction() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let keys: Vec<String> = (0..100).map(|n| format!("k{n}")).collect();
        let deductions: Vec<_> = keys.iter().map(|key| (key.as_str(), "1")).collect();
        let before = world.store.faults.transactions.load(Ordering::SeqCst);
        let replies = world.deduct_in_one_batch(&deductions).await;
        assert!(outcomes(&replies).iter().all(|outcome| *outcome == "accepted"));
        let transactions = world.store.faults.transactions.load(Ordering::SeqCst) - before;
        assert!(transactions <= 2, "{transactions} transactions: the first command may go alone");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_batch_is_retried_command_by_command() {
    for database in Database::ALL {
        for fault in [Fault::BeginUnavailable, Fault::LoadConflict, Fault::CommitConflict, Fault::CommitLost] {
            let world = World::on(database).await;
            world.store.fail_next(&[fault]);
            let replies = world.deduct_in_one_batch(&[("a", "1"), ("b", "2000"), ("c", "1"), ("a", "1")]).await;
            assert_eq!(outcomes(&replies), ["accepted", "refused", "accepted", "replayed"], "{fault:?}");
            assert_eq!(world.balance().await, "998", "{fault:?}");
            world.audit_and_close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_a_commit_with_a_lost_answer_run_once() {
    for database in Database::ALL {
        let world = World::on(database).await;
        world.store.fail_next(&[Fault::AnswerLost]);
        let replies = world.deduct_in_one_batch(&[("a", "1"), ("b", "2000"), ("c", "1")]).await;
        let got = outcomes(&replies);
        assert_eq!(got[0], "replayed", "it was written, and the retry finds its answer");
        assert!(got[2] == "replayed" || got[2] == "accepted", "{got:?}");
        assert_eq!(world.balance().await, "998", "each ran once");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unwritable_command_fails_alone() {
    for database in Database::ALL {
        let world = World::on(database).await;
        *world.store.faults.corrupt_key.lock().unwrap() = Some("b".into());
        let replies = world.deduct_in_one_batch(&[("a", "1"), ("b", "1"), ("c", "1")]).await;
        assert_eq!(outcomes(&replies), ["accepted", "failed", "accepted"]);
        assert_eq!(world.balance().await, "998");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_decision_and_an_invalid_event_fail_alone() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let deductions = [("a", "1"), ("b", PANICS), ("c", "1"), ("d", VIOLATES_SCHEMA), ("e", "1")];
        let replies = world.deduct_in_one_batch(&deductions).await;
        assert_eq!(outcomes(&replies), ["accepted", "failed", "accepted", "failed", "accepted"]);
        assert_eq!(world.balance().await, "997");
        assert_eq!(outcome(&world.deduct("f", "1").await), "accepted", "the lane still runs");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_database_fails_commands_at_once_and_they_succeed_later() {
    let world = World::on(Database::Sqlite).await;
    world.store.fail_next(&[Fault::BeginUnavailable; 8]);
    let keys: Vec<String> = (0..50).map(|n| format!("k{n}")).collect();
    let deductions: Vec<_> = keys.iter().map(|key| (key.as_str(), "1")).collect();
    let began = Instant::now();
    let replies = world.deduct_in_one_batch(&deductions).await;
    assert!(outcomes(&replies).iter().all(|outcome| *outcome == "unavailable"));
    assert!(began.elapsed() < Duration::from_secs(1));
    world.store.faults.queue.lock().unwrap().clear();
    assert_eq!(outcome(&world.deduct("k1", "1").await), "accepted");
    world.audit_and_close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_finishes_queued_commands_and_refuses_new_ones() {
    let world = World::on(Database::Sqlite).await;
    let closed = world.store.gate.forget_permits(Semaphore::MAX_PERMITS);
    let (replies, ()) = tokio::join!(async { tokio::join!(world.deduct("a", "1"), world.deduct("b", "1")) }, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let stop = world.engine.stop();
        world.store.gate.add_permits(closed);
        stop.await;
    });
    assert_eq!((outcome(&replies.0), outcome(&replies.1)), ("accepted", "accepted"));
    assert_eq!(outcome(&world.deduct("c", "1").await), "stopping");
    world.audit_and_close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_locked_elsewhere_does_not_block_the_others_of_its_lane() {
    let world = World::on(Database::Postgres).await;
    let other = (0..1000)
        .map(|_| WorkspaceId(world.clock.new_id()))
        .find(|id| Partition::of(*id) != Partition::of(world.workspace_id))
        .unwrap();
    world.provision(other).await;
    let replica = world.database.replica().await;
    let mut holder = replica.begin().await.unwrap();
    let mut keys = KeySet::default();
    keys.workspaces.insert(world.workspace_id);
    holder.load(&keys).await.unwrap();

    let blocked = async {
        for n in 0..20 {
            assert_eq!(outcome(&world.deduct(&format!("blocked-{n}"), "1").await), "unavailable");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let unaffected = async {
        let mut slowest = Duration::ZERO;
        for n in 0..100 {
            let began = Instant::now();
            assert_eq!(outcome(&world.deduct_from(other, &format!("unaffected-{n}"), "1").await), "accepted");
            slowest = slowest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        slowest
    };
    let ((), slowest) = tokio::join!(blocked, unaffected);
    assert!(slowest < Duration::from_secs(4), "{slowest:?}: at most a lock timeout or two");
    drop(holder);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut recovered = "unavailable";
    for n in 0..50 {
        recovered = outcome(&world.deduct(&format!("again-{n}"), "1").await);
        if recovered == "accepted" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(recovered, "accepted");
    replica.close().await;
    world.audit_and_close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_from_a_clock_far_ahead_of_the_database_are_refused() {
    let config = EngineConfig {
        lanes: 1,
        queue_capacity: 10,
        max_batch: 5,
        cache_bytes: 1 << 24,
        max_clock_ahead: Some(chrono::TimeDelta::seconds(10)),
    };
    let world = World::with(Database::Postgres, config).await;
    world.clock.set(SystemClock.now().plus(chrono::TimeDelta::seconds(60)));
    assert_eq!(outcome(&world.deduct("ahead", "1").await), "unavailable");
    world.clock.set(SystemClock.now());
    assert_eq!(outcome(&world.deduct("right", "1").await), "accepted");
    world.audit_and_close().await;
}
