//! Holds in the working copy: which are open, what they reserve, and how credits of a grant come to be held.

use super::Work;
use crate::domain::commands::refusal::Refusal;
use crate::domain::credits::Credits;
use crate::domain::event::GrantShare;
use crate::domain::hold::{Hold, OpenHold};
use crate::domain::ids::{GrantId, HoldId};
use crate::domain::ledger::Account;
use crate::domain::rejection::Rejection;
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;

impl<'a> Work<'a> {
    pub(in crate::domain::commands) fn open_hold(&self, hold_id: HoldId) -> Option<&'a OpenHold> {
        let index = self.state.holds.binary_search_by_key(&hold_id, |open| open.hold.hold_id).ok()?;
        self.state.holds.get(index)
    }

    pub(in crate::domain::commands) fn change_hold(&mut self, hold: Hold) {
        self.effects.changed_holds.insert(hold.hold_id, hold);
    }

    /// The open holds with the changes so far, without one that this command places.
    fn open_holds(&self) -> impl Iterator<Item = &Hold> {
        let changed = &self.effects.changed_holds;
        let holds = self.state.holds.iter().map(|open| changed.get(&open.hold.hold_id).unwrap_or(&open.hold));
        holds.filter(|hold| hold.is_open())
    }

    /// What open holds reserve for a feature.
    pub(in crate::domain::commands) fn held_on(&self, feature_code: &FeatureCode) -> Credits {
        let held = self.open_holds().filter(|hold| hold.feature_code == *feature_code).map(|hold| hold.amount);
        held.fold(Credits::ZERO, Credits::saturating_plus)
    }

    /// What open holds reserve of the overdraft.
    pub(super) fn held_overdraft(&self) -> Credits {
        let placed = self.effects.placed_hold.iter().map(|placed| &placed.hold);
        let held = self.open_holds().chain(placed).map(|hold| hold.overdraft);
        held.fold(Credits::ZERO, Credits::saturating_plus)
    }

    /// Reserves credits of a grant.
    pub(in crate::domain::commands) fn hold_grant(
        &mut self,
        index: usize,
        amount: Credits,
    ) -> Result<GrantId, Refusal> {
        let now = self.now();
        let grant = self.change_grant(index).ok_or(Rejection::BalanceOutOfRange)?;
        debug_assert!(amount <= grant.remaining, "a grant never goes below zero");
        (grant.remaining, grant.held) = (grant.remaining.minus(amount)?, grant.held.plus(amount)?);
        let grant_id = grant.grant_id;
        self.book(Account::Grant(grant_id), Account::Held(grant_id), amount, now)?;
        Ok(grant_id)
    }

    /// Moves reserved credits of a grant to the credit account, which may be the grant itself.
    pub(in crate::domain::commands) fn debit_held(
        &mut self,
        grant_id: GrantId,
        amount: Credits,
        credit: Account,
        effective_at: Timestamp,
    ) -> Result<GrantShare, Refusal> {
        let found = self.grants().find(|(_, grant)| grant.grant_id == grant_id).map(|(index, _)| index);
        let grant = found.and_then(|index| self.change_grant(index)).ok_or(Rejection::BalanceOutOfRange)?;
        debug_assert!(amount <= grant.held, "a hold takes what it has reserved");
        grant.held = grant.held.minus(amount)?;
        if credit == Account::Grant(grant_id) {
            grant.remaining = grant.remaining.plus(amount)?;
        }
        let share = GrantShare { grant_id, source: grant.source, credits: amount };
        self.book(Account::Held(grant_id), credit, amount, effective_at)?;
        Ok(share)
    }
}
