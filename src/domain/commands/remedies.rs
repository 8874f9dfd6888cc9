//! Remedies: what would make a refused deduction or hold succeed.
//!
//! Each candidate is tried: the state is changed as the remedy says, and the same command is decided on it. Only what is
//! then accepted is told.

use std::sync::Arc;

use super::command::Command;
use super::decide::{Decision, decide};
use super::envelope::Envelope;
use super::process_subscription_change::ProcessSubscriptionChange;
use super::purchase_credits::PurchaseCredits;
use crate::domain::credits::{Credits, PositiveCredits};
use crate::domain::event::LimitScope;
use crate::domain::explanation::{MAX_PLANS_NAMED, Remedy};
use crate::domain::grant::Currency;
use crate::domain::plan::PlanVersion;
use crate::domain::rejection::Rejection;
use crate::domain::snapshot::{CataloguePlan, Snapshot, WorkspaceState};
use crate::domain::subscription::{CreditPolicy, Effective};
use crate::domain::text::PaymentReference;
use crate::domain::time::Timestamp;

/// At how many instants a refused command is tried again.
const MAX_INSTANTS: usize = 8;

/// What would help a refused command. Empty if it is no deduction and no hold.
pub(in crate::domain) fn remedies(snapshot: &Snapshot, envelope: &Envelope, rejection: &Rejection) -> Vec<Remedy> {
    let Some(state) = snapshot.workspaces.get(&envelope.workspace_id) else { return Vec::new() };
    let refused = Refused { snapshot, envelope, state };
    let mut found = Vec::new();
    found.extend(refused.wait());
    if let Rejection::InsufficientCredits { requested, available } = rejection {
        found.extend(refused.buy(requested.minus_or_zero(*available)));
    }
    if let Rejection::LimitExceeded { scope, used, held, requested, .. } = rejection {
        let needed = used.saturating_plus(*held).saturating_plus(*requested);
        found.extend(refused.raise_limit(*scope, needed));
    }
    found.extend(refused.change_plan());
    found
}

/// A refused command, and what it was decided on.
#[derive(Clone, Copy)]
struct Refused<'a> {
    snapshot: &'a Snapshot,
    envelope: &'a Envelope,
    state: &'a WorkspaceState,
}

impl Refused<'_> {
    /// Whether the command is accepted on another state, at that instant.
    fn passes(self, state: WorkspaceState, at: Timestamp) -> bool {
        let snapshot = Snapshot {
            workspaces: [(self.envelope.workspace_id, Box::new(state))].into(),
            features: self.snapshot.features.clone(),
            ..Snapshot::default()
        };
        let envelope = Envelope { received_at: at, ..self.envelope.clone() };
        matches!(decide(&snapshot, &envelope), Decision::Accepted { .. })
    }

    /// The state after another command of now. None if it is refused.
    fn after(self, command: Command, plans: impl IntoIterator<Item = Arc<PlanVersion>>) -> Option<WorkspaceState> {
        let plan = |newest: Arc<PlanVersion>| (newest.plan_code.clone(), CataloguePlan { newest, is_offered: true });
        let snapshot = Snapshot {
            workspaces: [(self.envelope.workspace_id, Box::new(self.state.clone()))].into(),
            plans: plans.into_iter().map(plan).collect(),
            ..Snapshot::default()
        };
        let decision = decide(&snapshot, &Envelope { command, ..self.envelope.clone() });
        let Decision::Accepted { effects, .. } = decision else { return None };
        let mut state = self.state.clone();
        state.apply(*effects);
        Some(state)
    }

    /// The first instant at which what changes by itself is enough.
    fn wait(self) -> Option<Remedy> {
        let now = self.envelope.received_at;
        let is_later = |at: &Timestamp| *at > now;
        let begins = self.state.grants.iter().map(|grant| grant.effective_at);
        let expires = self.state.holds.iter().map(|open| open.hold.expires_at);
        let period = self.state.subscription.is_active().then_some(self.state.subscription.period.end);
        let mut instants: Vec<_> =
            begins.chain(expires).chain(period).chain(self.window_end()).filter(is_later).collect();
        instants.sort_unstable();
        instants.dedup();
        instants.truncate(MAX_INSTANTS);
        // The end of the period is tried in any case.
        instants.extend(period.filter(|end| !instants.contains(end) && *end > now));
        let at = instants.into_iter().find(|at| self.passes(self.state.clone().as_of(*at), *at))?;
        Some(Remedy::WaitUntil { at })
    }

    /// The end of the rate window that the command falls into.
    fn window_end(self) -> Option<Timestamp> {
        let window = i64::from(self.state.plan.rate_limit?.window_s.max(1)) * 1_000_000;
        let start = self.envelope.received_at.max(self.state.credits.rate_window_start).micros().div_euclid(window);
        Some(Timestamp::from_micros(start.saturating_add(1).saturating_mul(window)))
    }

    fn buy(self, missing: Credits) -> Option<Remedy> {
        let now = self.envelope.received_at;
        // What was lent beyond the overdraft of now has to be repaid first.
        let with_debt = missing.saturating_plus(self.state.credits.debt_credits);
        let is_enough = |credits: &Credits| {
            let Some(credits) = PositiveCredits::new(*credits) else { return false };
            let purchase = PurchaseCredits {
                credits,
                bonus_credits: None,
                amount_minor: 0,
                currency: Currency::EUR,
                payment_reference: PaymentReference::from_stored(""),
                expires_at: None,
            };
            let after = self.after(Command::PurchaseCredits(purchase), []);
            after.is_some_and(|state| self.passes(state, now))
        };
        [missing, with_debt].into_iter().find(is_enough).map(|credits| Remedy::BuyCredits { credits })
    }

    fn raise_limit(self, limit_scope: LimitScope, credits: Credits) -> Option<Remedy> {
        let mut state = self.state.clone();
        match (limit_scope, self.envelope.command.feature_code()) {
            (LimitScope::Workspace, _) => state.workspace.monthly_limit_override = Some(credits),
            (LimitScope::Feature, Some(code)) => {
                state.feature_overrides.entry(code.clone()).or_default().limit = Some(credits);
            }
            (LimitScope::Feature | LimitScope::Window, _) => return None,
        }
        self.passes(state, self.envelope.received_at).then_some(Remedy::RaiseLimit { limit_scope, credits })
    }

    /// The offered plans that help, those with the smallest allowance first.
    fn change_plan(self) -> Vec<Remedy> {
        let now = self.envelope.received_at;
        let current = &self.state.subscription;
        let is_another = |plan: &&Arc<PlanVersion>| {
            let same = (&plan.plan_code, plan.version) == (&current.plan_code, current.plan_version);
            !(same && current.is_active())
        };
        let mut plans: Vec<_> = self.snapshot.offered_plans.iter().filter(is_another).collect();
        plans.sort_by(|one, other| (one.allowance, &one.plan_code).cmp(&(other.allowance, &other.plan_code)));
        let helps = |plan: &&Arc<PlanVersion>| {
            let policy = [CreditPolicy::Full, CreditPolicy::Restart].into_iter().find(|credit_policy| {
                let change = ProcessSubscriptionChange {
                    plan_code: plan.plan_code.clone(),
                    effective: Effective::Immediate,
                    credit_policy: *credit_policy,
                    expected_version: None,
                };
                let after = self.after(Command::ProcessSubscriptionChange(change), [Arc::clone(plan)]);
                after.is_some_and(|state| self.passes(state, now))
            });
            let (plan_code, plan_version) = (plan.plan_code.clone(), plan.version);
            policy.map(|credit_policy| Remedy::ChangePlan { plan_code, plan_version, credit_policy })
        };
        plans.iter().filter_map(helps).take(MAX_PLANS_NAMED).collect()
    }
}
