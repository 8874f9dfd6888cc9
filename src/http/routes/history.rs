//! Lists of a workspace's history: what those of usage logs, ledger entries, purchases, grants and holds share.
//!
//! A list is read by pages, each from the last row of the one before on. An export is a loop of the same pages: none of
//! its rows comes twice or out of order, and it ends if the row before is no longer there.

use actix_web::{HttpRequest, HttpResponse, web};
use futures::{Stream, stream};
use serde::Serialize;
use uuid::Uuid;

use super::reads::{read, require_workspace_if_empty};
use crate::domain::ids::WorkspaceId;
use crate::domain::time::Timestamp;
use crate::http::auth::RequiredScope;
use crate::http::export::{self, Exported, ListForm, export};
use crate::http::extract::ListCaller;
use crate::http::pages::{Cursor, CursorText, Limit, ListKey, ListOrder, MAX_LIMIT, SeenRow};
use crate::http::problem::Problem;
use crate::http::state::AppState;
use crate::store::StoreError;
use crate::store::queries::{HistoryPosition, HistoryQuery, Order, Page};

/// The parameters that all of them have.
pub(super) struct HistoryParams {
    pub(super) cursor: Option<CursorText>,
    pub(super) limit: Option<Limit>,
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

/// Reads the rows of a list from the store.
pub(super) trait ReadRows<T>: AsyncFn(HistoryQuery) -> Result<Page<T>, StoreError> {}

impl<T, R: AsyncFn(HistoryQuery) -> Result<Page<T>, StoreError>> ReadRows<T> for R {}

/// Reads a page. `name` and `filter` tell the list from others of the same workspace.
pub(super) async fn history_page<T: HistoryRow, V: From<T>>(
    request: &HttpRequest,
    workspace_id: WorkspaceId,
    params: HistoryParams,
    (name, filter): (&str, impl Serialize),
    rows: impl ReadRows<T>,
) -> Result<ListPage<V>, Problem> {
    HistoryList::new(workspace_id, params, (name, filter))?.page(AppState::of(request), &rows).await
}

/// Answers with a page, which `page` makes, or with an export of the whole list.
pub(super) async fn history_list<S, T, V, P>(
    request: &HttpRequest,
    ListCaller { caller, form }: ListCaller<S>,
    params: HistoryParams,
    (name, filter): (&str, impl Serialize),
    rows: impl ReadRows<T> + 'static,
    page: impl FnOnce(ListPage<V>) -> P,
) -> Result<HttpResponse, Problem>
where
    S: RequiredScope,
    T: HistoryRow + 'static,
    V: From<T> + Exported + 'static,
    P: Serialize,
{
    let has_limit = params.limit.is_some();
    let mut list = HistoryList::new(caller.workspace_id, params, (name, filter))?;
    let state = AppState::of(request);
    match form {
        ListForm::Page => export::page(request, &page(list.page(state, &rows).await?)),
        ListForm::Export(_) if has_limit => Err(export::limit_refused()),
        ListForm::Export(form) => {
            let file_name = format!("{name}-{}", caller.workspace_id);
            list.end_with_newest(&rows).await?;
            export(request, caller, form, &file_name, list.pages::<T, V>(state.clone(), rows)).await
        }
    }
}

/// A list, and where its next page begins.
struct HistoryList {
    key: ListKey,
    /// The last row of the page before.
    seen: Option<SeenRow<2>>,
    query: HistoryQuery,
}

impl HistoryList {
    fn new(
        workspace_id: WorkspaceId,
        params: HistoryParams,
        (name, filter): (&str, impl Serialize),
    ) -> Result<Self, Problem> {
        let HistoryParams { cursor, limit, order, from, to } = params;
        let key = ListKey::new(name, &(workspace_id, order, from, to, filter));
        let seen = cursor.map(|cursor| key.parse::<2>(&cursor)).transpose()?;
        let limit = limit.unwrap_or_default().get();
        let query = HistoryQuery { workspace_id, from, to, order: order.into(), start_at: None, limit };
        Ok(Self { key, seen, query })
    }

    async fn page<T: HistoryRow, V: From<T>>(
        &self,
        state: &AppState,
        rows: &impl ReadRows<T>,
    ) -> Result<ListPage<V>, Problem> {
        let Page { rows, has_more } = self.read(state, rows).await?;
        let last = rows.last().filter(|_| has_more);
        let next = last.map(T::place_and_id).map(|(place, id)| self.key.cursor(place, &id));
        Ok(ListPage { items: rows.into_iter().map(V::from).collect(), has_more, next })
    }

    /// The rows after the one that was seen.
    async fn read<T: HistoryRow>(&self, state: &AppState, rows: &impl ReadRows<T>) -> Result<Page<T>, Problem> {
        let start_at = self.seen.map(|seen| {
            let [micros, seq] = seen.place;
            HistoryPosition { recorded_at: Timestamp::from_micros(micros), seq }
        });
        let limit = self.query.limit + u32::from(self.seen.is_some());
        let mut page = read(rows(HistoryQuery { start_at, limit, ..self.query.clone() })).await?;
        if let Some(seen) = self.seen {
            seen.take_from(&mut page.rows, T::place_and_id)?;
        } else {
            require_workspace_if_empty(state, self.query.workspace_id, &page.rows).await?;
        }
        Ok(page)
    }

    /// Ends a list of the oldest first with the row that is the newest now: while commands go on, it might else never
    /// end. A list of the newest first begins with that row.
    async fn end_with_newest<T: HistoryRow>(&mut self, rows: &impl ReadRows<T>) -> Result<(), Problem> {
        if self.query.order == Order::Ascending {
            let newest = HistoryQuery { order: Order::Descending, limit: 1, ..self.query.clone() };
            let newest = read(rows(newest)).await?.rows.pop();
            // No later command has the same instant.
            let end = newest.map(|row| row.place_and_id().0[0].saturating_add(1));
            self.query.to = Some(end.map_or(Timestamp::MIN, Timestamp::from_micros));
        }
        Ok(())
    }

    /// All pages, each read when it is asked for.
    fn pages<T: HistoryRow, V: From<T>>(
        mut self,
        state: web::Data<AppState>,
        rows: impl ReadRows<T>,
    ) -> impl Stream<Item = Result<Vec<V>, Problem>> {
        self.query.limit = MAX_LIMIT;
        stream::try_unfold(Some((self, state, rows)), async |rest| {
            let Some((mut list, state, read_rows)) = rest else { return Ok(None) };
            let Page { rows, has_more } = list.read(&state, &read_rows).await?;
            list.seen = rows.last().map(T::place_and_id).map(|(place, id)| SeenRow::new(place, &id));
            let items = rows.into_iter().map(V::from).collect();
            Ok(Some((items, has_more.then_some((list, state, read_rows)))))
        })
    }
}
