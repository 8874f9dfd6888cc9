//! Rows that only some commands write: a statement per table, sent only when there are such rows.
//! They go in the order of the foreign keys, before the rows that every command writes.

use sqlx::postgres::PgConnection;

use super::error::store_error;
use super::row_types::{BindRows, MovedCredits};
use super::write::{Columns, Statement, at};
use crate::domain::change_set::{ChangeSet, ResetRecord};
use crate::domain::grant::Grant;
use crate::domain::subscription::{Pending, Subscription};
use crate::domain::workspace::Workspace;
use crate::store::StoreError;

pub(super) const STATEMENTS: &[&str] = &[
    INSERT_WORKSPACES,
    INSERT_CREDITS,
    INSERT_SUBSCRIPTIONS,
    UPDATE_SUBSCRIPTIONS,
    INSERT_FEATURES,
    INSERT_GRANTS,
    INSERT_RESETS,
];

pub(super) async fn write(connection: &mut PgConnection, changes: &ChangeSet) -> Result<(), StoreError> {
    let ChangeSet { workspaces, credits, subscriptions, features, grants, resets, .. } = changes;
    if !workspaces.is_empty() {
        run(connection, bind_workspaces(sqlx::query(INSERT_WORKSPACES), workspaces), workspaces.len()).await?;
    }
    if !credits.inserted.is_empty() {
        let new = |credits| MovedCredits { credits, command_seq_before: None };
        let rows: Vec<_> = credits.inserted.iter().map(new).collect();
        run(connection, sqlx::query(INSERT_CREDITS).rows(&rows), rows.len()).await?;
    }
    if !subscriptions.inserted.is_empty() {
        let rows = &subscriptions.inserted;
        run(connection, bind_subscriptions(sqlx::query(INSERT_SUBSCRIPTIONS), rows), rows.len()).await?;
    }
    if !subscriptions.updated.is_empty() {
        let rows = &subscriptions.updated;
        run(connection, bind_subscriptions(sqlx::query(UPDATE_SUBSCRIPTIONS), rows), rows.len()).await?;
    }
    if !features.inserted.is_empty() {
        let rows = &features.inserted;
        run(connection, sqlx::query(INSERT_FEATURES).rows(rows), rows.len()).await?;
    }
    if !grants.inserted.is_empty() {
        let rows = &grants.inserted;
        run(connection, bind_grants(sqlx::query(INSERT_GRANTS), rows), rows.len()).await?;
    }
    if !resets.is_empty() {
        run(connection, bind_resets(sqlx::query(INSERT_RESETS), resets), resets.len()).await?;
    }
    Ok(())
}

async fn run(connection: &mut PgConnection, statement: Statement<'_>, expected: usize) -> Result<(), StoreError> {
    let written = statement.execute(connection).await.map_err(store_error)?.rows_affected();
    if u64::try_from(expected) == Ok(written) {
        return Ok(());
    }
    Err(StoreError::Corrupt(format!("{written} of {expected} rows were written: the others do not exist")))
}

const INSERT_WORKSPACES: &str = "
insert into workspaces (workspace_id, partition, name, time_zone, monthly_limit_override, overdraft_limit_override,
    created_at)
select * from unnest($1::uuid[], $2::smallint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::timestamptz[])";

fn bind_workspaces<'q>(statement: Statement<'q>, rows: &[Workspace]) -> Statement<'q> {
    statement
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.partition().stored())
        .column(rows, |row| row.name.as_str())
        .column(rows, |row| row.zone.name())
        .column(rows, |row| row.monthly_limit_override.map(crate::domain::credits::Credits::micro))
        .column(rows, |row| row.overdraft_limit_override.map(crate::domain::credits::Credits::micro))
        .column(rows, |row| at(row.created_at))
}

const INSERT_CREDITS: &str = "
insert into workspace_credits (workspace_id, current_credits, held_credits, debt_credits, overdraft_limit,
    used_this_month, command_seq, entry_seq, usage_seq, event_seq, low_credit_fired, monthly_limit_fired,
    window_start, window_used, updated_at, current_grant_id, current_grant_remaining, current_grant_held,
    current_feature_code, current_feature_used, current_feature_fired, rest_seq, last_usage_command_id,
    last_entry_command_id, last_event_id)
select workspace_id, current_credits, held_credits, debt_credits, overdraft_limit,
    used_this_month, command_seq, entry_seq, usage_seq, event_seq, low_credit_fired, monthly_limit_fired,
    window_start, window_used, updated_at, current_grant_id, current_grant_remaining, current_grant_held,
    current_feature_code, current_feature_used, current_feature_fired, rest_seq, last_usage_command_id,
    last_entry_command_id, last_event_id
from unnest($1::credits_row[])";

const INSERT_SUBSCRIPTIONS: &str = "
insert into subscriptions (workspace_id, subscription_id, plan_code, plan_version, status, anchor,
    period_offset_months, period_months, period_start, period_end, version, pending_kind, pending_plan_code,
    pending_plan_version, pending_reason, canceled_at, updated_at)
select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::integer[], $5::text[], $6::timestamptz[], $7::integer[],
    $8::integer[], $9::timestamptz[], $10::timestamptz[], $11::bigint[], $12::text[], $13::text[], $14::integer[],
    $15::text[], $16::timestamptz[], $17::timestamptz[])";

const UPDATE_SUBSCRIPTIONS: &str = "
update subscriptions t
set plan_code = n.plan_code, plan_version = n.plan_version, status = n.status, anchor = n.anchor,
    period_offset_months = n.period_offset_months, period_months = n.period_months, period_start = n.period_start,
    period_end = n.period_end, version = n.version, pending_kind = n.pending_kind,
    pending_plan_code = n.pending_plan_code, pending_plan_version = n.pending_plan_version,
    pending_reason = n.pending_reason, canceled_at = n.canceled_at, updated_at = n.updated_at
from unnest($1::uuid[], $2::uuid[], $3::text[], $4::integer[], $5::text[], $6::timestamptz[], $7::integer[],
    $8::integer[], $9::timestamptz[], $10::timestamptz[], $11::bigint[], $12::text[], $13::text[], $14::integer[],
    $15::text[], $16::timestamptz[], $17::timestamptz[])
    as n (workspace_id, subscription_id, plan_code, plan_version, status, anchor, period_offset_months, period_months,
    period_start, period_end, version, pending_kind, pending_plan_code, pending_plan_version, pending_reason,
    canceled_at, updated_at)
where t.workspace_id = n.workspace_id and t.subscription_id = n.subscription_id";

fn bind_subscriptions<'q>(statement: Statement<'q>, rows: &[Subscription]) -> Statement<'q> {
    statement
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.subscription_id.0)
        .column(rows, |row| row.plan_code.as_str())
        .column(rows, |row| row.plan_version)
        .column(rows, |row| row.status.as_str())
        .column(rows, |row| at(row.anchor))
        .column(rows, |row| months(row.period.offset_months))
        .column(rows, |row| months(row.period_months))
        .column(rows, |row| at(row.period.start))
        .column(rows, |row| at(row.period.end))
        .column(rows, |row| row.version)
        .column(rows, |row| row.pending.as_ref().map(pending_kind))
        .column(rows, |row| pending_plan(row).map(|(code, _)| code))
        .column(rows, |row| pending_plan(row).map(|(_, version)| version))
        .column(rows, pending_reason)
        .column(rows, |row| row.canceled_at.map(at))
        .column(rows, |row| at(row.updated_at))
}

fn months(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

const fn pending_kind(pending: &Pending) -> &'static str {
    match pending {
        Pending::Change { .. } => "change",
        Pending::Cancel { .. } => "cancel",
    }
}

fn pending_plan(subscription: &Subscription) -> Option<(&str, i32)> {
    match &subscription.pending {
        Some(Pending::Change { plan_code, plan_version }) => Some((plan_code.as_str(), *plan_version)),
        Some(Pending::Cancel { .. }) | None => None,
    }
}

fn pending_reason(subscription: &Subscription) -> Option<&str> {
    match &subscription.pending {
        Some(Pending::Cancel { reason }) => reason.as_ref().map(crate::domain::text::Label::as_str),
        Some(Pending::Change { .. }) | None => None,
    }
}

const INSERT_FEATURES: &str = "
insert into workspace_features (workspace_id, feature_code, plan_enabled, plan_unit_price, plan_limit_amount,
    plan_limit_mode, override_enabled, override_unit_price, override_limit, used_this_month, limit_fired)
select * from unnest($1::feature_row[])";

const INSERT_GRANTS: &str = "
insert into credit_grants (workspace_id, grant_id, source, amount, remaining, held, priority, effective_at, expires_at,
    feature_scope, payment_reference, amount_minor, currency, is_open)
select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::smallint[],
    $8::timestamptz[], $9::timestamptz[], $10::text[], $11::text[], $12::bigint[], $13::text[], $14::boolean[])";

fn bind_grants<'q>(statement: Statement<'q>, rows: &[Grant]) -> Statement<'q> {
    statement
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.grant_id.0)
        .column(rows, |row| row.source.as_str())
        .column(rows, |row| row.amount.micro())
        .column(rows, |row| row.remaining.micro())
        .column(rows, |row| row.held.micro())
        .column(rows, |row| row.priority)
        .column(rows, |row| at(row.effective_at))
        .column(rows, |row| row.expires_at.map(at))
        .column(rows, |row| row.feature_scope.as_ref().map(crate::domain::text::FeatureCode::as_str))
        .column(rows, |row| row.payment_reference.as_ref().map(crate::domain::text::PaymentReference::as_str))
        .column(rows, |row| row.cost_basis.map(|cost| cost.amount_minor))
        .column(rows, |row| row.cost_basis.as_ref().map(|cost| cost.currency.as_str()))
        .column(rows, Grant::is_open)
}

const INSERT_RESETS: &str = "
insert into credit_resets (workspace_id, subscription_id, period_start, period_end, usage_seq, command_id, recorded_at)
select * from unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::uuid[],
    $7::timestamptz[])";

fn bind_resets<'q>(statement: Statement<'q>, rows: &[ResetRecord]) -> Statement<'q> {
    statement
        .column(rows, |row| row.workspace_id.0)
        .column(rows, |row| row.subscription_id.0)
        .column(rows, |row| at(row.period.start))
        .column(rows, |row| at(row.period.end))
        .column(rows, |row| row.usage_seq)
        .column(rows, |row| row.command_id.0)
        .column(rows, |row| at(row.recorded_at))
}
