//! ResumeSubscription: withdraws what is scheduled for the period's end, a change or a cancellation.

use super::process_subscription_change::{CreditEffect, receipt};
use super::work::{Effects, Work};
use super::{Refusal, check_version};
use crate::domain::credits::Credits;
use crate::domain::event::{SubscriptionChangeKind, SubscriptionChanged};
use crate::domain::receipt::Receipt;
use crate::domain::rejection::Rejection;
use crate::domain::subscription::SubscriptionStatus;

/// Withdraws what is scheduled for the period's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeSubscription {
    pub expected_version: Option<i64>,
}

impl ResumeSubscription {
    pub(super) fn decide(&self, mut work: Work<'_>) -> Result<(Effects, Receipt), Refusal> {
        check_version(&work, self.expected_version)?;
        if !work.subscription().is_active() {
            return Err(Rejection::SubscriptionStatus(SubscriptionStatus::Canceled).into());
        }
        let before = work.summary();
        let subscription = work.change_subscription();
        if subscription.pending.take().is_none() {
            return Err(Rejection::NothingScheduled.into());
        }
        subscription.version += 1;
        let event = SubscriptionChanged {
            change: SubscriptionChangeKind::Resumed,
            effective_at: work.now(),
            before,
            after: work.summary(),
            scheduled_plan_code: None,
            credit_policy: None,
            features: Vec::new(),
            credits_granted: Credits::ZERO,
            credits_removed: Credits::ZERO,
            credits_uncollected: Credits::ZERO,
            current_credits: work.balance().current_credits,
            reason: None,
        };
        work.raise(event);
        Ok(receipt(work, CreditEffect::default()))
    }
}
