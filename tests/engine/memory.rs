//! What a lane remembers: it saves the look at the database, and is never believed unchecked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use futures::future::join_all;
use visionscope_billing::clock::Clock;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::ids::{PARTITIONS, Partition, WorkspaceId};
use visionscope_billing::engine::{EngineConfig, EngineError, Reply};
use visionscope_billing::store::{Reads, Store};

use crate::databases::Database;
use crate::faulty_store::Fault;
use crate::world::{ONE_LANE, World, engine_over, word, words};

/// A second replica on the same database.
fn replica(world: &World) -> World {
    world.beside(engine_over(Arc::clone(&world.store) as Arc<dyn Store>, &ONE_LANE))
}

/// More workspaces of the world's own partition.
async fn neighbours<const N: usize>(world: &World) -> [WorkspaceId; N] {
    let partition = Partition::of(world.workspace_id);
    // Ids spread over all partitions.
    let mut ids =
        std::iter::repeat_with(|| WorkspaceId(world.clock.new_id())).filter(|id| Partition::of(*id) == partition);
    let ids = std::array::from_fn(|_| ids.next().unwrap());
    for id in ids {
        world.provision(id).await;
    }
    ids
}

fn looks(world: &World) -> usize {
    world.store.plan.looks.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_lane_writes_without_a_look() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let before = looks(&world);
        for n in 0..50 {
            assert_eq!(word(&world.deduct(&format!("k{n}"), "1").await), "accepted");
        }
        assert_eq!(looks(&world), before, "what the provisioning left is remembered");
        assert_eq!(word(&world.deduct("k50", "951").await), "refused", "and a refusal is written too");
        assert_eq!(looks(&world), before);
        assert_eq!(world.balance().await, "950");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_taken_is_answered_from_the_database_and_the_others_of_its_batch_run_once() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let first = world.deduct("a", "1").await.unwrap();
        let replies = world.deduct_in_one_batch(&[("b", "1"), ("a", "1"), ("c", "1")]).await;
        assert_eq!(words(&replies), ["accepted", "replayed", "accepted"]);
        let (Reply::Decided { answer, .. }, Ok(Reply::Replayed(again))) = (&first, &replies[1]) else { panic!() };
        assert_eq!(answer, again);
        assert_eq!(world.balance().await, "997");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_replica_wrote_is_read_again() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let other = replica(&world);
        for n in 0..20 {
            assert_eq!(word(&world.deduct(&format!("k{n}"), "1").await), "accepted");
            assert_eq!(word(&other.deduct(&format!("o{n}"), "1").await), "accepted");
            assert_eq!(word(&other.deduct(&format!("k{n}"), "1").await), "replayed");
        }
        other.purchase("pay-1", "40", None).await;
        assert_eq!(word(&world.deduct("all", "1000").await), "accepted", "with what was bought elsewhere");
        assert_eq!(word(&other.deduct("more", "0.000001").await), "refused", "and nothing is left anywhere");
        other.engine.stop().await;
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_at_once_spend_what_there_is_and_not_more() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let other = replica(&world);
        let keys: Vec<String> = (0..500).map(|n| n.to_string()).collect();
        let send = |replica: &World, side: &'static str| {
            let world = replica.beside(replica.engine.clone());
            let keys = keys.clone();
            async move {
                let mut accepted = 0;
                for chunk in keys.chunks(25) {
                    let of_chunk = chunk.iter().map(|key| {
                        let (world, key) = (&world, format!("{side}{key}"));
                        async move { world.deduct(&key, "2").await }
                    });
                    let replies: Vec<Result<Reply, EngineError>> = join_all(of_chunk).await;
                    accepted += words(&replies).iter().filter(|word| **word == "accepted").count();
                    assert!(words(&replies).iter().all(|word| ["accepted", "refused"].contains(word)));
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
async fn under_load_with_failures_every_key_runs_exactly_once() {
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
async fn commands_that_look_first_and_commands_that_need_not_are_all_answered() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let buy = join_all((0..20).map(|n| {
            let world = &world;
            async move { world.purchase(&format!("pay-{n}"), "3", None).await }
        }));
        let deductions = join_all((0..60).map(|n| {
            let world = &world;
            async move { word(&world.deduct(&format!("k{n}"), "1").await) }
        }));
        let nobody = WorkspaceId(world.clock.new_id());
        let stray = join_all((0..20).map(|n| {
            let world = &world;
            async move { word(&world.deduct_from(nobody, &format!("s{n}"), "1").await) }
        }));
        let (_, spent, strayed) = tokio::join!(buy, deductions, stray);
        assert!(spent.iter().all(|word| *word == "accepted"));
        assert!(strayed.iter().all(|word| *word == "refused"), "its workspace does not exist");
        assert_eq!(world.balance().await, "1000");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_replica_wrote_to_a_neighbour_is_not_remembered_either() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let [neighbour] = neighbours(&world).await;
        let other = replica(&world);
        assert_eq!(word(&world.deduct_from(neighbour, "a", "1").await), "accepted");
        assert_eq!(word(&other.deduct_from(neighbour, "b", "999").await), "accepted");
        assert_eq!(word(&world.deduct("c", "1").await), "accepted", "this one sees that somebody wrote");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(word(&world.deduct("d", "1").await), "accepted", "and trusts its memory again");
        // A refusal without a usage log or an event: it would be written over the neighbour's balance.
        let unknown = world.deduct_feature(neighbour, "e", "nothing", "1").await;
        assert_eq!(word(&unknown), "refused");
        let credits = world.store.workspace(neighbour).await.unwrap().unwrap().credits;
        assert_eq!((credits.current_credits, credits.usage_seq), (Credits::ZERO, 2), "both deductions are there");
        other.engine.stop().await;
        world.audit_and_close().await;
    }
}

/// Two replicas that write to the same partition, each to its own workspaces and both to some. (One server at a time
/// serves an SQLite file.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_share_a_partition_need_no_locks_while_they_do_not_meet() {
    let world = World::on(Database::Postgres).await;
    let ids: [_; 3] = neighbours(&world).await;
    let other = replica(&world);
    // Both look once.
    assert_eq!(word(&other.deduct_from(ids[0], "first", "1").await), "accepted");
    assert_eq!(word(&world.deduct_from(ids[0], "second", "1").await), "accepted");
    let before = looks(&world);
    for n in 0..20 {
        let key = format!("k{n}");
        assert_eq!(word(&world.deduct_from(ids[0], &key, "1").await), "accepted");
        assert_eq!(word(&other.deduct_from(ids[1], &key, "1").await), "accepted");
        // What the other left is caught up with.
        assert_eq!(word(&world.deduct_from(ids[2], &format!("w{n}"), "1").await), "accepted");
        assert_eq!(word(&other.deduct_from(ids[2], &format!("o{n}"), "1").await), "accepted");
    }
    assert_eq!(looks(&world), before, "nothing was locked");
    let balance = async |id| world.store.workspace(id).await.unwrap().unwrap().credits.current_credits;
    let left: Vec<_> = [balance(ids[0]).await, balance(ids[1]).await, balance(ids[2]).await].into();
    assert_eq!(left, [Credits::whole(978), Credits::whole(980), Credits::whole(960)]);
    // More than the row: a purchase by one is spent by the other.
    World { workspace_id: ids[2], ..other.beside(other.engine.clone()) }.purchase("pay-1", "7", None).await;
    assert_eq!(word(&world.deduct_from(ids[2], "all", "967").await), "accepted");
    assert_eq!(word(&other.deduct_from(ids[2], "more", "0.000001").await), "refused");
    other.engine.stop().await;
    world.audit_and_close().await;
}

/// Room for some three states in each partition: what was not asked for the longest is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_with_little_memory_reads_again_and_answers_the_same() {
    for database in Database::ALL {
        let memory_bytes = usize::from(PARTITIONS) * 4096;
        let world = World::with(database, EngineConfig { memory_bytes, ..ONE_LANE }).await;
        let ids = neighbours::<12>(&world).await;
        let read = || world.store.plan.states_read.swap(0, Ordering::SeqCst);
        let deduct = async |place: usize, round: usize| {
            assert_eq!(word(&world.deduct_from(ids[place], &format!("{place}-{round}"), "1").await), "accepted");
        };
        for round in 0..3 {
            for place in 0..ids.len() {
                deduct(place, round).await;
            }
        }
        assert!(read() >= 2 * ids.len(), "each had been forgotten when its turn came again");
        deduct(11, 3).await;
        deduct(11, 4).await;
        assert_eq!(read(), 0, "the last one is remembered");
        let before = looks(&world);
        for round in 5..10 {
            deduct(0, round).await;
            deduct(1, round).await;
        }
        assert_eq!((read(), looks(&world)), (2, before), "and so are two by turns");
        let balance =
            async |place: usize| world.store.workspace(ids[place]).await.unwrap().unwrap().credits.current_credits;
        assert_eq!([balance(0).await, balance(5).await, balance(11).await], [992, 997, 995].map(Credits::whole));
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_without_memory_reads_each_time_and_answers_the_same() {
    for database in Database::ALL {
        let world = World::with(database, EngineConfig { memory_bytes: 0, ..ONE_LANE }).await;
        for n in 0..5 {
            let replies = world.deduct_in_one_batch(&[(&format!("a{n}"), "1"), (&format!("b{n}"), "2")]).await;
            assert_eq!(words(&replies), ["accepted", "accepted"]);
        }
        assert!(world.store.plan.states_read.load(Ordering::SeqCst) >= 5);
        assert_eq!(world.balance().await, "985");
        world.audit_and_close().await;
    }
}

/// A refusal that nothing is written for proves nothing about its key: it is looked up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_would_be_refused_now_is_replayed_if_it_was_accepted_before() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let other = replica(&world);
        let [neighbour] = neighbours(&world).await;
        let now = world.clock.now();
        let long_ago = Some(now.plus(TimeDelta::minutes(1) - TimeDelta::days(35)));
        let late = |key: &str| world.deduction(world.workspace_id, key, "render", "1", long_ago);
        assert_eq!(word(&world.engine.submit(late("k")).await), "accepted");
        // The other one knows the partition, but not the workspace.
        assert_eq!(word(&other.deduct_from(neighbour, "n", "1").await), "accepted");
        world.clock.set(now.plus(TimeDelta::minutes(2)));
        assert_eq!(word(&other.engine.submit(late("k")).await), "replayed");
        for replica in [&world, &other] {
            // The neighbour is known, so that the batch is written at once, and only then what it leaves open is
            // looked at.
            let deduction = || world.deduction(neighbour, &world.clock.new_id().to_string(), "render", "1", None);
            assert_eq!(word(&replica.engine.submit(deduction()).await), "accepted");
            let batch = vec![deduction(), late("k"), late("fresh"), deduction()];
            let replies = replica.submit_in_one_batch(batch).await;
            assert_eq!(words(&replies), ["accepted", "replayed", "refused", "accepted"]);
            assert_eq!(word(&replica.engine.submit(late("k")).await), "replayed");
        }
        assert_eq!(world.balance().await, "999");
        other.engine.stop().await;
        world.audit_and_close().await;
    }
}
