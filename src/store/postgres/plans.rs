//! Plans: stored once per version, and kept in memory, because a version never changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::types::Json;

use super::error::store_error;
use super::rows::get;
use super::write::Columns;
use crate::domain::plan::{FeatureTerms, PlanVersion};
use crate::domain::text::{FeatureCode, PlanCode};
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
    connection: &mut PgConnection,
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
select * from unnest($1::text[], $2::integer[], $3::jsonb[])
order by 1, 2
on conflict do nothing
returning plan_code, version";

const INSERT_PLAN_FEATURES: &str = "
insert into plan_features (plan_code, version, feature_code, enabled, unit_price, limit_amount, limit_mode)
select * from unnest($1::text[], $2::integer[], $3::text[], $4::boolean[], $5::bigint[], $6::bigint[], $7::text[])";

const RAISE_LATEST_VERSIONS: &str = "
insert into plans (plan_code, latest_version)
select * from unnest($1::text[], $2::integer[])
on conflict (plan_code) do update set latest_version = excluded.latest_version
where plans.latest_version < excluded.latest_version";

/// Stores the versions that are new, and refuses any that differs from what is there.
pub(super) async fn put(connection: &mut PgConnection, plans: &[PlanVersion]) -> Result<(), StoreError> {
    for plan in plans {
        plan.validate().map_err(|invalid| StoreError::Corrupt(invalid.to_string()))?;
    }
    let new: Vec<PlanKey> = sqlx::query(INSERT_PLAN_VERSIONS)
        .column(plans, |plan| plan.plan_code.as_str())
        .column(plans, |plan| plan.version)
        .column(plans, Json)
        .fetch_all(&mut *connection)
        .await
        .map_err(store_error)?
        .iter()
        .map(plan_key)
        .collect::<Result<_, _>>()?;
    let keys: BTreeSet<PlanKey> = plans.iter().map(|plan| (plan.plan_code.clone(), plan.version)).collect();
    let stored: HashMap<_, _> = read_versions(connection, &keys.iter().collect::<Vec<_>>())
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
    insert_features(connection, new.iter().filter_map(|key| stored.get(key))).await?;
    raise_latest_versions(connection, &keys).await
}

async fn insert_features(
    connection: &mut PgConnection,
    plans: impl Iterator<Item = &Arc<PlanVersion>>,
) -> Result<(), StoreError> {
    let rows: Vec<(&PlanVersion, &FeatureCode, &FeatureTerms)> =
        plans.flat_map(|plan| plan.features.iter().map(|(code, terms)| (&**plan, code, terms))).collect();
    sqlx::query(INSERT_PLAN_FEATURES)
        .column(&rows, |(plan, _, _)| plan.plan_code.as_str())
        .column(&rows, |(plan, _, _)| plan.version)
        .column(&rows, |(_, code, _)| code.as_str())
        .column(&rows, |(_, _, terms)| terms.enabled)
        .column(&rows, |(_, _, terms)| terms.unit_price.map(crate::domain::credits::Credits::micro))
        .column(&rows, |(_, _, terms)| terms.limit.map(|limit| limit.credits.micro()))
        .column(&rows, |(_, _, terms)| terms.limit.map(|limit| limit.mode.as_str()))
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(())
}

async fn raise_latest_versions(connection: &mut PgConnection, keys: &BTreeSet<PlanKey>) -> Result<(), StoreError> {
    // In order of version, so that the last one of a code is its newest.
    let newest: Vec<(&str, i32)> =
        keys.iter().map(|(code, version)| (code.as_str(), *version)).collect::<BTreeMap<_, _>>().into_iter().collect();
    sqlx::query(RAISE_LATEST_VERSIONS)
        .column(&newest, |(code, _)| *code)
        .column(&newest, |(_, version)| *version)
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(())
}

const LATEST_VERSIONS: &str = "
select plan_code, latest_version as version from plans where plan_code = any($1::text[])";

/// The newest versions of the named plans; of a code that does not exist, none.
pub(super) async fn latest_versions<'c>(
    connection: &mut PgConnection,
    codes: impl Iterator<Item = &'c PlanCode>,
) -> Result<BTreeSet<PlanKey>, StoreError> {
    let codes: Vec<&str> = codes.map(PlanCode::as_str).collect();
    let rows = sqlx::query(LATEST_VERSIONS).bind(codes).fetch_all(connection).await.map_err(store_error)?;
    rows.iter().map(plan_key).collect()
}

const ALL_LATEST_VERSIONS: &str = "
select plan_code, latest_version as version from plans";

pub(super) async fn all_latest_versions(connection: &mut PgConnection) -> Result<BTreeSet<PlanKey>, StoreError> {
    let rows = sqlx::query(ALL_LATEST_VERSIONS).fetch_all(connection).await.map_err(store_error)?;
    rows.iter().map(plan_key).collect()
}

const PLAN_VERSIONS: &str = "
select v.definition
from unnest($1::text[], $2::integer[]) as k (plan_code, version)
join plan_versions v on v.plan_code = k.plan_code and v.version = k.version";

async fn read_versions(connection: &mut PgConnection, keys: &[&PlanKey]) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
    let rows = sqlx::query(PLAN_VERSIONS)
        .column(keys, |key| key.0.as_str())
        .column(keys, |key| key.1)
        .fetch_all(connection)
        .await
        .map_err(store_error)?;
    rows.iter().map(|row| get::<Json<PlanVersion>>(row, "definition").map(|plan| Arc::new(plan.0))).collect()
}

fn plan_key(row: &PgRow) -> Result<PlanKey, StoreError> {
    Ok((PlanCode::from_stored(get(row, "plan_code")?), get(row, "version")?))
}
