//! Puts a plan in force: in the subscription, and in the terms of every feature.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::work::Work;
use crate::domain::event::FeatureChange;
use crate::domain::plan::{FeatureTerms, PlanVersion};
use crate::domain::workspace::WorkspaceFeature;

/// Puts another plan in force: the subscription, the terms of every feature (what the workspace
/// agreed on for itself stays), the overdraft and the thresholds. Returns what changed per feature.
pub(super) fn switch_plan(work: &mut Work<'_>, plan: &Arc<PlanVersion>) -> Vec<FeatureChange> {
    let subscription = work.change_subscription();
    subscription.plan_code = plan.plan_code.clone();
    subscription.plan_version = plan.version;
    subscription.version += 1;
    work.effects().plan = Some(Arc::clone(plan));
    work.credits().low_credit_fired = 0;
    work.settle_overdraft();
    take_plan_terms(work, plan)
}

/// Gives every feature of the plan, and every one that the workspace had, the plan's terms.
pub(super) fn take_plan_terms(work: &mut Work<'_>, plan: &PlanVersion) -> Vec<FeatureChange> {
    let codes: BTreeSet<_> = plan.features.keys().cloned().chain(work.feature_codes()).collect();
    let mut changes = Vec::new();
    for feature_code in codes {
        let plan_terms = plan.features.get(&feature_code).copied().unwrap_or_default();
        let known = work.feature(&feature_code);
        let before = known.map(WorkspaceFeature::terms);
        let feature = match known {
            Some(known) => WorkspaceFeature { plan_terms, ..known.clone() },
            None => WorkspaceFeature::new(feature_code.clone(), plan_terms),
        };
        let after: FeatureTerms = feature.terms();
        if known != Some(&feature) {
            work.set_feature(feature);
        }
        if before != Some(after) {
            changes.push(FeatureChange { feature_code, before, after });
        }
    }
    changes
}
