//! What a batch looks at, read in a fixed number of statements whatever the number of keys.
//!
//! The first one locks. It stands alone, because waiting for a lock does not refresh the snapshot of
//! the statement that waits; the statements after it see what the holder before has committed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::error::store_error;
use super::plans::{latest_versions, versions};
use super::rows;
use super::write::Columns;
use crate::domain::change_set::CommandRecord;
use crate::domain::grant::Grant;
use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::{KeySet, PartitionHead, Snapshot, WorkspaceState};
use crate::domain::text::{IdempotencyKey, PaymentReference, PlanCode};
use crate::domain::time::Timestamp;
use crate::domain::workspace::{WorkspaceCredits, WorkspaceFeatures};
use crate::store::StoreError;
use crate::store::plan_cache::{PlanCache, pending_key, plan_keys, plan_of};

pub(super) const STATEMENTS: &[&str] = &[
    LOCK_PARTITIONS,
    COMMANDS_BY_KEYS,
    WORKSPACES_BY_IDS,
    CREDITS_SINCE,
    FEATURES_BY_WORKSPACES,
    OPEN_GRANTS_BY_WORKSPACES,
    USED_PAYMENTS,
];

/// Locks and reads everything under the keys.
pub(super) async fn load(
    connection: &mut PgConnection,
    cache: &PlanCache,
    keys: &KeySet,
) -> Result<Snapshot, StoreError> {
    let (heads, database_now) = lock_partitions(connection, &keys.partitions()).await?;
    let commands = commands(connection, &keys.commands).await?;
    let payments = used_payments(connection, &keys.payments).await?;
    let plans = newest_plans(connection, cache, &keys.plans).await?;
    let ids: Vec<Uuid> = keys.unknown(&heads).map(|id| id.0).collect();
    let workspaces = workspaces(connection, cache, &ids).await?;
    Ok(Snapshot { database_now, heads, workspaces, commands, payments, plans })
}

const LOCK_PARTITIONS: &str = "
select partition, seq, last_event_id, version, clock_timestamp() as database_now
from stream_partition
where partition = any($1::smallint[])
order by partition
for no key update";

pub(super) async fn lock_partitions(
    connection: &mut PgConnection,
    partitions: &BTreeSet<Partition>,
) -> Result<(BTreeMap<Partition, PartitionHead>, Option<Timestamp>), StoreError> {
    let numbers: Vec<i16> = partitions.iter().map(|partition| partition.stored()).collect();
    let rows = sqlx::query(LOCK_PARTITIONS).bind(numbers).fetch_all(connection).await.map_err(store_error)?;
    if rows.len() != partitions.len() {
        return Err(StoreError::Corrupt("a row of stream_partition is missing".into()));
    }
    let database_now = rows.first().map(|row| rows::at(row, "database_now")).transpose()?;
    let heads: Result<_, StoreError> =
        rows.iter().map(|row| rows::head(row).map(|head| (head.partition, head))).collect();
    Ok((heads?, database_now))
}

const COMMANDS_BY_KEYS: &str = "
select c.*
from unnest($1::uuid[], $2::text[]) as k (workspace_id, idempotency_key)
join commands c on c.workspace_id = k.workspace_id and c.idempotency_key = k.idempotency_key";

async fn commands(
    connection: &mut PgConnection,
    keys: &BTreeSet<(WorkspaceId, IdempotencyKey)>,
) -> Result<HashMap<(WorkspaceId, IdempotencyKey), CommandRecord>, StoreError> {
    let rows = sqlx::query(COMMANDS_BY_KEYS)
        .column(keys, |(workspace_id, _)| workspace_id.0)
        .column(keys, |(_, key)| key.as_str())
        .fetch_all(connection)
        .await
        .map_err(store_error)?;
    rows.iter()
        .map(|row| {
            let command = rows::command(row)?;
            Ok(((command.workspace_id, command.idempotency_key.clone()), command))
        })
        .collect()
}

const WORKSPACES_BY_IDS: &str = "
select s.*, w.name, w.time_zone, w.monthly_limit_override, w.overdraft_limit_override, w.created_at,
    c.current_credits, c.held_credits, c.debt_credits, c.overdraft_limit, c.used_this_month, c.command_seq, c.entry_seq,
    c.usage_seq, c.event_seq, c.rest_seq, c.low_credit_fired, c.monthly_limit_fired, c.window_start, c.window_used,
    c.updated_at as credits_updated_at, c.current_grant_id, c.current_grant_remaining, c.current_grant_held,
    c.current_feature_code, c.current_feature_used, c.current_feature_fired, c.last_usage_command_id,
    c.last_entry_command_id, c.last_event_id
from workspaces w
join workspace_credits c on c.workspace_id = w.workspace_id
join subscriptions s on s.workspace_id = w.workspace_id
where w.workspace_id = any($1::uuid[])";

/// The states of the workspaces that exist.
pub(super) async fn workspaces(
    connection: &mut PgConnection,
    cache: &PlanCache,
    ids: &[Uuid],
) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let found = sqlx::query(WORKSPACES_BY_IDS).bind(ids).fetch_all(&mut *connection).await.map_err(store_error)?;
    if found.is_empty() {
        return Ok(HashMap::new());
    }
    let mut features = features(connection, ids).await?;
    let mut grants = open_grants(connection, ids).await?;
    let subscriptions = found.iter().map(rows::subscription).collect::<Result<Vec<_>, _>>()?;
    let plans = versions(connection, cache, &subscriptions.iter().flat_map(plan_keys).collect()).await?;
    found
        .iter()
        .zip(subscriptions)
        .map(|(row, subscription)| {
            let id = subscription.workspace_id;
            let pending_plan = match pending_key(&subscription) {
                Some(key) => Some(plan_of(&plans, &key)?),
                None => None,
            };
            let mut state = WorkspaceState {
                workspace: rows::workspace(row)?,
                credits: rows::workspace_credits(row)?,
                plan: plan_of(&plans, &(subscription.plan_code.clone(), subscription.plan_version))?,
                pending_plan,
                features: features.remove(&id).unwrap_or_default(),
                grants: grants.remove(&id).unwrap_or_default(),
                subscription,
            };
            cache.share(&mut state);
            Ok((id, Box::new(state)))
        })
        .collect()
}

const CREDITS_SINCE: &str = "
select c.*, c.updated_at as credits_updated_at
from unnest($1::uuid[], $2::bigint[]) as k (workspace_id, command_seq)
join workspace_credits c on c.workspace_id = k.workspace_id and c.command_seq <> k.command_seq";

/// The rows of those workspaces that have another last command than the given one.
pub(super) async fn credits_since(
    connection: &mut PgConnection,
    known: &[(WorkspaceId, i64)],
) -> Result<Vec<WorkspaceCredits>, StoreError> {
    let statement = sqlx::query(CREDITS_SINCE).column(known, |(id, _)| id.0).column(known, |(_, seq)| *seq);
    let rows = statement.fetch_all(connection).await.map_err(store_error)?;
    rows.iter().map(rows::workspace_credits).collect()
}

const FEATURES_BY_WORKSPACES: &str = "
select * from workspace_features_now where workspace_id = any($1::uuid[])";

async fn features(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<WorkspaceId, WorkspaceFeatures>, StoreError> {
    let rows = sqlx::query(FEATURES_BY_WORKSPACES).bind(ids).fetch_all(connection).await.map_err(store_error)?;
    let mut features: HashMap<_, Vec<_>> = HashMap::with_capacity(ids.len());
    for row in &rows {
        let (id, feature) = rows::feature(row)?;
        features.entry(id).or_default().push(feature);
    }
    Ok(features.into_iter().map(|(id, features)| (id, features.into_iter().collect())).collect())
}

const OPEN_GRANTS_BY_WORKSPACES: &str = "
select * from credit_grants_now where workspace_id = any($1::uuid[]) and is_open";

async fn open_grants(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<WorkspaceId, Vec<Grant>>, StoreError> {
    let rows = sqlx::query(OPEN_GRANTS_BY_WORKSPACES).bind(ids).fetch_all(connection).await.map_err(store_error)?;
    let mut grants: HashMap<_, Vec<Grant>> = HashMap::with_capacity(ids.len());
    for row in &rows {
        let grant = rows::grant(row)?;
        grants.entry(grant.workspace_id).or_default().push(grant);
    }
    for of_one in grants.values_mut() {
        of_one.sort_by(Grant::burns_before);
        of_one.shrink_to_fit();
    }
    Ok(grants)
}

const USED_PAYMENTS: &str = "
select k.workspace_id, k.payment_reference
from unnest($1::uuid[], $2::text[]) as k (workspace_id, payment_reference)
join credit_grants g on g.workspace_id = k.workspace_id and g.payment_reference = k.payment_reference
where g.payment_reference is not null and g.source = 'purchase'";

async fn used_payments(
    connection: &mut PgConnection,
    keys: &BTreeSet<(WorkspaceId, PaymentReference)>,
) -> Result<HashSet<(WorkspaceId, PaymentReference)>, StoreError> {
    if keys.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = sqlx::query(USED_PAYMENTS)
        .column(keys, |(workspace_id, _)| workspace_id.0)
        .column(keys, |(_, reference)| reference.as_str())
        .fetch_all(connection)
        .await
        .map_err(store_error)?;
    rows.iter()
        .map(|row| {
            let reference = rows::get::<&str>(row, "payment_reference")?;
            Ok((rows::workspace_id(row)?, PaymentReference::from_stored(reference)))
        })
        .collect()
}

async fn newest_plans(
    connection: &mut PgConnection,
    cache: &PlanCache,
    codes: &BTreeSet<PlanCode>,
) -> Result<HashMap<PlanCode, Arc<PlanVersion>>, StoreError> {
    if codes.is_empty() {
        return Ok(HashMap::new());
    }
    let keys = latest_versions(connection, codes.iter()).await?;
    let plans = versions(connection, cache, &keys).await?;
    keys.iter().map(|key| Ok((key.0.clone(), plan_of(&plans, key)?))).collect()
}
