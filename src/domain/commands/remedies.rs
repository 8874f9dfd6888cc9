//! Remedies: what would make a refused deduction or hold succeed.
//!
//! Each candidate is tried: the state is changed as the remedy says, and the same command is decided on it. Only remedies
//! that are then accepted are listed. How much is tried is bounded, because a caller may be refused again and again.

use std::collections::HashMap;
use std::sync::Arc;

use super::command::Command;
use super::effects::Effects;
use super::envelope::Envelope;
use super::process_subscription_change::ProcessSubscriptionChange;
use super::purchase_credits::PurchaseCredits;
use super::request::Request;
use super::work::Work;
use crate::domain::credits::{Credits, PositiveCredits};
use crate::domain::event::LimitScope;
use crate::domain::explanation::{MAX_PLANS_NAMED, Remedy};
use crate::domain::grant::Currency;
use crate::domain::plan::{LimitMode, PlanVersion};
use crate::domain::rejection::Rejection;
use crate::domain::snapshot::{CataloguePlan, Snapshot, WorkspaceState};
use crate::domain::subscription::{CreditPolicy, Effective};
use crate::domain::text::PaymentReference;
use crate::domain::time::Timestamp;

/// At how many instants a refused command is tried again, besides the end of the period.
const MAX_INSTANTS: usize = 32;
/// How many plans are tried.
const MAX_PLANS_TRIED: usize = 2 * MAX_PLANS_NAMED;

/// What would help a refused command. Empty if it is no deduction and no hold.
pub(in crate::domain) fn remedies(snapshot: &Snapshot, envelope: &Envelope, rejection: &Rejection) -> Vec<Remedy> {
    let Some(state) = snapshot.workspaces.get(&envelope.workspace_id) else { return Vec::new() };
    let refused = Refused { snapshot, envelope, state };
    let mut found = Vec::new();
    found.extend(refused.wait(rejection));
    if let Rejection::InsufficientCredits { requested, available } = rejection {
        found.extend(refused.buy(requested.minus_or_zero(*available)));
    }
    if let Rejection::LimitExceeded { scope, used, held, requested, .. } = rejection {
        let needed = used.saturating_plus(*held).saturating_plus(*requested);
        found.extend(refused.raise_limit(*scope, needed));
    }
    found.extend(refused.change_plan(rejection));
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
    fn request(self, at: Timestamp) -> Request<'static> {
        let (command_id, workspace_id) = (self.envelope.message_id, self.envelope.workspace_id);
        Request { command_id, workspace_id, received_at: at, metadata: None }
    }

    /// Whether the command is accepted on another state, at that instant.
    fn passes(self, state: &WorkspaceState, at: Timestamp) -> bool {
        let (request, features) = (self.request(at), &self.snapshot.features);
        let work = Work::new(state, &request);
        match &self.envelope.command {
            Command::DeductCredits(command) => command.decide(work, &request, features).is_ok(),
            Command::PlaceHold(command) => command.decide(work, &request, features).is_ok(),
            _ => false,
        }
    }

    /// Whether it is accepted now on the state with these effects.
    fn passes_after(self, effects: Effects) -> bool {
        let mut state = self.state.clone();
        state.apply(effects);
        self.passes(&state, self.envelope.received_at)
    }

    /// The earliest instant at which the request would pass without anybody's help.
    fn wait(self, rejection: &Rejection) -> Option<Remedy> {
        let now = self.envelope.received_at;
        let mut instants = self.changes(rejection);
        instants.extend(self.window_end());
        let period = self.state.subscription.is_active().then_some(self.state.subscription.period.end);
        instants.extend(period.filter(|_| self.period_may_help(rejection)));
        instants.retain(|at| *at > now);
        instants.sort_unstable();
        let mut state = self.state.clone();
        for at in instants {
            state = state.as_of(at);
            if self.passes(&state, at) {
                return Some(Remedy::WaitUntil { at });
            }
        }
        None
    }

    /// When grants begin and holds expire, from the first instant on at which that may be enough.
    fn changes(self, rejection: &Rejection) -> Vec<Timestamp> {
        let missing = match rejection {
            Rejection::InsufficientCredits { requested, available } => requested.minus_or_zero(*available),
            Rejection::LimitExceeded { limit, used, held, requested, .. } => {
                used.saturating_plus(*held).saturating_plus(*requested).minus_or_zero(*limit)
            }
            Rejection::RateExceeded { .. } => return Vec::new(),
            _ => Credits::ZERO,
        };
        let begins = self.state.grants.iter().map(|grant| (grant.effective_at, grant.remaining));
        let expires = self.state.holds.iter().map(|open| (open.hold.expires_at, open.hold.amount));
        let is_later = |(at, _): &(Timestamp, Credits)| *at > self.envelope.received_at;
        let mut changes: Vec<_> = begins.chain(expires).filter(is_later).collect();
        changes.sort_unstable();
        let mut sum = Credits::ZERO;
        let mut is_enough = |(at, credits): (Timestamp, Credits)| {
            sum = sum.saturating_plus(credits);
            (sum >= missing).then_some(at)
        };
        let mut instants: Vec<_> = changes.into_iter().filter_map(&mut is_enough).collect();
        instants.dedup();
        instants.truncate(MAX_INSTANTS);
        instants
    }

    /// Whether the end of the period is worth trying. Passing it is costly where many holds expire before.
    fn period_may_help(self, rejection: &Rejection) -> bool {
        let Rejection::InsufficientCredits { requested, .. } = rejection else { return true };
        let plans = [Some(&self.state.plan), self.state.pending_plan()];
        let plans = plans.into_iter().flatten();
        let of_plans = plans.map(|plan| plan.allowance.saturating_plus(plan.overdraft_limit));
        let of_grants = self.state.grants.iter().map(|grant| grant.remaining.saturating_plus(grant.held));
        let own = self.state.workspace.overdraft_limit_override.unwrap_or(Credits::ZERO);
        of_plans.chain(of_grants).fold(own, Credits::saturating_plus) >= *requested
    }

    /// The end of the rate window that the command falls into.
    fn window_end(self) -> Option<Timestamp> {
        let window = i64::from(self.state.plan.rate_limit?.window_s.max(1)) * 1_000_000;
        let start = self.envelope.received_at.max(self.state.credits.rate_window_start).micros().div_euclid(window);
        Some(Timestamp::from_micros(start.saturating_add(1).saturating_mul(window)))
    }

    fn buy(self, missing: Credits) -> Option<Remedy> {
        let request = self.request(self.envelope.received_at);
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
            let decided = purchase.decide(Work::new(self.state, &request), &request, &HashMap::new());
            decided.is_ok_and(|(effects, _)| self.passes_after(effects))
        };
        // The debt beyond what is agreed, or held, has to be repaid first: what it lends ends with it.
        let credits = &self.state.credits;
        let beyond =
            credits.overdraft_limit.minus_or_zero(self.state.agreed_overdraft().max(self.state.held_overdraft()));
        let candidates = [missing, missing.saturating_plus(beyond.min(credits.debt_credits))];
        candidates.into_iter().find(is_enough).map(|credits| Remedy::BuyCredits { credits })
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
        self.passes(&state, self.envelope.received_at).then_some(Remedy::RaiseLimit { limit_scope, credits })
    }

    /// The offered plans that help, those with the smallest allowance first.
    fn change_plan(self, rejection: &Rejection) -> Vec<Remedy> {
        let current = &self.state.subscription;
        let is_another = |plan: &&Arc<PlanVersion>| {
            let same = (&plan.plan_code, plan.version) == (&current.plan_code, current.plan_version);
            !(same && current.is_active())
        };
        let plans = self.snapshot.offered_plans.iter().filter(is_another);
        let mut plans: Vec<_> = plans.filter(|plan| self.may_help(plan, rejection)).collect();
        plans.sort_by(|one, other| (one.allowance, &one.plan_code).cmp(&(other.allowance, &other.plan_code)));
        let tried = plans.into_iter().take(MAX_PLANS_TRIED);
        tried.filter_map(|plan| self.change_to(plan)).take(MAX_PLANS_NAMED).collect()
    }

    /// Whether it is worth trying: a plan that cannot help is found out at no cost.
    fn may_help(self, plan: &PlanVersion, rejection: &Rejection) -> bool {
        match rejection {
            Rejection::RateExceeded { limit, .. }
            | Rejection::LimitExceeded { scope: LimitScope::Window, limit, .. } => {
                plan.rate_limit.is_none_or(|rate| rate.credits > *limit)
            }
            Rejection::LimitExceeded { scope: LimitScope::Workspace, limit, .. } => {
                let is_hard_below =
                    |of: crate::domain::plan::UsageLimit| of.mode == LimitMode::Hard && of.credits <= *limit;
                // The workspace's own limit stays in force.
                self.state.workspace.monthly_limit_override.is_none() && !plan.monthly_limit.is_some_and(is_hard_below)
            }
            Rejection::InsufficientCredits { requested, .. } => {
                let left = self.state.grants.iter().map(|grant| grant.remaining);
                let all = left.fold(plan.allowance.saturating_plus(plan.overdraft_limit), Credits::saturating_plus);
                let own = self.state.workspace.overdraft_limit_override.unwrap_or(Credits::ZERO);
                all.saturating_plus(own) >= *requested || self.envelope.command.is_by_quantity()
            }
            Rejection::TooManyHolds(_) | Rejection::HoldSpansTooManyGrants(_) => false,
            _ => true,
        }
    }

    fn change_to(self, plan: &Arc<PlanVersion>) -> Option<Remedy> {
        let request = self.request(self.envelope.received_at);
        let offered = CataloguePlan { newest: Arc::clone(plan), is_offered: true };
        let plans = HashMap::from([(plan.plan_code.clone(), offered)]);
        let helps = |credit_policy: &CreditPolicy| {
            let change = ProcessSubscriptionChange {
                plan_code: plan.plan_code.clone(),
                effective: Effective::Immediate,
                credit_policy: *credit_policy,
                expected_version: None,
            };
            let decided = change.decide(Work::new(self.state, &request), &plans);
            decided.is_ok_and(|(effects, _)| self.passes_after(effects))
        };
        let credit_policy = [CreditPolicy::Full, CreditPolicy::Restart].into_iter().find(helps)?;
        let (plan_code, plan_version) = (plan.plan_code.clone(), plan.version);
        Some(Remedy::ChangePlan { plan_code, plan_version, credit_policy })
    }
}
