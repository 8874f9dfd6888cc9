//! The model of holds.

use super::{Amount, Grant, Model, Predicted};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HoldState {
    Open,
    Over,
    /// Not captured in time, and not captured late either.
    Expired,
}

#[derive(Clone, Debug)]
pub struct Hold {
    pub second: bool,
    pub amount: Amount,
    /// The grants by their keys, in burn order.
    pub shares: Vec<(usize, Amount)>,
    /// The grants that were for one feature only.
    scoped: Vec<usize>,
    pub overdraft: Amount,
    pub expires_at: i64,
    state: HoldState,
}

/// What becomes of the part of a capture that is beyond its hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overrun {
    Reject,
    ChargeAvailable,
    Overdraft,
}

#[derive(Clone, Copy, Debug)]
pub enum HoldStep {
    Place {
        second: bool,
        amount: Amount,
        least: Option<Amount>,
        seconds: i64,
    },
    /// The holds are numbered in the order in which they were placed.
    Capture {
        number: usize,
        amount: Option<Amount>,
        overrun: Overrun,
        late: bool,
    },
    Release {
        number: usize,
    },
    Extend {
        number: usize,
        seconds: i64,
    },
}

impl Model {
    /// What open holds reserve, of the overdraft too.
    pub fn held(&self) -> Amount {
        self.open_holds().map(|hold| hold.amount).sum()
    }

    pub fn open_holds(&self) -> impl Iterator<Item = &Hold> {
        self.holds.iter().filter(|hold| hold.state == HoldState::Open)
    }

    /// What open holds reserve of a grant.
    pub fn held_of(&self, key: usize) -> Amount {
        let shares = self.open_holds().flat_map(|hold| &hold.shares);
        shares.filter(|share| share.0 == key).map(|(_, amount)| amount).sum()
    }

    pub fn hold_step(&mut self, step: HoldStep) -> Predicted {
        let (number, seconds) = match step {
            HoldStep::Place { second, amount, least, seconds } => return self.hold(second, amount, least, seconds),
            HoldStep::Capture { number, amount, overrun, late } => return self.capture(number, amount, overrun, late),
            HoldStep::Release { number } => (number, None),
            HoldStep::Extend { number, seconds } => (number, Some(seconds)),
        };
        match (self.holds.get(number).map(|hold| hold.state), seconds) {
            (None, _) => "hold-not-found",
            (Some(HoldState::Expired), Some(_)) => "hold-expired",
            (Some(HoldState::Over | HoldState::Expired), _) => "hold-over",
            (Some(HoldState::Open), None) => {
                self.release(number, self.now);
                "accepted"
            }
            (Some(HoldState::Open), Some(seconds)) => {
                let until = self.now + seconds * 1_000_000;
                let hold = &mut self.holds[number];
                hold.expires_at = hold.expires_at.max(until);
                "accepted"
            }
        }
    }

    fn hold(&mut self, second: bool, amount: Amount, least: Option<Amount>, seconds: i64) -> Predicted {
        let there_is = self.headroom(second).min(self.granted(second) + self.overdraft_left());
        let amount = least.map_or(amount, |least| amount.min(there_is.max(least)));
        if let Some(refusal) = self.refusal(second, amount) {
            return refusal;
        }
        let (shares, overdraft) = self.take(second, amount);
        let scoped = self.grants.iter().filter(|grant| grant.scope.is_some()).map(|grant| grant.key).collect();
        let expires_at = self.now + seconds * 1_000_000;
        self.holds.push(Hold { second, amount, shares, scoped, overdraft, expires_at, state: HoldState::Open });
        "accepted"
    }

    fn capture(&mut self, number: usize, amount: Option<Amount>, overrun: Overrun, late: bool) -> Predicted {
        let Some(hold) = self.holds.get(number).cloned() else { return "hold-not-found" };
        let cost = amount.unwrap_or(hold.amount);
        match hold.state {
            HoldState::Over => return "hold-over",
            HoldState::Expired if !late => return "hold-expired",
            HoldState::Expired => return self.capture_late(number, cost, overrun),
            HoldState::Open => {}
        }
        if cost > hold.amount && overrun == Overrun::Reject {
            return "capture-exceeds-hold";
        }
        self.holds[number].state = HoldState::Over;
        let mut left = cost.min(hold.amount);
        self.count(hold.second, left);
        let (mut rest, mut taken) = (Vec::new(), Vec::new());
        for (key, share) in hold.shares {
            let part = left.min(share);
            left -= part;
            taken.push((key, part));
            rest.push((key, share - part));
        }
        self.debt += left;
        let mut taken = self.with_overdraft(taken, left);
        self.repay_debt();
        let excess = cost - hold.amount;
        if excess > 0 && self.has_feature(hold.second) {
            let overdraft = if overrun == Overrun::Overdraft { self.overdraft_left() } else { 0 };
            let passes = self.headroom(hold.second).min(self.granted(hold.second) + overdraft);
            taken.extend(self.charge(hold.second, excess.min(passes)));
        }
        self.record_usage(hold.second, taken);
        self.give_back(number, &rest, self.now);
        "accepted"
    }

    /// Like a deduction of now, from the overdraft too: as far as it passes, unless it must pass as a whole.
    fn capture_late(&mut self, number: usize, cost: Amount, overrun: Overrun) -> Predicted {
        let second = self.holds[number].second;
        let passes = self.headroom(second).min(self.granted(second) + self.overdraft_left());
        let cost = if overrun == Overrun::Reject { cost } else { cost.min(passes) };
        let outcome = self.deduct(second, cost);
        if outcome == "accepted" {
            self.holds[number].state = HoldState::Over;
        }
        outcome
    }

    fn release(&mut self, number: usize, at: i64) {
        self.holds[number].state = HoldState::Over;
        let shares = std::mem::take(&mut self.holds[number].shares);
        self.give_back(number, &shares, at);
    }

    /// All of it repays debt at once. What is left of a grant that has ended meanwhile is gone.
    fn give_back(&mut self, number: usize, shares: &[(usize, Amount)], at: i64) {
        for (key, amount) in shares {
            let lives = |grant: &&mut Grant| grant.key == *key && grant.expires_at.is_none_or(|end| end > at);
            if let Some(grant) = self.grants.iter_mut().find(lives) {
                grant.remaining += amount;
            } else {
                let part = if self.holds[number].scoped.contains(key) { 0 } else { self.debt.min(*amount) };
                self.debt -= part;
                self.note_expired(*key, *amount - part);
            }
        }
        let now = std::mem::replace(&mut self.now, at);
        self.repay_debt();
        self.now = now;
    }

    /// Of those that expired before the end of the period, their credits are of the period still. Returns whether there
    /// were any.
    pub fn expire_holds(&mut self) -> bool {
        let until = if self.is_due() { self.boundary(self.month + 1) } else { self.now };
        let is_over = |hold: &Hold| hold.state == HoldState::Open && hold.expires_at <= until;
        let mut expired: Vec<usize> = (0..self.holds.len()).filter(|n| is_over(&self.holds[*n])).collect();
        expired.sort_by_key(|n| self.holds[*n].expires_at);
        for n in &expired {
            self.release(*n, self.holds[*n].expires_at);
            self.holds[*n].state = HoldState::Expired;
        }
        !expired.is_empty()
    }
}
