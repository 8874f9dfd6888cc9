//! An independent model of the product's rules, based on the documentation and not on the code. It has one
//! workspace, plain integers and UTC, and predicts the outcome and the balance of every command.

pub mod holds;
pub mod refunds_and_reversals;

use chrono::{DateTime, Months, Utc};

use self::holds::{Hold, HoldStep};
use self::refunds_and_reversals::{Purchase, Reversed, Share, Usage};
use crate::plans::PLANS;

/// Micro-credits.
pub type Amount = i128;

pub const CREDIT: Amount = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Promotion,
    Rollover,
    Allowance,
    Purchase,
    Adjustment,
}

impl Source {
    /// Whether the credits belong to a period.
    fn is_periodic(self) -> bool {
        matches!(self, Self::Allowance | Self::Rollover)
    }
}

#[derive(Clone, Copy, Debug)]
struct Grant {
    source: Source,
    remaining: Amount,
    expires_at: Option<i64>,
    effective_at: i64,
    /// It was issued before it begins.
    begins_later: bool,
    priority: u8,
    /// The only feature that it is for: the second one or the first.
    scope: Option<bool>,
    /// Its number among those that a caller may try to void.
    number: Option<usize>,
    /// By which holds name it.
    key: usize,
}

/// What a caller grants.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    pub amount: Amount,
    pub adjustment: bool,
    pub priority: u8,
    pub begins_after_days: Option<u8>,
    pub lasts_days: Option<u8>,
    pub scope: Option<bool>,
}

/// Microseconds.
pub const DAY: i64 = 86_400_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    None,
    Full,
    Prorate,
    Restart,
}

#[derive(Clone, Debug)]
pub enum Step {
    Deduct {
        second: bool,
        amount: Amount,
    },
    Purchase {
        amount: Amount,
        bonus: Option<Amount>,
        reference: u8,
        expires_after_days: Option<u8>,
    },
    Grant(Given),
    /// Of the grants that callers have given or bought so far, the one with this number, if there are that many.
    Void {
        number: usize,
        amount: Option<Amount>,
    },
    OfHolds(HoldStep),
    /// The deductions and captures are numbered in the order in which they were accepted.
    Refund {
        number: usize,
        amount: Option<Amount>,
    },
    /// The purchases too.
    Reverse {
        number: usize,
        how: Reversed,
    },
    ExpireHolds,
    Wait {
        seconds: i64,
    },
    Change {
        plan: usize,
        now: bool,
        policy: Policy,
    },
    Cancel {
        now: bool,
    },
    Resume,
    Reset,
    ExpireGrants,
}

#[derive(Clone, Copy, Debug)]
enum Pending {
    Change(usize),
    Cancel,
}

/// The predicted outcome of a step: `accepted`, the code of a refusal, or `nothing`.
pub type Predicted = &'static str;

#[derive(Clone, Debug)]
pub struct Model {
    pub now: i64,
    /// When the command of this step is decided: one microsecond later if it has to pass a boundary first, because
    /// no two commands of a workspace share an instant.
    decided_at: i64,
    grants: Vec<Grant>,
    next_key: usize,
    holds: Vec<Hold>,
    usages: Vec<Usage>,
    purchases: Vec<Purchase>,
    /// How many periods have begun.
    periods: usize,
    debt: Amount,
    /// What changes of plan could not take back in this period.
    uncollected: Amount,
    used: Amount,
    used_second: Amount,
    plan: usize,
    active: bool,
    anchor: i64,
    month: u32,
    pending: Option<Pending>,
    references: Vec<u8>,
    /// Whether each grant that a caller has given or bought can be voided.
    issued: Vec<bool>,
}

impl Model {
    pub fn new(plan: usize, now: i64) -> Self {
        let mut model = Self {
            now,
            decided_at: now,
            grants: Vec::new(),
            next_key: 0,
            holds: Vec::new(),
            usages: Vec::new(),
            purchases: Vec::new(),
            periods: 0,
            debt: 0,
            uncollected: 0,
            used: 0,
            used_second: 0,
            plan,
            active: true,
            anchor: now,
            month: 0,
            pending: None,
            references: Vec::new(),
            issued: Vec::new(),
        };
        model.grant(Source::Allowance, PLANS[plan].allowance, Some(model.boundary(1)), now);
        model
    }

    pub fn balance(&self) -> Amount {
        let held: Amount = self.open_holds().flat_map(|hold| &hold.shares).map(|(_, amount)| amount).sum();
        self.grants.iter().map(|grant| grant.remaining).sum::<Amount>() + held - self.debt
    }

    pub fn used(&self) -> Amount {
        self.used
    }

    pub fn debt(&self) -> Amount {
        self.debt
    }

    /// Whether a read shows more than what is recorded.
    pub fn has_due_work(&self) -> bool {
        self.is_due()
            || self.open_holds().any(|hold| hold.expires_at <= self.now)
            || self.grants.iter().any(|grant| self.is_expiry_due(grant))
            || (self.debt > 0 && self.begun_grants().iter().any(|n| self.grants[*n].remaining > 0))
    }

    pub fn step(&mut self, step: &Step) -> Predicted {
        // One millisecond between steps.
        self.now += 1000;
        self.decided_at = self.now;
        match *step {
            Step::Wait { seconds } => {
                self.now += seconds * 1_000_000;
                "nothing"
            }
            Step::ExpireHolds => {
                self.begin_grants();
                if self.expire_holds() { "accepted" } else { "nothing" }
            }
            Step::ExpireGrants => {
                self.begin_grants();
                self.expire_holds();
                self.expire_grants()
            }
            Step::Reset => {
                self.begin_grants();
                self.expire_holds();
                self.expire_grants();
                self.reset()
            }
            _ => {
                self.do_due_work();
                self.decide(step)
            }
        }
    }

    /// A command of a caller, once all due work is done.
    fn decide(&mut self, step: &Step) -> Predicted {
        match *step {
            Step::Deduct { second, amount } => self.deduct(second, amount),
            Step::OfHolds(step) => self.hold_step(step),
            Step::Refund { number, amount } => self.refund(number, amount),
            Step::Reverse { number, how } => self.reverse(number, how),
            Step::Purchase { amount, bonus, reference, expires_after_days } => {
                if self.references.contains(&reference) {
                    return "payment-reference-used";
                }
                self.references.push(reference);
                let end = expires_after_days.map(|days| self.now + i64::from(days) * 86_400_000_000);
                self.grant(Source::Purchase, amount, end, self.decided_at);
                self.number_last(false);
                self.purchases.push(Purchase::new(self.next_key - 1, amount, bonus));
                if let Some(bonus) = bonus {
                    self.grant(Source::Promotion, bonus, end, self.decided_at);
                }
                self.repay_debt();
                "accepted"
            }
            Step::Grant(given) => self.give(given),
            Step::Void { number, amount } => self.void(number, amount),
            Step::Change { plan, now, policy } => self.change(plan, now, policy),
            Step::Cancel { now } => match (self.active, now) {
                (false, _) => "subscription-canceled",
                (true, true) => self.end(),
                (true, false) => {
                    self.pending = Some(Pending::Cancel);
                    "accepted"
                }
            },
            Step::Resume => match (self.active, self.pending.take()) {
                (false, _) => "subscription-canceled",
                (true, None) => "nothing-scheduled",
                (true, Some(_)) => "accepted",
            },
            Step::Wait { .. } | Step::ExpireHolds | Step::ExpireGrants | Step::Reset => {
                unreachable!("it was done before")
            }
        }
    }

    fn boundary(&self, month: u32) -> i64 {
        let anchor: DateTime<Utc> = DateTime::from_timestamp_micros(self.anchor).unwrap();
        anchor.checked_add_months(Months::new(month)).unwrap().timestamp_micros()
    }

    fn is_due(&self) -> bool {
        self.active && self.boundary(self.month + 1) <= self.now
    }

    fn grant(&mut self, source: Source, amount: Amount, expires_at: Option<i64>, effective_at: i64) {
        let remaining = amount;
        let (begins_later, priority, scope, number) = (false, 50, None, None);
        let key = self.next_key;
        self.next_key += 1;
        let grant = Grant { source, remaining, expires_at, effective_at, begins_later, priority, scope, number, key };
        self.grants.push(grant);
    }

    fn number_last(&mut self, is_voidable: bool) {
        self.grants.last_mut().unwrap().number = Some(self.issued.len());
        self.issued.push(is_voidable);
    }

    fn give(&mut self, given: Given) -> Predicted {
        let begins_at = given.begins_after_days.map(|days| self.now + i64::from(days) * DAY);
        let end = given.lasts_days.map(|days| begins_at.unwrap_or(self.now) + i64::from(days) * DAY);
        let source = if given.adjustment { Source::Adjustment } else { Source::Promotion };
        self.grant(source, given.amount, end, begins_at.unwrap_or(self.decided_at));
        self.number_last(true);
        let grant = self.grants.last_mut().unwrap();
        (grant.begins_later, grant.priority, grant.scope) = (begins_at.is_some(), given.priority, given.scope);
        self.repay_debt();
        "accepted"
    }

    fn has_begun(&self, grant: &Grant) -> bool {
        !grant.begins_later || grant.effective_at <= self.now
    }

    /// All grants for any feature repay it, in the order in which they are spent.
    fn repay_debt(&mut self) {
        let repays =
            |model: &Self, grant: &Grant| grant.scope.is_none() && model.has_begun(grant) && !model.is_expired(grant);
        for n in self.in_burn_order(repays) {
            self.repay_with(n);
        }
    }

    fn repay_with(&mut self, n: usize) -> bool {
        let part = self.debt.min(self.grants[n].remaining);
        self.grants[n].remaining -= part;
        self.debt -= part;
        part > 0
    }

    /// Those that began later and can repay debt, in the order in which they have begun, but none that has begun after the
    /// end of the period.
    fn begun_grants(&self) -> Vec<usize> {
        let until = if self.is_due() { self.boundary(self.month + 1) } else { self.now };
        let begun = |grant: &Grant| grant.begins_later && grant.scope.is_none() && grant.effective_at <= until;
        let mut order: Vec<usize> = (0..self.grants.len()).filter(|n| begun(&self.grants[*n])).collect();
        order.sort_by_key(|n| self.grants[*n].effective_at);
        order
    }

    /// Each repays debt when it begins. Returns whether one has repaid some.
    fn begin_grants(&mut self) -> bool {
        let repaid: Vec<bool> = self.begun_grants().into_iter().map(|n| self.repay_with(n)).collect();
        repaid.contains(&true)
    }

    fn in_burn_order(&self, filter: impl Fn(&Self, &Grant) -> bool) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.grants.len()).filter(|n| filter(self, &self.grants[*n])).collect();
        order.sort_by_key(|n| {
            let grant = &self.grants[*n];
            let rank = match grant.source {
                Source::Promotion => 0,
                Source::Rollover => 1,
                Source::Allowance | Source::Purchase | Source::Adjustment => 2,
            };
            let expires_at = grant.expires_at.unwrap_or(i64::MAX);
            (grant.scope.is_none(), grant.priority, expires_at, rank, grant.effective_at)
        });
        order
    }

    fn is_expired(&self, grant: &Grant) -> bool {
        grant.expires_at.is_some_and(|end| end <= self.now)
    }

    fn do_due_work(&mut self) {
        self.begin_grants_and_expire_holds();
        if self.is_due() {
            self.pass_boundaries();
            self.decided_at += 1;
            self.begin_grants_and_expire_holds();
        }
        if self.expire_grants() == "accepted" {
            self.decided_at += 1;
        }
    }

    fn begin_grants_and_expire_holds(&mut self) {
        if self.begin_grants() {
            self.decided_at += 1;
        }
        if self.expire_holds() {
            self.decided_at += 1;
        }
    }

    fn pass_boundaries(&mut self) {
        while self.is_due() {
            match self.pending.take() {
                Some(Pending::Cancel) => {
                    self.end();
                    return;
                }
                Some(Pending::Change(plan)) => self.plan = plan,
                None => {}
            }
            self.month += 1;
            self.begin_period();
        }
    }

    fn begin_period(&mut self) {
        let cap = PLANS[self.plan].rollover_cap;
        let unspent: Amount =
            self.grants.iter().filter(|grant| grant.source == Source::Allowance).map(|grant| grant.remaining).sum();
        self.grants.retain(|grant| !grant.source.is_periodic());
        self.periods += 1;
        self.used = 0;
        self.used_second = 0;
        self.uncollected = 0;
        let (start, end) = (self.boundary(self.month), self.boundary(self.month + 1));
        // Passed late, the period may be over again. Its credits repaid the debt when it began, and before them those
        // grants that had begun since the period before.
        let now = std::mem::replace(&mut self.now, start);
        self.begin_grants();
        if unspent.min(cap) > 0 {
            self.grant(Source::Rollover, unspent.min(cap), Some(end), start);
        }
        self.grant(Source::Allowance, PLANS[self.plan].allowance, Some(end), start);
        self.repay_debt();
        self.now = now;
    }

    fn reset(&mut self) -> Predicted {
        if !self.active {
            return "subscription-canceled";
        }
        if !self.is_due() {
            return "reset-not-due";
        }
        self.pass_boundaries();
        "accepted"
    }

    fn expire_grants(&mut self) -> Predicted {
        let before = self.grants.len();
        let expired: Vec<_> = self.grants.iter().filter(|grant| self.is_expiry_due(grant)).copied().collect();
        for grant in expired {
            self.note_expired(grant.key, grant.remaining);
        }
        let lasting = |grant: &Grant| !self.is_expiry_due(grant);
        self.grants = self.grants.iter().copied().filter(lasting).collect();
        if self.grants.len() == before { "nothing" } else { "accepted" }
    }

    fn is_expiry_due(&self, grant: &Grant) -> bool {
        !grant.source.is_periodic() && grant.remaining > 0 && self.is_expired(grant)
    }

    fn spendable(&self, grant: &Grant) -> bool {
        let can_freeze = matches!(grant.source, Source::Promotion | Source::Purchase);
        let frozen = !self.active && PLANS[self.plan].freezes_on_cancel && can_freeze;
        grant.remaining > 0 && self.has_begun(grant) && !self.is_expired(grant) && !frozen
    }

    fn overdraft(&self) -> Amount {
        if self.active { PLANS[self.plan].overdraft } else { 0 }
    }

    fn overdraft_left(&self) -> Amount {
        let held: Amount = self.open_holds().map(|hold| hold.overdraft).sum();
        (self.overdraft() - self.debt - held).max(0)
    }

    fn has_feature(&self, second: bool) -> bool {
        !second || PLANS[self.plan].second_feature_limit.is_some()
    }

    /// What the limits leave, where what is held counts as used.
    fn headroom(&self, second: bool) -> Amount {
        let plan = PLANS[self.plan];
        if !self.active {
            return Amount::MAX;
        }
        let of_second: Amount = self.open_holds().filter(|hold| hold.second).map(|hold| hold.amount).sum();
        let limits = [
            plan.second_feature_limit.filter(|_| second).map(|limit| limit - self.used_second - of_second),
            plan.monthly_limit.map(|limit| limit - self.used - self.held()),
        ];
        limits.into_iter().flatten().min().unwrap_or(Amount::MAX).max(0)
    }

    fn can_burn(second: bool) -> impl Fn(&Self, &Grant) -> bool {
        move |model, grant| model.spendable(grant) && grant.scope.is_none_or(|of| of == second)
    }

    fn granted(&self, second: bool) -> Amount {
        let can_burn = Self::can_burn(second);
        self.grants.iter().filter(|grant| can_burn(self, grant)).map(|grant| grant.remaining).sum()
    }

    /// Takes an amount from the grants in burn order. Returns what it took of each, and what is left.
    fn take(&mut self, second: bool, amount: Amount) -> (Vec<(usize, Amount)>, Amount) {
        let (mut left, mut shares) = (amount, Vec::new());
        for n in self.in_burn_order(Self::can_burn(second)) {
            let grant = &mut self.grants[n];
            let part = left.min(grant.remaining);
            grant.remaining -= part;
            left -= part;
            shares.extend((part > 0).then_some((grant.key, part)));
        }
        (shares, left)
    }

    fn refusal(&self, second: bool, amount: Amount) -> Option<Predicted> {
        if !self.has_feature(second) {
            Some("feature-disabled")
        } else if amount > self.headroom(second) {
            Some("limit-exceeded")
        } else if amount > self.granted(second) + self.overdraft_left() {
            Some("insufficient-credits")
        } else {
            None
        }
    }

    fn deduct(&mut self, second: bool, amount: Amount) -> Predicted {
        if let Some(refusal) = self.refusal(second, amount) {
            return refusal;
        }
        let shares = self.charge(second, amount);
        self.record_usage(second, shares);
        "accepted"
    }

    /// Returns what it took.
    fn charge(&mut self, second: bool, amount: Amount) -> Vec<Share> {
        let (shares, left) = self.take(second, amount);
        self.debt += left;
        self.count(second, amount);
        self.with_overdraft(shares, left)
    }

    fn count(&mut self, second: bool, amount: Amount) {
        self.used += amount;
        self.used_second += if second { amount } else { 0 };
    }

    fn change(&mut self, plan: usize, now: bool, policy: Policy) -> Predicted {
        let restarts = now && (policy == Policy::Restart || !self.active);
        if !self.active && !now {
            return "subscription-canceled";
        }
        if self.active && plan == self.plan && !restarts {
            return "plan-unchanged";
        }
        if !now {
            self.pending = Some(Pending::Change(plan));
            return "accepted";
        }
        let (old, new) = (PLANS[self.plan].allowance, PLANS[plan].allowance);
        self.plan = plan;
        // An immediate change of plan keeps a scheduled cancellation.
        self.pending = self.pending.filter(|pending| matches!(pending, Pending::Cancel));
        self.active = true;
        if restarts {
            self.anchor = self.decided_at;
            self.month = 0;
            self.begin_period();
            return "accepted";
        }
        let (start, end) = (self.boundary(self.month), self.boundary(self.month + 1));
        let now = self.now;
        let credited = |difference: Amount| match policy {
            Policy::Full => difference,
            Policy::Prorate => difference * Amount::from(end - now) / Amount::from(end - start),
            Policy::None | Policy::Restart => 0,
        };
        let gain = credited((new - old).max(0));
        let set_off = gain.min(self.uncollected);
        self.uncollected -= set_off;
        if gain > set_off {
            self.grant(Source::Allowance, gain - set_off, Some(end), now);
            self.repay_debt();
        }
        let mut loss = credited((old - new).max(0));
        for grant in self.grants.iter_mut().filter(|grant| grant.source == Source::Allowance) {
            let part = loss.min(grant.remaining);
            grant.remaining -= part;
            loss -= part;
        }
        self.uncollected += loss;
        "accepted"
    }

    fn end(&mut self) -> Predicted {
        self.grants.retain(|grant| !grant.source.is_periodic());
        self.active = false;
        self.pending = None;
        "accepted"
    }
}
