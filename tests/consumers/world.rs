//! An engine with some workspaces, random commands, and consumers beside it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use visionscope_billing::clock::{Clock, ManualClock};
use visionscope_billing::consumers::{self, ConsumersConfig, Wakeup};
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::commands::{
    CancelSubscription, CaptureHold, Charge, Command, DeductCredits, Envelope, ExpireGrants, PlaceHold,
    ProcessSubscriptionChange, ProvisionWorkspace, PurchaseCredits, RefundUsage, ResumeSubscription, ReversePurchase,
    WarnOfExpiry,
};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::event::{EventData, EventType};
use visionscope_billing::domain::explanation::Explanation;
use visionscope_billing::domain::grant::Currency;
use visionscope_billing::domain::hold::{HoldDuration, Overrun};
use visionscope_billing::domain::ids::{GrantId, HoldId, WorkspaceId};
use visionscope_billing::domain::metadata::Metadata;
use visionscope_billing::domain::plan::{
    FeatureTerms, LimitMode, PlanVersion, PurchasedOnCancel, ReversalShortfall, UsageLimit,
};
use visionscope_billing::domain::receipt::Receipt;
use visionscope_billing::domain::rejection::Rejection;
use visionscope_billing::domain::reversal::{ReversalReason, ReversedAmount};
use visionscope_billing::domain::subscription::{CreditPolicy, Effective};
use visionscope_billing::domain::text::{FeatureCode, IdempotencyKey, Label, PaymentReference, PlanCode};
use visionscope_billing::domain::usage::UsageId;
use visionscope_billing::domain::workspace::FeatureOverrides;
use visionscope_billing::engine::{
    CommitSignal, Engine, EngineConfig, EventWriter, InvalidEvent, Render, Rendered, Reply,
};
use visionscope_billing::store::Consumption;
use visionscope_billing::store::queries::EventQuery;

use crate::databases::{Database, TestDatabase};

/// A lease that another runner takes over at once: so all of them work on the same events.
pub const NO_LEASE: Duration = Duration::from_micros(1);
const WAIT: Duration = Duration::from_mins(1);

pub struct World {
    pub kind: Database,
    pub database: TestDatabase,
    pub engine: Engine,
    pub clock: ManualClock,
    pub wakeup: Wakeup,
    pub workspaces: Vec<WorkspaceId>,
}

struct TestPorts(Wakeup);

impl Render for TestPorts {
    fn receipt(&self, receipt: &Receipt) -> Rendered {
        Rendered { status: 200, body: serde_json::to_string(receipt).unwrap() }
    }

    fn rejection(&self, rejection: &Rejection, _: Option<&Explanation>) -> Rendered {
        Rendered { status: 400, body: rejection.code().to_owned() }
    }
}

impl EventWriter for TestPorts {
    fn write(&self, data: &EventData, metadata: Option<&Metadata>) -> Result<String, InvalidEvent> {
        data.to_json(metadata).map_err(|error| InvalidEvent(error.to_string()))
    }
}

impl CommitSignal for TestPorts {
    fn committed(&self, events: Vec<EventRecord>) {
        self.0.committed(&events);
    }
}

/// A linear congruential generator (Knuth's MMIX), so that a run can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A task that runs consumers.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// Stops it in the middle of whatever it does.
    pub async fn abort(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// What the commands of one workspace can refer to.
#[derive(Clone, Copy, Default)]
struct Last {
    usage: Option<UsageId>,
    purchase: Option<GrantId>,
}

impl World {
    /// A world with so many workspaces, which have 100 credits each.
    pub async fn on(kind: Database, workspaces: usize) -> Self {
        let database = kind.create().await;
        let clock = ManualClock::at("2026-01-31T20:00:00Z".parse().unwrap());
        database.store.put_plans(&[plan("small"), plan("large")], clock.now()).await.unwrap();
        let config = EngineConfig {
            lanes: 2,
            queue_capacity: 1000,
            max_batch: 100,
            cache_bytes: 1 << 24,
            max_clock_ahead: None,
        };
        let wakeup = Wakeup::default();
        let ports = Arc::new(TestPorts(wakeup.clone()));
        let engine = Engine::start(&config, database.store.clone(), ports.clone(), ports.clone(), ports);
        let mut world = Self { kind, database, engine, clock, wakeup, workspaces: Vec::new() };
        for _ in 0..workspaces {
            let workspace_id = WorkspaceId(world.clock.new_id());
            let command = Command::ProvisionWorkspace(ProvisionWorkspace {
                name: Label::new("Consumed").unwrap(),
                plan_code: PlanCode::new("small").unwrap(),
                time_zone: chrono_tz::UTC,
                anchor: None,
                monthly_limit: None,
                overdraft_limit: None,
                feature_overrides: FeatureOverrides::new(),
            });
            world.send(workspace_id, command).await.expect("it is accepted");
            world.workspaces.push(workspace_id);
        }
        world
    }

    /// Three deductions of each workspace.
    pub async fn with_usage(kind: Database, workspaces: usize) -> Self {
        let world = Self::on(kind, workspaces).await;
        for workspace_id in &world.workspaces {
            for credits in ["1", "2", "4"] {
                world.deduct(*workspace_id, credits).await.unwrap();
            }
        }
        world
    }

    /// Runs consumers on the store itself.
    pub fn consume(&self, lease_ttl: Duration) -> Running {
        let store: Arc<dyn Consumption> = self.database.server_store.clone();
        self.consume_from(store, lease_ttl)
    }

    pub fn consume_from(&self, store: Arc<dyn Consumption>, lease_ttl: Duration) -> Running {
        let stop = CancellationToken::new();
        let config = ConsumersConfig {
            max_events: 64,
            beat: Duration::from_millis(2),
            pause_factor: 0,
            first_poll: Some(Duration::from_millis(2)),
            lease_ttl,
        };
        let clock = Arc::new(self.clock.clone());
        Running { task: tokio::spawn(consumers::run(store, clock, self.wakeup.clone(), config, stop.clone())), stop }
    }

    /// The receipt, or the code of the refusal.
    pub async fn send(&self, workspace_id: WorkspaceId, command: Command) -> Result<Value, String> {
        let message_id = self.clock.new_command_id();
        let envelope = Envelope {
            message_id,
            idempotency_key: IdempotencyKey::new(&message_id.to_string()).unwrap(),
            workspace_id,
            actor: "consumers".into(),
            correlation_id: message_id.to_string(),
            causation_id: None,
            traceparent: None,
            received_at: self.clock.now(),
            metadata: None,
            fingerprint: [0; 32],
            command,
        };
        match self.engine.submit(envelope).await.unwrap() {
            Reply::Decided { answer, rejection: None, .. } => Ok(serde_json::from_str(&answer.body).unwrap()),
            Reply::Decided { answer, .. } => Err(answer.body.clone()),
            Reply::Nothing => Ok(Value::Null),
            other => panic!("{other:?}"),
        }
    }

    pub async fn deduct(&self, workspace_id: WorkspaceId, credits: &str) -> Result<Value, String> {
        self.deduct_for(workspace_id, "render", credits).await
    }

    async fn deduct_for(&self, workspace_id: WorkspaceId, feature: &str, credits: &str) -> Result<Value, String> {
        let command = Command::DeductCredits(DeductCredits {
            feature_code: FeatureCode::new(feature).unwrap(),
            charge: charge(credits),
            user_id: None,
            occurred_at: None,
            explain: false,
        });
        self.send(workspace_id, command).await
    }

    /// So many random commands, one after the other.
    pub async fn random_commands(&self, random: &mut Random, count: usize) {
        let mut last = vec![Last::default(); self.workspaces.len()];
        for n in 0..count {
            let chosen = usize::try_from(random.below(self.workspaces.len() as u64)).unwrap();
            let workspace_id = self.workspaces[chosen];
            self.random_command(random, n, workspace_id, &mut last[chosen]).await;
        }
    }

    async fn random_command(&self, random: &mut Random, n: usize, workspace_id: WorkspaceId, last: &mut Last) {
        let kind = random.below(24);
        let credits = format!("{}.{:06}", random.below(12), random.below(1_000_000) + 1);
        match kind {
            0..=7 => {
                let feature = if kind < 5 { "render" } else { "upscale" };
                if let Ok(receipt) = self.deduct_for(workspace_id, feature, &credits).await {
                    last.usage = Some(receipt["usage_id"].as_str().unwrap().parse().unwrap());
                }
            }
            8..=10 => {
                let hours = i64::try_from(random.below(90)).unwrap() + 1;
                let expires_at = (random.below(2) == 0).then(|| self.clock.now().plus(TimeDelta::hours(hours)));
                let command = Command::PurchaseCredits(PurchaseCredits {
                    credits: serde_json::from_value(credits.into()).unwrap(),
                    bonus_credits: None,
                    amount_minor: i64::try_from(random.below(5000)).unwrap(),
                    currency: Currency::new(if kind == 8 { "USD" } else { "EUR" }).unwrap(),
                    payment_reference: PaymentReference::new(&format!("{workspace_id}-{n}")).unwrap(),
                    expires_at,
                });
                if let Ok(receipt) = self.send(workspace_id, command).await {
                    last.purchase = Some(GrantId(receipt["grant_id"].as_str().unwrap().parse().unwrap()));
                }
            }
            11..=12 => {
                let Some(usage_id) = last.usage.take() else { return };
                let part = (random.below(2) == 0).then(|| serde_json::from_value("0.000001".into()).unwrap());
                let _ = self
                    .send(workspace_id, Command::RefundUsage(RefundUsage { usage_id, credits: part, reason: None }))
                    .await;
            }
            13 => {
                let Some(grant_id) = last.purchase.take() else { return };
                let amount = match random.below(2) {
                    0 => ReversedAmount::All,
                    _ => ReversedAmount::Credits(serde_json::from_value("0.5".into()).unwrap()),
                };
                let reversal = ReversePurchase { grant_id, amount, reason: ReversalReason::Refund };
                let _ = self.send(workspace_id, Command::ReversePurchase(reversal)).await;
            }
            14..=15 => self.hold_and_capture(workspace_id, &credits).await,
            16 => {
                let hours = TimeDelta::hours(i64::try_from(random.below(60)).unwrap());
                self.clock.set(self.clock.now().plus(hours));
            }
            // More than anybody has: these are refused, before and after whatever adds credits.
            20.. => _ = self.deduct(workspace_id, "5000").await,
            17 => {
                let _ = self.send(workspace_id, Command::ExpireGrants(ExpireGrants)).await;
                let _ = self.send(workspace_id, Command::WarnOfExpiry(WarnOfExpiry)).await;
            }
            _ => self.change_plan(workspace_id, random.below(4)).await,
        }
    }

    async fn hold_and_capture(&self, workspace_id: WorkspaceId, credits: &str) {
        let hold = Command::PlaceHold(PlaceHold {
            feature_code: FeatureCode::new("render").unwrap(),
            charge: charge(credits),
            min_credits: None,
            duration: HoldDuration::new(600).unwrap(),
            user_id: None,
            explain: false,
            job: None,
        });
        let Ok(receipt) = self.send(workspace_id, hold).await else { return };
        let hold_id = HoldId(receipt["hold_id"].as_str().unwrap().parse().unwrap());
        let (charge, overrun) = (None, Overrun::Reject);
        let _ = self
            .send(
                workspace_id,
                Command::CaptureHold(CaptureHold { hold_id, charge, overrun, late_capture: false, job: None }),
            )
            .await;
    }

    async fn change_plan(&self, workspace_id: WorkspaceId, choice: u64) {
        let command = match choice {
            0 => Command::CancelSubscription(CancelSubscription {
                effective: Effective::Immediate,
                reason: None,
                expected_version: None,
            }),
            1 => Command::ResumeSubscription(ResumeSubscription { expected_version: None }),
            _ => Command::ProcessSubscriptionChange(ProcessSubscriptionChange {
                plan_code: PlanCode::new(if choice == 2 { "small" } else { "large" }).unwrap(),
                effective: Effective::Immediate,
                credit_policy: CreditPolicy::None,
                expected_version: None,
            }),
        };
        let _ = self.send(workspace_id, command).await;
    }

    /// Waits until these builds of all consumers have taken all events.
    pub async fn wait_until_taken(&self, version: i32) {
        let behind = format!(
            "select cast(count(*) as bigint) from outbox_partitions p cross join consumers k
            left join consumer_cursors c on c.consumer = k.consumer and c.partition_id = p.partition_id
                and c.version = {version} and c.seq = p.seq
            where c.seq is null"
        );
        self.wait_for(&behind, 0).await;
    }

    /// Waits until the query has this answer.
    pub async fn wait_for(&self, sql: &str, expected: i64) {
        let started = Instant::now();
        loop {
            let found = self.integers(sql).await[0][0];
            if found == expected {
                return;
            }
            assert!(started.elapsed() < WAIT, "it stays {found}: {sql}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The nth event of this type of a workspace.
    pub async fn event(&self, workspace_id: WorkspaceId, event_type: EventType, nth: usize) -> EventRecord {
        let query = EventQuery::OfWorkspace { workspace_id, after: 0, limit: 1000 };
        let events = self.database.store.events(&query).await.unwrap();
        events.into_iter().filter(|event| event.event_type == event_type).nth(nth).unwrap()
    }

    /// Changes a stored event, which the database refuses to everybody else.
    pub async fn change_event(&self, event: &EventRecord, change: &str) {
        self.database.change_event(event, change).await;
    }

    /// Begins a build of every consumer beside the first one.
    pub async fn begin_second_build(&self) {
        self.execute(&[
            "insert into consumer_cursors (consumer, version, partition_id, seq, epoch, updated_at)
            select consumer, 2, partition_id, 0, 0, updated_at from consumer_cursors where version = 1",
            "update consumers set building_version = 2, building_fold_version = fold_version",
        ])
        .await;
    }

    /// Runs these statements on one connection.
    pub async fn execute(&self, statements: &[&str]) {
        self.database.execute(statements).await;
    }

    pub fn sqlite(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new().filename(self.database.sqlite_file()).busy_timeout(WAIT)
    }

    /// Rows of integers.
    pub async fn integers(&self, sql: &str) -> Vec<Vec<i64>> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self.kind {
            Database::Sqlite => {
                let rows = self.sqlite().connect().await.unwrap().fetch_all(sql).await.unwrap();
                rows.iter().map(|row| (0..row.len()).map(|column| row.get(column)).collect()).collect()
            }
            Database::Postgres => {
                let mut connection = self.database.postgres_options().connect().await.unwrap();
                let rows = connection.fetch_all(sql).await.unwrap();
                rows.iter().map(|row| (0..row.len()).map(|column| row.get(column)).collect()).collect()
            }
        }
    }

    /// The errors of all dead letters.
    pub async fn letters(&self) -> Vec<String> {
        let sql = "select error from dead_letters order by partition_id, seq";
        match self.kind {
            Database::Sqlite => {
                sqlx::query_scalar(sql).fetch_all(&mut self.sqlite().connect().await.unwrap()).await.unwrap()
            }
            Database::Postgres => {
                let mut connection = self.database.postgres_options().connect().await.unwrap();
                sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap()
            }
        }
    }

    pub async fn close(self) {
        self.engine.stop().await;
        self.database.close().await;
    }
}

fn charge(credits: &str) -> Charge {
    Charge::Credits(serde_json::from_value(credits.into()).unwrap())
}

fn plan(code: &str) -> PlanVersion {
    let limit = Some(UsageLimit { credits: Credits::whole(40), mode: LimitMode::Soft });
    let enabled = FeatureTerms { enabled: true, unit_price: None, limit };
    let features = ["render", "upscale"].map(|code| (FeatureCode::new(code).unwrap(), enabled));
    PlanVersion {
        plan_code: PlanCode::new(code).unwrap(),
        version: 1,
        name: Label::new(code).unwrap(),
        period_months: 1,
        allowance: Credits::whole(100),
        rollover_cap: Credits::ZERO,
        overdraft_limit: Credits::whole(20),
        monthly_limit: None,
        rate_limit: None,
        low_credit_thresholds: vec![Credits::whole(30)],
        expiry_warning_days: 7,
        refund_validity_days: 30,
        reversal_shortfall: ReversalShortfall::Debt,
        purchased_on_cancel: PurchasedOnCancel::Keep,
        features: features.into(),
    }
}
