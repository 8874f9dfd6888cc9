//! The plan versions that a store has read, kept in memory because a version never changes, and which
//! of them a subscription refers to. No SQL: both stores use it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use crate::domain::plan::PlanVersion;
use crate::domain::subscription::{PendingChange, Subscription};
use crate::domain::text::PlanCode;
use crate::store::error::StoreError;

/// How many versions are kept in memory: far more than an operator defines; reaching it only costs
/// reading them again.
const CACHED_VERSIONS_MAX: usize = 10_000;

/// A plan's code and version.
pub(super) type PlanKey = (PlanCode, i32);

/// The versions that were read so far.
#[derive(Debug, Default)]
pub(super) struct PlanCache(RwLock<HashMap<PlanKey, Arc<PlanVersion>>>);

impl PlanCache {
    /// What is known of these, and the keys that are not.
    pub(super) fn find<'k>(
        &self,
        keys: &'k BTreeSet<PlanKey>,
    ) -> (HashMap<PlanKey, Arc<PlanVersion>>, Vec<&'k PlanKey>) {
        let mut found = HashMap::with_capacity(keys.len());
        let mut missing = Vec::new();
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            match known.get(key) {
                Some(plan) => {
                    found.insert(key.clone(), Arc::clone(plan));
                }
                None => missing.push(key),
            }
        }
        (found, missing)
    }

    /// Keeps what was read, and adds it to what was found.
    pub(super) fn keep(
        &self,
        mut found: HashMap<PlanKey, Arc<PlanVersion>>,
        read: Vec<Arc<PlanVersion>>,
    ) -> HashMap<PlanKey, Arc<PlanVersion>> {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() + read.len() > CACHED_VERSIONS_MAX {
            known.clear();
        }
        for plan in read {
            let key = (plan.plan_code.clone(), plan.version);
            known.insert(key.clone(), Arc::clone(&plan));
            found.insert(key, plan);
        }
        found
    }
}

/// The versions that a subscription names: the one in force, and that of a pending change.
pub(super) fn plan_keys(subscription: &Subscription) -> impl Iterator<Item = PlanKey> + use<> {
    let current = (subscription.plan_code.clone(), subscription.plan_version);
    std::iter::once(current).chain(pending_key(subscription))
}

pub(super) fn pending_key(subscription: &Subscription) -> Option<PlanKey> {
    match &subscription.pending_change {
        Some(PendingChange::Change { plan_code, plan_version }) => Some((plan_code.clone(), *plan_version)),
        Some(PendingChange::Cancel { .. }) | None => None,
    }
}

/// A version that rows refer to, so it must be there.
pub(super) fn plan_of(
    plans: &HashMap<PlanKey, Arc<PlanVersion>>,
    key: &PlanKey,
) -> Result<Arc<PlanVersion>, StoreError> {
    plans
        .get(key)
        .cloned()
        .ok_or_else(|| StoreError::Corrupt(format!("plan {} version {} is not stored", key.0, key.1)))
}
