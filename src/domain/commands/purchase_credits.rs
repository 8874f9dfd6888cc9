//! PurchaseCredits: books credits that were paid for, and a bonus that came with them.
//!
//! The payment reference is unique per workspace, independent of the idempotency key: a payment that both a
//! webhook and a frontend report is booked once.

use std::collections::HashMap;
use std::sync::Arc;

use super::effects::Effects;
use super::refusal::Refusal;
use super::request::Request;
use super::work::{GrantTerms, Work};
use crate::domain::credits::{Credits, PositiveCredits};
use crate::domain::event::CreditsPurchased;
use crate::domain::grant::{CostBasis, Currency, GrantSource, MAX_OPEN_GRANTS};
use crate::domain::ids::{GrantId, WorkspaceId};
use crate::domain::receipt::{PurchaseReceipt, Receipt};
use crate::domain::rejection::Rejection;
use crate::domain::text::PaymentReference;
use crate::domain::time::Timestamp;

/// Books credits that were paid for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurchaseCredits {
    pub credits: PositiveCredits,
    /// Additional free credits, as a promotion grant.
    pub bonus_credits: Option<PositiveCredits>,
    /// The amount paid in minor units of the currency, not negative.
    pub amount_minor: i64,
    pub currency: Currency,
    pub payment_reference: PaymentReference,
    /// Must be in the future. Applies to the bonus too.
    pub expires_at: Option<Timestamp>,
}

impl PurchaseCredits {
    pub(super) fn decide(
        &self,
        mut work: Work<'_>,
        request: &Request<'_>,
        payments: &HashMap<(WorkspaceId, PaymentReference), GrantId>,
    ) -> Result<(Effects, Receipt), Refusal> {
        let (now, workspace_id) = (work.now(), work.workspace().workspace_id);
        if let Some(grant_id) = payments.get(&(workspace_id, self.payment_reference.clone())) {
            let (reference, grant_id) = (self.payment_reference.clone(), *grant_id);
            return Err(Rejection::PaymentReferenceUsed { reference, grant_id }.into());
        }
        if self.expires_at.is_some_and(|end| end <= now) {
            return Err(Rejection::TimeOutOfRange { pointer: "/expires_at", detail: "must be in the future" }.into());
        }
        if work.grants().count() >= MAX_OPEN_GRANTS {
            return Err(Rejection::TooManyGrants(MAX_OPEN_GRANTS).into());
        }
        let metadata = request.metadata.cloned().map(Arc::new);
        let terms = || GrantTerms { metadata: metadata.clone(), ..GrantTerms::new(now, self.expires_at) };
        let cost_basis = CostBasis { amount_minor: self.amount_minor, currency: self.currency };
        let paid = GrantTerms { payment: Some((self.payment_reference.clone(), cost_basis)), ..terms() };
        let grant_id = work.issue(GrantSource::Purchase, self.credits.get(), paid)?;
        let bonus_grant_id = match self.bonus_credits {
            Some(bonus) => Some(work.issue(GrantSource::Promotion, bonus.get(), terms())?),
            None => None,
        };
        work.set_bonus(grant_id, bonus_grant_id);
        let bonus_credits = self.bonus_credits.map_or(Credits::ZERO, PositiveCredits::get);
        let debt_repaid = work.repay_debt(now)?;
        let receipt = PurchaseReceipt {
            command_id: work.command_id(),
            workspace_id,
            grant_id,
            credits: self.credits.get(),
            bonus_grant_id,
            bonus_credits,
            payment_reference: self.payment_reference.clone(),
            expires_at: self.expires_at,
            debt_repaid,
            spendable: work.frozen_credits().is_zero(),
            current_credits: work.credits().current_credits,
            recorded_at: work.recorded_at(),
        };
        work.raise(CreditsPurchased {
            grant_id: receipt.grant_id,
            credits: receipt.credits,
            bonus_grant_id: receipt.bonus_grant_id,
            bonus_credits,
            amount_minor: self.amount_minor,
            currency: self.currency.as_str().to_owned(),
            payment_reference: self.payment_reference.clone(),
            expires_at: self.expires_at,
            debt_repaid: receipt.debt_repaid,
            spendable: receipt.spendable,
            current_credits: receipt.current_credits,
        });
        Ok((work.finish(), Receipt::Purchased(receipt)))
    }
}
