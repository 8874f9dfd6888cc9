//! PurchaseCredits.
use super::{Effects, Refusal, Work};
use crate::domain::credits::PositiveCredits;
use crate::domain::grant::Currency;
use crate::domain::ids::WorkspaceId;
use crate::domain::receipt::Receipt;
use crate::domain::text::PaymentReference;
use crate::domain::time::Timestamp;
use std::collections::HashSet;
/// Books credits that were paid for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurchaseCredits {
    pub credits: PositiveCredits,
    pub bonus_credits: Option<PositiveCredits>,
    /// What was paid, in minor units of the currency; not negative.
    pub amount_minor: i64,
    pub currency: Currency,
    pub payment_reference: PaymentReference,
    /// Later than the receipt of the command.
    pub expires_at: Option<Timestamp>,
}
impl PurchaseCredits {
    pub(super) fn decide(
        &self,
        _work: Work<'_>,
        _payments: &HashSet<(WorkspaceId, PaymentReference)>,
    ) -> Result<(Effects, Receipt), Refusal> {
        todo!()
    }
}
