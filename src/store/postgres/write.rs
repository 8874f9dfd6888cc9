//! One write transaction: load under lock, then all rows of a batch at once.
//!
//! [`WRITE_HOT_ROWS`] is the path that every command takes: one statement for all tables that a
//! deduction touches, an array per column, so that its cost hardly depends on the size of the batch.
//! Rows that only some commands have (new workspaces, grants, subscriptions, resets) go before it,
//! each table in one statement that is sent when there are such rows.
//!
//! Every update must find its row: a missing one is corruption, and a head with another version than
//! the one that was decided on is a conflict. The statement itself refuses then, so it needs no
//! transaction around it. The heads are counted first, so they are the first rows that it locks.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgBindIterExt, PgConnection, PgHasArrayType, Postgres};
use sqlx::query::Query;
use sqlx::{Encode, Type};

use super::connection::Transaction;
use super::error::store_error;
use super::load::load;
use super::{in_time, rare};
use crate::domain::change_set::{ChangeSet, CommandRecord};
use crate::domain::entry::Entry;
use crate::domain::event::EventRecord;
use crate::domain::grant::Grant;
use crate::domain::metadata::Metadata;
use crate::domain::snapshot::{KeySet, PartitionHead, Snapshot};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::{WorkspaceCredits, WorkspaceFeature};
use crate::store::plan_cache::PlanCache;
use crate::store::{StoreError, WriteTx};

pub(super) const STATEMENTS: &[&str] = &[WRITE_HOT_ROWS];

/// A query with its arguments so far.
pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Binds one column of many rows as one array.
pub(super) trait Columns: Sized {
    fn column<'v, I, V>(self, rows: I, value: impl Fn(I::Item) -> V) -> Self
    where
        I: IntoIterator,
        V: Encode<'v, Postgres> + Type<Postgres> + PgHasArrayType;
}

impl Columns for Statement<'_> {
    fn column<'v, I, V>(self, rows: I, value: impl Fn(I::Item) -> V) -> Self
    where
        I: IntoIterator,
        V: Encode<'v, Postgres> + Type<Postgres> + PgHasArrayType,
    {
        self.bind(rows.into_iter().map(value).bind_iter())
    }
}

/// A transaction that holds the locks of its partitions.
pub(super) struct PostgresTx {
    tx: Transaction,
    plans: Arc<PlanCache>,
}

impl PostgresTx {
    pub(super) const fn new(tx: Transaction, plans: Arc<PlanCache>) -> Self {
        Self { tx, plans }
    }
}

#[async_trait]
impl WriteTx for PostgresTx {
    async fn load(&mut self, keys: &KeySet) -> Result<Snapshot, StoreError> {
        in_time(load(self.tx.connection(), &self.plans, keys)).await
    }

    async fn commit(self: Box<Self>, changes: &ChangeSet) -> Result<(), StoreError> {
        let mut tx = self.tx;
        in_time(async move {
            rare::write(tx.connection(), changes).await?;
            write_hot_rows(tx.connection(), changes).await?;
            tx.commit().await
        })
        .await
    }
}

const WRITE_HOT_ROWS: &str = "
with updated_heads as (
    update stream_partition t
    set seq = n.seq, last_event_id = n.last_event_id, version = n.version
    from unnest($1::smallint[], $2::bigint[], $3::uuid[], $4::bigint[]) as n (partition, seq, last_event_id, version)
    where t.partition = n.partition and t.version = n.version - 1
    returning 1
), updated_credits as (
    update workspace_credits t
    set current_credits = n.current_credits, held_credits = n.held_credits, debt_credits = n.debt_credits,
        overdraft_limit = n.overdraft_limit, used_this_month = n.used_this_month, entry_seq = n.entry_seq,
        usage_seq = n.usage_seq, event_seq = n.event_seq, low_credit_fired = n.low_credit_fired,
        monthly_limit_fired = n.monthly_limit_fired, window_start = n.window_start, window_used = n.window_used,
        updated_at = n.updated_at
    from unnest($5::uuid[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[],
        $12::bigint[], $13::bigint[], $14::smallint[], $15::boolean[], $16::timestamptz[], $17::bigint[],
        $18::timestamptz[])
        as n (workspace_id, current_credits, held_credits, debt_credits, overdraft_limit, used_this_month, entry_seq,
        usage_seq, event_seq, low_credit_fired, monthly_limit_fired, window_start, window_used, updated_at)
    where t.workspace_id = n.workspace_id
    returning 1
), updated_features as (
    update workspace_features t
    set plan_enabled = n.plan_enabled, plan_unit_price = n.plan_unit_price, plan_limit_amount = n.plan_limit_amount,
        plan_limit_mode = n.plan_limit_mode, override_enabled = n.override_enabled,
        override_unit_price = n.override_unit_price, override_limit = n.override_limit,
        used_this_month = n.used_this_month, limit_fired = n.limit_fired
    from unnest($19::uuid[], $20::text[], $21::boolean[], $22::bigint[], $23::bigint[], $24::text[], $25::boolean[],
        $26::bigint[], $27::bigint[], $28::bigint[], $29::boolean[])
        as n (workspace_id, feature_code, plan_enabled, plan_unit_price, plan_limit_amount, plan_limit_mode,
        override_enabled, override_unit_price, override_limit, used_this_month, limit_fired)
    where t.workspace_id = n.workspace_id and t.feature_code = n.feature_code
    returning 1
), updated_grants as (
    update credit_grants t
    set remaining = n.remaining, held = n.held, expires_at = n.expires_at, is_open = n.is_open
    from unnest($30::uuid[], $31::uuid[], $32::bigint[], $33::bigint[], $34::timestamptz[], $35::boolean[])
        as n (workspace_id, grant_id, remaining, held, expires_at, is_open)
    where t.workspace_id = n.workspace_id and t.grant_id = n.grant_id
    returning 1
), inserted_commands as (
    insert into commands (workspace_id, idempotency_key, command_id, command_type, fingerprint, outcome, status, body,
        actor, correlation_id, traceparent, metadata, received_at, recorded_at)
    select * from unnest($36::uuid[], $37::text[], $38::uuid[], $39::text[], $40::bytea[], $41::text[], $42::smallint[],
        $43::text[], $44::text[], $45::text[], $46::text[], $47::text[], $48::timestamptz[], $49::timestamptz[])
), inserted_entries as (
    insert into credit_entries (workspace_id, seq, command_id, from_account, to_account, grant_id, amount,
        balance_after, recorded_at, effective_at)
    select * from unnest($50::uuid[], $51::bigint[], $52::uuid[], $53::text[], $54::text[], $55::uuid[], $56::bigint[],
        $57::bigint[], $58::timestamptz[], $59::timestamptz[])
), inserted_usage_logs as (
    insert into usage_logs (workspace_id, seq, command_id, feature_code, user_id, credits, quantity, occurred_at,
        recorded_at, metadata)
    select * from unnest($60::uuid[], $61::bigint[], $62::uuid[], $63::text[], $64::text[], $65::bigint[], $66::bigint[],
        $67::timestamptz[], $68::timestamptz[], $69::text[])
), inserted_events as (
    insert into event_outbox (partition, seq, event_id, workspace_id, workspace_seq, event_type, schema_version,
        occurred_at, correlation_id, causation_id, traceparent, metadata, data)
    select * from unnest($70::smallint[], $71::bigint[], $72::uuid[], $73::uuid[], $74::bigint[], $75::text[],
        $76::smallint[], $77::timestamptz[], $78::text[], $79::uuid[], $80::text[], $81::text[], $82::text[])
)
select
    case when (select count(*) from updated_heads) <> cardinality($1::smallint[])
        then refuse('40001', 'a partition has another version than the one that was decided on') end,
    case when (select count(*) from updated_credits) <> cardinality($5::uuid[])
        then refuse('XX001', 'a row to update is not in workspace_credits') end,
    case when (select count(*) from updated_features) <> cardinality($19::uuid[])
        then refuse('XX001', 'a row to update is not in workspace_features') end,
    case when (select count(*) from updated_grants) <> cardinality($30::uuid[])
        then refuse('XX001', 'a row to update is not in credit_grants') end";

/// The statement is whole in itself: inside a transaction or outside, it writes everything or nothing.
pub(super) async fn write_hot_rows(connection: &mut PgConnection, changes: &ChangeSet) -> Result<(), StoreError> {
    let mut statement = sqlx::query(WRITE_HOT_ROWS);
    statement = bind_heads(statement, &changes.heads);
    statement = bind_credits(statement, &changes.credits.updated);
    statement = bind_features(statement, &changes.features.updated);
    statement = bind_grants(statement, &changes.grants.updated);
    statement = bind_commands(statement, &changes.commands);
    statement = bind_entries(statement, &changes.entries);
    statement = bind_usage_logs(statement, &changes.usage_logs);
    statement = bind_events(statement, &changes.events);
    statement.execute(connection).await.map_err(store_error)?;
    Ok(())
}

fn bind_heads<'q>(statement: Statement<'q>, rows: &[PartitionHead]) -> Statement<'q> {
    statement
        .column(rows, |row| row.partition.stored())
        .column(rows, |row| row.seq)
        .column(rows, |row| row.last_event_id.map(|id| id.0))
        .column(rows, |row| row.version)
}

/// In the order of the table's columns; for inserts too.
pub(super) fn bind_credits<'q>(statement: Statement<'q>, rows: &[WorkspaceCredits]) -> Statement<'q> {
    statement
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.current_credits.micro())
        .column(rows, |row| row.held_credits.micro())
        .column(rows, |row| row.debt_credits.micro())
        .column(rows, |row| row.overdraft_limit.micro())
        .column(rows, |row| row.used_this_month.micro())
        .column(rows, |row| row.entry_seq)
        .column(rows, |row| row.usage_seq)
        .column(rows, |row| row.event_seq)
        .column(rows, |row| row.low_credit_fired)
        .column(rows, |row| row.monthly_limit_fired)
        .column(rows, |row| at(row.window_start))
        .column(rows, |row| row.window_used.micro())
        .column(rows, |row| at(row.updated_at))
}

/// In the order of the table's columns; for inserts too.
pub(super) fn bind_features<'q>(statement: Statement<'q>, rows: &[WorkspaceFeature]) -> Statement<'q> {
    statement
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.feature_code.as_str())
        .column(rows, |row| row.plan_terms.enabled)
        .column(rows, |row| row.plan_terms.unit_price.map(crate::domain::credits::Credits::micro))
        .column(rows, |row| row.plan_terms.limit.map(|limit| limit.credits.micro()))
        .column(rows, |row| row.plan_terms.limit.map(|limit| limit.mode.as_str()))
        .column(rows, |row| row.overrides.enabled)
        .column(rows, |row| row.overrides.unit_price.map(crate::domain::credits::Credits::micro))
        .column(rows, |row| row.overrides.limit.map(crate::domain::credits::Credits::micro))
        .column(rows, |row| row.used_this_month.micro())
        .column(rows, |row| row.limit_fired)
}

fn bind_grants<'q>(statement: Statement<'q>, rows: &[Grant]) -> Statement<'q> {
    statement
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.grant_id.0)
        .column(rows, |row| row.remaining.micro())
        .column(rows, |row| row.held.micro())
        .column(rows, |row| row.expires_at.map(at))
        .column(rows, Grant::is_open)
}

fn bind_commands<'q>(statement: Statement<'q>, rows: &[CommandRecord]) -> Statement<'q> {
    statement
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.idempotency_key.as_str())
        .column(rows, |row| row.command_id.0)
        .column(rows, |row| row.command_type.as_str())
        .column(rows, |row| row.fingerprint.as_slice())
        .column(rows, |row| row.outcome.as_str())
        .column(rows, |row| row.status)
        .column(rows, |row| row.body.as_str())
        .column(rows, |row| row.actor.as_str())
        .column(rows, |row| row.correlation_id.as_str())
        .column(rows, |row| row.traceparent.as_deref())
        .column(rows, |row| row.metadata.as_ref().map(Metadata::to_json))
        .column(rows, |row| at(row.received_at))
        .column(rows, |row| at(row.recorded_at))
}

fn bind_entries<'q>(statement: Statement<'q>, rows: &[Entry]) -> Statement<'q> {
    statement
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.seq)
        .column(rows, |row| row.command_id.0)
        .column(rows, |row| row.from.label())
        .column(rows, |row| row.to.label())
        .column(rows, |row| row.grant_id().map(|id| id.0))
        .column(rows, |row| row.amount.micro())
        .column(rows, |row| row.balance_after.micro())
        .column(rows, |row| at(row.recorded_at))
        .column(rows, |row| at(row.effective_at))
}

fn bind_usage_logs<'q>(statement: Statement<'q>, rows: &[UsageLog]) -> Statement<'q> {
    statement
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.seq)
        .column(rows, |row| row.command_id.0)
        .column(rows, |row| row.feature_code.as_str())
        .column(rows, |row| row.user_id.as_ref().map(crate::domain::text::UserId::as_str))
        .column(rows, |row| row.credits.micro())
        .column(rows, |row| row.quantity.map(crate::domain::credits::Quantity::micro))
        .column(rows, |row| at(row.occurred_at))
        .column(rows, |row| at(row.recorded_at))
        .column(rows, |row| row.metadata.as_ref().map(Metadata::to_json))
}

fn bind_events<'q>(statement: Statement<'q>, rows: &[EventRecord]) -> Statement<'q> {
    statement
        .column(rows, |row| row.partition.stored())
        .column(rows, |row| row.seq)
        .column(rows, |row| row.event_id.0)
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.workspace_seq)
        .column(rows, |row| row.event_type.as_str())
        .column(rows, |row| row.schema_version)
        .column(rows, |row| at(row.occurred_at))
        .column(rows, |row| row.correlation_id.as_str())
        .column(rows, |row| row.causation_id)
        .column(rows, |row| row.traceparent.as_deref())
        .column(rows, |row| row.metadata.as_deref())
        .column(rows, |row| row.data.as_str())
}

pub(super) fn at(timestamp: Timestamp) -> DateTime<Utc> {
    timestamp.to_datetime()
}
