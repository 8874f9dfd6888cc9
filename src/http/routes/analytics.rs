//! Figures that this server makes of its events.

use actix_web::{HttpRequest, HttpResponse, get, web};
use futures::{Stream, stream};
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
use crate::http::export::{self, Column, Exported, ListForm, export};
use crate::http::extract::{ListCaller, query};
use crate::http::pages::{CODE_WORDS, Cursor, CursorText, Limit, ListKey, MAX_LIMIT, SeenRow, code_of, code_words};
use crate::http::problem::{Code, Problem};
use crate::http::state::AppState;
use crate::store::figures::{UsageFigure, UsageFigures, UsageGroup};
use crate::store::queries::Page;

/// The days of a question.
pub(super) const USAGE_DAYS: DayBounds = DayBounds { default: 30, max: 400 };

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
    /// `next` of the previous page. Send the same days and group with it. An export begins after that page.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of rows of the page. An export takes none.
    #[param(required = false, inline)]
    limit: Option<Limit>,
    /// The first day. By default 29 days before the last; of an export the first with usage.
    from: Option<Day>,
    /// The day after the last. Of a page at most 400 days after the first. Tomorrow by default.
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

impl Exported for UsageFigureView {
    const COLUMNS: &'static [Column] = &[
        Column::own("day"),
        Column::of_callers("feature_code"),
        Column::own("credits"),
        Column::own("refunded_credits"),
        Column::own("quantity"),
        Column::own("deductions"),
        Column::own("refused"),
    ];
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

/// How many days a question may be about.
pub(super) struct DayBounds {
    /// With today, if nothing is said.
    pub(super) default: i64,
    pub(super) max: i64,
}

impl DayBounds {
    /// The first day of a question, and the day after its last.
    pub(super) fn days(&self, from: Option<Day>, to: Option<Day>, now: Timestamp) -> Result<(Day, Day), Problem> {
        let Self { default, max } = self;
        let to = to.unwrap_or_else(|| tomorrow(now));
        let from = from.unwrap_or_else(|| to.plus(-default));
        if (1..=*max).contains(&from.days_to(to)) {
            return Ok((from, to));
        }
        Err(Problem::parameter(Code::InvalidField, "to", format!("must be 1 to {max} days after from")))
    }
}

fn tomorrow(now: Timestamp) -> Day {
    Day::of(now).plus(1)
}

/// The days of an export: all, if nothing is said.
fn days_of_export(from: Option<Day>, to: Option<Day>, now: Timestamp) -> Result<(Day, Day), Problem> {
    let (from, to) = (from.unwrap_or_else(|| Day::of(Timestamp::MIN)), to.unwrap_or_else(|| tomorrow(now)));
    if from < to { Ok((from, to)) } else { Err(Problem::parameter(Code::InvalidField, "to", "must be after from")) }
}

/// Get the usage by day and feature
///
/// What was charged, given back and refused, summed up by the UTC day and the feature. The figures are made of the events
/// within moments of each command; `as_of` says how far they are. Days and features without usage have no row.
///
/// With `Accept: text/csv` or `application/x-ndjson` the answer is an export of the whole list: without `from` it begins with
/// the first day, and it may be about any number of days.
#[utoipa::path(
    tag = "analytics",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), UsageAnalyticsParams),
    responses((status = 200, description = "A page of the usage, or an export of all.",
        headers(("X-As-Of" = String, description = "Of an export: the `as_of` that a page has, as JSON.")), content(
        (UsageAnalytics = "application/json", example = json!({
            "from": "2026-01-02", "to": "2026-02-01",
            "items": [{
                "day": "2026-01-31", "feature_code": "video.render", "credits": "12.5", "refunded_credits": "1",
                "quantity": "3", "deductions": 5, "refused": 1
            }],
            "has_more": false,
            "as_of": {"sequence": "0000000000000000042", "lag_seconds": 0, "incomplete": false}
        })),
        (String = "text/csv", example = "day,feature_code,credits,refunded_credits,quantity,deductions,refused\r\n\
            2026-01-31,video.render,12.5,1,3,5,1\r\n"),
        (String = "application/x-ndjson", example = "{\"day\":\"2026-01-31\",\"feature_code\":\"video.render\",\
            \"credits\":\"12.5\",\"refunded_credits\":\"1\",\"quantity\":\"3\",\"deductions\":5,\"refused\":1}\n")
    ))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("analytics:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/analytics/usage")]
pub async fn get_usage_analytics(
    caller: ListCaller<scope::AnalyticsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let UsageAnalyticsParams { cursor, limit, from, to, group, after_seq } = query(&request)?;
    let ListCaller { caller, form } = caller;
    let (state, workspace_id) = (AppState::of(&request), caller.workspace_id);
    let now = state.clock.now();
    let (from, to) = match form {
        ListForm::Page => USAGE_DAYS.days(from, to, now)?,
        ListForm::Export(_) => days_of_export(from, to, now)?,
    };
    let key = ListKey::new("usage-analytics", &(workspace_id, from, to, group));
    let seen = cursor.map(|cursor| key.parse::<PLACE>(&cursor)).transpose()?;
    let as_of = figures_as_of(state, Consumer::Analytics, workspace_id, after_seq).await?;
    let list = UsageList { version: as_of.version, workspace_id, from, to, group, seen };
    match form {
        ListForm::Page => {
            let Page { rows, has_more } = list.read(state, limit.unwrap_or_default().get()).await?;
            let next = rows.last().filter(|_| has_more).map(|last| key.cursor(place_of(last), &()));
            let items = rows.into_iter().map(UsageFigureView::from).collect();
            let as_of = AsOfView::new(as_of, now);
            export::page(&request, &UsageAnalytics { from, to, items, has_more, next, as_of })
        }
        ListForm::Export(_) if limit.is_some() => Err(export::limit_refused()),
        ListForm::Export(form) => {
            let name = format!("usage-analytics-{workspace_id}");
            let answer = export(&request, caller, form, &name, list.pages(state.clone())).await?;
            AsOfView::new(as_of, now).put_on(answer)
        }
    }
}

/// The list, and where its next page begins.
struct UsageList {
    version: i32,
    workspace_id: WorkspaceId,
    from: Day,
    to: Day,
    group: GroupBy,
    /// The last row of the page before.
    seen: Option<SeenRow<PLACE>>,
}

impl UsageList {
    /// The rows after the one that was seen.
    async fn read(&self, state: &AppState, limit: u32) -> Result<Page<UsageFigure>, Problem> {
        let wanted = UsageFigures {
            workspace_id: self.workspace_id,
            from: self.from.start(),
            to: self.to.start(),
            group: self.group.into(),
            start_at: self.seen.map(|seen| at_place(seen.place)),
            limit: limit + u32::from(self.seen.is_some()),
        };
        let mut page = read(state.store.usage_figures(self.version, &wanted)).await?;
        if let Some(seen) = self.seen {
            seen.take_from(&mut page.rows, |figure| (place_of(figure), ()))?;
        } else {
            require_workspace_if_empty(state, self.workspace_id, &page.rows).await?;
        }
        Ok(page)
    }

    /// All pages, each read when it is asked for. It ends although usage goes on: no row is of a day after the last.
    fn pages(self, state: web::Data<AppState>) -> impl Stream<Item = Result<Vec<UsageFigureView>, Problem>> {
        stream::try_unfold(Some((self, state)), async |rest| {
            let Some((mut list, state)) = rest else { return Ok(None) };
            let Page { rows, has_more } = list.read(&state, MAX_LIMIT).await?;
            list.seen = rows.last().map(|last| SeenRow::new(place_of(last), &()));
            let items = rows.into_iter().map(UsageFigureView::from).collect();
            Ok(Some((items, has_more.then_some((list, state)))))
        })
    }
}

/// How many numbers the place of a row has in a cursor: its day and its feature.
const PLACE: usize = 1 + CODE_WORDS;

fn place_of(figure: &UsageFigure) -> [i64; PLACE] {
    let code = code_words(figure.feature_code.as_ref().map_or("", |code| code.as_str()));
    let day = figure.day.unwrap_or(Timestamp::MIN).micros();
    std::array::from_fn(|n| n.checked_sub(1).map_or(day, |word| code[word]))
}

fn at_place(place: [i64; PLACE]) -> (Timestamp, FeatureCode) {
    let [day, code @ ..] = place;
    (Timestamp::from_micros(day), FeatureCode::from_stored(&code_of(&code)))
}
