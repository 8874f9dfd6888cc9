//! Holds in a decision: reserving credits, giving them back, and ending a hold. The commands of holds share it.

use std::collections::HashMap;

use super::refusal::Refusal;
use super::spending::can_burn;
use super::work::{Work, split};
use crate::domain::credits::Credits;
use crate::domain::event::{CreditsExpired, GrantShare, HoldReleased, ReleaseReason};
use crate::domain::grant::Grant;
use crate::domain::hold::{HeldShare, Hold, HoldState, MAX_GRANTS_PER_HOLD, OpenHold};
use crate::domain::ids::{GrantId, HoldId, WorkspaceId};
use crate::domain::ledger::Account;
use crate::domain::receipt::HoldReceipt;
use crate::domain::rejection::Rejection;
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;

/// The holds that are over and known to a decision.
pub(super) type PastHolds = HashMap<(WorkspaceId, HoldId), Hold>;

/// The open hold, or else the one that is over.
pub(super) fn find<'a>(work: &Work<'a>, hold_id: HoldId, past: &'a PastHolds) -> Result<Found<'a>, Rejection> {
    if let Some(open) = work.open_hold(hold_id) {
        return Ok(Found::Open(open));
    }
    let over = past.get(&(work.workspace().workspace_id, hold_id)).ok_or(Rejection::HoldNotFound(hold_id))?;
    Ok(Found::Over(over))
}

pub(super) enum Found<'a> {
    Open(&'a OpenHold),
    Over(&'a Hold),
}

impl<'a> Found<'a> {
    /// The hold, if it is still open.
    pub(super) fn open(self) -> Result<&'a OpenHold, Rejection> {
        match self {
            Self::Open(open) => Ok(open),
            Self::Over(hold) => Err(Rejection::HoldOver(hold.state)),
        }
    }
}

/// What a new hold can reserve: as much as its grants have, and the overdraft if no grant is left out.
pub(super) fn reservable(work: &Work<'_>, feature_code: &FeatureCode) -> Credits {
    let mut grants = work.grants().filter(|(_, grant)| can_burn(work, feature_code, grant));
    let first = grants.by_ref().take(MAX_GRANTS_PER_HOLD).map(|(_, grant)| grant.remaining);
    let granted = first.fold(Credits::ZERO, Credits::saturating_plus);
    let overdraft = if grants.next().is_none() { work.overdraft_left() } else { Credits::ZERO };
    granted.saturating_plus(overdraft)
}

/// Reserves credits of the grants in burn order. Returns the share of each, and what is left for the overdraft.
pub(super) fn reserve(
    work: &mut Work<'_>,
    hold_id: HoldId,
    feature_code: &FeatureCode,
    amount: Credits,
) -> Result<(Vec<HeldShare>, Credits), Refusal> {
    let (parts, left) = split(amount, work.grants().filter(|(_, grant)| can_burn(work, feature_code, grant)))?;
    let workspace_id = work.workspace().workspace_id;
    let mut shares = Vec::with_capacity(parts.len());
    for (position, (index, part)) in (0..).zip(parts) {
        let grant_id = work.hold_grant(index, part)?;
        shares.push(HeldShare { workspace_id, hold_id, position, grant_id, amount: part });
    }
    Ok((shares, left))
}

/// Ends an open hold. What it reserved of grants must have been moved.
pub(super) fn close(work: &mut Work<'_>, hold: Hold) -> Result<(), Refusal> {
    debug_assert!(!hold.is_open(), "a hold that ends has another state");
    let credits = work.credits_mut();
    credits.held_credits = credits.held_credits.minus(hold.amount)?;
    credits.open_holds -= 1;
    work.change_hold(hold);
    work.update_overdraft_limit();
    Ok(())
}

/// Gives reserved credits back to their grants. [`settle_returned`] comes after the event that tells it.
pub(super) fn return_held(
    work: &mut Work<'_>,
    parts: impl IntoIterator<Item = (GrantId, Credits)>,
    at: Timestamp,
) -> Result<Vec<GrantShare>, Refusal> {
    let parts = parts.into_iter().filter(|(_, part)| part.is_positive());
    parts.map(|(grant_id, part)| work.debit_held(grant_id, part, Account::Grant(grant_id), at)).collect()
}

/// Books what follows from credits that went back to their grants: they repay debt, and what is left of a grant that has
/// ended meanwhile expires at once. So a reversal of held credits leaves no debt if they were not used in the end.
pub(super) fn settle_returned(work: &mut Work<'_>, returned: &[GrantShare], at: Timestamp) -> Result<(), Refusal> {
    let mut expired = Vec::new();
    for share in returned {
        let found = work.grants().find(|(_, grant)| grant.grant_id == share.grant_id);
        let ended = found.filter(|(_, grant)| has_ended(work, grant, at)).map(|(index, _)| index);
        let Some(index) = ended else { continue };
        let left = share.credits.minus(work.repay_debt_from(index, share.credits, at)?)?;
        if left.is_positive() {
            expired.push(work.debit_grant(index, left, Account::Expired, at)?);
        }
    }
    if !expired.is_empty() {
        let credits = Credits::sum(expired.iter().map(|share| share.credits))?;
        let current_credits = work.credits().current_credits;
        work.raise(CreditsExpired { credits, grants: expired, current_credits });
    }
    work.repay_debt_since(at, at)?;
    Ok(())
}

/// Whether a grant cannot be spent any more. One of a period ends with it, also where the period ended early.
pub(super) fn has_ended(work: &Work<'_>, grant: &Grant, at: Timestamp) -> bool {
    let subscription = work.subscription();
    let is_of_past_period = || {
        let start = subscription.period.start;
        !subscription.is_active() || grant.created_at < start || grant.expires_at.is_some_and(|end| end <= start)
    };
    grant.is_expired(at) || (grant.source.is_periodic() && is_of_past_period())
}

/// Releases a hold as a whole at that instant. Returns it with what went back to its grants.
pub(super) fn release(
    work: &mut Work<'_>,
    open: &OpenHold,
    reason: ReleaseReason,
    at: Timestamp,
) -> Result<(Hold, Vec<GrantShare>), Refusal> {
    let state = match reason {
        ReleaseReason::Released => HoldState::Released,
        ReleaseReason::Expired => HoldState::Expired,
    };
    let hold = Hold { state, closed_at: Some(work.recorded_at()), ..open.hold.clone() };
    close(work, hold.clone())?;
    let grants = return_held(work, open.shares.iter().map(|share| (share.grant_id, share.amount)), at)?;
    work.raise(HoldReleased {
        hold_id: hold.hold_id,
        reason,
        feature_code: hold.feature_code.clone(),
        user_id: hold.user_id.clone(),
        credits: hold.amount,
        grants: grants.clone(),
        overdraft_credits: hold.overdraft.positive(),
        current_credits: work.credits().current_credits,
    });
    settle_returned(work, &grants, at)?;
    Ok((hold, grants))
}

pub(super) fn receipt(work: &Work<'_>, hold: &Hold, grants: Vec<GrantShare>) -> HoldReceipt {
    HoldReceipt {
        command_id: work.command_id(),
        workspace_id: hold.workspace_id,
        hold_id: hold.hold_id,
        state: hold.state,
        feature_code: hold.feature_code.clone(),
        user_id: hold.user_id.clone(),
        credits: hold.amount,
        grants,
        overdraft_credits: hold.overdraft.positive(),
        unit_price: hold.unit_price,
        expires_at: hold.expires_at,
        available_credits: work.available(),
        current_credits: work.credits().current_credits,
        recorded_at: work.recorded_at(),
        decision: None,
    }
}

/// What a hold reserves of grants, with their sources.
pub(super) fn shares(work: &Work<'_>, shares: &[HeldShare]) -> Vec<GrantShare> {
    let with_source = |share: &HeldShare| {
        let (_, grant) = work.grants().find(|(_, grant)| grant.grant_id == share.grant_id)?;
        Some(GrantShare { grant_id: share.grant_id, source: grant.source, credits: share.amount })
    };
    shares.iter().filter_map(with_source).collect()
}
