//! Shared by the commands on a subscription: the check of `expected_version`, and the receipt.

use super::effects::Effects;
use super::refusal::Refusal;
use super::work::Work;
use crate::domain::credits::Credits;
use crate::domain::receipt::{Receipt, SubscriptionReceipt, SubscriptionView};
use crate::domain::rejection::Rejection;

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
