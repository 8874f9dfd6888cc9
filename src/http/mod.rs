//! HTTP: the routes of the API, and what a request passes before it reaches one.
//!
//! Reading order: [`routes`] (one file per resource), [`submit`] (sends a command to the engine),
//! [`extract`] and [`auth`] (the caller), [`body`] (request bodies), [`problem`] (every error), [`render`] (answers to
//! commands), [`openapi`] (the document, made from the same routes).
//!
//! *Architecture invariant:* only this module uses actix and the paths of utoipa. A handler has no business rules: it
//! parses the request, calls the engine or the store, and answers.

use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use actix_cors::Cors;
use actix_http::{HttpService, Protocol};
use actix_service::{IntoServiceFactory as _, ServiceFactoryExt as _, fn_service, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, ServerHandle, ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::middleware::from_fn;
use actix_web::rt::net::TcpStream;
use actix_web::{App, Error, HttpRequest, web};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing_actix_web::TracingLogger;
use utoipa_actix_web::AppExt as _;
use utoipa_actix_web::service_config::ServiceConfig;

use self::auth::Verifier;
use self::auth::jwks::FETCH_TIMEOUT;
use self::connection::{Connection, ConnectionTimeouts};
pub use self::health::Health;
pub use self::job_commands::JobCommands;
use self::known_workspaces::KnownWorkspaces;
use self::limits::{LimitsConfig, WorkspaceLimits};
use self::observe::RootSpan;
use self::problem::{Code, Problem};
use self::representation::Representation;
pub use self::state::AppState;
use self::state::Documents;
use crate::clock::Clock;
use crate::contract;
use crate::domain::cloud_event::EventSource;
use crate::engine::Decide;
use crate::queues::Queues;
use crate::store::jobs::Jobs;
use crate::store::{Operations, Store};

mod accept;
pub mod auth;
pub mod body;
pub mod connection;
pub mod docs;
mod dry_run;
pub mod export;
pub mod extract;
mod health;
mod ids;
mod job_commands;
mod json_object;
mod known_workspaces;
pub mod limits;
pub mod observe;
pub mod openapi;
pub mod pages;
pub mod problem;
pub mod refusal;
pub mod render;
mod representation;
pub mod routes;
mod state;
pub mod submit;

/// How long a connection may take to close.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of answers is gathered before it is written: with the piece that fills it, what a peer that does not read
/// its answers costs.
const WRITE_BUFFER: usize = 16 * 1024;
/// How much the kernel receives for a connection before it is read. Linux doubles it for its own needs.
const RECEIVE_BUFFER: usize = 32 * 1024;
/// How long the last answers may take when the server stops.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// How long a browser may cache the answer to a preflight request.
const PREFLIGHT_MAX_AGE_S: usize = 600;

/// Threads, timeouts and limits of the HTTP server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Threads that serve requests.
    pub workers: usize,
    /// Open connections per worker.
    pub max_connections: usize,
    /// Time for the head of a request to arrive.
    pub head_timeout: Duration,
    /// Time for the whole body of a request to arrive.
    pub body_timeout: Duration,
    /// How long a request waits for a decision. After that the caller does not know the outcome, and finds it out by
    /// a retry with the same key.
    pub decision_timeout: Duration,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
    /// How long a peer may take no bytes of its answer.
    pub stall_timeout: Duration,
    /// How long requests in progress may take to finish when the server stops, in seconds.
    pub drain_timeout_s: u64,
    /// Origins whose pages may call the API; none by default.
    pub cors_allowed_origins: Vec<String>,
    pub limits: LimitsConfig,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            max_connections: 4096,
            head_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            decision_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(10),
            drain_timeout_s: 10,
            cors_allowed_origins: Vec::new(),
            limits: LimitsConfig::default(),
        }
    }
}

impl HttpConfig {
    /// The longest request has a slow head, a token that needs a new key, a slow body and a slow decision.
    fn timeouts(&self) -> ConnectionTimeouts {
        let exchange = self.head_timeout + FETCH_TIMEOUT + self.body_timeout + self.decision_timeout;
        // actix closes an idle connection after `keep_alive`; the head's time on top makes sure that it is first.
        let idle = self.keep_alive + self.head_timeout;
        ConnectionTimeouts { head: self.head_timeout, exchange, idle, stall: self.stall_timeout }
    }
}

/// What a port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Everything.
    Only,
    /// Everything but the metrics, which the port for operators serves.
    Main,
    /// Probes and metrics, on a thread of their own: they answer at once however busy the main port is.
    Operations,
}

/// Open connections of [`Port::Operations`]: some probes and a scraper.
const MAX_OPERATIONS_CONNECTIONS: usize = 256;

/// What the server needs from the rest of the program.
pub struct Parts {
    pub engine: Arc<dyn Decide>,
    pub store: Arc<dyn Store>,
    pub operations: Arc<dyn Operations>,
    pub jobs: Arc<dyn Jobs>,
    pub queues: Queues,
    pub clock: Arc<dyn Clock>,
    pub auth: Arc<Verifier>,
    pub health: Arc<Health>,
    pub event_source: EventSource,
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl AppState {
    #[must_use]
    pub fn new(parts: Parts, config: &HttpConfig) -> Self {
        let Parts { engine, store, operations, jobs, queues, clock, auth, health, event_source, metrics } = parts;
        let document = openapi::openapi_document();
        let mut allow = openapi::methods(&document);
        allow.extend(["/", docs::ROOT, docs::FILES].map(|path| (path.to_owned(), "GET, HEAD".to_owned())));
        let documents = Documents {
            openapi: Representation::document("application/json", openapi::to_compact_json(&document)),
            schemas: contract::documents()
                .into_iter()
                .map(|schema| (schema.file_name, Representation::document("application/schema+json", schema.text)))
                .collect(),
            allow,
        };
        let limits = WorkspaceLimits::new(config.limits);
        let HttpConfig { body_timeout, decision_timeout, .. } = *config;
        Self {
            engine,
            store,
            operations,
            jobs,
            queues,
            clock,
            auth,
            limits,
            known_workspaces: KnownWorkspaces::default(),
            health,
            event_source,
            metrics,
            body_timeout,
            decision_timeout,
            giving_up: CancellationToken::new(),
            documents,
        }
    }
}

/// A running server.
pub struct Running {
    task: JoinHandle<io::Result<()>>,
    stop: StopHandle,
}

/// Stops a server.
#[derive(Clone)]
pub struct StopHandle {
    handle: ServerHandle,
    /// Ends the idle connections, and the others once their requests are answered.
    stopping: CancellationToken,
    /// Answers the requests that are still waiting.
    giving_up: CancellationToken,
    gives_up_after: Duration,
}

impl Running {
    /// Waits until the server ends by itself, which it never should.
    pub async fn ended(&mut self) -> io::Result<()> {
        (&mut self.task).await.map_err(io::Error::other)?
    }

    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }
}

impl StopHandle {
    /// Closes all connections at once.
    pub fn stop_now(&self) -> impl Future<Output = ()> + use<> {
        self.handle.stop(false)
    }

    /// Accepts no more connections, and waits until every request that was read is answered. Those that still wait
    /// when the time is nearly over are told that their outcome is unknown.
    pub async fn stop(self) {
        let mut stopped = pin!(self.handle.stop(true));
        self.stopping.cancel();
        if tokio::time::timeout(self.gives_up_after, &mut stopped).await.is_err() {
            self.giving_up.cancel();
            stopped.await;
        }
    }
}

/// The API, to be served on one port or more.
pub struct Api {
    state: web::Data<AppState>,
    config: HttpConfig,
}

impl Api {
    #[must_use]
    pub fn new(parts: Parts, config: HttpConfig) -> Self {
        Self { state: web::Data::new(AppState::new(parts, &config)), config }
    }

    /// Starts a server on a bound socket.
    pub fn serve(&self, port: Port, listener: TcpListener) -> io::Result<Running> {
        let stopping = CancellationToken::new();
        let server = server(self.state.clone(), &self.config, port, listener, &stopping)?;
        let stop = StopHandle {
            handle: server.handle(),
            stopping,
            giving_up: self.state.giving_up.clone(),
            gives_up_after: Duration::from_secs(self.config.drain_timeout_s).saturating_sub(LAST_ANSWERS),
        };
        Ok(Running { task: tokio::spawn(server), stop })
    }
}

/// Builds the server on a bound socket. It runs while the returned future is polled, and installs no signal handlers.
/// It serves HTTP/1.1 like `actix_web::HttpServer`, but over a [`Connection`].
fn server(
    state: web::Data<AppState>,
    config: &HttpConfig,
    port: Port,
    listener: TcpListener,
    stopping: &CancellationToken,
) -> io::Result<Server> {
    let address = listener.local_addr()?;
    // Its connections inherit it.
    socket2::SockRef::from(&listener).set_recv_buffer_size(RECEIVE_BUFFER)?;
    let (config, stopping) = (config.clone(), stopping.clone());
    let (workers, max_connections) = match port {
        Port::Only | Port::Main => (config.workers, config.max_connections),
        Port::Operations => (1, MAX_OPERATIONS_CONNECTIONS),
    };
    let builder = Server::build()
        .workers(workers)
        .max_concurrent_connections(max_connections)
        .shutdown_timeout(config.drain_timeout_s)
        .disable_signals();
    let builder = builder.listen("http", listener, move || {
        let app = app(&state, &config.cors_allowed_origins, port).into_factory();
        let http = HttpService::build()
            .keep_alive(config.keep_alive)
            // The connection limits the time of every head, not only of the first.
            .client_request_timeout(Duration::ZERO)
            .client_disconnect_timeout(DISCONNECT_TIMEOUT)
            .h1_write_buffer_size(WRITE_BUFFER)
            .local_addr(address)
            .on_connect_ext(|connection: &Connection, data| {
                data.insert(connection.exchange().clone());
            })
            .finish(map_config(app.map_err(|error| error.error_response()), |()| AppConfig::default()));
        // A token per thread: its connections do not wait for those of others to register.
        let (timeouts, stopping) = (config.timeouts(), stopping.child_token());
        fn_service(move |stream: TcpStream| {
            let stopping = stopping.clone();
            async move {
                let peer = stream.peer_addr().ok();
                Ok((Connection::new(stream, timeouts, stopping)?, Protocol::Http1, peer))
            }
        })
        .and_then(http)
    })?;
    Ok(builder.run())
}

/// The routes and their middleware.
fn app(
    state: &web::Data<AppState>,
    origins: &[String],
    port: Port,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody + 'static + use<>>,
        Error = Error,
        InitError = (),
    > + use<>,
> {
    let routes: fn(&mut ServiceConfig<'_>) = match port {
        Port::Only => routes::configure,
        Port::Main => routes::configure_without_metrics,
        Port::Operations => routes::configure_operations,
    };
    let (app, _) = App::new().into_utoipa_app().configure(routes).split_for_parts();
    app.app_data(state.clone())
        .configure(|config| {
            if port != Port::Operations {
                docs::configure(config);
            }
        })
        .default_service(web::to(unmatched))
        .wrap(cors(origins))
        .wrap(from_fn(observe::observe))
        .wrap(TracingLogger::<RootSpan>::new())
        .wrap(from_fn(observe::head_as_get))
}

/// There are no cookies, so a browser never sends credentials by itself.
fn cors(origins: &[String]) -> Cors {
    origins
        .iter()
        .fold(Cors::default(), |cors, origin| cors.allowed_origin(origin))
        .allowed_methods(["GET", "POST", "PUT", "PATCH"])
        .allowed_headers(["authorization", "content-type", "idempotency-key", "x-correlation-id", "traceparent"])
        .expose_headers(["content-disposition", "idempotency-replayed", "retry-after", "x-as-of", "x-correlation-id"])
        .max_age(PREFLIGHT_MAX_AGE_S)
}

/// Answers for an unknown path (404) or method (405).
#[allow(clippy::unused_async, reason = "actix takes async handlers only")]
async fn unmatched(request: HttpRequest) -> Result<&'static str, Problem> {
    let allow = request.match_pattern().and_then(|pattern| AppState::of(&request).documents.allow.get(&pattern));
    Err(allow.map_or_else(|| Problem::plain(Code::NotFound), |allow| Problem::method_not_allowed(allow.clone())))
}
