//! DeductCredits.
use super::{Effects, Refusal, Work};
use crate::domain::credits::{PositiveCredits, Quantity};
use crate::domain::receipt::Receipt;
use crate::domain::text::{FeatureCode, UserId};
use crate::domain::time::Timestamp;
use chrono::TimeDelta;

/// How long before it is charged something may have been used.
pub const OCCURRED_AT_MAX_AGE: TimeDelta = TimeDelta::days(35);
/// How far ahead of this server's clock the caller's may be.
pub const OCCURRED_AT_MAX_AHEAD: TimeDelta = TimeDelta::minutes(5);

/// How a deduction says what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    Credits(PositiveCredits),
    /// Times the feature's unit price, rounded up to one micro-credit.
    Quantity(Quantity),
}

/// Charges for the use of a feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeductCredits {
    pub feature_code: FeatureCode,
    pub charge: Charge,
    pub user_id: Option<UserId>,
    /// When it was used, if not now: within [`OCCURRED_AT_MAX_AGE`] before and
    /// [`OCCURRED_AT_MAX_AHEAD`] after the receipt.
    pub occurred_at: Option<Timestamp>,
}
impl DeductCredits {
    pub(super) fn decide(&self, _work: Work<'_>) -> Result<(Effects, Receipt), Refusal> {
        todo!()
    }
}
