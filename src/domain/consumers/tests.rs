//! Tables of what `analytics` makes of events, and that it does not matter how the events are cut into batches.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::consumer::{Build, Consumer};
use super::fact::Fact;
use super::fault::Fault;
use super::rows::{ConsumerKeys, ConsumerRows, PurchaseRevenue, RevenueDay, UsageDay, UsageHour, WorkspaceActivity};
use super::run::{Folded, Treatment, fold, keys};
use crate::domain::cloud_event::EventRecord;
use crate::domain::event::{EventData, EventType};
use crate::domain::grant::Currency;
use crate::domain::ids::{EventId, GrantId, Partition, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageId;

pub(super) const BUILD: Build = Build { consumer: Consumer::Analytics, version: 1 };
pub(super) const CREDIT: i64 = 1_000_000;
pub(super) const DAY_1: &str = "2026-03-01T23:59:59.999999Z";
const DAY_2: &str = "2026-03-02T00:00:00Z";
const DAY_3: &str = "2026-03-03T12:30:00Z";

/// Events of one partition, and the rows that are stored.
#[derive(Default)]
pub(super) struct World {
    pub(super) facts: Vec<Fact>,
    stored: Stored,
}

/// The tables of the consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stored {
    activities: BTreeMap<WorkspaceId, WorkspaceActivity>,
    revenues: BTreeMap<GrantId, PurchaseRevenue>,
    usage_days: BTreeMap<(WorkspaceId, Timestamp, String), UsageDay>,
    usage_hours: BTreeMap<(Timestamp, String, String), UsageHour>,
    revenue_days: BTreeMap<(Timestamp, String, String), RevenueDay>,
}

impl Stored {
    /// The rows of these keys, or all rows.
    fn load(&self, wanted: &ConsumerKeys, all: bool) -> ConsumerRows {
        let is_wanted = |row: &WorkspaceActivity| all || wanted.activities.contains(&(row.version, row.workspace_id));
        let is_bought =
            |row: &PurchaseRevenue| all || wanted.revenues.contains(&(row.version, row.workspace_id, row.grant_id));
        ConsumerRows {
            activities: self.activities.values().filter(|row| is_wanted(row)).cloned().collect(),
            revenues: self.revenues.values().filter(|row| is_bought(row)).copied().collect(),
            ..ConsumerRows::default()
        }
    }

    fn write(&mut self, rows: ConsumerRows) {
        self.activities.extend(rows.activities.into_iter().map(|row| (row.workspace_id, row)));
        self.revenues.extend(rows.revenues.into_iter().map(|row| (row.grant_id, row)));
        for row in rows.usage_days {
            let key = (row.workspace_id, row.day, row.feature_code.to_string());
            self.usage_days.entry(key).and_modify(|sum| add_usage(sum, &row)).or_insert(row);
        }
        for row in rows.usage_hours {
            let key = (row.hour, row.plan_code.to_string(), row.feature_code.to_string());
            self.usage_hours.entry(key).and_modify(|sum| add_hour(sum, &row)).or_insert(row);
        }
        for row in rows.revenue_days {
            let key = (row.day, row.plan_code.to_string(), row.currency.clone());
            self.revenue_days.entry(key).and_modify(|sum| add_revenue(sum, &row)).or_insert(row);
        }
    }
}

fn add_usage(sum: &mut UsageDay, row: &UsageDay) {
    sum.credits += row.credits;
    sum.refunded += row.refunded;
    sum.quantity += row.quantity;
    sum.deductions += row.deductions;
    sum.refused += row.refused;
}

fn add_hour(sum: &mut UsageHour, row: &UsageHour) {
    sum.credits += row.credits;
    sum.deductions += row.deductions;
    sum.refused += row.refused;
}

fn add_revenue(sum: &mut RevenueDay, row: &RevenueDay) {
    sum.purchases += row.purchases;
    sum.credits_sold += row.credits_sold;
    sum.paid_minor += row.paid_minor;
    sum.returned_minor += row.returned_minor;
    sum.recognised_minor += row.recognised_minor;
    sum.active_workspaces += row.active_workspaces;
    sum.new_workspaces += row.new_workspaces;
    sum.canceled_workspaces += row.canceled_workspaces;
}

pub(super) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(super) fn workspace(number: u128) -> WorkspaceId {
    WorkspaceId(Uuid::from_u128(number))
}

pub(super) fn grant(number: u128) -> GrantId {
    GrantId(Uuid::from_u128(1000 + number))
}

/// The event with the fields that every such event has.
pub(super) fn event(event_type: EventType, workspace_id: WorkspaceId, recorded_at: Timestamp, fields: Value) -> Fact {
    let period = json!({"start": DAY_1, "end": "2026-04-01T00:00:00Z"});
    let summary = |plan: &Value| json!({"plan_code": plan, "plan_version": 1, "status": "active", "period": period, "version": 1});
    let plan = fields.get("plan_code").cloned().unwrap_or_else(|| json!("pro"));
    let usage_id = UsageId { recorded_at, seq: 1 };
    let of_usage = json!({
        "current_credits": "0", "used_this_month": "0", "occurred_at": DAY_1, "grants": [], "feature_code": "render",
        "requested_credits": "1", "available_credits": "0", "scope": "feature", "limit_credits": "1", "used_credits": "0",
        "held_credits": "0", "refund_id": Uuid::nil(), "usage_id": usage_id, "debt_repaid": "0", "debt_credits": "0",
    });
    let of_purchases = json!({
        "bonus_credits": "0", "currency": "EUR", "payment_reference": "pay", "spendable": true,
        "reversal_id": Uuid::nil(), "reason": "mistake", "credits_removed": "0", "credits_owed": "0",
        "credits_written_off": "0", "bonus_removed": "0", "bonus_owed": "0",
    });
    let of_plans = json!({
        "period": period, "plan_code": plan, "plan_version": 1, "expired": "0", "rolled_over": "0", "granted": "0",
        "previously_used": "0", "effective_at": DAY_1, "before": summary(&plan), "after": summary(&plan), "features": [],
        "credits_granted": "0", "credits_uncollected": "0", "credits_set_off": "0", "frozen_credits": "0",
        "name": "Acme", "time_zone": "UTC",
    });
    let mut data = serde_json::Map::new();
    for part in [of_usage, of_purchases, of_plans, fields] {
        let Value::Object(part) = part else { panic!("{part}") };
        data.extend(part);
    }
    let data = EventData::parse(event_type, &Value::from(data).to_string()).unwrap().to_json(None).unwrap();
    let event = EventRecord {
        event_id: EventId(Uuid::from_u128(1)),
        event_type: event_type.into(),
        schema_version: event_type.schema_version(),
        partition: Partition::new(3).unwrap(),
        seq: 0,
        workspace_id,
        workspace_seq: 1,
        recorded_at,
        correlation_id: "correlation".into(),
        causation_id: Uuid::nil(),
        traceparent: None,
        data,
    };
    Fact::new(event)
}

fn shares(parts: &[(GrantId, i64)]) -> Value {
    let share = |(grant_id, micro): &(GrantId, i64)| json!({"grant_id": grant_id, "source": "purchase", "credits": text(*micro)});
    parts.iter().map(share).collect()
}

/// Micro-credits as a decimal.
fn text(micro: i64) -> String {
    format!("{}.{:06}", micro / CREDIT, micro % CREDIT)
}

impl World {
    /// A world with these workspaces, which were created on the first day.
    pub(super) fn of(workspaces: u128) -> Self {
        let mut world = Self::default();
        for number in 1..=workspaces {
            world.raise(EventType::WorkspaceProvisioned, number, DAY_1, json!({"plan_code": "pro"}));
        }
        world
    }

    fn raise(&mut self, event_type: EventType, number: u128, when: &str, fields: Value) {
        self.add(event(event_type, workspace(number), at(when), fields));
    }

    fn add(&mut self, mut fact: Fact) {
        fact.event.seq = i64::try_from(self.facts.len()).unwrap() + 1;
        self.facts.push(fact);
    }

    pub(super) fn use_credits(&mut self, when: &str, micro: i64, grant_id: GrantId) {
        let fields = json!({"credits": text(micro), "grants": shares(&[(grant_id, micro)])});
        self.raise(EventType::CreditConsumed, 1, when, fields);
    }

    fn buy(&mut self, when: &str, grant_id: GrantId, credits: i64, amount_minor: i64) {
        let reference = json!(grant_id.to_string());
        let fields = json!({
            "grant_id": grant_id, "credits": text(credits * CREDIT), "amount_minor": amount_minor,
            "payment_reference": reference,
        });
        self.raise(EventType::CreditsPurchased, 1, when, fields);
    }

    fn reverse(&mut self, when: &str, grant_id: GrantId, credits: i64, amount_minor: i64) {
        let fields = json!({"grant_id": grant_id, "credits": text(credits * CREDIT), "amount_minor": amount_minor});
        self.raise(EventType::PurchaseReversed, 1, when, fields);
    }

    /// Takes all events in one batch.
    fn run(mut self) -> Stored {
        let facts = std::mem::take(&mut self.facts);
        self.take(&facts, false);
        self.stored
    }

    fn take(&mut self, facts: &[Fact], load_all: bool) {
        let mut wanted = ConsumerKeys::default();
        keys(BUILD, facts, &mut wanted);
        match fold(BUILD, facts, self.stored.load(&wanted, load_all), |_| Treatment::Take) {
            Folded::Rows(rows) => self.stored.write(rows),
            Folded::Faulted { index, fault } => panic!("event {index}: {fault:?}"),
        }
    }

    /// The fault of the last event; those before it have none.
    fn last_fault(&self) -> Fault {
        match fold(BUILD, &self.facts, ConsumerRows::default(), |_| Treatment::Take) {
            Folded::Faulted { index, fault } if index == self.facts.len() - 1 => fault,
            other => panic!("{other:?}"),
        }
    }
}

/// Recognised revenue by day.
fn recognised(stored: &Stored) -> Vec<(&'static str, i64)> {
    let name = |day: Timestamp| match day.cmp(&at(DAY_2)) {
        Ordering::Less => "day 1",
        Ordering::Equal => "day 2",
        Ordering::Greater => "day 3",
    };
    let rows = stored.revenue_days.values().filter(|row| row.currency == "EUR");
    rows.map(|row| (name(row.day), row.recognised_minor)).collect()
}

#[test]
fn usage_is_counted_on_the_day_and_in_the_hour_when_it_was_charged() {
    let mut world = World::of(1);
    for (when, credits) in [(DAY_1, "1.5"), (DAY_2, "2"), ("2026-03-02T00:59:59Z", "3"), ("2026-03-02T01:00:00Z", "4")]
    {
        world.raise(EventType::CreditConsumed, 1, when, json!({"credits": credits, "quantity": "0.5"}));
    }
    world.raise(EventType::CreditConsumed, 1, DAY_2, json!({"credits": "9", "feature_code": "upscale"}));
    let stored = world.run();
    let days: Vec<_> = stored
        .usage_days
        .iter()
        .map(|((_, day, feature), row)| (day.to_string(), feature.as_str(), row.credits, row.quantity, row.deductions))
        .collect();
    let day = |text: &str| at(text).to_string();
    assert_eq!(
        days,
        [
            (day("2026-03-01T00:00:00Z"), "render", 1_500_000, 500_000, 1),
            (day("2026-03-02T00:00:00Z"), "render", 9_000_000, 1_500_000, 3),
            (day("2026-03-02T00:00:00Z"), "upscale", 9_000_000, 0, 1),
        ]
    );
    let hours: Vec<_> = stored
        .usage_hours
        .iter()
        .map(|((hour, _, feature), row)| (hour.to_string(), feature.as_str(), row.credits))
        .collect();
    assert_eq!(
        hours,
        [
            (day("2026-03-01T23:00:00Z"), "render", 1_500_000),
            (day("2026-03-02T00:00:00Z"), "render", 5_000_000),
            (day("2026-03-02T00:00:00Z"), "upscale", 9_000_000),
            (day("2026-03-02T01:00:00Z"), "render", 4_000_000),
        ]
    );
}

#[test]
fn a_refund_is_counted_on_its_own_day_and_takes_nothing_off_what_was_charged() {
    let mut world = World::of(1);
    world.raise(EventType::CreditConsumed, 1, DAY_1, json!({"credits": "5"}));
    world.raise(EventType::CreditsRefunded, 1, DAY_2, json!({"credits": "2"}));
    let stored = world.run();
    let days: Vec<_> = stored.usage_days.values().map(|row| (row.credits, row.refunded, row.deductions)).collect();
    assert_eq!(days, [(5 * CREDIT, 0, 1), (0, 2 * CREDIT, 0)]);
    let hours: Vec<_> = stored.usage_hours.values().map(|row| (row.credits, row.deductions)).collect();
    assert_eq!(hours, [(5 * CREDIT, 1)], "an hour of nothing but refunds has no figure");
}

#[test]
fn refusals_are_counted_and_soft_limits_are_not() {
    let mut world = World::of(1);
    world.raise(EventType::CreditLimitExceeded, 1, DAY_2, json!({}));
    world.raise(EventType::UsageLimitExceeded, 1, DAY_2, json!({"refused": true}));
    world.raise(EventType::UsageLimitExceeded, 1, DAY_2, json!({"refused": false}));
    let stored = world.run();
    let days: Vec<_> = stored.usage_days.values().map(|row| (row.refused, row.deductions, row.credits)).collect();
    let hours: Vec<_> = stored.usage_hours.values().map(|row| (row.refused, row.deductions)).collect();
    assert_eq!((days, hours), (vec![(2, 0, 0)], vec![(2, 0)]));
    assert!(stored.revenue_days.values().all(|row| row.active_workspaces == 0), "a refusal uses no credits");
}

#[test]
fn a_workspace_is_active_once_a_day_and_new_and_canceled_once() {
    let mut world = World::of(2);
    for (number, when) in [(1, DAY_1), (1, DAY_1), (1, DAY_2), (2, DAY_2), (2, DAY_2)] {
        world.raise(EventType::CreditConsumed, number, when, json!({"credits": "1"}));
    }
    for change in ["cancel_scheduled", "canceled"] {
        world.raise(EventType::SubscriptionChanged, 2, DAY_2, json!({"change": change}));
    }
    let stored = world.run();
    let counts = |row: &RevenueDay| (row.new_workspaces, row.active_workspaces, row.canceled_workspaces);
    assert_eq!(stored.revenue_days.values().map(counts).collect::<Vec<_>>(), [(2, 1, 0), (0, 2, 1)]);
}

#[test]
fn usage_and_money_are_counted_on_the_plan_in_force() {
    let mut world = World::of(1);
    let one = json!({"credits": "1"});
    world.raise(EventType::CreditConsumed, 1, DAY_2, one.clone());
    world.raise(EventType::SubscriptionChanged, 1, DAY_2, json!({"change": "changed", "plan_code": "scale"}));
    world.raise(EventType::CreditConsumed, 1, DAY_2, one.clone());
    world.buy(DAY_2, grant(1), 10, 100);
    world.raise(EventType::CreditReset, 1, DAY_2, json!({"plan_code": "free"}));
    world.raise(EventType::CreditConsumed, 1, DAY_2, one);
    let stored = world.run();
    assert_eq!(
        stored.usage_hours.keys().map(|(_, plan, _)| plan.as_str()).collect::<Vec<_>>(),
        ["free", "pro", "scale"]
    );
    let paid = stored.revenue_days.values().find(|row| row.paid_minor > 0).unwrap();
    assert_eq!((paid.plan_code.as_str(), paid.purchases, paid.credits_sold), ("scale", 1, 10 * CREDIT));
    assert_eq!(stored.activities[&workspace(1)].plan_code.as_str(), "free");
}

#[test]
fn three_parts_of_a_purchase_earn_exactly_what_was_paid() {
    let mut world = World::of(1);
    world.buy(DAY_1, grant(1), 1, 100);
    for (when, micro) in [(DAY_1, 333_333), (DAY_2, 333_333), (DAY_3, 333_334)] {
        world.use_credits(when, micro, grant(1));
    }
    assert_eq!(recognised(&world.run()), [("day 1", 33), ("day 2", 33), ("day 3", 34)]);
}

#[test]
fn a_refund_takes_back_what_was_recognised() {
    let mut world = World::of(1);
    world.buy(DAY_1, grant(1), 3, 100);
    world.use_credits(DAY_1, 2 * CREDIT, grant(1));
    let fields = json!({"credits": "1", "grants": shares(&[(grant(1), CREDIT)])});
    world.raise(EventType::CreditsRefunded, 1, DAY_2, fields);
    world.use_credits(DAY_3, 2 * CREDIT, grant(1));
    assert_eq!(recognised(&world.run()), [("day 1", 66), ("day 2", -33), ("day 3", 67)]);
}

#[test]
fn a_reversal_lowers_what_can_be_recognised_before_and_after_all_was_used() {
    let mut before = World::of(1);
    before.buy(DAY_1, grant(1), 10, 1000);
    before.use_credits(DAY_1, 2 * CREDIT, grant(1));
    before.reverse(DAY_2, grant(1), 5, 500);
    before.use_credits(DAY_3, 3 * CREDIT, grant(1));
    let stored = before.run();
    assert_eq!(recognised(&stored), [("day 1", 200), ("day 2", 0), ("day 3", 300)]);
    assert_eq!(stored.revenue_days.values().map(|row| row.returned_minor).sum::<i64>(), 500);

    let mut after = World::of(1);
    after.buy(DAY_1, grant(1), 10, 1000);
    after.use_credits(DAY_1, 10 * CREDIT, grant(1));
    after.reverse(DAY_2, grant(1), 4, 400);
    after.reverse(DAY_3, grant(1), 6, 600);
    assert_eq!(recognised(&after.run()), [("day 1", 1000), ("day 2", -400), ("day 3", -600)]);
}

#[test]
fn credits_that_expire_or_repay_debt_are_earned_and_given_ones_are_not() {
    let mut world = World::of(1);
    world.buy(DAY_1, grant(1), 10, 1000);
    let repaid = json!({"credits": "3", "grants": shares(&[(grant(1), 3 * CREDIT)])});
    world.raise(EventType::DebtRepaid, 1, DAY_1, repaid);
    let given = json!({"grant_id": grant(2), "source": "promotion", "credits": "5"});
    world.raise(EventType::CreditConsumed, 1, DAY_2, json!({"credits": "5", "grants": [given]}));
    let expired = json!({"credits": "7", "grants": shares(&[(grant(1), 7 * CREDIT)])});
    world.raise(EventType::CreditsExpired, 1, DAY_3, expired);
    assert_eq!(recognised(&world.run()), [("day 1", 300), ("day 3", 700)]);
}

#[test]
fn a_purchase_that_cost_nothing_earns_nothing() {
    let mut world = World::of(1);
    world.buy(DAY_1, grant(1), 10, 0);
    world.use_credits(DAY_2, 10 * CREDIT, grant(1));
    let stored = world.run();
    assert_eq!(recognised(&stored), [("day 1", 0)]);
    assert_eq!(stored.revenues[&grant(1)].used, 10 * CREDIT);
}

#[test]
fn what_contradicts_earlier_events_is_a_fault() {
    let fault = |begin: &dyn Fn(&mut World)| {
        let mut world = World::of(1);
        begin(&mut world);
        let fault = world.last_fault();
        (fault.class, fault.text)
    };
    let unknown = fault(&|world| world.raise(EventType::CreditConsumed, 2, DAY_1, json!({"credits": "1"})));
    assert_eq!(unknown, (Fault::CONTRADICTION, format!("the workspace {} was not created", workspace(2))));
    let again = fault(&|world| world.raise(EventType::WorkspaceProvisioned, 1, DAY_1, json!({})));
    assert_eq!(again, (Fault::CONTRADICTION, format!("the workspace {} was created before", workspace(1))));
    let unknown = fault(&|world| world.use_credits(DAY_1, CREDIT, grant(1)));
    assert_eq!(unknown, (Fault::CONTRADICTION, format!("the purchase {} is unknown", grant(1))));
    let twice = fault(&|world| (0..2).for_each(|_| world.buy(DAY_1, grant(1), 1, 1)));
    assert_eq!(twice, (Fault::CONTRADICTION, format!("the purchase {} was made before", grant(1))));
    let more = fault(&|world| {
        world.buy(DAY_1, grant(1), 1, 1);
        world.reverse(DAY_1, grant(1), 2, 1);
    });
    assert_eq!(more, (Fault::CONTRADICTION, format!("more of the purchase {} was reversed than bought", grant(1))));
    let large = fault(&|world| {
        world.buy(DAY_1, grant(1), 1, i64::MAX);
        world.buy(DAY_1, grant(2), 1, 1);
    });
    assert_eq!(large, (Fault::TOO_LARGE, "a sum is too large".into()));
    let least = fault(&|world| {
        world.buy(DAY_1, grant(1), 1, 1);
        world.reverse(DAY_1, grant(1), 1, i64::MIN);
    });
    assert_eq!(least, (Fault::CONTRADICTION, format!("the amount {} is negative", i64::MIN)));
    // It could hide in the sum of a day.
    let hidden = fault(&|world| {
        world.raise(EventType::CreditConsumed, 1, DAY_1, json!({"credits": "5"}));
        world.raise(EventType::CreditConsumed, 1, DAY_1, json!({"credits": "-1"}));
    });
    assert_eq!(hidden, (Fault::CONTRADICTION, "the amount -1000000 is negative".into()));
}

/// A random history: each number chooses what happens next, to which workspace and with how many credits.
fn history(choices: &[(u8, u128, i64, i64)]) -> World {
    let mut world = World::of(3);
    let mut now = at(DAY_1);
    let mut purchases: Vec<(u128, GrantId, i64, i64)> = Vec::new();
    for (kind, number, micro, hours) in choices {
        now = now.plus(chrono::TimeDelta::hours(*hours));
        let own = purchases.iter_mut().rev().find(|(owner, ..)| owner == number);
        let (event_type, fields) = match (kind, own) {
            (0, _) => {
                let grant_id = grant(purchases.len() as u128);
                let amount = micro / 1000;
                purchases.push((*number, grant_id, *micro, amount));
                let fields = json!({"grant_id": grant_id, "credits": text(*micro), "amount_minor": amount});
                (EventType::CreditsPurchased, fields)
            }
            (1, Some((_, grant_id, credits, amount))) => {
                let (part, minor) = (*credits / 2, *amount / 2);
                (*credits, *amount) = (*credits - part, *amount - minor);
                let fields = json!({"grant_id": grant_id, "credits": text(part), "amount_minor": minor});
                (EventType::PurchaseReversed, fields)
            }
            (2..=5, Some((_, grant_id, ..))) => {
                let types = [
                    EventType::CreditsRefunded,
                    EventType::CreditsExpired,
                    EventType::DebtRepaid,
                    EventType::CreditConsumed,
                ];
                let fields = json!({"credits": text(*micro), "grants": shares(&[(*grant_id, *micro)])});
                (types[usize::from(*kind) - 2], fields)
            }
            (6, _) => (EventType::CreditLimitExceeded, json!({})),
            (7, _) => {
                let plan = ["pro", "scale", "free"][usize::try_from(micro % 3).unwrap()];
                let change = if micro % 2 == 0 { "changed" } else { "canceled" };
                (EventType::SubscriptionChanged, json!({"change": change, "plan_code": plan}))
            }
            _ => (EventType::CreditConsumed, json!({"credits": text(*micro), "quantity": "2"})),
        };
        world.add(event(event_type, workspace(*number), now, fields));
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_do_not_depend_on_how_events_are_cut_into_batches(
        choices in vec((0..12_u8, 1..=3_u128, 1..5_000_000_i64, 0..30_i64), 1..60),
        cuts in vec((1..9_usize, any::<bool>()), 1..9),
    ) {
        let whole = history(&choices).run();
        let mut cut = history(&choices);
        let facts = std::mem::take(&mut cut.facts);
        let (mut rest, mut sizes) = (&facts[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (size, load_all) = sizes.next().unwrap();
            let (batch, left) = rest.split_at((*size).min(rest.len()));
            cut.take(batch, *load_all);
            rest = left;
        }
        prop_assert_eq!(cut.stored, whole);
    }

    #[test]
    fn when_all_is_used_the_recognised_parts_sum_up_to_what_was_paid_and_not_returned(
        choices in vec((0..12_u8, 1..=3_u128, 1..5_000_000_i64, 0..30_i64), 1..60),
    ) {
        let mut world = history(&choices);
        let facts = std::mem::take(&mut world.facts);
        world.take(&facts, false);
        let left: Vec<_> = world.stored.revenues.values().copied().collect();
        for row in left.iter().filter(|row| row.used < row.credits) {
            let rest = row.credits - row.used;
            let fields = json!({"credits": text(rest), "grants": shares(&[(row.grant_id, rest)])});
            let used = event(EventType::CreditConsumed, row.workspace_id, at("2027-01-01T00:00:00Z"), fields);
            world.take(&[used], false);
        }
        let sum = |of: fn(&RevenueDay) -> i64| world.stored.revenue_days.values().map(of).sum::<i64>();
        prop_assert_eq!(sum(|row| row.recognised_minor), sum(|row| row.paid_minor - row.returned_minor));
        prop_assert_eq!(sum(|row| row.recognised_minor), left.iter().map(|row| row.amount_minor).sum::<i64>());
        prop_assert!(left.iter().all(|row| row.currency == Currency::new("EUR").unwrap()));
    }
}

#[test]
fn after_a_discarded_event_a_workspace_may_use_purchases_that_no_event_has_told_of() {
    let mut world = World::of(2);
    world.buy(DAY_1, grant(1), 10, 100);
    world.buy(DAY_1, grant(2), 10, 100);
    world.use_credits(DAY_2, 5 * CREDIT, grant(1));
    world.use_credits(DAY_2, 5 * CREDIT, grant(2));
    world.reverse(DAY_3, grant(1), 1, 10);
    // Sequence 3 is the first purchase.
    let skipping = |event: &EventRecord| if event.seq == 3 { Treatment::Skip } else { Treatment::Take };
    for size in [1, 2, 100] {
        let mut stored = Stored::default();
        for facts in world.facts.chunks(size) {
            let mut wanted = ConsumerKeys::default();
            keys(BUILD, facts, &mut wanted);
            match fold(BUILD, facts, stored.load(&wanted, false), skipping) {
                Folded::Rows(rows) => stored.write(rows),
                Folded::Faulted { index, fault } => panic!("event {index} of a batch of {size}: {fault:?}"),
            }
        }
        assert_eq!(recognised(&stored), [("day 1", 0), ("day 2", 50)], "only of the purchase that is known");
        let marked: Vec<_> = stored.activities.values().map(|row| row.incomplete).collect();
        assert_eq!(marked, [true, false]);
        assert_eq!(stored.usage_days.values().map(|row| row.credits).sum::<i64>(), 10 * CREDIT);
    }
}
