//! Pages of a workspace's history: what the lists of usage logs, ledger entries and purchases share.

use actix_web::HttpRequest;
use serde::Serialize;
use uuid::Uuid;

use super::reads::{read, require_workspace_if_empty};
use crate::domain::ids::WorkspaceId;
use crate::domain::time::Timestamp;
use crate::http::pages::{Cursor, CursorText, Limit, ListKey, ListOrder};
use crate::http::problem::Problem;
use crate::http::state::AppState;
use crate::store::StoreError;
use crate::store::queries::{HistoryPosition, HistoryQuery, Page};

/// The parameters that all of them have.
pub(super) struct HistoryParams {
    pub(super) cursor: Option<CursorText>,
    pub(super) limit: Limit,
    pub(super) order: ListOrder,
    pub(super) from: Option<Timestamp>,
    pub(super) to: Option<Timestamp>,
}

/// A row of a workspace's history.
pub(super) trait HistoryRow {
    /// What a cursor says of the row: its instant in microseconds and its number; and an id, such as its command's.
    fn place_and_id(&self) -> ([i64; 2], Uuid);
}

/// A page of a list, in the form of the API.
pub(super) struct ListPage<T> {
    pub(super) items: Vec<T>,
    pub(super) has_more: bool,
    pub(super) next: Option<Cursor>,
}

/// Reads a page. `name` and `filter` tell the list from others of the same workspace.
pub(super) async fn history_page<T, V, F>(
    request: &HttpRequest,
    workspace_id: WorkspaceId,
    params: HistoryParams,
    (name, filter): (&str, impl Serialize),
    rows: impl FnOnce(HistoryQuery) -> F,
) -> Result<ListPage<V>, Problem>
where
    T: HistoryRow,
    V: From<T>,
    F: Future<Output = Result<Page<T>, StoreError>>,
{
    let HistoryParams { cursor, limit, order, from, to } = params;
    let key = ListKey::new(name, &(workspace_id, order, from, to, filter));
    let seen = cursor.map(|cursor| key.parse::<2>(&cursor)).transpose()?;
    let start_at = seen.map(|seen| {
        let [micros, seq] = seen.place;
        HistoryPosition { recorded_at: Timestamp::from_micros(micros), seq }
    });
    let limit = limit.get() + u32::from(seen.is_some());
    let wanted = HistoryQuery { workspace_id, from, to, order: order.into(), start_at, limit };
    let Page { mut rows, has_more } = read(rows(wanted)).await?;
    if let Some(seen) = seen {
        seen.take_from(&mut rows, T::place_and_id)?;
    } else {
        require_workspace_if_empty(AppState::of(request), workspace_id, &rows).await?;
    }
    let last = rows.last().filter(|_| has_more);
    let next = last.map(T::place_and_id).map(|(place, id)| key.cursor(place, &id));
    Ok(ListPage { items: rows.into_iter().map(V::from).collect(), has_more, next })
}
