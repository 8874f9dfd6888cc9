//! A server on a free loopback port, and users that send it requests.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use visionscope_billing::clock::{Clock, ManualClock, SystemClock};
use visionscope_billing::consumers::{self, ConsumersConfig, Wakeup};
use visionscope_billing::domain::cloud_event::EventSource;

use visionscope_billing::contract::Contract;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::ids::WorkspaceId;
use visionscope_billing::domain::jobs::{Queue, Routes, SystemSchedule, default_queues, default_routes};
use visionscope_billing::domain::plan::{FeatureTerms, PlanVersion, PurchasedOnCancel, ReversalShortfall};
use visionscope_billing::domain::text::{FeatureCode, Label, PlanCode};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::engine::{Decide, Engine, EngineConfig};
use visionscope_billing::http::auth::keys::{KeyAlg, KeyConfig};
use visionscope_billing::http::auth::{AuthConfig, MintRequest, Scope, Tenancy, Verifier, mint};
use visionscope_billing::http::limits::LimitsConfig;
use visionscope_billing::http::render::JsonRender;
use visionscope_billing::http::{Api, Health, HttpConfig, JobCommands, Parts, Port, StopHandle};
use visionscope_billing::publisher::EventBuffer;
use visionscope_billing::queues::{self, OwnWork, Queues, ScheduledWork};
use visionscope_billing::store::jobs::Jobs;
use visionscope_billing::store::{Operations, Store};

use crate::databases::{Database, TestDatabase};
use crate::fake::{FakeEngine, FakeStore};

const ISSUER: &str = "https://issuer.test";
const AUDIENCE: &str = "billing";
/// The time of the clock of a test server.
pub const NOW: &str = "2026-06-01T12:00:00Z";

/// The workspace of most tests, and another tenant's.
pub const OWN: WorkspaceId = WorkspaceId(Uuid::from_u128(0x0b7e_6ad2_6a57_4d8a_9d61_6a6a_3b6f_2a10));
pub const FOREIGN: WorkspaceId = WorkspaceId(Uuid::from_u128(0x0b7e_6ad2_6a57_4d8a_9d61_6a6a_3b6f_2a11));

/// The source of all events.
pub const SOURCE: &str = "urn:visionscope:test";

pub fn signing_key() -> KeyConfig {
    KeyConfig {
        kid: "test".into(),
        alg: KeyAlg::HS256,
        secret: Some("a shared secret of more than thirty-two bytes".into()),
        public_key_pem: None,
    }
}

pub struct TestServer {
    pub address: SocketAddr,
    pub clock: ManualClock,
    pub health: Arc<Health>,
    client: reqwest::Client,
    stop: StopHandle,
    /// Kept until the server ends. None with a fake store.
    database: Option<TestDatabase>,
    consumers: Option<AbortHandle>,
}

/// What a server is made over.
#[derive(Clone)]
struct Under {
    engine: Arc<dyn Decide>,
    store: Arc<dyn Store>,
    operations: Arc<dyn Operations>,
    jobs: Arc<dyn Jobs>,
    clock: ManualClock,
}

/// What is due is booked when a test wants it.
struct NothingScheduled;

#[async_trait]
impl ScheduledWork for NothingScheduled {
    async fn run(&self, _: SystemSchedule) -> Result<(), String> {
        Ok(())
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn start_queues(under: Under) -> Queues {
    let Under { engine, store, jobs, clock, .. } = under;
    let routes = Routes::new(default_routes()).unwrap();
    Queues::start(queues::Parts { jobs, store, engine, routes, clock: Arc::new(clock) }).await.unwrap()
}

/// Starts a server.
fn serve(under: Under, runtime: Runtime, queues: Queues, config: &HttpConfig) -> TestServer {
    let Under { engine, store, operations, jobs, clock } = under;
    let auth = AuthConfig { issuer: ISSUER.into(), audience: AUDIENCE.into(), keys: vec![signing_key()], jwks: None };
    let health = Arc::new(Health::default());
    let verifier = Arc::new(Verifier::new(&auth, Arc::new(clock.clone())).unwrap());
    let parts = Parts {
        engine,
        store: Arc::clone(&store),
        operations,
        jobs,
        queues: queues.clone(),
        clock: Arc::new(clock.clone()),
        auth: verifier,
        health: Arc::clone(&health),
        event_source: EventSource::new(SOURCE).unwrap(),
        metrics: Arc::new(|| "up 1\n".to_owned()),
    };
    let config = HttpConfig { workers: 1, ..config.clone() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (started, stop) = std::sync::mpsc::channel();
    let watched = Arc::clone(&health);
    let api = Api::new(parts, config);
    let work = OwnWork { commands: Arc::new(JobCommands), scheduled: Arc::new(NothingScheduled) };
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let mut running = api.serve(Port::Only, listener).unwrap();
            started.send(running.stop_handle()).unwrap();
            let never = CancellationToken::new;
            tokio::select! {
                ended = running.ended() => ended.unwrap(),
                () = watched.watch_database(&*store, never()) => {}
                () = queues.clone().run(never()) => {}
                () = queues.work(work, never()) => {}
            }
        });
    });
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    TestServer { address, clock, health, client, stop: stop.recv().unwrap(), database: None, consumers: None }
}

impl TestServer {
    /// Stops like the real server.
    pub async fn stop(&self) {
        self.stop.clone().stop().await;
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        drop(self.stop.stop_now());
        if let Some(consumers) = &self.consumers {
            consumers.abort();
        }
    }
}

/// A server whose engine and store are fakes.
pub struct FakeServer {
    pub server: TestServer,
    pub engine: Arc<FakeEngine>,
    pub store: Arc<FakeStore>,
}

pub fn fake() -> FakeServer {
    fake_with(&HttpConfig::default())
}

pub fn fake_with_limits(limits: LimitsConfig) -> FakeServer {
    fake_with(&HttpConfig { limits, ..HttpConfig::default() })
}

pub fn fake_with(config: &HttpConfig) -> FakeServer {
    let (engine, store) = (Arc::new(FakeEngine::default()), Arc::new(FakeStore::default()));
    let under = Under {
        engine: Arc::clone(&engine) as _,
        store: Arc::clone(&store) as _,
        operations: Arc::clone(&store) as _,
        jobs: Arc::clone(&store) as _,
        clock: ManualClock::at(NOW.parse().unwrap()),
    };
    let runtime = runtime();
    let queues = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(start_queues(under.clone()))).join());
    let server = serve(under, runtime, queues.unwrap(), config);
    FakeServer { server, engine, store }
}

impl TestServer {
    /// The store behind a real server.
    pub fn store(&self) -> &dyn Store {
        &*self.database().store
    }

    /// The database of a real server.
    pub fn database(&self) -> &TestDatabase {
        self.database.as_ref().expect("a server over a real store")
    }

    /// A user whose token is for one workspace and has every scope.
    pub fn user(&self, workspace_id: WorkspaceId) -> User<'_> {
        self.user_of(Tenancy::One(workspace_id), Scope::ALL)
    }

    pub fn user_of(&self, tenancy: Tenancy, scopes: &[Scope]) -> User<'_> {
        self.user_named("tester", tenancy, scopes)
    }

    pub fn user_named(&self, subject: &str, tenancy: Tenancy, scopes: &[Scope]) -> User<'_> {
        let request = MintRequest {
            issuer: ISSUER,
            audience: AUDIENCE,
            subject,
            tenancy,
            scopes,
            issued_at: self.clock.now(),
            valid_for_s: 600,
        };
        User { server: self, token: Some(mint(&signing_key(), &request).unwrap()) }
    }

    /// A user without a token.
    pub fn anyone(&self) -> User<'_> {
        User { server: self, token: None }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

#[derive(Clone)]
pub struct User<'a> {
    server: &'a TestServer,
    pub token: Option<String>,
}

/// A response with its whole body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Asserts that it is a problem with this status and code.
    #[track_caller]
    pub fn is_problem(&self, status: u16, code: &str) -> &Self {
        let body = self.json();
        assert_eq!((self.status.as_u16(), body["code"].as_str().unwrap_or_default()), (status, code), "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(body["status"], status);
        assert_eq!(body["type"], format!("urn:visionscope:problem:{code}"));
        assert!(body["title"].is_string() && body["detail"].is_string(), "{body}");
        self
    }

    /// The pointer of the first invalid field.
    pub fn pointer(&self) -> String {
        self.json()["errors"][0]["pointer"].as_str().unwrap_or_default().to_owned()
    }
}

impl User<'_> {
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.server.client.request(method, self.server.url(path));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    /// Sends a command with a new key.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let key = format!("key-{}", Uuid::from_u128(rand()));
        self.post_with_key(path, &key, body).await
    }

    pub async fn post_with_key(&self, path: &str, key: &str, body: &Value) -> Answer {
        send(self.request(Method::POST, path).header("idempotency-key", key).json(body)).await
    }

    /// Sends a command with these bytes as its JSON body.
    pub async fn post_raw(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self.request(Method::POST, path).header("idempotency-key", "k").body(body);
        send(request.header("content-type", "application/json")).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        send(self.request(Method::PUT, path).json(body)).await
    }
}

pub async fn send(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, text: response.text().await.unwrap() }
}

fn rand() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    u128::from(RandomState::new().hash_one(1)) << 64 | u128::from(RandomState::new().hash_one(2))
}

pub fn path(workspace_id: WorkspaceId, rest: &str) -> String {
    format!("/v1/workspaces/{workspace_id}{rest}")
}

pub fn deduct_path() -> String {
    path(OWN, "/credits/deduct")
}

pub fn deduction() -> Value {
    json!({"feature_code": "render", "credits": "2.5"})
}

pub fn instant(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A server over a fresh, migrated database with the plan `pro` (1000 credits a month, feature
/// `render` at 0.5), and the engine as in production.
pub async fn start(kind: Database) -> TestServer {
    start_on(kind, &[pro()]).await
}

/// Such a server with other plans.
pub async fn start_on(kind: Database, plans: &[PlanVersion]) -> TestServer {
    let database = kind.create().await;
    database.store.put_plans(plans, SystemClock.now()).await.unwrap();
    let config =
        EngineConfig { lanes: 2, queue_capacity: 1024, max_batch: 64, cache_bytes: 1 << 24, max_clock_ahead: None };
    let engine = Engine::start(
        &config,
        Arc::clone(&database.store),
        Arc::new(JsonRender),
        Arc::new(Contract::new()),
        Arc::new(EventBuffer::new()),
    );
    engine.offer_plans(plans.iter().cloned().map(Arc::new).collect());
    let consumers = ConsumersConfig { beat: Duration::from_millis(5), ..ConsumersConfig::embedded() };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let running =
        consumers::run(database.server_store.clone(), clock, Wakeup::default(), consumers, CancellationToken::new());
    let running = tokio::spawn(running).abort_handle();
    let new = |(queue, settings)| Queue { queue, settings, changed_by: None, changed_at: SystemClock.now() };
    database.server_store.create_queues(&default_queues().into_iter().map(new).collect::<Vec<_>>()).await.unwrap();
    let clock = ManualClock::at(NOW.parse().unwrap());
    let schedules = SystemSchedule::ALL.map(|schedule| schedule.begin(clock.now()));
    database.server_store.create_schedules(&schedules).await.unwrap();
    let under = Under {
        engine: Arc::new(engine),
        store: Arc::clone(&database.store),
        operations: Arc::clone(&database.server_store) as _,
        jobs: Arc::clone(&database.server_store) as _,
        clock,
    };
    let runtime = runtime();
    let queues = runtime.spawn(start_queues(under.clone())).await.unwrap();
    let mut server = serve(under, runtime, queues, &HttpConfig::default());
    server.database = Some(database);
    server.consumers = Some(running);
    server
}

pub fn pro() -> PlanVersion {
    let render = FeatureTerms { enabled: true, unit_price: Some("0.5".parse().unwrap()), limit: None };
    let off = FeatureTerms::default();
    PlanVersion {
        plan_code: PlanCode::new("pro").unwrap(),
        version: 1,
        name: Label::new("Pro").unwrap(),
        period_months: 1,
        allowance: Credits::whole(1000),
        rollover_cap: Credits::whole(200),
        overdraft_limit: Credits::ZERO,
        monthly_limit: None,
        rate_limit: None,
        low_credit_thresholds: vec![Credits::whole(100)],
        expiry_warning_days: 7,
        refund_validity_days: 30,
        reversal_shortfall: ReversalShortfall::Debt,
        purchased_on_cancel: PurchasedOnCancel::Keep,
        features: [(FeatureCode::new("off").unwrap(), off), (FeatureCode::new("render").unwrap(), render)].into(),
    }
}

/// Such a server with the workspace [`OWN`].
pub async fn provisioned(database: Database) -> TestServer {
    let server = start(database).await;
    let answer = server.user(OWN).put(&path(OWN, ""), &json!({"name": "Acme", "plan_code": "pro"})).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    server
}
