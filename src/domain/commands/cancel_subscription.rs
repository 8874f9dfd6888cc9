//! CancelSubscription: ends a subscription, now or at the end of the period.
//!
//! A scheduled cancellation can be withdrawn (`ResumeSubscription`) until it takes effect. The allowance ends
//! with the subscription; the plan decides what happens to bought and promotional credits.

use super::boundary::end_subscription;
use super::effects::Effects;
use super::refusal::Refusal;
use super::subscription_commands::{CreditEffect, check_version, receipt};
use super::work::Work;
use crate::domain::event::{SubscriptionChangeKind, SubscriptionChanged};
use crate::domain::receipt::Receipt;
use crate::domain::rejection::Rejection;
use crate::domain::subscription::{Effective, PendingChange};
use crate::domain::text::Label;

/// Ends a subscription, now or at the end of the period.
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
                let at = work.recorded_at();
                end_subscription(&mut work, at, self.reason.clone())?
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
        subscription.pending_change = Some(PendingChange::Cancel { reason: self.reason.clone() });
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
