//! A cache of plan versions, which needs no invalidation because a version never changes; and which versions
//! a subscription refers to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use crate::domain::plan::PlanVersion;
use crate::domain::subscription::{PendingChange, Subscription};
use crate::domain::text::{FeatureCode, PlanCode};
use crate::store::error::StoreError;

/// The most versions that are cached: far more than an operator defines. Beyond it the cache is cleared.
const CACHED_VERSIONS_MAX: usize = 10_000;

/// The most features that are cached: all of fifty plans. Beyond it the cache is cleared.
const KNOWN_FEATURES_MAX: usize = 10_000;

/// A plan's code and version.
pub(super) type PlanKey = (PlanCode, i32);

/// The cached versions, and the codes of features that are known to exist.
#[derive(Debug, Default)]
pub(super) struct PlanCache {
    versions: RwLock<HashMap<PlanKey, Arc<PlanVersion>>>,
    features: RwLock<HashSet<FeatureCode>>,
}

impl PlanCache {
    /// Returns the cached versions and the keys that are missing.
    pub(super) fn find<'k>(
        &self,
        keys: &'k BTreeSet<PlanKey>,
    ) -> (HashMap<PlanKey, Arc<PlanVersion>>, Vec<&'k PlanKey>) {
        let mut found = HashMap::with_capacity(keys.len());
        let mut missing = Vec::new();
        let cached = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            match cached.get(key) {
                Some(plan) => {
                    found.insert(key.clone(), Arc::clone(plan));
                }
                None => missing.push(key),
            }
        }
        (found, missing)
    }

    /// Caches the versions that were read, and adds them to those that were found.
    pub(super) fn insert(
        &self,
        mut found: HashMap<PlanKey, Arc<PlanVersion>>,
        read: Vec<Arc<PlanVersion>>,
    ) -> HashMap<PlanKey, Arc<PlanVersion>> {
        let mut cached = self.versions.write().unwrap_or_else(PoisonError::into_inner);
        if cached.len() + read.len() > CACHED_VERSIONS_MAX {
            cached.clear();
        }
        for plan in read {
            let key = (plan.plan_code.clone(), plan.version);
            cached.insert(key.clone(), Arc::clone(&plan));
            found.insert(key, plan);
        }
        found
    }

    /// Returns the features that are known to exist, and the others.
    pub(super) fn find_features<'f>(
        &self,
        features: &'f BTreeSet<FeatureCode>,
    ) -> (HashSet<FeatureCode>, Vec<&'f FeatureCode>) {
        let known = self.features.read().unwrap_or_else(PoisonError::into_inner);
        let (found, others): (Vec<_>, Vec<_>) = features.iter().partition(|code| known.contains(*code));
        (found.into_iter().cloned().collect(), others)
    }

    pub(super) fn insert_features(&self, found: &[FeatureCode]) {
        if found.is_empty() {
            return;
        }
        let mut known = self.features.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() + found.len() > KNOWN_FEATURES_MAX {
            known.clear();
        }
        known.extend(found.iter().cloned());
    }
}

/// The versions that a subscription refers to: its own and that of a pending change.
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

/// A version that a row refers to. It is corrupt if it is missing.
pub(super) fn plan_of(
    plans: &HashMap<PlanKey, Arc<PlanVersion>>,
    key: &PlanKey,
) -> Result<Arc<PlanVersion>, StoreError> {
    plans
        .get(key)
        .cloned()
        .ok_or_else(|| StoreError::Corrupt(format!("plan {} version {} is not stored", key.0, key.1)))
}
