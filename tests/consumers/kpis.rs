//! What the key figures must be, from the history that the commands have written and not from events.

use std::collections::BTreeMap;

use visionscope_billing::clock::Clock;
use visionscope_billing::domain::grant::Currency;
use visionscope_billing::domain::kpis::{Kpi, KpiGroup, KpiStep};
use visionscope_billing::domain::time::{Day, Timestamp};
use visionscope_billing::store::figures::KpiQuery;

use crate::databases::Database;
use crate::world::World;

const HOUR: i64 = 3_600_000_000;
const BEGIN: &str = "2026-01-31T00:00:00Z";
/// More than there are.
const ROWS: u32 = 100_000;

/// The plan that a workspace was on when the row `t` was recorded: that of its last change before. 1 is the large one.
const PLAN: &str = "
    cast(coalesce((
        select case when c.body like '%\"plan_code\":\"large\"%' then 1 else 0 end from commands c
        where c.workspace_id = t.workspace_id and c.command_type = 'ProcessSubscriptionChange'
            and c.outcome = 'accepted' and c.recorded_at < t.recorded_at
        order by c.recorded_at desc limit 1
    ), 0) as bigint)";

/// What was paid, given back and recognised of a currency.
type Money = BTreeMap<Currency, [i64; 3]>;

impl World {
    /// Checks all key figures of a build against the history.
    pub async fn assert_kpis(&self, version: i32) {
        self.assert_kpis_of_usage(version).await;
        self.assert_kpis_of_workspaces(version).await;
        self.assert_kpis_of_money(version).await;
    }

    async fn kpis(&self, version: i32, step: KpiStep, group: KpiGroup) -> Vec<Kpi> {
        let (from, to) = (BEGIN.parse().unwrap(), Day::of(self.clock.now()).plus(1).start());
        let query = KpiQuery { step, group, from, to, start_at: None, limit: ROWS, max_stored: i64::MAX };
        let found = self.database.store.kpis(version, &query).await.unwrap().page;
        assert!(!found.has_more);
        found.rows
    }

    /// The number of the hour since 1970, of a column.
    fn hour(&self, column: &str) -> String {
        match self.kind {
            Database::Sqlite => format!("({column} / {HOUR})"),
            Database::Postgres => format!("cast(floor(extract(epoch from {column}) / 3600) as bigint)"),
        }
    }

    fn instant(&self, at: Timestamp) -> String {
        match self.kind {
            Database::Sqlite => at.micros().to_string(),
            Database::Postgres => format!("timestamptz '{at}'"),
        }
    }

    /// Credits, deductions and refusals by hour, plan and feature.
    async fn assert_kpis_of_usage(&self, version: i32) {
        let hour = self.hour("t.recorded_at");
        let used = format!(
            "select {hour}, {PLAN}, cast(case t.feature_code when 'upscale' then 1 else 0 end as bigint), t.credits
            from usage_logs t"
        );
        let refused = format!(
            "select {hour}, {PLAN} from commands t
            where t.outcome = 'insufficient-credits' and t.command_type in ('DeductCredits', 'PlaceHold')"
        );
        let (used, refused) = (self.integers(&used).await, self.integers(&refused).await);
        let name = |number: i64, names: [&str; 2]| names[usize::try_from(number).unwrap()].to_owned();
        for step in [KpiStep::Hour, KpiStep::Day] {
            for group in [KpiGroup::Nothing, KpiGroup::Plan, KpiGroup::Feature, KpiGroup::PlanAndFeature] {
                let start = |hour: i64| step.start_of(Timestamp::from_micros(hour * HOUR));
                let plan = |number| group.by_plan().then(|| name(number, ["small", "large"]));
                let mut expected: BTreeMap<_, [i64; 3]> = BTreeMap::new();
                for row in &used {
                    let feature = group.by_feature().then(|| name(row[2], ["render", "upscale"]));
                    let sums = expected.entry((start(row[0]), plan(row[1]), feature)).or_default();
                    sums[0] += row[3];
                    sums[1] += 1;
                }
                // The history does not say of which feature.
                for row in refused.iter().filter(|_| !group.by_feature()) {
                    expected.entry((start(row[0]), plan(row[1]), None)).or_default()[2] += 1;
                }
                let mut actual = BTreeMap::new();
                for row in self.kpis(version, step, group).await {
                    let plan = row.key.plan_code.map(|code| code.to_string());
                    let feature = row.key.feature_code.map(|code| code.to_string());
                    let usage = row.usage.unwrap();
                    let refused = if group.by_feature() { 0 } else { usage.refused };
                    let sums = [usage.credits, usage.deductions, refused];
                    assert_eq!(actual.insert((row.key.start, plan, feature), sums), None, "one row for each");
                }
                // A day may have nothing but workspaces, and a feature nothing but refusals.
                actual.retain(|_, sums| *sums != [0; 3]);
                assert_eq!(actual, expected, "{step:?} {group:?}");
            }
        }
        assert!(!used.is_empty());
    }

    /// Active, new and canceled workspaces by day.
    async fn assert_kpis_of_workspaces(&self, version: i32) {
        let mut expected: BTreeMap<Timestamp, [i64; 3]> = BTreeMap::new();
        for (n, counted) in [
            format!("select distinct {} / 24 as on_day, workspace_id from usage_logs t", self.hour("t.recorded_at")),
            format!("select {} / 24 as on_day from workspaces t", self.hour("t.created_at")),
            format!(
                "select {} / 24 as on_day from commands t
                where t.command_type = 'CancelSubscription' and t.outcome = 'accepted'",
                self.hour("t.recorded_at")
            ),
        ]
        .iter()
        .enumerate()
        {
            let by_day = format!("select on_day, cast(count(*) as bigint) from ({counted}) c group by on_day");
            for row in self.integers(&by_day).await {
                expected.entry(Timestamp::from_micros(row[0] * 24 * HOUR)).or_default()[n] = row[1];
            }
        }
        for group in [KpiGroup::Nothing, KpiGroup::Plan] {
            let mut actual: BTreeMap<Timestamp, [i64; 3]> = BTreeMap::new();
            for row in self.kpis(version, KpiStep::Day, group).await {
                let found = row.workspaces.unwrap();
                let sums = actual.entry(row.key.start).or_default();
                for (sum, figure) in sums.iter_mut().zip([found.active, found.new, found.canceled]) {
                    *sum += figure;
                }
            }
            actual.retain(|_, sums| *sums != [0; 3]);
            assert_eq!(actual, expected, "{group:?}");
        }
    }

    /// Money by day and currency, to the minor unit, and what is deferred after each day.
    async fn assert_kpis_of_money(&self, version: i32) {
        let mut rows = self.kpis(version, KpiStep::Day, KpiGroup::Currency).await.into_iter().peekable();
        let (mut sums, mut deferred) = (Money::new(), BTreeMap::new());
        let mut day = Day::of(BEGIN.parse().unwrap());
        while day.start() <= self.clock.now() {
            let end = day.plus(1).start();
            while let Some(row) = rows.next_if(|row| row.key.start < end) {
                let (currency, revenue) = (row.key.currency.unwrap(), row.revenue.unwrap());
                let added = [revenue.paid_minor, revenue.returned_minor, revenue.recognised_minor];
                let sum = sums.entry(currency).or_default();
                sum.iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
                deferred.insert(currency, revenue.deferred_minor.unwrap());
            }
            let expected = self.money_until(end).await;
            assert_eq!(sums, expected, "paid, given back and recognised until {day}");
            for (currency, [paid, returned, recognised]) in expected {
                assert_eq!(deferred[&currency], paid - returned - recognised, "{currency:?} after {day}");
                assert!(deferred[&currency] >= 0, "{currency:?} after {day}");
            }
            day = day.plus(1);
        }
        assert_eq!(rows.next(), None);
        let by_plan = self.kpis(version, KpiStep::Day, KpiGroup::PlanAndCurrency).await;
        let mut of_plans = Money::new();
        for row in by_plan {
            let (sum, revenue) = (of_plans.entry(row.key.currency.unwrap()).or_default(), row.revenue.unwrap());
            let added = [revenue.paid_minor, revenue.returned_minor, revenue.recognised_minor];
            sum.iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
        }
        assert_eq!(of_plans, sums, "the plans together");
    }

    /// What the purchases before this instant have become until then.
    async fn money_until(&self, end: Timestamp) -> Money {
        let end = self.instant(end);
        // What was paid and bought of each purchase and not reversed, and what was used, has expired or repaid debt.
        let purchases = format!(
            "select cast(case g.currency when 'EUR' then 0 else 1 end as bigint), g.amount_minor, g.amount,
            cast(coalesce((select sum(r.amount_minor) from purchase_reversals r
                where r.workspace_id = g.workspace_id and r.grant_id = g.grant_id and r.recorded_at < {end}), 0) as bigint),
            cast(coalesce((select sum(r.credits) from purchase_reversals r
                where r.workspace_id = g.workspace_id and r.grant_id = g.grant_id and r.recorded_at < {end}), 0) as bigint),
            cast(coalesce((select sum(case when e.debit_account like 'consumed:%' then -e.amount else e.amount end)
                from ledger_entries e
                where e.workspace_id = g.workspace_id and e.grant_id = g.grant_id and e.recorded_at < {end}
                    and (e.debit_account like 'consumed:%' or e.credit_account like 'consumed:%'
                        or e.credit_account in ('expired', 'debt'))), 0) as bigint)
            from credit_grants g where g.source = 'purchase' and g.created_at < {end}"
        );
        let mut money = Money::new();
        for row in self.integers(&purchases).await {
            let [currency, paid, bought, returned, reversed, used] = row[..] else { panic!("{row:?}") };
            let (amount, credits) = (i128::from(paid - returned), i128::from(bought - reversed));
            let earned = if credits == 0 { amount } else { amount * i128::from(used).clamp(0, credits) / credits };
            let currency = Currency::new(if currency == 0 { "EUR" } else { "USD" }).unwrap();
            let sums = money.entry(currency).or_default();
            let added = [paid, returned, i64::try_from(earned).unwrap()];
            sums.iter_mut().zip(added).for_each(|(sum, added): (&mut i64, i64)| *sum += added);
        }
        money
    }
}
