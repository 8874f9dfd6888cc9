//! Shared by the commands on a subscription: the check of `expected_version`, the receipt, and the parts of the events.

use super::effects::Effects;
use super::refusal::Refusal;
use super::work::Work;
use crate::domain::credits::Credits;
use crate::domain::event::{ExpiringCredits, SubscriptionChangeKind, SubscriptionChanged, SubscriptionSummary};
use crate::domain::grant::Grant;
use crate::domain::receipt::{Receipt, SubscriptionReceipt, SubscriptionView};
use crate::domain::rejection::Rejection;
use crate::domain::time::Timestamp;

/// How many grants an event of a subscription lists.
const MAX_EXPIRING_LISTED: usize = 50;

/// How a change affected the credits.
#[derive(Clone, Copy, Default)]
pub(super) struct CreditEffect {
    pub granted: Credits,
    pub removed: Credits,
    pub uncollected: Credits,
    pub set_off: Credits,
}

/// Refuses the command if the subscription does not have the version that the caller expects.
pub(super) fn check_version(work: &Work<'_>, expected: Option<i64>) -> Result<(), Refusal> {
    let actual = work.subscription().version;
    match expected {
        Some(expected) if expected != actual => Err(Rejection::VersionMismatch { expected, actual }.into()),
        Some(_) | None => Ok(()),
    }
}

/// Builds the receipt of a change of a subscription.
pub(super) fn receipt(work: Work<'_>, effect: CreditEffect) -> (Effects, Receipt) {
    let receipt = SubscriptionReceipt {
        command_id: work.command_id(),
        workspace_id: work.workspace().workspace_id,
        subscription: SubscriptionView::from(work.subscription()),
        credits_granted: effect.granted,
        credits_removed: effect.removed,
        credits_uncollected: effect.uncollected,
        credits_set_off: effect.set_off,
        expiring: work.expiring(),
        frozen_credits: work.frozen_credits(),
        current_credits: work.credits().current_credits,
        recorded_at: work.recorded_at(),
    };
    (work.finish(), Receipt::Subscription(receipt))
}

impl Work<'_> {
    pub(super) fn summary(&self) -> SubscriptionSummary {
        let subscription = self.subscription();
        SubscriptionSummary {
            plan_code: subscription.plan_code.clone(),
            plan_version: subscription.plan_version,
            status: subscription.status,
            period: subscription.period,
            version: subscription.version,
        }
    }

    /// The event of a change that was made. The command adds the fields that are empty here.
    pub(super) fn subscription_changed(
        &self,
        change: SubscriptionChangeKind,
        effective_at: Timestamp,
        before: SubscriptionSummary,
    ) -> SubscriptionChanged {
        SubscriptionChanged {
            change,
            effective_at,
            before,
            after: self.summary(),
            pending: self.subscription().pending(),
            withdrawn: None,
            credit_policy: None,
            features: Vec::new(),
            credits_granted: Credits::ZERO,
            credits_removed: Credits::ZERO,
            credits_uncollected: Credits::ZERO,
            credits_set_off: Credits::ZERO,
            expiring: self.expiring(),
            frozen_credits: self.frozen_credits(),
            current_credits: self.credits().current_credits,
            reason: None,
        }
    }

    /// The credits that belong to no period and expire, the soonest first.
    pub(super) fn expiring(&self) -> Vec<ExpiringCredits> {
        let expiring = |(_, grant): (usize, &Grant)| {
            let Grant { grant_id, source, remaining, expires_at, .. } = grant;
            let is_expiring = remaining.is_positive() && !source.is_periodic() && !grant.is_expired(self.now());
            let expires_at = expires_at.filter(|_| is_expiring)?;
            Some(ExpiringCredits { grant_id: *grant_id, source: *source, credits: *remaining, expires_at })
        };
        let mut expiring: Vec<_> = self.grants().filter_map(expiring).collect();
        expiring.sort_by_key(|credits| (credits.expires_at, credits.grant_id));
        expiring.truncate(MAX_EXPIRING_LISTED);
        expiring
    }
}
