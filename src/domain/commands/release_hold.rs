//! ReleaseHold: gives up a hold. Its credits can be spent again.

use super::effects::Effects;
use super::held_credits::{PastHolds, find, receipt, release};
use super::refusal::Refusal;
use super::work::Work;
use crate::domain::event::ReleaseReason;
use crate::domain::ids::HoldId;
use crate::domain::receipt::Receipt;

/// Gives up a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseHold {
    pub hold_id: HoldId,
}

impl ReleaseHold {
    pub(super) fn decide(&self, mut work: Work<'_>, past: &PastHolds) -> Result<(Effects, Receipt), Refusal> {
        let open = find(&work, self.hold_id, past)?.open()?;
        let now = work.now();
        let (hold, grants) = release(&mut work, open, ReleaseReason::Released, now)?;
        let receipt = receipt(&work, &hold, grants);
        Ok((work.finish(), Receipt::HoldChanged(receipt)))
    }
}
