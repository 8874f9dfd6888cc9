//! The state that every request can access.
//!
//! It is built in [`super`]: it contains documents that are made from the routes, and the routes depend on this module.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpRequest, web};
use tokio_util::sync::CancellationToken;

use super::auth::Verifier;
use super::health::Health;
use super::known_workspaces::KnownWorkspaces;
use super::limits::WorkspaceLimits;
use super::representation::Representation;
use crate::clock::Clock;
use crate::domain::cloud_event::EventSource;
use crate::engine::Decide;
use crate::queues::Queues;
use crate::store::jobs::Jobs;
use crate::store::{Operations, Store};

/// The state of the server.
pub struct AppState {
    pub engine: Arc<dyn Decide>,
    pub store: Arc<dyn Store>,
    pub operations: Arc<dyn Operations>,
    pub jobs: Arc<dyn Jobs>,
    pub queues: Queues,
    pub clock: Arc<dyn Clock>,
    pub auth: Arc<Verifier>,
    pub limits: WorkspaceLimits,
    pub known_workspaces: KnownWorkspaces,
    pub health: Arc<Health>,
    /// The source of all events.
    pub event_source: EventSource,
    /// Renders the metrics in the Prometheus text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    pub(super) body_timeout: Duration,
    pub(super) decision_timeout: Duration,
    /// The server stops: what is not done now is answered as unknown.
    pub(super) giving_up: CancellationToken,
    pub(super) documents: Documents,
}

/// What is made from the routes.
pub(super) struct Documents {
    pub(super) openapi: Representation,
    /// The JSON Schemas of events, by file name.
    pub(super) schemas: BTreeMap<String, Representation>,
    /// The `Allow` header of every route.
    pub(super) allow: BTreeMap<String, String>,
}

impl AppState {
    /// The result of a work within this time. None after it, and when the server gives up.
    pub(super) async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = tokio::time::timeout(limit, work) => done.ok(),
            () = self.giving_up.cancelled() => None,
        }
    }

    /// The state that the server was built with.
    #[must_use]
    pub fn of(request: &HttpRequest) -> &web::Data<Self> {
        request.app_data().expect("the server is built with its state")
    }
}
