//! DeductCredits: charges for the use of a feature.

use std::collections::HashSet;

use chrono::TimeDelta;

use super::effects::Effects;
use super::refusal::Refusal;
use super::request::Request;
use super::spending::{Charge, Spending, burn, count, granted_for};
use super::usage_record::{Usage, record_usage};
use super::work::Work;
use crate::domain::receipt::{DeductReceipt, Receipt};
use crate::domain::rejection::Rejection;
use crate::domain::text::{FeatureCode, UserId};
use crate::domain::time::Timestamp;

/// How far `occurred_at` may lie before the time of the command.
pub const OCCURRED_AT_MAX_AGE: TimeDelta = TimeDelta::days(35);
/// How far `occurred_at` may lie after it: the clocks of callers differ from the server's.
pub const OCCURRED_AT_MAX_AHEAD: TimeDelta = TimeDelta::minutes(5);

/// Charges for the use of a feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeductCredits {
    pub feature_code: FeatureCode,
    pub charge: Charge,
    pub user_id: Option<UserId>,
    /// When the feature was used, if not now: within [`OCCURRED_AT_MAX_AGE`] before and
    /// [`OCCURRED_AT_MAX_AHEAD`] after the receipt. The charge counts now, in the current period.
    pub occurred_at: Option<Timestamp>,
    /// Whether the receipt says why it was accepted.
    pub explain: bool,
}

impl DeductCredits {
    pub(super) fn decide(
        &self,
        mut work: Work<'_>,
        request: &Request<'_>,
        features: &HashSet<FeatureCode>,
    ) -> Result<(Effects, Receipt), Refusal> {
        let now = work.now();
        let occurred_at = self.occurred_at.unwrap_or(now);
        if occurred_at < now.minus(OCCURRED_AT_MAX_AGE) || occurred_at > now.plus(OCCURRED_AT_MAX_AHEAD) {
            let detail = "must be at most 35 days ago and at most 5 minutes ahead";
            return Err(Rejection::TimeOutOfRange { pointer: "/occurred_at", detail }.into());
        }
        let spending = Spending::new(&work, &self.feature_code, self.user_id.as_ref(), features)?;
        let available = granted_for(&work, &self.feature_code).saturating_plus(work.overdraft_left());
        let explain = |cost| spending.explain(self.charge, cost, available);
        let cost = self.charge.cost(&self.feature_code, spending.unit_price());
        let cost = cost.map_err(|rejection| Refusal::from(rejection).explained(explain(None)))?;
        let soft_limits = spending.check(&work, cost, available);
        let soft_limits = soft_limits.map_err(|refusal| refusal.explained(explain(Some(cost))))?;
        let taken = burn(&mut work, &self.feature_code, cost, occurred_at)?;
        count(&mut work, &self.feature_code, cost)?;
        spending.count_in_rate_window(&mut work, cost)?;
        let usage = Usage {
            feature_code: &self.feature_code,
            user_id: self.user_id.as_ref(),
            credits: cost,
            quantity: self.charge.quantity(),
            taken,
            occurred_at,
            metadata: request.metadata,
            hold: None,
        };
        let (usage_id, consumed) = record_usage(&mut work, usage);
        let mut receipt = DeductReceipt {
            command_id: work.command_id(),
            workspace_id: request.workspace_id,
            usage_id,
            feature_code: consumed.feature_code,
            credits: consumed.credits,
            quantity: consumed.quantity,
            grants: consumed.grants,
            overdraft_credits: consumed.overdraft_credits,
            current_credits: consumed.current_credits,
            used_this_month: consumed.used_this_month,
            recorded_at: work.recorded_at(),
            decision: None,
        };
        spending.report(&mut work, soft_limits, cost);
        let effects = work.finish();
        if self.explain {
            let explanation = explain(Some(cost));
            let overdraft = receipt.overdraft_credits;
            receipt.decision = Some(Spending::accepted(explanation, &receipt.grants, overdraft, &effects));
        }
        Ok((effects, Receipt::Deducted(receipt)))
    }
}
