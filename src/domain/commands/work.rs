//! The working copy that a command decides on: the state of one workspace, and the changes so far.
//!
//! It borrows the state and copies only what changes: a deduction from a workspace with a thousand grants
//! copies only the grants that it spends. Only [`Work::book`] writes ledger entries and changes the balance.

mod holds;

use std::sync::Arc;

use uuid::Uuid;

use super::effects::Effects;
use super::refusal::Refusal;
use super::request::Request;
use crate::domain::counter::{CounterSubject, UsageCounter};
use crate::domain::credits::Credits;
use crate::domain::event::{DebtRepaid, EventData, GrantShare, LowCreditWarning, ScheduledKind};
use crate::domain::grant::{CostBasis, Grant, GrantSource, Priority};
use crate::domain::ids::{CommandId, EventId, GrantId, IdSequence};
use crate::domain::ledger::{Account, Accounts, LedgerEntry};
use crate::domain::metadata::Metadata;
use crate::domain::plan::{FeatureTerms, PlanVersion, PurchasedOnCancel};
use crate::domain::receipt::{InternalReceipt, Receipt};
use crate::domain::rejection::Rejection;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::subscription::{PendingChange, Subscription};
use crate::domain::text::{FeatureCode, Label, PaymentReference};
use crate::domain::time::{CommandTimes, Timestamp};
use crate::domain::workspace::{FeatureOverrides, Workspace, WorkspaceCredits, feature_terms};

/// One workspace while a command is being decided.
pub(super) struct Work<'a> {
    state: &'a WorkspaceState,
    command_id: CommandId,
    times: CommandTimes,
    ids: IdSequence,
    effects: Effects,
    /// What grants have repaid of the debt.
    repaid: Vec<GrantShare>,
}

/// What a new grant needs beyond its source and amount.
pub(super) struct GrantTerms {
    /// By default one that is derived from the command's.
    pub grant_id: Option<GrantId>,
    pub effective_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub priority: Priority,
    pub feature_scope: Option<FeatureCode>,
    pub payment: Option<(PaymentReference, CostBasis)>,
    pub reason: Option<Label>,
    pub metadata: Option<Arc<Metadata>>,
}

impl GrantTerms {
    pub(super) fn new(effective_at: Timestamp, expires_at: Option<Timestamp>) -> Self {
        Self {
            grant_id: None,
            effective_at,
            expires_at,
            priority: Priority::default(),
            feature_scope: None,
            payment: None,
            reason: None,
            metadata: None,
        }
    }
}

impl<'a> Work<'a> {
    pub(super) fn new(state: &'a WorkspaceState, request: &Request<'_>) -> Self {
        let times = state.times(request.received_at);
        Self {
            state,
            command_id: request.command_id,
            times,
            ids: IdSequence::new(request.command_id),
            effects: Effects::unchanged(state, times.recorded_at),
            repaid: Vec::new(),
        }
    }

    /// When the command was received: see [`CommandTimes`].
    pub(super) fn now(&self) -> Timestamp {
        self.times.now
    }

    /// The instant of everything that the command records.
    pub(super) fn recorded_at(&self) -> Timestamp {
        self.times.recorded_at
    }

    pub(super) fn command_id(&self) -> CommandId {
        self.command_id
    }

    pub(super) fn workspace(&self) -> &'a Workspace {
        &self.state.workspace
    }

    pub(super) fn credits_mut(&mut self) -> &mut WorkspaceCredits {
        &mut self.effects.credits
    }

    pub(super) fn credits(&self) -> &WorkspaceCredits {
        &self.effects.credits
    }

    pub(super) fn effects_mut(&mut self) -> &mut Effects {
        &mut self.effects
    }

    pub(super) fn plan(&self) -> &Arc<PlanVersion> {
        self.effects.plan.as_ref().unwrap_or(&self.state.plan)
    }

    pub(super) fn pending_plan(&self) -> Option<&Arc<PlanVersion>> {
        self.state.pending_plan()
    }

    pub(super) fn subscription(&self) -> &Subscription {
        self.effects.subscription.as_ref().unwrap_or(&self.state.subscription)
    }

    pub(super) fn change_subscription(&mut self) -> &mut Subscription {
        let recorded_at = self.recorded_at();
        let subscription = self.effects.subscription.get_or_insert_with(|| self.state.subscription.clone());
        subscription.updated_at = recorded_at;
        subscription
    }

    /// What was scheduled when the command began and is no longer scheduled.
    pub(super) fn withdrawn(&self) -> Option<ScheduledKind> {
        let before = self.state.subscription.pending_change.as_ref()?;
        let after = self.subscription().pending_change.as_ref();
        match (before, after) {
            (PendingChange::Cancel { .. }, Some(PendingChange::Cancel { .. })) => None,
            (PendingChange::Cancel { .. }, _) => Some(ScheduledKind::Cancel),
            (PendingChange::Change { .. }, Some(after)) if after == before => None,
            (PendingChange::Change { .. }, _) => Some(ScheduledKind::Change),
        }
    }

    pub(super) fn feature_overrides(&self) -> &FeatureOverrides {
        &self.state.feature_overrides
    }

    /// The terms of a feature in force. None if neither the plan nor an override has it.
    pub(super) fn feature_terms(&self, code: &FeatureCode) -> Option<FeatureTerms> {
        feature_terms(self.plan(), self.feature_overrides(), code)
    }

    /// The counter of the current period.
    pub(super) fn counter(&self, subject: &CounterSubject) -> UsageCounter {
        let window_start = self.subscription().period.start;
        match self.effects.counters.get(subject).or_else(|| self.state.counter(subject)) {
            Some(counter) => counter.in_window(window_start),
            None => UsageCounter::new(self.state.workspace.workspace_id, subject.clone(), window_start),
        }
    }

    pub(super) fn set_counter(&mut self, counter: UsageCounter) {
        self.effects.counters.insert(counter.subject.clone(), counter);
    }

    /// The grants with the changes so far, each with the index that [`Work::debit_grant`] takes.
    pub(super) fn grants(&self) -> impl Iterator<Item = (usize, &Grant)> {
        let existing = self.state.grants.iter().enumerate();
        let current = existing.map(|(index, grant)| (index, self.effects.changed_grants.get(&index).unwrap_or(grant)));
        let new = self.effects.reopened_grants.iter().chain(&self.effects.added_grants);
        current.chain((self.state.grants.len()..).zip(new))
    }

    pub(super) fn change_grant(&mut self, index: usize) -> Option<&mut Grant> {
        if let Some(added) = index.checked_sub(self.state.grants.len()) {
            return self.effects.reopened_grants.iter_mut().chain(&mut self.effects.added_grants).nth(added);
        }
        let existing = self.state.grants.get(index)?;
        Some(self.effects.changed_grants.entry(index).or_insert_with(|| existing.clone()))
    }

    /// The credits that are frozen until the workspace subscribes again.
    pub(super) fn frozen_credits(&self) -> Credits {
        let is_frozen = |grant: &Grant| !grant.is_expired(self.now()) && self.is_frozen(grant.source);
        let frozen = self.grants().filter(|(_, grant)| is_frozen(grant)).map(|(_, grant)| grant.remaining);
        frozen.fold(Credits::ZERO, Credits::saturating_plus)
    }

    /// Whether credits of this source are frozen now.
    pub(super) fn is_frozen(&self, source: GrantSource) -> bool {
        is_frozen(self.subscription(), self.plan(), source)
    }

    /// Whether this command can spend a grant, whatever its feature scope.
    pub(super) fn is_spendable(&self, grant: &Grant) -> bool {
        grant.is_spendable(self.now()) && !self.is_frozen(grant.source)
    }

    /// The available credits: see [`available_credits`].
    pub(super) fn available(&self) -> Credits {
        let counts = |grant: &Grant| grant.feature_scope.is_none() && self.is_spendable(grant);
        let spendable = self.grants().filter(|(_, grant)| counts(grant)).map(|(_, grant)| grant.remaining);
        spendable.fold(self.overdraft_left(), Credits::saturating_plus)
    }

    pub(super) fn overdraft_left(&self) -> Credits {
        let credits = self.credits();
        credits.overdraft_limit.minus_or_zero(credits.debt_credits).minus_or_zero(self.held_overdraft())
    }

    /// Writes one ledger entry and updates the balance.
    pub(super) fn book(
        &mut self,
        debit: Account,
        credit: Account,
        amount: Credits,
        effective_at: Timestamp,
    ) -> Result<(), Refusal> {
        debug_assert!(amount.is_positive(), "an entry has a positive amount");
        let credits = &mut self.effects.credits;
        if debit.is_in_balance() {
            credits.current_credits = credits.current_credits.minus(amount)?;
        }
        if credit.is_in_balance() {
            credits.current_credits = credits.current_credits.plus(amount)?;
        }
        credits.ledger_seq += 1;
        self.effects.entries.push(LedgerEntry {
            workspace_id: self.state.workspace.workspace_id,
            seq: credits.ledger_seq,
            command_id: self.command_id,
            accounts: Accounts { debit, credit },
            amount,
            balance_after: credits.current_credits,
            recorded_at: self.times.recorded_at,
            effective_at,
        });
        Ok(())
    }

    /// Moves credits from a grant to the credit account.
    pub(super) fn debit_grant(
        &mut self,
        index: usize,
        amount: Credits,
        credit: Account,
        effective_at: Timestamp,
    ) -> Result<GrantShare, Refusal> {
        let grant = self.change_grant(index).ok_or(Rejection::BalanceOutOfRange)?;
        debug_assert!(amount <= grant.remaining, "a grant never goes below zero");
        grant.remaining = grant.remaining.minus(amount)?;
        let share = GrantShare { grant_id: grant.grant_id, source: grant.source, credits: amount };
        self.book(Account::Grant(share.grant_id), credit, amount, effective_at)?;
        Ok(share)
    }

    /// Takes credits from the overdraft.
    pub(super) fn borrow(
        &mut self,
        amount: Credits,
        feature_code: &FeatureCode,
        occurred_at: Timestamp,
    ) -> Result<(), Refusal> {
        self.book(Account::Debt, Account::Consumed(feature_code.clone()), amount, occurred_at)?;
        let credits = self.credits_mut();
        credits.debt_credits = credits.debt_credits.plus(amount)?;
        Ok(())
    }

    /// Moves the parts of an amount that [`split`] has found to the credit account.
    pub(super) fn debit_parts(
        &mut self,
        parts: Vec<(usize, Credits)>,
        credit: &Account,
        effective_at: Timestamp,
    ) -> Result<Vec<GrantShare>, Refusal> {
        parts.into_iter().map(|(index, part)| self.debit_grant(index, part, credit.clone(), effective_at)).collect()
    }

    /// Issues a grant. [`Work::repay_debt`] comes after the last one. The credits count in the balance at once, also where
    /// the grant begins later.
    pub(super) fn issue(
        &mut self,
        source: GrantSource,
        amount: Credits,
        terms: GrantTerms,
    ) -> Result<GrantId, Refusal> {
        self.issue_from(Account::Issued(source), source, amount, terms)
    }

    /// Issues a grant of credits that come from another account.
    pub(super) fn issue_from(
        &mut self,
        debit: Account,
        source: GrantSource,
        amount: Credits,
        terms: GrantTerms,
    ) -> Result<GrantId, Refusal> {
        let grant_id = terms.grant_id.unwrap_or_else(|| GrantId(self.ids.draw()));
        let effective_at = terms.effective_at;
        let (payment_reference, cost_basis) = terms.payment.unzip();
        self.book(debit, Account::Grant(grant_id), amount, effective_at.min(self.now()))?;
        let mut grant = Grant {
            workspace_id: self.state.workspace.workspace_id,
            grant_id,
            source,
            amount,
            remaining: amount,
            held: Credits::ZERO,
            priority: terms.priority.get(),
            effective_at,
            expires_at: terms.expires_at,
            feature_scope: terms.feature_scope,
            payment_reference,
            cost_basis,
            reason: terms.reason,
            metadata: terms.metadata,
            bonus_grant_id: None,
            expiry_warning_at: None,
            created_at: self.recorded_at(),
            issued_seq: self.credits().ledger_seq,
        };
        grant.schedule_expiry_warning(self.plan().expiry_warning_days);
        self.effects.added_grants.push(grant);
        Ok(grant_id)
    }

    /// Notes on a purchase which grant is its bonus.
    pub(super) fn set_bonus(&mut self, grant_id: GrantId, bonus_grant_id: Option<GrantId>) {
        let purchase = self.effects.added_grants.iter_mut().find(|grant| grant.grant_id == grant_id);
        if let Some(purchase) = purchase {
            purchase.bonus_grant_id = bonus_grant_id;
        }
    }

    /// Repays debt from the grants that have begun by then: each when it began, and those that began together in burn
    /// order. Returns how much.
    pub(super) fn repay_debt(&mut self, until: Timestamp) -> Result<Credits, Refusal> {
        self.repay_debt_since(Timestamp::from_micros(i64::MIN), until)
    }

    /// Repays debt that was made then, or with credits that came back to their grants then: in burn order, and after that
    /// with those that have begun since.
    pub(super) fn repay_debt_since(&mut self, since: Timestamp, until: Timestamp) -> Result<Credits, Refusal> {
        let debt = self.credits().debt_credits;
        if debt.is_zero() {
            return Ok(Credits::ZERO);
        }
        let mut grants: Vec<_> = self.grants().filter(|(_, grant)| grant.can_repay_debt(until)).collect();
        let begins = |grant: &Grant| grant.effective_at.max(since);
        grants.sort_by(|(_, one), (_, other)| begins(one).cmp(&begins(other)).then_with(|| one.cmp_burn_order(other)));
        let began_at: Vec<_> = grants.iter().map(|(_, grant)| grant.effective_at).collect();
        let (parts, left) = split(debt, grants.into_iter())?;
        for ((index, part), began_at) in parts.into_iter().zip(began_at) {
            self.repay(index, part, began_at.max(since))?;
        }
        self.update_overdraft_limit();
        Ok(debt.minus(left)?)
    }

    /// Repays debt with credits of one grant that is for any feature. Returns how much.
    pub(super) fn repay_debt_from(
        &mut self,
        index: usize,
        credits: Credits,
        at: Timestamp,
    ) -> Result<Credits, Refusal> {
        let repays = self.grants().any(|(n, grant)| n == index && grant.feature_scope.is_none());
        let part = if repays { credits.min(self.credits().debt_credits) } else { Credits::ZERO };
        if part.is_positive() {
            self.repay(index, part, at)?;
            self.update_overdraft_limit();
        }
        Ok(part)
    }

    fn repay(&mut self, index: usize, part: Credits, at: Timestamp) -> Result<(), Refusal> {
        let share = self.debit_grant(index, part, Account::Debt, at)?;
        let credits = self.credits_mut();
        credits.debt_credits = credits.debt_credits.minus(part)?;
        match self.repaid.iter_mut().find(|repaid| repaid.grant_id == share.grant_id) {
            Some(repaid) => repaid.credits = repaid.credits.plus(part)?,
            None => self.repaid.push(share),
        }
        Ok(())
    }

    fn report_repayment(&mut self) {
        let grants = std::mem::take(&mut self.repaid);
        if !grants.is_empty() {
            let sum = |sum: Credits, share: &GrantShare| sum.saturating_plus(share.credits);
            let (credits, balance) = (grants.iter().fold(Credits::ZERO, sum), self.credits());
            let (debt_credits, current_credits) = (balance.debt_credits, balance.current_credits);
            self.raise(DebtRepaid { credits, grants, debt_credits, current_credits });
        }
    }

    /// Sets the overdraft limit in force: the workspace's own or the plan's, but at least the current debt and what holds
    /// reserve. A lower limit does not make the debt due, and takes nothing from a hold.
    pub(super) fn update_overdraft_limit(&mut self) {
        let limit = if self.subscription().is_active() {
            self.state.workspace.overdraft_limit(self.plan())
        } else {
            Credits::ZERO
        };
        let in_use = self.credits().debt_credits.saturating_plus(self.held_overdraft());
        self.credits_mut().overdraft_limit = limit.max(in_use);
    }

    /// Raises a warning for every threshold that the available credits have reached and that was not reported yet. A
    /// threshold can be reported again once the available credits have been above it, by a command or because a grant has
    /// begun. A command that has increased them never warns.
    fn update_low_credit_alerts(&mut self) {
        let plan = Arc::clone(self.plan());
        // Between two periods there is no allowance. What begins the next period is coming.
        if plan.low_credit_thresholds.is_empty() || self.subscription().is_boundary_due(self.now()) {
            return;
        }
        let available = self.available();
        let mut before = None;
        for (bit, threshold) in plan.low_credit_thresholds.iter().enumerate() {
            let mask = 1_i16 << bit;
            if available > *threshold {
                self.credits_mut().low_credit_alerts &= !mask;
                continue;
            }
            let before = *before.get_or_insert_with(|| available_credits(self.state, self.times.now));
            let is_armed = self.credits().low_credit_alerts & mask == 0 || before > *threshold;
            if is_armed && available <= before {
                self.credits_mut().low_credit_alerts |= mask;
                self.raise(LowCreditWarning {
                    threshold_credits: *threshold,
                    available_credits: available,
                    current_credits: self.credits().current_credits,
                });
            }
        }
    }

    pub(super) fn draw_id(&mut self) -> Uuid {
        self.ids.draw()
    }

    pub(super) fn raise(&mut self, event: impl Into<EventData>) {
        let event_id = EventId(self.ids.draw());
        self.effects.events.push((event_id, event.into()));
    }

    /// Raises the main event of the command, before those of its consequences.
    pub(super) fn raise_first(&mut self, event: impl Into<EventData>) {
        let event_id = EventId(self.ids.draw());
        self.effects.events.insert(0, (event_id, event.into()));
    }

    /// Ends every accepted command: reports what was repaid, updates the low-credit alerts, and returns the effects.
    pub(super) fn finish(mut self) -> Effects {
        self.report_repayment();
        self.update_low_credit_alerts();
        self.effects
    }

    /// Ends a command of the server itself, whose receipt nobody reads.
    pub(super) fn finish_internal(self) -> (Effects, Receipt) {
        let receipt = self.internal_receipt();
        (self.finish(), receipt)
    }

    pub(super) fn internal_receipt(&self) -> Receipt {
        Receipt::Internal(InternalReceipt { command_id: self.command_id, recorded_at: self.recorded_at() })
    }

    /// Ends a command that leaves the available credits as they are, or creates the workspace. However few credits there
    /// are, it warns nobody.
    pub(super) fn finish_without_warning(mut self) -> Effects {
        self.report_repayment();
        self.effects
    }
}

/// Splits an amount among grants, in their order. Returns the part of each, by its index, and what is left.
pub(super) fn split<'g>(
    amount: Credits,
    grants: impl Iterator<Item = (usize, &'g Grant)>,
) -> Result<(Vec<(usize, Credits)>, Credits), Refusal> {
    let (mut left, mut parts) = (amount, Vec::new());
    for (index, grant) in grants {
        if left.is_zero() {
            break;
        }
        let part = left.min(grant.remaining);
        left = left.minus(part)?;
        parts.push((index, part));
    }
    Ok((parts, left))
}

/// Until when due work is looked at: what happened after the end of a period comes after the credits of the next one.
pub(super) fn until_boundary(state: &WorkspaceState, now: Timestamp) -> Timestamp {
    if state.subscription.is_boundary_due(now) { state.subscription.period.end } else { now }
}

/// Whether credits of this source are frozen: the subscription has ended, and its plan freezes them.
fn is_frozen(subscription: &Subscription, plan: &PlanVersion, source: GrantSource) -> bool {
    !subscription.is_active() && plan.purchased_on_cancel == PurchasedOnCancel::Freeze && source.follows_cancel_policy()
}

/// Whether a grant can be spent now, whatever its feature scope.
#[must_use]
pub fn is_spendable(state: &WorkspaceState, grant: &Grant, now: Timestamp) -> bool {
    grant.is_spendable(now) && !is_frozen(&state.subscription, &state.plan, grant.source)
}

/// The credits that could be spent now, whatever the feature: the spendable grants for any feature and the rest of the
/// overdraft.
#[must_use]
pub fn available_credits(state: &WorkspaceState, now: Timestamp) -> Credits {
    let counts = |grant: &&Grant| grant.feature_scope.is_none() && is_spendable(state, grant, now);
    let spendable = state.grants.iter().filter(counts).map(|grant| grant.remaining);
    let overdraft_left = state.credits.overdraft_limit.minus_or_zero(state.credits.debt_credits);
    let overdraft_left = overdraft_left.minus_or_zero(state.held_overdraft());
    spendable.fold(overdraft_left, Credits::saturating_plus)
}
