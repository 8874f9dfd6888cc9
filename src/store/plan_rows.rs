//! Plan versions as rows: one with the terms as a JSON object, and one for each feature.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::error::StoreError;
use super::plan_cache::PlanKey;
use crate::domain::credits::Credits;
use crate::domain::plan::{FeatureTerms, PlanVersion, UsageLimit};
use crate::domain::text::{FeatureCode, PlanCode};
use crate::domain::time::Timestamp;

/// The fields of a plan version that have columns or rows of their own.
const NOT_TERMS: [&str; 3] = ["plan_code", "version", "features"];

/// All terms except the features, as a JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms(pub(super) String);

/// One version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlanVersionRow {
    pub(super) plan_code: PlanCode,
    pub(super) version: i32,
    pub(super) terms: Terms,
    pub(super) created_at: Timestamp,
}

/// One feature of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlanFeatureRow {
    pub(super) plan_code: PlanCode,
    pub(super) version: i32,
    pub(super) feature_code: FeatureCode,
    pub(super) is_enabled: bool,
    pub(super) unit_price: Option<Credits>,
    pub(super) limit: Option<UsageLimit>,
}

impl PlanVersionRow {
    pub(super) fn of(plan: &PlanVersion, now: Timestamp) -> Result<Self, StoreError> {
        plan.validate().map_err(|invalid| StoreError::Corrupt(invalid.to_string()))?;
        let corrupt = |error: serde_json::Error| StoreError::Corrupt(error.to_string());
        let mut terms: Map<String, Value> =
            serde_json::to_value(plan).and_then(serde_json::from_value).map_err(corrupt)?;
        terms.retain(|field, _| !NOT_TERMS.contains(&field.as_str()));
        Ok(Self {
            plan_code: plan.plan_code.clone(),
            version: plan.version,
            terms: Terms(serde_json::to_string(&terms).map_err(corrupt)?),
            created_at: now,
        })
    }

    fn into_plan(self, features: &BTreeMap<FeatureCode, FeatureTerms>) -> Result<PlanVersion, serde_json::Error> {
        let mut fields: Map<String, Value> = serde_json::from_str(&self.terms.0)?;
        let [plan_code, version, rest] = NOT_TERMS;
        fields.insert(plan_code.into(), self.plan_code.as_str().into());
        fields.insert(version.into(), self.version.into());
        fields.insert(rest.into(), serde_json::to_value(features)?);
        serde_json::from_value(fields.into())
    }
}

/// The rows of a version's features.
pub(super) fn feature_rows(plan: &PlanVersion) -> impl Iterator<Item = PlanFeatureRow> + '_ {
    plan.features.iter().map(|(feature_code, terms)| PlanFeatureRow {
        plan_code: plan.plan_code.clone(),
        version: plan.version,
        feature_code: feature_code.clone(),
        is_enabled: terms.enabled,
        unit_price: terms.unit_price,
        limit: terms.limit,
    })
}

/// Builds plan versions from their rows.
pub(super) fn plans_of(
    versions: Vec<PlanVersionRow>,
    features: Vec<PlanFeatureRow>,
) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
    let mut by_plan: HashMap<PlanKey, BTreeMap<FeatureCode, FeatureTerms>> = HashMap::new();
    for row in features {
        let terms = FeatureTerms { enabled: row.is_enabled, unit_price: row.unit_price, limit: row.limit };
        by_plan.entry((row.plan_code, row.version)).or_default().insert(row.feature_code, terms);
    }
    versions
        .into_iter()
        .map(|row| {
            let key = (row.plan_code.clone(), row.version);
            let features = by_plan.remove(&key).unwrap_or_default();
            let unreadable =
                |error| StoreError::Corrupt(format!("plan {} version {} cannot be read: {error}", key.0, key.1));
            row.into_plan(&features).map(Arc::new).map_err(unreadable)
        })
        .collect()
}

/// Refuses a version that is stored with other terms, because a version never changes.
pub(super) fn check_unchanged(plans: &[PlanVersion], stored: &[Arc<PlanVersion>]) -> Result<(), StoreError> {
    for plan in plans {
        if !stored.iter().any(|stored| **stored == *plan) {
            let text = format!("plan {} version {} is stored with other terms", plan.plan_code, plan.version);
            return Err(StoreError::Conflict(text));
        }
    }
    Ok(())
}
