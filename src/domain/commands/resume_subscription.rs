//! ResumeSubscription.
use super::{Effects, Refusal, Work};
use crate::domain::receipt::Receipt;
/// Withdraws what is scheduled for the period's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeSubscription {
    pub expected_version: Option<i64>,
}
impl ResumeSubscription {
    pub(super) fn decide(&self, _work: Work<'_>) -> Result<(Effects, Receipt), Refusal> {
        todo!()
    }
}
