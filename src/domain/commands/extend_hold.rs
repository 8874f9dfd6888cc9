//! ExtendHold: lets a hold expire later. It never expires earlier than before.

use super::effects::Effects;
use super::held_credits::{Found, PastHolds, find, receipt, shares};
use super::refusal::Refusal;
use super::work::Work;
use crate::domain::hold::{Hold, HoldDuration};
use crate::domain::ids::HoldId;
use crate::domain::receipt::Receipt;
use crate::domain::rejection::Rejection;

/// Lets a hold expire later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendHold {
    pub hold_id: HoldId,
    /// Counted from now.
    pub duration: HoldDuration,
}

impl ExtendHold {
    pub(super) fn decide(&self, mut work: Work<'_>, past: &PastHolds) -> Result<(Effects, Receipt), Refusal> {
        let open = match find(&work, self.hold_id, past)? {
            Found::Over(hold) if hold.can_be_captured_late() => {
                return Err(Rejection::HoldExpired(hold.expires_at).into());
            }
            found => found.open()?,
        };
        let until = self.duration.after(work.now());
        let hold = Hold { expires_at: open.hold.expires_at.max(until), ..open.hold.clone() };
        work.change_hold(hold.clone());
        let grants = shares(&work, &open.shares);
        let receipt = receipt(&work, &hold, grants);
        Ok((work.finish_without_warning(), Receipt::HoldChanged(receipt)))
    }
}
