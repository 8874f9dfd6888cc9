//! CancelSubscription.
use super::{Effects, Refusal, Work};
use crate::domain::receipt::Receipt;
use crate::domain::subscription::Effective;
use crate::domain::text::Label;
/// Ends a subscription, now or with its period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelSubscription {
    pub effective: Effective,
    pub reason: Option<Label>,
    pub expected_version: Option<i64>,
}
impl CancelSubscription {
    pub(super) fn decide(&self, _work: Work<'_>) -> Result<(Effects, Receipt), Refusal> {
        todo!()
    }
}
