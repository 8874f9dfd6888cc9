//! Reads of the routes: with a timeout, and of a workspace that must exist.

use std::time::Duration;

use crate::domain::ids::WorkspaceId;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::time::Timestamp;
use crate::http::extract::workspace_not_found;
use crate::http::problem::{Code, Problem};
use crate::http::state::AppState;
use crate::queues::QueueError;
use crate::store::StoreError;

/// Maximum duration of a read. After it the answer is 503.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for a read, with a timeout.
pub(super) async fn read<T>(future: impl Future<Output = Result<T, StoreError>>) -> Result<T, Problem> {
    let answer = tokio::time::timeout(READ_TIMEOUT, future).await;
    Ok(answer.map_err(|_| Problem::plain(Code::Unavailable))??)
}

/// Waits for what an operator changes. If somebody else has changed it meanwhile, the answer is this problem.
pub(super) async fn change(
    conflict: Code,
    future: impl Future<Output = Result<(), StoreError>>,
) -> Result<(), Problem> {
    let changed = async {
        match future.await {
            Err(StoreError::Conflict(_)) => Ok(Err(Problem::plain(conflict))),
            changed => changed.map(Ok),
        }
    };
    read(changed).await?
}

/// The state of a workspace that must exist, as it is recorded.
pub(super) async fn recorded_state(state: &AppState, workspace_id: WorkspaceId) -> Result<WorkspaceState, Problem> {
    read(state.store.workspace(workspace_id)).await?.ok_or_else(workspace_not_found)
}

/// The state of a workspace that must exist as of now, with everything booked that is due; and now.
pub(super) async fn state_as_of_now(
    state: &AppState,
    workspace_id: WorkspaceId,
) -> Result<(WorkspaceState, Timestamp), Problem> {
    let now = state.clock.now();
    Ok((recorded_state(state, workspace_id).await?.as_of(now), now))
}

/// Waits for what becomes of jobs. If it takes too long, the caller does not know it, and sends the same again.
pub(super) async fn written<T>(
    state: &AppState,
    future: impl Future<Output = Result<T, QueueError>>,
) -> Result<T, Problem> {
    let done = state.within(state.decision_timeout, future).await;
    Ok(done.ok_or_else(|| Problem::plain(Code::Unavailable))??)
}

/// Checks that a workspace exists. It is remembered: workspaces are never deleted.
pub(super) async fn require_known_workspace(state: &AppState, workspace_id: WorkspaceId) -> Result<(), Problem> {
    if !state.known_workspaces.contains(workspace_id) {
        recorded_state(state, workspace_id).await?;
        state.known_workspaces.insert(workspace_id);
    }
    Ok(())
}

/// If a list is empty, checks that its workspace exists; if not, the answer is 404.
pub(super) async fn require_workspace_if_empty<T>(
    state: &AppState,
    workspace_id: WorkspaceId,
    rows: &[T],
) -> Result<(), Problem> {
    if rows.is_empty() { recorded_state(state, workspace_id).await.map(|_| ()) } else { Ok(()) }
}
