//! The ledger: every movement of credits.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::reads::{read, require_workspace_if_empty};
use crate::domain::credits::Credits;
use crate::domain::ids::{CommandId, GrantId, WorkspaceId};
use crate::domain::ledger::LedgerEntry;
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::extract::{WorkspaceCaller, query};
use crate::http::pages::{Cursor, Limit, ListOrder};
use crate::http::problem::{Code, Problem};
use crate::http::state::AppState;
use crate::store::queries::{HistoryPosition, HistoryQuery, Page};

/// Which rows, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LedgerParams {
    /// `next` of the previous page.
    #[param(required = false)]
    cursor: Option<Cursor>,
    /// Maximum number of rows of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
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
    /// When the entry counts. Earlier than `recorded_at` if a period boundary was processed late, or use was reported late.
    effective_at: Timestamp,
}

/// A page of ledger entries.
#[derive(Debug, Serialize, ToSchema)]
pub struct LedgerPage {
    items: Vec<EntryView>,
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

/// List the ledger
///
/// All movements of credits, in the order of recording. An entry moves an amount from one account to another, so every
/// transaction sums to zero. The balance is what was added to `grant`, `held` and `debt` less what was taken from them.
#[utoipa::path(
    tag = "ledger",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), LedgerParams),
    responses((status = 200, description = "A page of ledger entries.", body = LedgerPage, example = json!({
        "items": [{
            "seq": 2, "command_id": "019a0000-0000-7000-8000-000000000001", "debit_account": "grant",
            "credit_account": "consumed:video.render", "grant_id": "019a0000-0000-7000-8000-000000000003", "amount": "2.5",
            "balance_after": "997.5", "recorded_at": "2026-01-31T09:00:00.000000Z",
            "effective_at": "2026-01-31T09:00:00.000000Z"
        }],
        "next": "bAAGSatQjkQAAAAAAAAAAAI"
    }))),
    extensions(("x-scope" = json!("credits:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/ledger")]
pub async fn list_ledger(
    caller: WorkspaceCaller<scope::CreditsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let LedgerParams { cursor, limit, order, from, to, grant_id } = query(&request)?;
    let after = match cursor {
        None => None,
        Some(Cursor::Ledger { after }) => Some(after),
        Some(_) => return Err(Problem::parameter(Code::InvalidField, "cursor", "is not a cursor of this list")),
    };
    let state = AppState::of(&request);
    let workspace_id = caller.workspace_id;
    let wanted = HistoryQuery { workspace_id, from, to, order: order.into(), after, limit: limit.get() };
    let Page { rows, has_more } = read(state.store.ledger(&wanted, grant_id)).await?;
    require_workspace_if_empty(state, workspace_id, &rows).await?;
    let last = rows.last().filter(|_| has_more);
    let next =
        last.map(|entry| Cursor::Ledger { after: HistoryPosition { recorded_at: entry.recorded_at, seq: entry.seq } });
    Ok(HttpResponse::Ok().json(LedgerPage { items: rows.into_iter().map(Into::into).collect(), next }))
}
