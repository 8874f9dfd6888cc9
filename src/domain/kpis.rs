//! Key figures (KPIs) of the whole server, by hour or by day.
//!
//! A consumer keeps sums for each partition, because no two partitions write one row. Here they become the rows that are
//! answered: one for each step and group that has any figure. The arithmetic is exact, and a sum that is too large is an
//! error.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use super::grant::Currency;
use super::text::{FeatureCode, FieldCode, FieldError, PlanCode};
use super::time::{Day, Timestamp};

/// How long the time is that one row is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KpiStep {
    Hour,
    #[default]
    Day,
}

/// What the figures are told apart by, beside their step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub enum KpiGroup {
    #[default]
    #[serde(rename = "none")]
    Nothing,
    #[serde(rename = "plan")]
    Plan,
    #[serde(rename = "feature")]
    Feature,
    #[serde(rename = "plan,feature")]
    PlanAndFeature,
    #[serde(rename = "currency")]
    Currency,
    #[serde(rename = "plan,currency")]
    PlanAndCurrency,
}

impl<'de> Deserialize<'de> for KpiGroup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut names: Vec<&str> = text.split(',').collect();
        names.sort_unstable();
        let refuse = |detail: &str| Err(de::Error::custom(FieldError::new(FieldCode::Invalid, detail)));
        match names[..] {
            ["none"] => Ok(Self::Nothing),
            ["plan"] => Ok(Self::Plan),
            ["feature"] => Ok(Self::Feature),
            ["feature", "plan"] => Ok(Self::PlanAndFeature),
            ["currency"] => Ok(Self::Currency),
            ["currency", "plan"] => Ok(Self::PlanAndCurrency),
            ["currency", "feature"] | ["currency", "feature", "plan"] => {
                refuse("must not have both feature and currency: usage has no currency, and payments have no feature")
            }
            _ => refuse("must be none or plan or feature or plan,feature or currency or plan,currency"),
        }
    }
}

impl KpiStep {
    /// The first instant of the step that this instant is in.
    #[must_use]
    pub fn start_of(self, at: Timestamp) -> Timestamp {
        match self {
            Self::Hour => at.start_of_hour(),
            Self::Day => Day::of(at).start(),
        }
    }

    /// How many hours it has.
    #[must_use]
    pub const fn hours(self) -> i64 {
        match self {
            Self::Hour => 1,
            Self::Day => 24,
        }
    }
}

impl KpiGroup {
    #[must_use]
    pub const fn by_plan(self) -> bool {
        matches!(self, Self::Plan | Self::PlanAndFeature | Self::PlanAndCurrency)
    }

    #[must_use]
    pub const fn by_feature(self) -> bool {
        matches!(self, Self::Feature | Self::PlanAndFeature)
    }

    /// Whether it has revenue. It is counted by day, and has no usage beside it.
    #[must_use]
    pub const fn by_currency(self) -> bool {
        matches!(self, Self::Currency | Self::PlanAndCurrency)
    }

    /// Whether it has workspaces. They are counted by day.
    #[must_use]
    pub const fn has_workspaces(self, step: KpiStep) -> bool {
        matches!(step, KpiStep::Day) && matches!(self, Self::Nothing | Self::Plan)
    }

    /// Whether it has what is deferred. What is paid on one plan may be used on another, so a plan has none.
    #[must_use]
    pub const fn has_deferred(self) -> bool {
        matches!(self, Self::Currency)
    }
}

/// What a row is about. Rows are in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KpiKey {
    /// The first instant of the step.
    pub start: Timestamp,
    pub plan_code: Option<PlanCode>,
    pub feature_code: Option<FeatureCode>,
    pub currency: Option<Currency>,
}

/// The figures of one step and group. It has those of its step and its group, and not the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kpi {
    pub key: KpiKey,
    pub usage: Option<KpiUsage>,
    pub workspaces: Option<KpiWorkspaces>,
    pub revenue: Option<KpiRevenue>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KpiUsage {
    /// In micro-credits. What was charged, refunds not taken off.
    pub credits: i64,
    pub deductions: i64,
    pub refused: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KpiWorkspaces {
    pub active: i64,
    pub new: i64,
    pub canceled: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KpiRevenue {
    pub purchases: i64,
    /// In micro-credits.
    pub credits_sold: i64,
    pub paid_minor: i64,
    pub returned_minor: i64,
    pub recognised_minor: i64,
    /// What was paid and neither given back nor recognised, from the first day to the end of this one.
    pub deferred_minor: Option<i64>,
}

/// A sum of key figures does not fit into 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sum of key figures is too large")]
pub struct KpiOverflow;

/// What is deferred of each currency.
pub type Deferred = BTreeMap<Currency, i64>;

/// Sums figures of shorter times up to rows of this step and group, in order. `deferred` is what was deferred before all
/// of them; afterwards it is what is deferred after them.
pub fn sum_up(
    step: KpiStep,
    group: KpiGroup,
    parts: impl IntoIterator<Item = Kpi>,
    deferred: &mut Deferred,
) -> Result<Vec<Kpi>, KpiOverflow> {
    let mut rows = BTreeMap::new();
    for part in parts {
        let key = KpiKey { start: step.start_of(part.key.start), ..part.key.clone() };
        rows.entry(key.clone()).or_insert_with(|| Kpi::zero(step, group, key)).add(&part)?;
    }
    let mut rows: Vec<Kpi> = rows.into_values().collect();
    if group.has_deferred() {
        for row in &mut rows {
            let (Some(revenue), Some(currency)) = (&mut row.revenue, row.key.currency) else { continue };
            let balance = deferred.entry(currency).or_default();
            *balance = revenue.deferred_after(*balance)?;
            revenue.deferred_minor = Some(*balance);
        }
    }
    Ok(rows)
}

impl Kpi {
    fn zero(step: KpiStep, group: KpiGroup, key: KpiKey) -> Self {
        Self {
            key,
            usage: (!group.by_currency()).then(KpiUsage::default),
            workspaces: group.has_workspaces(step).then(KpiWorkspaces::default),
            revenue: group.by_currency().then(KpiRevenue::default),
        }
    }

    fn add(&mut self, part: &Self) -> Result<(), KpiOverflow> {
        if let (Some(sum), Some(part)) = (&mut self.usage, part.usage) {
            add(&mut sum.credits, part.credits)?;
            add(&mut sum.deductions, part.deductions)?;
            add(&mut sum.refused, part.refused)?;
        }
        if let (Some(sum), Some(part)) = (&mut self.workspaces, part.workspaces) {
            add(&mut sum.active, part.active)?;
            add(&mut sum.new, part.new)?;
            add(&mut sum.canceled, part.canceled)?;
        }
        if let (Some(sum), Some(part)) = (&mut self.revenue, part.revenue) {
            add(&mut sum.purchases, part.purchases)?;
            add(&mut sum.credits_sold, part.credits_sold)?;
            add(&mut sum.paid_minor, part.paid_minor)?;
            add(&mut sum.returned_minor, part.returned_minor)?;
            add(&mut sum.recognised_minor, part.recognised_minor)?;
        }
        Ok(())
    }
}

impl KpiRevenue {
    /// What is deferred after this revenue, if that much was before it.
    fn deferred_after(&self, before: i64) -> Result<i64, KpiOverflow> {
        let after = i128::from(before) + i128::from(self.paid_minor)
            - i128::from(self.returned_minor)
            - i128::from(self.recognised_minor);
        i64::try_from(after).map_err(|_| KpiOverflow)
    }
}

fn add(sum: &mut i64, part: i64) -> Result<(), KpiOverflow> {
    *sum = sum.checked_add(part).ok_or(KpiOverflow)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_micros(hours * HOUR)
    }

    fn key(hours: i64, plan: Option<&str>, currency: Option<&str>) -> KpiKey {
        let plan_code = plan.map(|code| PlanCode::new(code).unwrap());
        let currency = currency.map(|code| Currency::new(code).unwrap());
        KpiKey { start: at(hours), plan_code, feature_code: None, currency }
    }

    fn used(hours: i64, plan: Option<&str>, credits: i64) -> Kpi {
        let usage = Some(KpiUsage { credits, deductions: 1, refused: 2 });
        Kpi { key: key(hours, plan, None), usage, workspaces: None, revenue: None }
    }

    fn active(hours: i64, active: i64) -> Kpi {
        let workspaces = Some(KpiWorkspaces { active, new: 1, canceled: 2 });
        Kpi { key: key(hours, None, None), usage: None, workspaces, revenue: None }
    }

    /// Paid, returned and recognised.
    fn earned(hours: i64, currency: &str, [paid_minor, returned_minor, recognised_minor]: [i64; 3]) -> Kpi {
        let revenue = KpiRevenue {
            purchases: 1,
            credits_sold: 7,
            paid_minor,
            returned_minor,
            recognised_minor,
            deferred_minor: None,
        };
        Kpi { key: key(hours, None, Some(currency)), usage: None, workspaces: None, revenue: Some(revenue) }
    }

    fn sum(step: KpiStep, group: KpiGroup, parts: Vec<Kpi>) -> Vec<Kpi> {
        sum_up(step, group, parts, &mut Deferred::new()).unwrap()
    }

    #[test]
    fn hours_become_days_and_each_plan_its_own_row() {
        let parts =
            vec![used(47, Some("pro"), 4), used(0, Some("pro"), 1), used(23, Some("free"), 8), used(1, Some("pro"), 2)];
        let credits = |step| {
            let rows = sum(step, KpiGroup::Plan, parts.clone());
            let of = |row: &Kpi| (row.key.clone(), row.usage.unwrap().credits, row.usage.unwrap().refused);
            rows.iter().map(of).collect::<Vec<_>>()
        };
        let expected =
            [(key(0, Some("free"), None), 8, 2), (key(0, Some("pro"), None), 3, 4), (key(24, Some("pro"), None), 4, 2)];
        assert_eq!(credits(KpiStep::Day), expected);
        assert_eq!(credits(KpiStep::Hour).len(), 4);
    }

    #[test]
    fn usage_and_workspaces_of_a_day_share_a_row_and_what_has_no_events_is_zero() {
        let rows = sum(KpiStep::Day, KpiGroup::Nothing, vec![used(3, None, 5), active(0, 2), active(24, 9)]);
        let found: Vec<_> =
            rows.iter().map(|row| (row.usage.unwrap().credits, row.workspaces.unwrap().active)).collect();
        assert_eq!(found, [(5, 2), (0, 9)]);
        assert_eq!(rows[0].revenue, None);
        let hours = sum(KpiStep::Hour, KpiGroup::Nothing, vec![used(3, None, 5)]);
        assert_eq!((hours[0].workspaces, hours[0].revenue), (None, None));
    }

    #[test]
    fn what_is_deferred_runs_from_day_to_day_for_each_currency() {
        let (eur, usd) = (Currency::EUR, Currency::new("USD").unwrap());
        let mut deferred = Deferred::from([(eur, 50)]);
        let parts = vec![
            earned(0, "EUR", [100, 0, 30]),
            earned(0, "EUR", [0, 20, 0]),
            earned(24, "USD", [7, 0, 7]),
            earned(48, "EUR", [0, 0, -10]),
        ];
        let rows = sum_up(KpiStep::Day, KpiGroup::Currency, parts.clone(), &mut deferred).unwrap();
        let found: Vec<_> = rows.iter().map(|row| row.revenue.unwrap().deferred_minor.unwrap()).collect();
        assert_eq!(found, [100, 0, 110]);
        assert_eq!(deferred, Deferred::from([(eur, 110), (usd, 0)]));
        // In pieces it is the same.
        let mut again = Deferred::from([(eur, 50)]);
        let pieces = [&parts[..2], &parts[2..3], &parts[3..]];
        let by_piece =
            pieces.map(|piece| sum_up(KpiStep::Day, KpiGroup::Currency, piece.to_vec(), &mut again).unwrap());
        assert_eq!((by_piece.concat(), again), (rows, deferred));
        let by_plan = sum(KpiStep::Day, KpiGroup::PlanAndCurrency, parts);
        assert!(by_plan.iter().all(|row| row.revenue.unwrap().deferred_minor.is_none()));
    }

    #[test]
    fn a_sum_that_is_too_large_is_refused() {
        let most = i64::MAX;
        let too_much = [
            (KpiGroup::Nothing, vec![used(0, None, most), used(1, None, 1)]),
            (KpiGroup::Nothing, vec![active(0, most), active(1, 1)]),
            (KpiGroup::Currency, vec![earned(0, "EUR", [most, 0, 0]), earned(1, "EUR", [1, 0, 0])]),
            (KpiGroup::Currency, vec![earned(0, "EUR", [most, 0, -1])]),
            (KpiGroup::Currency, vec![earned(0, "EUR", [0, 0, i64::MIN])]),
        ];
        for (group, parts) in too_much {
            assert_eq!(sum_up(KpiStep::Day, group, parts.clone(), &mut Deferred::new()), Err(KpiOverflow), "{parts:?}");
        }
        let just_fits = vec![earned(0, "EUR", [most, most, 0]), earned(24, "EUR", [most, 0, most])];
        assert_eq!(sum(KpiStep::Day, KpiGroup::Currency, just_fits)[1].revenue.unwrap().deferred_minor, Some(0));
    }

    #[test]
    fn only_groups_that_figures_have_are_accepted_in_any_order() {
        let parse = |text: &str| serde_json::from_value::<KpiGroup>(text.into()).map_err(|error| error.to_string());
        for (text, group) in [
            ("none", KpiGroup::Nothing),
            ("plan", KpiGroup::Plan),
            ("feature", KpiGroup::Feature),
            ("plan,feature", KpiGroup::PlanAndFeature),
            ("feature,plan", KpiGroup::PlanAndFeature),
            ("currency", KpiGroup::Currency),
            ("plan,currency", KpiGroup::PlanAndCurrency),
            ("currency,plan", KpiGroup::PlanAndCurrency),
        ] {
            assert_eq!(parse(text), Ok(group), "{text}");
        }
        for text in ["feature,currency", "plan,feature,currency", "currency,plan,feature"] {
            assert!(parse(text).unwrap_err().contains("usage has no currency"), "{text}");
        }
        for text in ["", "week", "plan,plan", "none,plan", "plan, feature", "Plan", "plan,"] {
            assert!(parse(text).unwrap_err().contains("must be none or plan"), "{text}");
        }
    }
}
