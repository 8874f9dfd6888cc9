//! Reversals: taking a purchase back, as a whole or in part.
//!
//! Credits, money and the bonus fall in proportion. What was reversed so far is rounded, and not each reversal, so that
//! many small reversals take exactly what one large one takes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::credits::{Credits, OutOfRange, PositiveCredits};
use super::grant::Grant;
use super::ids::{CommandId, GrantId, ReversalId, WorkspaceId};
use super::time::Timestamp;

/// Why a purchase is reversed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReversalReason {
    /// The money was given back.
    Refund,
    /// The payer had the bank take the money back.
    Chargeback,
    /// The purchase was booked by mistake.
    Mistake,
}

impl ReversalReason {
    pub const ALL: [Self; 3] = [Self::Refund, Self::Chargeback, Self::Mistake];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refund => "refund",
            Self::Chargeback => "chargeback",
            Self::Mistake => "mistake",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// How much of a purchase is reversed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReversedAmount {
    /// All that is left.
    All,
    Credits(PositiveCredits),
    /// Of the amount paid, in minor units of the currency. More than zero.
    Minor(i64),
}

/// One reversal of a purchase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurchaseReversal {
    pub workspace_id: WorkspaceId,
    /// The grant of the purchase.
    pub grant_id: GrantId,
    pub reversal_id: ReversalId,
    /// What was reversed: what was removed from the grant, what is owed, and what was written off.
    pub credits: Credits,
    /// What was removed from the grant of the bonus.
    pub bonus_credits: Credits,
    /// What was held of the bonus and became debt.
    pub bonus_owed: Credits,
    /// What became debt.
    pub owed: Credits,
    pub written_off: Credits,
    /// What was reversed of the amount paid.
    pub amount_minor: i64,
    pub reason: ReversalReason,
    pub command_id: CommandId,
    pub recorded_at: Timestamp,
}

/// What was reversed of a purchase before, and what of it has expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReversiblePurchase {
    pub reversed: Credits,
    pub amount_minor: i64,
    /// What of its grant has expired.
    pub expired: Credits,
}

/// What one reversal reverses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReversedPart {
    pub credits: Credits,
    pub amount_minor: i64,
}

impl ReversiblePurchase {
    /// What is left to reverse.
    pub fn left(&self, purchase: &Grant) -> Result<ReversedPart, OutOfRange> {
        Ok(ReversedPart {
            credits: purchase.amount.minus(self.reversed)?,
            amount_minor: paid(purchase).saturating_sub(self.amount_minor),
        })
    }

    /// What the next reversal reverses. None if that is more than what is left.
    pub fn part(&self, purchase: &Grant, amount: ReversedAmount) -> Result<Option<ReversedPart>, OutOfRange> {
        let left = self.left(purchase)?;
        let paid = paid(purchase);
        let part = match amount {
            ReversedAmount::All if left.credits.is_zero() => return Ok(None),
            ReversedAmount::All => left,
            ReversedAmount::Credits(credits) if credits.get() > left.credits => return Ok(None),
            ReversedAmount::Credits(credits) if credits.get() == left.credits => left,
            ReversedAmount::Credits(credits) => {
                let credits = credits.get();
                let after = self.reversed.plus(credits)?;
                let amount_minor = proportion(paid, after.micro(), purchase.amount.micro());
                ReversedPart { credits, amount_minor: (amount_minor - self.amount_minor).max(0) }
            }
            ReversedAmount::Minor(minor) if minor > left.amount_minor => return Ok(None),
            ReversedAmount::Minor(minor) if minor == left.amount_minor => left,
            ReversedAmount::Minor(minor) => {
                let after = purchase.amount.prorate(self.amount_minor.saturating_add(minor), paid);
                ReversedPart { credits: after.minus_or_zero(self.reversed), amount_minor: minor }
            }
        };
        Ok(Some(part))
    }

    /// What the reversal of that many credits takes of the bonus.
    pub fn part_of_bonus(&self, purchase: &Grant, bonus: &Grant, credits: Credits) -> Result<Credits, OutOfRange> {
        let share = |reversed: Credits| bonus.amount.prorate(reversed.micro(), purchase.amount.micro());
        share(self.reversed.plus(credits)?).minus(share(self.reversed))
    }

    /// What was spent of the purchase and neither became debt nor was written off. What is held counts as spent.
    pub fn spent(&self, purchase: &Grant) -> Result<Credits, OutOfRange> {
        let not_spent = purchase.remaining.plus(self.expired)?.plus(self.reversed)?;
        Ok(purchase.amount.minus_or_zero(not_spent))
    }

    /// Adds a reversal.
    pub fn add(&mut self, reversal: &PurchaseReversal) {
        self.reversed = self.reversed.saturating_plus(reversal.credits);
        self.amount_minor = self.amount_minor.saturating_add(reversal.amount_minor);
    }
}

fn paid(purchase: &Grant) -> i64 {
    purchase.cost_basis.map_or(0, |cost| cost.amount_minor)
}

/// `part / whole` of the amount, rounded down.
fn proportion(amount: i64, part: i64, whole: i64) -> i64 {
    let product = i128::from(amount) * i128::from(part);
    i64::try_from(product / i128::from(whole.max(1))).unwrap_or(amount)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::grant::{CostBasis, Currency, DEFAULT_PRIORITY, GrantSource};

    fn purchase(amount: i64, amount_minor: i64) -> Grant {
        let amount = Credits::from_micro(amount).unwrap();
        Grant {
            workspace_id: WorkspaceId(Uuid::nil()),
            grant_id: GrantId(Uuid::nil()),
            source: GrantSource::Purchase,
            amount,
            remaining: amount,
            held: Credits::ZERO,
            priority: DEFAULT_PRIORITY,
            effective_at: Timestamp::from_micros(0),
            expires_at: None,
            feature_scope: None,
            payment_reference: None,
            cost_basis: Some(CostBasis { amount_minor, currency: Currency::new("EUR").unwrap() }),
            reason: None,
            metadata: None,
            bonus_grant_id: None,
            expiry_warning_at: None,
            created_at: Timestamp::from_micros(0),
            issued_seq: 1,
        }
    }

    /// Reverses these amounts one after the other. Returns what each reversed, and of a bonus of 7 micro-credits.
    fn reverse(purchase: &Grant, amounts: &[ReversedAmount]) -> Vec<Option<(i64, i64, i64)>> {
        let bonus = Grant { amount: Credits::from_micro(7).unwrap(), ..purchase.clone() };
        let mut so_far = ReversiblePurchase::default();
        let mut reverse_one = |amount: &ReversedAmount| {
            let part = so_far.part(purchase, *amount).unwrap()?;
            let of_bonus = so_far.part_of_bonus(purchase, &bonus, part.credits).unwrap();
            so_far.reversed = so_far.reversed.plus(part.credits).unwrap();
            so_far.amount_minor += part.amount_minor;
            Some((part.credits.micro(), part.amount_minor, of_bonus.micro()))
        };
        amounts.iter().map(&mut reverse_one).collect()
    }

    #[test]
    fn many_small_reversals_take_exactly_what_one_large_one_takes() {
        use ReversedAmount::{All, Credits as Of, Minor};
        let credits = |micro: i64| Of(serde_json::from_value(format!("0.{micro:06}").into()).unwrap());
        let (three, ten) = (purchase(3, 10), purchase(10, 3));
        assert_eq!(reverse(&three, &[All]), [Some((3, 10, 7))]);
        assert_eq!(reverse(&three, &[credits(1); 4]), [Some((1, 3, 2)), Some((1, 3, 2)), Some((1, 4, 3)), None]);
        assert_eq!(reverse(&ten, &[Minor(1); 4]), [Some((3, 1, 2)), Some((3, 1, 2)), Some((4, 1, 3)), None]);
        assert_eq!(
            reverse(&ten, &[credits(1), Minor(1), All, All]),
            [Some((1, 0, 0)), Some((2, 1, 2)), Some((7, 2, 5)), None]
        );
        assert_eq!(reverse(&ten, &[Minor(4), credits(11)]), [None, None]);
        assert_eq!(reverse(&purchase(5, 0), &[Minor(1), credits(2), All]), [None, Some((2, 0, 2)), Some((3, 0, 5))]);
        let first = reverse(&purchase(1, 3), &[Minor(1), Minor(1), Minor(1)]);
        assert_eq!(first, [Some((0, 1, 0)), Some((0, 1, 0)), Some((1, 1, 7))], "less than a micro-credit is nothing");
    }
}
