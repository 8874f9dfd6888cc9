//! ResetMonthlyCredits: begins every billing period that is due, at a caller's request.
//!
//! The scheduler does the same by itself. Whichever command comes first resets the period; the state shows the
//! other that nothing is due.

use super::boundary::pass_due_boundaries;
use super::effects::Effects;
use super::refusal::Refusal;
use super::work::Work;
use crate::domain::receipt::{Receipt, ResetReceipt, SubscriptionView};
use crate::domain::rejection::Rejection;
use crate::domain::time::Timestamp;

/// Begins every billing period that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetMonthlyCredits {
    /// The start of the first period to begin. The command is refused if another period is next.
    pub period: Option<Timestamp>,
}

impl ResetMonthlyCredits {
    pub(super) fn decide(&self, mut work: Work<'_>) -> Result<(Effects, Receipt), Refusal> {
        let subscription = work.subscription();
        if !subscription.is_active() {
            return Err(Rejection::SubscriptionCanceled.into());
        }
        let next = subscription.period.end;
        if self.period.is_some_and(|period| period != next) {
            return Err(Rejection::PeriodMismatch { next }.into());
        }
        if !subscription.is_boundary_due(work.now()) {
            return Err(Rejection::ResetNotDue { ends_at: next }.into());
        }
        let resets = pass_due_boundaries(&mut work)?;
        let receipt = ResetReceipt {
            command_id: work.command_id(),
            workspace_id: work.workspace().workspace_id,
            resets,
            subscription: SubscriptionView::from(work.subscription()),
            current_credits: work.credits().current_credits,
            recorded_at: work.recorded_at(),
        };
        Ok((work.finish(), Receipt::Reset(receipt)))
    }
}
