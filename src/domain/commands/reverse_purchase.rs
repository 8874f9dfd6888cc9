//! ReversePurchase: takes a purchase back, as a whole or in part, because its money was given back.
//!
//! What remains of the purchase is removed first, and of its bonus a part in proportion. What was spent becomes debt or
//! is written off, as the plan says. The debt may pass the overdraft limit: the limit rises with it. Other credits
//! repay it at once. What has expired nobody owes, and neither what was spent of the bonus, which was free. What is
//! held becomes debt in any case, which it repays if its hold gives it back.

use super::effects::Effects;
use super::refusal::Refusal;
use super::request::Request;
use super::work::Work;
use crate::domain::credits::Credits;
use crate::domain::event::PurchaseReversed;
use crate::domain::grant::{Grant, GrantSource};
use crate::domain::ids::{GrantId, ReversalId};
use crate::domain::ledger::Account;
use crate::domain::plan::ReversalShortfall;
use crate::domain::receipt::{Receipt, ReversalReceipt};
use crate::domain::rejection::Rejection;
use crate::domain::reversal::{PurchaseReversal, ReversalReason, ReversedAmount, ReversedPart};
use crate::domain::snapshot::{ClosedGrants, Snapshot};

/// Takes a purchase back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReversePurchase {
    /// The grant of the purchase.
    pub grant_id: GrantId,
    pub amount: ReversedAmount,
    pub reason: ReversalReason,
}

impl ReversePurchase {
    pub(super) fn decide(
        &self,
        mut work: Work<'_>,
        request: &Request<'_>,
        known: &Snapshot,
    ) -> Result<(Effects, Receipt), Refusal> {
        let not_found = || Rejection::PurchaseNotFound(self.grant_id);
        let before = known.purchases.get(&(request.workspace_id, self.grant_id)).ok_or_else(not_found)?;
        let (index, purchase) = find(&work, self.grant_id, &known.closed_grants).ok_or_else(not_found)?;
        let Some(part) = before.part(&purchase, self.amount)? else {
            let left = before.left(&purchase)?;
            let (left, left_minor) = (left.credits, left.amount_minor);
            return Err(Rejection::ReversalExceedsPurchase { left, left_minor }.into());
        };
        let spent = before.spent(&purchase)?;
        let bonus = purchase.bonus_grant_id.and_then(|grant_id| find(&work, grant_id, &known.closed_grants));
        let (now, available) = (work.now(), work.available());
        let removed = part.credits.min(purchase.remaining);
        remove(&mut work, index, GrantSource::Purchase, removed)?;
        let (mut bonus_removed, mut bonus_owed) = (Credits::ZERO, Credits::ZERO);
        if let Some((index, bonus)) = bonus {
            let of_bonus = before.part_of_bonus(&purchase, &bonus, part.credits)?;
            bonus_removed = of_bonus.min(bonus.remaining);
            remove(&mut work, index, bonus.source, bonus_removed)?;
            // What is held is not spent yet: it would come back for nothing.
            bonus_owed = of_bonus.minus(bonus_removed)?.min(bonus.held);
            owe(&mut work, bonus_owed, bonus.source)?;
        }
        let shortfall = part.credits.minus(removed)?;
        let owed = match work.plan().reversal_shortfall {
            ReversalShortfall::Debt => shortfall.min(spent),
            ReversalShortfall::WriteOff => shortfall.min(purchase.held),
        };
        owe(&mut work, owed, GrantSource::Purchase)?;
        let debt_repaid = work.repay_debt_since(now, now)?;
        let reversal = PurchaseReversal {
            workspace_id: request.workspace_id,
            grant_id: self.grant_id,
            reversal_id: ReversalId(work.draw_id()),
            credits: part.credits,
            bonus_credits: bonus_removed,
            bonus_owed,
            owed,
            written_off: shortfall.minus(owed)?,
            amount_minor: part.amount_minor,
            reason: self.reason,
            command_id: work.command_id(),
            recorded_at: work.recorded_at(),
        };
        let receipt = receipt(&work, &purchase, &reversal, part, debt_repaid)?;
        work.raise(event(&receipt));
        work.effects_mut().reversal = Some(reversal);
        let changes_available = work.available() != available;
        let effects = if changes_available { work.finish() } else { work.finish_without_warning() };
        Ok((effects, Receipt::Reversed(receipt)))
    }
}

/// A grant, with its index if it is open.
fn find(work: &Work<'_>, grant_id: GrantId, closed: &ClosedGrants) -> Option<(Option<usize>, Grant)> {
    let open = work.grants().find(|(_, grant)| grant.grant_id == grant_id);
    let closed = || Some((None, closed.get(&(work.workspace().workspace_id, grant_id))?.clone()));
    open.map(|(index, grant)| (Some(index), grant.clone())).or_else(closed)
}

/// Moves credits of an open grant back to where they were issued from.
fn remove(work: &mut Work<'_>, index: Option<usize>, source: GrantSource, credits: Credits) -> Result<(), Refusal> {
    if let Some(index) = index.filter(|_| credits.is_positive()) {
        work.debit_grant(index, credits, Account::Issued(source), work.now())?;
    }
    Ok(())
}

/// Makes debt, which may pass the overdraft limit.
fn owe(work: &mut Work<'_>, owed: Credits, source: GrantSource) -> Result<(), Refusal> {
    if owed.is_zero() {
        return Ok(());
    }
    work.book(Account::Debt, Account::Issued(source), owed, work.now())?;
    let credits = work.credits_mut();
    credits.debt_credits = credits.debt_credits.plus(owed)?;
    work.update_overdraft_limit();
    Ok(())
}

fn receipt(
    work: &Work<'_>,
    purchase: &Grant,
    reversal: &PurchaseReversal,
    part: ReversedPart,
    debt_repaid: Credits,
) -> Result<ReversalReceipt, Refusal> {
    Ok(ReversalReceipt {
        command_id: reversal.command_id,
        workspace_id: reversal.workspace_id,
        reversal_id: reversal.reversal_id,
        grant_id: reversal.grant_id,
        reason: reversal.reason,
        credits: part.credits,
        amount_minor: part.amount_minor,
        currency: purchase.cost_basis.map_or_else(String::new, |cost| cost.currency.as_str().to_owned()),
        credits_removed: part.credits.minus(reversal.owed)?.minus(reversal.written_off)?,
        credits_owed: reversal.owed,
        credits_written_off: reversal.written_off,
        bonus_grant_id: purchase.bonus_grant_id,
        bonus_removed: reversal.bonus_credits,
        bonus_owed: reversal.bonus_owed,
        debt_repaid,
        current_credits: work.credits().current_credits,
        recorded_at: reversal.recorded_at,
    })
}

fn event(receipt: &ReversalReceipt) -> PurchaseReversed {
    PurchaseReversed {
        reversal_id: receipt.reversal_id,
        grant_id: receipt.grant_id,
        reason: receipt.reason,
        credits: receipt.credits,
        amount_minor: receipt.amount_minor,
        currency: receipt.currency.clone(),
        credits_removed: receipt.credits_removed,
        credits_owed: receipt.credits_owed,
        credits_written_off: receipt.credits_written_off,
        bonus_grant_id: receipt.bonus_grant_id,
        bonus_removed: receipt.bonus_removed,
        bonus_owed: receipt.bonus_owed,
        debt_repaid: receipt.debt_repaid,
        current_credits: receipt.current_credits,
    }
}
