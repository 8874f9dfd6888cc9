//! ExpireGrants: books grants that have reached their expiry with credits left.
//!
//! A grant cannot be spent from its expiry on, whether the expiry is booked or not; this command records it in the
//! ledger. Grants that belong to a period are closed at the period's end instead, because their
//! unspent credits may roll over.

use super::effects::Effects;
use super::refusal::Refusal;
use super::work::Work;
use crate::domain::credits::Credits;
use crate::domain::event::CreditsExpired;
use crate::domain::ledger::Account;
use crate::domain::receipt::Receipt;

/// How many grants one command books, so that its event stays bounded. The scheduler sends another
/// command while more are due.
const MAX_GRANTS_PER_COMMAND: usize = 100;

/// Books expired grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpireGrants;

impl ExpireGrants {
    pub(super) fn decide(mut work: Work<'_>) -> Result<Option<(Effects, Receipt)>, Refusal> {
        let now = work.now();
        let expired: Vec<_> = work
            .grants()
            .filter(|(_, grant)| grant.is_expiry_due(now))
            .filter_map(|(index, grant)| Some((index, grant.remaining, grant.expires_at?)))
            .take(MAX_GRANTS_PER_COMMAND)
            .collect();
        if expired.is_empty() {
            return Ok(None);
        }
        let mut shares = Vec::with_capacity(expired.len());
        for (index, remaining, expires_at) in expired {
            shares.push(work.debit_grant(index, remaining, Account::Expired, expires_at)?);
        }
        let event = CreditsExpired {
            credits: Credits::sum(shares.iter().map(|share| share.credits))?,
            grants: shares,
            current_credits: work.credits().current_credits,
        };
        work.raise(event);
        Ok(Some(work.finish_internal()))
    }
}
