//! PlaceHold: reserves credits for a use whose cost is not known yet.
//!
//! It passes all checks of a deduction, and counts in every headroom from then on. The reserved credits stay in the
//! balance. They do not expire, and neither a reset nor a change of plan takes them.

use std::collections::HashSet;
use std::sync::Arc;

use super::effects::Effects;
use super::held_credits::{receipt, reservable, reserve, shares};
use super::refusal::Refusal;
use super::request::Request;
use super::spending::{Charge, Spending, granted_for};
use super::work::Work;
use crate::domain::credits::{Credits, PositiveCredits};
use crate::domain::event::{CreditsHeld, JobSubmitted};
use crate::domain::hold::{Hold, HoldDuration, HoldState, MAX_GRANTS_PER_HOLD, MAX_OPEN_HOLDS, OpenHold};
use crate::domain::ids::HoldId;
use crate::domain::job_ref::JobRef;
use crate::domain::receipt::Receipt;
use crate::domain::rejection::Rejection;
use crate::domain::text::{FeatureCode, UserId};

/// Reserves credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceHold {
    pub feature_code: FeatureCode,
    pub charge: Charge,
    /// Reserve less than the charge where there is less, but at least this.
    pub min_credits: Option<PositiveCredits>,
    pub duration: HoldDuration,
    pub user_id: Option<UserId>,
    /// Whether the receipt says why it was accepted.
    pub explain: bool,
    /// The job that it is for, if the server places it for one.
    pub job: Option<JobRef>,
}

impl PlaceHold {
    pub(super) fn decide(
        &self,
        mut work: Work<'_>,
        request: &Request<'_>,
        features: &HashSet<FeatureCode>,
    ) -> Result<(Effects, Receipt), Refusal> {
        let spending = Spending::new(&work, &self.feature_code, self.user_id.as_ref(), features)?;
        let available = granted_for(&work, &self.feature_code).saturating_plus(work.overdraft_left());
        let explain = |cost| spending.explain(self.charge, cost, available);
        let cost = self.charge.cost(&self.feature_code, spending.unit_price());
        let cost = cost.map_err(|rejection| Refusal::from(rejection).explained(explain(None)))?;
        if work.credits().open_holds >= MAX_OPEN_HOLDS {
            let refusal = Refusal::from(Rejection::TooManyHolds(MAX_OPEN_HOLDS));
            return Err(refusal.explained(explain(Some(cost))));
        }
        let reservable = reservable(&work, &self.feature_code);
        let amount = match self.min_credits {
            Some(least) => cost.min(spending.headroom().min(reservable).max(least.get())),
            None => cost,
        };
        let soft_limits = spending.check(&work, amount, available);
        let soft_limits = soft_limits.map_err(|refusal| refusal.explained(explain(Some(amount))))?;
        if amount > reservable {
            let refusal = Refusal::from(Rejection::HoldSpansTooManyGrants(MAX_GRANTS_PER_HOLD));
            return Err(refusal.explained(explain(Some(amount))));
        }
        let hold_id = HoldId(work.draw_id());
        let (reserved, overdraft) = reserve(&mut work, hold_id, &self.feature_code, amount)?;
        spending.count_in_rate_window(&mut work, amount)?;
        let hold = Hold {
            workspace_id: request.workspace_id,
            hold_id,
            feature_code: self.feature_code.clone(),
            user_id: self.user_id.clone(),
            amount,
            overdraft,
            unit_price: spending.unit_price(),
            metadata: request.metadata.cloned().map(Arc::new),
            command_id: work.command_id(),
            state: HoldState::Open,
            expires_at: self.duration.after(work.now()),
            created_at: work.recorded_at(),
            closed_at: None,
            captured: Credits::ZERO,
            usage_id: None,
        };
        let credits = work.credits_mut();
        credits.held_credits = credits.held_credits.plus(amount)?;
        credits.open_holds += 1;
        let grants = shares(&work, &reserved);
        work.effects_mut().placed_hold = Some(OpenHold { hold: hold.clone(), shares: reserved.into() });
        let mut receipt = receipt(&work, &hold, grants);
        work.raise(CreditsHeld {
            hold_id,
            feature_code: hold.feature_code,
            user_id: hold.user_id,
            credits: amount,
            grants: receipt.grants.clone(),
            overdraft_credits: receipt.overdraft_credits,
            expires_at: hold.expires_at,
            available_credits: receipt.available_credits,
            current_credits: receipt.current_credits,
        });
        if let Some(JobRef { job_id, kind, queue }) = self.job.clone() {
            let current_credits = receipt.current_credits;
            work.raise(JobSubmitted { job_id, kind, queue, hold_id, credits: amount, current_credits });
        }
        spending.report(&mut work, soft_limits, amount);
        let effects = work.finish();
        if self.explain {
            let explanation = explain(Some(amount));
            let overdraft = receipt.overdraft_credits;
            receipt.decision = Some(Spending::accepted(explanation, &receipt.grants, overdraft, &effects));
        }
        Ok((effects, Receipt::Held(receipt)))
    }
}
