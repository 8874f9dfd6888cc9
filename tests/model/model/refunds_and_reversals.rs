//! The model of voids, refunds and reversals.

use super::{Amount, DAY, Grant, Model, Predicted, Source};
use crate::plans::PLANS;

/// What every purchase costs, in minor units.
pub const PRICE: i64 = 100;

/// How much of a purchase is reversed.
#[derive(Clone, Copy, Debug)]
pub enum Reversed {
    All,
    Credits(Amount),
    Minor(i64),
}

/// What was taken of a grant by its key, or of the overdraft.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    key: Option<usize>,
    /// The grant is for one feature only.
    is_scoped: bool,
    amount: Amount,
}

#[derive(Clone, Debug)]
pub struct Usage {
    second: bool,
    period: usize,
    /// What was taken and not refunded yet.
    left: Vec<Share>,
}

#[derive(Clone, Debug)]
pub struct Purchase {
    key: usize,
    amount: Amount,
    /// The key of the bonus and its amount.
    bonus: Option<(usize, Amount)>,
    reversed: Amount,
    minor: i64,
    expired: Amount,
}

impl Purchase {
    /// The grant of the bonus is the next one.
    pub fn new(key: usize, amount: Amount, bonus: Option<Amount>) -> Self {
        let bonus = bonus.map(|amount| (key + 1, amount));
        Self { key, amount, bonus, reversed: 0, minor: 0, expired: 0 }
    }
}

impl Model {
    pub fn with_overdraft(&self, shares: Vec<(usize, Amount)>, overdraft: Amount) -> Vec<Share> {
        let is_scoped = |key| self.grants.iter().any(|grant| grant.key == key && grant.scope.is_some());
        let of_grants = shares.into_iter();
        let mut taken: Vec<_> =
            of_grants.map(|(key, amount)| Share { key: Some(key), is_scoped: is_scoped(key), amount }).collect();
        taken.push(Share { key: None, is_scoped: false, amount: overdraft });
        taken
    }

    pub fn record_usage(&mut self, second: bool, left: Vec<Share>) {
        self.usages.push(Usage { second, period: self.periods, left });
    }

    pub fn note_expired(&mut self, key: usize, amount: Amount) {
        if let Some(purchase) = self.purchases.iter_mut().find(|purchase| purchase.key == key) {
            purchase.expired += amount;
        }
    }

    pub fn void(&mut self, number: usize, amount: Option<Amount>) -> Predicted {
        let Some(is_voidable) = self.issued.get(number) else { return "grant-not-found" };
        if !is_voidable {
            return "grant-not-voidable";
        }
        let held: Vec<usize> = self.open_holds().flat_map(|hold| &hold.shares).map(|(key, _)| *key).collect();
        let is_open = |grant: &Grant| grant.remaining > 0 || held.contains(&grant.key);
        let open = self.grants.iter_mut().find(|grant| grant.number == Some(number) && is_open(grant));
        let Some(grant) = open else { return "grant-closed" };
        if grant.remaining == 0 {
            return "void-exceeds-remaining";
        }
        let amount = amount.unwrap_or(grant.remaining);
        if amount > grant.remaining {
            return "void-exceeds-remaining";
        }
        grant.remaining -= amount;
        "accepted"
    }

    fn living(&mut self, key: usize) -> Option<&mut Grant> {
        let now = self.now;
        self.grants.iter_mut().find(|grant| grant.key == key && grant.expires_at.is_none_or(|end| end > now))
    }

    pub fn refund(&mut self, number: usize, amount: Option<Amount>) -> Predicted {
        let Some(usage) = self.usages.get(number).cloned() else { return "usage-log-not-found" };
        let left: Amount = usage.left.iter().map(|share| share.amount).sum();
        let amount = amount.unwrap_or(left);
        if left == 0 || amount > left {
            return "refund-exceeds-usage";
        }
        let (mut to_refund, mut anew, mut anew_scoped) = (amount, 0, 0);
        for n in (0..usage.left.len()).rev() {
            let share = usage.left[n];
            let part = to_refund.min(share.amount);
            to_refund -= part;
            self.usages[number].left[n].amount -= part;
            match share.key {
                None => {
                    let repaid = part.min(self.debt);
                    self.debt -= repaid;
                    anew += part - repaid;
                }
                Some(key) => match self.living(key) {
                    Some(grant) => grant.remaining += part,
                    None if share.is_scoped => anew_scoped += part,
                    None => anew += part,
                },
            }
        }
        let end = self.now + 30 * DAY;
        for (amount, scope) in [(anew, None), (anew_scoped, Some(usage.second))] {
            if amount > 0 {
                self.grant(Source::Adjustment, amount, Some(end), self.decided_at);
                self.grants.last_mut().unwrap().scope = scope;
            }
        }
        if usage.period == self.periods {
            self.used -= amount;
            self.used_second -= if usage.second { amount } else { 0 };
        }
        self.repay_debt();
        "accepted"
    }

    pub fn reverse(&mut self, number: usize, how: Reversed) -> Predicted {
        let Some(purchase) = self.purchases.get(number).cloned() else { return "purchase-not-found" };
        let (amount, price) = (purchase.amount, Amount::from(PRICE));
        let (left, left_minor) = (amount - purchase.reversed, PRICE - purchase.minor);
        let (reversed, minor) = match how {
            Reversed::All if left == 0 => return "reversal-exceeds-purchase",
            Reversed::Credits(credits) if credits > left => return "reversal-exceeds-purchase",
            Reversed::Minor(minor) if minor > left_minor => return "reversal-exceeds-purchase",
            Reversed::All => (amount, PRICE),
            Reversed::Credits(credits) => {
                let reversed = purchase.reversed + credits;
                (reversed, i64::try_from(price * reversed / amount).unwrap().max(purchase.minor))
            }
            Reversed::Minor(minor) => {
                let minor = purchase.minor + minor;
                ((amount * Amount::from(minor) / price).max(purchase.reversed), minor)
            }
        };
        let part = reversed - purchase.reversed;
        let remaining = self.living(purchase.key).map_or(0, |grant| grant.remaining);
        let removed = part.min(remaining);
        if let Some(grant) = self.living(purchase.key) {
            grant.remaining -= removed;
        }
        if let Some((key, bonus)) = purchase.bonus {
            let mut left = bonus * reversed / amount - bonus * purchase.reversed / amount;
            if let Some(grant) = self.living(key) {
                let part = left.min(grant.remaining);
                grant.remaining -= part;
                left -= part;
            }
            self.debt += left.min(self.held_of(key));
        }
        let spent = (amount - remaining - purchase.expired - purchase.reversed).max(0);
        let owed = if PLANS[self.plan].writes_off { self.held_of(purchase.key) } else { spent };
        self.debt += (part - removed).min(owed);
        (self.purchases[number].reversed, self.purchases[number].minor) = (reversed, minor);
        self.repay_debt();
        "accepted"
    }
}
