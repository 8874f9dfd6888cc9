//! Deductions, purchases and expiry.

use std::sync::Arc;

use serde_json::json;

use crate::domain::batch::Outcome;
use crate::domain::commands::{Charge, Command, DeductCredits, ExpireGrants, PurchaseCredits};
use crate::domain::credits::Credits;
use crate::domain::event::EventType::{
    CreditConsumed, CreditLimitExceeded, CreditsExpired, CreditsPurchased, LowCreditWarning, UsageLimitExceeded,
};
use crate::domain::grant::{Currency, GrantSource, MAX_OPEN_GRANTS};
use crate::domain::plan::tests::pro;
use crate::domain::plan::{FeatureTerms, LimitMode, PlanVersion, RateLimit, UsageLimit};
use crate::domain::rejection::Rejection;
use crate::domain::tests::{Ran, World, deduct, json, purchase};
use crate::domain::text::{FeatureCode, PaymentReference};

fn plan(change: impl FnOnce(&mut PlanVersion)) -> PlanVersion {
    let mut plan = pro();
    change(&mut plan);
    plan
}

#[test]
fn a_deduction_takes_credits_and_raises_an_event() {
    let mut world = World::on(pro());
    let ran = world.deduct("render", "2.5").accepted();
    assert_eq!(world.balance(), "997.5");
    assert_eq!(ran.events(), [CreditConsumed]);
    assert_eq!(ran.data(CreditConsumed)["credits"], "2.5");
    assert_eq!(ran.receipt()["current_credits"], "997.5");
    assert_eq!(ran.changes.usage_logs.len(), 1);
    assert_eq!(ran.receipt()["usage_id"], ran.changes.usage_logs[0].id().to_string());
    assert_eq!(ran.changes.ledger_entries.len(), 1);
}

#[test]
fn a_quantity_costs_its_price_rounded_up_to_one_micro_credit() {
    let mut world = World::on(pro());
    world.run(deduct("render", Charge::Quantity(json("0.333333")))).accepted();
    assert_eq!(world.balance(), "999.833333");
}

#[test]
fn the_checks_of_a_deduction_run_in_the_documented_order() {
    let everything = plan(|plan| {
        plan.allowance = Credits::whole(5);
        plan.monthly_limit = Some(UsageLimit::hard(Credits::whole(40)));
        plan.rate_limit = Some(RateLimit { credits: Credits::whole(20), window_s: 60 });
        plan.features.insert(FeatureCode::new("off").unwrap(), FeatureTerms::default());
    });
    let mut world = World::on(everything);
    let table = [
        ("missing", "100", "feature-not-found"),
        ("off", "100", "feature-disabled"),
        ("upscale", "51", "limit-exceeded"),
        ("render", "41", "limit-exceeded"),
        ("render", "21", "limit-exceeded"),
        ("render", "6", "insufficient-credits"),
    ];
    for (feature, credits, code) in table {
        assert_eq!(world.deduct(feature, credits).code(), code, "{feature} {credits}");
    }
    world.deduct("render", "5").accepted();
}

#[test]
fn a_feature_that_no_plan_has_is_not_found_and_nothing_is_recorded() {
    let mut world = World::on(pro());
    let refused = world.deduct("rendr", "1");
    assert_eq!((refused.code(), refused.changes.is_empty()), ("feature-not-found", true));
}

#[test]
fn a_feature_without_a_price_needs_an_amount_of_credits() {
    let mut world = World::on(plan(|plan| {
        plan.features.get_mut("render").unwrap().unit_price = None;
    }));
    assert_eq!(world.run(deduct("render", Charge::Quantity(json("1")))).code(), "feature-not-priced");
    world.deduct("render", "1").accepted();
}

#[test]
fn a_refusal_changes_no_credits_and_is_recorded_with_its_event() {
    let mut world = World::on(pro());
    let ran = world.deduct("render", "1000.000001");
    assert_eq!(ran.code(), "insufficient-credits");
    assert_eq!(ran.events(), [CreditLimitExceeded]);
    assert_eq!(ran.changes.commands.len(), 1);
    assert!(ran.changes.ledger_entries.is_empty() && ran.changes.usage_logs.is_empty());
    assert_eq!(world.balance(), "1000");
    let limited = world.deduct("upscale", "50.000001");
    assert_eq!(limited.events(), [UsageLimitExceeded]);
    assert_eq!(limited.data(UsageLimitExceeded)["refused"], true);
    world.deduct("upscale", "50").accepted();
}

#[test]
fn a_rate_window_follows_the_clock_unless_another_clock_is_a_little_ahead() {
    let mut world = World::on(plan(|plan| {
        plan.rate_limit = Some(RateLimit { credits: Credits::whole(10), window_s: 60 });
    }));
    world.at("2026-01-31T00:01:02Z").deduct("render", "10").accepted();
    let ran = world.at("2026-01-31T00:00:58Z").deduct("render", "1");
    assert_eq!(ran.code(), "rate-exceeded", "another replica has begun the next window");
    let Outcome::Refused { rejection: Rejection::RateExceeded { retry_after_s, .. }, .. } = ran.outcome else {
        panic!()
    };
    assert_eq!(retry_after_s, 63, "until the end of that window");
    world.at("2026-01-31T00:05:00Z").deduct("render", "10").accepted();
    world.at("2026-01-31T00:02:00Z").deduct("render", "10").accepted();
}

#[test]
fn a_rate_window_is_aligned_from_the_first_deduction_on_and_after_a_change_of_its_length() {
    let rate = |window_s| plan(|plan| plan.rate_limit = Some(RateLimit { credits: Credits::whole(10), window_s }));
    let mut world = World::on(rate(7200));
    let retry_after_s = |ran: Ran| {
        let Outcome::Refused { rejection: Rejection::RateExceeded { retry_after_s, .. }, .. } = ran.outcome else {
            panic!()
        };
        retry_after_s
    };
    world.at("2026-01-31T01:00:00Z").deduct("render", "10").accepted();
    assert_eq!(retry_after_s(world.at("2026-01-31T01:59:00Z").deduct("render", "1")), 61);
    let state = world.snapshot.workspaces.get_mut(&world.workspace_id).unwrap();
    state.plan = Arc::new(rate(10_800));
    assert_eq!(retry_after_s(world.at("2026-01-31T02:59:00Z").deduct("render", "1")), 61);
    world.at("2026-01-31T03:00:00Z").deduct("render", "10").accepted();
}

#[test]
fn a_bonus_repays_debt_before_the_credits_that_were_paid_for() {
    let mut world = World::on(plan(|plan| {
        plan.allowance = Credits::ZERO;
        plan.overdraft_limit = Credits::whole(100);
    }));
    world.deduct("render", "70").accepted();
    let Command::PurchaseCredits(command) = purchase("100", "pay-1") else { unreachable!() };
    let with_bonus = PurchaseCredits { bonus_credits: Some(json("50")), ..command };
    let ran = world.run(Command::PurchaseCredits(with_bonus));
    assert_eq!(ran.receipt()["debt_repaid"], "70");
    let remaining = |source: GrantSource| {
        let grants = ran.changes.grants.inserted.iter();
        grants.filter(|grant| grant.source == source).map(|grant| grant.remaining).collect::<Vec<_>>()
    };
    assert_eq!(remaining(GrantSource::Promotion), [Credits::ZERO]);
    assert_eq!(remaining(GrantSource::Purchase), [Credits::whole(80)]);
}

#[test]
fn a_request_larger_than_a_whole_limit_is_told_that_it_never_passes() {
    let mut world = World::on(plan(|plan| {
        plan.monthly_limit = Some(UsageLimit::hard(Credits::whole(40)));
        plan.rate_limit = Some(RateLimit { credits: Credits::whole(20), window_s: 60 });
    }));
    let ends_at = json!("2026-02-28T00:00:00.000000Z");
    world.deduct("render", "15").accepted();
    for (credits, used, scope, resets_at, window_s) in [
        ("41", "15", "workspace", None, None),
        ("26", "0", "window", None, Some(json!(60))),
        ("20", "30", "workspace", Some(&ends_at), None),
    ] {
        if used == "30" {
            world.at("2026-01-31T00:01:00Z").deduct("render", "15").accepted();
        }
        let ran = world.deduct("render", credits);
        let data = ran.data(UsageLimitExceeded);
        assert_eq!((&data["scope"], &data["used_credits"]), (&json!(scope), &json!(used)), "{credits}");
        assert_eq!((data.get("resets_at"), data.get("window_s")), (resets_at, window_s.as_ref()), "{credits}");
    }
}

#[test]
fn a_rate_refusal_is_not_recorded_and_succeeds_in_the_next_window() {
    let mut world = World::on(plan(|plan| {
        plan.rate_limit = Some(RateLimit { credits: Credits::whole(10), window_s: 60 });
    }));
    world.deduct("render", "10").accepted();
    let ran = world.at("2026-01-31T00:00:59.5Z").deduct("render", "1");
    assert_eq!(ran.code(), "rate-exceeded");
    assert!(ran.changes.is_empty());
    world.at("2026-01-31T00:01:00Z").deduct("render", "10").accepted();
}

#[test]
fn a_cost_above_the_limit_of_a_whole_window_is_refused_permanently() {
    let mut world = World::on(plan(|plan| {
        plan.rate_limit = Some(RateLimit { credits: Credits::whole(10), window_s: 60 });
    }));
    let ran = world.deduct("render", "10.000001");
    assert_eq!(ran.code(), "limit-exceeded");
    assert_eq!(ran.data(UsageLimitExceeded)["scope"], "window");
}

#[test]
fn a_warning_is_raised_once_when_a_threshold_is_reached() {
    let mut world = World::on(pro());
    assert_eq!(world.deduct("render", "899").events(), [CreditConsumed]);
    assert_eq!(world.deduct("render", "1").events(), [CreditConsumed, LowCreditWarning]);
    assert_eq!(world.deduct("render", "1").events(), [CreditConsumed]);
    // Back above the threshold: it can be reported again.
    world.purchase("10", "pay-1").accepted();
    assert_eq!(world.deduct("render", "10").events(), [CreditConsumed, LowCreditWarning]);
}

#[test]
fn a_soft_limit_is_reported_once_per_period_and_refuses_nothing() {
    let mut world = World::on(plan(|plan| {
        plan.monthly_limit = Some(UsageLimit { credits: Credits::whole(10), mode: LimitMode::Soft });
    }));
    assert_eq!(world.deduct("render", "10").events(), [CreditConsumed]);
    assert_eq!(world.deduct("render", "1").events(), [CreditConsumed, UsageLimitExceeded]);
    assert_eq!(world.deduct("render", "1").events(), [CreditConsumed]);
    world.at("2026-02-28T00:00:00Z");
    world.deduct("render", "10").accepted();
    let again = world.deduct("render", "1");
    assert_eq!(again.data(UsageLimitExceeded)["refused"], false);
}

#[test]
fn an_overdraft_is_spent_after_the_grants_and_repaid_by_the_next_ones() {
    let mut world = World::on(plan(|plan| plan.overdraft_limit = Credits::whole(50)));
    let ran = world.deduct("render", "1030").accepted();
    assert_eq!(ran.receipt()["overdraft_credits"], "30");
    assert_eq!(world.balance(), "-30");
    assert_eq!(world.deduct("render", "20.000001").code(), "insufficient-credits");
    world.deduct("render", "20").accepted();
    let paid = world.purchase("60", "pay-1").accepted();
    assert_eq!(paid.receipt()["debt_repaid"], "50");
    assert_eq!(world.balance(), "10");
}

#[test]
fn a_purchase_with_a_bonus_makes_two_grants_and_promotion_burns_first() {
    let mut world = World::on(plan(|plan| plan.allowance = Credits::ZERO));
    let Command::PurchaseCredits(bought) = purchase("100", "pay-1") else { unreachable!() };
    let with_bonus = PurchaseCredits { bonus_credits: Some(json("20")), ..bought };
    let ran = world.run(Command::PurchaseCredits(with_bonus)).accepted();
    assert_eq!(ran.events(), [CreditsPurchased]);
    assert_eq!(ran.receipt()["current_credits"], "120");
    let spent = world.deduct("render", "30").accepted();
    let sources: Vec<_> =
        spent.receipt()["grants"].as_array().unwrap().iter().map(|share| share["source"].clone()).collect();
    assert_eq!(sources, ["promotion", "purchase"]);
}

#[test]
fn a_payment_reference_is_booked_once_for_any_key() {
    let mut world = World::on(pro());
    world.purchase("100", "pay-1").accepted();
    assert_eq!(world.purchase("100", "pay-1").code(), "payment-reference-used");
    assert_eq!(world.balance(), "1100");
}

#[test]
fn a_balance_beyond_the_range_is_refused_at_its_exact_bound() {
    let mut world = World::on(plan(|plan| plan.allowance = Credits::whole(1)));
    world.purchase("999999999999", "pay-1").accepted();
    assert_eq!(world.purchase("0.000001", "pay-2").code(), "amount-out-of-range");
}

#[test]
fn an_expired_grant_cannot_be_spent_even_before_its_expiry_is_booked() {
    let mut world = World::on(plan(|plan| plan.allowance = Credits::ZERO));
    world.run(Command::PurchaseCredits(PurchaseCredits {
        credits: json("10"),
        bonus_credits: None,
        amount_minor: 1,
        currency: Currency::new("USD").unwrap(),
        payment_reference: PaymentReference::new("pay-1").unwrap(),
        expires_at: Some("2026-02-10T00:00:00Z".parse().unwrap()),
    }));
    world.at("2026-02-09T23:59:59.999999Z").deduct("render", "1").accepted();
    world.at("2026-02-10T00:00:00Z");
    let read = world.state().clone().as_of(world.now);
    assert_eq!((world.balance().as_str(), read.credits.current_credits), ("9", Credits::ZERO));
    // A command books it first, also one that is refused. The scheduler then finds nothing to do.
    let refused = world.deduct("render", "1");
    assert_eq!(refused.code(), "insufficient-credits");
    assert_eq!(refused.events(), [CreditsExpired, CreditLimitExceeded]);
    assert_eq!(world.balance(), "0");
    assert_eq!(world.run(Command::ExpireGrants(ExpireGrants)).outcome, Outcome::Nothing);
}

#[test]
fn usage_may_lie_a_bounded_time_in_the_past_or_future() {
    let table = [
        ("2026-01-16T00:00:00Z", true),
        ("2026-01-15T23:59:59.999999Z", false),
        ("2026-02-20T00:05:00Z", true),
        ("2026-02-20T00:05:00.000001Z", false),
    ];
    for (occurred_at, good) in table {
        let mut world = World::on(pro());
        world.at("2026-02-20T00:00:00Z");
        let command = DeductCredits {
            feature_code: FeatureCode::new("render").unwrap(),
            charge: Charge::Credits(json("1")),
            user_id: None,
            occurred_at: Some(occurred_at.parse().unwrap()),
            explain: false,
        };
        let ran = world.run(Command::DeductCredits(command));
        assert_eq!(matches!(ran.outcome, Outcome::Accepted(_)), good, "{occurred_at}");
    }
}

#[test]
fn the_same_command_under_the_same_key_gives_the_same_answer_and_another_body_is_refused() {
    let mut world = World::on(pro());
    let envelope = world.envelope(deduct("render", Charge::Credits(json("1"))));
    let Outcome::Accepted(first) = world.run_envelope(&envelope).outcome else { unreachable!() };
    let again = world.run_envelope(&envelope);
    assert_eq!(again.outcome, Outcome::Replayed(first));
    assert!(again.changes.is_empty());
    let mut other = envelope.clone();
    other.fingerprint = [1; 32];
    assert_eq!(world.run_envelope(&other).outcome, Outcome::KeyReused);
    assert_eq!(world.balance(), "999");
}

#[test]
fn recorded_at_rises_strictly_within_a_workspace() {
    let mut world = World::on(pro());
    world.at("2026-02-10T00:00:00Z").deduct("render", "1").accepted();
    let ran = world.at("2026-02-01T00:00:00Z").deduct("render", "1").accepted();
    assert_eq!(ran.receipt()["recorded_at"], "2026-02-10T00:00:00.000001Z");
}

#[test]
fn a_workspace_holds_a_bounded_number_of_open_grants() {
    let mut world = World::on(plan(|plan| plan.allowance = Credits::ZERO));
    for n in 0..MAX_OPEN_GRANTS {
        world.purchase("1", &format!("pay-{n}")).accepted();
    }
    assert_eq!(world.purchase("1", "one-more").code(), "too-many-grants");
    world.deduct("render", "1").accepted();
    world.purchase("1", "one-more").accepted();
}

#[test]
fn credits_can_be_spent_even_at_the_largest_balance_with_an_overdraft() {
    let mut world = World::on(plan(|plan| plan.overdraft_limit = Credits::whole(50)));
    world.purchase("999999999000", "pay-1").accepted();
    world.deduct("render", "1").accepted();
}

#[test]
fn an_increase_of_credits_never_raises_a_warning() {
    let mut world = World::on(plan(|plan| plan.allowance = Credits::ZERO));
    assert_eq!(world.purchase("10", "pay-1").events(), [CreditsPurchased]);
    assert_eq!(world.deduct("render", "1").events(), [CreditConsumed, LowCreditWarning]);
}

#[test]
fn a_soft_limit_is_reported_once_for_its_amount_and_again_in_the_next_period() {
    let soft = |credits| Some(UsageLimit { credits: Credits::whole(credits), mode: LimitMode::Soft });
    let mut world = World::on(plan(|plan| plan.features.get_mut("render").unwrap().limit = soft(10)));
    let passed = |ran: &Ran| ran.events().contains(&UsageLimitExceeded);
    assert!(!passed(&world.deduct("render", "10").accepted()));
    assert!(passed(&world.deduct("render", "1").accepted()));
    assert!(!passed(&world.deduct("render", "1").accepted()));
    // Another limit is reported again.
    let state = world.snapshot.workspaces.get_mut(&world.workspace_id).unwrap();
    let mut other = (*state.plan).clone();
    other.features.get_mut("render").unwrap().limit = soft(11);
    state.plan = Arc::new(other);
    assert!(passed(&world.deduct("render", "1").accepted()));
    assert!(!passed(&world.deduct("render", "1").accepted()));
    world.at("2026-02-28T00:00:00Z");
    assert!(!passed(&world.deduct("render", "11").accepted()), "counted from zero");
    assert!(passed(&world.deduct("render", "1").accepted()));
}
