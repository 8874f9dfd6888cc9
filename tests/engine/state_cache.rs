//! The state cache saves reads and locks, and every cached state is checked before it is used.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use futures::future::join_all;
use visionscope_billing::clock::Clock;
use visionscope_billing::domain::commands::{Command, GrantCredits, VoidGrant};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::grant::{GrantSource, GrantedSource, Priority};
use visionscope_billing::domain::ids::{GrantId, PARTITIONS, Partition, WorkspaceId};
use visionscope_billing::domain::text::{FeatureCode, Label};
use visionscope_billing::engine::{EngineConfig, EngineError, Reply};
use visionscope_billing::store::{Reads, Store};

use crate::databases::Database;
use crate::faulty_store::Fault;
use crate::world::{ONE_LANE, World, engine_over, outcome, outcomes};

fn second_replica(world: &World) -> World {
    world.with_engine(engine_over(Arc::clone(&world.store) as Arc<dyn Store>, &ONE_LANE))
}

/// Provisions more workspaces of the same partition.
async fn neighbours<const N: usize>(world: &World) -> [WorkspaceId; N] {
    let partition = Partition::of(world.workspace_id);
    // New ids are spread over all partitions.
    let mut ids =
        std::iter::repeat_with(|| WorkspaceId(world.clock.new_id())).filter(|id| Partition::of(*id) == partition);
    let ids = std::array::from_fn(|_| ids.next().unwrap());
    for id in ids {
        world.provision(id).await;
    }
    ids
}

fn locked_transactions(world: &World) -> usize {
    world.store.faults.locked_transactions.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_lane_takes_no_locks() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let before = locked_transactions(&world);
        for n in 0..50 {
            assert_eq!(outcome(&world.deduct(&format!("k{n}"), "1").await), "accepted");
        }
        assert_eq!(locked_transactions(&world), before, "the provisioned state is cached");
        assert_eq!(outcome(&world.deduct("k50", "951").await), "refused", "a recorded refusal needs no locks either");
        assert_eq!(locked_transactions(&world), before);
        assert_eq!(world.balance().await, "950");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_grant_is_voided_without_locks_and_a_closed_or_unknown_one_is_looked_up() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let before = locked_transactions(&world);
        let grant = GrantCredits {
            credits: serde_json::from_value("5".into()).unwrap(),
            source: GrantedSource::Promotion,
            priority: Priority::default(),
            effective_at: None,
            expires_at: None,
            feature_scope: FeatureCode::new("render").ok(),
            reason: Label::new("r").unwrap(),
        };
        world.schedule(world.workspace_id, "grant", Command::GrantCredits(grant)).await;
        let state = world.store.workspace(world.workspace_id).await.unwrap().unwrap();
        let grants = state.grants.iter().filter(|grant| grant.source == GrantSource::Promotion);
        let granted = grants.map(|grant| grant.grant_id).next().unwrap();
        let void = async |key: &str, grant_id| {
            let command = VoidGrant { grant_id, credits: None, reason: Label::new("r").unwrap() };
            let envelope = world.envelope(world.workspace_id, key, Command::VoidGrant(command));
            match world.engine.submit(envelope).await.unwrap() {
                Reply::Decided { rejection, .. } => rejection.map_or("accepted", |rejection| rejection.code()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(void("one", granted).await, "accepted");
        assert_eq!(locked_transactions(&world), before);
        assert_eq!(void("two", granted).await, "grant-closed");
        assert_eq!(void("three", GrantId(world.clock.new_id())).await, "grant-not-found");
        assert_eq!(locked_transactions(&world), before + 2);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_key_is_replayed_and_the_rest_of_its_batch_runs_once() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let first = world.deduct("a", "1").await.unwrap();
        let replies = world.deduct_in_one_batch(&[("b", "1"), ("a", "1"), ("c", "1")]).await;
        assert_eq!(outcomes(&replies), ["accepted", "replayed", "accepted"]);
        let (Reply::Decided { answer, .. }, Ok(Reply::Replayed(again))) = (&first, &replies[1]) else { panic!() };
        assert_eq!(answer, again);
        assert_eq!(world.balance().await, "997");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_written_by_another_replica_are_read_again() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let other = second_replica(&world);
        for n in 0..20 {
            assert_eq!(outcome(&world.deduct(&format!("k{n}"), "1").await), "accepted");
            assert_eq!(outcome(&other.deduct(&format!("o{n}"), "1").await), "accepted");
            assert_eq!(outcome(&other.deduct(&format!("k{n}"), "1").await), "replayed");
        }
        other.purchase("pay-1", "40", None).await;
        assert_eq!(
            outcome(&world.deduct("all", "1000").await),
            "accepted",
            "including the credits bought through the other replica"
        );
        assert_eq!(outcome(&other.deduct("more", "0.000001").await), "refused", "nothing is left");
        other.engine.stop().await;
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_concurrent_replicas_never_overspend() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let other = second_replica(&world);
        let keys: Vec<String> = (0..500).map(|n| n.to_string()).collect();
        let send = |replica: &World, side: &'static str| {
            let world = replica.with_engine(replica.engine.clone());
            let keys = keys.clone();
            async move {
                let mut accepted = 0;
                for chunk in keys.chunks(25) {
                    let of_chunk = chunk.iter().map(|key| {
                        let (world, key) = (&world, format!("{side}{key}"));
                        async move { world.deduct(&key, "2").await }
                    });
                    let replies: Vec<Result<Reply, EngineError>> = join_all(of_chunk).await;
                    accepted += outcomes(&replies).iter().filter(|outcome| **outcome == "accepted").count();
                    assert!(outcomes(&replies).iter().all(|outcome| ["accepted", "refused"].contains(outcome)));
                }
                accepted
            }
        };
        let (one, two) = tokio::join!(send(&world, "a"), send(&other, "b"));
        assert_eq!(one + two, 500, "1000 credits, 2 for each");
        assert_eq!(world.balance().await, "0");
        other.engine.stop().await;
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_runs_exactly_once_under_load_with_failures() {
    const CLIENTS: usize = 24;
    const ROUNDS: usize = 25;
    for database in Database::ALL {
        let world = World::on(database).await;
        let workspaces: Vec<_> = (0..6).map(|_| WorkspaceId(world.clock.new_id())).collect();
        for id in &workspaces {
            world.provision(*id).await;
        }
        let client = async |client: usize| {
            for round in 0..ROUNDS {
                let id = workspaces[(client + round) % workspaces.len()];
                if (client + round).is_multiple_of(7) {
                    let faults = [Fault::CommitConflict, Fault::AnswerLost, Fault::CommitLost, Fault::BeginUnavailable];
                    world.store.fail_next(&faults[round % 4..=round % 4]);
                }
                let key = format!("c{client}-r{round}");
                let mut reply = world.deduct_from(id, &key, "1").await;
                while !matches!(reply, Ok(Reply::Decided { rejection: None, .. } | Reply::Replayed(_))) {
                    assert_eq!(reply, Err(EngineError::Unavailable));
                    reply = world.deduct_from(id, &key, "1").await;
                }
            }
        };
        join_all((0..CLIENTS).map(client)).await;
        let mut spent = 0;
        for id in &workspaces {
            let credits = world.store.workspace(*id).await.unwrap().unwrap().credits;
            spent += credits.usage_seq;
            assert_eq!(credits.current_credits, Credits::whole(1000 - credits.usage_seq));
        }
        assert_eq!(usize::try_from(spent).unwrap(), CLIENTS * ROUNDS);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locked_and_optimistic_batches_run_side_by_side() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let buy = join_all((0..20).map(|n| {
            let world = &world;
            async move { world.purchase(&format!("pay-{n}"), "3", None).await }
        }));
        let deductions = join_all((0..60).map(|n| {
            let world = &world;
            async move { outcome(&world.deduct(&format!("k{n}"), "1").await) }
        }));
        let nobody = WorkspaceId(world.clock.new_id());
        let stray = join_all((0..20).map(|n| {
            let world = &world;
            async move { outcome(&world.deduct_from(nobody, &format!("s{n}"), "1").await) }
        }));
        let (_, spent, strayed) = tokio::join!(buy, deductions, stray);
        assert!(spent.iter().all(|outcome| *outcome == "accepted"));
        assert!(strayed.iter().all(|outcome| *outcome == "refused"), "its workspace does not exist");
        assert_eq!(world.balance().await, "1000");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_written_by_another_replica_is_stale_also_while_other_workspaces_are_written() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let [neighbour] = neighbours(&world).await;
        let other = second_replica(&world);
        assert_eq!(outcome(&world.deduct_from(neighbour, "a", "1").await), "accepted");
        assert_eq!(outcome(&other.deduct_from(neighbour, "b", "999").await), "accepted");
        assert_eq!(outcome(&world.deduct("c", "1").await), "accepted", "this batch sees that another replica wrote");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(outcome(&world.deduct("d", "1").await), "accepted", "the partition no longer counts as shared");
        // A refusal without a usage log or an event: a write without a version check would overwrite the balance.
        let unknown = world.deduct_feature(neighbour, "e", "nothing", "1").await;
        assert_eq!(outcome(&unknown), "refused");
        let credits = world.store.workspace(neighbour).await.unwrap().unwrap().credits;
        assert_eq!((credits.current_credits, credits.usage_seq), (Credits::ZERO, 2), "both deductions are kept");
        other.engine.stop().await;
        world.audit_and_close().await;
    }
}

/// Two replicas write to the same partition: each to a workspace of its own, and both to a third one. PostgreSQL
/// only, because one server at a time serves an SQLite file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_share_a_partition_take_no_locks() {
    let world = World::on(Database::Postgres).await;
    let ids: [_; 3] = neighbours(&world).await;
    let other = second_replica(&world);
    // The first write to a partition takes locks.
    assert_eq!(outcome(&other.deduct_from(ids[0], "first", "1").await), "accepted");
    assert_eq!(outcome(&world.deduct_from(ids[0], "second", "1").await), "accepted");
    let before = locked_transactions(&world);
    for n in 0..20 {
        let key = format!("k{n}");
        assert_eq!(outcome(&world.deduct_from(ids[0], &key, "1").await), "accepted");
        assert_eq!(outcome(&other.deduct_from(ids[1], &key, "1").await), "accepted");
        // Both write to the third workspace, by turns.
        assert_eq!(outcome(&world.deduct_from(ids[2], &format!("w{n}"), "1").await), "accepted");
        assert_eq!(outcome(&other.deduct_from(ids[2], &format!("o{n}"), "1").await), "accepted");
    }
    assert_eq!(locked_transactions(&world), before, "no locks were taken");
    let balance = async |id| world.store.workspace(id).await.unwrap().unwrap().credits.current_credits;
    let left: Vec<_> = [balance(ids[0]).await, balance(ids[1]).await, balance(ids[2]).await].into();
    assert_eq!(left, [Credits::whole(978), Credits::whole(980), Credits::whole(960)]);
    // Grants are read again too: one replica buys, the other spends.
    World { workspace_id: ids[2], ..other.with_engine(other.engine.clone()) }.purchase("pay-1", "7", None).await;
    assert_eq!(outcome(&world.deduct_from(ids[2], "all", "967").await), "accepted");
    assert_eq!(outcome(&other.deduct_from(ids[2], "more", "0.000001").await), "refused");
    other.engine.stop().await;
    world.audit_and_close().await;
}

/// The cache has room for about three states of each partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_with_a_small_cache_reads_evicted_states_again() {
    for database in Database::ALL {
        let cache_bytes = usize::from(PARTITIONS) * 4096;
        let world = World::with(database, EngineConfig { cache_bytes, ..ONE_LANE }).await;
        let ids = neighbours::<12>(&world).await;
        let read = || world.store.faults.states_read.swap(0, Ordering::SeqCst);
        let deduct = async |place: usize, round: usize| {
            assert_eq!(outcome(&world.deduct_from(ids[place], &format!("{place}-{round}"), "1").await), "accepted");
        };
        for round in 0..3 {
            for place in 0..ids.len() {
                deduct(place, round).await;
            }
        }
        assert!(read() >= 2 * ids.len(), "each was evicted before its next turn");
        deduct(11, 3).await;
        deduct(11, 4).await;
        assert_eq!(read(), 0, "the last one is cached");
        let before = locked_transactions(&world);
        for round in 5..10 {
            deduct(0, round).await;
            deduct(1, round).await;
        }
        assert_eq!((read(), locked_transactions(&world)), (2, before), "two states by turns stay cached");
        let balance =
            async |place: usize| world.store.workspace(ids[place]).await.unwrap().unwrap().credits.current_credits;
        assert_eq!([balance(0).await, balance(5).await, balance(11).await], [992, 997, 995].map(Credits::whole));
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_without_a_cache_reads_each_time() {
    for database in Database::ALL {
        let world = World::with(database, EngineConfig { cache_bytes: 0, ..ONE_LANE }).await;
        for n in 0..5 {
            let replies = world.deduct_in_one_batch(&[(&format!("a{n}"), "1"), (&format!("b{n}"), "2")]).await;
            assert_eq!(outcomes(&replies), ["accepted", "accepted"]);
        }
        assert!(world.store.faults.states_read.load(Ordering::SeqCst) >= 5);
        assert_eq!(world.balance().await, "985");
        world.audit_and_close().await;
    }
}

/// An unrecorded refusal is not written, so the write did not check its key: the key is looked up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_command_is_replayed_even_if_it_would_be_refused_now() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let other = second_replica(&world);
        let [neighbour] = neighbours(&world).await;
        let now = world.clock.now();
        let long_ago = Some(now.plus(TimeDelta::minutes(1) - TimeDelta::days(35)));
        let late = |key: &str| world.deduction(world.workspace_id, key, "render", "1", long_ago);
        assert_eq!(outcome(&world.engine.submit(late("k")).await), "accepted");
        // The other replica has cached the partition, but not the workspace.
        assert_eq!(outcome(&other.deduct_from(neighbour, "n", "1").await), "accepted");
        world.clock.set(now.plus(TimeDelta::minutes(2)));
        assert_eq!(outcome(&other.engine.submit(late("k")).await), "replayed");
        for replica in [&world, &other] {
            // The neighbour is cached, so the batch is written optimistically. Its unverified commands are then
            // decided again under locks.
            let deduction = || world.deduction(neighbour, &world.clock.new_id().to_string(), "render", "1", None);
            assert_eq!(outcome(&replica.engine.submit(deduction()).await), "accepted");
            let batch = vec![deduction(), late("k"), late("fresh"), deduction()];
            let replies = replica.submit_in_one_batch(batch).await;
            assert_eq!(outcomes(&replies), ["accepted", "replayed", "refused", "accepted"]);
            assert_eq!(outcome(&replica.engine.submit(late("k")).await), "replayed");
        }
        assert_eq!(world.balance().await, "999");
        other.engine.stop().await;
        world.audit_and_close().await;
    }
}
