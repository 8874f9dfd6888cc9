//! Granting credits and voiding grants, also those that begin later.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::batch::Outcome;
use crate::domain::commands::{Command, GrantCredits, VoidGrant, WarnOfExpiry, available_credits};
use crate::domain::credits::Credits;
use crate::domain::event::EventType::{
    CreditConsumed, CreditReset, CreditsExpired, CreditsExpiring, CreditsGranted, DebtRepaid, GrantVoided,
    LowCreditWarning,
};
use crate::domain::grant::{GrantedSource, MAX_OPEN_GRANTS, Priority};
use crate::domain::ids::GrantId;
use crate::domain::ledger::Account;
use crate::domain::plan::tests::pro;
use crate::domain::plan::{PlanVersion, PurchasedOnCancel};
use crate::domain::subscription::{CreditPolicy, Effective};
use crate::domain::tests::{Ran, World, json as parsed};
use crate::domain::text::{FeatureCode, Label};

/// A plan without an allowance, with an overdraft of 100 credits and a threshold at 10.
fn plan() -> PlanVersion {
    PlanVersion {
        allowance: Credits::ZERO,
        overdraft_limit: Credits::whole(100),
        low_credit_thresholds: vec![Credits::whole(10)],
        ..pro()
    }
}

fn without_overdraft() -> PlanVersion {
    PlanVersion { overdraft_limit: Credits::ZERO, ..plan() }
}

fn grant(credits: &str) -> GrantCredits {
    GrantCredits {
        credits: parsed(credits),
        source: GrantedSource::Promotion,
        priority: Priority::default(),
        effective_at: None,
        expires_at: None,
        feature_scope: None,
        reason: Label::new("Welcome offer").unwrap(),
    }
}

fn grant_from(credits: &str, effective_at: &str) -> GrantCredits {
    GrantCredits { effective_at: Some(effective_at.parse().unwrap()), ..grant(credits) }
}

impl World {
    fn grant(&mut self, command: GrantCredits) -> Ran {
        self.run(Command::GrantCredits(command))
    }

    fn void(&mut self, grant_id: &Value, credits: Option<&str>) -> Ran {
        let grant_id = GrantId(grant_id.as_str().unwrap().parse().unwrap());
        let (credits, reason) = (credits.map(parsed), Label::new("Granted twice").unwrap());
        self.run(Command::VoidGrant(VoidGrant { grant_id, credits, reason }))
    }

    fn available(&self) -> String {
        available_credits(&self.state().clone().as_of(self.now), self.now).to_string()
    }
}

#[test]
fn a_grant_adds_credits_and_tells_everything_about_it() {
    let mut world = World::on(plan());
    let command = GrantCredits {
        source: GrantedSource::Adjustment,
        priority: Priority::new(7).unwrap(),
        expires_at: Some("2026-03-01T00:00:00Z".parse().unwrap()),
        feature_scope: FeatureCode::new("render").ok(),
        ..grant("12.5")
    };
    let ran = world.grant(command).accepted();
    assert_eq!((ran.events(), world.balance().as_str()), (vec![CreditsGranted], "12.5"));
    let (receipt, event) = (ran.receipt(), ran.data(CreditsGranted));
    for (field, value) in [
        ("source", json!("adjustment")),
        ("credits", json!("12.5")),
        ("priority", json!(7)),
        ("effective_at", json!("2026-01-31T00:00:00.000000Z")),
        ("expires_at", json!("2026-03-01T00:00:00.000000Z")),
        ("feature_scope", json!("render")),
        ("reason", json!("Welcome offer")),
        ("debt_repaid", json!("0")),
        ("spendable", json!(true)),
        ("current_credits", json!("12.5")),
        ("grant_id", receipt["grant_id"].clone()),
    ] {
        assert_eq!((&receipt[field], &event[field]), (&value, &value), "{field}");
    }
    let stored = &ran.changes.grants.inserted[0];
    assert_eq!(stored.reason.as_ref().unwrap().as_str(), "Welcome offer");
    assert_eq!(ran.changes.ledger_entries[0].accounts.debit, Account::Issued(stored.source));
}

#[test]
fn a_grant_of_a_wrong_time_or_for_an_unknown_feature_is_refused_and_not_recorded() {
    let mut world = World::on(plan());
    let with = |effective_at: Option<&str>, expires_at: Option<&str>| GrantCredits {
        effective_at: effective_at.map(|at| at.parse().unwrap()),
        expires_at: expires_at.map(|at| at.parse().unwrap()),
        ..grant("1")
    };
    let unknown = GrantCredits { feature_scope: FeatureCode::new("rendr").ok(), ..grant("1") };
    for (command, code) in [
        (with(Some("2036-02-01T00:00:00.000001Z"), None), "invalid-field"),
        (with(None, Some("2026-01-31T00:00:00Z")), "invalid-field"),
        (with(Some("2026-03-01T00:00:00Z"), Some("2026-03-01T00:00:00Z")), "invalid-field"),
        (with(None, Some("2036-02-01T00:00:00.000001Z")), "invalid-field"),
        (unknown, "feature-not-found"),
    ] {
        let ran = world.grant(command.clone());
        assert_eq!((ran.code(), ran.changes.is_empty()), (code, true), "{command:?}");
    }
    world.grant(with(Some("2036-01-31T00:00:00Z"), Some("2036-02-01T00:00:00Z"))).accepted();
    let past = world.grant(with(Some("2020-01-01T00:00:00Z"), None)).accepted();
    assert_eq!(past.receipt()["effective_at"], "2026-01-31T00:00:00.000000Z", "taken as now");
}

#[test]
fn grants_count_towards_the_maximum_of_open_grants() {
    let mut world = World::on(plan());
    for _ in 0..MAX_OPEN_GRANTS {
        world.grant(grant_from("1", "2026-06-01T00:00:00Z")).accepted();
    }
    assert_eq!(world.grant(grant("1")).code(), "too-many-grants");
}

#[test]
fn the_priority_and_the_feature_of_a_grant_decide_when_it_is_spent() {
    let mut world = World::on(plan());
    let first = world.grant(GrantCredits { priority: Priority::new(51).unwrap(), ..grant("5") }).receipt();
    let second = world.grant(GrantCredits { priority: Priority::new(0).unwrap(), ..grant("5") }).receipt();
    let scoped = GrantCredits { feature_scope: FeatureCode::new("upscale").ok(), ..grant("5") };
    let scoped = world.grant(scoped).receipt();
    let shares = world.deduct("render", "11").receipt();
    let ids: Vec<_> = shares["grants"].as_array().unwrap().iter().map(|share| share["grant_id"].clone()).collect();
    assert_eq!(
        (ids, &shares["overdraft_credits"]),
        (vec![second["grant_id"].clone(), first["grant_id"].clone()], &json!("1"))
    );
    assert_eq!(world.deduct("upscale", "1").receipt()["grants"][0]["grant_id"], scoped["grant_id"]);
    assert_eq!(world.available(), "99", "credits for one feature are not available to any");
}

#[test]
fn a_grant_that_begins_later_is_in_the_balance_and_cannot_be_spent_before() {
    let mut world = World::on(without_overdraft());
    let ran = world.grant(grant_from("50", "2026-02-10T00:00:00Z")).accepted();
    assert_eq!((&ran.receipt()["spendable"], world.balance().as_str()), (&json!(false), "50"));
    assert_eq!(ran.changes.ledger_entries[0].effective_at, world.now, "an entry counts at once");
    world.at("2026-02-09T23:59:59.999999Z");
    assert_eq!((world.available().as_str(), world.deduct("render", "1").code()), ("0", "insufficient-credits"));
    world.at("2026-02-10T00:00:00Z");
    assert_eq!(world.available(), "50");
    world.deduct("render", "50").accepted();
}

#[test]
fn a_grant_that_begins_later_warns_nobody_and_rearms_no_warning() {
    let mut world = World::on(without_overdraft());
    world.grant(grant("20")).accepted();
    assert_eq!(world.deduct("render", "15").events(), [CreditConsumed, LowCreditWarning]);
    // Neither granting nor voiding it reports or re-arms the threshold.
    let granted = world.grant(grant_from("100", "2026-02-10T00:00:00Z"));
    assert_eq!(granted.events(), [CreditsGranted]);
    assert_eq!(world.deduct("render", "1").events(), [CreditConsumed]);
    assert_eq!(world.void(&granted.receipt()["grant_id"], Some("40")).events(), [GrantVoided]);
    // It has been above the threshold since, though no command came in between.
    world.at("2026-02-10T00:00:00Z");
    assert_eq!(world.deduct("render", "55").events(), [CreditConsumed, LowCreditWarning]);
    assert_eq!(world.deduct("render", "1").events(), [CreditConsumed]);
}

#[test]
fn a_workspace_that_began_with_few_credits_is_not_warned_by_a_grant_that_begins_later() {
    let mut world = World::on(without_overdraft());
    let granted = world.grant(grant_from("100", "2026-02-10T00:00:00Z"));
    assert_eq!(granted.events(), [CreditsGranted]);
    assert_eq!(world.void(&granted.receipt()["grant_id"], None).events(), [GrantVoided]);
    let scoped = GrantCredits { feature_scope: FeatureCode::new("render").ok(), ..grant("5") };
    assert_eq!(world.grant(scoped).events(), [CreditsGranted]);
}

#[test]
fn the_expiry_of_a_grant_is_announced_only_once_it_has_begun() {
    let mut world = World::on(without_overdraft());
    world.purchase("20", "pay-1").accepted();
    let expires_at = Some("2026-02-12T00:00:00Z".parse().unwrap());
    world.grant(GrantCredits { expires_at, ..grant_from("5", "2026-02-10T00:00:00Z") }).accepted();
    world.at("2026-02-09T23:59:59.999999Z");
    assert_eq!(world.run(Command::WarnOfExpiry(WarnOfExpiry)).outcome, Outcome::Nothing);
    world.at("2026-02-10T00:00:00Z");
    assert_eq!(world.run(Command::WarnOfExpiry(WarnOfExpiry)).events(), [CreditsExpiring]);
    assert_eq!(world.at("2026-02-12T00:00:00Z").deduct("render", "1").events()[0], CreditsExpired);
}

#[test]
fn a_grant_repays_debt_and_one_that_begins_later_repays_it_then() {
    let mut world = World::on(plan());
    world.deduct("render", "70").accepted();
    world.grant(grant_from("50", "2026-02-10T00:00:00Z")).accepted();
    assert_eq!((world.balance().as_str(), world.available().as_str()), ("-20", "30"));
    assert_eq!(world.grant(grant("5")).receipt()["debt_repaid"], "5");
    world.at("2026-02-09T00:00:00Z").deduct("render", "5").accepted();
    assert_eq!(world.state().credits.debt_credits, Credits::whole(70));
    // Reads show it at once, and the next command of the workspace records it as it was then.
    world.at("2026-02-11T00:00:00Z");
    assert_eq!(world.state().clone().as_of(world.now).credits.debt_credits, Credits::whole(20));
    let ran = world.deduct("render", "1").accepted();
    assert_eq!(ran.events(), [DebtRepaid, CreditConsumed]);
    let told = ran.data(DebtRepaid);
    assert_eq!((&told["credits"], &told["debt_credits"]), (&json!("50"), &json!("20")));
    assert_eq!((&told["grants"][0]["credits"], told["grants"].as_array().unwrap().len()), (&json!("50"), 1));
    let repaid = &ran.changes.ledger_entries[0];
    assert_eq!((&repaid.accounts.credit, repaid.amount), (&Account::Debt, Credits::whole(50)));
    assert_eq!(repaid.effective_at, "2026-02-10T00:00:00Z".parse().unwrap());
    assert_eq!(ran.changes.commands[0].command_type, "RepayDebt");
    assert_eq!(world.state().credits.debt_credits, Credits::whole(21));
}

#[test]
fn a_grant_repays_debt_when_it_begins_also_where_it_has_expired_or_a_period_has_begun_since() {
    let scheduled = |world: &mut World| {
        world.deduct("render", "70").accepted();
        let expires_at = Some("2026-02-20T00:00:00Z".parse().unwrap());
        world.grant(GrantCredits { expires_at, ..grant_from("50", "2026-02-10T00:00:00Z") }).accepted();
    };
    let mut world = World::on(plan());
    scheduled(&mut world);
    let ran = world.at("2026-02-21T00:00:00Z").deduct("render", "1").accepted();
    let events = vec![DebtRepaid, CreditConsumed];
    assert_eq!((ran.events(), world.balance().as_str()), (events, "-21"), "nothing was left to expire");
    // Recorded after two boundaries, it still comes before the allowance of the first.
    let mut world = World::on(PlanVersion { allowance: Credits::whole(40), rollover_cap: Credits::ZERO, ..plan() });
    world.deduct("render", "40").accepted();
    scheduled(&mut world);
    let ran = world.at("2026-04-01T00:00:00Z").deduct("render", "1").accepted();
    assert_eq!(ran.events(), [DebtRepaid, CreditReset, CreditReset, DebtRepaid, CreditConsumed]);
    let resets: Vec<_> = ran.changes.events.iter().filter(|event| event.event_type == CreditReset).collect();
    let repaid: Vec<Value> = resets.iter().map(|event| serde_json::from_str(&event.data).unwrap()).collect();
    let repaid: Vec<_> = repaid.iter().map(|data| data["debt_repaid"].as_str().unwrap()).collect();
    assert_eq!(repaid, ["20", "0"]);
}

#[test]
fn a_grant_that_begins_between_two_missed_boundaries_repays_before_the_second_allowance() {
    let mut world = World::on(PlanVersion { allowance: Credits::whole(10), rollover_cap: Credits::ZERO, ..plan() });
    world.deduct("render", "60").accepted();
    world.grant(grant_from("45", "2026-03-10T00:00:00Z")).accepted();
    world.at("2026-04-01T00:00:00Z").deduct("render", "1").accepted();
    // 50 of debt: 10 by the allowance of February 28, 40 by the grant, and 5 of it are left.
    let remaining: Vec<_> = world.state().grants.iter().map(|grant| grant.remaining.to_string()).collect();
    assert_eq!((remaining, world.balance().as_str()), (vec!["9".to_owned(), "5".to_owned()], "14"));
}

#[test]
fn a_grant_is_voided_in_parts_and_nothing_more_than_what_remains() {
    let mut world = World::on(plan());
    let granted = world.grant(grant("30")).receipt();
    let id = &granted["grant_id"];
    world.deduct("render", "4").accepted();
    let ran = world.void(id, Some("10")).accepted();
    assert_eq!(ran.events(), [GrantVoided]);
    let event = ran.data(GrantVoided);
    for (field, value) in [
        ("grant_id", id.clone()),
        ("source", json!("promotion")),
        ("credits", json!("10")),
        ("remaining_credits", json!("16")),
        ("reason", json!("Granted twice")),
        ("current_credits", json!("16")),
    ] {
        assert_eq!((&event[field], &ran.receipt()[field]), (&value, &value), "{field}");
    }
    let accounts = &ran.changes.ledger_entries[0].accounts;
    assert_eq!(accounts.credit.label(), "issued:promotion");
    assert_eq!(world.void(id, Some("16.000001")).code(), "void-exceeds-remaining");
    assert_eq!(world.void(id, None).receipt()["credits"], "16");
    // The closed grant is known from the batch, or is looked up.
    for credits in [None, Some("1")] {
        let refused = world.void(id, credits);
        assert_eq!((refused.code(), refused.changes.commands.len()), ("grant-closed", 1));
    }
}

#[test]
fn only_promotions_and_adjustments_of_the_workspace_can_be_voided() {
    let mut world = World::on(pro());
    world.purchase("5", "pay-1").accepted();
    let ids: Vec<_> = world.state().grants.iter().map(|grant| json!(grant.grant_id)).collect();
    assert_eq!(ids.len(), 2);
    for id in &ids {
        assert_eq!(world.void(id, None).code(), "grant-not-voidable");
    }
    let adjusted = GrantCredits { source: GrantedSource::Adjustment, ..grant("5") };
    let adjusted = world.grant(adjusted).receipt();
    world.void(&adjusted["grant_id"], None).accepted();
    let unknown = world.void(&json!(Uuid::from_u128(9)), None);
    assert_eq!((unknown.code(), unknown.changes.is_empty()), ("grant-not-found", true));
}

#[test]
fn a_void_that_crosses_a_threshold_warns() {
    let mut world = World::on(without_overdraft());
    let granted = world.grant(grant("30")).receipt();
    assert_eq!(world.void(&granted["grant_id"], Some("19")).events(), [GrantVoided]);
    assert_eq!(world.void(&granted["grant_id"], Some("1")).events(), [GrantVoided, LowCreditWarning]);
}

#[test]
fn a_grant_to_an_ended_subscription_is_frozen_as_a_purchase_is_and_can_be_voided() {
    let mut world = World::on(PlanVersion { purchased_on_cancel: PurchasedOnCancel::Freeze, ..without_overdraft() });
    world.cancel(Effective::Immediate).accepted();
    let promotion = world.grant(grant("30")).receipt();
    assert_eq!(promotion["spendable"], false);
    assert_eq!(world.deduct("render", "1").code(), "insufficient-credits");
    let adjustment = world.grant(GrantCredits { source: GrantedSource::Adjustment, ..grant("2") }).receipt();
    assert_eq!(adjustment["spendable"], true, "a correction is not frozen");
    world.deduct("render", "1").accepted();
    assert_eq!(world.void(&promotion["grant_id"], Some("10")).events(), [GrantVoided]);
    world.change("pro", Effective::Immediate, CreditPolicy::None).accepted();
    world.deduct("render", "21").accepted();
}

#[test]
fn an_expired_grant_is_booked_before_a_void_and_is_closed() {
    let mut world = World::on(plan());
    let expires_at = Some("2026-02-02T00:00:00Z".parse().unwrap());
    let granted = world.grant(GrantCredits { expires_at, ..grant("30") }).receipt();
    let refused = world.at("2026-02-02T00:00:00Z").void(&granted["grant_id"], None);
    assert_eq!((refused.code(), refused.events()), ("grant-closed", vec![CreditsExpired]));
}
