//! The routes, one file per resource. A function's name is its operation id: verb, then resource.
//!
//! Each operation names beside itself what it may answer beyond what every operation may; the
//! document is completed from that in [`super::openapi`].

use std::time::Duration;

use utoipa_actix_web::service_config::ServiceConfig;

use super::AppState;
use super::extract::no_such_workspace;
use super::problem::{Code, Problem};
use crate::domain::ids::WorkspaceId;
use crate::domain::snapshot::WorkspaceState;
use crate::store::StoreError;

pub mod credits;
pub mod events;
pub mod health;
pub mod ledger;
pub mod plans;
pub mod subscription;
pub mod usage;
pub mod workspaces;

/// How long a read may take before the caller is told to come back.
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// Registers every route, for the server and for the document.
pub fn configure(config: &mut ServiceConfig<'_>) {
    config
        // The paths are tried in this order.
        .service(credits::deduct_credits)
        .service(workspaces::put_workspace)
        .service(workspaces::get_workspace)
        .service(credits::purchase_credits)
        .service(credits::reset_credits)
        .service(credits::get_credits)
        .service(subscription::change_subscription)
        .service(subscription::cancel_subscription)
        .service(subscription::resume_subscription)
        .service(subscription::get_subscription)
        .service(usage::list_features)
        .service(usage::list_usage)
        .service(ledger::list_ledger)
        .service(events::list_events)
        .service(events::get_event)
        .service(plans::list_plans)
        .service(health::get_livez)
        .service(health::get_readyz)
        .service(health::get_metrics)
        .service(health::get_openapi);
}

/// Waits for a read, but not for ever.
async fn read<T>(reading: impl Future<Output = Result<T, StoreError>>) -> Result<T, Problem> {
    let answer = tokio::time::timeout(READ_DEADLINE, reading).await;
    Ok(answer.map_err(|_| Problem::plain(Code::Unavailable))??)
}

/// The state of a workspace that must be there.
async fn workspace_state(state: &AppState, workspace_id: WorkspaceId) -> Result<WorkspaceState, Problem> {
    read(state.store.workspace(workspace_id)).await?.ok_or_else(no_such_workspace)
}

/// An empty list may be one of a workspace that is not there, which is another answer.
async fn require_existing<T>(state: &AppState, workspace_id: WorkspaceId, rows: &[T]) -> Result<(), Problem> {
    if rows.is_empty() { workspace_state(state, workspace_id).await.map(|_| ()) } else { Ok(()) }
}
