//! ResetMonthlyCredits.
use super::{Effects, Refusal, Work};
use crate::domain::receipt::Receipt;
use crate::domain::time::Timestamp;
/// Begins every billing period that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetMonthlyCredits {
    /// The start of the period to begin; a guard against resetting another one.
    pub period: Option<Timestamp>,
}
impl ResetMonthlyCredits {
    pub(super) fn decide(&self, _work: Work<'_>) -> Result<(Effects, Receipt), Refusal> {
        todo!()
    }
}
