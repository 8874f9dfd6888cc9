//! What a batch looks at, read in a fixed number of statements whatever the number of keys.
//!
//! Nothing is locked here: a write transaction has held the write lock since it began, before its
//! first read, so what it reads cannot change until it ends.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::error::store_error;
use super::plans::{latest_versions, versions};
use super::{json, rows};
use crate::domain::change_set::CommandRecord;
use crate::domain::grant::Grant;
use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::{KeySet, PartitionHead, Snapshot, WorkspaceState};
use crate::domain::text::{IdempotencyKey, PaymentReference, PlanCode};
use crate::domain::workspace::{WorkspaceCredits, WorkspaceFeatures};
use crate::store::StoreError;
use crate::store::plan_cache::{PlanCache, pending_key, plan_keys, plan_of};

pub(super) const STATEMENTS: &[&str] = &[
    HEADS_BY_PARTITIONS,
    COMMANDS_BY_KEYS,
    WORKSPACES_BY_IDS,
    CREDITS_SINCE,
    FEATURES_BY_WORKSPACES,
    OPEN_GRANTS_BY_WORKSPACES,
    USED_PAYMENTS,
];

/// Reads everything under the keys.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    cache: &PlanCache,
    keys: &KeySet,
) -> Result<Snapshot, StoreError> {
    let heads = heads(connection, &keys.partitions()).await?;
    let commands = commands(connection, &keys.commands).await?;
    let payments = used_payments(connection, &keys.payments).await?;
    let plans = newest_plans(connection, cache, &keys.plans).await?;
    let ids: Vec<Uuid> = keys.unknown(&heads).map(|id| id.0).collect();
    let workspaces = workspaces(connection, cache, &ids).await?;
    // The database is in this process and has this machine's clock.
    Ok(Snapshot { database_now: None, heads, workspaces, commands, payments, plans })
}

const HEADS_BY_PARTITIONS: &str = "
select partition, seq, last_event_id, version
from stream_partition
where partition in (select value ->> 0 from jsonb_each(?1))
order by partition";

async fn heads(
    connection: &mut SqliteConnection,
    partitions: &BTreeSet<Partition>,
) -> Result<BTreeMap<Partition, PartitionHead>, StoreError> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let numbers = json::rows(partitions, |row, partition| {
        row.int(partition.stored());
    });
    let rows = sqlx::query(HEADS_BY_PARTITIONS).bind(numbers).fetch_all(connection).await.map_err(store_error)?;
    if rows.len() != partitions.len() {
        return Err(StoreError::Corrupt("a row of stream_partition is missing".into()));
    }
    rows.iter().map(|row| rows::head(row).map(|head| (head.partition, head))).collect()
}

const COMMANDS_BY_KEYS: &str = "
select c.*
from jsonb_each(?1) k
cross join commands c on c.workspace_id = unhex(k.value ->> 0) and c.idempotency_key = k.value ->> 1";

async fn commands(
    connection: &mut SqliteConnection,
    keys: &BTreeSet<(WorkspaceId, IdempotencyKey)>,
) -> Result<HashMap<(WorkspaceId, IdempotencyKey), CommandRecord>, StoreError> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let keys = json::rows(keys, |row, (workspace_id, key)| {
        row.id(workspace_id.0).text(key.as_str());
    });
    let rows = sqlx::query(COMMANDS_BY_KEYS).bind(keys).fetch_all(connection).await.map_err(store_error)?;
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
from jsonb_each(?1) k
cross join workspaces w on w.workspace_id = unhex(k.value ->> 0)
join workspace_credits c on c.workspace_id = w.workspace_id
join subscriptions s on s.workspace_id = w.workspace_id";

/// The states of the workspaces that exist.
pub(super) async fn workspaces(
    connection: &mut SqliteConnection,
    cache: &PlanCache,
    ids: &[Uuid],
) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let keys = json::ids(ids.iter().copied());
    let found = sqlx::query(WORKSPACES_BY_IDS).bind(&keys).fetch_all(&mut *connection).await.map_err(store_error)?;
    if found.is_empty() {
        return Ok(HashMap::new());
    }
    let mut features = features(connection, &keys).await?;
    let mut grants = open_grants(connection, &keys).await?;
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
from jsonb_each(?1) k
cross join workspace_credits c on c.workspace_id = unhex(k.value ->> 0) and c.command_seq <> k.value ->> 1";

/// The rows of those workspaces that have another last command than the given one.
pub(super) async fn credits_since(
    connection: &mut SqliteConnection,
    known: &[(WorkspaceId, i64)],
) -> Result<Vec<WorkspaceCredits>, StoreError> {
    let known = json::rows(known, |row, (id, seq)| {
        row.id(id.0).int(*seq);
    });
    let rows = sqlx::query(CREDITS_SINCE).bind(known).fetch_all(connection).await.map_err(store_error)?;
    rows.iter().map(rows::workspace_credits).collect()
}

const FEATURES_BY_WORKSPACES: &str = "
select f.*
from jsonb_each(?1) k
cross join workspace_features_now f on f.workspace_id = unhex(k.value ->> 0)";

async fn features(
    connection: &mut SqliteConnection,
    keys: &str,
) -> Result<HashMap<WorkspaceId, WorkspaceFeatures>, StoreError> {
    let rows = sqlx::query(FEATURES_BY_WORKSPACES).bind(keys).fetch_all(connection).await.map_err(store_error)?;
    let mut features: HashMap<_, Vec<_>> = HashMap::new();
    for row in &rows {
        let (id, feature) = rows::feature(row)?;
        features.entry(id).or_default().push(feature);
    }
    Ok(features.into_iter().map(|(id, features)| (id, features.into_iter().collect())).collect())
}

/// As the view `credit_grants_now` says, but through the index of open grants alone.
const OPEN_GRANTS_BY_WORKSPACES: &str = "
select g.workspace_id, g.grant_id, g.source, g.amount,
    iif(c.current_grant_id is g.grant_id, c.current_grant_remaining, g.remaining) as remaining,
    iif(c.current_grant_id is g.grant_id, c.current_grant_held, g.held) as held,
    g.priority, g.effective_at, g.expires_at, g.feature_scope, g.payment_reference, g.amount_minor, g.currency
from jsonb_each(?1) k
cross join credit_grants g indexed by credit_grants_open on g.workspace_id = unhex(k.value ->> 0)
join workspace_credits c on c.workspace_id = g.workspace_id
where g.is_open = 1";

async fn open_grants(
    connection: &mut SqliteConnection,
    keys: &str,
) -> Result<HashMap<WorkspaceId, Vec<Grant>>, StoreError> {
    let rows = sqlx::query(OPEN_GRANTS_BY_WORKSPACES).bind(keys).fetch_all(connection).await.map_err(store_error)?;
    let mut grants: HashMap<_, Vec<Grant>> = HashMap::new();
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
select g.workspace_id, g.payment_reference
from jsonb_each(?1) k
cross join credit_grants g indexed by credit_grants_one_per_payment
    on g.workspace_id = unhex(k.value ->> 0) and g.payment_reference = k.value ->> 1
where g.payment_reference is not null and g.source = 'purchase'";

async fn used_payments(
    connection: &mut SqliteConnection,
    keys: &BTreeSet<(WorkspaceId, PaymentReference)>,
) -> Result<HashSet<(WorkspaceId, PaymentReference)>, StoreError> {
    if keys.is_empty() {
        return Ok(HashSet::new());
    }
    let keys = json::rows(keys, |row, (workspace_id, reference)| {
        row.id(workspace_id.0).text(reference.as_str());
    });
    let rows = sqlx::query(USED_PAYMENTS).bind(keys).fetch_all(connection).await.map_err(store_error)?;
    rows.iter()
        .map(|row| {
            let reference = rows::get::<&str>(row, "payment_reference")?;
            Ok((rows::workspace_id(row)?, PaymentReference::from_stored(reference)))
        })
        .collect()
}

async fn newest_plans(
    connection: &mut SqliteConnection,
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
