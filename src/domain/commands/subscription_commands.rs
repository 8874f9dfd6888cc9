//! What the commands on a subscription have in common: they name the version that the caller has seen,
//! and they are answered alike.

use super::effects::Effects;
use super::refusal::Refusal;
use super::work::{BalanceChange, Work};
use crate::domain::credits::Credits;
use crate::domain::receipt::{Receipt, SubscriptionReceipt, SubscriptionView};
use crate::domain::rejection::Rejection;

/// What a change did to the credits.
#[derive(Clone, Copy, Default)]
pub(super) struct CreditEffect {
    pub granted: Credits,
    pub removed: Credits,
    pub uncollected: Credits,
}

/// Refuses a change of a subscription that the caller has not seen in its current version.
pub(super) fn check_version(work: &Work<'_>, expected: Option<i64>) -> Result<(), Refusal> {
    let actual = work.subscription().version;
    match expected {
        Some(expected) if expected != actual => Err(Rejection::VersionMismatch { expected, actual }.into()),
        Some(_) | None => Ok(()),
    }
}

/// The answer to every change of a subscription.
pub(super) fn receipt(mut work: Work<'_>, effect: CreditEffect) -> (Effects, Receipt) {
    if effect.removed.is_positive() {
        let available = work.available();
        work.update_low_credit_alerts(available, BalanceChange::Decrease);
    }
    let receipt = SubscriptionReceipt {
        command_id: work.command_id(),
        workspace_id: work.workspace().workspace_id,
        subscription: SubscriptionView::from(work.subscription()),
        credits_granted: effect.granted,
        credits_removed: effect.removed,
        credits_uncollected: effect.uncollected,
        current_credits: work.credits().current_credits,
        recorded_at: work.now(),
    };
    (work.into_effects(), Receipt::Subscription(receipt))
}
