//! When a new build is read, and what of the build before it stays.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use visionscope_billing::clock::Clock;
use visionscope_billing::domain::dead_letter::LetterState;
use visionscope_billing::domain::event::EventType;

use crate::databases::Database;
use crate::replays::{PARKED, version_of};
use crate::world::{Random, World};

const LEASE: Duration = Duration::from_secs(10);
/// Longer than it takes until a runner has looked twice whether it can switch.
const AFTER_REFRESH: Duration = Duration::from_millis(2500);
const OLDEST: &str = "select cast(min(version) as bigint) from consumers";
const NEWEST: &str = "select cast(max(version) as bigint) from consumers";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_has_not_caught_up_is_not_read() {
    for kind in Database::ALL {
        let world = World::with_usage(kind, 4).await;
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        world.execute(&["update consumers set state = 'paused', reason = 'A test', changed_by = 'operator'"]).await;
        tokio::time::sleep(AFTER_REFRESH).await;
        world.begin_second_build().await;
        tokio::time::sleep(AFTER_REFRESH).await;
        assert_eq!(world.integers(NEWEST).await, [[1]], "it has taken nothing");
        world.execute(&["update consumers set state = 'running', reason = null"]).await;
        world.wait_for(OLDEST, 2).await;
        let behind = "select cast(count(*) as bigint) from consumer_cursors n join consumer_cursors o
            on o.consumer = n.consumer and o.partition_id = n.partition_id and o.version = 1
            where n.version = 2 and n.seq < o.seq";
        assert_eq!(world.integers(behind).await, [[0]], "nothing that was read before is missing");
        runner.stop().await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_leaves_more_workspaces_out_is_not_read() {
    for kind in Database::ALL {
        let world = World::with_usage(kind, 4).await;
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        let event = world.poison(world.workspaces[0], EventType::CreditConsumed, 1).await;
        world.begin_second_build().await;
        world.wait_until_taken(2).await;
        tokio::time::sleep(AFTER_REFRESH).await;
        assert_eq!(world.integers(NEWEST).await, [[1]]);
        world.mend(&event).await;
        let letters = world.letters_in(LetterState::Open).await;
        assert!(letters.iter().all(|letter| version_of(letter) == Some(2)), "{letters:?}");
        world.change_letters(letters, LetterState::Replaying).await;
        world.wait_for(PARKED, 0).await;
        world.wait_for(OLDEST, 2).await;
        runner.stop().await;
        world.assert_all(2).await;
        world.close().await;
    }
}

/// A rebuild knows of an event that was discarded when the statement was closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_keeps_the_statements_that_were_closed() {
    for kind in Database::ALL {
        let world = World::with_usage(kind, 4).await;
        let event = world.poison(world.workspaces[0], EventType::CreditConsumed, 1).await;
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        let letters = world.letters_in(LetterState::Open).await;
        world.change_letters(letters, LetterState::Discarded).await;
        world.wait_for(PARKED, 0).await;
        world.random_commands(&mut Random(5), 50).await;
        world.clock.set(world.clock.now().plus(TimeDelta::days(45)));
        world.random_commands(&mut Random(6), 50).await;
        world.wait_until_taken(1).await;
        let closed = |version: i32| {
            format!(
                "select cast(count(*) as bigint) from statements where version = {version} and unexplained = -2000000
                and closed_at is not null"
            )
        };
        assert_eq!(world.integers(&closed(1)).await, [[1]]);

        world.mend(&event).await;
        world.begin_second_build().await;
        world.wait_until_taken(2).await;
        world.wait_for(OLDEST, 2).await;
        runner.stop().await;
        assert_eq!(world.integers(&closed(2)).await, [[1]]);
        for (table, columns) in [
            (
                "statements",
                "workspace_id, period_start, sha256, closing, consumed, unexplained, first_seq, last_seq, closed_at",
            ),
            (
                "statement_lines",
                "workspace_id, period_start, feature_code, credits, refunded, quantity, deductions, refused",
            ),
        ] {
            for [one, other] in [[1, 2], [2, 1]] {
                let changed = format!(
                    "select cast(count(*) as bigint) from (select {columns} from {table} where version = {one}
                    except select {columns} from {table} where version = {other}) d"
                );
                assert_eq!(world.integers(&changed).await, [[0]], "{table}");
            }
        }
        assert_eq!(world.database.store.audit(10).await.unwrap(), []);
        let usage = "select cast(sum(d.credits) as bigint) from usage_days d where version = 2";
        let logged = "select cast(sum(credits) as bigint) from usage_logs";
        assert_eq!(world.integers(usage).await, world.integers(logged).await, "analytics has the event now");
        world.close().await;
    }
}

/// Older servers make other figures: they may hold every lease, and do nothing for these.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_goes_on_and_a_letter_is_tried_while_older_servers_hold_the_leases() {
    for kind in Database::ALL {
        let world = World::with_usage(kind, 4).await;
        let event = world.poison(world.workspaces[0], EventType::CreditConsumed, 1).await;
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        runner.stop().await;
        for _ in 0..100 {
            world.deduct(world.workspaces[1], "0.01").await.unwrap();
        }
        let for_ever = match kind {
            Database::Sqlite => "4000000000000000",
            Database::Postgres => "'2096-01-01'",
        };
        let lease = format!("update consumer_leases set owner = 'older', leased_until = {for_ever}");
        world.execute(&[&lease]).await;
        world.mend(&event).await;
        world.change_letters(world.letters_in(LetterState::Open).await, LetterState::Replaying).await;
        world.clock.set(world.clock.now().plus(TimeDelta::seconds(10)));
        let begun = Instant::now();
        let runner = world.consume(LEASE);
        world.wait_for(PARKED, 0).await;
        world.wait_until_taken(1).await;
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "one wait, and not one for each beat: {:?}",
            begun.elapsed()
        );
        runner.stop().await;
        world.assert_all(1).await;
        world.close().await;
    }
}
