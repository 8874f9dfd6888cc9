//! Refunds: giving a deduction back, as a whole or in part.
//!
//! A refund gives back from the end of what the deduction took, as if the deduction had been smaller. So it follows from
//! the deduction's shares and from how much was refunded before.

use super::credits::{Credits, OutOfRange};
use super::ids::{CommandId, GrantId, RefundId, WorkspaceId};
use super::ledger::{Account, LedgerEntry};
use super::text::Label;
use super::time::Timestamp;
use super::usage::{UsageId, UsageLog};

/// One refund of a usage log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRefund {
    pub workspace_id: WorkspaceId,
    pub usage_id: UsageId,
    pub refund_id: RefundId,
    pub credits: Credits,
    /// Whether the usage counters of the period fell by it.
    pub is_counted: bool,
    pub reason: Option<Label>,
    pub command_id: CommandId,
    pub recorded_at: Timestamp,
}

/// What a deduction took of one grant, or of the overdraft if there is no grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageShare {
    pub grant_id: Option<GrantId>,
    pub credits: Credits,
}

impl UsageShare {
    /// The shares that the entries of a deduction or a capture say, in the order of their numbers. A capture has other
    /// entries too.
    #[must_use]
    pub fn of_entries<'e>(entries: impl Iterator<Item = &'e LedgerEntry>) -> Vec<Self> {
        let consumed = entries.filter(|entry| matches!(entry.accounts.credit, Account::Consumed(_)));
        consumed.map(|entry| Self { grant_id: entry.accounts.debit.grant_id(), credits: entry.amount }).collect()
    }
}

/// A usage log with what its refunds depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefundableUsage {
    pub log: UsageLog,
    /// In the order in which they were taken.
    pub shares: Vec<UsageShare>,
    pub refunded: Credits,
    /// Whether it was recorded in the period that is recorded as the current one.
    pub is_of_current_period: bool,
}

impl RefundableUsage {
    /// What was not refunded yet.
    pub fn left(&self) -> Result<Credits, OutOfRange> {
        self.log.credits.minus(self.refunded)
    }

    /// The shares that the next refund gives back, the last that was taken first.
    pub fn shares_of_refund(&self, credits: Credits) -> Result<Vec<UsageShare>, OutOfRange> {
        let (mut skipped, mut left, mut shares) = (self.refunded, credits, Vec::new());
        for share in self.shares.iter().rev() {
            let before = skipped.min(share.credits);
            skipped = skipped.minus(before)?;
            let part = share.credits.minus(before)?.min(left);
            left = left.minus(part)?;
            if part.is_positive() {
                shares.push(UsageShare { credits: part, ..*share });
            }
        }
        debug_assert!(left.is_zero(), "the shares of a usage sum to its credits");
        Ok(shares)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::text::FeatureCode;

    #[test]
    fn refunds_give_back_from_the_end_and_together_exactly_what_was_taken() {
        let at = Timestamp::from_micros(0);
        let share = |grant: Option<u128>, credits| UsageShare {
            grant_id: grant.map(|id| GrantId(Uuid::from_u128(id))),
            credits: Credits::whole(credits),
        };
        let log = UsageLog {
            workspace_id: WorkspaceId(Uuid::nil()),
            seq: 1,
            command_id: CommandId(Uuid::nil()),
            feature_code: FeatureCode::new("render").unwrap(),
            user_id: None,
            credits: Credits::whole(10),
            quantity: None,
            occurred_at: at,
            recorded_at: at,
            metadata: None,
        };
        let shares = vec![share(Some(1), 4), share(Some(2), 3), share(None, 3)];
        let usage = |refunded| RefundableUsage {
            log: log.clone(),
            shares: shares.clone(),
            refunded: Credits::whole(refunded),
            is_of_current_period: true,
        };
        let refund = |refunded, credits| usage(refunded).shares_of_refund(Credits::whole(credits)).unwrap();
        assert_eq!(refund(0, 2), [share(None, 2)]);
        assert_eq!(refund(2, 3), [share(None, 1), share(Some(2), 2)]);
        assert_eq!(refund(5, 5), [share(Some(2), 1), share(Some(1), 4)]);
        assert_eq!(refund(0, 10), [share(None, 3), share(Some(2), 3), share(Some(1), 4)]);
    }
}
