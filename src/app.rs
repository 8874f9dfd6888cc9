//! The composition root: starts store, engine, publisher, scheduler and HTTP, and stops them in order.
//!
//! *Architecture invariant:* only this module knows all others. None of them builds another; each gets what it needs
//! from here.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::background::Background;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Mode, Role};
use crate::consumers::Wakeup;
use crate::contract::Contract;
use crate::demo::{self, Demo};
use crate::domain::cloud_event::{EventRecord, EventSource};
use crate::domain::event::EventData;
use crate::domain::metadata::Metadata;
use crate::domain::time::MAX_CLOCK_DIFFERENCE;
use crate::engine::{CommitSignal, Engine, EngineConfig, EventWriter, InvalidEvent};
use crate::http::auth::keys::KeyConfig;
use crate::http::render::JsonRender;
use crate::http::{self, Api, Health, Port};
use crate::publisher::{EventBuffer, Publisher, PublisherConfig, PublisherHandle, Retention};
use crate::queues::Queues;
use crate::store::postgres::{PostgresConfig, PostgresStore};
use crate::store::sqlite::{SqliteConfig, SqliteStore};
use crate::store::{ServerStore, Store, StoreError};
use crate::stream::redis::{RedisConfig, RedisStream};
use crate::stream::{EventStream, StreamError};
use crate::telemetry;

mod error;
mod settings;
mod tasks;

pub use self::error::StartError;
pub use self::settings::half_of_the_processors;
use self::tasks::Tasks;

/// A transaction whose owner hangs loses its locks after this time. It is longer than a lane waits for a transaction.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(6);
/// Time limit for the last commands, after the last request was accepted.
const ENGINE_STOP_TIMEOUT: Duration = Duration::from_secs(6);

/// A running server.
pub struct App {
    pub address: SocketAddr,
    /// Where probes and metrics are served, if apart.
    pub ops_address: Option<SocketAddr>,
    /// Present if no keys are configured.
    pub demo: Option<Demo>,
    health: Arc<Health>,
    engine: Engine,
    store: Arc<dyn Store>,
    http: http::Running,
    ops: Option<http::Running>,
    queues: Queues,
    publisher: Option<PublisherHandle>,
    /// Scheduler, consumers, cleaning, key refresh and the watches over health.
    background: Background,
    /// Stops the publisher, after the last command.
    publishing: CancellationToken,
    /// How long `/readyz` answers 503 before the server refuses new requests.
    drain_delay: Duration,
}

/// What a store is opened for. This matters only for the embedded database: only one server can use it at a time, and
/// commands work beside that server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Serve,
    Command,
}

/// Opens the store that is configured.
pub async fn open_store(config: &Config, purpose: Purpose) -> Result<Arc<dyn ServerStore>, StoreError> {
    let database = &config.database;
    if let Some(url) = &database.url {
        let postgres = PostgresConfig {
            url: url.clone(),
            max_connections: database.max_connections,
            read_connections: database.read_connections,
            acquire_timeout: Duration::from_millis(database.acquire_timeout_ms),
            statement_timeout: Duration::from_millis(database.statement_timeout_ms),
            lock_timeout: Duration::from_millis(database.lock_timeout_ms),
            idle_in_transaction_timeout: IDLE_IN_TRANSACTION_TIMEOUT,
        };
        return Ok(Arc::new(PostgresStore::connect(&postgres).await?));
    }
    let sqlite = SqliteConfig { readers: database.readers, ..SqliteConfig::new(&database.path) };
    Ok(Arc::new(match purpose {
        Purpose::Serve => SqliteStore::open_to_serve(&sqlite).await?,
        Purpose::Command => SqliteStore::open(&sqlite).await?,
    }))
}

/// The source of this database's events. The first start stores the configured one, and it can never be changed:
/// consumers know an event by its source and its id.
pub async fn event_source(config: &Config, store: &dyn Store) -> Result<EventSource, StartError> {
    let configured = &config.events.source;
    let stored = store.event_source(configured).await?;
    if stored == *configured {
        Ok(stored)
    } else {
        Err(StartError::EventSource { configured: configured.clone(), stored })
    }
}

/// Opens the stream, if one is configured.
pub fn open_stream(config: &Config, source: &EventSource) -> Result<Option<Arc<dyn EventStream>>, StreamError> {
    let redis = &config.redis;
    let urls = redis.urls();
    if urls.is_empty() {
        return Ok(None);
    }
    let config = RedisConfig {
        is_cluster: redis.cluster,
        urls,
        pool_size: usize::try_from(redis.pool_size).unwrap_or(usize::MAX),
        connect_timeout: Duration::from_millis(redis.connect_timeout_ms),
        response_timeout: Duration::from_millis(redis.response_timeout_ms),
    };
    Ok(Some(Arc::new(RedisStream::new(&config, source.clone())?)))
}

/// The key that signs development tokens: the first HS256 key, or the demo's key.
pub fn signing_key(config: &Config) -> Result<KeyConfig, StartError> {
    if config.mode()? == Mode::Demo {
        return Ok(demo::existing_key(config.data_dir())?);
    }
    let (_, auth) = settings::auth(config, Mode::Configured)?;
    auth.keys.into_iter().find(|key| key.secret.is_some()).ok_or(StartError::NoSigningKey)
}

/// Opens an existing store, so that a command in the wrong folder does not create an empty database.
pub async fn open_existing_store(config: &Config) -> Result<Arc<dyn ServerStore>, StartError> {
    let path = &config.database.path;
    if config.database.url.is_none() && !path.exists() {
        return Err(StartError::NoDatabase(path.clone()));
    }
    Ok(open_store(config, Purpose::Command).await?)
}

impl App {
    /// Starts everything. When it returns, requests are answered.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let mode = config.mode()?;
        let plans = config.read_plans()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let database = open_store(config, Purpose::Serve).await?;
        let store: Arc<dyn Store> = Arc::clone(&database) as _;
        store.migrate().await?;
        let source = event_source(config, &*store).await?;
        store.put_plans(&plans, clock.now()).await?;

        let (demo_key, auth) = settings::auth(config, mode)?;
        let (listener, address) =
            listen(config.server.bind).map_err(|(address, error)| StartError::Listen { address, error })?;
        let ops = config.server.ops_bind.map(listen).transpose();
        let (ops, ops_address) = ops.map_err(|(address, error)| StartError::ListenOps { address, error })?.unzip();

        let event_buffer = EventBuffer::new();
        let publishing = CancellationToken::new();
        let publisher = start_publisher(config, &source, &store, &event_buffer, &clock, &publishing)?;
        let wakeup = Wakeup::default();
        let committed = Committed { events: event_buffer, consumers: wakeup.clone() };
        let engine = start_engine(config, &store, committed);

        let background = Background::default();
        let health = Arc::new(Health::default());
        engine.offer_plans(store.plans().await?);
        let tasks = Tasks {
            config,
            database: &database,
            engine: &engine,
            clock: &clock,
            health: &health,
            background: &background,
        };
        let queues = tasks.start_queues().await?;
        tasks.start(&wakeup, publisher.as_ref());
        let verifier = tasks.start_verifier(&auth)?;

        // Before the first request, so that every request finds the demo's workspace.
        let demo = match demo_key {
            Some(key) => Some(Demo::prepare(&engine, &*clock, &auth, &key, address).await?),
            None => None,
        };
        let parts = http::Parts {
            engine: Arc::new(engine.clone()),
            store: Arc::clone(&store),
            operations: Arc::clone(&database) as _,
            jobs: Arc::clone(&database) as _,
            queues: queues.clone(),
            clock: Arc::clone(&clock),
            auth: verifier,
            health: Arc::clone(&health),
            event_source: source,
            metrics: telemetry::metrics(),
        };
        let api = Api::new(parts, settings::http(config));
        let ops = ops.map(|listener| api.serve(Port::Operations, listener)).transpose().map_err(StartError::Serve)?;
        let http = api.serve(settings::main_port(config), listener).map_err(StartError::Serve)?;
        Ok(Self {
            address,
            ops_address,
            demo,
            health,
            engine,
            store,
            http,
            ops,
            queues,
            publisher,
            background,
            publishing,
            drain_delay: settings::drain_delay(config, mode),
        })
    }

    /// Serves until `stop` is ready, and then stops everything in order: readiness, running requests, queued commands,
    /// the publisher after their events, and the store.
    ///
    /// Returns true if `stop` was the reason.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> bool {
        let Self { health, engine, store, mut http, mut ops, queues, publisher, background, .. } = self;
        let (publishing, drain_delay) = (self.publishing, self.drain_delay);
        let is_requested = tokio::select! {
            () = stop => true,
            () = engine.broken() => false,
            ended = http.ended() => {
                tracing::error!(?ended, "the HTTP server stopped unexpectedly");
                false
            }
            ended = ended(ops.as_mut()) => {
                tracing::error!(?ended, "the HTTP server for operators stopped unexpectedly");
                false
            }
        };
        tracing::info!("stopping");
        // First load balancers stop sending requests here, then the listener closes.
        health.drain();
        tokio::time::sleep(drain_delay).await;
        background.stop();
        queues.close();
        http.stop_handle().stop().await;
        if tokio::time::timeout(ENGINE_STOP_TIMEOUT, engine.stop()).await.is_err() {
            tracing::error!("stopped before all commands were answered; their callers can retry with the same key");
        }
        background.ended().await;
        publishing.cancel();
        if let Some(publisher) = publisher {
            publisher.stopped().await;
        }
        // The last to stop: until then it says that the process lives and is not ready.
        if let Some(ops) = ops {
            ops.stop_handle().stop_now().await;
        }
        store.close().await;
        tracing::info!("stopped");
        is_requested
    }
}

impl EventWriter for Contract {
    fn write(&self, data: &EventData, metadata: Option<&Metadata>) -> Result<String, InvalidEvent> {
        let text = data.to_json(metadata).map_err(|error| InvalidEvent(error.to_string()))?;
        self.check(data.event_type(), &text).map_err(|violation| InvalidEvent(violation.to_string()))?;
        Ok(text)
    }
}

impl CommitSignal for EventBuffer {
    fn committed(&self, events: Vec<EventRecord>) {
        Self::committed(self, events);
    }
}

/// Tells the publisher and the consumers of this process what it has committed.
struct Committed {
    events: EventBuffer,
    consumers: Wakeup,
}

impl CommitSignal for Committed {
    fn committed(&self, events: Vec<EventRecord>) {
        self.consumers.committed(&events);
        self.events.committed(events);
    }
}

/// Waits until a server ends, for ever if there is none.
async fn ended(server: Option<&mut http::Running>) -> io::Result<()> {
    match server {
        Some(server) => server.ended().await,
        None => std::future::pending().await,
    }
}

/// A socket, and its address.
fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), (SocketAddr, io::Error)> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bind().map_err(|error| (address, error))
}

fn start_engine(config: &Config, store: &Arc<dyn Store>, committed: Committed) -> Engine {
    let engine = EngineConfig {
        lanes: config.engine.lanes.map_or_else(|| settings::default_lanes(config), usize::from),
        queue_capacity: config.engine.queue_capacity,
        max_batch: config.engine.max_batch,
        cache_bytes: usize::from(config.engine.memory_mb) << 20,
        max_clock_ahead: Some(MAX_CLOCK_DIFFERENCE),
    };
    Engine::start(&engine, Arc::clone(store), Arc::new(JsonRender), Arc::new(Contract::new()), Arc::new(committed))
}

fn start_publisher(
    config: &Config,
    source: &EventSource,
    store: &Arc<dyn Store>,
    event_buffer: &EventBuffer,
    clock: &Arc<dyn Clock>,
    stop: &CancellationToken,
) -> Result<Option<PublisherHandle>, StreamError> {
    let has_role = config.server.has_role(Role::Publish);
    let Some(stream) = open_stream(config, source)?.filter(|_| has_role) else {
        return Ok(None);
    };
    let defaults = if config.database.url.is_some() { PublisherConfig::shared() } else { PublisherConfig::embedded() };
    let retention = Retention {
        events: Duration::from_hours(u64::from(config.stream.retain_hours)),
        batches: Duration::from_hours(u64::from(config.stream.batch_retain_days) * 24),
    };
    let config = PublisherConfig {
        retention: Some(retention),
        lease_ttl: Duration::from_millis(config.publisher.lease_ttl_ms),
        poll_interval: config.publisher.poll_ms.map_or(defaults.poll_interval, Duration::from_millis),
        ..defaults
    };
    let outbox: Arc<dyn Store> = Arc::clone(store);
    let publisher = Publisher::new(outbox, stream, event_buffer.clone(), Arc::clone(clock), config);
    Ok(Some(publisher.spawn(stop.clone())))
}
