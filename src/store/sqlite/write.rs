//! One write transaction: load, then all rows of a batch in a fixed number of statements, then commit.
//!
//! Each table's rows go in one statement with one parameter (see [`super::json`]); a table without
//! rows costs nothing. Tables that only some commands write to are in [`super::rare`]. The heads of the
//! partitions are written first: they give the events their numbers. A workspace with another last command
//! than the one that was decided on is a conflict.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::connection::Transaction;
use super::error::store_error;
use super::json::{self, JsonRow};
use super::{in_time, load, rare, rows};
use crate::domain::change_set::{ChangeSet, CommandRecord};
use crate::domain::credits::Quantity;
use crate::domain::entry::Entry;
use crate::domain::event::EventRecord;
use crate::domain::grant::Grant;
use crate::domain::ids::WorkspaceId;
use crate::domain::metadata::Metadata;
use crate::domain::snapshot::{KeySet, PartitionHead, Snapshot};
use crate::domain::text::UserId;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::{WorkspaceCredits, WorkspaceFeature};
use crate::store::plan_cache::PlanCache;
use crate::store::{StoreError, WriteTx};

pub(super) const STATEMENTS: &[&str] = &[
    UPDATE_HEADS,
    UPDATE_EXPECTED_HEADS,
    WRITE_BATCH,
    WRITE_BATCH_VIEW,
    UPDATE_CREDITS,
    UPDATE_FEATURES,
    UPDATE_GRANTS,
    INSERT_COMMANDS,
    INSERT_ENTRIES,
    INSERT_USAGE_LOGS,
    INSERT_EVENTS,
];

/// A transaction on the writing connection.
pub(super) struct SqliteTx {
    tx: Transaction,
    plans: Arc<PlanCache>,
}

impl SqliteTx {
    pub(super) fn new(tx: Transaction, plans: Arc<PlanCache>) -> Self {
        Self { tx, plans }
    }
}

#[async_trait]
impl WriteTx for SqliteTx {
    async fn load(&mut self, keys: &KeySet) -> Result<Snapshot, StoreError> {
        in_time(load::load(self.tx.connection(), &self.plans, keys)).await
    }

    async fn commit(self: Box<Self>, changes: &ChangeSet) -> Result<(), StoreError> {
        let mut tx = self.tx;
        in_time(async move {
            write(tx.connection(), changes).await?;
            tx.commit().await
        })
        .await
    }
}

/// All rows of a batch, the heads first; gives them as they are then.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    changes: &ChangeSet,
) -> Result<Vec<PartitionHead>, StoreError> {
    let heads = update_heads(connection, changes).await?;
    let mut moved;
    let changes = if heads == changes.heads {
        changes
    } else {
        moved = changes.clone();
        moved.follow(&heads);
        &moved
    };
    rare::write(connection, changes).await?;
    update_credits(connection, changes).await?;
    update(connection, UPDATE_FEATURES, &changes.features.updated, feature).await?;
    update(connection, UPDATE_GRANTS, &changes.grants.updated, grant_state).await?;
    insert(connection, INSERT_COMMANDS, &changes.commands, command).await?;
    insert(connection, INSERT_ENTRIES, &changes.entries, entry).await?;
    insert(connection, INSERT_USAGE_LOGS, &changes.usage_logs, usage_log).await?;
    insert(connection, INSERT_EVENTS, &changes.events, event).await?;
    Ok(heads)
}

/// What a batch of deductions writes, in one statement and with that in one visit to the connection's thread, each
/// of which costs as much as writing a command. A transaction of its own, or nothing. A head with another
/// version than the one that was expected is a conflict here: [`write()`] would give other numbers.
pub(super) async fn write_at_once(connection: &mut SqliteConnection, changes: &ChangeSet) -> Result<(), StoreError> {
    let ChangeSet { heads, credits: rows, features, grants, commands, entries, usage_logs, events, .. } = changes;
    let statement = sqlx::query(WRITE_BATCH)
        .bind(json::rows(heads, head))
        .bind(json::rows(changes.moved_credits(), moved_credits))
        .bind(json::rows(&features.updated, feature))
        .bind(json::rows(&grants.updated, grant_state))
        .bind(json::rows(commands, command))
        .bind(json::rows(entries, entry))
        .bind(json::rows(usage_logs, usage_log))
        .bind(json::rows(events, event))
        .bind(count(heads))
        .bind(count(&rows.updated))
        .bind(count(&features.updated))
        .bind(count(&grants.updated));
    statement.execute(connection).await.map_err(store_error)?;
    Ok(())
}

/// Why the trigger refuses a batch whose events are to get other numbers.
pub(super) static HEAD_MOVED: &str = "conflict: a partition has another version";

fn count<T>(rows: &[T]) -> i64 {
    i64::try_from(rows.len()).unwrap_or(i64::MAX)
}

const WRITE_BATCH: &str = "insert into write_batch values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";

/// The rows of a batch as one row of a view: a trigger writes them where they belong.
const WRITE_BATCH_VIEW: &str = "
create temp view if not exists write_batch as
select null as heads, null as credits, null as features, null as grants, null as commands, null as entries,
    null as usage_logs, null as events, 0 as head_count, 0 as credits_count, 0 as feature_count, 0 as grant_count";

/// What [`WRITE_BATCH`] needs on a connection.
pub(super) fn at_once() -> [String; 2] {
    let part = |statement: &str, rows: &str| statement.replace("?1", &format!("new.{rows}"));
    let must_be = |count: &str, reason: &str| format!("select raise(abort, '{reason}') where changes() <> new.{count}");
    let steps = [
        part(UPDATE_EXPECTED_HEADS, "heads"),
        must_be("head_count", HEAD_MOVED),
        part(UPDATE_CREDITS, "credits"),
        must_be("credits_count", "conflict: a workspace has another last command"),
        part(UPDATE_FEATURES, "features"),
        must_be("feature_count", "a row to update is not in workspace_features"),
        part(UPDATE_GRANTS, "grants"),
        must_be("grant_count", "a row to update is not in credit_grants"),
        part(INSERT_COMMANDS, "commands"),
        part(INSERT_ENTRIES, "entries"),
        part(INSERT_USAGE_LOGS, "usage_logs"),
        part(INSERT_EVENTS, "events"),
    ];
    let trigger = format!(
        "create temp trigger if not exists write_batch_rows instead of insert on write_batch begin {}; end",
        steps.join(";")
    );
    [WRITE_BATCH_VIEW.to_owned(), trigger]
}

/// Inserts the rows, if there are any.
pub(super) async fn insert<T>(
    connection: &mut SqliteConnection,
    statement: &'static str,
    items: &[T],
    columns: fn(&mut JsonRow<'_>, &T),
) -> Result<(), StoreError> {
    execute(connection, statement, items, columns).await.map(|_| ())
}

/// Updates the rows, if there are any; each must be there.
pub(super) async fn update<T>(
    connection: &mut SqliteConnection,
    statement: &'static str,
    items: &[T],
    columns: fn(&mut JsonRow<'_>, &T),
) -> Result<(), StoreError> {
    let missing = items.len() - execute(connection, statement, items, columns).await?;
    if missing == 0 {
        return Ok(());
    }
    let table = statement.split_whitespace().nth(1).unwrap_or_default();
    Err(StoreError::Corrupt(format!("{missing} rows to update are not in {table}")))
}

/// Runs a statement over the rows, if there are any; gives how many it wrote.
async fn execute<T>(
    connection: &mut SqliteConnection,
    statement: &'static str,
    items: &[T],
    columns: fn(&mut JsonRow<'_>, &T),
) -> Result<usize, StoreError> {
    if items.is_empty() {
        return Ok(0);
    }
    let result = sqlx::query(statement).bind(json::rows(items, columns)).execute(connection).await;
    let written = result.map_err(store_error)?.rows_affected();
    usize::try_from(written)
        .ok()
        .filter(|written| *written <= items.len())
        .ok_or_else(|| StoreError::Corrupt(format!("{written} rows were written for {}", items.len())))
}

const UPDATE_HEADS: &str = "
update stream_partition
set seq = stream_partition.seq + n.events, version = stream_partition.version + 1,
    last_event_id = iif(n.events > 0, n.last_event_id, stream_partition.last_event_id)
from (
    select value ->> 0 as partition, unhex(value ->> 1) as last_event_id, value ->> 2 as events from jsonb_each(?1)
) n
where stream_partition.partition = n.partition
returning partition, seq, last_event_id, version";

const UPDATE_EXPECTED_HEADS: &str = "
update stream_partition
set seq = n.seq, last_event_id = n.last_event_id, version = n.version
from (
    select value ->> 0 as partition, value ->> 1 as seq, unhex(value ->> 2) as last_event_id, value ->> 3 as version
    from jsonb_each(?1)
) n
where stream_partition.partition = n.partition and stream_partition.version = n.version - 1";

fn head(row: &mut JsonRow<'_>, head: &PartitionHead) {
    row.int(head.partition.stored()).int(head.seq).maybe_id(head.last_event_id.map(|id| id.0)).int(head.version);
}

async fn update_heads(
    connection: &mut SqliteConnection,
    changes: &ChangeSet,
) -> Result<Vec<PartitionHead>, StoreError> {
    if changes.heads.is_empty() {
        return Ok(Vec::new());
    }
    let parameter = json::rows(changes.moved_heads(), |row, (head, events)| {
        row.int(head.partition.stored()).maybe_id(head.last_event_id.map(|id| id.0)).int(events);
    });
    let updated = sqlx::query(UPDATE_HEADS).bind(parameter).fetch_all(connection).await.map_err(store_error)?;
    let mut actual = BTreeMap::new();
    for row in &updated {
        let head = rows::head(row)?;
        actual.insert(head.partition, head);
    }
    let missing = || StoreError::Corrupt("a row to update is not in stream_partition".into());
    changes.heads.iter().map(|head| actual.get(&head.partition).copied().ok_or_else(missing)).collect()
}

const UPDATE_CREDITS: &str = "
update workspace_credits
set current_credits = n.row ->> 1, held_credits = n.row ->> 2, debt_credits = n.row ->> 3,
    overdraft_limit = n.row ->> 4, used_this_month = n.row ->> 5, command_seq = n.row ->> 6, entry_seq = n.row ->> 7,
    usage_seq = n.row ->> 8, event_seq = n.row ->> 9, low_credit_fired = n.row ->> 10,
    monthly_limit_fired = n.row ->> 11, window_start = n.row ->> 12, window_used = n.row ->> 13,
    updated_at = n.row ->> 14, current_grant_id = unhex(n.row ->> 15), current_grant_remaining = n.row ->> 16,
    current_grant_held = n.row ->> 17, current_feature_code = n.row ->> 18, current_feature_used = n.row ->> 19,
    current_feature_fired = n.row ->> 20, rest_seq = n.row ->> 21,
    last_usage_command_id = unhex(n.row ->> 22), last_entry_command_id = unhex(n.row ->> 23),
    last_event_id = unhex(n.row ->> 24)
from (select unhex(value ->> 0) as workspace_id, value as row from jsonb_each(?1)) n
where workspace_credits.workspace_id = n.workspace_id and workspace_credits.command_seq = n.row ->> 25";

async fn update_credits(connection: &mut SqliteConnection, changes: &ChangeSet) -> Result<(), StoreError> {
    let rows: Vec<_> = changes.moved_credits().collect();
    let written = execute(connection, UPDATE_CREDITS, &rows, |row, moved| moved_credits(row, *moved)).await?;
    if written == rows.len() {
        return Ok(());
    }
    Err(StoreError::Conflict("a workspace has another last command than the one that was decided on".into()))
}

/// With the last command before the batch.
fn moved_credits(row: &mut JsonRow<'_>, (item, command_seq_before): (&WorkspaceCredits, Option<i64>)) {
    credits(row, item);
    row.maybe_int(command_seq_before);
}

pub(super) fn credits(row: &mut JsonRow<'_>, credits: &WorkspaceCredits) {
    let (grant, feature) = (credits.current.grant, credits.current.feature.as_ref());
    row.id(credits.workspace_id.0)
        .credits(credits.current_credits)
        .credits(credits.held_credits)
        .credits(credits.debt_credits)
        .credits(credits.overdraft_limit)
        .credits(credits.used_this_month)
        .int(credits.command_seq)
        .int(credits.entry_seq)
        .int(credits.usage_seq)
        .int(credits.event_seq)
        .int(credits.low_credit_fired)
        .int(credits.monthly_limit_fired)
        .at(credits.window_start)
        .credits(credits.window_used)
        .at(credits.updated_at)
        .maybe_id(grant.map(|grant| grant.grant_id.0))
        .maybe_credits(grant.map(|grant| grant.remaining))
        .maybe_credits(grant.map(|grant| grant.held))
        .maybe_text(feature.map(|feature| feature.feature_code.as_str()))
        .maybe_credits(feature.map(|feature| feature.used_this_month))
        .maybe_int(feature.map(|feature| feature.limit_fired))
        .int(credits.rest_seq)
        .maybe_id(credits.last.usage_log.map(|id| id.0))
        .maybe_id(credits.last.entry.map(|id| id.0))
        .maybe_id(credits.last.event.map(|id| id.0));
}

const UPDATE_FEATURES: &str = "
update workspace_features
set plan_enabled = n.row ->> 2, plan_unit_price = n.row ->> 3, plan_limit_amount = n.row ->> 4,
    plan_limit_mode = n.row ->> 5, override_enabled = n.row ->> 6, override_unit_price = n.row ->> 7,
    override_limit = n.row ->> 8, used_this_month = n.row ->> 9, limit_fired = n.row ->> 10
from (select unhex(value ->> 0) as workspace_id, value ->> 1 as feature_code, value as row from jsonb_each(?1)) n
where workspace_features.workspace_id = n.workspace_id and workspace_features.feature_code = n.feature_code";

pub(super) fn feature(row: &mut JsonRow<'_>, (workspace_id, feature): &(WorkspaceId, WorkspaceFeature)) {
    let (terms, overrides) = (&feature.plan_terms, &feature.overrides);
    row.id(workspace_id.0)
        .text(feature.feature_code.as_str())
        .int(terms.enabled)
        .maybe_credits(terms.unit_price)
        .maybe_credits(terms.limit.map(|limit| limit.credits))
        .maybe_text(terms.limit.map(|limit| limit.mode.as_str()))
        .maybe_int(overrides.enabled)
        .maybe_credits(overrides.unit_price)
        .maybe_credits(overrides.limit)
        .credits(feature.used_this_month)
        .int(feature.limit_fired);
}

const UPDATE_GRANTS: &str = "
update credit_grants
set remaining = n.row ->> 2, held = n.row ->> 3, expires_at = n.row ->> 4, is_open = n.row ->> 5
from (select unhex(value ->> 0) as workspace_id, unhex(value ->> 1) as grant_id, value as row from jsonb_each(?1)) n
where credit_grants.workspace_id = n.workspace_id and credit_grants.grant_id = n.grant_id";

fn grant_state(row: &mut JsonRow<'_>, grant: &Grant) {
    row.id(grant.workspace_id.0)
        .id(grant.grant_id.0)
        .credits(grant.remaining)
        .credits(grant.held)
        .maybe_at(grant.expires_at)
        .int(grant.is_open());
}

const INSERT_COMMANDS: &str = "
insert into commands (
    workspace_id, idempotency_key, command_id, command_type, fingerprint, outcome, status, body, actor,
    correlation_id, traceparent, metadata, received_at, recorded_at, seq)
select unhex(value ->> 0), value ->> 1, unhex(value ->> 2), value ->> 3, unhex(value ->> 4), value ->> 5, value ->> 6,
    value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13, value ->> 14
from jsonb_each(?1)";

fn command(row: &mut JsonRow<'_>, command: &CommandRecord) {
    row.id(command.workspace_id.0)
        .text(command.idempotency_key.as_str())
        .id(command.command_id.0)
        .text(&command.command_type)
        .bytes(&command.fingerprint)
        .text(&command.outcome)
        .int(command.status)
        .text(&command.body)
        .text(&command.actor)
        .text(&command.correlation_id)
        .maybe_text(command.traceparent.as_deref())
        .maybe_text(command.metadata.as_ref().map(Metadata::to_json).as_deref())
        .at(command.received_at)
        .at(command.recorded_at)
        .int(command.seq);
}

const INSERT_ENTRIES: &str = "
insert into credit_entries (
    workspace_id, seq, command_id, from_account, to_account, grant_id, amount, balance_after, recorded_at,
    effective_at, previous_command_id)
select unhex(value ->> 0), value ->> 1, unhex(value ->> 2), value ->> 3, value ->> 4, unhex(value ->> 5), value ->> 6,
    value ->> 7, value ->> 8, value ->> 9, unhex(value ->> 10)
from jsonb_each(?1)";

fn entry(row: &mut JsonRow<'_>, entry: &Entry) {
    row.id(entry.workspace_id.0)
        .int(entry.seq)
        .id(entry.command_id.0)
        .text(&entry.from.label())
        .text(&entry.to.label())
        .maybe_id(entry.grant_id().map(|id| id.0))
        .credits(entry.amount)
        .credits(entry.balance_after)
        .at(entry.recorded_at)
        .at(entry.effective_at)
        .maybe_id(entry.previous.map(|id| id.0));
}

const INSERT_USAGE_LOGS: &str = "
insert into usage_logs (
    workspace_id, seq, command_id, feature_code, user_id, credits, quantity, occurred_at, recorded_at, metadata,
    previous_command_id)
select unhex(value ->> 0), value ->> 1, unhex(value ->> 2), value ->> 3, value ->> 4, value ->> 5, value ->> 6,
    value ->> 7, value ->> 8, value ->> 9, unhex(value ->> 10)
from jsonb_each(?1)";

fn usage_log(row: &mut JsonRow<'_>, log: &UsageLog) {
    row.id(log.workspace_id.0)
        .int(log.seq)
        .id(log.command_id.0)
        .text(log.feature_code.as_str())
        .maybe_text(log.user_id.as_ref().map(UserId::as_str))
        .credits(log.credits)
        .maybe_int(log.quantity.map(Quantity::micro))
        .at(log.occurred_at)
        .at(log.recorded_at)
        .maybe_text(log.metadata.as_ref().map(Metadata::to_json).as_deref())
        .maybe_id(log.previous.map(|id| id.0));
}

const INSERT_EVENTS: &str = "
insert into event_outbox (
    partition, seq, event_id, workspace_id, workspace_seq, event_type, schema_version, occurred_at, correlation_id,
    causation_id, traceparent, metadata, data, previous_event_id)
select value ->> 0, value ->> 1, unhex(value ->> 2), unhex(value ->> 3), value ->> 4, value ->> 5, value ->> 6,
    value ->> 7, value ->> 8, unhex(value ->> 9), value ->> 10, value ->> 11, value ->> 12,
    unhex(value ->> 13)
from jsonb_each(?1)";

fn event(row: &mut JsonRow<'_>, event: &EventRecord) {
    row.int(event.partition.stored())
        .int(event.seq)
        .id(event.event_id.0)
        .id(event.workspace_id.0)
        .int(event.workspace_seq)
        .text(event.event_type.as_str())
        .int(event.schema_version)
        .at(event.occurred_at)
        .text(&event.correlation_id)
        .id(event.causation_id)
        .maybe_text(event.traceparent.as_deref())
        .maybe_text(event.metadata.as_deref())
        .text(&event.data)
        .maybe_id(event.previous.map(|id| id.0));
}
