//! One write transaction: load under lock, then all rows of a batch at once.
//!
//! [`WRITE_STEADY_ROWS`] is the path that nearly every command takes: one statement for all tables that a
//! deduction touches, with one array of rows for each (see [`super::row_types`]).
//! Rows that only some commands have (new workspaces, grants, subscriptions, resets) go before it,
//! each table in one statement that is sent when there are such rows.
//!
//! Every update must find its row: a missing one is corruption, and a workspace with another last command
//! than the one that was decided on is a conflict. The statement itself refuses then, so it needs no
//! transaction around it. The heads are counted first, so they are the first rows that it locks; each gives
//! the batch's events their numbers behind those that others have written meanwhile. A row of a partition
//! without a head would get none, which its column refuses.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgBindIterExt, PgConnection, PgHasArrayType, Postgres};
use sqlx::query::Query;
use sqlx::{Encode, Type};

use super::connection::Transaction;
use super::error::store_error;
use super::load::load;
use super::row_types::{BindRows, MovedCredits, MovedHead};
use super::rows::get;
use super::{in_time, rare};
use crate::domain::change_set::ChangeSet;
use crate::domain::snapshot::{KeySet, PartitionHead, Snapshot};
use crate::domain::time::Timestamp;
use crate::store::plan_cache::PlanCache;
use crate::store::{StoreError, WriteTx};

pub(super) const STATEMENTS: &[&str] = &[WRITE_STEADY_ROWS, WRITE_HOT_ROWS];

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
            write(tx.connection(), changes).await?;
            tx.commit().await
        })
        .await
    }
}

/// All rows of a batch, in the transaction that holds the locks of its partitions.
pub(super) async fn write(
    connection: &mut PgConnection,
    changes: &ChangeSet,
) -> Result<Vec<PartitionHead>, StoreError> {
    rare::write(connection, changes).await?;
    write_hot_rows(connection, changes).await
}

/// One statement; the parts are for the rows that it may have besides the usual ones.
macro_rules! write_rows {
    (updates: $updates:literal, checks: $checks:literal) => {
        concat!(
            "
with updated_heads as (
    update stream_partition t
    set seq = t.seq + n.events, version = t.version + 1,
        last_event_id = case when n.events > 0 then n.last_event_id else t.last_event_id end
    from unnest($1::head_row[]) n
    where t.partition = n.partition
    returning t.partition, t.seq, t.version, t.seq - n.seq as ahead
), updated_credits as (
    update workspace_credits t
    set current_credits = n.current_credits, held_credits = n.held_credits, debt_credits = n.debt_credits,
        overdraft_limit = n.overdraft_limit, used_this_month = n.used_this_month, command_seq = n.command_seq,
        entry_seq = n.entry_seq, usage_seq = n.usage_seq, event_seq = n.event_seq,
        low_credit_fired = n.low_credit_fired, monthly_limit_fired = n.monthly_limit_fired,
        window_start = n.window_start, window_used = n.window_used, updated_at = n.updated_at,
        current_grant_id = n.current_grant_id, current_grant_remaining = n.current_grant_remaining,
        current_grant_held = n.current_grant_held, current_feature_code = n.current_feature_code,
        current_feature_used = n.current_feature_used, current_feature_fired = n.current_feature_fired,
        rest_seq = n.rest_seq, last_usage_command_id = n.last_usage_command_id,
        last_entry_command_id = n.last_entry_command_id, last_event_id = n.last_event_id
    from unnest($2::credits_row[]) n
    where t.workspace_id = n.workspace_id and t.command_seq = n.command_seq_before
    returning 1
), ",
            $updates,
            "inserted_commands as (
    insert into commands (workspace_id, idempotency_key, command_id, command_type, fingerprint, outcome, status, body,
        actor, correlation_id, traceparent, metadata, received_at, recorded_at, seq)
    select * from unnest($3::command_row[])
), inserted_entries as (
    insert into credit_entries (workspace_id, seq, command_id, from_account, to_account, grant_id, amount,
        balance_after, recorded_at, effective_at, previous_command_id)
    select * from unnest($4::entry_row[])
), inserted_usage_logs as (
    insert into usage_logs (workspace_id, seq, command_id, feature_code, user_id, credits, quantity, occurred_at,
        recorded_at, metadata, previous_command_id)
    select * from unnest($5::usage_log_row[])
), inserted_events as (
    insert into event_outbox (partition, seq, event_id, workspace_id, workspace_seq, event_type, schema_version,
        occurred_at, correlation_id, causation_id, traceparent, metadata, data, previous_event_id)
    select n.partition, n.seq + h.ahead, n.event_id, n.workspace_id, n.workspace_seq, n.event_type, n.schema_version,
        n.occurred_at, n.correlation_id, n.causation_id, n.traceparent, n.metadata, n.data,
        n.previous_event_id
    from unnest($6::event_row[]) n
    left join updated_heads h on h.partition = n.partition
)
select
    case when (select count(*) from updated_heads) <> cardinality($1::head_row[])
        then refuse('XX001', 'a row to update is not in stream_partition') end,
    case when (select count(*) from updated_credits) <> cardinality($2::credits_row[])
        then refuse('40001', 'a workspace has another last command than the one that was decided on') end",
            $checks,
            ",
    (select array_agg(h.seq order by h.partition) from updated_heads h) as seqs,
    (select array_agg(h.version order by h.partition) from updated_heads h) as versions"
        )
    };
}

/// What a batch of deductions writes as long as each workspace goes on with its current grant and feature.
const WRITE_STEADY_ROWS: &str = write_rows!(updates: "", checks: "");

/// With the grants and features of their own rows too.
const WRITE_HOT_ROWS: &str = write_rows!(
    updates: "updated_features as (
    update workspace_features t
    set plan_enabled = n.plan_enabled, plan_unit_price = n.plan_unit_price, plan_limit_amount = n.plan_limit_amount,
        plan_limit_mode = n.plan_limit_mode, override_enabled = n.override_enabled,
        override_unit_price = n.override_unit_price, override_limit = n.override_limit,
        used_this_month = n.used_this_month, limit_fired = n.limit_fired
    from unnest($7::feature_row[]) n
    where t.workspace_id = n.workspace_id and t.feature_code = n.feature_code
    returning 1
), updated_grants as (
    update credit_grants t
    set remaining = n.remaining, held = n.held, expires_at = n.expires_at, is_open = n.is_open
    from unnest($8::spent_grant_row[]) n
    where t.workspace_id = n.workspace_id and t.grant_id = n.grant_id
    returning 1
), ",
    checks: ",
    case when (select count(*) from updated_features) <> cardinality($7::feature_row[])
        then refuse('XX001', 'a row to update is not in workspace_features') end,
    case when (select count(*) from updated_grants) <> cardinality($8::spent_grant_row[])
        then refuse('XX001', 'a row to update is not in credit_grants') end"
);

/// The statement is whole in itself: inside a transaction or outside, it writes everything or nothing.
/// Gives the heads as it left them.
pub(super) async fn write_hot_rows(
    connection: &mut PgConnection,
    changes: &ChangeSet,
) -> Result<Vec<PartitionHead>, StoreError> {
    let (features, grants) = (&changes.features.updated, &changes.grants.updated);
    let is_steady = features.is_empty() && grants.is_empty();
    let heads: Vec<_> = changes.moved_heads().map(|(head, events)| MovedHead { head, events }).collect();
    let credits = changes.moved_credits();
    let credits: Vec<_> =
        credits.map(|(credits, command_seq_before)| MovedCredits { credits, command_seq_before }).collect();
    let mut statement = sqlx::query(if is_steady { WRITE_STEADY_ROWS } else { WRITE_HOT_ROWS })
        .rows(&heads)
        .rows(&credits)
        .rows(&changes.commands)
        .rows(&changes.entries)
        .rows(&changes.usage_logs)
        .rows(&changes.events);
    if !is_steady {
        statement = statement.rows(features).rows(grants);
    }
    let row = statement.fetch_one(connection).await.map_err(store_error)?;
    let (seqs, versions): (Option<Vec<i64>>, Option<Vec<i64>>) = (get(&row, "seqs")?, get(&row, "versions")?);
    let places = seqs.unwrap_or_default().into_iter().zip(versions.unwrap_or_default());
    Ok(changes.heads.iter().zip(places).map(|(head, (seq, version))| PartitionHead { seq, version, ..*head }).collect())
}

pub(super) fn at(timestamp: Timestamp) -> DateTime<Utc> {
    timestamp.to_datetime()
}
