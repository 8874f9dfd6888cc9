//! VoidGrant: takes back what remains of a grant that a caller gave, or a part of it.
//!
//! The credits go back to the account that they were issued from. What was spent stays spent.

use super::effects::Effects;
use super::refusal::Refusal;
use super::request::Request;
use super::work::Work;
use crate::domain::credits::PositiveCredits;
use crate::domain::event::GrantVoided;
use crate::domain::grant::Grant;
use crate::domain::ids::GrantId;
use crate::domain::ledger::Account;
use crate::domain::receipt::{Receipt, VoidReceipt};
use crate::domain::rejection::Rejection;
use crate::domain::snapshot::ClosedGrants;
use crate::domain::text::Label;

/// Takes back credits of a promotion or an adjustment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoidGrant {
    pub grant_id: GrantId,
    /// All that remains, if None.
    pub credits: Option<PositiveCredits>,
    pub reason: Label,
}

impl VoidGrant {
    pub(super) fn decide(
        &self,
        mut work: Work<'_>,
        request: &Request<'_>,
        closed: &ClosedGrants,
    ) -> Result<(Effects, Receipt), Refusal> {
        let now = work.now();
        let is_named = |(_, grant): &(usize, &Grant)| grant.grant_id == self.grant_id;
        let open = work.grants().find(is_named).map(|(index, grant)| (index, grant.clone()));
        let closed = closed.get(&(request.workspace_id, self.grant_id));
        let grant = open.as_ref().map(|(_, grant)| grant).or(closed);
        let source = grant.ok_or(Rejection::GrantNotFound(self.grant_id))?.source;
        if !source.is_voidable() {
            return Err(Rejection::GrantNotVoidable(source).into());
        }
        let (index, grant) = open.ok_or(Rejection::GrantClosed)?;
        let (credits, remaining) = (self.credits.map_or(grant.remaining, PositiveCredits::get), grant.remaining);
        // Of a grant that is held as a whole, nothing remains.
        if credits > remaining || remaining.is_zero() {
            return Err(Rejection::VoidExceedsRemaining { requested: credits, remaining }.into());
        }
        let changes_available = work.is_spendable(&grant) && grant.feature_scope.is_none();
        work.debit_grant(index, credits, Account::Issued(source), now)?;
        let receipt = VoidReceipt {
            command_id: work.command_id(),
            workspace_id: request.workspace_id,
            grant_id: self.grant_id,
            source,
            credits,
            remaining_credits: remaining.minus(credits)?,
            reason: self.reason.clone(),
            current_credits: work.credits().current_credits,
            recorded_at: work.recorded_at(),
        };
        work.raise(GrantVoided {
            grant_id: self.grant_id,
            source,
            credits,
            remaining_credits: receipt.remaining_credits,
            reason: self.reason.clone(),
            current_credits: receipt.current_credits,
        });
        let effects = if changes_available { work.finish() } else { work.finish_without_warning() };
        Ok((effects, Receipt::Voided(receipt)))
    }
}
