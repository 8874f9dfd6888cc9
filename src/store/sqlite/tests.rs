//! What only SQLite can get wrong. What both stores promise is in `tests/conformance`.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use sqlx::{Executor, SqlSafeStr};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::domain::change_set::{ChangeSet, Rows};
use crate::domain::command_record::CommandRecord;
use crate::domain::counter::{CounterSubject, UsageCounter};
use crate::domain::credits::Credits;
use crate::domain::event::{EventRecord, EventType};
use crate::domain::grant::{CostBasis, Currency, Grant, GrantSource};
use crate::domain::ids::{CommandId, EventId, GrantId, Partition, SubscriptionId, WorkspaceId};
use crate::domain::ledger::{Account, Accounts, LedgerEntry};
use crate::domain::metadata::Metadata;
use crate::domain::partition_head::PartitionHead;
use crate::domain::period::Period;
use crate::domain::plan::tests::pro;
use crate::domain::snapshot::{KeySet, Snapshot, WorkspaceState};
use crate::domain::subscription::{Subscription, SubscriptionStatus};
use crate::domain::text::{FeatureCode, IdempotencyKey, Label, PaymentReference};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::{FeatureOverride, OwnTerms, Workspace, WorkspaceCredits};
use crate::store::{Outbox, Reads};

const NOON: Timestamp = Timestamp::from_micros(1_800_000_000_000_001);

async fn store() -> (TempDir, SqliteStore) {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(&SqliteConfig::new(folder.path().join("data/billing.db"))).await.unwrap();
    store.migrate().await.unwrap();
    store.put_plans(&[pro()], NOON).await.unwrap();
    (folder, store)
}

fn workspace(id: u128) -> WorkspaceId {
    WorkspaceId(Uuid::from_u128(id))
}

fn keys(workspace_id: WorkspaceId) -> KeySet {
    KeySet { workspaces: BTreeSet::from([workspace_id]), ..KeySet::default() }
}

fn state(workspace_id: WorkspaceId) -> WorkspaceState {
    let plan = Arc::new(pro());
    let own = OwnTerms { enabled: Some(true), unit_price: None, limit: Some(Credits::whole(9)) };
    let render = FeatureCode::new("render").unwrap();
    WorkspaceState {
        workspace: Workspace {
            workspace_id,
            name: Label::new("Zoë \"\\ & 東京").unwrap(),
            time_zone: chrono_tz::Europe::Berlin,
            monthly_limit_override: None,
            overdraft_limit_override: Some(Credits::whole(5)),
            created_at: NOON,
        },
        credits: WorkspaceCredits { current_credits: Credits::whole(10), ..WorkspaceCredits::new(workspace_id, NOON) },
        subscription: Subscription {
            workspace_id,
            subscription_id: SubscriptionId(Uuid::from_u128(7)),
            plan_code: plan.plan_code.clone(),
            plan_version: plan.version,
            status: SubscriptionStatus::Active,
            billing_anchor: NOON,
            period: Period { start: NOON, end: Timestamp::from_micros(NOON.micros() + 10) },
            version: 1,
            pending_change: None,
            canceled_at: None,
            updated_at: NOON,
        },
        feature_overrides: [(render.clone(), own)].into(),
        counters: vec![UsageCounter {
            reported_limit: Some(Credits::whole(5)),
            ..UsageCounter::new(workspace_id, CounterSubject::Feature(render), NOON)
        }],
        plan,
        pending_plan: None,
        grants: vec![Grant {
            workspace_id,
            grant_id: GrantId(Uuid::from_u128(8)),
            source: GrantSource::Purchase,
            amount: Credits::whole(10),
            remaining: Credits::whole(10),
            held: Credits::ZERO,
            priority: 50,
            effective_at: NOON,
            expires_at: Some(NOON),
            feature_scope: None,
            payment_reference: Some(PaymentReference::new("p-1").unwrap()),
            cost_basis: Some(CostBasis { amount_minor: 1, currency: Currency::new("EUR").unwrap() }),
        }],
    }
}

fn provisioning(state: &WorkspaceState) -> ChangeSet {
    let id = state.workspace.workspace_id;
    let inserted = |rows| Rows { inserted: rows, updated: Vec::new() };
    let inserted_counters = Rows { inserted: state.counters.clone(), updated: Vec::new() };
    ChangeSet {
        workspaces: vec![state.workspace.clone()],
        credits: inserted(vec![state.credits.clone()]),
        subscriptions: Rows { inserted: vec![state.subscription.clone()], updated: Vec::new() },
        feature_overrides: state
            .feature_overrides
            .iter()
            .map(|(code, terms)| FeatureOverride { workspace_id: id, feature_code: code.clone(), terms: *terms })
            .collect(),
        counters: inserted_counters,
        grants: Rows { inserted: state.grants.clone(), updated: Vec::new() },
        ..ChangeSet::default()
    }
}

async fn provision(store: &SqliteStore, workspace_id: WorkspaceId) -> WorkspaceState {
    let state = state(workspace_id);
    store.begin().await.unwrap().commit(&provisioning(&state)).await.unwrap();
    state
}

/// A deduction of one micro-credit as the engine would write it.
fn deduction(snapshot: &Snapshot, workspace_id: WorkspaceId) -> ChangeSet {
    let state = &snapshot.workspaces[&workspace_id];
    let head = snapshot.heads[&Partition::of(workspace_id)];
    let micro = Credits::from_micro(1).unwrap();
    let number = state.credits.ledger_seq + 1;
    let command_id = CommandId(Uuid::from_u128(workspace_id.0.as_u128() << 32 | u128::from(number.unsigned_abs())));
    let mut credits = state.credits.clone();
    (credits.version, credits.ledger_seq, credits.usage_seq, credits.event_seq) = (number, number, number, number);
    let now = Timestamp::from_micros(NOON.micros() + number);
    credits.current_credits = credits.current_credits.minus(micro).unwrap();
    let mut grant = state.grants[0].clone();
    grant.remaining = grant.remaining.minus(micro).unwrap();
    let feature = FeatureCode::new("render").unwrap();
    let entry = LedgerEntry {
        workspace_id,
        seq: number,
        command_id,
        accounts: Accounts { debit: Account::Grant(grant.grant_id), credit: Account::Consumed(feature.clone()) },
        amount: micro,
        balance_after: credits.current_credits,
        recorded_at: now,
        effective_at: NOON,
    };
    let usage_log = UsageLog {
        workspace_id,
        seq: number,
        command_id,
        feature_code: feature,
        user_id: None,
        credits: micro,
        quantity: None,
        occurred_at: NOON,
        recorded_at: now,
        metadata: Metadata::from_stored("{\"a\":\"\\\"\"}"),
    };
    let event = event(workspace_id, number, head.seq + 1);
    ChangeSet {
        heads: vec![PartitionHead {
            seq: event.seq,
            last_event_id: Some(event.event_id),
            version: head.version + 1,
            ..head
        }],
        ledger_entries: vec![entry],
        usage_logs: vec![usage_log],
        commands: vec![command(workspace_id, command_id, number)],
        events: vec![event],
        credits: Rows { inserted: Vec::new(), updated: vec![credits] },
        grants: Rows { inserted: Vec::new(), updated: vec![grant] },
        ..ChangeSet::default()
    }
}

fn command(workspace_id: WorkspaceId, command_id: CommandId, number: i64) -> CommandRecord {
    CommandRecord {
        workspace_id,
        idempotency_key: IdempotencyKey::new(&format!("k-{number}")).unwrap(),
        command_id,
        seq: number,
        command_type: "DeductCredits".into(),
        fingerprint: [0xa5; 32],
        outcome: "accepted".into(),
        status: 200,
        body: "{\"text\": \"\\u0000 \\\" é\u{2028}\"}\n".into(),
        actor: "test".into(),
        correlation_id: "c-1".into(),
        traceparent: None,
        metadata: None,
        received_at: NOON,
        recorded_at: NOON,
    }
}

fn event(workspace_id: WorkspaceId, workspace_seq: i64, seq: i64) -> EventRecord {
    let id = Uuid::from_u128(workspace_id.0.as_u128() << 32 | u128::from(workspace_seq.unsigned_abs()));
    EventRecord {
        event_id: EventId(id),
        event_type: EventType::CreditConsumed,
        schema_version: 1,
        partition: Partition::of(workspace_id),
        seq,
        workspace_id,
        workspace_seq,
        recorded_at: NOON,
        correlation_id: "c-1".into(),
        causation_id: id,
        traceparent: None,
        metadata: None,
        data: "{}".into(),
    }
}

async fn deduct(store: &SqliteStore, workspace_id: WorkspaceId) -> Result<ChangeSet, StoreError> {
    let mut tx = store.begin().await?;
    let changes = deduction(&tx.load(&keys(workspace_id)).await?, workspace_id);
    tx.commit(&changes).await?;
    Ok(changes)
}

#[tokio::test]
async fn every_statement_prepares() {
    let (_folder, store) = store().await;
    let mut tx = store.writer.acquire().await.unwrap();
    let mut count = 0;
    for statement in statements() {
        let prepared = tx.connection().prepare(sqlx::AssertSqlSafe(statement).into_sql_str()).await;
        prepared.unwrap_or_else(|error| panic!("{error}: {statement}"));
        count += 1;
    }
    assert!(count > 50, "{count}");
}

#[tokio::test]
async fn no_statement_of_the_write_path_scans_a_table() {
    let (_folder, store) = store().await;
    let mut tx = store.writer.acquire().await.unwrap();
    for statement in load::statements().into_iter().chain(write::statements()) {
        let explain = sqlx::AssertSqlSafe(format!("explain query plan {statement}"));
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(explain).bind("[]").fetch_all(tx.connection()).await.unwrap();
        for (_, _, _, step) in plan {
            let is_rows_of_parameter = step.contains("VIRTUAL TABLE") || step.contains("CONSTANT");
            assert!(is_rows_of_parameter || !step.starts_with("SCAN"), "{step}: {statement}");
        }
    }
}

#[tokio::test]
async fn what_was_written_is_read_back_equal() {
    let (_folder, store) = store().await;
    let mut expected = provision(&store, workspace(1)).await;
    let changes = deduct(&store, workspace(1)).await.unwrap();
    expected.credits = changes.credits.updated[0].clone();
    expected.grants = changes.grants.updated.clone();

    assert_eq!(store.workspace(workspace(1)).await.unwrap(), Some(expected));
    assert_eq!(store.workspace(workspace(2)).await.unwrap(), None);
    let mut tx = store.begin().await.unwrap();
    let command = changes.commands[0].clone();
    let key = (workspace(1), command.idempotency_key.clone());
    let snapshot = tx.load(&KeySet { commands: BTreeSet::from([key.clone()]), ..keys(workspace(1)) }).await.unwrap();
    assert_eq!(snapshot.commands[&key], command);
    let partition = Partition::of(workspace(1));
    assert_eq!(snapshot.heads[&partition], changes.heads[0]);
    assert_eq!(store.read(partition, 0, 10).await.unwrap(), changes.events);
}

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing_and_the_next_one_works() {
    let (_folder, store) = store().await;
    let before = provision(&store, workspace(1)).await;
    let mut tx = store.writer.begin().await.unwrap();
    tx.connection().execute("update workspace_credits set used_this_month = 3").await.unwrap();
    drop(tx);
    deduct(&store, workspace(1)).await.unwrap();
    let after = store.workspace(workspace(1)).await.unwrap().unwrap();
    assert_eq!(after.credits.used_this_month, before.credits.used_this_month);
}

#[tokio::test]
async fn history_can_be_neither_changed_nor_deleted_nor_replaced() {
    let (_folder, store) = store().await;
    provision(&store, workspace(1)).await;
    deduct(&store, workspace(1)).await.unwrap();
    for table in ["plan_versions", "plan_features", "commands", "ledger_entries", "usage_logs", "event_outbox"] {
        let column = if table.starts_with("plan") { "plan_code" } else { "workspace_id" };
        for statement in [
            format!("update {table} set {column} = {column}"),
            format!("delete from {table}"),
            format!("insert or replace into {table} select * from {table}"),
        ] {
            let mut tx = store.writer.begin().await.unwrap();
            let refused = tx.connection().execute(sqlx::AssertSqlSafe(statement.clone())).await;
            let text = refused.map_err(error::store_error).unwrap_err().to_string();
            assert!(text.contains("history is immutable"), "{statement}: {text}");
        }
    }
}

#[tokio::test]
async fn readers_see_what_is_committed_while_a_write_transaction_is_open() {
    let (_folder, store) = store().await;
    let before = provision(&store, workspace(1)).await;
    let mut tx = store.writer.begin().await.unwrap();
    tx.connection().execute("update workspace_credits set used_this_month = 3").await.unwrap();
    assert_eq!(store.workspace(workspace(1)).await.unwrap(), Some(before));
    tx.commit().await.unwrap();
    let after = store.workspace(workspace(1)).await.unwrap().unwrap();
    assert_eq!(after.credits.used_this_month, Credits::from_micro(3).unwrap());
    let refused = sqlx::query("delete from stream_leases").execute(&store.readers).await;
    assert!(refused.is_err(), "a reader cannot write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_writers_of_one_process_never_find_the_database_locked() {
    const EACH: usize = 40;
    let (_folder, store) = store().await;
    provision(&store, workspace(1)).await;
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..EACH {
                    deduct(&store, workspace(1)).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let state = store.workspace(workspace(1)).await.unwrap().unwrap();
    assert_eq!(state.credits.ledger_seq, 8 * 40);
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_once_there_is_room_writing_goes_on() {
    let (_folder, store) = store().await;
    provision(&store, workspace(1)).await;
    let mut tx = store.writer.begin().await.unwrap();
    tx.connection().execute("pragma max_page_count = 1").await.unwrap();
    let full = tx.connection().execute("create table filler as select zeroblob(1000000) as bytes").await;
    assert!(matches!(full.map_err(error::store_error), Err(StoreError::Unavailable(_))));
    drop(tx);
    let mut tx = store.writer.begin().await.unwrap();
    tx.connection().execute("pragma max_page_count = 1000000").await.unwrap();
    drop(tx);
    deduct(&store, workspace(1)).await.unwrap();
}

#[tokio::test]
async fn another_process_that_writes_is_waited_for_and_then_reported_as_unavailable() {
    let (folder, store) = store().await;
    let path = folder.path().join("data/billing.db");
    let other = SqliteStore::open(&SqliteConfig::new(path)).await.unwrap();
    let held = other.writer.begin().await.unwrap();
    let refused = store.begin().await.map(|_| ());
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    held.commit().await.unwrap();
    store.begin().await.unwrap();
}

#[tokio::test]
async fn a_second_server_is_refused_until_the_first_has_closed_and_others_are_not() {
    let folder = TempDir::new().unwrap();
    let (path, link) = (folder.path().join("data/billing.db"), folder.path().join("link.db"));
    let first = SqliteStore::open_to_serve(&SqliteConfig::new(&path)).await.unwrap();
    first.migrate().await.unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for name in [&path, &link] {
        let refused = SqliteStore::open_to_serve(&SqliteConfig::new(name)).await.map(|_| ());
        let Err(StoreError::Unavailable(text)) = refused else { panic!("{refused:?}") };
        assert!(text.contains("another server") && text.contains(&*name.to_string_lossy()), "{text}");
    }
    let beside = SqliteStore::open(&SqliteConfig::new(&path)).await.unwrap();
    assert!(beside.audit(1).await.unwrap().is_empty());
    beside.close().await;
    first.close().await;
    let second = SqliteStore::open_to_serve(&SqliteConfig::new(&link)).await.unwrap();
    second.ping().await.unwrap();
}

#[tokio::test]
async fn the_file_is_its_owners_alone_durable_and_found_again() {
    let (folder, store) = store().await;
    let expected = provision(&store, workspace(1)).await;
    let path = folder.path().join("data/billing.db");
    for suffix in ["", "-wal", "-shm"] {
        let file = std::fs::metadata(format!("{}{suffix}", path.display())).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "{suffix}");
    }
    let mut tx = store.writer.begin().await.unwrap();
    for (pragma, expected) in [("journal_mode", "wal"), ("synchronous", "2"), ("foreign_keys", "1")] {
        let query = sqlx::AssertSqlSafe(format!("select cast({pragma} as text) from pragma_{pragma}"));
        let value: String = sqlx::query_scalar(query).fetch_one(tx.connection()).await.unwrap();
        assert_eq!(value, expected, "{pragma}");
    }
    drop(tx);
    store.close().await;
    assert!(matches!(store.begin().await.map(|_| ()), Err(StoreError::Unavailable(_))));
    let again = SqliteStore::open(&SqliteConfig::new(path)).await.unwrap();
    again.migrate().await.unwrap();
    assert_eq!(again.workspace(workspace(1)).await.unwrap(), Some(expected));
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_is_interrupted_and_its_connection_serves_the_next() {
    let endless = "with recursive n (i) as (select 1 union all select i + 1 from n) select count(*) from n";
    let (_folder, store) = store().await;
    let mut connection = store.readers.acquire().await.unwrap();
    super::connection::limit(&mut connection, std::time::Duration::from_millis(50)).await.unwrap();
    let interrupted = sqlx::query(endless).execute(&mut *connection).await.map_err(super::error::store_error);
    assert!(matches!(interrupted, Err(StoreError::Unavailable(_))), "{interrupted:?}");
    drop(connection);
    for _ in 0..5 {
        store.ping().await.unwrap();
    }
}
