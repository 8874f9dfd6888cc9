//! ResumeSubscription: withdraws the change or cancellation that is scheduled for the period's end.

use super::effects::Effects;
use super::refusal::Refusal;
use super::subscription_commands::{CreditEffect, check_version, receipt};
use super::work::Work;
use crate::domain::event::{SubscriptionChangeKind, SubscriptionChanged};
use crate::domain::receipt::Receipt;
use crate::domain::rejection::Rejection;

/// Withdraws the scheduled change or cancellation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeSubscription {
    pub expected_version: Option<i64>,
}

impl ResumeSubscription {
    pub(super) fn decide(&self, mut work: Work<'_>) -> Result<(Effects, Receipt), Refusal> {
        check_version(&work, self.expected_version)?;
        if !work.subscription().is_active() {
            return Err(Rejection::SubscriptionCanceled.into());
        }
        let before = work.summary();
        let subscription = work.change_subscription();
        if subscription.pending_change.take().is_none() {
            return Err(Rejection::NothingScheduled.into());
        }
        subscription.version += 1;
        let event = SubscriptionChanged {
            withdrawn: work.withdrawn(),
            ..work.subscription_changed(SubscriptionChangeKind::Resumed, work.recorded_at(), before)
        };
        work.raise(event);
        Ok(receipt(work, CreditEffect::default()))
    }
}
