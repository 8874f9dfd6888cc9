//! What a batch looks at, read in a fixed number of statements whatever the number of keys.
//!
//! The first one locks. It stands alone, because waiting for a lock does not refresh the snapshot of
//! the statement that waits; the statements after it see what the holder before has committed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::error::store_error;
use super::plans::{plans_by_codes, versions};
use super::rows::{BindColumn, row, rows};
use crate::domain::command_record::CommandRecord;
use crate::domain::counter::UsageCounter;
use crate::domain::grant::Grant;
use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::partition_head::PartitionHead;
use crate::domain::snapshot::{KeySet, Snapshot, WorkspaceState};
use crate::domain::subscription::Subscription;
use crate::domain::text::{IdempotencyKey, PaymentReference};
use crate::domain::time::Timestamp;
use crate::domain::workspace::{FeatureOverride, Workspace, WorkspaceCredits};
use crate::store::columns::Fields;
use crate::store::error::StoreError;
use crate::store::plan_cache::{PlanCache, plan_keys};
use crate::store::states::StateRows;
use crate::store::tables::Table;

/// Each look-up with the index that finds its rows.
pub(super) fn indexes() -> Vec<(&'static str, &'static str)> {
    vec![
        (LOCK_PARTITIONS.as_str(), "outbox_partitions_pkey"),
        (COMMANDS_BY_KEYS.as_str(), "commands_pkey"),
        (WORKSPACES.as_str(), "workspaces_pkey"),
        (OVERRIDES.as_str(), "workspace_feature_overrides_pkey"),
        (COUNTERS.as_str(), "usage_counters_pkey"),
        (OPEN_GRANTS.as_str(), "credit_grants_open"),
        (STALE_WORKSPACES, "workspace_credits_pkey"),
        (USED_PAYMENTS, "credit_grants_payment"),
    ]
}

/// Locks and reads everything under the keys.
pub(super) async fn load(
    connection: &mut PgConnection,
    cache: &PlanCache,
    keys: &KeySet,
) -> Result<Snapshot, StoreError> {
    let (heads, database_now) = lock_partitions(connection, &keys.partitions()).await?;
    let commands = commands(connection, &keys.commands).await?;
    let payments = used_payments(connection, &keys.payments).await?;
    let plans = plans_by_codes(connection, cache, &keys.plans).await?;
    let ids: Vec<Uuid> = keys.unknown(&heads).map(|id| id.0).collect();
    let workspaces = states(connection, cache, &ids).await?;
    Ok(Snapshot { database_now, heads, workspaces, commands, payments, plans })
}

static LOCK_PARTITIONS: LazyLock<String> = LazyLock::new(|| {
    let columns = PartitionHead::select("p");
    format!(
        "select {columns}, clock_timestamp() as database_now from outbox_partitions p
where p.partition_id = any($1::smallint[]) order by p.partition_id for no key update"
    )
});

pub(super) async fn lock_partitions(
    connection: &mut PgConnection,
    partitions: &BTreeSet<Partition>,
) -> Result<(BTreeMap<Partition, PartitionHead>, Option<Timestamp>), StoreError> {
    let numbers: Vec<i16> = partitions.iter().map(|partition| partition.stored()).collect();
    let found = sqlx::query(LOCK_PARTITIONS.as_str()).bind(numbers).fetch_all(connection).await.map_err(store_error)?;
    if found.len() != partitions.len() {
        return Err(StoreError::Corrupt("a row of outbox_partitions is missing".into()));
    }
    let (mut heads, mut database_now) = (BTreeMap::new(), None);
    for row in &found {
        let mut fields = Fields::of(row);
        let head = PartitionHead::take(&mut fields)?;
        heads.insert(head.partition, head);
        database_now = database_now.or(Some(fields.next()?));
    }
    Ok((heads, database_now))
}

static COMMANDS_BY_KEYS: LazyLock<String> = LazyLock::new(|| {
    let columns = CommandRecord::select("c");
    format!(
        "select {columns} from unnest($1::uuid[], $2::text[]) as k (workspace_id, idempotency_key)
join commands c on c.workspace_id = k.workspace_id and c.idempotency_key = k.idempotency_key"
    )
});

async fn commands(
    connection: &mut PgConnection,
    keys: &BTreeSet<(WorkspaceId, IdempotencyKey)>,
) -> Result<HashMap<(WorkspaceId, IdempotencyKey), CommandRecord>, StoreError> {
    let found = sqlx::query(COMMANDS_BY_KEYS.as_str())
        .column(keys, |(workspace_id, _)| workspace_id.0)
        .column(keys, |(_, key)| key.as_str())
        .fetch_all(connection)
        .await
        .map_err(store_error)?;
    let keyed = |command: CommandRecord| ((command.workspace_id, command.idempotency_key.clone()), command);
    found.iter().map(|found| row(found).map(keyed)).collect()
}

static WORKSPACES: LazyLock<String> = LazyLock::new(|| {
    let (workspaces, credits) = (Workspace::select("w"), WorkspaceCredits::select("c"));
    let subscriptions = Subscription::select("s");
    format!(
        "select {workspaces}, {credits}, {subscriptions} from workspaces w
join workspace_credits c on c.workspace_id = w.workspace_id
join subscriptions s on s.workspace_id = w.workspace_id
where w.workspace_id = any($1::uuid[])"
    )
});

static OVERRIDES: LazyLock<String> = LazyLock::new(|| {
    let columns = FeatureOverride::select("o");
    format!("select {columns} from workspace_feature_overrides o where o.workspace_id = any($1::uuid[])")
});

static COUNTERS: LazyLock<String> = LazyLock::new(|| {
    let columns = UsageCounter::select("u");
    format!("select {columns} from usage_counters u where u.workspace_id = any($1::uuid[])")
});

static OPEN_GRANTS: LazyLock<String> = LazyLock::new(|| {
    let columns = Grant::select("g");
    format!("select {columns} from credit_grants g where g.workspace_id = any($1::uuid[]) and g.is_open")
});

/// The states of the workspaces that exist.
pub(super) async fn states(
    connection: &mut PgConnection,
    cache: &PlanCache,
    ids: &[Uuid],
) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let found = sqlx::query(WORKSPACES.as_str()).bind(ids).fetch_all(&mut *connection).await.map_err(store_error)?;
    if found.is_empty() {
        return Ok(HashMap::new());
    }
    let heads = found.iter().map(|row| {
        let mut fields = Fields::of(row);
        Ok((Workspace::take(&mut fields)?, WorkspaceCredits::take(&mut fields)?, Subscription::take(&mut fields)?))
    });
    let state_rows = StateRows {
        heads: heads.collect::<Result<_, StoreError>>()?,
        overrides: of_workspaces(connection, &OVERRIDES, ids).await?,
        counters: of_workspaces(connection, &COUNTERS, ids).await?,
        grants: of_workspaces(connection, &OPEN_GRANTS, ids).await?,
    };
    let keys = state_rows.heads.iter().flat_map(|(_, _, subscription)| plan_keys(subscription)).collect();
    let plans = versions(connection, cache, &keys).await?;
    state_rows.into_states(&plans)
}

async fn of_workspaces<T: Table>(
    connection: &mut PgConnection,
    statement: &'static str,
    ids: &[Uuid],
) -> Result<Vec<T>, StoreError> {
    rows(&sqlx::query(statement).bind(ids).fetch_all(connection).await.map_err(store_error)?)
}

const STALE_WORKSPACES: &str = "
select c.workspace_id
from unnest($1::uuid[], $2::bigint[]) as k (workspace_id, version)
join workspace_credits c on c.workspace_id = k.workspace_id and c.version <> k.version";

/// Those of the workspaces that have another version than the given one.
pub(super) async fn stale_workspaces(
    connection: &mut PgConnection,
    known: &[(WorkspaceId, i64)],
) -> Result<Vec<WorkspaceId>, StoreError> {
    let statement = sqlx::query(STALE_WORKSPACES).column(known, |(id, _)| id.0).column(known, |(_, version)| *version);
    let found = statement.fetch_all(connection).await.map_err(store_error)?;
    found.iter().map(|row| Fields::of(row).next()).collect()
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
    let found = sqlx::query(USED_PAYMENTS)
        .column(keys, |(workspace_id, _)| workspace_id.0)
        .column(keys, |(_, reference)| reference.as_str())
        .fetch_all(connection)
        .await
        .map_err(store_error)?;
    let key = |mut fields: Fields<'_>| Ok((fields.next()?, fields.next()?));
    found.iter().map(|row| key(Fields::of(row))).collect()
}
