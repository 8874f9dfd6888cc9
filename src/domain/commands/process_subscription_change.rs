//! ProcessSubscriptionChange: moves a workspace to the newest version of a plan.
//!
//! The command does not distinguish upgrades from downgrades: the caller says when the change takes effect and
//! what it does with credits. A change at the period's end uses the version that is newest now. At most one
//! change or cancellation is pending. Scheduling another replaces it, and the event says what was withdrawn.

use std::collections::HashMap;
use std::sync::Arc;

use super::boundary::begin_period;
use super::effects::Effects;
use super::plan_terms::switch_plan;
use super::refusal::Refusal;
use super::subscription_commands::{CreditEffect, check_version, receipt};
use super::work::{GrantTerms, Work, split};
use crate::domain::credits::Credits;
use crate::domain::event::{SubscriptionChangeKind, SubscriptionChanged, SubscriptionSummary};
use crate::domain::grant::{Grant, GrantSource};
use crate::domain::ledger::Account;
use crate::domain::plan::PlanVersion;
use crate::domain::receipt::Receipt;
use crate::domain::rejection::Rejection;
use crate::domain::snapshot::CataloguePlan;
use crate::domain::subscription::{CreditPolicy, Effective, PendingChange, SubscriptionStatus};
use crate::domain::text::PlanCode;

/// Moves a workspace to the newest version of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSubscriptionChange {
    pub plan_code: PlanCode,
    pub effective: Effective,
    /// What an immediate change does with the running period's credits. Ignored for a change at the
    /// period's end.
    pub credit_policy: CreditPolicy,
    pub expected_version: Option<i64>,
}

impl ProcessSubscriptionChange {
    pub(super) fn decide(
        &self,
        mut work: Work<'_>,
        plans: &HashMap<PlanCode, CataloguePlan>,
    ) -> Result<(Effects, Receipt), Refusal> {
        check_version(&work, self.expected_version)?;
        let unknown = || Rejection::PlanNotFound(self.plan_code.clone());
        let wanted = plans.get(&self.plan_code).ok_or_else(unknown)?;
        let before = work.summary();
        // A workspace that has a plan may stay on it, even if it is no longer offered to others.
        if !wanted.is_offered && before.plan_code != self.plan_code {
            return Err(Rejection::PlanNotOffered(self.plan_code.clone()).into());
        }
        let plan = Arc::clone(&wanted.newest);
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
                    Self::schedule(&mut work, plan, before);
                    Ok(CreditEffect::default())
                } else {
                    self.change_now(&mut work, &plan, before, SubscriptionChangeKind::Changed)
                }
            }
        }
        .map(|effect| receipt(work, effect))
    }

    fn schedule(work: &mut Work<'_>, plan: Arc<PlanVersion>, before: SubscriptionSummary) {
        let subscription = work.change_subscription();
        subscription.pending_change =
            Some(PendingChange::Change { plan_code: plan.plan_code.clone(), plan_version: plan.version });
        subscription.version += 1;
        let effective_at = subscription.period.end;
        work.effects_mut().pending_plan = Some(plan);
        let event = SubscriptionChanged {
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
        if !restarts && plan.period_months != work.plan().period_months {
            return Err(Rejection::RestartRequired.into());
        }
        let (recorded_at, old_allowance) = (work.recorded_at(), work.plan().allowance);
        // This change replaces a scheduled change. A scheduled cancellation concerns the subscription and not
        // its plan, so it stays until it is withdrawn.
        let subscription = work.change_subscription();
        if matches!(subscription.pending_change, Some(PendingChange::Change { .. })) {
            subscription.pending_change = None;
        }
        let features = switch_plan(work, plan);
        let credits_before = work.credits().current_credits;
        let (mut effect, mut reset) = (CreditEffect::default(), None);
        if restarts {
            let subscription = work.change_subscription();
            subscription.status = SubscriptionStatus::Active;
            subscription.canceled_at = None;
            subscription.billing_anchor = recorded_at;
            let first = work.subscription().schedule(work.workspace().time_zone).period(0, work.plan().period_months);
            reset = Some(begin_period(work, first)?);
        } else {
            effect = self.adjust_allowance(work, old_allowance)?;
        }
        let event = SubscriptionChanged {
            withdrawn: work.withdrawn(),
            credit_policy: (!reactivates).then_some(self.credit_policy),
            features,
            credits_granted: effect.granted,
            credits_removed: effect.removed,
            credits_uncollected: effect.uncollected,
            credits_set_off: effect.set_off,
            // The event of the new period comes later and reports its credits.
            current_credits: if reset.is_some() { credits_before } else { work.credits().current_credits },
            ..work.subscription_changed(change, recorded_at, before)
        };
        work.raise_first(event);
        // The receipt reports all of them.
        Ok(reset.map_or(effect, |reset| CreditEffect { granted: reset.granted, removed: reset.expired, ..effect }))
    }

    /// Grants or removes the difference of the allowances, as the credit policy says. What cannot be removed is
    /// kept for the rest of the period and set off against what a later change grants. Otherwise going up and down
    /// again would grant the same credits each time.
    fn adjust_allowance(&self, work: &mut Work<'_>, old_allowance: Credits) -> Result<CreditEffect, Refusal> {
        let (now, period) = (work.now(), work.subscription().period);
        let by_policy = |difference: Credits| match self.credit_policy {
            CreditPolicy::Full => difference,
            CreditPolicy::Prorate => {
                let left = period.end.micros().saturating_sub(now.micros());
                difference.prorate(left, period.end.micros().saturating_sub(period.start.micros()))
            }
            CreditPolicy::None | CreditPolicy::Restart => Credits::ZERO,
        };
        let new_allowance = work.plan().allowance;
        let gain = by_policy(new_allowance.minus_or_zero(old_allowance));
        let loss = by_policy(old_allowance.minus_or_zero(new_allowance));
        let set_off = gain.min(work.credits().uncollected_credits);
        let gain = gain.minus(set_off)?;
        if gain.is_positive() {
            work.issue(GrantSource::Allowance, gain, GrantTerms::new(now, Some(period.end)))?;
            work.repay_debt(now)?;
        }
        let removed = remove_unspent_allowance(work, loss)?;
        let uncollected = loss.minus(removed)?;
        let credits = work.credits_mut();
        credits.uncollected_credits = credits.uncollected_credits.minus(set_off)?.plus(uncollected)?;
        Ok(CreditEffect { granted: gain, removed, uncollected, set_off })
    }
}

fn remove_unspent_allowance(work: &mut Work<'_>, loss: Credits) -> Result<Credits, Refusal> {
    let now = work.now();
    let unspent = |grant: &Grant| grant.source == GrantSource::Allowance && work.is_spendable(grant);
    let (parts, left) = split(loss, work.grants().filter(|(_, grant)| unspent(grant)))?;
    work.debit_parts(parts, &Account::Expired, now)?;
    Ok(loss.minus(left)?)
}
