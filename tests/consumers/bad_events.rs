//! Events that cannot be taken: their workspaces wait, and all others go on.

use std::time::Duration;

use visionscope_billing::clock::{Clock, SystemClock};
use visionscope_billing::domain::consumers::{Consumer, ConsumerState};
use visionscope_billing::domain::event::EventType;

use crate::databases::Database;
use crate::figures::id;
use crate::world::World;

const LEASE: Duration = Duration::from_secs(10);
/// Longer than it takes until a runner reads the states of the consumers again.
const AFTER_REFRESH: Duration = Duration::from_millis(2500);

async fn letters_of(world: &World, class: &str, text: &str) -> i64 {
    let sql = format!(
        "select cast(count(*) as bigint) from dead_letters d
        join parked_workspaces p on p.dead_letter_id = d.dead_letter_id and p.workspace_seq = d.workspace_seq
        where d.error_class = '{class}' and d.error like '%{text}%' and d.state = 'open'
            and d.source = 'consumer' and d.name = 'analytics'"
    );
    world.integers(&sql).await[0][0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_event_parks_its_workspace_and_all_others_go_on() {
    let purchase = r#"[{"grant_id":"00000000-0000-0000-0000-000000000001","source":"purchase","credits":"1"}]"#;
    for kind in Database::ALL {
        let world = World::with_usage(kind, 6).await;
        let poisons = [
            ("{\"credits\":true}".to_owned(), "unreadable", "boolean"),
            (String::new(), "contradiction", "negative"),
            (String::new(), "contradiction", "is unknown"),
        ];
        for (workspace_id, (data, class, _)) in world.workspaces.iter().zip(&poisons) {
            let event = world.event(*workspace_id, EventType::CreditConsumed, 1).await;
            let data = match (*class, data.as_str()) {
                ("unreadable", data) => data.to_owned(),
                _ if *workspace_id == world.workspaces[1] => {
                    event.data.replace("\"credits\":\"2\"", "\"credits\":\"-2\"")
                }
                _ => {
                    let from = event.data.find("\"grants\":[").unwrap() + "\"grants\":".len();
                    let to = from + event.data[from..].find(']').unwrap() + 1;
                    format!("{}{purchase}{}", &event.data[..from], &event.data[to..])
                }
            };
            assert_ne!(data, event.data);
            world.change_event(&event, &format!("data = '{data}'")).await;
        }
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        for (_, class, text) in &poisons {
            assert_eq!(letters_of(&world, class, text).await, 1, "{class}: {text}");
        }
        let parked = &world.workspaces[..3];
        for workspace_id in &world.workspaces {
            world.deduct(*workspace_id, "8").await.unwrap();
        }
        world.wait_until_taken(1).await;
        world.assert_usage(1, parked).await;
        for workspace_id in parked {
            let sums = format!(
                "select cast(sum(credits) as bigint), cast(sum(deductions) as bigint) from usage_days where workspace_id = {}",
                id(kind, *workspace_id)
            );
            assert_eq!(world.integers(&sums).await, [[1_000_000, 1]], "only what came before the poisoned event");
        }
        assert_eq!(
            world.integers("select cast(count(*) as bigint) from parked_workspaces where consumer = 'analytics'").await,
            [[3]]
        );
        runner.stop().await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_rows_the_database_refuses_is_found() {
    for kind in Database::ALL {
        let world = World::with_usage(kind, 5).await;
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        runner.stop().await;
        // The next deduction of the first workspace makes a sum that no column can hold.
        let first = world.workspaces[0];
        let place = format!("where workspace_id = {}", id(kind, first));
        world.execute(&[&format!("update usage_days set credits = 9223372036854775807 {place}")]).await;
        for _ in 0..3 {
            for workspace_id in &world.workspaces {
                world.deduct(*workspace_id, "1").await.unwrap();
            }
        }
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        runner.stop().await;
        assert_eq!(letters_of(&world, "refused_by_database", "").await, 1);
        let refused = world.event(first, EventType::CreditConsumed, 3).await;
        let seq = format!("select workspace_seq from parked_workspaces {place}");
        assert_eq!(world.integers(&seq).await, [[refused.workspace_seq]], "it is the first one that does not fit");
        world.assert_usage(1, &[first]).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_event_is_waited_for_and_other_partitions_go_on() {
    let newer_schema = ("schema_version = 2", "schema_version = 1", "CreditConsumed 2");
    let newer_type = ("event_type = 'CreditsLent'", "event_type = 'CreditConsumed'", "CreditsLent 1");
    let changes = [newer_schema, newer_type];
    for (kind, (written, known, name)) in
        Database::ALL.into_iter().flat_map(|kind| changes.map(|change| (kind, change)))
    {
        let world = World::with_usage(kind, 8).await;
        let newer = world.event(world.workspaces[0], EventType::CreditConsumed, 1).await;
        world.change_event(&newer, written).await;
        let partition = newer.partition.number();
        let others = format!(
            "select cast(count(*) as bigint) from outbox_partitions p
            join consumer_cursors c on c.partition_id = p.partition_id where c.seq < p.seq and p.partition_id <> {partition}"
        );
        let waits = format!(
            "select cast(count(*) as bigint) from consumer_cursors where partition_id = {partition} and seq = {}
            and waiting_for = '{name}' and consumer = 'analytics'",
            newer.seq - 1
        );
        let runner = world.consume(LEASE);
        world.wait_for(&others, 0).await;
        world.wait_for(&waits, 1).await;
        runner.stop().await;
        assert_eq!(world.integers("select cast(count(*) as bigint) from dead_letters").await, [[0]]);
        // A server that knows it.
        world.change_event(&newer, known).await;
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        runner.stop().await;
        world.assert_figures(1).await;
        assert_eq!(world.integers(&waits).await, [[0]]);
        world.close().await;
    }
}

/// Nobody can tell what it says, or whose it is: no workspace can be left out instead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_cannot_be_read_or_is_missing_stops_its_partition_only() {
    let unreadable = "update event_outbox set schema_version = 99999";
    for (kind, is_missing) in [(Database::Sqlite, false), (Database::Sqlite, true), (Database::Postgres, true)] {
        let world = World::with_usage(kind, 8).await;
        let bad = world.event(world.workspaces[0], EventType::CreditConsumed, 1).await;
        let statement = if is_missing { "delete from event_outbox" } else { unreadable };
        world.database.tamper(&bad, statement).await;
        let runner = world.consume(LEASE);
        let partition = bad.partition.number();
        let others = format!(
            "select cast(count(*) as bigint) from outbox_partitions p
            join consumer_cursors c on c.partition_id = p.partition_id where c.seq < p.seq and p.partition_id <> {partition}"
        );
        world.wait_for(&others, 0).await;
        let before = format!(
            "select cast(count(*) as bigint) from consumer_cursors where partition_id = {partition} and seq = {}",
            bad.seq - 1
        );
        world.wait_for(&before, i64::try_from(Consumer::ALL.len()).unwrap()).await;
        for workspace_id in &world.workspaces[1..] {
            world.deduct(*workspace_id, "8").await.unwrap();
        }
        world.wait_for(&others, 0).await;
        runner.stop().await;
        assert_eq!(world.integers("select cast(count(*) as bigint) from dead_letters").await, [[0]]);
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_with_many_parked_workspaces_is_tripped_until_it_is_resumed() {
    for kind in Database::ALL {
        let world = World::on(kind, 22).await;
        for workspace_id in &world.workspaces[..21] {
            let event = world.event(*workspace_id, EventType::WorkspaceProvisioned, 0).await;
            world.change_event(&event, "data = '{}'").await;
        }
        // As in production, where the consumer was started before.
        world.clock.set(SystemClock.now());
        let state = async || world.database.server_store.consumers().await.unwrap().remove(0);
        let runner = world.consume(LEASE);
        world
            .wait_for(
                "select cast(count(*) as bigint) from consumers where state = 'tripped' and consumer = 'analytics'",
                1,
            )
            .await;
        let tripped = state().await;
        assert_eq!(
            tripped.reason.as_deref(),
            Some("the events of 21 workspaces could not be taken within five minutes")
        );
        let healthy = world.workspaces[21];
        tokio::time::sleep(AFTER_REFRESH).await;
        world.deduct(healthy, "1").await.unwrap();
        tokio::time::sleep(AFTER_REFRESH).await;
        assert_eq!(world.integers("select cast(count(*) as bigint) from usage_days").await, [[0]], "it stands still");
        let now = if kind == Database::Sqlite { "unixepoch() * 1000000" } else { "now()" };
        let resume = format!("update consumers set state = 'running', reason = null, changed_at = {now}");
        world.execute(&[&resume]).await;
        world.wait_until_taken(1).await;
        tokio::time::sleep(AFTER_REFRESH).await;
        assert_eq!(state().await.state, ConsumerState::Running, "those that are parked already do not trip it again");
        world.assert_usage(1, &[]).await;
        runner.stop().await;
        world.close().await;
    }
}
