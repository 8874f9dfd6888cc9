//! AdvancePeriod: passes every period boundary that is due, in order.
//!
//! The scheduler sends it. `ResetMonthlyCredits` does the same for a caller. What happens at a boundary
//! is in [`super::boundary`].

use super::boundary::pass_due_boundaries;
use super::effects::Effects;
use super::refusal::Refusal;
use super::work::Work;
use crate::domain::receipt::Receipt;

/// Passes every period boundary that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvancePeriod;

impl AdvancePeriod {
    pub(super) fn decide(mut work: Work<'_>) -> Result<Option<(Effects, Receipt)>, Refusal> {
        if !work.subscription().is_boundary_due(work.now()) {
            return Ok(None);
        }
        pass_due_boundaries(&mut work)?;
        Ok(Some(work.finish_internal()))
    }
}
