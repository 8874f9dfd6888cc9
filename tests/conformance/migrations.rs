//! Migrating a database that is in use: whatever was stored under the first schema is there afterwards, sound,
//! and goes on.

use std::time::Duration;

use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::entry::Entry;
use visionscope_billing::domain::event::EventRecord;
use visionscope_billing::domain::ids::{PARTITIONS, WorkspaceId};
use visionscope_billing::domain::snapshot::{PartitionHead, WorkspaceState};
use visionscope_billing::domain::usage::UsageLog;
use visionscope_billing::store::Store;
use visionscope_billing::store::views::{EventQuery, HistoryQuery, PartitionStatus};

use crate::database::TestDatabase;
use crate::fixtures::{World, at, keys_of, load, workspace, world_of};
use crate::outbox::record;

/// More than lie between two marks of history.
const DEDUCTIONS: i64 = 70;
const WORKSPACES: usize = 3;
const ALL: u32 = 1_000;

/// The numbers of all commands. The first schema has none.
const COMMANDS: &str = "select seq from commands order by workspace_id, recorded_at";

/// Fills a table of the first schema from the same rows in the schema `later`: a grant's and a feature's own row
/// had its figures.
pub fn copy_from_later(table: &str, columns: &str) -> String {
    let source = match table {
        "credit_grants" => "credit_grants_now",
        "workspace_features" => "workspace_features_now",
        other => other,
    };
    format!("delete from {table}; insert into {table} ({columns}) select {columns} from later.{source}")
}

/// All that can be asked of one workspace.
#[derive(Debug, PartialEq)]
struct Everything {
    head: Option<PartitionHead>,
    state: Option<Box<WorkspaceState>>,
    usage_logs: Vec<UsageLog>,
    entries: Vec<Entry>,
    events: Vec<EventRecord>,
    status: Vec<PartitionStatus>,
}

async fn everything(store: &dyn Store, id: WorkspaceId) -> Everything {
    let mut found = load(store, &keys_of([id])).await;
    let history =
        HistoryQuery { workspace_id: id, before_seq: None, feature_code: None, from: None, to: None, limit: ALL };
    Everything {
        head: found.heads.pop_first().map(|(_, head)| head),
        state: found.workspaces.remove(&id),
        usage_logs: store.usage(&history).await.unwrap().rows,
        entries: store.ledger(&history).await.unwrap().rows,
        events: store.events(&EventQuery::OfWorkspace { workspace_id: id, after: 0, limit: ALL }).await.unwrap(),
        status: store.status().await.unwrap(),
    }
}

async fn history(db: &impl TestDatabase) -> World {
    let mut world = world_of(db.store(), WORKSPACES).await;
    for n in 1..=DEDUCTIONS {
        world.deduct(workspace(0), Credits::whole(n % 7 + 1), at(2 * n)).refuse(workspace(1), at(2 * n));
        if n % 10 == 0 {
            world.deduct(workspace(1), Credits::whole(2), at(2 * n + 1)).store(db.store()).await;
        }
    }
    let leases = db.store().lease("one", Duration::from_hours(1)).await.unwrap();
    assert_eq!(leases.len(), usize::from(PARTITIONS));
    record(db, &leases[3], 5).await;
    world
}

pub async fn what_was_stored_under_the_first_schema_is_there_after_migrating(db: &impl TestDatabase) {
    let mut world = history(db).await;
    let mut before = Vec::new();
    for nth in 0..WORKSPACES {
        before.push(everything(db.store(), workspace(nth)).await);
    }
    let commands = db.integers(COMMANDS).await;
    let migrated = db.in_first_schema().await;
    migrated.store().migrate().await.unwrap();
    assert_eq!(migrated.store().audit(ALL).await.unwrap(), []);
    for (nth, before) in before.into_iter().enumerate() {
        let mut after = everything(migrated.store(), workspace(nth)).await;
        // Nobody knows any more which command was the last that wrote more than the workspace's row.
        let credits = &mut after.state.as_mut().unwrap().credits;
        assert_eq!(credits.rest_seq, credits.command_seq);
        credits.rest_seq = before.state.as_ref().unwrap().credits.rest_seq;
        assert_eq!(after, before, "workspace {nth}");
    }
    assert_eq!(migrated.integers(COMMANDS).await, commands);
    let now = at(3 * DEDUCTIONS);
    world.deduct(workspace(0), Credits::whole(1), now).refuse(workspace(2), now).store(migrated.store()).await;
    assert_eq!(migrated.store().audit(ALL).await.unwrap(), []);
    let after = everything(migrated.store(), workspace(0)).await;
    assert_eq!(after.usage_logs.len(), usize::try_from(DEDUCTIONS).unwrap() + 1);
    migrated.destroy().await;
}
