//! RefundUsage: gives a deduction or a capture back, as a whole or in part.
//!
//! The credits go back to the grants that they came from, in the reverse of the order in which they were taken, as if
//! the deduction had been smaller. What came from the overdraft lowers the debt. Where a grant has ended meanwhile, or
//! the debt was repaid by other credits, the credits go to a new adjustment grant.
//!
//! Usage falls only if the deduction counts in the current period. The rate window never does: it bounds how fast
//! credits are spent, and they were.

use std::sync::Arc;

use chrono::TimeDelta;

use super::effects::Effects;
use super::held_credits::has_ended;
use super::refusal::Refusal;
use super::request::Request;
use super::work::{GrantTerms, Work};
use crate::domain::counter::CounterSubject;
use crate::domain::credits::{Credits, PositiveCredits};
use crate::domain::event::{CreditsRefunded, GrantShare};
use crate::domain::grant::{Grant, GrantSource, MAX_OPEN_GRANTS};
use crate::domain::ids::{GrantId, RefundId};
use crate::domain::ledger::Account;
use crate::domain::plan::PurchasedOnCancel;
use crate::domain::receipt::{Receipt, RefundReceipt};
use crate::domain::refund::{UsageRefund, UsageShare};
use crate::domain::rejection::Rejection;
use crate::domain::snapshot::{ClosedGrants, Snapshot};
use crate::domain::text::{FeatureCode, Label};
use crate::domain::usage::UsageId;

/// Gives a deduction or a capture back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefundUsage {
    pub usage_id: UsageId,
    /// All that was not refunded yet, if None.
    pub credits: Option<PositiveCredits>,
    pub reason: Option<Label>,
}

/// Where refunded credits go.
#[derive(Default)]
struct Destinations {
    overdraft: Credits,
    /// Grants that they came from.
    grants: Vec<(GrantId, Credits)>,
    /// Those of them that are closed.
    reopened: Vec<Grant>,
    /// To a new grant for any feature.
    new: Credits,
    /// To a new grant for the feature that was used.
    new_scoped: Credits,
}

impl RefundUsage {
    pub(super) fn decide(
        &self,
        mut work: Work<'_>,
        request: &Request<'_>,
        known: &Snapshot,
    ) -> Result<(Effects, Receipt), Refusal> {
        let usage = known.usages.get(&(request.workspace_id, self.usage_id));
        let usage = usage.ok_or(Rejection::UsageLogNotFound(self.usage_id))?;
        let left = usage.left()?;
        let credits = self.credits.map_or(left, PositiveCredits::get);
        if credits > left || left.is_zero() {
            return Err(Rejection::RefundExceedsUsage { requested: credits, left }.into());
        }
        let destinations = destinations(&work, usage.shares_of_refund(credits)?, &known.closed_grants)?;
        let (before, feature_code) = (work.available(), &usage.log.feature_code);
        let overdraft = destinations.overdraft;
        let grants = self.give_back(&mut work, request, feature_code, destinations)?;
        if usage.is_of_current_period {
            uncount(&mut work, feature_code, credits);
        }
        let now = work.now();
        let debt_repaid = work.repay_debt_since(now, now)?;
        let receipt = RefundReceipt {
            command_id: work.command_id(),
            workspace_id: request.workspace_id,
            refund_id: RefundId(work.draw_id()),
            usage_id: self.usage_id,
            feature_code: feature_code.clone(),
            credits,
            grants,
            overdraft_credits: overdraft.positive(),
            debt_repaid,
            reason: self.reason.clone(),
            current_credits: work.credits().current_credits,
            used_this_month: work.credits().used_this_month,
            recorded_at: work.recorded_at(),
        };
        work.effects_mut().refund = Some(UsageRefund {
            workspace_id: request.workspace_id,
            usage_id: self.usage_id,
            refund_id: receipt.refund_id,
            credits,
            is_counted: usage.is_of_current_period,
            reason: self.reason.clone(),
            command_id: receipt.command_id,
            recorded_at: receipt.recorded_at,
        });
        work.raise(CreditsRefunded {
            refund_id: receipt.refund_id,
            usage_id: self.usage_id,
            feature_code: feature_code.clone(),
            user_id: usage.log.user_id.clone(),
            credits,
            grants: receipt.grants.clone(),
            overdraft_credits: receipt.overdraft_credits,
            debt_repaid,
            reason: self.reason.clone(),
            current_credits: receipt.current_credits,
            used_this_month: receipt.used_this_month,
        });
        let changes_available = work.available() != before;
        let effects = if changes_available { work.finish() } else { work.finish_without_warning() };
        Ok((effects, Receipt::Refunded(receipt)))
    }

    /// Books the refund. Returns what went to grants.
    fn give_back(
        &self,
        work: &mut Work<'_>,
        request: &Request<'_>,
        feature_code: &FeatureCode,
        to: Destinations,
    ) -> Result<Vec<GrantShare>, Refusal> {
        let (now, consumed) = (work.now(), Account::Consumed(feature_code.clone()));
        if to.overdraft.is_positive() {
            work.book(consumed.clone(), Account::Debt, to.overdraft, now)?;
            let credits = work.credits_mut();
            credits.debt_credits = credits.debt_credits.minus(to.overdraft)?;
            work.update_overdraft_limit();
        }
        work.effects_mut().reopened_grants = to.reopened;
        let mut shares = Vec::with_capacity(to.grants.len());
        for (grant_id, credits) in to.grants {
            let index = work.grants().find(|(_, grant)| grant.grant_id == grant_id).map(|(index, _)| index);
            let grant = index.and_then(|index| work.change_grant(index)).ok_or(Rejection::BalanceOutOfRange)?;
            grant.remaining = grant.remaining.plus(credits)?;
            shares.push(GrantShare { grant_id, source: grant.source, credits });
            work.book(consumed.clone(), Account::Grant(grant_id), credits, now)?;
        }
        let end = now.plus(TimeDelta::days(i64::from(work.plan().refund_validity_days)));
        let metadata = request.metadata.cloned().map(Arc::new);
        for (credits, feature_scope) in [(to.new, None), (to.new_scoped, Some(feature_code.clone()))] {
            if credits.is_zero() {
                continue;
            }
            let terms = GrantTerms {
                feature_scope,
                reason: self.reason.clone(),
                metadata: metadata.clone(),
                ..GrantTerms::new(now, Some(end))
            };
            let source = GrantSource::Adjustment;
            let grant_id = work.issue_from(consumed.clone(), source, credits, terms)?;
            shares.push(GrantShare { grant_id, source, credits });
        }
        Ok(shares)
    }
}

/// Finds out where the shares go, and that there is room for the grants that they need.
fn destinations(work: &Work<'_>, shares: Vec<UsageShare>, closed: &ClosedGrants) -> Result<Destinations, Refusal> {
    let mut to = Destinations::default();
    let mut debt = work.credits().debt_credits;
    for UsageShare { grant_id, credits } in shares {
        let Some(grant_id) = grant_id else {
            let part = credits.min(debt);
            debt = debt.minus(part)?;
            to.overdraft = to.overdraft.plus(part)?;
            to.new = to.new.plus(credits.minus(part)?)?;
            continue;
        };
        // A capture may have taken twice from one grant.
        if let Some((_, sum)) = to.grants.iter_mut().find(|(known, _)| *known == grant_id) {
            *sum = sum.plus(credits)?;
            continue;
        }
        let open = work.grants().find(|(_, grant)| grant.grant_id == grant_id).map(|(_, grant)| grant.clone());
        let is_open = open.is_some();
        let as_closed = || Some(reopened(work, closed.get(&(work.workspace().workspace_id, grant_id))?));
        let grant = open.or_else(as_closed).ok_or(Rejection::BalanceOutOfRange)?;
        if has_ended(work, &grant, work.now()) {
            let new = if grant.feature_scope.is_some() { &mut to.new_scoped } else { &mut to.new };
            *new = new.plus(credits)?;
            continue;
        }
        to.grants.push((grant_id, credits));
        if !is_open {
            to.reopened.push(grant);
        }
    }
    let added = to.reopened.len() + usize::from(to.new.is_positive()) + usize::from(to.new_scoped.is_positive());
    if added > 0 && work.grants().count() + added > MAX_OPEN_GRANTS {
        return Err(Rejection::TooManyGrants(MAX_OPEN_GRANTS).into());
    }
    Ok(to)
}

/// A closed grant as it is when it is opened again: what the end of the subscription did to open grants, and the plan's
/// days of warning, apply to it too.
fn reopened(work: &Work<'_>, grant: &Grant) -> Grant {
    let mut grant = grant.clone();
    let days_ahead = work.plan().expiry_warning_days;
    if let Some(canceled_at) = work.subscription().canceled_at
        && let PurchasedOnCancel::ExpireAfterDays(days) = work.plan().purchased_on_cancel
        && grant.source.follows_cancel_policy()
    {
        let end = canceled_at.plus(TimeDelta::days(i64::from(days)));
        if grant.expires_at.is_none_or(|at| at > end) {
            grant.expires_at = Some(end);
            grant.schedule_expiry_warning(days_ahead);
        }
    }
    if grant.expiry_warning_at.is_some() {
        grant.schedule_expiry_warning(days_ahead);
    }
    grant
}

/// Takes back what was counted as used in this billing period.
fn uncount(work: &mut Work<'_>, feature_code: &FeatureCode, credits: Credits) {
    let mut counter = work.counter(&CounterSubject::Feature(feature_code.clone()));
    counter.used_credits = counter.used_credits.minus_or_zero(credits);
    work.set_counter(counter);
    let used = work.credits().used_this_month.minus_or_zero(credits);
    work.credits_mut().used_this_month = used;
}
