//! Changes of plan, cancellations and their withdrawal.

use serde_json::json;

use crate::domain::batch::Outcome;
use crate::domain::commands::{
    AdvancePeriod, Command, ProcessSubscriptionChange, ProvisionWorkspace, ResumeSubscription, WarnOfExpiry,
};
use crate::domain::credits::Credits;
use crate::domain::event::EventType::{CreditReset, CreditsExpiring, CreditsPurchased, SubscriptionChanged};
use crate::domain::ids::WorkspaceId;
use crate::domain::plan::tests::pro;
use crate::domain::plan::{PlanVersion, PurchasedOnCancel};
use crate::domain::subscription::{CreditPolicy, Effective, SubscriptionStatus};
use crate::domain::tests::World;
use crate::domain::text::{FeatureCode, Label, PlanCode};
use crate::domain::workspace::{FeatureOverrides, OverrideTerms};

use Effective::{Immediate, PeriodEnd};

fn scale() -> PlanVersion {
    let mut plan = PlanVersion { plan_code: PlanCode::new("scale").unwrap(), allowance: Credits::whole(3000), ..pro() };
    plan.features.remove("upscale");
    plan
}

fn world() -> World {
    let mut world = World::on(pro());
    world.add_plan(scale());
    world
}

#[test]
fn each_credit_policy_gives_its_share_of_a_higher_allowance() {
    // Half of the 28 days are left.
    let table = [
        (CreditPolicy::Prorate, "2000"),
        (CreditPolicy::Full, "3000"),
        (CreditPolicy::None, "1000"),
        (CreditPolicy::Restart, "3200"),
    ];
    for (policy, balance) in table {
        let mut world = world();
        let ran = world.at("2026-02-14T00:00:00Z").change("scale", Immediate, policy).accepted();
        assert_eq!(world.balance(), balance, "{policy:?}");
        assert_eq!(ran.events()[0], SubscriptionChanged);
        assert_eq!(world.state().subscription.version, 2);
    }
}

#[test]
fn a_lower_allowance_removes_unspent_credits_and_reports_the_rest() {
    let mut world = World::on(scale());
    world.add_plan(pro());
    world.purchase("500", "pay-1").accepted();
    world.deduct("render", "2500").accepted();
    let ran = world.change("pro", Immediate, CreditPolicy::Full).accepted();
    assert_eq!(ran.receipt()["credits_removed"], "500");
    assert_eq!(ran.receipt()["credits_uncollected"], "1500");
    assert_eq!(world.balance(), "500", "bought credits are untouched");
}

#[test]
fn going_up_and_down_again_grants_nothing_twice() {
    for policy in [CreditPolicy::Full, CreditPolicy::Prorate] {
        let mut world = world();
        let spend = |world: &mut World| {
            let balance = world.balance();
            if balance != "0" {
                world.deduct("render", &balance).accepted();
            }
        };
        for _ in 0..5 {
            world.change("scale", Immediate, policy).accepted();
            spend(&mut world);
            world.change("pro", Immediate, policy).accepted();
            spend(&mut world);
        }
        assert_eq!(world.state().credits.used_this_month, Credits::whole(3000), "{policy:?}: the larger allowance");
        assert_eq!(world.state().credits.uncollected_credits, Credits::whole(2000));
        world.at("2026-02-28T00:00:00Z").deduct("render", "1").accepted();
        assert_eq!(world.state().credits.uncollected_credits, Credits::ZERO, "a new period begins at zero");
        world.change("scale", Immediate, CreditPolicy::Full).accepted();
        assert_eq!(world.balance(), "2999");
    }
}

#[test]
fn a_change_reports_before_and_after_of_every_changed_feature() {
    let mut world = world();
    let ran = world.change("scale", Immediate, CreditPolicy::None).accepted();
    let features = ran.data(SubscriptionChanged)["features"].clone();
    assert_eq!(features.as_array().unwrap().len(), 1);
    assert_eq!(features[0]["feature_code"], "upscale");
    assert_eq!(features[0]["before"]["enabled"], true);
    assert_eq!(features[0]["after"]["enabled"], false);
    assert_eq!(world.deduct("upscale", "1").code(), "feature-disabled");
}

#[test]
fn a_change_at_the_periods_end_waits_and_then_grants_the_new_allowance() {
    let mut world = world();
    world.change("scale", PeriodEnd, CreditPolicy::None).accepted();
    assert_eq!(world.balance(), "1000");
    let ran = world.at("2026-02-28T00:00:00Z").run(Command::AdvancePeriod(AdvancePeriod)).accepted();
    assert_eq!(ran.events(), [SubscriptionChanged, CreditReset]);
    assert_eq!(world.balance(), "3200");
    assert_eq!(world.state().subscription.pending_change, None);
}

#[test]
fn a_plan_of_another_period_length_needs_a_restart_or_the_periods_end() {
    let mut world = world();
    let yearly = PlanVersion { plan_code: PlanCode::new("yearly").unwrap(), period_months: 12, ..pro() };
    world.add_plan(yearly);
    assert_eq!(world.change("yearly", Immediate, CreditPolicy::Prorate).code(), "restart-required");
    world.change("yearly", PeriodEnd, CreditPolicy::None).accepted();
    world.at("2026-02-28T00:00:00Z").run(Command::AdvancePeriod(AdvancePeriod)).accepted();
    // Still counted from the original anchor, the 31st.
    assert_eq!(world.state().subscription.period.end.to_string(), "2027-02-28T00:00:00.000000Z");
    let back = world.change("pro", PeriodEnd, CreditPolicy::None).accepted();
    assert_eq!(back.receipt()["subscription"]["pending"]["kind"], "change");
    world.at("2027-02-28T00:00:00Z").run(Command::AdvancePeriod(AdvancePeriod)).accepted();
    assert_eq!(world.state().subscription.period.end.to_string(), "2027-03-31T00:00:00.000000Z");
}

#[test]
fn the_same_plan_again_and_a_stale_version_are_refused() {
    let mut world = world();
    assert_eq!(world.change("pro", Immediate, CreditPolicy::Full).code(), "plan-unchanged");
    assert_eq!(world.change("none", Immediate, CreditPolicy::Full).code(), "plan-not-found");
    let stale = ProcessSubscriptionChange {
        plan_code: PlanCode::new("scale").unwrap(),
        effective: Immediate,
        credit_policy: CreditPolicy::None,
        expected_version: Some(2),
    };
    assert_eq!(world.run(Command::ProcessSubscriptionChange(stale)).code(), "version-mismatch");
    world.change("pro", Immediate, CreditPolicy::Restart).accepted();
}

#[test]
fn a_cancellation_at_the_periods_end_can_be_withdrawn_until_it_takes_effect() {
    let resume = || Command::ResumeSubscription(ResumeSubscription { expected_version: None });
    let mut world = world();
    assert_eq!(world.run(resume()).code(), "nothing-scheduled");
    world.cancel(PeriodEnd).accepted();
    world.run(resume()).accepted();
    world.cancel(PeriodEnd).accepted();
    world.at("2026-02-28T00:00:00Z").run(Command::AdvancePeriod(AdvancePeriod)).accepted();
    assert_eq!(world.state().subscription.status, SubscriptionStatus::Canceled);
    assert_eq!(world.run(resume()).code(), "subscription-canceled");
    assert_eq!(world.balance(), "0");
}

#[test]
fn bought_credits_follow_the_plan_when_the_subscription_ends() {
    let table = [
        (PurchasedOnCancel::Keep, true, true),
        (PurchasedOnCancel::Freeze, false, false),
        (PurchasedOnCancel::ExpireAfterDays(10), true, false),
    ];
    for (policy, spendable_now, spendable_later) in table {
        let mut world = World::on(PlanVersion { purchased_on_cancel: policy, ..pro() });
        world.purchase("500", "pay-1").accepted();
        world.cancel(Immediate).accepted();
        assert_eq!(world.balance(), "500", "{policy:?}: the allowance is gone");
        let spent = |world: &mut World| {
            matches!(world.deduct("render", "1").outcome, crate::domain::batch::Outcome::Accepted(_))
        };
        assert_eq!(spent(&mut world), spendable_now, "{policy:?}");
        assert_eq!(spent(world.at("2026-02-10T00:00:01Z")), spendable_later, "{policy:?}");
    }
}

#[test]
fn a_reactivated_subscription_can_spend_its_frozen_credits() {
    let mut world = World::on(PlanVersion { purchased_on_cancel: PurchasedOnCancel::Freeze, ..pro() });
    world.purchase("500", "pay-1").accepted();
    world.cancel(Immediate).accepted();
    assert_eq!(world.cancel(Immediate).code(), "subscription-canceled");
    assert_eq!(world.change("pro", PeriodEnd, CreditPolicy::None).code(), "subscription-canceled");
    let ran = world.at("2026-06-05T12:00:00Z").change("pro", Immediate, CreditPolicy::None).accepted();
    assert_eq!(ran.data(SubscriptionChanged)["change"], "reactivated");
    assert_eq!(world.state().subscription.period.end.to_string(), "2026-07-05T12:00:00.000000Z");
    world.deduct("render", "1500").accepted();
}

#[test]
fn reactivation_does_not_depend_on_the_credit_policy() {
    for policy in [CreditPolicy::None, CreditPolicy::Full, CreditPolicy::Prorate, CreditPolicy::Restart] {
        let mut world = world();
        world.add_plan(PlanVersion { plan_code: PlanCode::new("yearly").unwrap(), period_months: 12, ..pro() });
        world.cancel(Immediate).accepted();
        let ran = world.change("yearly", Immediate, policy).accepted();
        assert_eq!(ran.events(), [SubscriptionChanged, CreditReset], "{policy:?}");
        assert_eq!(world.balance(), "1000", "{policy:?}");
    }
}

#[test]
fn a_feature_with_only_a_price_of_its_own_is_enabled() {
    let mut world = world();
    let code = FeatureCode::new("own").unwrap();
    assert_eq!(world.deduct("own", "1").code(), "feature-not-found");
    let state = world.snapshot.workspaces.get_mut(&world.workspace_id).unwrap();
    state
        .feature_overrides
        .insert(code, OverrideTerms { unit_price: Some(Credits::whole(1)), ..OverrideTerms::default() });
    world.deduct("own", "1").accepted();
}

#[test]
fn overrides_survive_a_change_of_plan() {
    let mut world = world();
    let state = world.snapshot.workspaces.get_mut(&world.workspace_id).unwrap();
    let render_code = FeatureCode::new("render").unwrap();
    let own = OverrideTerms { unit_price: Some(Credits::whole(9)), ..OverrideTerms::default() };
    state.feature_overrides.insert(render_code.clone(), own);
    world.change("scale", Immediate, CreditPolicy::None).accepted();
    assert_eq!(world.state().feature_terms(&render_code).unwrap().unit_price, Some(Credits::whole(9)));
}

#[test]
fn an_immediate_change_replaces_a_scheduled_change_but_not_a_cancellation() {
    let mut world = world();
    world.cancel(PeriodEnd).accepted();
    let kept = world.change("scale", Immediate, CreditPolicy::None).accepted();
    assert_eq!(kept.receipt()["subscription"]["pending"]["kind"], "cancel");
    let scheduled = world.change("pro", PeriodEnd, CreditPolicy::None).accepted();
    assert_eq!(scheduled.data(SubscriptionChanged)["withdrawn"], "cancel");
    let now = world.change("pro", Immediate, CreditPolicy::None).accepted();
    assert_eq!(now.data(SubscriptionChanged)["withdrawn"], "change");
    assert_eq!(world.state().subscription.pending_change, None);
}

#[test]
fn a_lower_plan_warns_if_it_removes_credits_below_a_threshold() {
    use crate::domain::event::EventType::LowCreditWarning;
    let mut world = world();
    world.add_plan(PlanVersion { plan_code: PlanCode::new("tiny").unwrap(), allowance: Credits::whole(10), ..pro() });
    let ran = world.change("tiny", Immediate, CreditPolicy::Full).accepted();
    assert_eq!(ran.events(), [SubscriptionChanged, LowCreditWarning]);
}

#[test]
fn a_plan_that_is_no_longer_offered_is_kept_by_its_workspaces_and_refused_to_others() {
    let mut world = world();
    for plan in world.snapshot.plans.values_mut() {
        plan.is_offered = false;
    }
    assert_eq!(world.change("scale", Immediate, CreditPolicy::None).code(), "plan-not-offered");
    world.change("pro", Immediate, CreditPolicy::Restart).accepted();
    world.cancel(Immediate).accepted();
    world.change("pro", Immediate, CreditPolicy::None).accepted();
    world.workspace_id = WorkspaceId(uuid::Uuid::from_u128(2));
    let other = ProvisionWorkspace {
        name: Label::new("Other").unwrap(),
        plan_code: PlanCode::new("pro").unwrap(),
        time_zone: chrono_tz::UTC,
        anchor: None,
        monthly_limit: None,
        overdraft_limit: None,
        feature_overrides: FeatureOverrides::new(),
    };
    assert_eq!(world.run(Command::ProvisionWorkspace(other)).code(), "plan-not-offered");
}

#[test]
fn a_change_of_plan_reports_every_feature_whose_terms_changed() {
    let mut world = world();
    world.deduct("upscale", "3").accepted();
    let ran = world.change("scale", Immediate, CreditPolicy::None).accepted();
    let changes = &ran.data(SubscriptionChanged)["features"];
    let codes: Vec<_> = changes.as_array().unwrap().iter().map(|change| change["feature_code"].as_str()).collect();
    assert!(codes.contains(&Some("upscale")), "{codes:?}");
    assert_eq!(changes[0]["after"]["enabled"], false);
    // Its usage is still counted.
    assert_eq!(world.state().feature_usage(&FeatureCode::new("upscale").unwrap()), Credits::whole(3));
    assert!(world.state().feature_codes().contains(&FeatureCode::new("upscale").unwrap()));
}

#[test]
fn credits_that_are_bought_while_frozen_say_so() {
    let mut frozen = pro();
    frozen.purchased_on_cancel = PurchasedOnCancel::Freeze;
    let mut world = World::on(frozen);
    world.purchase("50", "pay-1").accepted();
    let canceled = world.cancel(Immediate).accepted();
    assert_eq!(canceled.data(SubscriptionChanged)["frozen_credits"], "50");
    assert_eq!(canceled.receipt()["frozen_credits"], "50");
    let bought = world.purchase("20", "pay-2").accepted();
    assert_eq!(
        (&bought.receipt()["spendable"], &bought.data(CreditsPurchased)["spendable"]),
        (&json!(false), &json!(false))
    );
    let back = world.change("pro", Immediate, CreditPolicy::None).accepted();
    assert_eq!(back.receipt()["frozen_credits"], "0");
    assert_eq!(world.purchase("1", "pay-3").accepted().receipt()["spendable"], true);
}

#[test]
fn a_plan_says_how_many_days_before_an_expiry_a_warning_is_due() {
    let mut world = world();
    world.add_plan(PlanVersion { plan_code: PlanCode::new("late").unwrap(), expiry_warning_days: 1, ..pro() });
    world.add_plan(PlanVersion { plan_code: PlanCode::new("never").unwrap(), expiry_warning_days: 0, ..pro() });
    let ends = "2026-03-20T00:00:00Z";
    world.purchase_until("50", "pay-1", ends).accepted();
    let warning_at = |world: &World| {
        let bought = world.state().grants.iter().find(|grant| grant.payment_reference.is_some()).unwrap();
        bought.expiry_warning_at.map(|at| at.to_string()[..10].to_owned())
    };
    assert_eq!(warning_at(&world).as_deref(), Some("2026-03-13"));
    world.change("never", Immediate, CreditPolicy::None).accepted();
    assert_eq!(warning_at(&world).as_deref(), Some("2026-03-20"), "when they have expired");
    world.change("late", Immediate, CreditPolicy::None).accepted();
    assert_eq!(warning_at(&world).as_deref(), Some("2026-03-19"));
    world.at("2026-03-19T00:00:00Z");
    let warned = world.run(Command::WarnOfExpiry(WarnOfExpiry)).accepted();
    let data = warned.data(CreditsExpiring);
    assert_eq!((&data["credits"], &data["expires_at"]), (&json!("50"), &json!("2026-03-20T00:00:00.000000Z")));
    assert_eq!(world.run(Command::WarnOfExpiry(WarnOfExpiry)).outcome, Outcome::Nothing);
    world.change("pro", Immediate, CreditPolicy::None).accepted();
    assert_eq!(warning_at(&world), None, "once is enough");
}

#[test]
fn a_set_off_is_told() {
    let mut small = pro();
    (small.plan_code, small.allowance) = (PlanCode::new("small").unwrap(), Credits::whole(100));
    let mut world = world();
    world.add_plan(small);
    world.deduct("render", "1000").accepted();
    let down = world.change("small", Immediate, CreditPolicy::Full).accepted();
    assert_eq!(down.receipt()["credits_uncollected"], "900");
    let up = world.change("pro", Immediate, CreditPolicy::Full).accepted();
    assert_eq!((&up.receipt()["credits_set_off"], &up.receipt()["credits_granted"]), (&json!("900"), &json!("0")));
    assert_eq!(up.data(SubscriptionChanged)["credits_set_off"], "900");
}
