//! Switches a workspace to another plan.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::work::Work;
use crate::domain::event::FeatureChange;
use crate::domain::plan::PlanVersion;
use crate::domain::workspace::feature_terms;

/// Switches the subscription, the overdraft limit and the low-credit thresholds to another plan. The
/// workspace's overrides stay in force. Returns the features whose terms changed.
pub(super) fn switch_plan(work: &mut Work<'_>, plan: &Arc<PlanVersion>) -> Vec<FeatureChange> {
    let before = Arc::clone(work.plan());
    let subscription = work.change_subscription();
    subscription.plan_code = plan.plan_code.clone();
    subscription.plan_version = plan.version;
    subscription.version += 1;
    work.effects_mut().plan = Some(Arc::clone(plan));
    work.credits_mut().low_credit_alerts = 0;
    work.update_overdraft_limit();
    reschedule_expiry_warnings(work, plan.expiry_warning_days);
    feature_changes(work, &before, plan)
}

/// Those that are still to come follow the new plan.
fn reschedule_expiry_warnings(work: &mut Work<'_>, days: u32) {
    let pending: Vec<_> = work
        .grants()
        .filter(|(_, grant)| grant.is_open() && grant.expiry_warning_at.is_some())
        .filter(|(_, grant)| grant.expiry_warning_at != grant.expiry_warning(days))
        .map(|(index, _)| index)
        .collect();
    for index in pending {
        if let Some(grant) = work.change_grant(index) {
            grant.schedule_expiry_warning(days);
        }
    }
}

/// The features whose terms differ between the two plans, with the overrides applied.
fn feature_changes(work: &Work<'_>, before: &PlanVersion, after: &PlanVersion) -> Vec<FeatureChange> {
    let overrides = work.feature_overrides();
    let codes: BTreeSet<_> = before.features.keys().chain(after.features.keys()).chain(overrides.keys()).collect();
    let changes = codes.into_iter().map(|code| FeatureChange {
        feature_code: code.clone(),
        before: feature_terms(before, overrides, code),
        after: feature_terms(after, overrides, code).unwrap_or_default(),
    });
    changes.filter(|change| change.before != Some(change.after)).collect()
}
