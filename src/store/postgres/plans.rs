//! Plans: stored once per version, and cached, because a version never changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use sqlx::postgres::{PgConnection, PgRow};

use super::error::store_error;
use super::rows::{BindColumn, BindRows, insert, insert_rows, rows};
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::CataloguePlan;
use crate::domain::text::PlanCode;
use crate::domain::time::Timestamp;
use crate::store::columns::Fields;
use crate::store::error::StoreError;
use crate::store::plan_cache::{PlanCache, PlanKey, plan_of};
use crate::store::plan_rows::{PlanFeatureRow, PlanVersionRow, check_unchanged, feature_rows, plans_of};
use crate::store::tables::Table;

pub(super) fn statements() -> Vec<String> {
    let fixed = [OFFER_PLANS, RETIRE_OTHERS, PLANS_BY_CODES, OFFERED_PLANS].map(str::to_owned);
    let made = [INSERT_VERSIONS.clone(), insert::<PlanFeatureRow>(1)];
    fixed.into_iter().chain(made).chain([VERSIONS_BY_KEYS.clone(), FEATURES_BY_KEYS.clone()]).collect()
}

/// The versions by key; those that are not cached are read.
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

const OFFER_PLANS: &str = "
insert into plans (plan_code, source)
select distinct plan_code, 'file' from unnest($1::text[]) n (plan_code) order by 1
on conflict (plan_code) do update set retired_at = null where plans.retired_at is not null";

const RETIRE_OTHERS: &str = "
update plans set retired_at = $2 where source = 'file' and retired_at is null and plan_code <> all($1::text[])";

static INSERT_VERSIONS: LazyLock<String> = LazyLock::new(|| {
    format!("{} order by 1, 2 on conflict do nothing returning plan_code, version", insert::<PlanVersionRow>(1))
});

/// Stores the versions that are new, refuses any that differs from what is stored, and offers exactly these plans.
pub(super) async fn put(
    connection: &mut PgConnection,
    plans: &[PlanVersion],
    now: Timestamp,
) -> Result<(), StoreError> {
    let version_rows = plans.iter().map(|plan| PlanVersionRow::of(plan, now)).collect::<Result<Vec<_>, _>>()?;
    let codes: Vec<&str> = plans.iter().map(|plan| plan.plan_code.as_str()).collect();
    sqlx::query(OFFER_PLANS).bind(&codes).execute(&mut *connection).await.map_err(store_error)?;
    let statement = sqlx::query(INSERT_VERSIONS.as_str()).rows(&version_rows);
    let new = statement.fetch_all(&mut *connection).await.map_err(store_error)?;
    let new = new.iter().map(plan_key).collect::<Result<BTreeSet<_>, _>>()?;
    let is_new = |plan: &&PlanVersion| new.contains(&(plan.plan_code.clone(), plan.version));
    let features: Vec<_> = plans.iter().filter(is_new).flat_map(feature_rows).collect();
    insert_rows(connection, &features).await?;
    let keys: Vec<PlanKey> = plans.iter().map(|plan| (plan.plan_code.clone(), plan.version)).collect();
    check_unchanged(plans, &read_versions(connection, &keys.iter().collect::<Vec<_>>()).await?)?;
    let retire = sqlx::query(RETIRE_OTHERS).bind(&codes).bind(now.to_datetime());
    retire.execute(connection).await.map_err(store_error)?;
    Ok(())
}

const PLANS_BY_CODES: &str = "
select p.plan_code, (select max(v.version) from plan_versions v where v.plan_code = p.plan_code), p.retired_at is null
from plans p
where p.plan_code = any($1::text[])";

/// The named plans; of a code that does not exist, none.
pub(super) async fn plans_by_codes(
    connection: &mut PgConnection,
    cache: &PlanCache,
    codes: &BTreeSet<PlanCode>,
) -> Result<HashMap<PlanCode, CataloguePlan>, StoreError> {
    if codes.is_empty() {
        return Ok(HashMap::new());
    }
    let statement = sqlx::query(PLANS_BY_CODES).column(codes, PlanCode::as_str);
    let found = statement.fetch_all(&mut *connection).await.map_err(store_error)?;
    let named = found.iter().map(|row| {
        let mut fields = Fields::of(row);
        Ok(((fields.next()?, fields.next()?), fields.next()?))
    });
    let named = named.collect::<Result<Vec<(PlanKey, bool)>, StoreError>>()?;
    let plans = versions(connection, cache, &named.iter().map(|(key, _)| key.clone()).collect()).await?;
    let plan = |(key, is_offered): &(PlanKey, bool)| {
        Ok((key.0.clone(), CataloguePlan { newest: plan_of(&plans, key)?, is_offered: *is_offered }))
    };
    named.iter().map(plan).collect()
}

const OFFERED_PLANS: &str = "
select v.plan_code, max(v.version)
from plan_versions v
join plans p on p.plan_code = v.plan_code
where p.retired_at is null
group by v.plan_code";

/// The newest versions of the plans that are offered.
pub(super) async fn offered_plans(connection: &mut PgConnection) -> Result<BTreeSet<PlanKey>, StoreError> {
    let found = sqlx::query(OFFERED_PLANS).fetch_all(connection).await.map_err(store_error)?;
    found.iter().map(plan_key).collect()
}

static VERSIONS_BY_KEYS: LazyLock<String> = LazyLock::new(by_keys::<PlanVersionRow>);
static FEATURES_BY_KEYS: LazyLock<String> = LazyLock::new(by_keys::<PlanFeatureRow>);

fn by_keys<T: Table>() -> String {
    format!(
        "select {} from unnest($1::text[], $2::integer[]) as k (plan_code, version)
join {} t on t.plan_code = k.plan_code and t.version = k.version",
        T::select("t"),
        T::NAME
    )
}

async fn read_versions(connection: &mut PgConnection, keys: &[&PlanKey]) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
    let versions = rows_of_versions(connection, &VERSIONS_BY_KEYS, keys).await?;
    let features = rows_of_versions(connection, &FEATURES_BY_KEYS, keys).await?;
    plans_of(versions, features)
}

async fn rows_of_versions<T: Table>(
    connection: &mut PgConnection,
    statement: &'static str,
    keys: &[&PlanKey],
) -> Result<Vec<T>, StoreError> {
    let statement = sqlx::query(statement).column(keys, |key| key.0.as_str()).column(keys, |key| key.1);
    rows(&statement.fetch_all(connection).await.map_err(store_error)?)
}

fn plan_key(row: &PgRow) -> Result<PlanKey, StoreError> {
    let mut fields = Fields::of(row);
    Ok((fields.next()?, fields.next()?))
}
