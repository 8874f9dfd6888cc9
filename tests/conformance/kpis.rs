//! The key figures of the whole server: exact sums over the partitions, in each step and group, page by page.

use std::collections::BTreeMap;

use visionscope_billing::domain::consumers::{Build, Consumer, ConsumerRows, Fault, RevenueDay, UsageHour};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::dead_letter::{DeadLetter, ParkedWorkspace};
use visionscope_billing::domain::grant::Currency;
use visionscope_billing::domain::ids::{PARTITIONS, Partition};
use visionscope_billing::domain::kpis::{
    Deferred, Kpi, KpiGroup, KpiKey, KpiRevenue, KpiStep, KpiUsage, KpiWorkspaces,
};
use visionscope_billing::domain::text::{FeatureCode, PlanCode};
use visionscope_billing::domain::time::{Day, Timestamp};
use visionscope_billing::store::consumers::Advance;
use visionscope_billing::store::figures::{KpiPage, KpiQuery};

use crate::database::TestDatabase;
use crate::fixtures::{advance, at, feature, workspace, world_of};

const BUILD: Build = Build { consumer: Consumer::Analytics, version: 1 };
/// More rows than there are.
const MANY: i64 = 1_000_000;
/// Databases order these in different ways.
const CODES: [&str; 5] = ["a-b", "a.b", "a1", "a_b", "ab"];
const GROUPS: [KpiGroup; 6] = [
    KpiGroup::Nothing,
    KpiGroup::Plan,
    KpiGroup::Feature,
    KpiGroup::PlanAndFeature,
    KpiGroup::Currency,
    KpiGroup::PlanAndCurrency,
];

fn day(days: i64) -> Timestamp {
    Day::of(at(0)).plus(days).start()
}

fn hour(days: i64, hours: i64) -> Timestamp {
    day(days).plus(chrono::TimeDelta::hours(hours))
}

fn plan(code: &str) -> PlanCode {
    PlanCode::new(code).unwrap()
}

fn used(partition: u8, hour: Timestamp, [plan_code, feature_code]: [&str; 2], credits: i64) -> UsageHour {
    UsageHour {
        version: 1,
        partition: Partition::new(partition).unwrap(),
        hour,
        plan_code: plan(plan_code),
        feature_code: feature(feature_code),
        credits,
        deductions: credits + 1,
        refused: credits + 2,
    }
}

/// A row of money, or one that counts workspaces.
fn earned(partition: u8, days: i64, [plan_code, currency]: [&str; 2], amount: i64) -> RevenueDay {
    let (money, workspaces) = if currency.is_empty() { (0, amount) } else { (amount, 0) };
    RevenueDay {
        version: 1,
        partition: Partition::new(partition).unwrap(),
        day: day(days),
        plan_code: plan(plan_code),
        currency: currency.into(),
        purchases: money,
        credits_sold: money * 2,
        paid_minor: money * 100,
        returned_minor: money * 3,
        recognised_minor: if days % 2 == 0 { money * 10 } else { -money },
        active_workspaces: workspaces,
        new_workspaces: workspaces * 2,
        canceled_workspaces: workspaces * 3,
    }
}

/// Writes rows, from the event of that number on.
async fn write(db: &impl TestDatabase, from: i64, rows: ConsumerRows) {
    let partition = Partition::new(0).unwrap();
    let advance = advance(BUILD, partition, [from, from + 1], rows);
    db.consumption().advance_consumers(&[advance]).await.unwrap();
}

/// Figures of every partition, plan, feature and currency, with gaps of hours and days.
fn some_rows() -> ConsumerRows {
    let mut rows = ConsumerRows::default();
    for (n, days) in [0, 1, 2, 5, 40].into_iter().enumerate() {
        for (place, partition) in (0..PARTITIONS).enumerate() {
            let (plan_code, other) = (CODES[place % 5], CODES[(place / 3 + n) % 5]);
            let amount = i64::try_from(1_000_000 + place * 10 + n).unwrap();
            for hours in [0, 7, 23] {
                rows.usage_hours.push(used(partition, hour(days, hours), [plan_code, other], amount + hours));
            }
            rows.revenue_days.push(earned(partition, days, [plan_code, ["EUR", "USD", "JPY"][place % 3]], amount));
            rows.revenue_days.push(earned(partition, days, [other, ""], amount));
        }
    }
    rows
}

fn query(step: KpiStep, group: KpiGroup, [from, to]: [i64; 2]) -> KpiQuery {
    KpiQuery { step, group, from: day(from), to: day(to), start_at: None, limit: 200, max_stored: MANY }
}

/// The rows of all pages of that size, and what was deferred before them.
async fn all(db: &impl TestDatabase, mut query: KpiQuery, limit: u32) -> (Vec<Kpi>, Option<Deferred>) {
    let (mut rows, mut before): (Vec<Kpi>, Option<Option<Deferred>>) = (Vec::new(), None);
    query.limit = limit;
    loop {
        let KpiPage { page, deferred_before } = db.store().kpis(1, &query).await.unwrap();
        assert!(page.rows.len() <= usize::try_from(query.limit).unwrap());
        assert_eq!(*before.get_or_insert_with(|| deferred_before.clone()), deferred_before, "of the question");
        let is_next = usize::from(query.start_at.is_some());
        if is_next == 1 {
            assert_eq!(page.rows.first(), rows.last(), "a page begins with the row that was seen");
        }
        rows.extend(page.rows.into_iter().skip(is_next));
        if !page.has_more {
            return (rows, before.unwrap());
        }
        query.start_at = rows.last().map(|row| row.key.clone());
        query.limit = limit + 1;
    }
}

/// What the figures are, added up row by row.
fn expected(rows: &ConsumerRows, query: &KpiQuery) -> Vec<Kpi> {
    let (step, group) = (query.step, query.group);
    let mut sums: BTreeMap<KpiKey, [i64; 11]> = BTreeMap::new();
    let mut add = |at: Timestamp, plan: &PlanCode, feature: Option<&FeatureCode>, currency, figures: [i64; 11]| {
        let key = KpiKey {
            start: step.start_of(at),
            plan_code: group.by_plan().then(|| plan.clone()),
            feature_code: feature.filter(|_| group.by_feature()).cloned(),
            currency,
        };
        if (query.from..query.to).contains(&at) {
            let sum = sums.entry(key).or_default();
            sum.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure);
        }
    };
    for row in rows.usage_hours.iter().filter(|_| !group.by_currency()) {
        let figures = [row.credits, row.deductions, row.refused, 0, 0, 0, 0, 0, 0, 0, 0];
        add(row.hour, &row.plan_code, Some(&row.feature_code), None, figures);
    }
    for row in &rows.revenue_days {
        let currency = Currency::new(&row.currency);
        if currency.is_some() == group.by_currency() && (currency.is_some() || group.has_workspaces(step)) {
            let workspaces = [row.active_workspaces, row.new_workspaces, row.canceled_workspaces];
            let [active, new, canceled] = workspaces;
            let money = [row.paid_minor, row.returned_minor, row.recognised_minor];
            let [paid, returned, recognised] = money;
            let figures = [0, 0, 0, active, new, canceled, row.purchases, row.credits_sold, paid, returned, recognised];
            add(row.day, &row.plan_code, None, currency, figures);
        }
    }
    sums.into_iter().map(|(key, sum)| kpi(step, group, key, sum)).collect()
}

fn kpi(step: KpiStep, group: KpiGroup, key: KpiKey, sum: [i64; 11]) -> Kpi {
    let [credits, deductions, refused, active, new, canceled, purchases, credits_sold, paid, returned, recognised] =
        sum;
    let revenue = KpiRevenue {
        purchases,
        credits_sold,
        paid_minor: paid,
        returned_minor: returned,
        recognised_minor: recognised,
        deferred_minor: None,
    };
    Kpi {
        key,
        usage: (!group.by_currency()).then_some(KpiUsage { credits, deductions, refused }),
        workspaces: group.has_workspaces(step).then_some(KpiWorkspaces { active, new, canceled }),
        revenue: group.by_currency().then_some(revenue),
    }
}

fn without_deferred(mut row: Kpi) -> Kpi {
    row.revenue.iter_mut().for_each(|revenue| revenue.deferred_minor = None);
    row
}

pub async fn key_figures_are_summed_up_in_each_step_and_group_page_by_page(db: &impl TestDatabase) {
    let rows = some_rows();
    write(db, 0, rows.clone()).await;
    let other = ConsumerRows {
        usage_hours: vec![UsageHour { version: 2, ..used(0, hour(1, 7), ["ab", "ab"], 5) }],
        revenue_days: vec![RevenueDay { version: 2, ..earned(0, 1, ["ab", "EUR"], 5) }],
        ..ConsumerRows::default()
    };
    write(db, 1, other).await;
    for step in [KpiStep::Hour, KpiStep::Day] {
        for group in GROUPS.into_iter().filter(|group| step == KpiStep::Day || !group.by_currency()) {
            for days in [[0, 41], [1, 3], [3, 5], [-400, 400]] {
                let query = query(step, group, days);
                let expected = expected(&rows, &query);
                for limit in [1, 7, 200] {
                    let (found, before) = all(db, query.clone(), limit).await;
                    let found: Vec<_> = found.into_iter().map(without_deferred).collect();
                    assert_eq!(found, expected, "{step:?} {group:?} {days:?} {limit}");
                    assert_eq!(before.is_some(), group.has_deferred());
                }
                assert_eq!(expected.is_empty(), days == [3, 5], "days without events have no row");
            }
        }
    }
}

pub async fn what_is_deferred_runs_on_from_the_first_day_in_every_question(db: &impl TestDatabase) {
    let rows = some_rows();
    write(db, 0, rows.clone()).await;
    let (mut balance, mut after) = (Deferred::new(), BTreeMap::new());
    let mut money: Vec<_> = rows.revenue_days.iter().filter(|row| !row.currency.is_empty()).collect();
    money.sort_by_key(|row| row.day);
    for row in money {
        let currency = Currency::new(&row.currency).unwrap();
        let sum: &mut i64 = balance.entry(currency).or_default();
        *sum += row.paid_minor - row.returned_minor - row.recognised_minor;
        after.insert((row.day, currency), *sum);
    }
    for days in [[-3, 41], [0, 1], [1, 41], [2, 40], [3, 4], [40, 41], [41, 50]] {
        for limit in [1, 2, 200] {
            let (found, before) = all(db, query(KpiStep::Day, KpiGroup::Currency, days), limit).await;
            for row in &found {
                let key = (row.key.start, row.key.currency.unwrap());
                assert_eq!(row.revenue.unwrap().deferred_minor, Some(after[&key]), "{days:?} {limit} {key:?}");
            }
            let mut expected = Deferred::new();
            for ((on, currency), sum) in &after {
                if *on < day(days[0]) {
                    expected.insert(*currency, *sum);
                }
            }
            assert_eq!(before, Some(expected), "{days:?}");
        }
    }
}

/// More rows than are read at once.
pub async fn many_rows_are_read_in_shorter_spans(db: &impl TestDatabase) {
    let codes: Vec<String> = (0..120).map(|n| format!("feature-{n}")).collect();
    let mut rows = ConsumerRows::default();
    for days in (0..9).chain([100]) {
        for hours in 0..24 {
            let row = |code: &String| used(3, hour(days, hours), ["pro", code], days * 24 + hours);
            rows.usage_hours.extend(codes.iter().map(row));
        }
    }
    write(db, 0, rows.clone()).await;
    for (group, days, limit) in [
        (KpiGroup::Feature, [-100, 200], 150),
        (KpiGroup::Feature, [0, 200], 5000),
        (KpiGroup::PlanAndFeature, [0, 9], 500),
        (KpiGroup::Nothing, [0, 200], 200),
    ] {
        let query = query(KpiStep::Day, group, days);
        let expected = expected(&rows, &query);
        assert_eq!(all(db, query, limit).await.0, expected, "{group:?} {days:?}");
    }
}

pub async fn a_page_that_has_read_much_is_short_and_the_next_goes_on(db: &impl TestDatabase) {
    let rows = some_rows();
    write(db, 0, rows.clone()).await;
    for group in GROUPS {
        let full = query(KpiStep::Day, group, [-50, 90]);
        let expected = expected(&rows, &full);
        let short = KpiQuery { max_stored: 1, ..full.clone() };
        let page = db.store().kpis(1, &short).await.unwrap().page;
        assert!((2..expected.len()).contains(&page.rows.len()) && page.has_more, "{group:?}: {}", page.rows.len());
        let found: Vec<_> = all(db, short, 200).await.0.into_iter().map(without_deferred).collect();
        assert_eq!(found, expected, "{group:?}");
    }
}

pub async fn a_place_outside_the_question_shows_nothing_outside_it(db: &impl TestDatabase) {
    let rows = some_rows();
    write(db, 0, rows.clone()).await;
    let mut query = query(KpiStep::Day, KpiGroup::Nothing, [1, 3]);
    for (start, found) in [(day(-900), 2), (day(1), 2), (hour(1, 5), 1), (day(2), 1), (day(3), 0), (Timestamp::MAX, 0)]
    {
        query.start_at = Some(KpiKey { start, plan_code: None, feature_code: None, currency: None });
        assert_eq!(db.store().kpis(1, &query).await.unwrap().page.rows.len(), found, "{start}");
    }
}

pub async fn a_sum_that_no_number_can_hold_is_an_error(db: &impl TestDatabase) {
    let most =
        [0, 1].map(|partition| UsageHour { credits: i64::MAX, ..used(partition, hour(0, 0), ["pro", "render"], 1) });
    write(db, 0, ConsumerRows { usage_hours: most.to_vec(), ..ConsumerRows::default() }).await;
    for step in [KpiStep::Hour, KpiStep::Day] {
        assert!(db.store().kpis(1, &query(step, KpiGroup::Nothing, [0, 1])).await.is_err(), "{step:?}");
    }
    assert!(db.store().kpis(1, &query(KpiStep::Day, KpiGroup::Nothing, [1, 2])).await.is_ok());
}

pub async fn as_of_of_the_server_is_every_cursor_and_the_oldest_event_behind_one(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    world.deduct(workspace(0), Credits::whole(1), at(7)).store(db.store()).await;
    let as_of = async || db.store().server_as_of(Consumer::Analytics).await.unwrap();
    let found = as_of().await;
    assert_eq!(found.seqs, Partition::all().map(|partition| (partition, 0)).collect::<Vec<_>>());
    assert_eq!((found.version, found.waiting_since, found.has_parked), (1, Some(at(0)), false));
    let event = db.store().read(Partition::of(workspace(0)), 0, 1).await.unwrap().remove(0);
    for partition in Partition::all() {
        let events = i64::try_from(db.store().read(partition, 0, 100).await.unwrap().len()).unwrap();
        let is_own = partition == event.partition;
        let fault = Fault { class: Fault::REFUSED, text: "for a test".into() };
        let letters = if is_own { vec![DeadLetter::of_event(BUILD, &event, &fault, at(2))] } else { Vec::new() };
        let advance = Advance {
            parked: letters.iter().filter_map(ParkedWorkspace::behind).collect(),
            letters,
            ..advance(BUILD, partition, [0, events + 100], ConsumerRows::default())
        };
        db.consumption().advance_consumers(&[advance]).await.unwrap();
        let found = as_of().await;
        let (_, seq) = found.seqs[usize::from(partition.number())];
        assert_eq!((seq, found.has_parked), (events + 100, partition >= event.partition), "{partition:?}");
    }
    let found = as_of().await;
    assert_eq!((found.seqs.len(), found.waiting_since), (16, None));
    assert!(!db.store().server_as_of(Consumer::Billing).await.unwrap().has_parked, "the other consumer took it");
}
