//! Queues and an engine on a fresh database, with some workspaces on a plan without limits.

use std::sync::Arc;

use chrono::TimeDelta;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};
use uuid::Uuid;
use visionscope_billing::clock::{Clock, ManualClock};
use visionscope_billing::contract::Contract;
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::commands::{Command, Envelope, ProvisionWorkspace};
use visionscope_billing::domain::credits::{Credits, PositiveCredits};
use visionscope_billing::domain::event::EventData;
use visionscope_billing::domain::hold::Overrun;
use visionscope_billing::domain::ids::{JobId, LeaseId, WorkerId, WorkspaceId};
use visionscope_billing::domain::jobs::{
    ActualUse, Completion, Failure, FoundJobs, JobChanges, JobError, JobHold, JobLease, Queue, QueueNames, Routes,
    Runner, Seat, Submission, Worker, WorkerState, default_queues, default_routes,
};
use visionscope_billing::domain::metadata::Metadata;
use visionscope_billing::domain::operator_act::OperatorAct;
use visionscope_billing::domain::plan::{FeatureTerms, PlanVersion, PurchasedOnCancel, ReversalShortfall};
use visionscope_billing::domain::text::{FeatureCode, IdempotencyKey, JobKind, Label, PlanCode, QueueName};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::workspace::FeatureOverrides;
use visionscope_billing::engine::{CommitSignal, Decide, Engine, EngineConfig, EventWriter, InvalidEvent, Reply};
use visionscope_billing::http::render::JsonRender;
use visionscope_billing::queues::{EndAnswer, EndOfJob, JobEnd, Parts, Queues};
use visionscope_billing::store::Store;
use visionscope_billing::store::jobs::{JobRecord, JobSelection, Jobs};
use visionscope_billing::store::queries::EventQuery;

use crate::databases::{Database, TestDatabase};
use crate::faulty_jobs::FaultyJobs;

const ENGINE: EngineConfig =
    EngineConfig { lanes: 1, queue_capacity: 1000, max_batch: 500, cache_bytes: 1 << 24, max_clock_ahead: None };
/// What each workspace has.
pub const ALLOWANCE: i64 = 1000;

pub struct World {
    pub kind: Database,
    pub database: TestDatabase,
    pub engine: Engine,
    pub clock: ManualClock,
    pub jobs: Arc<FaultyJobs>,
    pub queues: Queues,
    pub workspaces: Vec<WorkspaceId>,
}

struct TestPorts(Contract);

impl EventWriter for TestPorts {
    fn write(&self, data: &EventData, metadata: Option<&Metadata>) -> Result<String, InvalidEvent> {
        let text = data.to_json(metadata).map_err(|error| InvalidEvent(error.to_string()))?;
        self.0.check(data.event_type(), &text).map_err(|violation| InvalidEvent(violation.to_string()))?;
        Ok(text)
    }
}

impl CommitSignal for TestPorts {
    fn committed(&self, _: Vec<EventRecord>) {}
}

pub fn queue() -> QueueName {
    QueueName::new("video_processing").unwrap()
}

pub fn credits(credits: i64) -> Credits {
    Credits::from_micro(credits * 1_000_000).unwrap()
}

pub fn held(credits: i64, overrun: Overrun) -> JobHold {
    JobHold {
        feature_code: FeatureCode::new("render").unwrap(),
        credits: PositiveCredits::new(self::credits(credits)),
        quantity: None,
        overrun,
        user_id: None,
        metadata: None,
    }
}

/// A worker says that its job has cost so much.
pub fn cost(credits: i64) -> JobEnd {
    let actual = ActualUse { credits: Some(self::credits(credits)), ..ActualUse::default() };
    JobEnd::Complete(Completion { result: Some("{\"ok\":true}".into()), actual: Some(actual) })
}

pub fn failure(is_retryable: bool) -> JobEnd {
    JobEnd::Fail(Failure {
        error: JobError::new("timeout", "the model did not answer"),
        is_retryable,
        retry_after: None,
    })
}

async fn start_queues(
    jobs: &Arc<FaultyJobs>,
    database: &TestDatabase,
    engine: Arc<dyn Decide>,
    clock: &ManualClock,
) -> Queues {
    let parts = Parts {
        jobs: Arc::clone(jobs) as _,
        store: Arc::clone(&database.store),
        engine,
        routes: Routes::new(default_routes()).unwrap(),
        clock: Arc::new(clock.clone()),
    };
    Queues::start(parts).await.unwrap()
}

impl World {
    pub async fn with(kind: Database, workspaces: usize) -> Self {
        let database = kind.create().await;
        let clock = ManualClock::at("2026-01-31T00:00:00Z".parse().unwrap());
        database.store.put_plans(&[plan()], clock.now()).await.unwrap();
        let engine = start_engine(&database.store);
        let jobs = Arc::new(FaultyJobs::over(Arc::clone(&database.server_store)));
        let all = default_queues().into_iter();
        let all = all.map(|(queue, settings)| Queue { queue, settings, changed_by: None, changed_at: clock.now() });
        jobs.create_queues(&all.collect::<Vec<_>>()).await.unwrap();
        let queues = start_queues(&jobs, &database, Arc::new(engine.clone()), &clock).await;
        let mut world = Self { kind, database, engine, clock, jobs, queues, workspaces: Vec::new() };
        for _ in 0..workspaces {
            let workspace_id = WorkspaceId(world.clock.new_id());
            world.provision(workspace_id).await;
            world.workspaces.push(workspace_id);
        }
        world
    }

    /// The queues of another server on the same database.
    pub async fn other_server(&self) -> Queues {
        self.server_with(Arc::new(self.engine.clone())).await
    }

    /// The queues of another server, whose engine is this one.
    pub async fn server_with(&self, engine: Arc<dyn Decide>) -> Queues {
        start_queues(&self.jobs, &self.database, engine, &self.clock).await
    }

    async fn provision(&self, workspace_id: WorkspaceId) {
        let command = Command::ProvisionWorkspace(ProvisionWorkspace {
            name: Label::new("Queues").unwrap(),
            plan_code: PlanCode::new("plain").unwrap(),
            time_zone: chrono_tz::UTC,
            anchor: None,
            monthly_limit: None,
            overdraft_limit: None,
            feature_overrides: FeatureOverrides::new(),
        });
        let key = IdempotencyKey::new("provision").unwrap();
        let envelope = Envelope::internal(self.clock.new_command_id(), workspace_id, key, self.clock.now(), command);
        let reply = self.engine.submit(envelope).await;
        assert!(matches!(reply, Ok(Reply::Decided { rejection: None, .. })), "{reply:?}");
    }

    /// A job of the first workspace.
    pub fn job(&self, number: u128, hold: Option<JobHold>) -> Submission {
        Submission {
            job_id: JobId(Uuid::from_u128(number)),
            queue: queue(),
            kind: JobKind::new("video_processing.analyse").unwrap(),
            workspace_id: Some(self.workspaces[0]),
            args: "{\"video\":17}".into(),
            priority: Submission::DEFAULT_PRIORITY,
            run_at: None,
            max_attempts: None,
            unique_key: None,
            fingerprint: [7; 32],
            hold,
            replays: None,
            actor: "service-1".into(),
            correlation_id: "c-1".into(),
            causation_id: None,
            traceparent: None,
        }
    }

    /// A worker takes up to so many jobs.
    pub async fn claim(&self, count: usize) -> Vec<JobLease> {
        let limit = u32::try_from(count).unwrap();
        let which = JobSelection::Ready { queue: queue(), runner: Runner::Worker, limit };
        let seat = |_| Seat { worker_id: WorkerId(Uuid::from_u128(1)), lease_id: LeaseId(self.clock.new_id()) };
        let (seats, mut leases): (Vec<_>, _) = ((0..count).map(seat).collect(), Vec::new());
        let mut decide = |found: FoundJobs| {
            let settings = found.settings(&queue()).unwrap().clone();
            let running = found.running.get(&queue()).cloned().unwrap_or_default();
            let changes = JobChanges::claim(found.jobs, &seats, &settings, running, self.clock.now());
            leases.clone_from(&changes.leases);
            changes
        };
        let claimed = self.jobs.change_jobs(&which, &mut decide).await;
        // A worker that gets no answer does not know of its jobs.
        if claimed.is_ok() { leases } else { Vec::new() }
    }

    /// The only job that is ready.
    pub async fn claim_one(&self) -> JobLease {
        let mut leases = self.claim(2).await;
        assert_eq!(leases.len(), 1, "{leases:?}");
        leases.remove(0)
    }

    pub async fn end(&self, lease: &JobLease, end: JobEnd) -> EndAnswer {
        let JobLease { job_id, lease_id, worker_id, .. } = *lease;
        let ends = vec![EndOfJob { job_id, lease_id, worker_id: Some(worker_id), end }];
        self.queues.end(ends).await.unwrap().remove(0)
    }

    pub async fn record(&self, number: u128) -> JobRecord {
        let found = self.database.server_store.job(JobId(Uuid::from_u128(number)), None).await.unwrap();
        found.unwrap_or_else(|| panic!("there is no job {number}"))
    }

    pub fn in_days(&self, days: i64) -> Timestamp {
        self.clock.now().plus(TimeDelta::days(days))
    }

    pub fn pass(&self, seconds: i64) {
        self.clock.set(self.clock.now().plus(TimeDelta::seconds(seconds)));
    }

    /// The types of the events of the first workspace, without that of its creation.
    pub async fn events(&self) -> Vec<String> {
        let query = EventQuery::OfWorkspace { workspace_id: self.workspaces[0], after: 1, limit: 1000 };
        let events = self.database.store.events(&query).await.unwrap();
        events.into_iter().map(|event| event.event_type.as_str().to_owned()).collect()
    }

    /// The balance of the first workspace, and what is held of it.
    pub async fn balance(&self) -> (i64, i64) {
        let state = self.database.store.workspace(self.workspaces[0]).await.unwrap().unwrap();
        let whole = |credits: Credits| credits.micro() / 1_000_000;
        (whole(state.credits.current_credits), whole(state.credits.held_credits))
    }

    /// A row of integers; every column is cast to `bigint` by the statement.
    pub async fn integers(&self, sql: &str) -> Vec<i64> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self.kind {
            Database::Sqlite => {
                let options = SqliteConnectOptions::new().filename(self.database.sqlite_file());
                let row = options.connect().await.unwrap().fetch_one(sql).await.unwrap();
                (0..row.len()).map(|column| row.get(column)).collect()
            }
            Database::Postgres => {
                let row = self.database.postgres_options().connect().await.unwrap().fetch_one(sql).await.unwrap();
                (0..row.len()).map(|column| row.get(column)).collect()
            }
        }
    }

    /// What an operator has done.
    pub fn act(&self) -> OperatorAct {
        OperatorAct {
            audit_id: self.clock.new_id(),
            at: self.clock.now(),
            actor: "operator-1".into(),
            action: "test".into(),
            target: "test".into(),
            reason: Label::new("A test").unwrap(),
            before: None,
            after: None,
        }
    }

    pub async fn audit_and_close(self) {
        assert_eq!(self.database.store.audit(5).await.unwrap(), []);
        drop(self.queues);
        self.engine.stop().await;
        self.database.close().await;
    }
}

pub fn start_engine(store: &Arc<dyn Store>) -> Engine {
    let signal = || Arc::new(TestPorts(Contract::new()));
    Engine::start(&ENGINE, Arc::clone(store), Arc::new(JsonRender), signal(), signal())
}

/// Without limits.
fn plan() -> PlanVersion {
    PlanVersion {
        plan_code: PlanCode::new("plain").unwrap(),
        version: 1,
        name: Label::new("Plain").unwrap(),
        period_months: 1,
        allowance: credits(ALLOWANCE),
        rollover_cap: Credits::ZERO,
        overdraft_limit: Credits::ZERO,
        monthly_limit: None,
        rate_limit: None,
        low_credit_thresholds: Vec::new(),
        expiry_warning_days: 7,
        refund_validity_days: 30,
        reversal_shortfall: ReversalShortfall::Debt,
        purchased_on_cancel: PurchasedOnCancel::Keep,
        features: [("render", 2), ("free", 0)]
            .map(|(code, price)| {
                let terms = FeatureTerms { enabled: true, unit_price: Some(credits(price)), limit: None };
                (FeatureCode::new(code).unwrap(), terms)
            })
            .into(),
    }
}

pub fn worker(number: u128, now: Timestamp) -> Worker {
    Worker {
        worker_id: WorkerId(Uuid::from_u128(number)),
        name: Label::new("gpu-1").unwrap(),
        subject: "workers".into(),
        runner: Runner::Worker,
        queues: QueueNames(vec![queue()]),
        slots: 1,
        labels: None,
        version: None,
        state: WorkerState::Active,
        started_at: now,
        seen_at: now,
    }
}
