//! Key figures (KPIs) of the whole server, for operators.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::analytics::{DayBounds, USAGE_DAYS};
use super::as_of::ServerAsOfView;
use super::reads::read;
use crate::domain::consumers::Consumer;
use crate::domain::credits::DecimalSum;
use crate::domain::grant::Currency;
use crate::domain::kpis::{Deferred, Kpi, KpiGroup, KpiKey, KpiRevenue, KpiStep, KpiUsage, KpiWorkspaces};
use crate::domain::text::{FeatureCode, PlanCode};
use crate::domain::time::{Day, Timestamp};
use crate::http::auth::scope;
use crate::http::extract::{OperatorCaller, query};
use crate::http::pages::{CODE_WORDS, Cursor, CursorText, Limit, ListKey, code_of, code_words};
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::figures::{KpiPage, KpiQuery};
use crate::store::queries::Page;

/// How many stored rows a page reads, about. These take a second.
const MAX_STORED: i64 = 1_000_000;

/// Which figures, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct KpiParams {
    /// `next` of the previous page. Send the same days, step and group with it.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of rows of the page. A page that would take long has fewer, and then `has_more` is true.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// The first day in UTC. By default 29 days before the last; by hour, the day before the last.
    from: Option<Day>,
    /// The day after the last: at most 400 days after the first, and by hour at most 31. Tomorrow by default.
    to: Option<Day>,
    /// How long the time is that one row is about.
    #[serde(default)]
    #[param(required = false, inline)]
    step: KpiStep,
    /// What the figures are told apart by. With a currency the step must be `day`.
    #[serde(default)]
    #[param(required = false, inline)]
    group: KpiGroup,
}

/// The figures of one step and group. It has those of its step and its group, and not the others.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Kpi)]
pub struct KpiView {
    /// The day in UTC, if the step is a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<Day>,
    /// When the hour begins, if the step is an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    hour: Option<Timestamp>,
    /// The plan that the workspaces were on. Absent if the figures are not told apart by plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan_code: Option<PlanCode>,
    /// Absent if the figures are not told apart by feature.
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_code: Option<FeatureCode>,
    /// ISO 4217. Absent if the figures are not told apart by currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    currency: Option<String>,
    /// Absent if the figures are told apart by currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<KpiUsageView>,
    /// Only of days, and if the figures are told apart neither by feature nor by currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    workspaces: Option<KpiWorkspacesView>,
    /// Only of days, and if the figures are told apart by currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    revenue: Option<KpiRevenueView>,
}

/// What was used of features.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KpiUsage)]
pub struct KpiUsageView {
    /// What was charged. Refunds are not taken off.
    credits: DecimalSum,
    /// Deductions and captures.
    deductions: i64,
    /// Deductions and holds that were refused for want of credits or at a hard limit.
    refused: i64,
}

/// How many workspaces there were.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KpiWorkspaces)]
pub struct KpiWorkspacesView {
    /// Workspaces that were charged on this day.
    active: i64,
    /// Workspaces that were created on this day.
    new: i64,
    /// Workspaces whose subscription ended on this day.
    canceled: i64,
}

/// What was bought. Amounts of money are in minor units of the currency.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KpiRevenue)]
pub struct KpiRevenueView {
    purchases: i64,
    /// Without bonus credits.
    credits_sold: DecimalSum,
    paid_minor: i64,
    /// What was given back by reversals of purchases.
    returned_minor: i64,
    /// What was earned, because credits were used, have expired or have repaid debt. Negative if refunds of usage took more
    /// back.
    recognised_minor: i64,
    /// What had been paid by the end of the day and was neither given back nor recognised. Absent if the figures are told
    /// apart by plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    deferred_minor: Option<i64>,
}

/// What was deferred of a currency.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeferredBefore {
    /// ISO 4217.
    currency: String,
    deferred_minor: i64,
}

/// Key figures of the whole server.
#[derive(Debug, Serialize, ToSchema)]
pub struct Kpis {
    from: Day,
    /// The day after the last.
    to: Day,
    step: KpiStep,
    /// By time, then by plan, feature or currency.
    items: Vec<KpiView>,
    /// Whether there are more rows after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
    /// What was deferred when the first day began, of each currency that was paid in before. Only if the group is
    /// `currency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    deferred_before: Option<Vec<DeferredBefore>>,
    as_of: ServerAsOfView,
}

impl KpiView {
    fn new(step: KpiStep, Kpi { key, usage, workspaces, revenue }: Kpi) -> Self {
        Self {
            day: (step == KpiStep::Day).then(|| Day::of(key.start)),
            hour: (step == KpiStep::Hour).then_some(key.start),
            plan_code: key.plan_code,
            feature_code: key.feature_code,
            currency: key.currency.map(|currency| currency.as_str().to_owned()),
            usage: usage.map(KpiUsageView::from),
            workspaces: workspaces.map(KpiWorkspacesView::from),
            revenue: revenue.map(KpiRevenueView::from),
        }
    }
}

impl From<KpiUsage> for KpiUsageView {
    fn from(KpiUsage { credits, deductions, refused }: KpiUsage) -> Self {
        Self { credits: DecimalSum::of_micro(credits), deductions, refused }
    }
}

impl From<KpiWorkspaces> for KpiWorkspacesView {
    fn from(KpiWorkspaces { active, new, canceled }: KpiWorkspaces) -> Self {
        Self { active, new, canceled }
    }
}

impl From<KpiRevenue> for KpiRevenueView {
    fn from(revenue: KpiRevenue) -> Self {
        Self {
            purchases: revenue.purchases,
            credits_sold: DecimalSum::of_micro(revenue.credits_sold),
            paid_minor: revenue.paid_minor,
            returned_minor: revenue.returned_minor,
            recognised_minor: revenue.recognised_minor,
            deferred_minor: revenue.deferred_minor,
        }
    }
}

fn deferred_view(deferred: Deferred) -> Vec<DeferredBefore> {
    let of = |(currency, deferred_minor): (Currency, i64)| DeferredBefore {
        currency: currency.as_str().to_owned(),
        deferred_minor,
    };
    deferred.into_iter().map(of).collect()
}

/// The days of a question, by default and at most.
const fn day_bounds(step: KpiStep) -> DayBounds {
    match step {
        KpiStep::Hour => DayBounds { default: 2, max: 31 },
        KpiStep::Day => USAGE_DAYS,
    }
}

/// Get key figures of the whole server
///
/// Usage, workspaces and revenue of all workspaces together, by hour or by day in UTC. Which figures a row has depends on the
/// step and on the group:
///
/// | group | by hour | by day |
/// |---|---|---|
/// | `none`, `plan` | usage | usage, workspaces |
/// | `feature`, `plan,feature` | usage | usage |
/// | `currency` | refused | revenue with `deferred_minor` |
/// | `plan,currency` | refused | revenue |
///
/// Amounts of different currencies are never summed up, usage has no currency, and payments have no feature: other groups are
/// refused. Hours and days without events of these figures have no row. The figures are made of the events within moments of
/// each command; `as_of` says how far they are.
#[utoipa::path(
    tag = "analytics",
    params(KpiParams),
    responses((status = 200, description = "The figures.", body = Kpis, examples(
        ("by_day" = (summary = "All workspaces by day", value = json!({
            "from": "2026-01-02", "to": "2026-02-01", "step": "day",
            "items": [{
                "day": "2026-01-31", "usage": {"credits": "1012.5", "deductions": 405, "refused": 2},
                "workspaces": {"active": 31, "new": 4, "canceled": 1}
            }],
            "has_more": false,
            "as_of": {
                "partitions": [{"partition": 0, "sequence": "0000000000000000042"}], "lag_seconds": 0, "incomplete": false
            }
        }))),
        ("by_hour" = (summary = "By hour and feature", value = json!({
            "from": "2026-01-30", "to": "2026-02-01", "step": "hour",
            "items": [{
                "hour": "2026-01-31T09:00:00.000000Z", "feature_code": "video.render",
                "usage": {"credits": "12.5", "deductions": 5, "refused": 0}
            }],
            "has_more": false,
            "as_of": {
                "partitions": [{"partition": 0, "sequence": "0000000000000000042"}], "lag_seconds": 0, "incomplete": false
            }
        }))),
        ("by_currency" = (summary = "Money by day and currency", value = json!({
            "from": "2026-01-02", "to": "2026-02-01", "step": "day",
            "items": [{
                "day": "2026-01-31", "currency": "EUR",
                "revenue": {
                    "purchases": 3, "credits_sold": "1500", "paid_minor": 14700, "returned_minor": 4900,
                    "recognised_minor": 2310, "deferred_minor": 31490
                }
            }],
            "has_more": false, "deferred_before": [{"currency": "EUR", "deferred_minor": 24000}],
            "as_of": {
                "partitions": [{"partition": 0, "sequence": "0000000000000000042"}], "lag_seconds": 0, "incomplete": false
            }
        })))
    ))),
    extensions(
        ("x-problems" = json!(["all-workspaces-required", "invalid-cursor", "cursor-gone"])),
        ("x-scope" = json!("analytics:read"))
    ),
    security(("bearer" = []))
)]
#[get("/v1/analytics/kpis")]
pub async fn get_kpis(_: OperatorCaller<scope::AnalyticsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let KpiParams { cursor, limit, from, to, step, group } = query(&request)?;
    if group.by_currency() && step == KpiStep::Hour {
        let detail = "must not have currency if the step is hour: revenue is counted by day";
        return Err(Problem::parameter(Code::InvalidField, "group", detail));
    }
    let state = AppState::of(&request);
    let now = state.clock.now();
    let (from, to) = day_bounds(step).days(from, to, now)?;
    let key = ListKey::new("kpis", &(from, to, step, group));
    let seen = cursor.map(|cursor| key.parse::<PLACE>(&cursor)).transpose()?;
    let wanted = KpiQuery {
        step,
        group,
        from: from.start(),
        to: to.start(),
        start_at: seen.map(|seen| at_place(seen.place, group)),
        limit: limit.get() + u32::from(seen.is_some()),
        max_stored: MAX_STORED,
    };
    let as_of = read(state.store.server_as_of(Consumer::Analytics)).await?;
    let KpiPage { page: Page { mut rows, has_more }, deferred_before } =
        read(state.store.kpis(as_of.version, &wanted)).await?;
    if let Some(seen) = seen {
        seen.take_from(&mut rows, |row| (place_of(&row.key), ()))?;
    }
    let next = rows.last().filter(|_| has_more).map(|last| key.cursor(place_of(&last.key), &()));
    let answer = Kpis {
        from,
        to,
        step,
        items: rows.into_iter().map(|row| KpiView::new(step, row)).collect(),
        has_more,
        next,
        deferred_before: deferred_before.map(deferred_view),
        as_of: ServerAsOfView::new(as_of, now),
    };
    private_json(&request, &answer)
}

/// How many numbers the place of a row has in a cursor: its instant, its plan, and its feature or its currency.
const PLACE: usize = 1 + 2 * CODE_WORDS;

fn place_of(key: &KpiKey) -> [i64; PLACE] {
    let plan = key.plan_code.as_ref().map_or("", |code| code.as_str());
    let currency = key.currency.as_ref().map(Currency::as_str);
    let other = key.feature_code.as_ref().map(FeatureCode::as_str).or(currency).unwrap_or_default();
    let mut place = [0; PLACE];
    let numbers = [key.start.micros()].into_iter().chain(code_words(plan)).chain(code_words(other));
    place.iter_mut().zip(numbers).for_each(|(number, value)| *number = value);
    place
}

fn at_place(place: [i64; PLACE], group: KpiGroup) -> KpiKey {
    let [start, codes @ ..] = place;
    let (plan, other) = codes.split_at(CODE_WORDS);
    KpiKey {
        start: Timestamp::from_micros(start),
        plan_code: group.by_plan().then(|| PlanCode::from_stored(&code_of(plan))),
        feature_code: group.by_feature().then(|| FeatureCode::from_stored(&code_of(other))),
        // What is no currency is before all of them, and the row is not found.
        currency: if group.by_currency() { Currency::new(&code_of(other)) } else { None },
    }
}
