//! Plans: stored once per version, and cached, because a version never changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::connection::Writer;
use super::error::store_error;
use super::rows::{insert, insert_rows, json, json_of, rows};
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
    let made = [INSERT_VERSIONS.clone(), insert::<PlanFeatureRow>("?1")];
    fixed.into_iter().chain(made).chain([VERSIONS_BY_KEYS.clone(), FEATURES_BY_KEYS.clone()]).collect()
}

/// The versions by key; those that are not cached are read.
pub(super) async fn versions(
    connection: &mut SqliteConnection,
    cache: &PlanCache,
    keys: &BTreeSet<PlanKey>,
) -> Result<HashMap<PlanKey, Arc<PlanVersion>>, StoreError> {
    let (found, missing) = cache.find(keys);
    if missing.is_empty() {
        return Ok(found);
    }
    let read = read_versions(connection, missing).await?;
    Ok(cache.keep(found, read))
}

const OFFER_PLANS: &str = "
insert into plans (plan_code, source)
select distinct value ->> 0, 'file' from jsonb_each(?1) where true
on conflict (plan_code) do update set retired_at = null where plans.retired_at is not null";

const RETIRE_OTHERS: &str = "
update plans set retired_at = ?2
where source = 'file' and retired_at is null and plan_code not in (select value ->> 0 from jsonb_each(?1))";

static INSERT_VERSIONS: LazyLock<String> =
    LazyLock::new(|| format!("{} on conflict do nothing returning plan_code, version", insert::<PlanVersionRow>("?1")));

/// Stores the versions that are new, refuses any that differs from what is stored, and offers exactly these plans.
pub(super) async fn put(writer: &Writer, plans: &[PlanVersion], now: Timestamp) -> Result<(), StoreError> {
    let version_rows = plans.iter().map(|plan| PlanVersionRow::of(plan, now)).collect::<Result<Vec<_>, _>>()?;
    let codes = codes_json(plans.iter().map(|plan| &plan.plan_code));
    let mut tx = writer.begin().await?;
    sqlx::query(OFFER_PLANS).bind(&codes).execute(tx.connection()).await.map_err(store_error)?;
    let statement = sqlx::query(INSERT_VERSIONS.as_str()).bind(json(&version_rows));
    let new = statement.fetch_all(tx.connection()).await.map_err(store_error)?;
    let new = new.iter().map(plan_key).collect::<Result<BTreeSet<_>, _>>()?;
    let is_new = |plan: &&PlanVersion| new.contains(&(plan.plan_code.clone(), plan.version));
    let features: Vec<_> = plans.iter().filter(is_new).flat_map(feature_rows).collect();
    insert_rows(tx.connection(), &features).await?;
    let keys: Vec<PlanKey> = plans.iter().map(|plan| (plan.plan_code.clone(), plan.version)).collect();
    check_unchanged(plans, &read_versions(tx.connection(), keys.iter()).await?)?;
    let retire = sqlx::query(RETIRE_OTHERS).bind(&codes).bind(now.micros());
    retire.execute(tx.connection()).await.map_err(store_error)?;
    tx.commit().await
}

fn codes_json<'c>(codes: impl Iterator<Item = &'c PlanCode>) -> String {
    json_of(codes, |row, code| {
        row.add(code);
    })
}

const PLANS_BY_CODES: &str = "
select p.plan_code, (select max(v.version) from plan_versions v where v.plan_code = p.plan_code), p.retired_at is null
from jsonb_each(?1) k
cross join plans p on p.plan_code = k.value ->> 0";

/// The named plans; of a code that does not exist, none.
pub(super) async fn plans_by_codes(
    connection: &mut SqliteConnection,
    cache: &PlanCache,
    codes: &BTreeSet<PlanCode>,
) -> Result<HashMap<PlanCode, CataloguePlan>, StoreError> {
    if codes.is_empty() {
        return Ok(HashMap::new());
    }
    let statement = sqlx::query(PLANS_BY_CODES).bind(codes_json(codes.iter()));
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
pub(super) async fn offered_plans(connection: &mut SqliteConnection) -> Result<BTreeSet<PlanKey>, StoreError> {
    let found = sqlx::query(OFFERED_PLANS).fetch_all(connection).await.map_err(store_error)?;
    found.iter().map(plan_key).collect()
}

static VERSIONS_BY_KEYS: LazyLock<String> = LazyLock::new(by_keys::<PlanVersionRow>);
static FEATURES_BY_KEYS: LazyLock<String> = LazyLock::new(by_keys::<PlanFeatureRow>);

fn by_keys<T: Table>() -> String {
    let (columns, table) = (T::select("t"), T::NAME);
    format!(
        "select {columns} from jsonb_each(?1) k
cross join {table} t on t.plan_code = k.value ->> 0 and t.version = k.value ->> 1"
    )
}

async fn read_versions<'k>(
    connection: &mut SqliteConnection,
    keys: impl IntoIterator<Item = &'k PlanKey>,
) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
    let keys = json_of(keys, |row, (code, version)| {
        row.add(code).add(version);
    });
    let versions = sqlx::query(VERSIONS_BY_KEYS.as_str()).bind(&keys);
    let versions = rows(&versions.fetch_all(&mut *connection).await.map_err(store_error)?)?;
    let features = sqlx::query(FEATURES_BY_KEYS.as_str()).bind(&keys);
    plans_of(versions, rows(&features.fetch_all(connection).await.map_err(store_error)?)?)
}

fn plan_key(row: &SqliteRow) -> Result<PlanKey, StoreError> {
    let mut fields = Fields::of(row);
    Ok((fields.next()?, fields.next()?))
}
