//! What every request can reach: the parts of the server, and what follows from its routes.
//!
//! It is put together in [`super`], because the documents are made from the routes, which are handed it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpRequest, web};

use super::auth::Verifier;
use super::decide::Decide;
use super::health::Health;
use super::limits::WorkspaceLimits;
use crate::clock::Clock;
use crate::store::Store;

/// What is handed to every route.
pub struct AppState {
    pub engine: Arc<dyn Decide>,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub auth: Arc<Verifier>,
    pub limits: WorkspaceLimits,
    pub health: Arc<Health>,
    /// Renders the metrics in Prometheus' text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    pub(super) body_timeout: Duration,
    pub(super) decision_timeout: Duration,
    pub(super) documents: Documents,
}

/// What follows from the routes themselves.
pub(super) struct Documents {
    pub(super) openapi_json: web::Bytes,
    /// The methods of every route, as an `Allow` header names them.
    pub(super) allow: BTreeMap<String, String>,
}

impl AppState {
    /// The state that the server was built with.
    #[must_use]
    pub fn of(request: &HttpRequest) -> &web::Data<Self> {
        request.app_data().expect("the server is built with its state")
    }
}
