//! Plans: stored once per version, and kept in memory, because a version never changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::connection::Writer;
use super::error::{store_error, unreadable};
use super::json;
use super::rows::get;
use crate::domain::plan::PlanVersion;
use crate::domain::text::PlanCode;
use crate::store::StoreError;
use crate::store::plan_cache::{PlanCache, PlanKey};

pub(super) const STATEMENTS: &[&str] = &[
    INSERT_PLAN_VERSIONS,
    INSERT_PLAN_FEATURES,
    RAISE_LATEST_VERSIONS,
    LATEST_VERSIONS,
    ALL_LATEST_VERSIONS,
    PLAN_VERSIONS,
];

/// The versions by key; those that are not known yet are read in one statement.
pub(super) async fn versions(
    connection: &mut SqliteConnection,
    cache: &PlanCache,
    keys: &BTreeSet<PlanKey>,
) -> Result<HashMap<PlanKey, Arc<PlanVersion>>, StoreError> {
    let (found, missing) = cache.find(keys);
    if missing.is_empty() {
        return Ok(found);
    }
    let read = read_versions(connection, &missing).await?;
    Ok(cache.keep(found, read))
}

const INSERT_PLAN_VERSIONS: &str = "
insert into plan_versions (plan_code, version, definition)
select value ->> 0, value ->> 1, value ->> 2 from jsonb_each(?1) where true
on conflict do nothing
returning plan_code, version";

const INSERT_PLAN_FEATURES: &str = "
insert into plan_features (plan_code, version, feature_code, enabled, unit_price, limit_amount, limit_mode)
select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6 from jsonb_each(?1)";

const RAISE_LATEST_VERSIONS: &str = "
insert into plans (plan_code, latest_version)
select value ->> 0, value ->> 1 from jsonb_each(?1) where true
on conflict (plan_code) do update set latest_version = excluded.latest_version
where plans.latest_version < excluded.latest_version";

/// Stores the versions that are new, and refuses any that differs from what is there.
pub(super) async fn put(writer: &Writer, plans: &[PlanVersion]) -> Result<(), StoreError> {
    for plan in plans {
        plan.validate().map_err(|invalid| StoreError::Corrupt(invalid.to_string()))?;
    }
    let definitions = plans
        .iter()
        .map(|plan| serde_json::to_string(plan).map_err(|error| StoreError::Corrupt(error.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    let versions = json::rows(plans.iter().zip(&definitions), |row, (plan, definition)| {
        row.text(plan.plan_code.as_str()).int(plan.version).text(definition);
    });
    let mut tx = writer.begin().await?;
    let new: Vec<PlanKey> = sqlx::query(INSERT_PLAN_VERSIONS)
        .bind(versions)
        .fetch_all(tx.connection())
        .await
        .map_err(store_error)?
        .iter()
        .map(plan_key)
        .collect::<Result<_, _>>()?;
    let keys: BTreeSet<PlanKey> = plans.iter().map(|plan| (plan.plan_code.clone(), plan.version)).collect();
    let stored: HashMap<_, _> = read_versions(tx.connection(), &keys.iter().collect::<Vec<_>>())
        .await?
        .into_iter()
        .map(|plan| ((plan.plan_code.clone(), plan.version), plan))
        .collect();
    for plan in plans {
        if stored.get(&(plan.plan_code.clone(), plan.version)).is_none_or(|stored| **stored != *plan) {
            let text = format!("plan {} version {} is stored with another definition", plan.plan_code, plan.version);
            return Err(StoreError::Conflict(text));
        }
    }
    insert_features(tx.connection(), new.iter().filter_map(|key| stored.get(key))).await?;
    raise_latest_versions(tx.connection(), &keys).await?;
    tx.commit().await
}

async fn insert_features(
    connection: &mut SqliteConnection,
    plans: impl Iterator<Item = &Arc<PlanVersion>>,
) -> Result<(), StoreError> {
    let terms = plans.flat_map(|plan| plan.features.iter().map(move |(code, terms)| (plan, code, terms)));
    let rows = json::rows(terms, |row, (plan, code, terms)| {
        row.text(plan.plan_code.as_str())
            .int(plan.version)
            .text(code.as_str())
            .int(terms.enabled)
            .maybe_credits(terms.unit_price)
            .maybe_credits(terms.limit.map(|limit| limit.credits))
            .maybe_text(terms.limit.map(|limit| limit.mode.as_str()));
    });
    sqlx::query(INSERT_PLAN_FEATURES).bind(rows).execute(connection).await.map_err(store_error)?;
    Ok(())
}

async fn raise_latest_versions(connection: &mut SqliteConnection, keys: &BTreeSet<PlanKey>) -> Result<(), StoreError> {
    // In order of version, so that the last one of a code is its newest.
    let newest: BTreeMap<&str, i32> = keys.iter().map(|(code, version)| (code.as_str(), *version)).collect();
    let newest = json::rows(newest, |row, (code, version)| {
        row.text(code).int(version);
    });
    sqlx::query(RAISE_LATEST_VERSIONS).bind(newest).execute(connection).await.map_err(store_error)?;
    Ok(())
}

const LATEST_VERSIONS: &str = "
select plan_code, latest_version as version from plans where plan_code in (select value ->> 0 from jsonb_each(?1))";

/// The newest versions of the named plans; of a code that does not exist, none.
pub(super) async fn latest_versions<'c>(
    connection: &mut SqliteConnection,
    codes: impl Iterator<Item = &'c PlanCode>,
) -> Result<BTreeSet<PlanKey>, StoreError> {
    let codes = json::rows(codes, |row, code| {
        row.text(code.as_str());
    });
    let rows = sqlx::query(LATEST_VERSIONS).bind(codes).fetch_all(connection).await.map_err(store_error)?;
    rows.iter().map(plan_key).collect()
}

const ALL_LATEST_VERSIONS: &str = "
select plan_code, latest_version as version from plans";

pub(super) async fn all_latest_versions(connection: &mut SqliteConnection) -> Result<BTreeSet<PlanKey>, StoreError> {
    let rows = sqlx::query(ALL_LATEST_VERSIONS).fetch_all(connection).await.map_err(store_error)?;
    rows.iter().map(plan_key).collect()
}

const PLAN_VERSIONS: &str = "
select v.definition
from jsonb_each(?1) k
cross join plan_versions v on v.plan_code = k.value ->> 0 and v.version = k.value ->> 1";

async fn read_versions(
    connection: &mut SqliteConnection,
    keys: &[&PlanKey],
) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
    let keys = json::rows(keys, |row, key| {
        row.text(key.0.as_str()).int(key.1);
    });
    let rows = sqlx::query(PLAN_VERSIONS).bind(keys).fetch_all(connection).await.map_err(store_error)?;
    rows.iter()
        .map(|row| {
            let definition: &str = get(row, "definition")?;
            serde_json::from_str(definition).map(Arc::new).map_err(|_| unreadable("plan", definition))
        })
        .collect()
}

fn plan_key(row: &SqliteRow) -> Result<PlanKey, StoreError> {
    Ok((PlanCode::from_stored(get(row, "plan_code")?), get(row, "version")?))
}
