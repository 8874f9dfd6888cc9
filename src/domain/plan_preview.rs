//! What a change of plan changes for a workspace: its credits, limits and prices before and after.

use std::collections::BTreeSet;

use serde::Serialize;
use utoipa::ToSchema;

use super::commands::available_credits;
use super::credits::Credits;
use super::plan::{FeatureTerms, PlanVersion, RateLimit, UsageLimit};
use super::snapshot::WorkspaceState;
use super::text::{FeatureCode, PlanCode};
use super::time::Timestamp;
use super::workspace::feature_terms;

/// What a change of plan changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PlanPreview {
    pub before: PlanSituation,
    /// After an immediate change. Of a change at the end of the period: the terms that hold from then on, and the credits
    /// of now.
    pub after: PlanSituation,
    /// The holds that stay open, each at the price that it was placed at.
    pub open_holds: OpenHolds,
}

/// The credits of a workspace, and the terms that hold for it: those of its plan and its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PlanSituation {
    pub plan_code: PlanCode,
    pub plan_version: i32,
    /// The balance.
    pub current_credits: Credits,
    /// What can be spent now, whatever the feature.
    pub available_credits: Credits,
    /// The maximum of the debt.
    pub overdraft_limit: Credits,
    /// The limit of what is used in a billing period, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_limit: Option<UsageLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// The features of both plans, and those with terms of the workspace's own: the same before and after, in the order of
    /// their codes.
    pub features: Vec<FeatureSituation>,
}

/// The terms that hold for a feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FeatureSituation {
    pub feature_code: FeatureCode,
    pub enabled: bool,
    /// Credits per unit. Without it, a deduction must give `credits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit_price: Option<Credits>,
    /// The limit of a billing period, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<UsageLimit>,
}

/// The open holds of a workspace together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct OpenHolds {
    pub count: i16,
    pub credits: Credits,
}

impl PlanPreview {
    /// From the states before and after the command.
    #[must_use]
    pub fn new(before: &WorkspaceState, after: &WorkspaceState, now: Timestamp) -> Self {
        let new_plan = after.pending_plan().unwrap_or(&after.plan);
        let own = after.feature_overrides.keys();
        let codes: BTreeSet<_> = before.plan.features.keys().chain(new_plan.features.keys()).chain(own).collect();
        let credits = &after.credits;
        let mut preview = Self {
            before: PlanSituation::new(before, &before.plan, &codes, now),
            after: PlanSituation::new(after, new_plan, &codes, now),
            open_holds: OpenHolds { count: credits.open_holds, credits: credits.held_credits },
        };
        if after.pending_plan().is_some() {
            preview.after.overdraft_limit = after.workspace.overdraft_limit(new_plan);
        }
        preview
    }
}

impl PlanSituation {
    /// The credits of a state, and the terms of a plan for its workspace. An ended subscription has no limits.
    fn new(state: &WorkspaceState, plan: &PlanVersion, codes: &BTreeSet<&FeatureCode>, now: Timestamp) -> Self {
        let is_active = state.subscription.is_active();
        let monthly_limit = state.workspace.monthly_limit(plan);
        let feature = |code: &FeatureCode| {
            let terms = feature_terms(plan, &state.feature_overrides, code);
            let FeatureTerms { enabled, unit_price, limit } = terms.unwrap_or_default();
            FeatureSituation { feature_code: code.clone(), enabled, unit_price, limit: limit.filter(|_| is_active) }
        };
        Self {
            plan_code: plan.plan_code.clone(),
            plan_version: plan.version,
            current_credits: state.credits.current_credits,
            available_credits: available_credits(state, now),
            overdraft_limit: state.credits.overdraft_limit,
            monthly_limit: monthly_limit.filter(|_| is_active),
            rate_limit: plan.rate_limit.filter(|_| is_active),
            features: codes.iter().map(|code| feature(code)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::plan::tests::pro;
    use crate::domain::subscription::{CreditPolicy, Effective};
    use crate::domain::tests::World;

    /// Without the limited feature of `pro`, with a rate limit and an overdraft.
    fn scale() -> PlanVersion {
        let mut plan = PlanVersion {
            plan_code: PlanCode::new("scale").unwrap(),
            allowance: Credits::whole(3000),
            overdraft_limit: Credits::whole(70),
            rate_limit: Some(RateLimit { credits: Credits::whole(10), window_s: 60 }),
            ..pro()
        };
        plan.features.remove("upscale");
        plan
    }

    /// The preview of a change to the other plan.
    fn previewed(world: &mut World, effective: Effective) -> Value {
        let before = world.state().clone();
        world.change("scale", effective, CreditPolicy::Full).accepted();
        serde_json::to_value(PlanPreview::new(&before, world.state(), world.now)).unwrap()
    }

    #[test]
    fn a_change_now_shows_its_credits_and_one_at_the_end_of_the_period_those_of_now() {
        for (effective, credits, available) in
            [(Effective::Immediate, "3000", "3070"), (Effective::PeriodEnd, "1000", "1000")]
        {
            let mut world = World::on(pro());
            world.add_plan(scale());
            let preview = previewed(&mut world, effective);
            let upscale = |enabled: bool| {
                if enabled {
                    let limit = json!({"credits": "50", "mode": "hard"});
                    json!({"feature_code": "upscale", "enabled": true, "unit_price": "2", "limit": limit})
                } else {
                    json!({"feature_code": "upscale", "enabled": false})
                }
            };
            let render = json!({"feature_code": "render", "enabled": true, "unit_price": "0.5"});
            let before = json!({
                "plan_code": "pro", "plan_version": 1, "current_credits": "1000", "available_credits": "1000",
                "overdraft_limit": "0", "features": [render, upscale(true)]
            });
            let after = json!({
                "plan_code": "scale", "plan_version": 1, "current_credits": credits, "available_credits": available,
                "overdraft_limit": "70", "rate_limit": {"credits": "10", "window_s": 60},
                "features": [render, upscale(false)]
            });
            let open_holds = json!({"count": 0, "credits": "0"});
            assert_eq!(preview, json!({"before": before, "after": after, "open_holds": open_holds}));
        }
    }

    #[test]
    fn an_ended_subscription_has_no_limits_before_it_begins_again() {
        let mut world = World::on(pro());
        world.add_plan(scale());
        world.cancel(Effective::Immediate).accepted();
        let preview = previewed(&mut world, Effective::Immediate);
        assert_eq!(
            preview["before"]["features"][1],
            json!({"feature_code": "upscale", "enabled": true, "unit_price": "2"})
        );
        assert_eq!(
            (&preview["before"]["current_credits"], &preview["after"]["current_credits"]),
            (&json!("0"), &json!("3000"))
        );
    }
}
