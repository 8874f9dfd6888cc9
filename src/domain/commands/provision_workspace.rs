//! ProvisionWorkspace: creates a workspace and subscribes it to its first plan.

use std::sync::Arc;

use chrono::TimeDelta;
use chrono_tz::Tz;

use super::boundary::begin_period;
use super::effects::Effects;
use super::refusal::Refusal;
use super::request::Request;
use super::work::Work;
use crate::domain::credits::Credits;
use crate::domain::event::WorkspaceProvisioned;
use crate::domain::ids::SubscriptionId;
use crate::domain::period::Schedule;
use crate::domain::plan::PlanVersion;
use crate::domain::receipt::{ProvisionReceipt, Receipt, SubscriptionView};
use crate::domain::rejection::Rejection;
use crate::domain::snapshot::{Snapshot, WorkspaceState};
use crate::domain::subscription::{Subscription, SubscriptionStatus};
use crate::domain::text::{IdempotencyKey, Label, PlanCode};
use crate::domain::time::Timestamp;
use crate::domain::workspace::{FeatureOverrides, Workspace, WorkspaceCredits};

/// Creates a workspace and subscribes it to its first plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvisionWorkspace {
    pub name: Label,
    pub plan_code: PlanCode,
    pub time_zone: Tz,
    /// The instant that billing periods are counted from, not in the future. Default: now.
    pub anchor: Option<Timestamp>,
    pub monthly_limit: Option<Credits>,
    pub overdraft_limit: Option<Credits>,
    pub feature_overrides: FeatureOverrides,
}

impl ProvisionWorkspace {
    /// The idempotency key is the same for every workspace, so a workspace is created once.
    #[must_use]
    pub fn idempotency_key() -> IdempotencyKey {
        IdempotencyKey::system(format_args!("provision"))
    }

    pub(super) fn decide(&self, snapshot: &Snapshot, request: &Request<'_>) -> Result<(Effects, Receipt), Refusal> {
        let now = request.received_at;
        let unknown = || Rejection::PlanNotFound(self.plan_code.clone());
        let wanted = snapshot.plans.get(&self.plan_code).ok_or_else(unknown)?;
        if !wanted.is_offered {
            return Err(Rejection::PlanNotOffered(self.plan_code.clone()).into());
        }
        let plan = Arc::clone(&wanted.newest);
        if self.anchor.is_some_and(|anchor| anchor > now) {
            return Err(Rejection::TimeOutOfRange { pointer: "/anchor", detail: "must not be in the future" }.into());
        }
        let state = self.initial_state(request, &plan);
        let mut work = Work::new(&state, request);
        work.update_overdraft_limit();
        let reset = begin_period(&mut work, state.subscription.period)?;
        work.effects_mut().workspace = Some(state.workspace.clone());
        work.effects_mut().feature_overrides = self.feature_overrides.clone();
        // `WorkspaceProvisioned` reports the first period.
        work.effects_mut().events.clear();
        work.raise(WorkspaceProvisioned {
            name: self.name.clone(),
            time_zone: self.time_zone.name().to_owned(),
            plan_code: plan.plan_code.clone(),
            plan_version: plan.version,
            period: reset.period,
            granted: reset.granted,
            current_credits: reset.current_credits,
        });
        // Marks the subscription as changed, so that its row is inserted.
        work.change_subscription();
        let receipt = ProvisionReceipt {
            command_id: work.command_id(),
            workspace_id: request.workspace_id,
            name: self.name.clone(),
            time_zone: self.time_zone.name().to_owned(),
            subscription: SubscriptionView::from(work.subscription()),
            current_credits: work.credits().current_credits,
            recorded_at: now,
        };
        let mut effects = work.finish_without_warning();
        effects.plan = Some(plan);
        Ok((effects, Receipt::Provisioned(receipt)))
    }

    /// The workspace before its first period: the agreed overrides and no credits.
    fn initial_state(&self, request: &Request<'_>, plan: &Arc<PlanVersion>) -> WorkspaceState {
        let (now, workspace_id) = (request.received_at, request.workspace_id);
        let anchor = self.anchor.unwrap_or(now);
        // The command creates one subscription, so its id can be the subscription's id too.
        let subscription_id = SubscriptionId(request.command_id.0);
        let schedule = Schedule { anchor, zone: self.time_zone };
        WorkspaceState {
            workspace: Workspace {
                workspace_id,
                name: self.name.clone(),
                time_zone: self.time_zone,
                monthly_limit_override: self.monthly_limit,
                overdraft_limit_override: self.overdraft_limit,
                metadata: request.metadata.cloned(),
                created_at: now,
            },
            // A command is recorded later than the one before it. One microsecond earlier, so that this first
            // command is recorded when it is received.
            credits: WorkspaceCredits::new(workspace_id, now.minus(TimeDelta::microseconds(1))),
            subscription: Subscription {
                workspace_id,
                subscription_id,
                plan_code: plan.plan_code.clone(),
                plan_version: plan.version,
                status: SubscriptionStatus::Active,
                billing_anchor: anchor,
                period: schedule.containing(now, plan.period_months),
                version: 1,
                pending_change: None,
                canceled_at: None,
                updated_at: now,
            },
            plan: Arc::clone(plan),
            pending_plan: None,
            feature_overrides: self.feature_overrides.clone(),
            counters: Vec::new(),
            grants: Vec::new(),
            holds: Vec::new(),
        }
    }
}
