//! Refunds of usage and reversals of purchases.

use serde_json::{Value, json};

use crate::domain::commands::{
    CaptureHold, Charge, Command, PlaceHold, PurchaseCredits, RefundUsage, ReleaseHold, ReversePurchase,
};
use crate::domain::credits::Credits;
use crate::domain::event::EventType::{
    CreditConsumed, CreditReset, CreditsRefunded, LowCreditWarning, PurchaseReversed,
};
use crate::domain::grant::{GrantSource, MAX_OPEN_GRANTS};
use crate::domain::hold::{HoldDuration, Overrun};
use crate::domain::ids::{GrantId, HoldId};
use crate::domain::plan::tests::pro;
use crate::domain::plan::{PlanVersion, PurchasedOnCancel, ReversalShortfall};
use crate::domain::reversal::{ReversalReason, ReversedAmount};
use crate::domain::subscription::Effective;
use crate::domain::tests::{Ran, World, json as parsed, purchase};
use crate::domain::text::FeatureCode;
use crate::domain::usage::UsageId;

/// No allowance, no thresholds, an overdraft of 100 credits.
fn plan() -> PlanVersion {
    PlanVersion {
        allowance: Credits::ZERO,
        overdraft_limit: Credits::whole(100),
        low_credit_thresholds: Vec::new(),
        ..pro()
    }
}

fn usage_id(ran: &Ran) -> UsageId {
    parsed(ran.receipt()["usage_id"].as_str().unwrap())
}

fn grant_id(ran: &Ran) -> GrantId {
    GrantId(ran.receipt()["grant_id"].as_str().unwrap().parse().unwrap())
}

/// The credits that went to each grant.
fn shares(ran: &Ran) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let share = |share: &Value| (text(&share["source"]), text(&share["credits"]));
    ran.receipt()["grants"].as_array().unwrap().iter().map(share).collect()
}

fn share(source: &str, credits: &str) -> (String, String) {
    (source.to_owned(), credits.to_owned())
}

impl World {
    fn refund(&mut self, usage_id: UsageId, credits: Option<&str>) -> Ran {
        let credits = credits.map(parsed);
        self.run(Command::RefundUsage(RefundUsage { usage_id, credits, reason: None }))
    }

    fn reverse(&mut self, grant_id: GrantId, amount: ReversedAmount) -> Ran {
        self.run(Command::ReversePurchase(ReversePurchase { grant_id, amount, reason: ReversalReason::Refund }))
    }

    fn buy(&mut self, credits: &str, bonus: Option<&str>, reference: &str) -> GrantId {
        let Command::PurchaseCredits(command) = purchase(credits, reference) else { unreachable!() };
        let command = PurchaseCredits { bonus_credits: bonus.map(parsed), ..command };
        grant_id(&self.run(Command::PurchaseCredits(command)).accepted())
    }

    fn hold_for_a_week(&mut self, credits: &str) -> HoldId {
        let hold = PlaceHold {
            feature_code: FeatureCode::new("render").unwrap(),
            charge: Charge::Credits(parsed(credits)),
            min_credits: None,
            duration: HoldDuration::new(7 * 24 * 3600).unwrap(),
            user_id: None,
            explain: false,
            job: None,
        };
        let placed = self.run(Command::PlaceHold(hold)).accepted();
        HoldId(placed.receipt()["hold_id"].as_str().unwrap().parse().unwrap())
    }

    fn figures(&self) -> [String; 3] {
        let credits = &self.state().credits;
        [credits.current_credits, credits.debt_credits, credits.used_this_month].map(|credits| credits.to_string())
    }
}

#[test]
fn a_refund_gives_back_what_was_taken_last_first() {
    let mut world = World::on(plan());
    world.purchase_until("10", "soon", "2026-03-01T00:00:00Z").accepted();
    world.purchase("20", "later").accepted();
    let deducted = usage_id(&world.deduct("render", "50").accepted());
    assert_eq!(world.figures(), ["-20", "20", "50"]);
    for (credits, expected, overdraft, figures) in [
        (Some("5"), vec![], json!("5"), ["-15", "15", "45"]),
        (Some("20"), vec![share("purchase", "5")], json!("15"), ["5", "0", "25"]),
        (None, vec![share("purchase", "15"), share("purchase", "10")], Value::Null, ["30", "0", "0"]),
    ] {
        let ran = world.refund(deducted, credits).accepted();
        assert_eq!((ran.events(), shares(&ran)), (vec![CreditsRefunded], expected), "{credits:?}");
        assert_eq!(
            (&ran.receipt()["overdraft_credits"], world.figures().each_ref().map(String::as_str)),
            (&overdraft, figures)
        );
    }
    for credits in [None, Some("0.000001")] {
        assert_eq!(world.refund(deducted, credits).code(), "refund-exceeds-usage");
    }
    let unknown = UsageId { seq: 99, ..deducted };
    assert_eq!(world.refund(unknown, None).code(), "usage-log-not-found");
}

#[test]
fn a_refund_after_the_period_counts_in_none_and_goes_to_an_adjustment() {
    let mut world = World::on(PlanVersion { allowance: Credits::whole(100), rollover_cap: Credits::ZERO, ..plan() });
    let deducted = usage_id(&world.deduct("render", "60").accepted());
    let ran = world.at("2026-03-05T00:00:00Z").refund(deducted, Some("25")).accepted();
    assert_eq!(ran.events(), [CreditReset, CreditsRefunded]);
    assert_eq!(shares(&ran), [share("adjustment", "25")]);
    assert_eq!(world.figures(), ["125", "0", "0"]);
    let adjustment = world.state().grants.iter().find(|grant| grant.source == GrantSource::Adjustment).unwrap();
    assert_eq!(adjustment.expires_at.unwrap().to_string(), "2026-04-04T00:00:00.000000Z", "30 days");
}

#[test]
fn an_overdraft_that_was_repaid_meanwhile_comes_back_as_credits() {
    let mut world = World::on(plan());
    let deducted = usage_id(&world.deduct("render", "80").accepted());
    world.buy("50", None, "p");
    assert_eq!(world.figures(), ["-30", "30", "80"]);
    let ran = world.refund(deducted, None).accepted();
    assert_eq!((&ran.receipt()["overdraft_credits"], shares(&ran)), (&json!("30"), vec![share("adjustment", "50")]));
    assert_eq!(world.figures(), ["50", "0", "0"]);
}

#[test]
fn a_capture_can_be_refunded_too() {
    let mut world = World::on(plan());
    world.buy("100", None, "p");
    let hold_id = world.hold_for_a_week("40");
    let charge = Some(Charge::Credits(parsed("70")));
    let capture = CaptureHold { hold_id, charge, overrun: Overrun::ChargeAvailable, late_capture: false, job: None };
    let captured = usage_id(&world.run(Command::CaptureHold(capture)).accepted());
    let ran = world.refund(captured, None).accepted();
    assert_eq!((shares(&ran), world.figures()), (vec![share("purchase", "70")], ["100", "0", "0"].map(str::to_owned)));
}

#[test]
fn a_closed_grant_comes_back_with_the_expiry_that_the_cancellation_would_have_given_it() {
    let mut world = World::on(PlanVersion { purchased_on_cancel: PurchasedOnCancel::ExpireAfterDays(10), ..plan() });
    world.buy("10", None, "p");
    let deducted = usage_id(&world.deduct("render", "10").accepted());
    assert!(world.state().grants.is_empty());
    world.cancel(Effective::Immediate).accepted();
    world.refund(deducted, None).accepted();
    let [grant] = &world.state().grants[..] else { panic!("{:?}", world.state().grants) };
    let canceled_at = world.state().subscription.canceled_at.unwrap();
    assert_eq!(grant.expires_at, Some(canceled_at.plus(chrono::TimeDelta::days(10))));
}

#[test]
fn a_refund_that_needs_one_grant_too_many_is_refused() {
    let mut world = World::on(plan());
    world.buy("10", None, "spent");
    let deducted = usage_id(&world.deduct("render", "10").accepted());
    for n in 0..MAX_OPEN_GRANTS {
        world.buy("1", None, &format!("p{n}"));
    }
    assert_eq!(world.refund(deducted, None).code(), "too-many-grants");
}

#[test]
fn a_reversal_takes_what_remains_and_its_bonus_in_proportion() {
    let mut world = World::on(plan());
    let bought = world.buy("100", Some("10"), "p");
    let ran = world.reverse(bought, ReversedAmount::Credits(parsed("25"))).accepted();
    assert_eq!(ran.events(), [PurchaseReversed]);
    for (field, value) in [
        ("credits_removed", json!("25")),
        ("bonus_removed", json!("2.5")),
        ("credits_owed", json!("0")),
        ("amount_minor", json!(250)),
        ("current_credits", json!("82.5")),
    ] {
        assert_eq!((&ran.receipt()[field], &ran.data(PurchaseReversed)[field]), (&value, &value), "{field}");
    }
    let ran = world.reverse(bought, ReversedAmount::Minor(1)).accepted();
    assert_eq!(ran.receipt()["credits_removed"], json!("0.1"));
    let ran = world.reverse(bought, ReversedAmount::All).accepted();
    assert_eq!((&ran.receipt()["credits_removed"], &ran.receipt()["amount_minor"]), (&json!("74.9"), &json!(749)));
    assert_eq!(world.balance(), "0");
    assert_eq!(world.reverse(bought, ReversedAmount::All).code(), "reversal-exceeds-purchase");
    let unknown = GrantId(uuid::Uuid::nil());
    assert_eq!(world.reverse(unknown, ReversedAmount::All).code(), "purchase-not-found");
}

#[test]
fn what_was_spent_is_owed_or_written_off() {
    for (shortfall, owed, written_off, figures) in [
        (ReversalShortfall::Debt, "190", "0", ["-190", "190", "200"]),
        (ReversalShortfall::WriteOff, "0", "190", ["0", "0", "200"]),
    ] {
        let mut world =
            World::on(PlanVersion { reversal_shortfall: shortfall, overdraft_limit: Credits::ZERO, ..plan() });
        let bought = world.buy("200", Some("10"), "p");
        world.deduct("render", "200").accepted();
        let ran = world.reverse(bought, ReversedAmount::All).accepted();
        let receipt = ran.receipt();
        assert_eq!(
            [
                &receipt["credits_removed"],
                &receipt["credits_owed"],
                &receipt["credits_written_off"],
                &receipt["bonus_removed"]
            ],
            [&json!("10"), &json!(owed), &json!(written_off), &json!("0")],
            "the bonus was spent first, and nobody owes it"
        );
        assert_eq!(world.figures().each_ref().map(String::as_str), figures);
        assert_eq!(world.deduct("render", "1").code(), "insufficient-credits");
    }
}

#[test]
fn other_credits_repay_at_once_what_is_owed() {
    let mut world = World::on(plan());
    let first = world.buy("100", None, "first");
    world.deduct("render", "100").accepted();
    world.buy("160", None, "second");
    let ran = world.reverse(first, ReversedAmount::All).accepted();
    assert_eq!((&ran.receipt()["credits_owed"], &ran.receipt()["debt_repaid"]), (&json!("100"), &json!("100")));
    assert_eq!(world.figures().each_ref().map(String::as_str), ["60", "0", "100"]);
}

#[test]
fn a_reversal_warns_like_a_deduction_and_a_refund_arms_the_warning_again() {
    let thresholds = vec![Credits::whole(50)];
    let mut world =
        World::on(PlanVersion { low_credit_thresholds: thresholds, overdraft_limit: Credits::ZERO, ..plan() });
    let bought = world.buy("200", None, "p");
    let deducted = usage_id(&world.deduct("render", "100").accepted());
    let ran = world.reverse(bought, ReversedAmount::Credits(parsed("60"))).accepted();
    assert_eq!(ran.events(), [PurchaseReversed, LowCreditWarning]);
    assert_eq!(world.refund(deducted, None).accepted().events(), [CreditsRefunded]);
    assert_eq!(world.deduct("render", "100").accepted().events(), [CreditConsumed, LowCreditWarning]);
}

/// What is held would come back for nothing. So it is owed, and repays that when it comes back, whatever became of its
/// grant meanwhile.
#[test]
fn a_reversal_of_what_is_held_leaves_nothing_and_no_debt_if_it_is_not_used() {
    for shortfall in [ReversalShortfall::Debt, ReversalShortfall::WriteOff] {
        for has_expired in [false, true] {
            let mut world =
                World::on(PlanVersion { reversal_shortfall: shortfall, overdraft_limit: Credits::ZERO, ..plan() });
            let Command::PurchaseCredits(command) = purchase("100", "p") else { unreachable!() };
            let expires_at = Some("2026-02-05T00:00:00Z".parse().unwrap());
            let command = PurchaseCredits { bonus_credits: Some(parsed("20")), expires_at, ..command };
            let bought = grant_id(&world.run(Command::PurchaseCredits(command)).accepted());
            let hold_id = world.hold_for_a_week("110");
            let ran = world.reverse(bought, ReversedAmount::All).accepted();
            let receipt = ran.receipt();
            let figures =
                ["credits_removed", "credits_owed", "bonus_removed", "bonus_owed"].map(|field| &receipt[field]);
            assert_eq!(figures, [&json!("10"), &json!("90"), &json!("0"), &json!("20")]);
            if has_expired {
                world.at("2026-02-06T00:00:00Z");
            }
            world.run(Command::ReleaseHold(ReleaseHold { hold_id, job: None })).accepted();
            assert_eq!(world.figures(), ["0", "0", "0"].map(str::to_owned), "{shortfall:?} {has_expired}");
        }
    }
}

/// As a deduction would: those that expire soonest first, although others began before.
#[test]
fn what_a_reversal_owes_is_repaid_in_burn_order() {
    let mut world = World::on(PlanVersion { allowance: Credits::whole(100), ..plan() });
    let first = world.purchase_until("10", "first", "2026-02-05T00:00:00Z").accepted();
    world.deduct("render", "10").accepted();
    world.purchase_until("10", "second", "2026-02-05T00:00:00Z").accepted();
    world.reverse(grant_id(&first), ReversedAmount::All).accepted();
    world.at("2026-02-06T00:00:00Z").deduct("render", "1").accepted();
    assert_eq!(world.figures(), ["99", "0", "11"], "the second purchase has repaid, and nothing of it has expired");
}
