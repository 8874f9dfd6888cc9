//! Figures that this server makes of its events.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::{IntoParams, ToSchema};

use super::as_of::{AfterSeq, AsOfView, figures_as_of};
use super::reads::{read, require_workspace_if_empty};
use crate::domain::consumers::Consumer;
use crate::domain::credits::DecimalSum;
use crate::domain::ids::WorkspaceId;
use crate::domain::text::{FeatureCode, FieldCode, FieldError};
use crate::domain::time::{Day, Timestamp};
use crate::http::auth::scope;
use crate::http::extract::{WorkspaceCaller, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListKey};
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::figures::{UsageFigure, UsageFigures, UsageGroup};
use crate::store::queries::Page;

/// How many days a question may be about.
const MAX_DAYS: i64 = 400;
/// How many days it is about by default, with today.
const DEFAULT_DAYS: i64 = 30;

/// What usage is summed up by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub enum GroupBy {
    #[default]
    #[serde(rename = "day,feature")]
    DayAndFeature,
    #[serde(rename = "day")]
    Day,
    #[serde(rename = "feature")]
    Feature,
    #[serde(rename = "none")]
    Nothing,
}

impl<'de> Deserialize<'de> for GroupBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "day,feature" | "feature,day" => Ok(Self::DayAndFeature),
            "day" => Ok(Self::Day),
            "feature" => Ok(Self::Feature),
            "none" => Ok(Self::Nothing),
            _ => {
                let detail = "must be day,feature or day or feature or none";
                Err(de::Error::custom(FieldError::new(FieldCode::Invalid, detail)))
            }
        }
    }
}

impl From<GroupBy> for UsageGroup {
    fn from(group: GroupBy) -> Self {
        match group {
            GroupBy::DayAndFeature => Self::DayAndFeature,
            GroupBy::Day => Self::Day,
            GroupBy::Feature => Self::Feature,
            GroupBy::Nothing => Self::Nothing,
        }
    }
}

/// Which figures, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageAnalyticsParams {
    /// `next` of the previous page. Send the same days and group with it.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of rows of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// The first day. By default 29 days before the last.
    from: Option<Day>,
    /// The day after the last, at most 400 days after the first. Tomorrow by default.
    to: Option<Day>,
    /// What the usage is summed up by.
    #[serde(default)]
    #[param(required = false, inline)]
    group: GroupBy,
    /// Wait up to two seconds until the figures contain the event of this workspace with that `workspaceseq`. The answer
    /// comes in any case: `as_of` says what it contains.
    #[param(required = false, inline)]
    after_seq: Option<AfterSeq>,
}

/// The usage of one group.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageFigureView {
    /// The day in UTC on which it was charged. Absent if the usage is not summed up by day.
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<Day>,
    /// Absent if the usage is not summed up by feature.
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_code: Option<FeatureCode>,
    /// What was charged. Refunds are not taken off.
    credits: DecimalSum,
    /// What was given back on this day, whenever it had been charged.
    refunded_credits: DecimalSum,
    /// The sum of the quantities that were charged by quantity.
    quantity: DecimalSum,
    /// Deductions and captures.
    deductions: i64,
    /// Deductions and holds that were refused for want of credits or at a hard limit.
    refused: i64,
}

/// The usage of a workspace, by day and by feature.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageAnalytics {
    from: Day,
    /// The day after the last.
    to: Day,
    items: Vec<UsageFigureView>,
    /// Whether there are more rows after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
    as_of: AsOfView,
}

impl From<UsageFigure> for UsageFigureView {
    fn from(figure: UsageFigure) -> Self {
        Self {
            day: figure.day.map(Day::of),
            feature_code: figure.feature_code,
            credits: DecimalSum::of_micro(figure.credits),
            refunded_credits: DecimalSum::of_micro(figure.refunded),
            quantity: DecimalSum::of_micro(figure.quantity),
            deductions: figure.deductions,
            refused: figure.refused,
        }
    }
}

/// The days of a question.
pub(super) fn days(from: Option<Day>, to: Option<Day>, now: Timestamp) -> Result<(Day, Day), Problem> {
    let to = to.unwrap_or_else(|| Day::of(now).plus(1));
    let from = from.unwrap_or_else(|| to.plus(-DEFAULT_DAYS));
    if (1..=MAX_DAYS).contains(&from.days_to(to)) {
        return Ok((from, to));
    }
    Err(Problem::parameter(Code::InvalidField, "to", format!("must be 1 to {MAX_DAYS} days after from")))
}

/// Get the usage by day and feature
///
/// What was charged, given back and refused, summed up by the UTC day and the feature. The figures are made of the events
/// within moments of each command; `as_of` says how far they are. Days and features without usage have no row.
#[utoipa::path(
    tag = "analytics",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), UsageAnalyticsParams),
    responses((status = 200, description = "The usage.", body = UsageAnalytics, example = json!({
        "from": "2026-01-02", "to": "2026-02-01",
        "items": [{
            "day": "2026-01-31", "feature_code": "video.render", "credits": "12.5", "refunded_credits": "1", "quantity": "3",
            "deductions": 5, "refused": 1
        }],
        "has_more": false,
        "as_of": {"sequence": "0000000000000000042", "lag_seconds": 0, "incomplete": false}
    }))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("analytics:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/analytics/usage")]
pub async fn get_usage_analytics(
    caller: WorkspaceCaller<scope::AnalyticsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let params: UsageAnalyticsParams = query(&request)?;
    let (state, workspace_id) = (AppState::of(&request), caller.workspace_id);
    let now = state.clock.now();
    let (from, to) = days(params.from, params.to, now)?;
    let key = ListKey::new("usage-analytics", &(workspace_id, from, to, params.group));
    let as_of = figures_as_of(state, Consumer::Analytics, workspace_id, params.after_seq).await?;
    let seen = params.cursor.map(|cursor| key.parse::<PLACE>(&cursor)).transpose()?;
    let wanted = UsageFigures {
        workspace_id,
        from: from.start(),
        to: to.start(),
        group: params.group.into(),
        start_at: seen.map(|seen| at_place(seen.place)),
        limit: params.limit.get() + u32::from(seen.is_some()),
    };
    let Page { mut rows, has_more } = read(state.store.usage_figures(as_of.version, &wanted)).await?;
    if let Some(seen) = seen {
        seen.take_from(&mut rows, |figure| (place_of(figure), ()))?;
    } else {
        require_workspace_if_empty(state, workspace_id, &rows).await?;
    }
    let next = rows.last().filter(|_| has_more).map(|last| key.cursor(place_of(last), &()));
    let items = rows.into_iter().map(UsageFigureView::from).collect();
    private_json(&request, &UsageAnalytics { from, to, items, has_more, next, as_of: AsOfView::new(as_of, now) })
}

/// How many numbers the place of a row has in a cursor: its day, and the 64 bytes of its feature's code.
const PLACE: usize = 9;

fn place_of(figure: &UsageFigure) -> [i64; PLACE] {
    let code = figure.feature_code.as_ref().map_or("", |code| code.as_str()).as_bytes();
    let byte = |n: usize| code.get(n).copied().unwrap_or_default();
    std::array::from_fn(|place| match place.checked_sub(1) {
        None => figure.day.unwrap_or(Timestamp::MIN).micros(),
        Some(word) => i64::from_be_bytes(std::array::from_fn(|n| byte(word * 8 + n))),
    })
}

fn at_place(place: [i64; PLACE]) -> (Timestamp, FeatureCode) {
    let [day, code @ ..] = place;
    let bytes = code.iter().flat_map(|word| word.to_be_bytes()).take_while(|byte| *byte != 0);
    let code: String = bytes.map(char::from).collect();
    (Timestamp::from_micros(day), FeatureCode::from_stored(&code))
}
