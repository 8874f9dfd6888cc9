//! Statements: what became of the credits of each period.

use actix_web::{HttpRequest, HttpResponse, get};
use futures::stream;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::as_of::{AfterSeq, AsOfView, figures_as_of};
use super::reads::{read, require_workspace_if_empty};
use crate::domain::consumers::{Consumer, Statement, StatementDocument, StatementLineView, StatementView};
use crate::domain::credits::DecimalSum;
use crate::domain::ids::WorkspaceId;
use crate::domain::text::FeatureCode;
use crate::domain::time::{Day, Timestamp};
use crate::http::auth::scope;
use crate::http::export::{self, Column, Exported, ListForm, export};
use crate::http::extract::{ListCaller, WorkspaceCaller, period_start, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListKey};
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::queries::Page;

/// Which statements, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatementsParams {
    /// `next` of the previous page.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of statements of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Wait up to two seconds until the statements contain the event of this workspace with that `workspaceseq`. The answer
    /// comes in any case: `as_of` says what it contains.
    #[param(required = false, inline)]
    after_seq: Option<AfterSeq>,
}

/// Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatementParams {
    /// Wait up to two seconds until the statement contains the event of this workspace with that `workspaceseq`. The answer
    /// comes in any case: `as_of` says what it contains.
    #[param(required = false, inline)]
    after_seq: Option<AfterSeq>,
}

/// A page of statements, without their lines.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatementPage {
    items: Vec<StatementView>,
    /// Whether there are more statements after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
    as_of: AsOfView,
}

/// A statement with its lines.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatementAnswer {
    #[serde(flatten)]
    statement: StatementDocument,
    as_of: AsOfView,
}

/// A row of a statement's export: its figures, and one of its lines. A statement without lines has one row without a line.
#[derive(Debug, Serialize)]
struct StatementRow {
    #[serde(flatten)]
    figures: StatementView,
    #[serde(flatten)]
    line: Option<StatementRowLine>,
}

/// The names begin with `line_`, because the figures of the statement have some of them too.
#[derive(Debug, Serialize)]
struct StatementRowLine {
    feature_code: FeatureCode,
    line_credits: DecimalSum,
    line_refunded: DecimalSum,
    line_quantity: DecimalSum,
    line_deductions: i64,
    line_refused: i64,
}

impl Exported for StatementRow {
    const COLUMNS: &'static [Column] = &[
        Column::own("workspace_id"),
        Column::own("period_start"),
        Column::own("period_end"),
        Column::own("state"),
        Column::of_callers("plan_code"),
        Column::own("plan_version"),
        Column::own("opening"),
        Column::own("granted"),
        Column::own("purchased"),
        Column::own("bonus"),
        Column::own("refunded"),
        Column::own("consumed"),
        Column::own("expired"),
        Column::own("removed"),
        Column::own("reversed"),
        Column::own("voided"),
        Column::own("unexplained"),
        Column::own("closing"),
        Column::own("debt_repaid"),
        Column::own("rolled_over"),
        Column::own("first_seq"),
        Column::own("last_seq"),
        Column::own("closed_at"),
        Column::own("sha256"),
        Column::of_callers("feature_code"),
        Column::own("line_credits"),
        Column::own("line_refunded"),
        Column::own("line_quantity"),
        Column::own("line_deductions"),
        Column::own("line_refused"),
    ];
}

impl From<StatementLineView> for StatementRowLine {
    fn from(line: StatementLineView) -> Self {
        Self {
            feature_code: line.feature_code,
            line_credits: line.credits,
            line_refunded: line.refunded,
            line_quantity: line.quantity,
            line_deductions: line.deductions,
            line_refused: line.refused,
        }
    }
}

fn export_rows(StatementDocument { figures, lines }: StatementDocument) -> Vec<StatementRow> {
    if lines.is_empty() {
        return vec![StatementRow { figures, line: None }];
    }
    lines.into_iter().map(|line| StatementRow { figures: figures.clone(), line: Some(line.into()) }).collect()
}

/// List the statements
///
/// What became of the credits of each period, the newest first: the open statement of the running period, and closed ones.
/// A closed statement never changes. The statements are made of the events within moments of each command; `as_of` says how
/// far they are.
#[utoipa::path(
    tag = "analytics",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), StatementsParams),
    responses((status = 200, description = "A page of statements.", body = StatementPage, example = json!({
        "items": [{
            "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "period_start": "2026-01-31T09:00:00.000000Z",
            "period_end": "2026-02-28T09:00:00.000000Z", "state": "open", "plan_code": "pro", "plan_version": 1,
            "opening": "0", "granted": "1000", "purchased": "500", "bonus": "50", "refunded": "1", "consumed": "12.5",
            "expired": "0", "removed": "0", "reversed": "0", "voided": "0", "unexplained": "0", "closing": "1538.5", "debt_repaid": "0",
            "rolled_over": "0", "first_seq": "0000000000000000001", "last_seq": "0000000000000000009"
        }],
        "has_more": false,
        "as_of": {"sequence": "0000000000000000042", "lag_seconds": 0, "incomplete": false}
    }))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("analytics:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/statements")]
pub async fn list_statements(
    caller: WorkspaceCaller<scope::AnalyticsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let params: StatementsParams = query(&request)?;
    let (state, workspace_id) = (AppState::of(&request), caller.workspace_id);
    let key = ListKey::new("statements", &workspace_id);
    let seen = params.cursor.map(|cursor| key.parse::<1>(&cursor)).transpose()?;
    let as_of = figures_as_of(state, Consumer::Billing, workspace_id, params.after_seq).await?;
    let start_at = seen.map(|seen| Timestamp::from_micros(seen.place[0]));
    let limit = params.limit.get() + u32::from(seen.is_some());
    let found = read(state.store.statements(as_of.version, workspace_id, start_at, limit)).await?;
    let Page { mut rows, has_more } = found;
    if let Some(seen) = seen {
        seen.take_from(&mut rows, |statement| (place_of(statement), ()))?;
    } else {
        require_workspace_if_empty(state, workspace_id, &rows).await?;
    }
    let next = rows.last().filter(|_| has_more).map(|last| key.cursor(place_of(last), &()));
    let items = rows.iter().map(StatementView::from).collect();
    let as_of = AsOfView::new(as_of, state.clock.now());
    private_json(&request, &StatementPage { items, has_more, next, as_of })
}

fn place_of(statement: &Statement) -> [i64; 1] {
    [statement.period_start.micros()]
}

/// Get a statement
///
/// What became of the credits of one period, with a line for each feature that was used or refused. Anybody can compute the
/// `sha256` of a closed statement again, from this answer and docs/FIGURES.md.
///
/// With `Accept: text/csv` or `application/x-ndjson` the answer has a row for each line, with all figures of the statement.
#[utoipa::path(
    tag = "analytics",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace's id."),
        ("period_start" = Timestamp, Path, description = "When the period of the statement began."),
        StatementParams
    ),
    responses((status = 200, description = "The statement.",
        headers(("X-As-Of" = String, description = "Of CSV and NDJSON: the `as_of` that the JSON has.")), content(
        (StatementAnswer = "application/json", example = json!({
            "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "period_start": "2026-01-31T09:00:00.000000Z",
            "period_end": "2026-02-28T09:00:00.000000Z", "state": "closed", "plan_code": "pro", "plan_version": 1,
            "opening": "0", "granted": "1000", "purchased": "500", "bonus": "50", "refunded": "1", "consumed": "12.5",
            "expired": "988.5", "removed": "0", "reversed": "0", "voided": "0", "unexplained": "0", "closing": "550", "debt_repaid": "0",
            "rolled_over": "0", "first_seq": "0000000000000000001", "last_seq": "0000000000000000009",
            "closed_at": "2026-02-28T09:00:00.000000Z",
            "sha256": "643e92fe7c01415d1491bc502698b13424329db7dbc69b6ab99e026f4ef4bb19",
            "lines": [{
                "feature_code": "video.render", "credits": "12.5", "refunded": "1", "quantity": "3", "deductions": 5,
                "refused": 1
            }],
            "as_of": {"sequence": "0000000000000000042", "lag_seconds": 0, "incomplete": false}
        })),
        (String = "text/csv", example = "workspace_id,period_start,period_end,state,plan_code,plan_version,opening,granted,\
            purchased,bonus,refunded,consumed,expired,removed,reversed,voided,unexplained,closing,debt_repaid,\
            rolled_over,first_seq,last_seq,closed_at,sha256,feature_code,line_credits,line_refunded,line_quantity,\
            line_deductions,line_refused\r\n\
            0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10,2026-01-31T09:00:00.000000Z,2026-02-28T09:00:00.000000Z,closed,pro,1,0,1000,\
            500,50,1,12.5,988.5,0,0,0,0,550,0,0,0000000000000000001,0000000000000000009,2026-02-28T09:00:00.000000Z,\
            643e92fe7c01415d1491bc502698b13424329db7dbc69b6ab99e026f4ef4bb19,video.render,12.5,1,3,5,1\r\n"),
        (String = "application/x-ndjson", example = "{\"workspace_id\":\"0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10\",\
            \"period_start\":\"2026-01-31T09:00:00.000000Z\",\"period_end\":\"2026-02-28T09:00:00.000000Z\",\
            \"state\":\"closed\",\"plan_code\":\"pro\",\"plan_version\":1,\"opening\":\"0\",\"granted\":\"1000\",\
            \"purchased\":\"500\",\"bonus\":\"50\",\"refunded\":\"1\",\"consumed\":\"12.5\",\"expired\":\"988.5\",\
            \"removed\":\"0\",\"reversed\":\"0\",\"voided\":\"0\",\"unexplained\":\"0\",\"closing\":\"550\",\
            \"debt_repaid\":\"0\",\"rolled_over\":\"0\",\"first_seq\":\"0000000000000000001\",\"last_seq\":\"0000000000000000009\",\
            \"closed_at\":\"2026-02-28T09:00:00.000000Z\",\
            \"sha256\":\"643e92fe7c01415d1491bc502698b13424329db7dbc69b6ab99e026f4ef4bb19\",\
            \"feature_code\":\"video.render\",\"line_credits\":\"12.5\",\"line_refunded\":\"1\",\
            \"line_quantity\":\"3\",\"line_deductions\":5,\"line_refused\":1}\n")
    ))),
    extensions(("x-problems" = json!(["statement-not-found"])), ("x-scope" = json!("analytics:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/statements/{period_start}")]
pub async fn get_statement(
    caller: ListCaller<scope::AnalyticsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let params: StatementParams = query(&request)?;
    let ListCaller { caller, form } = caller;
    let (state, workspace_id) = (AppState::of(&request), caller.workspace_id);
    let period_start = period_start(&request)?;
    let as_of = figures_as_of(state, Consumer::Billing, workspace_id, params.after_seq).await?;
    let found = read(state.store.statement(as_of.version, workspace_id, period_start)).await?;
    let (statement, lines) = found.ok_or_else(|| Problem::plain(Code::StatementNotFound))?;
    let statement = StatementDocument::new(&statement, &lines);
    let as_of = AsOfView::new(as_of, state.clock.now());
    match form {
        ListForm::Page => export::page(&request, &StatementAnswer { statement, as_of }),
        ListForm::Export(form) => {
            let name = format!("statement-{workspace_id}-{}", Day::of(period_start));
            let rows = stream::iter([Ok(export_rows(statement))]);
            as_of.put_on(export(&request, caller, form, &name, rows).await?)
        }
    }
}
