//! CancelSubscription: ends a subscription, now or with its period.
//!
//! What waits for the period's end can be withdrawn (`ResumeSubscription`) until it takes effect.
//! The allowance ends with the subscription; bought and promotional credits follow the plan.

use chrono::TimeDelta;

use super::advance_period::close_periodic_grants;
use super::process_subscription_change::{CreditEffect, receipt};
use super::work::{Effects, Work};
use super::{Refusal, check_version};
use crate::domain::credits::Credits;
use crate::domain::event::{SubscriptionChangeKind, SubscriptionChanged};
use crate::domain::plan::PurchasedOnCancel;
use crate::domain::receipt::Receipt;
use crate::domain::rejection::Rejection;
use crate::domain::subscription::{Effective, Pending, SubscriptionStatus};
use crate::domain::text::Label;
use crate::domain::time::Timestamp;

/// Ends a subscription, now or with its period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelSubscription {
    pub effective: Effective,
    pub reason: Option<Label>,
    pub expected_version: Option<i64>,
}

impl CancelSubscription {
    pub(super) fn decide(&self, mut work: Work<'_>) -> Result<(Effects, Receipt), Refusal> {
        check_version(&work, self.expected_version)?;
        if !work.subscription().is_active() {
            return Err(Rejection::SubscriptionStatus(SubscriptionStatus::Canceled).into());
        }
        let effect = match self.effective {
            Effective::Immediate => {
                let now = work.now();
                end_subscription(&mut work, now, self.reason.clone())?
            }
            Effective::PeriodEnd => {
                self.schedule(&mut work);
                CreditEffect::default()
            }
        };
        Ok(receipt(work, effect))
    }

    fn schedule(&self, work: &mut Work<'_>) {
        let before = work.summary();
        let subscription = work.change_subscription();
        subscription.pending = Some(Pending::Cancel { reason: self.reason.clone() });
        subscription.version += 1;
        let effective_at = subscription.period.end;
        let event = SubscriptionChanged {
            change: SubscriptionChangeKind::CancelScheduled,
            effective_at,
            before,
            after: work.summary(),
            scheduled_plan_code: None,
            credit_policy: None,
            features: Vec::new(),
            credits_granted: Credits::ZERO,
            credits_removed: Credits::ZERO,
            credits_uncollected: Credits::ZERO,
            current_credits: work.balance().current_credits,
            reason: self.reason.clone(),
        };
        work.raise(event);
    }
}

/// Ends the subscription at that instant: its allowance expires, bought credits follow the plan.
pub(super) fn end_subscription(
    work: &mut Work<'_>,
    at: Timestamp,
    reason: Option<Label>,
) -> Result<CreditEffect, Refusal> {
    let before = work.summary();
    let (_, removed) = close_periodic_grants(work, at, Credits::ZERO)?;
    let subscription = work.change_subscription();
    subscription.status = SubscriptionStatus::Canceled;
    subscription.canceled_at = Some(at);
    subscription.pending = None;
    subscription.version += 1;
    if let PurchasedOnCancel::ExpireAfterDays(days) = work.plan().purchased_on_cancel {
        limit_purchased_grants(work, at.plus(TimeDelta::days(i64::from(days))));
    }
    work.settle_overdraft();
    let event = SubscriptionChanged {
        change: SubscriptionChangeKind::Canceled,
        effective_at: at,
        before,
        after: work.summary(),
        scheduled_plan_code: None,
        credit_policy: None,
        features: Vec::new(),
        credits_granted: Credits::ZERO,
        credits_removed: removed,
        credits_uncollected: Credits::ZERO,
        current_credits: work.balance().current_credits,
        reason,
    };
    work.raise(event);
    Ok(CreditEffect { removed, ..CreditEffect::default() })
}

fn limit_purchased_grants(work: &mut Work<'_>, end: Timestamp) {
    let later: Vec<_> = work
        .grants()
        .filter(|(_, grant)| {
            grant.source.follows_cancel_policy() && grant.is_open() && grant.expires_at.is_none_or(|at| at > end)
        })
        .map(|(place, _)| place)
        .collect();
    for place in later {
        if let Some(grant) = work.change_grant(place) {
            grant.expires_at = Some(end);
        }
    }
}
