//! From rows to the domain. A value that the domain does not know is corruption, never a default.

use std::str::FromStr;

use sqlx::Row;
use sqlx::sqlite::{Sqlite, SqliteRow};
use uuid::Uuid;

use super::error::{store_error, unreadable};
use crate::domain::change_set::CommandRecord;
use crate::domain::credits::{Credits, Quantity};
use crate::domain::entry::{Account, Entry};
use crate::domain::event::{EventRecord, EventType};
use crate::domain::grant::{CostBasis, Currency, Grant, GrantSource};
use crate::domain::ids::{CommandId, EventId, GrantId, Partition, SubscriptionId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::period::Period;
use crate::domain::plan::{FeatureTerms, LimitMode, UsageLimit};
use crate::domain::snapshot::PartitionHead;
use crate::domain::subscription::{Pending, Subscription, SubscriptionStatus};
use crate::domain::text::{FeatureCode, IdempotencyKey, Label, PaymentReference, PlanCode, UserId};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::{
    Current, CurrentFeature, CurrentGrant, FeatureOverrides, LastRows, Workspace, WorkspaceCredits, WorkspaceFeature,
};
use crate::store::StoreError;

type Decoded<T> = Result<T, StoreError>;

/// One column, in the type that SQLite has for it.
pub(super) fn get<'r, T>(row: &'r SqliteRow, column: &str) -> Decoded<T>
where
    T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>,
{
    row.try_get(column).map_err(store_error)
}

fn maybe_id(row: &SqliteRow, column: &str) -> Decoded<Option<Uuid>> {
    get(row, column)
}

pub(super) fn partition(row: &SqliteRow) -> Decoded<Partition> {
    let number: i16 = get(row, "partition")?;
    u8::try_from(number).ok().and_then(Partition::new).ok_or_else(|| unreadable("partition", &number.to_string()))
}

pub(super) fn workspace_id(row: &SqliteRow) -> Decoded<WorkspaceId> {
    get(row, "workspace_id").map(WorkspaceId)
}

pub(super) fn head(row: &SqliteRow) -> Decoded<PartitionHead> {
    Ok(PartitionHead {
        partition: partition(row)?,
        seq: get(row, "seq")?,
        last_event_id: maybe_id(row, "last_event_id")?.map(EventId),
        version: get(row, "version")?,
    })
}

pub(super) fn command(row: &SqliteRow) -> Decoded<CommandRecord> {
    let fingerprint: &[u8] = get(row, "fingerprint")?;
    Ok(CommandRecord {
        workspace_id: workspace_id(row)?,
        idempotency_key: IdempotencyKey::from_stored(get(row, "idempotency_key")?),
        command_id: CommandId(get(row, "command_id")?),
        seq: get(row, "seq")?,
        command_type: get(row, "command_type")?,
        fingerprint: fingerprint.try_into().map_err(|_| unreadable("fingerprint", "of another length"))?,
        outcome: get(row, "outcome")?,
        status: get(row, "status")?,
        body: get(row, "body")?,
        actor: get(row, "actor")?,
        correlation_id: get(row, "correlation_id")?,
        traceparent: get(row, "traceparent")?,
        metadata: metadata(row)?,
        received_at: at(row, "received_at")?,
        recorded_at: at(row, "recorded_at")?,
    })
}

pub(super) fn workspace(row: &SqliteRow) -> Decoded<Workspace> {
    let zone: &str = get(row, "time_zone")?;
    Ok(Workspace {
        workspace_id: workspace_id(row)?,
        name: Label::from_stored(get(row, "name")?),
        zone: FromStr::from_str(zone).map_err(|_| unreadable("time zone", zone))?,
        monthly_limit_override: maybe_credits(row, "monthly_limit_override")?,
        overdraft_limit_override: maybe_credits(row, "overdraft_limit_override")?,
        created_at: at(row, "created_at")?,
    })
}

/// `credits_updated_at`, because it is read in one row with a subscription, which has its own.
pub(super) fn workspace_credits(row: &SqliteRow) -> Decoded<WorkspaceCredits> {
    Ok(WorkspaceCredits {
        workspace_id: workspace_id(row)?,
        current_credits: credits(row, "current_credits")?,
        held_credits: credits(row, "held_credits")?,
        debt_credits: credits(row, "debt_credits")?,
        overdraft_limit: credits(row, "overdraft_limit")?,
        used_this_month: credits(row, "used_this_month")?,
        command_seq: get(row, "command_seq")?,
        entry_seq: get(row, "entry_seq")?,
        usage_seq: get(row, "usage_seq")?,
        event_seq: get(row, "event_seq")?,
        rest_seq: get(row, "rest_seq")?,
        low_credit_fired: get(row, "low_credit_fired")?,
        monthly_limit_fired: get(row, "monthly_limit_fired")?,
        window_start: at(row, "window_start")?,
        window_used: credits(row, "window_used")?,
        updated_at: at(row, "credits_updated_at")?,
        current: current(row)?,
        last: LastRows {
            usage_log: maybe_id(row, "last_usage_command_id")?.map(CommandId),
            entry: maybe_id(row, "last_entry_command_id")?.map(CommandId),
            event: maybe_id(row, "last_event_id")?.map(EventId),
        },
    })
}

fn current(row: &SqliteRow) -> Decoded<Current> {
    let grant = maybe_id(row, "current_grant_id")?.map(|id| {
        Ok::<_, StoreError>(CurrentGrant {
            grant_id: GrantId(id),
            remaining: credits(row, "current_grant_remaining")?,
            held: credits(row, "current_grant_held")?,
        })
    });
    let feature = get::<Option<&str>>(row, "current_feature_code")?.map(|code| {
        Ok::<_, StoreError>(CurrentFeature {
            feature_code: FeatureCode::from_stored(code),
            used_this_month: credits(row, "current_feature_used")?,
            limit_fired: get(row, "current_feature_fired")?,
        })
    });
    Ok(Current { grant: grant.transpose()?, feature: feature.transpose()? })
}

pub(super) fn subscription(row: &SqliteRow) -> Decoded<Subscription> {
    Ok(Subscription {
        workspace_id: workspace_id(row)?,
        subscription_id: SubscriptionId(get(row, "subscription_id")?),
        plan_code: PlanCode::from_stored(get(row, "plan_code")?),
        plan_version: get(row, "plan_version")?,
        status: status(get(row, "status")?)?,
        anchor: at(row, "anchor")?,
        period: Period {
            offset_months: months(row, "period_offset_months")?,
            start: at(row, "period_start")?,
            end: at(row, "period_end")?,
        },
        period_months: months(row, "period_months")?,
        version: get(row, "version")?,
        pending: pending(row)?,
        canceled_at: maybe_at(row, "canceled_at")?,
        updated_at: at(row, "updated_at")?,
    })
}

pub(super) fn feature(row: &SqliteRow) -> Decoded<(WorkspaceId, WorkspaceFeature)> {
    let limit = maybe_credits(row, "plan_limit_amount")?;
    let mode: Option<&str> = get(row, "plan_limit_mode")?;
    let feature = WorkspaceFeature {
        feature_code: FeatureCode::from_stored(get(row, "feature_code")?),
        plan_terms: FeatureTerms {
            enabled: get(row, "plan_enabled")?,
            unit_price: maybe_credits(row, "plan_unit_price")?,
            limit: limit
                .zip(mode)
                .map(|(credits, mode)| Ok(UsageLimit { credits, mode: limit_mode(mode)? }))
                .transpose()?,
        },
        overrides: FeatureOverrides {
            enabled: get(row, "override_enabled")?,
            unit_price: maybe_credits(row, "override_unit_price")?,
            limit: maybe_credits(row, "override_limit")?,
        },
        used_this_month: credits(row, "used_this_month")?,
        limit_fired: get(row, "limit_fired")?,
    };
    Ok((workspace_id(row)?, feature))
}

pub(super) fn grant(row: &SqliteRow) -> Decoded<Grant> {
    let source: &str = get(row, "source")?;
    let currency: Option<&str> = get(row, "currency")?;
    let cost = get::<Option<i64>>(row, "amount_minor")?.zip(currency);
    Ok(Grant {
        workspace_id: workspace_id(row)?,
        grant_id: GrantId(get(row, "grant_id")?),
        source: GrantSource::from_stored(source).ok_or_else(|| unreadable("source", source))?,
        amount: credits(row, "amount")?,
        remaining: credits(row, "remaining")?,
        held: credits(row, "held")?,
        priority: get(row, "priority")?,
        effective_at: at(row, "effective_at")?,
        expires_at: maybe_at(row, "expires_at")?,
        feature_scope: get::<Option<&str>>(row, "feature_scope")?.map(FeatureCode::from_stored),
        payment_reference: get::<Option<&str>>(row, "payment_reference")?.map(PaymentReference::from_stored),
        cost_basis: cost
            .map(|(amount_minor, code)| {
                let currency = Currency::new(code).ok_or_else(|| unreadable("currency", code))?;
                Ok::<_, StoreError>(CostBasis { amount_minor, currency })
            })
            .transpose()?,
    })
}

pub(super) fn entry(row: &SqliteRow) -> Decoded<Entry> {
    let grant = maybe_id(row, "grant_id")?.map(GrantId);
    Ok(Entry {
        workspace_id: workspace_id(row)?,
        seq: get(row, "seq")?,
        command_id: CommandId(get(row, "command_id")?),
        from: account(get(row, "from_account")?, grant)?,
        to: account(get(row, "to_account")?, grant)?,
        amount: credits(row, "amount")?,
        balance_after: credits(row, "balance_after")?,
        recorded_at: at(row, "recorded_at")?,
        effective_at: at(row, "effective_at")?,
        previous: maybe_id(row, "previous_command_id")?.map(CommandId),
    })
}

pub(super) fn usage_log(row: &SqliteRow) -> Decoded<UsageLog> {
    let quantity = get::<Option<i64>>(row, "quantity")?.map(Quantity::from_micro).transpose();
    Ok(UsageLog {
        workspace_id: workspace_id(row)?,
        seq: get(row, "seq")?,
        command_id: CommandId(get(row, "command_id")?),
        feature_code: FeatureCode::from_stored(get(row, "feature_code")?),
        user_id: get::<Option<&str>>(row, "user_id")?.map(UserId::from_stored),
        credits: credits(row, "credits")?,
        quantity: quantity.map_err(|_| unreadable("quantity", "out of range"))?,
        occurred_at: at(row, "occurred_at")?,
        recorded_at: at(row, "recorded_at")?,
        metadata: metadata(row)?,
        previous: maybe_id(row, "previous_command_id")?.map(CommandId),
    })
}

pub(super) fn event(row: &SqliteRow) -> Decoded<EventRecord> {
    let event_type: &str = get(row, "event_type")?;
    Ok(EventRecord {
        event_id: EventId(get(row, "event_id")?),
        event_type: EventType::from_stored(event_type).ok_or_else(|| unreadable("event type", event_type))?,
        schema_version: get(row, "schema_version")?,
        partition: partition(row)?,
        seq: get(row, "seq")?,
        workspace_id: workspace_id(row)?,
        workspace_seq: get(row, "workspace_seq")?,
        occurred_at: at(row, "occurred_at")?,
        correlation_id: get(row, "correlation_id")?,
        causation_id: get(row, "causation_id")?,
        traceparent: get(row, "traceparent")?,
        metadata: get(row, "metadata")?,
        data: get(row, "data")?,
        previous: maybe_id(row, "previous_event_id")?.map(EventId),
    })
}

fn account(label: &str, grant: Option<GrantId>) -> Decoded<Account> {
    let unknown = || unreadable("account", label);
    Ok(match label.split_once(':') {
        None => match label {
            "grant" => Account::Grant(grant.ok_or_else(unknown)?),
            "held" => Account::Held(grant.ok_or_else(unknown)?),
            "expired" => Account::Expired,
            "debt" => Account::Debt,
            _ => return Err(unknown()),
        },
        Some(("issued", source)) => Account::Issued(GrantSource::from_stored(source).ok_or_else(unknown)?),
        Some(("consumed", feature)) => Account::Consumed(FeatureCode::from_stored(feature)),
        Some(_) => return Err(unknown()),
    })
}

fn pending(row: &SqliteRow) -> Decoded<Option<Pending>> {
    let kind: Option<&str> = get(row, "pending_kind")?;
    Ok(match kind {
        None => None,
        Some("change") => Some(Pending::Change {
            plan_code: PlanCode::from_stored(get(row, "pending_plan_code")?),
            plan_version: get(row, "pending_plan_version")?,
        }),
        Some("cancel") => {
            Some(Pending::Cancel { reason: get::<Option<&str>>(row, "pending_reason")?.map(Label::from_stored) })
        }
        Some(other) => return Err(unreadable("pending change", other)),
    })
}

fn status(text: &str) -> Decoded<SubscriptionStatus> {
    SubscriptionStatus::from_stored(text).ok_or_else(|| unreadable("subscription status", text))
}

fn limit_mode(text: &str) -> Decoded<LimitMode> {
    LimitMode::from_stored(text).ok_or_else(|| unreadable("limit mode", text))
}

fn metadata(row: &SqliteRow) -> Decoded<Option<Metadata>> {
    let json: Option<&str> = get(row, "metadata")?;
    json.map(|json| Metadata::from_stored(json).ok_or_else(|| unreadable("metadata", json))).transpose()
}

fn months(row: &SqliteRow, column: &str) -> Decoded<u32> {
    let months: i32 = get(row, column)?;
    u32::try_from(months).map_err(|_| unreadable(column, &months.to_string()))
}

fn credits(row: &SqliteRow, column: &str) -> Decoded<Credits> {
    let micro: i64 = get(row, column)?;
    Credits::from_micro(micro).map_err(|_| unreadable(column, &micro.to_string()))
}

fn maybe_credits(row: &SqliteRow, column: &str) -> Decoded<Option<Credits>> {
    let micro: Option<i64> = get(row, column)?;
    micro.map(|micro| Credits::from_micro(micro).map_err(|_| unreadable(column, &micro.to_string()))).transpose()
}

pub(super) fn at(row: &SqliteRow, column: &str) -> Decoded<Timestamp> {
    get::<i64>(row, column).map(Timestamp::from_micros)
}

pub(super) fn maybe_at(row: &SqliteRow, column: &str) -> Decoded<Option<Timestamp>> {
    Ok(get::<Option<i64>>(row, column)?.map(Timestamp::from_micros))
}
