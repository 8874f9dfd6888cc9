//! ProcessSubscriptionChange: moves a workspace to the newest version of a plan.
//!
//! It never infers whether a change is an upgrade or a downgrade: when it takes effect and what it
//! does with credits is what the caller says. A change at the period's end pins the version that is
//! newest now. At most one thing waits for the period's end; scheduling another replaces it, and the
//! event tells what was withdrawn.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::advance_period::begin_period;
use super::work::{Effects, GrantTerms, Movement, Work};
use super::{Refusal, check_version};
use crate::domain::credits::Credits;
use crate::domain::entry::Account;
use crate::domain::event::{FeatureChange, SubscriptionChangeKind, SubscriptionChanged, SubscriptionSummary};
use crate::domain::grant::GrantSource;
use crate::domain::plan::{FeatureTerms, PlanVersion};
use crate::domain::receipt::{Receipt, SubscriptionReceipt, SubscriptionView};
use crate::domain::rejection::Rejection;
use crate::domain::subscription::{CreditPolicy, Effective, Pending, SubscriptionStatus};
use crate::domain::text::PlanCode;
use crate::domain::workspace::WorkspaceFeature;

/// Moves a workspace to the newest version of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSubscriptionChange {
    pub plan_code: PlanCode,
    pub effective: Effective,
    /// What an immediate change does with the running period's credits; of no effect at the
    /// period's end.
    pub credit_policy: CreditPolicy,
    pub expected_version: Option<i64>,
}

/// What a change did to the credits.
#[derive(Clone, Copy, Default)]
pub(super) struct CreditEffect {
    pub granted: Credits,
    pub removed: Credits,
    pub uncollected: Credits,
}

impl ProcessSubscriptionChange {
    pub(super) fn decide(
        &self,
        mut work: Work<'_>,
        plans: &HashMap<PlanCode, Arc<PlanVersion>>,
    ) -> Result<(Effects, Receipt), Refusal> {
        check_version(&work, self.expected_version)?;
        let unknown = || Rejection::PlanNotFound(self.plan_code.clone());
        let plan = Arc::clone(plans.get(&self.plan_code).ok_or_else(unknown)?);
        let before = work.summary();
        let active = work.subscription().is_active();
        match (active, self.effective) {
            (false, Effective::PeriodEnd) => Err(Rejection::SubscriptionCanceled.into()),
            (false, Effective::Immediate) => {
                self.change_now(&mut work, &plan, before, SubscriptionChangeKind::Reactivated)
            }
            (true, effective) => {
                let same = (&before.plan_code, before.plan_version) == (&plan.plan_code, plan.version);
                let restarts = effective == Effective::Immediate && self.credit_policy == CreditPolicy::Restart;
                if same && !restarts {
                    return Err(Rejection::PlanUnchanged(self.plan_code.clone()).into());
                }
                if effective == Effective::PeriodEnd {
                    self.schedule(&mut work, plan, before);
                    Ok(CreditEffect::default())
                } else {
                    self.change_now(&mut work, &plan, before, SubscriptionChangeKind::Changed)
                }
            }
        }
        .map(|effect| receipt(work, effect))
    }

    fn schedule(&self, work: &mut Work<'_>, plan: Arc<PlanVersion>, before: SubscriptionSummary) {
        let subscription = work.change_subscription();
        subscription.pending = Some(Pending::Change { plan_code: plan.plan_code.clone(), plan_version: plan.version });
        subscription.version += 1;
        let effective_at = subscription.period.end;
        work.effects().pending_plan = Some(plan);
        let event = SubscriptionChanged {
            scheduled_plan_code: Some(self.plan_code.clone()),
            withdrawn: work.withdrawn(),
            ..work.subscription_changed(SubscriptionChangeKind::ChangeScheduled, effective_at, before)
        };
        work.raise(event);
    }

    fn change_now(
        &self,
        work: &mut Work<'_>,
        plan: &Arc<PlanVersion>,
        before: SubscriptionSummary,
        change: SubscriptionChangeKind,
    ) -> Result<CreditEffect, Refusal> {
        let reactivates = change == SubscriptionChangeKind::Reactivated;
        let restarts = reactivates || self.credit_policy == CreditPolicy::Restart;
        if !restarts && plan.period_months != work.subscription().period_months {
            return Err(Rejection::RestartRequired.into());
        }
        let (now, old_allowance) = (work.now(), work.plan().allowance);
        // A scheduled change gives way to this one; a scheduled cancellation was about the subscription
        // and not about its plan, and stays until it is withdrawn.
        let subscription = work.change_subscription();
        if matches!(subscription.pending, Some(Pending::Change { .. })) {
            subscription.pending = None;
        }
        let features = switch_plan(work, plan);
        let (mut effect, mut reset) = (CreditEffect::default(), None);
        if restarts {
            let subscription = work.change_subscription();
            subscription.status = SubscriptionStatus::Active;
            subscription.canceled_at = None;
            subscription.anchor = now;
            let first = work.subscription().schedule(work.workspace().zone).period(0, work.plan().period_months);
            reset = Some(begin_period(work, first)?);
        } else {
            effect = self.settle_allowance(work, old_allowance)?;
        }
        let event = SubscriptionChanged {
            withdrawn: work.withdrawn(),
            credit_policy: (!reactivates).then_some(self.credit_policy),
            features,
            credits_granted: effect.granted,
            credits_removed: effect.removed,
            credits_uncollected: effect.uncollected,
            ..work.subscription_changed(change, now, before)
        };
        work.raise_first(event);
        // The period's own event tells of its credits; the receipt tells of all.
        Ok(reset.map_or(effect, |reset| CreditEffect { granted: reset.granted, removed: reset.expired, ..effect }))
    }

    /// Grants or takes back the difference of the allowances, as far as the policy says.
    fn settle_allowance(&self, work: &mut Work<'_>, old_allowance: Credits) -> Result<CreditEffect, Refusal> {
        let (now, period) = (work.now(), work.subscription().period);
        let share = |difference: Credits| match self.credit_policy {
            CreditPolicy::Full => difference,
            CreditPolicy::Prorate => {
                let left = period.end.micros().saturating_sub(now.micros());
                difference.share(left, period.end.micros().saturating_sub(period.start.micros()))
            }
            CreditPolicy::None | CreditPolicy::Restart => Credits::ZERO,
        };
        let new_allowance = work.plan().allowance;
        let gain = share(new_allowance.less_down_to_zero(old_allowance));
        let loss = share(old_allowance.less_down_to_zero(new_allowance));
        if gain.is_positive() {
            let terms = GrantTerms { effective_at: now, expires_at: Some(period.end), payment: None };
            work.issue(GrantSource::Allowance, gain, terms)?;
        }
        let removed = take_unspent_allowance(work, loss)?;
        Ok(CreditEffect { granted: gain, removed, uncollected: loss.minus(removed)? })
    }
}

fn take_unspent_allowance(work: &mut Work<'_>, loss: Credits) -> Result<Credits, Refusal> {
    let now = work.now();
    let mut left = loss;
    let unspent: Vec<_> = work
        .grants()
        .filter(|(_, grant)| grant.source == GrantSource::Allowance && grant.is_spendable(now))
        .map(|(place, grant)| (place, grant.remaining))
        .collect();
    for (place, remaining) in unspent {
        let part = remaining.min(left);
        if part.is_positive() {
            work.take(place, part, Account::Expired, now)?;
            left = left.minus(part)?;
        }
    }
    Ok(loss.minus(left)?)
}

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

/// The answer to every change of a subscription.
pub(super) fn receipt(mut work: Work<'_>, effect: CreditEffect) -> (Effects, Receipt) {
    if effect.removed.is_positive() {
        let available = work.available();
        work.settle_thresholds(available, Movement::Down);
    }
    let receipt = SubscriptionReceipt {
        command_id: work.command_id(),
        workspace_id: work.workspace().workspace_id,
        subscription: SubscriptionView::from(work.subscription()),
        credits_granted: effect.granted,
        credits_removed: effect.removed,
        credits_uncollected: effect.uncollected,
        current_credits: work.balance().current_credits,
        recorded_at: work.now(),
    };
    (work.into_effects(), Receipt::Subscription(receipt))
}
