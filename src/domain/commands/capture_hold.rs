//! CaptureHold: charges what a use really cost to its hold, and releases the rest.
//!
//! Up to what is held, a capture passes no check: that was the hold's. What goes beyond it is charged like a deduction, as
//! far as it passes. A hold that has expired is not captured, unless the caller wants to be charged like a deduction of
//! now.

use std::collections::HashSet;

use super::effects::Effects;
use super::held_credits::{Found, PastHolds, close, find, return_held, settle_returned};
use super::refusal::Refusal;
use super::request::Request;
use super::spending::{Charge, CheckedLimit, Spending, Taken, burn, count, granted_for};
use super::usage_record::{Capture, Usage, record_usage};
use super::work::Work;
use crate::domain::credits::Credits;
use crate::domain::event::JobCompleted;
use crate::domain::hold::{Hold, HoldState, OpenHold, Overrun};
use crate::domain::ids::{GrantId, HoldId};
use crate::domain::job_ref::JobRef;
use crate::domain::ledger::Account;
use crate::domain::receipt::{CaptureReceipt, Receipt};
use crate::domain::rejection::Rejection;

/// Charges a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureHold {
    pub hold_id: HoldId,
    /// All that is held, if None. A quantity has the price that the feature had when the hold was placed.
    pub charge: Option<Charge>,
    pub overrun: Overrun,
    /// Charge an expired hold like a deduction of now.
    pub late_capture: bool,
    /// The job that has ended, if the server captures it for one.
    pub job: Option<JobRef>,
}

/// What was charged like a deduction, and the soft limits that it has exceeded.
struct Deducted<'a> {
    credits: Credits,
    taken: Taken,
    spending: Spending<'a>,
    soft_limits: Vec<CheckedLimit>,
}

impl CaptureHold {
    pub(super) fn decide(
        &self,
        work: Work<'_>,
        request: &Request<'_>,
        past: &PastHolds,
    ) -> Result<(Effects, Receipt), Refusal> {
        match find(&work, self.hold_id, past)? {
            Found::Open(open) => self.capture(work, request, open),
            Found::Over(hold) if hold.can_be_captured_late() => {
                if !self.late_capture {
                    return Err(Rejection::HoldExpired(hold.expires_at).into());
                }
                self.capture_late(work, request, hold)
            }
            Found::Over(hold) => Err(Rejection::HoldOver(hold.state).into()),
        }
    }

    fn capture(
        &self,
        mut work: Work<'_>,
        request: &Request<'_>,
        open: &OpenHold,
    ) -> Result<(Effects, Receipt), Refusal> {
        let hold = &open.hold;
        let cost = self.cost(hold, hold.unit_price)?;
        if cost > hold.amount && self.overrun == Overrun::Reject {
            return Err(Rejection::CaptureExceedsHold { requested: cost, held: hold.amount }.into());
        }
        let within = cost.min(hold.amount);
        let hold = Hold { state: HoldState::Captured, closed_at: Some(work.recorded_at()), ..hold.clone() };
        close(&mut work, hold.clone())?;
        let (mut taken, rest) = charge_held(&mut work, open, within)?;
        count(&mut work, &hold.feature_code, within)?;
        // What was bought since the hold was placed repays its overdraft before it bears what is beyond it.
        let now = work.now();
        work.repay_debt_since(now, now)?;
        let mut excess = self.charge_excess(&mut work, &hold, cost.minus(within)?)?;
        let mut charged = within;
        if let Some(excess) = &mut excess {
            charged = charged.plus(excess.credits)?;
            taken.add(std::mem::take(&mut excess.taken))?;
        }
        let (released, uncovered) = (hold.amount.minus(within)?, cost.minus(charged)?);
        let capture = Capture { released, uncovered };
        let receipt = self.record(&mut work, request, hold.clone(), charged, taken, capture);
        if let Some(Deducted { credits, spending, soft_limits, .. }) = excess {
            spending.report(&mut work, soft_limits, credits);
        }
        let returned = return_held(&mut work, rest, now)?;
        settle_returned(&mut work, &returned, now)?;
        Ok(self.end(work, receipt))
    }

    /// The hold's credits went back when it expired: nothing is released.
    fn capture_late(
        &self,
        mut work: Work<'_>,
        request: &Request<'_>,
        hold: &Hold,
    ) -> Result<(Effects, Receipt), Refusal> {
        // It existed when the hold was placed.
        let features = HashSet::from([hold.feature_code.clone()]);
        let spending = Spending::new(&work, &hold.feature_code, hold.user_id.as_ref(), &features)?;
        let cost = self.cost(hold, spending.unit_price())?;
        let must_pass = self.overrun == Overrun::Reject;
        let Deducted { credits, taken, spending, soft_limits } = deduct(&mut work, spending, cost, true, must_pass)?;
        let capture = Capture { released: Credits::ZERO, uncovered: cost.minus(credits)? };
        let receipt = self.record(&mut work, request, hold.clone(), credits, taken, capture);
        spending.report(&mut work, soft_limits, credits);
        Ok(self.end(work, receipt))
    }

    fn cost(&self, hold: &Hold, unit_price: Option<Credits>) -> Result<Credits, Rejection> {
        self.charge.map_or(Ok(hold.amount), |charge| charge.cost(&hold.feature_code, unit_price))
    }

    /// Charges what is beyond the hold as far as it passes: nothing, if the feature is not available any more.
    fn charge_excess<'h>(
        &self,
        work: &mut Work<'_>,
        hold: &'h Hold,
        excess: Credits,
    ) -> Result<Option<Deducted<'h>>, Refusal> {
        let spending = Spending::new(work, &hold.feature_code, hold.user_id.as_ref(), &HashSet::new());
        match spending {
            Ok(spending) if excess.is_positive() => {
                deduct(work, spending, excess, self.overrun == Overrun::Overdraft, false).map(Some)
            }
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// Records the usage, and notes it on the hold.
    fn record(
        &self,
        work: &mut Work<'_>,
        request: &Request<'_>,
        hold: Hold,
        credits: Credits,
        taken: Taken,
        capture: Capture,
    ) -> CaptureReceipt {
        let usage = Usage {
            feature_code: &hold.feature_code,
            user_id: hold.user_id.as_ref(),
            credits,
            quantity: self.charge.and_then(Charge::quantity),
            taken,
            occurred_at: work.now(),
            metadata: request.metadata.or(hold.metadata.as_deref()),
            hold: Some((hold.hold_id, capture)),
        };
        let (usage_id, consumed) = record_usage(work, usage);
        let hold = Hold { captured: credits, usage_id: Some(usage_id), ..hold };
        let receipt = CaptureReceipt {
            command_id: work.command_id(),
            workspace_id: request.workspace_id,
            hold_id: hold.hold_id,
            state: hold.state,
            usage_id,
            feature_code: consumed.feature_code,
            captured_credits: credits,
            released_credits: capture.released,
            uncovered_credits: capture.uncovered,
            quantity: consumed.quantity,
            grants: consumed.grants,
            overdraft_credits: consumed.overdraft_credits,
            available_credits: Credits::ZERO,
            current_credits: Credits::ZERO,
            used_this_month: consumed.used_this_month,
            recorded_at: work.recorded_at(),
        };
        work.change_hold(hold);
        receipt
    }

    /// What went back to grants may have expired, or repaid debt: the receipt shows the balance after that.
    fn end(&self, mut work: Work<'_>, receipt: CaptureReceipt) -> (Effects, Receipt) {
        let (available_credits, current_credits) = (work.available(), work.credits().current_credits);
        let receipt = CaptureReceipt { available_credits, current_credits, ..receipt };
        if let Some(JobRef { job_id, kind, queue }) = self.job.clone() {
            let CaptureReceipt { hold_id, captured_credits: credits, uncovered_credits, .. } = receipt;
            let uncovered_credits = uncovered_credits.positive();
            work.raise(JobCompleted { job_id, kind, queue, hold_id, credits, uncovered_credits, current_credits });
        }
        (work.finish(), Receipt::Captured(receipt))
    }
}

/// Charges what a hold reserved, first what it reserved of grants. Returns what was taken, and what is left of each grant.
fn charge_held(
    work: &mut Work<'_>,
    open: &OpenHold,
    amount: Credits,
) -> Result<(Taken, Vec<(GrantId, Credits)>), Refusal> {
    let (feature_code, now) = (&open.hold.feature_code, work.now());
    let (mut left, mut taken, mut rest) = (amount, Taken::default(), Vec::new());
    for share in open.shares.iter() {
        let part = left.min(share.amount);
        left = left.minus(part)?;
        if part.is_positive() {
            let consumed = Account::Consumed(feature_code.clone());
            taken.grants.push(work.debit_held(share.grant_id, part, consumed, now)?);
        }
        rest.push((share.grant_id, share.amount.minus(part)?));
    }
    if left.is_positive() {
        work.borrow(left, feature_code, now)?;
        taken.overdraft = left;
    }
    Ok((taken, rest))
}

/// Charges a cost like a deduction: as far as it passes, or else not at all if it must pass as a whole.
fn deduct<'a>(
    work: &mut Work<'_>,
    spending: Spending<'a>,
    cost: Credits,
    may_overdraw: bool,
    must_pass: bool,
) -> Result<Deducted<'a>, Refusal> {
    let overdraft = if may_overdraw { work.overdraft_left() } else { Credits::ZERO };
    let available = granted_for(work, spending.feature_code()).saturating_plus(overdraft);
    let credits = if must_pass { cost } else { cost.min(spending.headroom()).min(available) };
    let soft_limits = spending.check(work, credits, available)?;
    let now = work.now();
    let taken = burn(work, spending.feature_code(), credits, now)?;
    count(work, spending.feature_code(), credits)?;
    spending.count_in_rate_window(work, credits)?;
    Ok(Deducted { credits, taken, spending, soft_limits })
}
