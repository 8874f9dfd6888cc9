//! Rows that only some commands write: a statement per table, sent only when there are such rows.
//! They go in the order of the foreign keys, before the rows that every command writes.

use sqlx::sqlite::SqliteConnection;

use super::json::JsonRow;
use super::write::{credits, feature, insert, update};
use crate::domain::change_set::{ChangeSet, ResetRecord};
use crate::domain::grant::Grant;
use crate::domain::subscription::{Pending, Subscription};
use crate::domain::text::{FeatureCode, Label, PaymentReference};
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

pub(super) async fn write(connection: &mut SqliteConnection, changes: &ChangeSet) -> Result<(), StoreError> {
    let ChangeSet { workspaces, credits: of_credits, subscriptions, features, grants, resets, .. } = changes;
    insert(connection, INSERT_WORKSPACES, workspaces, workspace).await?;
    insert(connection, INSERT_CREDITS, &of_credits.inserted, credits).await?;
    insert(connection, INSERT_SUBSCRIPTIONS, &subscriptions.inserted, subscription).await?;
    update(connection, UPDATE_SUBSCRIPTIONS, &subscriptions.updated, subscription).await?;
    insert(connection, INSERT_FEATURES, &features.inserted, feature).await?;
    insert(connection, INSERT_GRANTS, &grants.inserted, grant).await?;
    insert(connection, INSERT_RESETS, resets, reset).await
}

const INSERT_WORKSPACES: &str = "
insert into workspaces (
    workspace_id, partition, name, time_zone, monthly_limit_override, overdraft_limit_override, created_at)
select unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6
from jsonb_each(?1)";

fn workspace(row: &mut JsonRow<'_>, workspace: &Workspace) {
    row.id(workspace.workspace_id.0)
        .int(workspace.partition().stored())
        .text(workspace.name.as_str())
        .text(workspace.zone.name())
        .maybe_credits(workspace.monthly_limit_override)
        .maybe_credits(workspace.overdraft_limit_override)
        .at(workspace.created_at);
}

const INSERT_CREDITS: &str = "
insert into workspace_credits (
    workspace_id, current_credits, held_credits, debt_credits, overdraft_limit, used_this_month, command_seq,
    entry_seq, usage_seq, event_seq, low_credit_fired, monthly_limit_fired, window_start, window_used, updated_at,
    current_grant_id, current_grant_remaining, current_grant_held, current_feature_code, current_feature_used,
    current_feature_fired, rest_seq, last_usage_command_id, last_entry_command_id, last_event_id)
select unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
    value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13, value ->> 14,
    unhex(value ->> 15), value ->> 16, value ->> 17, value ->> 18, value ->> 19, value ->> 20, value ->> 21,
    unhex(value ->> 22), unhex(value ->> 23), unhex(value ->> 24)
from jsonb_each(?1)";

const INSERT_SUBSCRIPTIONS: &str = "
insert into subscriptions (
    workspace_id, subscription_id, plan_code, plan_version, status, anchor, period_offset_months, period_months,
    period_start, period_end, version, pending_kind, pending_plan_code, pending_plan_version, pending_reason,
    canceled_at, updated_at)
select unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
    value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13, value ->> 14,
    value ->> 15, value ->> 16
from jsonb_each(?1)";

const UPDATE_SUBSCRIPTIONS: &str = "
update subscriptions
set plan_code = n.row ->> 2, plan_version = n.row ->> 3, status = n.row ->> 4, anchor = n.row ->> 5,
    period_offset_months = n.row ->> 6, period_months = n.row ->> 7, period_start = n.row ->> 8,
    period_end = n.row ->> 9, version = n.row ->> 10, pending_kind = n.row ->> 11, pending_plan_code = n.row ->> 12,
    pending_plan_version = n.row ->> 13, pending_reason = n.row ->> 14, canceled_at = n.row ->> 15,
    updated_at = n.row ->> 16
from (
    select unhex(value ->> 0) as workspace_id, unhex(value ->> 1) as subscription_id, value as row from jsonb_each(?1)
) n
where subscriptions.workspace_id = n.workspace_id and subscriptions.subscription_id = n.subscription_id";

fn subscription(row: &mut JsonRow<'_>, subscription: &Subscription) {
    let (kind, plan, reason) = match &subscription.pending {
        None => (None, None, None),
        Some(Pending::Change { plan_code, plan_version }) => (Some("change"), Some((plan_code, *plan_version)), None),
        Some(Pending::Cancel { reason }) => (Some("cancel"), None, reason.as_ref()),
    };
    row.id(subscription.workspace_id.0)
        .id(subscription.subscription_id.0)
        .text(subscription.plan_code.as_str())
        .int(subscription.plan_version)
        .text(subscription.status.as_str())
        .at(subscription.anchor)
        .int(subscription.period.offset_months)
        .int(subscription.period_months)
        .at(subscription.period.start)
        .at(subscription.period.end)
        .int(subscription.version)
        .maybe_text(kind)
        .maybe_text(plan.map(|(code, _)| code.as_str()))
        .maybe_int(plan.map(|(_, version)| version))
        .maybe_text(reason.map(Label::as_str))
        .maybe_at(subscription.canceled_at)
        .at(subscription.updated_at);
}

const INSERT_FEATURES: &str = "
insert into workspace_features (
    workspace_id, feature_code, plan_enabled, plan_unit_price, plan_limit_amount, plan_limit_mode, override_enabled,
    override_unit_price, override_limit, used_this_month, limit_fired)
select unhex(value ->> 0), value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
    value ->> 8, value ->> 9, value ->> 10
from jsonb_each(?1)";

const INSERT_GRANTS: &str = "
insert into credit_grants (
    workspace_id, grant_id, source, amount, remaining, held, priority, effective_at, expires_at, feature_scope,
    payment_reference, amount_minor, currency, is_open)
select unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
    value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13
from jsonb_each(?1)";

fn grant(row: &mut JsonRow<'_>, grant: &Grant) {
    row.id(grant.workspace_id.0)
        .id(grant.grant_id.0)
        .text(grant.source.as_str())
        .credits(grant.amount)
        .credits(grant.remaining)
        .credits(grant.held)
        .int(grant.priority)
        .at(grant.effective_at)
        .maybe_at(grant.expires_at)
        .maybe_text(grant.feature_scope.as_ref().map(FeatureCode::as_str))
        .maybe_text(grant.payment_reference.as_ref().map(PaymentReference::as_str))
        .maybe_int(grant.cost_basis.map(|cost| cost.amount_minor))
        .maybe_text(grant.cost_basis.as_ref().map(|cost| cost.currency.as_str()))
        .int(grant.is_open());
}

const INSERT_RESETS: &str = "
insert into credit_resets (workspace_id, subscription_id, period_start, period_end, usage_seq, command_id, recorded_at)
select unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, unhex(value ->> 5), value ->> 6
from jsonb_each(?1)";

fn reset(row: &mut JsonRow<'_>, reset: &ResetRecord) {
    row.id(reset.workspace_id.0)
        .id(reset.subscription_id.0)
        .at(reset.period.start)
        .at(reset.period.end)
        .int(reset.usage_seq)
        .id(reset.command_id.0)
        .at(reset.recorded_at);
}
