//! What the routes read with: for a bounded time, and of a workspace that is there.

use std::time::Duration;

use crate::domain::ids::WorkspaceId;
use crate::domain::snapshot::WorkspaceState;
use crate::http::extract::no_such_workspace;
use crate::http::problem::{Code, Problem};
use crate::http::state::AppState;
use crate::store::StoreError;

/// How long a read may take before the caller is told to come back.
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// Waits for a read, but not for ever.
pub(super) async fn read<T>(reading: impl Future<Output = Result<T, StoreError>>) -> Result<T, Problem> {
    let answer = tokio::time::timeout(READ_DEADLINE, reading).await;
    Ok(answer.map_err(|_| Problem::plain(Code::Unavailable))??)
}

/// The state of a workspace that must be there.
pub(super) async fn workspace_state(state: &AppState, workspace_id: WorkspaceId) -> Result<WorkspaceState, Problem> {
    read(state.store.workspace(workspace_id)).await?.ok_or_else(no_such_workspace)
}

/// An empty list may be one of a workspace that is not there, which is another answer.
pub(super) async fn require_existing<T>(
    state: &AppState,
    workspace_id: WorkspaceId,
    rows: &[T],
) -> Result<(), Problem> {
    if rows.is_empty() { workspace_state(state, workspace_id).await.map(|_| ()) } else { Ok(()) }
}
