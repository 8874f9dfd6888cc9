//! What a batch looks at, read in a fixed number of statements whatever the number of keys.
//!
//! Nothing is locked here: a write transaction has held the write lock since it began, before its
//! first read, so what it reads cannot change until it ends.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use sqlx::sqlite::SqliteConnection;

use super::error::store_error;
use super::plans::{plans_by_codes, versions};
use super::rows::{json_of, row, rows};
use crate::domain::command_record::CommandRecord;
use crate::domain::counter::UsageCounter;
use crate::domain::grant::Grant;
use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::partition_head::PartitionHead;
use crate::domain::snapshot::{KeySet, Snapshot, WorkspaceState};
use crate::domain::subscription::Subscription;
use crate::domain::text::{IdempotencyKey, PaymentReference};
use crate::domain::workspace::{FeatureOverride, Workspace, WorkspaceCredits};
use crate::store::columns::Fields;
use crate::store::error::StoreError;
use crate::store::plan_cache::{PlanCache, plan_keys};
use crate::store::states::StateRows;
use crate::store::tables::Table;

/// Each look-up with the index that finds its rows.
pub(super) fn indexes() -> Vec<(&'static str, &'static str)> {
    vec![
        (HEADS.as_str(), "USING INTEGER PRIMARY KEY"),
        (COMMANDS_BY_KEYS.as_str(), "USING INDEX sqlite_autoindex_commands_1"),
        (WORKSPACES.as_str(), "SEARCH w USING PRIMARY KEY"),
        (OVERRIDES.as_str(), "USING PRIMARY KEY"),
        (COUNTERS.as_str(), "USING PRIMARY KEY"),
        (OPEN_GRANTS.as_str(), "credit_grants_open"),
        (STALE_WORKSPACES, "USING PRIMARY KEY"),
        (USED_PAYMENTS, "credit_grants_payment"),
    ]
}

/// Reads everything under the keys.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    cache: &PlanCache,
    keys: &KeySet,
) -> Result<Snapshot, StoreError> {
    let heads = heads(connection, &keys.partitions()).await?;
    let commands = commands(connection, &keys.commands).await?;
    let payments = used_payments(connection, &keys.payments).await?;
    let plans = plans_by_codes(connection, cache, &keys.plans).await?;
    let ids: Vec<_> = keys.unknown(&heads).collect();
    let workspaces = states(connection, cache, &ids).await?;
    // The database is in this process and has this machine's clock.
    Ok(Snapshot { database_now: None, heads, workspaces, commands, payments, plans })
}

static HEADS: LazyLock<String> = LazyLock::new(|| {
    let columns = PartitionHead::select("p");
    format!("select {columns} from jsonb_each(?1) k cross join outbox_partitions p on p.partition_id = k.value ->> 0")
});

async fn heads(
    connection: &mut SqliteConnection,
    partitions: &BTreeSet<Partition>,
) -> Result<BTreeMap<Partition, PartitionHead>, StoreError> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let keys = json_of(partitions, |row, partition| {
        row.add(partition);
    });
    let found = sqlx::query(HEADS.as_str()).bind(keys).fetch_all(connection).await.map_err(store_error)?;
    if found.len() != partitions.len() {
        return Err(StoreError::Corrupt("a row of outbox_partitions is missing".into()));
    }
    found.iter().map(|found| row(found).map(|head: PartitionHead| (head.partition, head))).collect()
}

static COMMANDS_BY_KEYS: LazyLock<String> = LazyLock::new(|| {
    let columns = CommandRecord::select("c");
    format!(
        "select {columns} from jsonb_each(?1) k
cross join commands c on c.workspace_id = unhex(k.value ->> 0) and c.idempotency_key = k.value ->> 1"
    )
});

async fn commands(
    connection: &mut SqliteConnection,
    keys: &BTreeSet<(WorkspaceId, IdempotencyKey)>,
) -> Result<HashMap<(WorkspaceId, IdempotencyKey), CommandRecord>, StoreError> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let keys = json_of(keys, |row, (workspace_id, key)| {
        row.add(workspace_id).add(key);
    });
    let found = sqlx::query(COMMANDS_BY_KEYS.as_str()).bind(keys).fetch_all(connection).await.map_err(store_error)?;
    let keyed = |command: CommandRecord| ((command.workspace_id, command.idempotency_key.clone()), command);
    found.iter().map(|found| row(found).map(keyed)).collect()
}

static WORKSPACES: LazyLock<String> = LazyLock::new(|| {
    let (workspaces, credits) = (Workspace::select("w"), WorkspaceCredits::select("c"));
    let subscriptions = Subscription::select("s");
    format!(
        "select {workspaces}, {credits}, {subscriptions} from jsonb_each(?1) k
cross join workspaces w on w.workspace_id = unhex(k.value ->> 0)
join workspace_credits c on c.workspace_id = w.workspace_id
join subscriptions s on s.workspace_id = w.workspace_id"
    )
});

static OVERRIDES: LazyLock<String> = LazyLock::new(|| of_workspaces::<FeatureOverride>("", ""));
static COUNTERS: LazyLock<String> = LazyLock::new(|| of_workspaces::<UsageCounter>("", ""));
static OPEN_GRANTS: LazyLock<String> =
    LazyLock::new(|| of_workspaces::<Grant>("indexed by credit_grants_open", "where t.is_open"));

fn of_workspaces<T: Table>(index: &str, filter: &str) -> String {
    let (columns, table) = (T::select("t"), T::NAME);
    format!(
        "select {columns} from jsonb_each(?1) k cross join {table} t {index} on t.workspace_id = unhex(k.value ->> 0) {filter}"
    )
}

/// The states of the workspaces that exist.
pub(super) async fn states(
    connection: &mut SqliteConnection,
    cache: &PlanCache,
    ids: &[WorkspaceId],
) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let keys = json_of(ids, |row, id| {
        row.add(id);
    });
    let found = sqlx::query(WORKSPACES.as_str()).bind(&keys).fetch_all(&mut *connection).await.map_err(store_error)?;
    if found.is_empty() {
        return Ok(HashMap::new());
    }
    let heads = found.iter().map(|row| {
        let mut fields = Fields::of(row);
        Ok((Workspace::take(&mut fields)?, WorkspaceCredits::take(&mut fields)?, Subscription::take(&mut fields)?))
    });
    let state_rows = StateRows {
        heads: heads.collect::<Result<_, StoreError>>()?,
        overrides: fetch(connection, &OVERRIDES, &keys).await?,
        counters: fetch(connection, &COUNTERS, &keys).await?,
        grants: fetch(connection, &OPEN_GRANTS, &keys).await?,
    };
    let keys = state_rows.heads.iter().flat_map(|(_, _, subscription)| plan_keys(subscription)).collect();
    let plans = versions(connection, cache, &keys).await?;
    state_rows.into_states(&plans)
}

async fn fetch<T: Table>(
    connection: &mut SqliteConnection,
    statement: &'static str,
    keys: &str,
) -> Result<Vec<T>, StoreError> {
    rows(&sqlx::query(statement).bind(keys).fetch_all(connection).await.map_err(store_error)?)
}

const STALE_WORKSPACES: &str = "
select c.workspace_id
from jsonb_each(?1) k
cross join workspace_credits c on c.workspace_id = unhex(k.value ->> 0) and c.version <> k.value ->> 1";

/// Those of the workspaces that have another version than the given one.
pub(super) async fn stale_workspaces(
    connection: &mut SqliteConnection,
    known: &[(WorkspaceId, i64)],
) -> Result<Vec<WorkspaceId>, StoreError> {
    let known = json_of(known, |row, (id, version)| {
        row.add(id).add(version);
    });
    let found = sqlx::query(STALE_WORKSPACES).bind(known).fetch_all(connection).await.map_err(store_error)?;
    found.iter().map(|row| Fields::of(row).next()).collect()
}

const USED_PAYMENTS: &str = "
select g.workspace_id, g.payment_reference
from jsonb_each(?1) k
cross join credit_grants g indexed by credit_grants_payment
    on g.workspace_id = unhex(k.value ->> 0) and g.payment_reference = k.value ->> 1
where g.payment_reference is not null and g.source = 'purchase'";

async fn used_payments(
    connection: &mut SqliteConnection,
    keys: &BTreeSet<(WorkspaceId, PaymentReference)>,
) -> Result<HashSet<(WorkspaceId, PaymentReference)>, StoreError> {
    if keys.is_empty() {
        return Ok(HashSet::new());
    }
    let keys = json_of(keys, |row, (workspace_id, reference)| {
        row.add(workspace_id).add(reference);
    });
    let found = sqlx::query(USED_PAYMENTS).bind(keys).fetch_all(connection).await.map_err(store_error)?;
    let key = |mut fields: Fields<'_>| Ok((fields.next()?, fields.next()?));
    found.iter().map(|row| key(Fields::of(row))).collect()
}
