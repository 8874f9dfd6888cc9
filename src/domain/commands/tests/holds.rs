//! Holds: placing, capturing, releasing, extending and their expiry.

use serde_json::{Value, json};

use crate::domain::commands::{
    CaptureHold, Charge, Command, ExpireHolds, ExtendHold, PlaceHold, RefundUsage, ReleaseHold, available_credits,
};
use crate::domain::credits::Credits;
use crate::domain::event::EventType::{
    CreditConsumed, CreditLimitExceeded, CreditReset, CreditsExpired, CreditsHeld, HoldReleased, LowCreditWarning,
    SubscriptionChanged, UsageLimitExceeded,
};
use crate::domain::hold::{HoldDuration, HoldState, MAX_GRANTS_PER_HOLD, MAX_OPEN_HOLDS, Overrun};
use crate::domain::ids::HoldId;
use crate::domain::plan::tests::pro;
use crate::domain::plan::{FeatureTerms, PlanVersion, RateLimit, UsageLimit};
use crate::domain::subscription::{CreditPolicy, Effective};
use crate::domain::tests::{Ran, World, json as parsed};
use crate::domain::text::FeatureCode;

/// 1,000 credits a month, an overdraft of 100, no thresholds.
fn plan() -> PlanVersion {
    PlanVersion { overdraft_limit: Credits::whole(100), low_credit_thresholds: Vec::new(), ..pro() }
}

fn place(credits: &str) -> PlaceHold {
    PlaceHold {
        feature_code: FeatureCode::new("render").unwrap(),
        charge: Charge::Credits(parsed(credits)),
        min_credits: None,
        duration: HoldDuration::DEFAULT,
        user_id: None,
        explain: false,
        job: None,
    }
}

fn capture(hold_id: HoldId, credits: Option<&str>) -> CaptureHold {
    let charge = credits.map(|credits| Charge::Credits(parsed(credits)));
    CaptureHold { hold_id, charge, overrun: Overrun::default(), late_capture: false, job: None }
}

fn id(receipt: &Value) -> HoldId {
    HoldId(receipt["hold_id"].as_str().unwrap().parse().unwrap())
}

impl World {
    fn place(&mut self, credits: &str) -> HoldId {
        id(&self.hold(place(credits)).accepted().receipt())
    }

    fn hold(&mut self, command: PlaceHold) -> Ran {
        self.run(Command::PlaceHold(command))
    }

    fn capture(&mut self, hold_id: HoldId, credits: &str) -> Ran {
        self.run(Command::CaptureHold(capture(hold_id, Some(credits))))
    }

    fn capture_with(&mut self, command: CaptureHold) -> Ran {
        self.run(Command::CaptureHold(command))
    }

    fn release(&mut self, hold_id: HoldId) -> Ran {
        self.run(Command::ReleaseHold(ReleaseHold { hold_id, job: None }))
    }

    fn extend(&mut self, hold_id: HoldId, seconds: i64) -> Ran {
        let duration = HoldDuration::new(seconds).unwrap();
        self.run(Command::ExtendHold(ExtendHold { hold_id, duration }))
    }

    fn spendable(&self) -> String {
        available_credits(self.state(), self.now).to_string()
    }

    fn held(&self) -> String {
        self.state().credits.held_credits.to_string()
    }
}

fn check(value: &Value, expected: &[(&str, Value)]) {
    for (field, expected) in expected {
        assert_eq!(&value[*field], expected, "{field} of {value}");
    }
}

#[test]
fn a_hold_reserves_credits_and_leaves_the_balance() {
    let mut world = World::on(plan());
    let ran = world.hold(place("300")).accepted();
    assert_eq!(ran.events(), [CreditsHeld]);
    let expected = [
        ("state", json!("open")),
        ("credits", json!("300")),
        ("expires_at", json!("2026-01-31T01:00:00.000000Z")),
        ("available_credits", json!("800")),
        ("current_credits", json!("1000")),
    ];
    check(&ran.receipt(), &expected);
    check(&ran.data(CreditsHeld), &expected[1..]);
    assert_eq!(ran.receipt()["grants"][0]["credits"], json!("300"));
    assert_eq!((world.held().as_str(), world.balance().as_str(), world.spendable().as_str()), ("300", "1000", "800"));
    assert_eq!(world.deduct("render", "800.000001").code(), "insufficient-credits");
    world.deduct("render", "800").accepted();
    assert_eq!(world.balance(), "200", "100 of the overdraft, and 300 are held");
}

#[test]
fn a_capture_charges_the_hold_and_gives_the_rest_back() {
    for (credits, captured, released) in [(Some("120"), "120", "180"), (Some("300"), "300", "0"), (None, "300", "0")] {
        let mut world = World::on(plan());
        let hold_id = world.place("300");
        let ran = world.capture_with(capture(hold_id, credits)).accepted();
        assert_eq!(ran.events(), [CreditConsumed]);
        check(
            &ran.receipt(),
            &[
                ("state", json!("captured")),
                ("captured_credits", json!(captured)),
                ("released_credits", json!(released)),
                ("uncovered_credits", json!("0")),
                ("used_this_month", json!(captured)),
            ],
        );
        check(
            &ran.data(CreditConsumed),
            &[
                ("hold_id", json!(hold_id)),
                ("credits", json!(captured)),
                ("released_credits", json!(released)),
                ("uncovered_credits", json!("0")),
            ],
        );
        let log = &ran.changes.usage_logs[0];
        assert_eq!((log.credits.to_string().as_str(), json!(log.id())), (captured, ran.receipt()["usage_id"].clone()));
        let state = world.state();
        assert_eq!(state.credits.used_this_month.to_string(), captured);
        assert_eq!(state.feature_usage(&FeatureCode::new("render").unwrap()).to_string(), captured);
        assert_eq!(world.held(), "0");
    }
}

#[test]
fn a_hold_ends_once() {
    let mut world = World::on(plan());
    let (captured, released) = (world.place("10"), world.place("10"));
    world.capture(captured, "4").accepted();
    world.release(released).accepted();
    let unknown = HoldId(uuid::Uuid::nil());
    for (hold_id, code) in [(captured, "hold-over"), (released, "hold-over"), (unknown, "hold-not-found")] {
        assert_eq!(world.capture(hold_id, "1").code(), code);
        assert_eq!(world.release(hold_id).code(), code);
        assert_eq!(world.extend(hold_id, 60).code(), code);
        let late = CaptureHold { late_capture: true, ..capture(hold_id, None) };
        assert_eq!(world.capture_with(late).code(), code);
    }
    assert_eq!(world.balance(), "996");
}

#[test]
fn a_release_gives_everything_back() {
    let mut world = World::on(plan());
    let hold_id = world.place("1050");
    assert_eq!((world.spendable().as_str(), world.state().holds[0].hold.overdraft), ("50", Credits::whole(50)));
    let ran = world.release(hold_id).accepted();
    assert_eq!(ran.events(), [HoldReleased]);
    check(
        &ran.data(HoldReleased),
        &[
            ("reason", json!("released")),
            ("credits", json!("1050")),
            ("overdraft_credits", json!("50")),
            ("current_credits", json!("1000")),
        ],
    );
    check(&ran.receipt(), &[("state", json!("released")), ("available_credits", json!("1100"))]);
    assert_eq!((world.held().as_str(), world.spendable().as_str()), ("0", "1100"));
}

#[test]
fn what_is_beyond_a_hold_is_charged_as_the_caller_wants() {
    // 1,000 credits and an overdraft of 100, of which 900 are held.
    for (overrun, credits, outcome, uncovered, balance) in [
        (Overrun::Reject, "900", Ok("900"), "0", "100"),
        (Overrun::Reject, "900.000001", Err("capture-exceeds-hold"), "", "1000"),
        (Overrun::ChargeAvailable, "950", Ok("950"), "0", "50"),
        (Overrun::ChargeAvailable, "1150", Ok("1000"), "150", "0"),
        (Overrun::Overdraft, "1150", Ok("1100"), "50", "-100"),
    ] {
        let mut world = World::on(plan());
        let hold_id = world.place("900");
        let ran = world.capture_with(CaptureHold { overrun, ..capture(hold_id, Some(credits)) });
        match outcome {
            Ok(captured) => {
                check(
                    &ran.receipt(),
                    &[("captured_credits", json!(captured)), ("uncovered_credits", json!(uncovered))],
                );
                assert_eq!(ran.receipt()["grants"].as_array().unwrap().len(), 1, "each grant once");
            }
            Err(code) => {
                assert_eq!(ran.code(), code);
                assert_eq!(world.held(), "900", "the hold stays open");
            }
        }
        assert_eq!(world.balance(), balance, "{overrun:?} {credits}");
    }
}

#[test]
fn a_capture_within_the_hold_passes_no_check_and_the_excess_passes_all() {
    let limited = PlanVersion { monthly_limit: Some(UsageLimit::hard(Credits::whole(100))), ..plan() };
    let mut world = World::on(limited);
    let hold_id = world.place("60");
    assert_eq!(world.deduct("render", "41").code(), "limit-exceeded", "what is held counts");
    world.deduct("render", "30").accepted();
    let ran = world.capture(hold_id, "75").accepted();
    check(&ran.receipt(), &[("captured_credits", json!("70")), ("uncovered_credits", json!("5"))]);

    let hold_id = World::on(plan()).place("60");
    let mut world = World::on(plan());
    assert_eq!(world.place("60"), hold_id, "ids derive from the command's");
    let disabled = FeatureTerms { enabled: false, ..FeatureTerms::default() };
    let features = [(FeatureCode::new("render").unwrap(), disabled)].into();
    world.add_plan(PlanVersion { plan_code: crate::domain::text::PlanCode::new("basic").unwrap(), features, ..plan() });
    world.change("basic", Effective::Immediate, CreditPolicy::None).accepted();
    assert_eq!(world.deduct("render", "1").code(), "feature-disabled");
    let ran = world.capture(hold_id, "61").accepted();
    check(&ran.receipt(), &[("captured_credits", json!("60")), ("uncovered_credits", json!("1"))]);
}

#[test]
fn a_hold_is_refused_like_a_deduction_and_raises_its_events() {
    let limited = PlanVersion { monthly_limit: Some(UsageLimit::hard(Credits::whole(500))), ..plan() };
    let mut world = World::on(limited);
    world.place("400");
    let ran = world.hold(place("101"));
    assert_eq!((ran.code(), ran.events()), ("limit-exceeded", vec![UsageLimitExceeded]));
    let event = ran.data(UsageLimitExceeded);
    check(&event, &[("used_credits", json!("0")), ("held_credits", json!("400")), ("refused", json!(true))]);
    let mut world = World::on(plan());
    let ran = world.hold(place("1100.5"));
    assert_eq!((ran.code(), ran.events()), ("insufficient-credits", vec![CreditLimitExceeded]));
    let unknown = PlaceHold { feature_code: FeatureCode::new("rendr").unwrap(), ..place("1") };
    assert_eq!(world.hold(unknown).code(), "feature-not-found");
}

#[test]
fn with_a_least_amount_a_hold_takes_what_there_is() {
    let with_least = |credits: &str, least: &str| PlaceHold { min_credits: Some(parsed(least)), ..place(credits) };
    let limited = PlanVersion { monthly_limit: Some(UsageLimit::hard(Credits::whole(700))), ..plan() };
    let limited_rate =
        PlanVersion { rate_limit: Some(RateLimit { credits: Credits::whole(50), window_s: 60 }), ..plan() };
    for (plan, credits, least, expected) in [
        (plan(), "100", "50", Ok("100")),
        (plan(), "2000", "50", Ok("1100")),
        (plan(), "2000", "1100", Ok("1100")),
        (plan(), "2000", "1100.1", Err("insufficient-credits")),
        (limited.clone(), "2000", "1", Ok("700")),
        (limited, "2000", "701", Err("limit-exceeded")),
        (limited_rate, "2000", "1", Ok("50")),
    ] {
        let mut world = World::on(plan);
        let ran = world.hold(with_least(credits, least));
        match expected {
            Ok(held) => assert_eq!(ran.receipt()["credits"], json!(held), "{credits} {least}"),
            Err(code) => assert_eq!(ran.code(), code, "{credits} {least}"),
        }
    }
}

#[test]
fn the_rate_counts_a_hold_when_it_is_placed_and_of_a_capture_only_the_excess() {
    let mut world =
        World::on(PlanVersion { rate_limit: Some(RateLimit { credits: Credits::whole(100), window_s: 60 }), ..plan() });
    let hold_id = world.place("80");
    assert_eq!(world.deduct("render", "21").code(), "rate-exceeded");
    let ran = world.capture(hold_id, "110").accepted();
    check(&ran.receipt(), &[("captured_credits", json!("100")), ("uncovered_credits", json!("10"))]);
    assert_eq!(world.deduct("render", "0.1").code(), "rate-exceeded");
    world.at("2026-01-31T00:01:00Z").deduct("render", "100").accepted();
}

#[test]
fn a_quantity_has_the_price_of_the_hold() {
    let mut world = World::on(plan());
    let by_quantity = |quantity: &str| Charge::Quantity(quantity.parse().unwrap());
    let hold_id = id(&world.hold(PlaceHold { charge: by_quantity("20"), ..place("1") }).accepted().receipt());
    assert_eq!(world.held(), "10");
    let mut dearer = plan();
    dearer.plan_code = crate::domain::text::PlanCode::new("dear").unwrap();
    dearer.features.insert(
        FeatureCode::new("render").unwrap(),
        FeatureTerms { enabled: true, unit_price: Some(Credits::whole(9)), limit: None },
    );
    world.add_plan(dearer);
    world.change("dear", Effective::Immediate, CreditPolicy::None).accepted();
    let ran = world.capture_with(CaptureHold { charge: Some(by_quantity("6")), ..capture(hold_id, None) }).accepted();
    check(&ran.receipt(), &[("captured_credits", json!("3")), ("quantity", json!("6"))]);
}

#[test]
fn a_hold_expires_by_the_clock() {
    let mut world = World::on(plan());
    let hold_id = world.place("300");
    world.at("2026-01-31T00:59:59.999999Z");
    assert_eq!(world.state().clone().as_of(world.now).credits.held_credits, Credits::whole(300));
    world.at("2026-01-31T01:00:00Z");
    let now = world.now;
    let read = world.state().clone().as_of(now);
    assert_eq!((read.credits.held_credits, available_credits(&read, now)), (Credits::ZERO, Credits::whole(1100)));
    let ran = world.capture(hold_id, "1");
    assert_eq!((ran.code(), ran.events()), ("hold-expired", vec![HoldReleased]));
    check(&ran.data(HoldReleased), &[("reason", json!("expired")), ("credits", json!("300"))]);
    assert_eq!(world.extend(hold_id, 60).code(), "hold-expired");
    assert_eq!(world.release(hold_id).code(), "hold-over");
    assert!(world.run(Command::ExpireHolds(ExpireHolds)).changes.is_empty(), "it is booked once");
}

#[test]
fn a_late_capture_is_charged_once_and_like_a_deduction_of_now() {
    let mut world = World::on(plan());
    let hold_id = world.place("300");
    world.at("2026-01-31T02:00:00Z").deduct("render", "900").accepted();
    let late = |overrun| CaptureHold { late_capture: true, overrun, ..capture(hold_id, None) };
    let ran = world.capture_with(late(Overrun::Reject));
    assert_eq!((ran.code(), ran.events()), ("insufficient-credits", vec![CreditLimitExceeded]));
    let ran = world.capture_with(late(Overrun::ChargeAvailable)).accepted();
    assert_eq!(ran.events(), [CreditConsumed]);
    check(
        &ran.receipt(),
        &[
            ("state", json!("expired")),
            ("captured_credits", json!("200")),
            ("released_credits", json!("0")),
            ("uncovered_credits", json!("100")),
            ("current_credits", json!("-100")),
        ],
    );
    let hold = &ran.changes.holds.updated[0];
    assert_eq!((hold.state, hold.captured), (HoldState::Expired, Credits::whole(200)));
    assert_eq!(world.capture_with(late(Overrun::ChargeAvailable)).code(), "hold-over");
}

#[test]
fn a_hold_can_be_extended_and_never_shortened() {
    let mut world = World::on(plan());
    let hold_id = world.place("300");
    let ran = world.extend(hold_id, 60).accepted();
    check(&ran.receipt(), &[("expires_at", json!("2026-01-31T01:00:00.000000Z"))]);
    assert!(ran.events().is_empty());
    let ran = world.at("2026-01-31T00:30:00Z").extend(hold_id, 3600).accepted();
    check(&ran.receipt(), &[("expires_at", json!("2026-01-31T01:30:00.000000Z")), ("state", json!("open"))]);
    world.at("2026-01-31T01:29:00Z").capture(hold_id, "300").accepted();
}

#[test]
fn held_allowance_survives_the_period_and_does_not_roll_over() {
    let mut world = World::on(plan());
    world.at("2026-02-27T23:30:00Z");
    let (captured, released) = (world.place("300"), world.place("200"));
    let ran = world.at("2026-02-28T00:00:00Z").capture(captured, "100").accepted();
    // 500 were not held: 200 roll over. Of the 300 that were held, 200 expire when the capture gives them back.
    assert_eq!(ran.events(), [CreditReset, CreditConsumed, CreditsExpired]);
    check(&ran.data(CreditReset), &[("rolled_over", json!("200")), ("expired", json!("300"))]);
    check(&ran.data(CreditConsumed), &[("current_credits", json!("1600")), ("used_this_month", json!("100"))]);
    check(&ran.data(CreditsExpired), &[("credits", json!("200")), ("current_credits", json!("1400"))]);
    check(&ran.receipt(), &[("current_credits", json!("1400")), ("released_credits", json!("200"))]);
    let ran = world.release(released).accepted();
    assert_eq!(ran.events(), [HoldReleased, CreditsExpired]);
    check(&ran.data(HoldReleased), &[("current_credits", json!("1400"))]);
    assert_eq!((world.balance().as_str(), world.spendable().as_str()), ("1200", "1300"));
}

#[test]
fn a_hold_that_expired_before_the_period_ended_rolls_over_however_late_it_is_booked() {
    let mut world = World::on(plan());
    world.at("2026-02-27T22:00:00Z").place("900");
    let ran = world.at("2026-03-05T00:00:00Z").deduct("render", "1").accepted();
    assert_eq!(ran.events(), [HoldReleased, CreditReset, CreditConsumed]);
    check(&ran.data(CreditReset), &[("rolled_over", json!("200")), ("expired", json!("800"))]);
}

#[test]
fn a_hold_survives_a_restart_and_its_old_allowance_does_not() {
    let mut world = World::on(plan());
    let hold_id = world.place("300");
    world.add_plan(PlanVersion { plan_code: crate::domain::text::PlanCode::new("big").unwrap(), ..plan() });
    world.at("2026-01-31T00:10:00Z").change("big", Effective::Immediate, CreditPolicy::Restart).accepted();
    assert_eq!((world.balance().as_str(), world.held().as_str()), ("1500", "300"), "1,000, 200 rolled over, 300 held");
    let ran = world.release(hold_id).accepted();
    assert_eq!(ran.events(), [HoldReleased, CreditsExpired], "the period of the held credits has ended early");
    assert_eq!(world.balance(), "1200");
}

#[test]
fn a_refund_after_a_restart_does_not_bring_the_old_period_back() {
    let mut world = World::on(plan());
    let deducted = world.deduct("render", "50").accepted().receipt()["usage_id"].clone();
    world.add_plan(PlanVersion { plan_code: crate::domain::text::PlanCode::new("big").unwrap(), ..plan() });
    world.at("2026-01-31T00:10:00Z").change("big", Effective::Immediate, CreditPolicy::Restart).accepted();
    let usage_id = serde_json::from_value(deducted).unwrap();
    let refund = RefundUsage { usage_id, credits: None, reason: None };
    let ran = world.run(Command::RefundUsage(refund)).accepted();
    assert_eq!(ran.receipt()["grants"][0]["source"], json!("adjustment"));
}

#[test]
fn a_hold_survives_the_expiry_of_its_grants() {
    let expiring = PlanVersion { allowance: Credits::ZERO, ..plan() };
    let mut world = World::on(expiring);
    world.purchase_until("500", "p", "2026-01-31T00:30:00Z").accepted();
    let (captured, released) = (world.place("200"), world.place("250"));
    world.at("2026-01-31T00:40:00Z");
    let ran = world.capture(captured, "150").accepted();
    assert_eq!(
        ran.events(),
        [CreditsExpired, CreditConsumed, CreditsExpired],
        "50 were not held, 50 come back too late"
    );
    let ran = world.release(released).accepted();
    assert_eq!(ran.events(), [HoldReleased, CreditsExpired]);
    assert_eq!((world.balance().as_str(), world.state().grants.len()), ("0", 0));
}

#[test]
fn the_end_of_the_subscription_leaves_holds_capturable() {
    let mut world = World::on(plan());
    let hold_id = world.place("1050");
    let ran = world.cancel(Effective::Immediate).accepted();
    assert_eq!(ran.events(), [SubscriptionChanged]);
    assert_eq!((world.balance().as_str(), world.spendable().as_str()), ("1000", "0"));
    let ran = world.capture(hold_id, "1020").accepted();
    check(&ran.receipt(), &[("captured_credits", json!("1020")), ("overdraft_credits", json!("20"))]);
    let credits = &world.state().credits;
    assert_eq!((credits.debt_credits, credits.overdraft_limit), (Credits::whole(20), Credits::whole(20)));
    assert_eq!(world.spendable(), "0");
}

#[test]
fn a_lower_overdraft_takes_nothing_from_a_hold_and_comes_into_force_when_it_ends() {
    let mut world = World::on(plan());
    let hold_id = world.place("1050");
    let mut lower = plan();
    lower.plan_code = crate::domain::text::PlanCode::new("lower").unwrap();
    lower.overdraft_limit = Credits::whole(10);
    world.add_plan(lower);
    world.change("lower", Effective::Immediate, CreditPolicy::None).accepted();
    assert_eq!((world.state().credits.overdraft_limit, world.spendable().as_str()), (Credits::whole(50), "0"));
    world.release(hold_id).accepted();
    assert_eq!((world.state().credits.overdraft_limit, world.spendable().as_str()), (Credits::whole(10), "1010"));
}

#[test]
fn released_credits_repay_debt_and_bought_ones_repay_a_captured_overdraft() {
    let mut world = World::on(plan());
    let hold_id = world.place("1000");
    world.deduct("render", "60").accepted();
    assert_eq!(world.state().credits.debt_credits, Credits::whole(60));
    world.release(hold_id).accepted();
    assert_eq!((world.state().credits.debt_credits, world.balance().as_str()), (Credits::ZERO, "940"));

    let mut world = World::on(plan());
    let hold_id = world.place("1050");
    world.purchase("40", "p").accepted();
    let overdraft = CaptureHold { overrun: Overrun::Overdraft, ..capture(hold_id, Some("1055")) };
    let ran = world.capture_with(overdraft).accepted();
    check(&ran.receipt(), &[("captured_credits", json!("1055")), ("current_credits", json!("-15"))]);
    assert_eq!(world.state().credits.debt_credits, Credits::whole(15));
}

#[test]
fn a_hold_warns_like_a_deduction_and_its_end_arms_the_warning_again() {
    let mut world = World::on(PlanVersion { overdraft_limit: Credits::ZERO, ..pro() });
    let ran = world.hold(place("900")).accepted();
    assert_eq!(ran.events(), [CreditsHeld, LowCreditWarning]);
    let hold_id = id(&ran.receipt());
    assert_eq!(world.release(hold_id).accepted().events(), [HoldReleased]);
    assert_eq!(world.hold(place("950")).accepted().events(), [CreditsHeld, LowCreditWarning]);
}

#[test]
fn holds_and_their_grants_are_bounded() {
    let mut world = World::on(plan());
    for _ in 0..MAX_OPEN_HOLDS {
        world.place("0.1");
    }
    assert_eq!(world.hold(place("0.1")).code(), "too-many-holds");
    world.at("2026-01-31T01:00:00Z").place("0.1");
    assert_eq!(world.state().holds.len(), 1, "all others have expired");

    let mut world = World::on(PlanVersion { allowance: Credits::ZERO, ..plan() });
    for n in 0..=MAX_GRANTS_PER_HOLD {
        world.purchase("1", &format!("p{n}")).accepted();
    }
    assert_eq!(world.hold(place("50.5")).code(), "hold-spans-too-many-grants");
    let least = PlaceHold { min_credits: Some(parsed("1")), ..place("51") };
    assert_eq!(world.hold(least).accepted().receipt()["credits"], json!("50"));
    assert_eq!(world.hold(place("101")).accepted().receipt()["overdraft_credits"], json!("100"));
}

#[test]
fn a_feature_that_is_free_can_be_held_and_captured() {
    let mut free = plan();
    let terms = FeatureTerms { enabled: true, unit_price: Some(Credits::ZERO), limit: None };
    free.features.insert(FeatureCode::new("render").unwrap(), terms);
    let mut world = World::on(free);
    let charge = Charge::Quantity("3".parse().unwrap());
    let hold_id = id(&world.hold(PlaceHold { charge, ..place("1") }).accepted().receipt());
    assert_eq!((world.held().as_str(), world.state().holds.len()), ("0", 1));
    let ran = world.capture_with(CaptureHold { charge: Some(charge), ..capture(hold_id, None) }).accepted();
    check(&ran.receipt(), &[("captured_credits", json!("0")), ("quantity", json!("3"))]);
}

#[test]
fn commands_of_one_batch_see_each_others_holds() {
    use crate::domain::batch::{Batch, Outcome};
    use crate::domain::tests::PlainRender;
    let mut world = World::on(plan());
    let placing = world.envelope(Command::PlaceHold(place("700")));
    let mut batch = Batch::new(world.snapshot.clone(), &PlainRender, &PlainRender);
    let Outcome::Accepted(placed) = batch.run(&placing).unwrap() else { panic!("refused") };
    let hold_id = id(&serde_json::from_str(&placed.body).unwrap());
    let too_much = world.envelope(Command::PlaceHold(place("401")));
    let first = world.envelope(Command::CaptureHold(capture(hold_id, None)));
    let second = world.envelope(Command::CaptureHold(capture(hold_id, None)));
    let codes: Vec<_> = [too_much, first, second]
        .iter()
        .map(|envelope| match batch.run(envelope).unwrap() {
            Outcome::Refused { rejection, .. } => rejection.code(),
            Outcome::Accepted(_) => "accepted",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(codes, ["insufficient-credits", "accepted", "hold-over"]);
    let (changes, _) = batch.finish();
    let [hold] = &changes.holds.inserted[..] else { panic!("{:?}", changes.holds) };
    assert_eq!((hold.state, changes.held_shares.len(), changes.holds.updated.len()), (HoldState::Captured, 1, 0));
}
