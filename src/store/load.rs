//! Loads what a batch decides on, in a fixed number of statements whatever the number of keys.
//!
//! The heads are locked first, in a statement of their own, because waiting for a lock does not refresh the snapshot of
//! the statement that waits. The statements after it see what the previous holder has committed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::columns::Fields;
use super::dialect::{Dialect, Keys, each, rows_by_key};
use super::error::StoreError;
use super::plan_cache::{PlanCache, PlanKey, plan_keys, plan_of};
use super::plan_rows::{PlanVersionRow, check_unchanged, feature_rows, plans_of};
use super::states::StateRows;
use super::tables::Table;
use crate::domain::cloud_event::EventSource;
use crate::domain::command_record::CommandRecord;
use crate::domain::grant::{Grant, GrantSource};
use crate::domain::hold::{HeldShare, Hold};
use crate::domain::ids::{GrantId, Partition, WorkspaceId};
use crate::domain::ledger::LedgerEntry;
use crate::domain::partition_head::PartitionHead;
use crate::domain::plan::PlanVersion;
use crate::domain::refund::{RefundableUsage, UsageShare};
use crate::domain::reversal::ReversiblePurchase;
use crate::domain::snapshot::{CataloguePlan, KeySet, Snapshot, WorkspaceState};
use crate::domain::subscription::Subscription;
use crate::domain::text::{FeatureCode, PlanCode};
use crate::domain::time::Timestamp;
use crate::domain::usage::{UsageId, UsageLog};
use crate::domain::workspace::{Workspace, WorkspaceCredits};

/// Locks the partitions of the keys and reads the rows of the keys.
pub(super) async fn load<D: Dialect>(
    connection: &mut D,
    cache: &PlanCache,
    keys: &KeySet,
) -> Result<Snapshot, StoreError> {
    let (heads, database_now) = connection.lock_heads(&keys.partitions()).await?;
    rows_of(connection, cache, keys, (heads, database_now)).await
}

/// Reads the rows of the keys without locks, for a decision that is not written: nothing is numbered, so it has no heads.
pub(super) async fn peek<D: Dialect>(
    connection: &mut D,
    cache: &PlanCache,
    keys: &KeySet,
) -> Result<Snapshot, StoreError> {
    let database_now = connection.database_now().await?;
    rows_of(connection, cache, keys, (BTreeMap::new(), database_now)).await
}

async fn rows_of<D: Dialect>(
    connection: &mut D,
    cache: &PlanCache,
    keys: &KeySet,
    (heads, database_now): (BTreeMap<Partition, PartitionHead>, Option<Timestamp>),
) -> Result<Snapshot, StoreError> {
    let commands = rows_by_key(connection, &D::statements().commands, Keys::pairs(&keys.commands)).await?;
    let payments = connection.look_up(&D::statements().payments, &Keys::pairs(&keys.payments)).await?;
    let usages = usages(connection, &keys.usages).await?;
    let (purchases, bonus_grants) = purchases(connection, &keys.purchases).await?;
    let of_usages = usages.iter().flat_map(|((workspace_id, _), usage)| {
        usage.shares.iter().filter_map(|share| Some((*workspace_id, share.grant_id?)))
    });
    let grants = keys.grants.iter().chain(&keys.purchases).copied().chain(bonus_grants).chain(of_usages);
    let grants: BTreeSet<_> = grants.collect();
    let grants: Vec<Grant> = rows_by_key(connection, &D::statements().grants, Keys::pairs(&grants)).await?;
    let holds: Vec<Hold> = rows_by_key(connection, &D::statements().holds, Keys::pairs(&keys.holds)).await?;
    let plans = plans_by_codes(connection, cache, &keys.plans).await?;
    let features = existing_features(connection, cache, &keys.features).await?;
    let ids: Vec<_> = keys.uncached_workspaces(&heads).collect();
    let workspaces = states(connection, cache, &ids).await?;
    let keyed = |command: CommandRecord| ((command.workspace_id, command.idempotency_key.clone()), command);
    Ok(Snapshot {
        database_now,
        heads,
        workspaces,
        commands: commands.into_iter().map(keyed).collect(),
        payments: each(&payments, |mut row| Ok(((row.next()?, row.next()?), row.next()?)))?.into_iter().collect(),
        closed_grants: grants.into_iter().map(|grant| ((grant.workspace_id, grant.grant_id), grant)).collect(),
        usages,
        purchases,
        holds: holds.into_iter().map(|hold| ((hold.workspace_id, hold.hold_id), hold)).collect(),
        plans,
        offered_plans: Arc::default(),
        features,
    })
}

/// The usage logs of the keys, with what each took and what was refunded of it.
async fn usages<D: Dialect>(
    connection: &mut D,
    keys: &BTreeSet<(WorkspaceId, UsageId)>,
) -> Result<HashMap<(WorkspaceId, UsageId), RefundableUsage>, StoreError> {
    let found = connection.look_up(&D::statements().usages, &Keys::usages(keys)).await?;
    let recorded: BTreeSet<_> = keys.iter().map(|(workspace_id, usage)| (*workspace_id, usage.recorded_at)).collect();
    let mut entries: Vec<LedgerEntry> =
        rows_by_key(connection, &D::statements().usage_shares, Keys::pairs(&recorded)).await?;
    entries.sort_by_key(|entry| entry.seq);
    let mut by_usage: HashMap<_, Vec<LedgerEntry>> = HashMap::new();
    for entry in entries {
        by_usage.entry((entry.workspace_id, entry.recorded_at)).or_default().push(entry);
    }
    let usage = |mut row: Fields<'_>| Ok((UsageLog::take(&mut row)?, row.next()?, row.next()?));
    let with_shares = |(log, refunded, is_of_current_period): (UsageLog, _, _)| {
        let entries = by_usage.remove(&(log.workspace_id, log.recorded_at)).unwrap_or_default();
        let shares = UsageShare::of_entries(entries.iter());
        ((log.workspace_id, log.id()), RefundableUsage { log, shares, refunded, is_of_current_period })
    };
    Ok(each(&found, usage)?.into_iter().map(with_shares).collect())
}

type Purchases = HashMap<(WorkspaceId, GrantId), ReversiblePurchase>;

/// The purchases of the keys, and the grants of their bonuses.
async fn purchases<D: Dialect>(
    connection: &mut D,
    keys: &BTreeSet<(WorkspaceId, GrantId)>,
) -> Result<(Purchases, Vec<(WorkspaceId, GrantId)>), StoreError> {
    let found = connection.look_up(&D::statements().reversible_purchases, &Keys::pairs(keys)).await?;
    let purchase = |mut row: Fields<'_>| {
        let key: (WorkspaceId, GrantId) = (row.next()?, row.next()?);
        let (source, bonus_grant_id): (GrantSource, Option<GrantId>) = (row.next()?, row.next()?);
        let (reversed, amount_minor, expired) = (row.next()?, row.next()?, row.next()?);
        Ok((key, source, bonus_grant_id, ReversiblePurchase { reversed, amount_minor, expired }))
    };
    let (mut purchases, mut bonus_grants) = (HashMap::new(), Vec::new());
    for (key, source, bonus_grant_id, purchase) in each(&found, purchase)? {
        if source == GrantSource::Purchase {
            bonus_grants.extend(bonus_grant_id.map(|grant_id| (key.0, grant_id)));
            purchases.insert(key, purchase);
        }
    }
    Ok((purchases, bonus_grants))
}

/// The states of the workspaces that exist.
pub(super) async fn states<D: Dialect>(
    connection: &mut D,
    cache: &PlanCache,
    ids: &[WorkspaceId],
) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
    let statements = D::statements();
    let found = connection.look_up(&statements.workspaces, &Keys::of(ids)).await?;
    if found.is_empty() {
        return Ok(HashMap::new());
    }
    let head = |mut row: Fields<'_>| {
        Ok((Workspace::take(&mut row)?, WorkspaceCredits::take(&mut row)?, Subscription::take(&mut row)?))
    };
    let heads = each(&found, head)?;
    let has_holds = |credits: &WorkspaceCredits| (credits.open_holds > 0).then_some(credits.workspace_id);
    let with_holds: Vec<_> = heads.iter().filter_map(|(_, credits, _)| has_holds(credits)).collect();
    let holds: Vec<Hold> = rows_by_key(connection, &statements.open_holds, Keys::of(&with_holds)).await?;
    let state_rows = StateRows {
        heads,
        held_shares: held_shares(connection, &holds).await?,
        holds,
        overrides: rows_by_key(connection, &statements.overrides, Keys::of(ids)).await?,
        counters: rows_by_key(connection, &statements.counters, Keys::of(ids)).await?,
        grants: rows_by_key(connection, &statements.open_grants, Keys::of(ids)).await?,
    };
    let keys = state_rows.heads.iter().flat_map(|(_, _, subscription)| plan_keys(subscription)).collect();
    let plans = versions(connection, cache, &keys).await?;
    state_rows.into_states(&plans)
}

/// What the holds reserve of grants.
pub(super) async fn held_shares<D: Dialect>(connection: &mut D, holds: &[Hold]) -> Result<Vec<HeldShare>, StoreError> {
    let keys: Vec<_> = holds.iter().map(|hold| (hold.workspace_id, hold.hold_id)).collect();
    rows_by_key(connection, &D::statements().held_shares, Keys::pairs(&keys)).await
}

/// The workspaces whose version is not the given one.
pub(super) async fn stale_workspaces<D: Dialect>(
    connection: &mut D,
    known: &[(WorkspaceId, i64)],
) -> Result<Vec<WorkspaceId>, StoreError> {
    let found = connection.look_up(&D::statements().stale, &Keys::pairs(known)).await?;
    each(&found, |mut row| row.next())
}

/// The versions by key, from the cache or else from the database.
pub(super) async fn versions<D: Dialect>(
    connection: &mut D,
    cache: &PlanCache,
    keys: &BTreeSet<PlanKey>,
) -> Result<HashMap<PlanKey, Arc<PlanVersion>>, StoreError> {
    let (found, missing) = cache.find(keys);
    let read = read_versions(connection, missing.into_iter()).await?;
    Ok(cache.insert(found, read))
}

async fn read_versions<'k, D: Dialect>(
    connection: &mut D,
    keys: impl Iterator<Item = &'k PlanKey> + Clone,
) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
    let versions = rows_by_key(connection, &D::statements().versions, Keys::pairs(keys.clone())).await?;
    let features = rows_by_key(connection, &D::statements().features, Keys::pairs(keys)).await?;
    plans_of(versions, features)
}

/// The plans by code. A code that does not exist is left out.
async fn plans_by_codes<D: Dialect>(
    connection: &mut D,
    cache: &PlanCache,
    codes: &BTreeSet<PlanCode>,
) -> Result<HashMap<PlanCode, CataloguePlan>, StoreError> {
    let found = connection.look_up(&D::statements().plans, &Keys::of(codes)).await?;
    let named: Vec<(PlanKey, bool)> = each(&found, |mut row| Ok(((row.next()?, row.next()?), row.next()?)))?;
    let plans = versions(connection, cache, &named.iter().map(|(key, _)| key.clone()).collect()).await?;
    let plan = |(key, is_offered): (PlanKey, bool)| {
        Ok((key.0.clone(), CataloguePlan { newest: plan_of(&plans, &key)?, is_offered }))
    };
    named.into_iter().map(plan).collect()
}

/// Those of the features that a version of a plan has. A feature that exists never ceases to, so it is cached.
async fn existing_features<D: Dialect>(
    connection: &mut D,
    cache: &PlanCache,
    features: &BTreeSet<FeatureCode>,
) -> Result<HashSet<FeatureCode>, StoreError> {
    let (mut existing, unknown) = cache.find_features(features);
    let found = connection.look_up(&D::statements().existing_features, &Keys::of(unknown)).await?;
    let found: Vec<FeatureCode> = each(&found, |mut row| row.next())?;
    cache.insert_features(&found);
    existing.extend(found);
    Ok(existing)
}

/// The name of the setting.
const EVENT_SOURCE: &str = "events.source";

/// Stores the source if none is stored. Returns the stored one.
pub(super) async fn event_source<D: Dialect>(
    connection: &mut D,
    wanted: &EventSource,
) -> Result<EventSource, StoreError> {
    let setting = [(EVENT_SOURCE.to_owned(), wanted.as_str().to_owned())];
    let mut found = connection.look_up(&D::statements().setting, &Keys::pairs(&setting)).await?;
    if found.is_empty() {
        connection.look_up(&D::statements().keep_setting, &Keys::pairs(&setting)).await?;
        found = connection.look_up(&D::statements().setting, &Keys::pairs(&setting)).await?;
    }
    let values: Vec<String> = each(&found, |mut row| row.next())?;
    let source = values.first().and_then(|text| EventSource::new(text));
    source.ok_or_else(|| StoreError::Corrupt(format!("the setting {EVENT_SOURCE} is not a URI")))
}

/// Stores new versions, refuses a version that is stored with other terms, and offers exactly these plans.
pub(super) async fn put_plans<D: Dialect>(
    connection: &mut D,
    plans: &[PlanVersion],
    now: Timestamp,
) -> Result<(), StoreError> {
    let keys: Vec<PlanKey> = plans.iter().map(|plan| (plan.plan_code.clone(), plan.version)).collect();
    connection.look_up(&D::statements().offer_plans, &Keys::of(keys.iter().map(|(code, _)| code))).await?;
    let stored = read_versions(connection, keys.iter()).await?;
    let is_new = |plan: &&PlanVersion| {
        !stored.iter().any(|stored| (&stored.plan_code, stored.version) == (&plan.plan_code, plan.version))
    };
    let new = plans.iter().filter(is_new);
    let rows = new.clone().map(|plan| PlanVersionRow::of(plan, now)).collect::<Result<Vec<_>, _>>()?;
    connection.insert(&rows).await?;
    connection.insert(&new.flat_map(feature_rows).collect::<Vec<_>>()).await?;
    check_unchanged(plans, &read_versions(connection, keys.iter()).await?)?;
    let offered: Vec<(PlanCode, Timestamp)> = keys.into_iter().map(|(code, _)| (code, now)).collect();
    connection.look_up(&D::statements().retire_others, &Keys::pairs(&offered)).await?;
    Ok(())
}
