//! HTTP: the API's routes, and everything a request passes on its way to one.
//!
//! Reading order: [`routes`] (one file per resource), [`submit`] (a command's way to the engine),
//! [`extract`] and [`auth`] (who calls), [`body`] (what they send), [`problem`] (every error),
//! [`render`] (the stored answers), [`openapi`] (the document, from the same routes).
//!
//! *Architecture invariant:* actix and utoipa's paths are known only here. A handler holds no rule
//! of the business: it reads, hands over and answers.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_cors::Cors;
use actix_web::dev::Server;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpServer, web};
use serde::Deserialize;
use tracing_actix_web::TracingLogger;
use utoipa_actix_web::AppExt as _;

use self::auth::Verifier;
use self::limits::{LimitsConfig, WorkspaceLimits};
use self::observe::RootSpan;
use self::problem::{Code, Problem};
use self::submit::Decide;
use crate::clock::Clock;
use crate::store::Store;

pub mod auth;
pub mod body;
pub mod docs;
pub mod extract;
pub mod limits;
pub mod observe;
pub mod openapi;
pub mod pages;
pub mod problem;
pub mod render;
pub mod routes;
pub mod submit;

/// How long an idle connection is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to close.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long requests that are under way may take to finish when the server stops.
const DRAIN_TIMEOUT_S: u64 = 10;
/// How long a browser may remember what a preflight said.
const PREFLIGHT_MAX_AGE_S: usize = 600;
/// Connections per worker; each costs a few KiB.
const MAX_CONNECTIONS: usize = 10_000;

/// How the server listens and what it lets through.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Threads that serve requests; 0 for one per processor.
    pub workers: usize,
    /// Origins whose pages may call the API; none by default.
    pub cors_allowed_origins: Vec<String>,
    pub limits: LimitsConfig,
}

/// What the composition root tells the readiness probe.
#[derive(Debug, Default)]
pub struct Health {
    is_draining: AtomicBool,
    is_stream_degraded: AtomicBool,
}

impl Health {
    /// The server is about to stop: nothing new shall be sent here.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Whether the publisher has trouble with Redis. Commands do not depend on it.
    pub fn set_stream_degraded(&self, is_degraded: bool) {
        self.is_stream_degraded.store(is_degraded, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_stream_degraded(&self) -> bool {
        self.is_stream_degraded.load(Ordering::Relaxed)
    }
}

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
    documents: Documents,
}

/// What follows from the routes themselves.
struct Documents {
    openapi_json: web::Bytes,
    /// The methods of every route, as an `Allow` header names them.
    allow: BTreeMap<String, String>,
}

/// What the composition root hands in.
pub struct Parts {
    pub engine: Arc<dyn Decide>,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub auth: Arc<Verifier>,
    pub health: Arc<Health>,
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl AppState {
    #[must_use]
    pub fn new(parts: Parts, config: &HttpConfig) -> Self {
        let Parts { engine, store, clock, auth, health, metrics } = parts;
        let document = openapi::openapi_document();
        let mut allow = openapi::methods(&document);
        allow.extend([docs::ROOT, docs::FILES].map(|path| (path.to_owned(), "GET".to_owned())));
        let documents = Documents { openapi_json: openapi::to_compact_json(&document).into(), allow };
        let limits = WorkspaceLimits::new(config.limits);
        Self { engine, store, clock, auth, limits, health, metrics, documents }
    }
}

/// Builds the server on a bound socket. It runs when the returned future is polled; it installs no
/// signal handlers and is stopped by its handle.
pub fn server(state: web::Data<AppState>, config: &HttpConfig, listener: TcpListener) -> io::Result<Server> {
    let origins = config.cors_allowed_origins.clone();
    let workers = match config.workers {
        0 => std::thread::available_parallelism()?.get(),
        workers => workers,
    };
    let server = HttpServer::new(move || {
        let (app, _) = App::new().into_utoipa_app().configure(routes::configure).split_for_parts();
        app.app_data(state.clone())
            .configure(docs::configure)
            .default_service(web::to(unmatched))
            .wrap(cors(&origins))
            .wrap(from_fn(observe::observe))
            .wrap(TracingLogger::<RootSpan>::new())
    });
    let server = server
        .workers(workers)
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(HEAD_TIMEOUT)
        .client_disconnect_timeout(DISCONNECT_TIMEOUT)
        .max_connections(MAX_CONNECTIONS)
        .shutdown_timeout(DRAIN_TIMEOUT_S)
        .tcp_nodelay(true)
        .disable_signals()
        .listen(listener)?;
    Ok(server.run())
}

/// Bearer tokens and no cookies: an allowed origin never sends credentials by itself.
fn cors(origins: &[String]) -> Cors {
    origins
        .iter()
        .fold(Cors::default(), |cors, origin| cors.allowed_origin(origin))
        .allowed_methods(["GET", "POST", "PUT"])
        .allowed_headers(["authorization", "content-type", "idempotency-key", "x-correlation-id", "traceparent"])
        .expose_headers(["idempotency-replayed", "retry-after", "x-correlation-id"])
        .max_age(PREFLIGHT_MAX_AGE_S)
}

/// A path that is not there, or one that is and does not take this method.
#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
async fn unmatched(request: HttpRequest) -> Result<&'static str, Problem> {
    let allow = request.match_pattern().and_then(|pattern| extract::state(&request).documents.allow.get(&pattern));
    Err(allow.map_or_else(|| Problem::plain(Code::NotFound), |allow| Problem::method_not_allowed(allow.clone())))
}
