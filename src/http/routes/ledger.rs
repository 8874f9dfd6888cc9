//! The ledger: every movement of credits.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::history::{HistoryParams, HistoryRow, ListPage, history_list};
use crate::domain::credits::Credits;
use crate::domain::ids::{CommandId, GrantId, WorkspaceId};
use crate::domain::ledger::LedgerEntry;
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::export::{Column, Exported};
use crate::http::extract::{ListCaller, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListOrder};
use crate::http::problem::Problem;
use crate::http::state::AppState;
use crate::store::queries::HistoryQuery;

/// Which rows, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LedgerParams {
    /// `next` of the previous page. Send the same order and filters with it. An export begins after that page.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of rows of the page. An export takes none.
    #[param(required = false, inline)]
    limit: Option<Limit>,
    /// Newest first (`desc`) or oldest first (`asc`).
    #[serde(default)]
    #[param(required = false, inline)]
    order: ListOrder,
    /// Only rows recorded at or after this instant.
    from: Option<Timestamp>,
    /// Only rows recorded before this instant.
    to: Option<Timestamp>,
    /// Only the entries of this grant.
    grant_id: Option<GrantId>,
}

/// One movement of credits from one account to another.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LedgerEntry)]
pub struct EntryView {
    /// The number in the workspace, from 1 and without gaps.
    seq: i64,
    command_id: CommandId,
    /// The account that the amount is taken from: `issued:<source>`, `grant`, `held`, `consumed:<feature>`, `expired` or `debt`.
    /// Refunds take from `consumed:<feature>`.
    #[schema(example = "grant")]
    debit_account: String,
    /// The account that the amount is added to. Named like `debit_account`.
    #[schema(example = "consumed:video.render")]
    credit_account: String,
    /// The grant that one of the two accounts belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_id: Option<GrantId>,
    /// More than zero.
    amount: Credits,
    balance_after: Credits,
    recorded_at: Timestamp,
    /// When the entry counts. Earlier than `recorded_at` if a period boundary was processed late, use was reported late, or
    /// a clock had been ahead.
    effective_at: Timestamp,
}

/// A page of ledger entries.
#[derive(Debug, Serialize, ToSchema)]
pub struct LedgerPage {
    items: Vec<EntryView>,
    /// Whether there are more rows after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
}

impl From<LedgerEntry> for EntryView {
    fn from(entry: LedgerEntry) -> Self {
        Self {
            seq: entry.seq,
            command_id: entry.command_id,
            debit_account: entry.accounts.debit.label().into_owned(),
            credit_account: entry.accounts.credit.label().into_owned(),
            grant_id: entry.accounts.grant_id(),
            amount: entry.amount,
            balance_after: entry.balance_after,
            recorded_at: entry.recorded_at,
            effective_at: entry.effective_at,
        }
    }
}

impl Exported for EntryView {
    const COLUMNS: &'static [Column] = &[
        Column::own("seq"),
        Column::own("command_id"),
        Column::own("debit_account"),
        Column::own("credit_account"),
        Column::own("grant_id"),
        Column::own("amount"),
        Column::own("balance_after"),
        Column::own("recorded_at"),
        Column::own("effective_at"),
    ];
}

impl HistoryRow for LedgerEntry {
    fn place_and_id(&self) -> ([i64; 2], Uuid) {
        ([self.recorded_at.micros(), self.seq], self.command_id.0)
    }
}

/// List the ledger
///
/// All movements of credits, in the order of recording. An entry moves an amount from one account to another, so every
/// transaction sums to zero. The balance is what was added to `grant`, `held` and `debt` less what was taken from them.
///
/// With `Accept: text/csv` or `application/x-ndjson` the answer is an export of the whole list.
#[utoipa::path(
    tag = "ledger",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), LedgerParams),
    responses((status = 200, description = "A page of ledger entries, or an export of all.", content(
        (LedgerPage = "application/json", example = json!({
            "items": [{
                "seq": 2, "command_id": "019a0000-0000-7000-8000-000000000001", "debit_account": "grant",
                "credit_account": "consumed:video.render", "grant_id": "019a0000-0000-7000-8000-000000000003",
                "amount": "2.5", "balance_after": "997.5", "recorded_at": "2026-01-31T09:00:00.000000Z",
                "effective_at": "2026-01-31T09:00:00.000000Z"
            }],
            "has_more": true, "next": "_hQBC0_oMwO3iIqdcoMk4wAGSatQjkQAAAAAAAAAAAI"
        })),
        (String = "text/csv", example = "seq,command_id,debit_account,credit_account,grant_id,amount,balance_after,\
            recorded_at,effective_at\r\n\
            2,019a0000-0000-7000-8000-000000000001,grant,consumed:video.render,019a0000-0000-7000-8000-000000000003,\
            2.5,997.5,2026-01-31T09:00:00.000000Z,2026-01-31T09:00:00.000000Z\r\n"),
        (String = "application/x-ndjson", example = "{\"seq\":2,\
            \"command_id\":\"019a0000-0000-7000-8000-000000000001\",\"debit_account\":\"grant\",\
            \"credit_account\":\"consumed:video.render\",\"grant_id\":\"019a0000-0000-7000-8000-000000000003\",\
            \"amount\":\"2.5\",\"balance_after\":\"997.5\",\"recorded_at\":\"2026-01-31T09:00:00.000000Z\",\
            \"effective_at\":\"2026-01-31T09:00:00.000000Z\"}\n")
    ))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("credits:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/ledger")]
pub async fn list_ledger(
    caller: ListCaller<scope::CreditsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let LedgerParams { cursor, limit, order, from, to, grant_id } = query(&request)?;
    let params = HistoryParams { cursor, limit, order, from, to };
    let store = Arc::clone(&AppState::of(&request).store);
    let rows = async move |query: HistoryQuery| store.ledger(&query, grant_id).await;
    let page = |ListPage { items, has_more, next }| LedgerPage { items, has_more, next };
    history_list(&request, caller, params, ("ledger", grant_id), rows, page).await
}
