//! Resets, rollover, and boundaries that a late command passes.

use crate::domain::commands::{AdvancePeriod, CancelSubscription, Command, ExpireGrants, ResetMonthlyCredits};
use crate::domain::credits::Credits;
use crate::domain::event::EventType::{CreditConsumed, CreditReset, CreditsExpired, SubscriptionChanged};
use crate::domain::plan::PurchasedOnCancel;
use crate::domain::plan::tests::pro;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::subscription::{CreditPolicy, Effective};
use crate::domain::tests::World;
use crate::domain::text::PlanCode;

fn cancel_at_the_end() -> Command {
    let effective = Effective::PeriodEnd;
    Command::CancelSubscription(CancelSubscription { effective, reason: None, expected_version: None })
}

fn reset(period: Option<&str>) -> Command {
    Command::ResetMonthlyCredits(ResetMonthlyCredits { period: period.map(|at| at.parse().unwrap()) })
}

#[test]
fn a_reset_rolls_over_up_to_the_cap_expires_the_rest_and_grants_the_allowance() {
    let mut world = World::on(pro());
    world.deduct("render", "700").accepted();
    world.purchase("50", "pay-1").accepted();
    let ran = world.at("2026-02-28T00:00:00Z").run(reset(None)).accepted();
    let data = ran.data(CreditReset);
    assert_eq!(data["expired"], "100");
    assert_eq!(data["rolled_over"], "200");
    assert_eq!(data["granted"], "1000");
    assert_eq!(data["previously_used"], "700");
    // Bought credits are untouched.
    assert_eq!(world.balance(), "1250");
    assert_eq!(world.state().credits.used_this_month, Credits::ZERO);
    assert_eq!(ran.receipt()["subscription"]["period"]["end"], "2026-03-31T00:00:00.000000Z");
}

#[test]
fn rolled_over_credits_end_with_the_next_period() {
    let mut world = World::on(pro());
    world.at("2026-02-28T00:00:00Z").run(reset(None)).accepted();
    assert_eq!(world.balance(), "1200");
    let ran = world.at("2026-03-31T00:00:00Z").run(reset(None)).accepted();
    assert_eq!(ran.data(CreditReset)["rolled_over"], "200");
    assert_eq!(ran.data(CreditReset)["expired"], "1000");
    assert_eq!(world.balance(), "1200");
}

#[test]
fn missed_periods_are_caught_up_in_order() {
    let mut world = World::on(pro());
    let ran = world.at("2026-05-15T00:00:00Z").run(reset(Some("2026-02-28T00:00:00Z"))).accepted();
    let starts: Vec<_> = ran.receipt()["resets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reset| reset["period"]["start"].as_str().unwrap()[..10].to_owned())
        .collect();
    assert_eq!(starts, ["2026-02-28", "2026-03-31", "2026-04-30"]);
    assert_eq!(world.balance(), "1200");
    assert_eq!(ran.changes.periods.len(), 3);
}

/// The grants of the first two periods have expired by the time of the command. They repay debt as they would have done.
#[test]
fn allowances_of_missed_periods_repay_debt_as_if_none_had_been_missed() {
    let indebted = || {
        let mut plan = pro();
        (plan.allowance, plan.rollover_cap) = (Credits::whole(40), Credits::ZERO);
        (plan.overdraft_limit, plan.monthly_limit) = (Credits::whole(200), None);
        let mut world = World::on(plan);
        world.deduct("render", "140").accepted();
        world
    };
    let mut at_once = indebted();
    at_once.at("2026-05-15T00:00:00Z").run(reset(None)).accepted();
    let mut in_time = indebted();
    for boundary in ["2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z", "2026-04-30T00:00:00Z"] {
        in_time.at(boundary).run(reset(None)).accepted();
    }
    for world in [at_once, in_time] {
        assert_eq!((world.state().credits.debt_credits, world.balance().as_str()), (Credits::ZERO, "20"));
    }
}

#[test]
fn an_early_reset_or_one_of_another_period_is_refused() {
    let mut world = World::on(pro());
    assert_eq!(world.at("2026-02-27T23:59:59.999999Z").run(reset(None)).code(), "reset-not-due");
    assert_eq!(world.at("2026-02-28T00:00:00Z").run(reset(Some("2026-03-31T00:00:00Z"))).code(), "period-mismatch");
    world.run(reset(None)).accepted();
    assert_eq!(world.run(reset(None)).code(), "reset-not-due");
}

#[test]
fn a_command_after_the_period_end_passes_the_boundary_first() {
    let mut world = World::on(pro());
    world.deduct("render", "1000").accepted();
    let ran = world.at("2026-02-28T00:00:00Z").deduct("render", "1000").accepted();
    assert_eq!(&ran.events()[..2], [CreditReset, CreditConsumed]);
    let commands: Vec<_> = ran.changes.commands.iter().map(|command| command.command_type.as_str()).collect();
    assert_eq!(commands, ["AdvancePeriod", "DeductCredits"]);
    assert_eq!(world.balance(), "0");
}

#[test]
fn a_read_shows_what_the_next_command_finds() {
    let mut world = World::on(pro());
    world.purchase("50", "pay-1").accepted();
    world.deduct("render", "700").accepted();
    world.at("2026-05-15T00:00:00Z");
    let read = world.state().clone().as_of(world.now);
    assert_eq!(read.credits.current_credits.to_string(), "1250");
    assert_eq!(
        (read.credits.used_this_month, read.subscription.period.start.to_string().as_str()),
        (Credits::ZERO, "2026-04-30T00:00:00.000000Z")
    );
    assert_eq!(world.balance(), "350", "nothing of it was recorded");
    world.run(Command::AdvancePeriod(AdvancePeriod)).accepted();
    let ids = |state: &WorkspaceState| state.grants.iter().map(|grant| grant.grant_id).collect::<Vec<_>>();
    assert_eq!(ids(world.state()), ids(&read), "the grants have the ids that were shown");
    assert_eq!(world.state().clone().as_of(world.now), *world.state());
}

#[test]
fn nobody_is_warned_of_few_credits_between_two_periods() {
    let mut world = World::on(pro());
    world.purchase_until("50", "pay-1", "2026-02-10T00:00:00Z").accepted();
    let ran = world.at("2026-03-01T00:00:00Z").run(reset(None)).accepted();
    assert_eq!(ran.events(), [CreditsExpired, CreditReset]);
    world.purchase_until("50", "pay-2", "2026-03-20T00:00:00Z").accepted();
    let booked = world.at("2026-04-01T00:00:00Z").run(Command::ExpireGrants(ExpireGrants)).accepted();
    assert_eq!(booked.events(), [CreditsExpired]);
}

#[test]
fn what_has_expired_is_neither_expiring_nor_frozen() {
    let mut freezing = pro();
    freezing.purchased_on_cancel = PurchasedOnCancel::Freeze;
    let mut world = World::on(freezing);
    world.purchase_until("50", "pay-1", "2026-02-10T00:00:00Z").accepted();
    world.run(cancel_at_the_end()).accepted();
    let ran = world.at("2026-03-01T00:00:00Z").run(Command::AdvancePeriod(AdvancePeriod)).accepted();
    let data = ran.data(SubscriptionChanged);
    assert_eq!((data.get("expiring"), data["frozen_credits"].as_str()), (None, Some("0")), "{data}");
}

#[test]
fn a_read_shows_a_change_that_is_due() {
    let mut world = World::on(pro());
    let mut small = pro();
    (small.plan_code, small.allowance) = (PlanCode::new("small").unwrap(), Credits::whole(7));
    world.add_plan(small);
    world.change("small", Effective::PeriodEnd, CreditPolicy::None).accepted();
    world.at("2026-02-28T00:00:00Z");
    let read = world.state().clone().as_of(world.now);
    world.run(Command::AdvancePeriod(AdvancePeriod)).accepted();
    let mut recorded = world.state().clone();
    assert_eq!(recorded.plan.plan_code.as_str(), "small");
    // A read numbers no command and no event.
    (recorded.credits.version, recorded.credits.event_seq) = (read.credits.version, read.credits.event_seq);
    assert_eq!(read, recorded);
}

#[test]
fn a_read_shows_a_cancellation_that_is_due() {
    let mut world = World::on(pro());
    world.run(cancel_at_the_end()).accepted();
    world.at("2026-02-28T00:00:00Z");
    let read = world.state().clone().as_of(world.now);
    assert_eq!((read.subscription.is_active(), read.subscription.canceled_at), (false, Some(world.now)));
    assert_eq!(read.credits.current_credits, Credits::ZERO);
    assert!(world.state().subscription.is_active());
}

#[test]
fn advancing_twice_starts_a_period_once() {
    let mut world = World::on(pro());
    world.at("2026-02-28T00:00:00Z");
    let first = world.run(Command::AdvancePeriod(AdvancePeriod)).accepted();
    assert_eq!(first.changes.periods.len(), 1);
    assert!(world.run(Command::AdvancePeriod(AdvancePeriod)).changes.is_empty());
}

#[test]
fn many_missed_periods_are_processed_by_bounded_commands() {
    let mut world = World::on(pro());
    world.at("2036-01-31T00:00:00Z");
    let mut commands = 0;
    while world.state().subscription.is_boundary_due(world.now) {
        world.run(Command::AdvancePeriod(AdvancePeriod)).accepted();
        commands += 1;
    }
    assert_eq!(commands, 4, "120 periods, 36 at a time");
    assert_eq!(world.balance(), "1200");
}

#[test]
fn a_boundary_is_passed_even_if_the_allowance_exceeds_the_largest_balance() {
    let mut world = World::on(pro());
    world.deduct("render", "500").accepted();
    world.purchase("999999999500", "pay-1").accepted();
    let ran = world.at("2026-02-28T00:00:00Z").deduct("render", "1").accepted();
    // 200 of 500 rolled over, so 300 of the 1000 have room.
    assert_eq!(ran.data(CreditReset)["granted"], "300");
    assert_eq!(world.balance(), "999999999999");
}

#[test]
fn a_command_after_many_years_is_decided_in_the_current_period() {
    let mut world = World::on(pro());
    world.at("2036-01-31T00:00:00Z").deduct("render", "1200").accepted();
    assert!(!world.state().subscription.is_boundary_due(world.now));
}
