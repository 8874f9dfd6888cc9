//! The ledger: every movement of credits.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::reading::{read, require_existing};
use crate::domain::credits::Credits;
use crate::domain::entry::Entry;
use crate::domain::ids::{CommandId, GrantId, WorkspaceId};
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::extract::{WorkspaceCaller, query};
use crate::http::pages::{Cursor, Limit};
use crate::http::problem::{Code, Problem};
use crate::http::state::AppState;
use crate::store::views::{HistoryQuery, Page};

/// Which rows, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LedgerParams {
    /// `next` of the page before.
    #[param(required = false)]
    cursor: Option<Cursor>,
    /// The most rows of the page; it may have fewer and still not be the last.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Only what was recorded at or after this instant.
    from: Option<Timestamp>,
    /// Only what was recorded before this instant.
    to: Option<Timestamp>,
    /// Only what was consumed by this feature.
    feature_code: Option<FeatureCode>,
}

/// One movement of credits from one account to another.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LedgerEntry)]
pub struct EntryView {
    /// Gap-free within the workspace, from 1.
    seq: i64,
    command_id: CommandId,
    /// `issued:<source>`, `grant`, `held`, `consumed:<feature>`, `expired` or `debt`.
    #[schema(example = "grant")]
    from: String,
    /// Like `from`.
    #[schema(example = "consumed:video.render")]
    to: String,
    /// The grant that one of the two accounts belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_id: Option<GrantId>,
    /// More than zero.
    amount: Credits,
    balance_after: Credits,
    recorded_at: Timestamp,
    /// When it counts: the boundary of a period that was caught up later, or when something was used.
    effective_at: Timestamp,
}

/// A page of ledger entries, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct LedgerPage {
    items: Vec<EntryView>,
    /// Where the next page begins; absent on the last one. A page may have fewer items than its limit,
    /// or none, while this is there: go on until it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
}

impl From<Entry> for EntryView {
    fn from(entry: Entry) -> Self {
        Self {
            seq: entry.seq,
            command_id: entry.command_id,
            from: entry.from.label().into_owned(),
            to: entry.to.label().into_owned(),
            grant_id: entry.grant_id(),
            amount: entry.amount,
            balance_after: entry.balance_after,
            recorded_at: entry.recorded_at,
            effective_at: entry.effective_at,
        }
    }
}

/// List the ledger
///
/// Every movement of credits, newest first. An entry moves an amount from one account to another, so
/// every transaction sums to zero; the balance is what came into `grant`, `held` and `debt` less what
/// left them.
#[utoipa::path(
    tag = "ledger",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), LedgerParams),
    responses((status = 200, description = "A page of ledger entries.", body = LedgerPage, example = json!({
        "items": [{
            "seq": 2, "command_id": "019a0000-0000-7000-8000-000000000001", "from": "grant",
            "to": "consumed:video.render", "grant_id": "019a0000-0000-7000-8000-000000000003", "amount": "2.5",
            "balance_after": "997.5", "recorded_at": "2026-01-31T09:00:00.000000Z",
            "effective_at": "2026-01-31T09:00:00.000000Z"
        }],
        "next": "bAAAAAAAAAAC"
    }))),
    extensions(("x-scope" = json!("credits:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/ledger")]
pub async fn list_ledger(
    caller: WorkspaceCaller<scope::CreditsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let LedgerParams { cursor, limit, from, to, feature_code } = query(&request)?;
    let before_seq = match cursor {
        None => None,
        Some(Cursor::Ledger { before_seq }) => Some(before_seq),
        Some(_) => return Err(Problem::parameter(Code::InvalidField, "cursor", "is not a cursor of this list")),
    };
    let state = AppState::of(&request);
    let workspace_id = caller.workspace_id;
    let wanted = HistoryQuery { workspace_id, before_seq, feature_code, from, to, limit: limit.get() };
    let Page { rows, next_before_seq } = read(state.store.ledger(&wanted)).await?;
    require_existing(state, workspace_id, &rows).await?;
    let next = next_before_seq.map(|before_seq| Cursor::Ledger { before_seq });
    Ok(HttpResponse::Ok().json(LedgerPage { items: rows.into_iter().map(Into::into).collect(), next }))
}
