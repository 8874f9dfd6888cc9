//! RepayDebt: repays debt with grants that have begun since the debt was made.
//!
//! A grant that begins later repays nothing before. From then on it repays debt before it can be spent, as other new
//! credits do. The scheduler does not send this command: the next command of the workspace comes after it, and reads show
//! it as done.

use super::effects::Effects;
use super::refusal::Refusal;
use super::work::{Work, until_boundary};
use crate::domain::receipt::Receipt;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::time::Timestamp;

/// Repays debt with the grants that have begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepayDebt;

impl RepayDebt {
    pub(super) fn is_due(state: &WorkspaceState, now: Timestamp) -> bool {
        let until = until_boundary(state, now);
        state.credits.debt_credits.is_positive() && state.grants.iter().any(|grant| grant.can_repay_debt(until))
    }

    pub(super) fn decide(mut work: Work<'_>, state: &WorkspaceState) -> Result<Option<(Effects, Receipt)>, Refusal> {
        if !Self::is_due(state, work.now()) {
            return Ok(None);
        }
        let until = until_boundary(state, work.now());
        work.repay_debt(until)?;
        let receipt = work.internal_receipt();
        // What can be spent has increased by then, if it has changed.
        Ok(Some((work.finish_without_warning(), receipt)))
    }
}
