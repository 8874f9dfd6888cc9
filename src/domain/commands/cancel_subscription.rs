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
use crate::domain::event::{ScheduledKind, SubscriptionChangeKind, SubscriptionChanged};
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
            return Err(Rejection::SubscriptionCanceled.into());
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
            reason: self.reason.clone(),
            withdrawn: work.withdrawn(),
            ..work.subscription_changed(SubscriptionChangeKind::CancelScheduled, effective_at, before)
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
        credits_removed: removed,
        reason,
        // A scheduled cancellation is not withdrawn by the end that it was about.
        withdrawn: work.withdrawn().filter(|kind| *kind == ScheduledKind::Change),
        ..work.subscription_changed(SubscriptionChangeKind::Canceled, at, before)
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
