//! A build beside the one in use.

use std::sync::Arc;
use std::time::Duration;

use visionscope_billing::cleaning::Cleaner;
use visionscope_billing::domain::consumers::Consumer;

use crate::databases::Database;
use crate::world::{NO_LEASE, Random, World};

const LEASE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_build_has_the_same_rows_and_is_switched_to() {
    for kind in Database::ALL {
        let world = World::on(kind, 8).await;
        let runner = world.consume(LEASE);
        let mut random = Random(6);
        world.random_commands(&mut random, 150).await;
        world.wait_until_taken(1).await;
        world.begin_second_build().await;
        world.wait_until_taken(2).await;
        world.wait_for("select cast(version as bigint) from consumers", 2).await;
        for (table, columns) in [
            (
                "usage_days",
                "workspace_id, day, feature_code, partition_id, credits, refunded, quantity, deductions, refused",
            ),
            ("usage_hours", "partition_id, hour, plan_code, feature_code, credits, deductions, refused"),
            (
                "revenue_days",
                "partition_id, day, plan_code, currency, purchases, credits_sold, paid_minor, returned_minor,
                recognised_minor, active_workspaces, new_workspaces, canceled_workspaces",
            ),
            ("analytics_workspaces", "workspace_id, partition_id, plan_code, active_day"),
            ("notified_workspaces", "workspace_id, partition_id, period_start, added_seq, is_exhausted"),
            (
                "notifications",
                "workspace_id, kind, data, subject, period_start, partition_id, notification_id, event_id, workspace_seq,
                created_at",
            ),
            (
                "purchase_revenue",
                "workspace_id, grant_id, partition_id, currency, amount_minor, credits, used, recognised_minor",
            ),
        ] {
            let count = |version| format!("select cast(count(*) as bigint) from {table} where version = {version}");
            assert_eq!(world.integers(&count(1)).await, world.integers(&count(2)).await, "{table}");
            let other = format!(
                "select cast(count(*) as bigint) from (select {columns} from {table} where version = 1
                except select {columns} from {table} where version = 2) d"
            );
            assert_eq!(world.integers(&other).await, [[0]], "{table}");
        }
        let old = "select cast(sum(seq) as bigint) from consumer_cursors where version = 1";
        let before = world.integers(old).await;
        world.random_commands(&mut random, 50).await;
        world.wait_until_taken(2).await;
        world.assert_figures(2).await;
        assert_eq!(world.integers(old).await, before, "the old build stands still");

        // Step by step, and only what is no longer in use.
        let in_use = count_of(&world, 2).await;
        let store = world.database.server_store.clone();
        let cleaner = Cleaner { max_rows: 3, store, clock: Arc::new(world.clock.clone()) };
        let rows = count_of(&world, 1).await;
        assert!(rows > 100, "{rows}");
        assert_eq!(cleaner.clean().await.unwrap(), u64::try_from(rows).unwrap());
        assert_eq!((count_of(&world, 1).await, count_of(&world, 2).await), (0, in_use));
        world.random_commands(&mut random, 20).await;
        world.wait_until_taken(2).await;
        world.assert_figures(2).await;
        runner.stop().await;
        world.close().await;
    }
}

/// All rows of a version, and its cursors.
async fn count_of(world: &World, version: i32) -> i64 {
    let tables = [
        "consumer_cursors",
        "usage_days",
        "usage_hours",
        "revenue_days",
        "analytics_workspaces",
        "purchase_revenue",
        "statements",
        "statement_lines",
        "notified_workspaces",
        "notifications",
    ];
    let counts = tables.map(|table| format!("(select count(*) from {table} where version = {version})"));
    world.integers(&format!("select cast({} as bigint)", counts.join(" + "))).await[0][0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_newer_fold_makes_all_figures_again() {
    for kind in Database::ALL {
        let world = World::on(kind, 4).await;
        world.random_commands(&mut Random(7), 60).await;
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        runner.stop().await;
        // As an older version of the server has left them.
        world
            .execute(&["update consumers set fold_version = 0", "delete from usage_days", "delete from usage_hours"])
            .await;
        let runners: Vec<_> = (0..2).map(|_| world.consume(NO_LEASE)).collect();
        world.wait_for("select cast(min(version) as bigint) from consumers", 2).await;
        world.wait_until_taken(2).await;
        for runner in runners {
            runner.stop().await;
        }
        world.assert_figures(2).await;
        let acts =
            "select cast(count(*) as bigint) from ops_audit where actor = 'server' and action = 'consumer.rebuild'";
        let consumers = i64::try_from(Consumer::ALL.len()).unwrap();
        assert_eq!(world.integers(acts).await, [[consumers]], "once for each");
        world.close().await;
    }
}
