//! An engine over a faulty store, with one workspace on a small plan.

use std::sync::Arc;

use futures::future::join_all;
use visionscope_billing::clock::{Clock, ManualClock};
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::commands::{
    Charge, Command, DeductCredits, Envelope, ProvisionWorkspace, PurchaseCredits,
};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::event::EventData;
use visionscope_billing::domain::explanation::Explanation;
use visionscope_billing::domain::grant::Currency;
use visionscope_billing::domain::ids::WorkspaceId;
use visionscope_billing::domain::metadata::Metadata;
use visionscope_billing::domain::plan::{FeatureTerms, PlanVersion, PurchasedOnCancel, ReversalShortfall};
use visionscope_billing::domain::receipt::Receipt;
use visionscope_billing::domain::rejection::Rejection;
use visionscope_billing::domain::text::{FeatureCode, IdempotencyKey, Label, PaymentReference, PlanCode};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::workspace::FeatureOverrides;
use visionscope_billing::engine::{
    CommitSignal, Engine, EngineConfig, EngineError, EventWriter, InvalidEvent, Render, Rendered, Reply,
};
use visionscope_billing::store::{Reads, Store};

use crate::databases::{Database, TestDatabase};
use crate::faulty_store::FaultyStore;

/// Large enough for every test that is not about these limits.
pub const ONE_LANE: EngineConfig =
    EngineConfig { lanes: 1, queue_capacity: 1000, max_batch: 500, cache_bytes: 1 << 24, max_clock_ahead: None };

/// A deduction of this many credits makes the renderer panic.
pub const PANICS: &str = "13";
/// A deduction of this many credits raises an event that violates its schema.
pub const VIOLATES_SCHEMA: &str = "17";

pub struct World {
    pub database: Arc<TestDatabase>,
    pub store: Arc<FaultyStore>,
    pub engine: Engine,
    pub clock: ManualClock,
    pub workspace_id: WorkspaceId,
}

struct TestPorts;

impl Render for TestPorts {
    fn receipt(&self, receipt: &Receipt) -> Rendered {
        if let Receipt::Deducted(receipt) = receipt {
            assert_ne!(receipt.credits.to_string(), PANICS, "a planned panic");
        }
        Rendered { status: 200, body: serde_json::to_string(receipt).unwrap() }
    }

    fn rejection(&self, rejection: &Rejection, _: Option<&Explanation>) -> Rendered {
        Rendered { status: 400, body: rejection.code().to_owned() }
    }
}

impl EventWriter for TestPorts {
    fn write(&self, data: &EventData, metadata: Option<&Metadata>) -> Result<String, InvalidEvent> {
        match data {
            EventData::CreditConsumed(data) if data.credits.to_string() == VIOLATES_SCHEMA => {
                Err(InvalidEvent("a planned violation".into()))
            }
            _ => data.to_json(metadata).map_err(|error| InvalidEvent(error.to_string())),
        }
    }
}

impl CommitSignal for TestPorts {
    fn committed(&self, _: Vec<EventRecord>) {}
}

impl World {
    pub async fn on(database: Database) -> Self {
        Self::with(database, ONE_LANE).await
    }

    pub async fn with(database: Database, config: EngineConfig) -> Self {
        let database = database.create().await;
        let plans = [plan("small", 1000), plan("large", 5000)];
        let clock = ManualClock::at("2026-01-31T00:00:00Z".parse().unwrap());
        database.store.put_plans(&plans, clock.now()).await.unwrap();
        let store = Arc::new(FaultyStore::over(Arc::clone(&database.store)));
        let engine = engine_over(Arc::clone(&store) as Arc<dyn Store>, &config);
        let workspace_id = WorkspaceId(clock.new_id());
        let world = Self { database: Arc::new(database), store, engine, clock, workspace_id };
        world.provision(workspace_id).await;
        world
    }

    /// The same database and workspace behind another engine.
    pub fn with_engine(&self, engine: Engine) -> Self {
        let (database, store) = (Arc::clone(&self.database), Arc::clone(&self.store));
        Self { database, store, engine, clock: self.clock.clone(), workspace_id: self.workspace_id }
    }

    pub async fn provision(&self, workspace_id: WorkspaceId) {
        let command = Command::ProvisionWorkspace(ProvisionWorkspace {
            name: Label::new("Engine").unwrap(),
            plan_code: PlanCode::new("small").unwrap(),
            time_zone: chrono_tz::UTC,
            anchor: None,
            monthly_limit: None,
            overdraft_limit: None,
            feature_overrides: FeatureOverrides::new(),
        });
        let reply = self.engine.submit(self.envelope(workspace_id, "provision", command)).await;
        assert!(matches!(reply, Ok(Reply::Decided { rejection: None, .. })), "{reply:?}");
    }

    pub fn envelope(&self, workspace_id: WorkspaceId, key: &str, command: Command) -> Envelope {
        let message_id = self.clock.new_command_id();
        Envelope {
            message_id,
            idempotency_key: IdempotencyKey::new(key).unwrap(),
            workspace_id,
            actor: "engine".into(),
            correlation_id: message_id.to_string(),
            causation_id: None,
            traceparent: None,
            received_at: self.clock.now(),
            metadata: None,
            fingerprint: [0; 32],
            command,
        }
    }

    pub async fn deduct(&self, key: &str, credits: &str) -> Result<Reply, EngineError> {
        self.deduct_from(self.workspace_id, key, credits).await
    }

    pub async fn deduct_from(&self, workspace_id: WorkspaceId, key: &str, credits: &str) -> Result<Reply, EngineError> {
        self.deduct_feature(workspace_id, key, "render", credits).await
    }

    pub async fn deduct_feature(
        &self,
        workspace_id: WorkspaceId,
        key: &str,
        feature: &str,
        credits: &str,
    ) -> Result<Reply, EngineError> {
        self.engine.submit(self.deduction(workspace_id, key, feature, credits, None)).await
    }

    pub fn deduction(
        &self,
        workspace_id: WorkspaceId,
        key: &str,
        feature: &str,
        credits: &str,
        occurred_at: Option<Timestamp>,
    ) -> Envelope {
        let command = Command::DeductCredits(DeductCredits {
            feature_code: FeatureCode::new(feature).unwrap(),
            charge: Charge::Credits(serde_json::from_value(credits.into()).unwrap()),
            user_id: None,
            occurred_at,
            explain: false,
        });
        self.envelope(workspace_id, key, command)
    }

    /// Sends all deductions at once. While the gate holds the first one, the others queue up and become one
    /// batch.
    pub async fn deduct_in_one_batch(&self, deductions: &[(&str, &str)]) -> Vec<Result<Reply, EngineError>> {
        let envelope = |(key, credits): &(&str, &str)| self.deduction(self.workspace_id, key, "render", credits, None);
        self.submit_in_one_batch(deductions.iter().map(envelope).collect()).await
    }

    pub async fn submit_in_one_batch(&self, envelopes: Vec<Envelope>) -> Vec<Result<Reply, EngineError>> {
        let closed = self.store.gate.forget_permits(usize::MAX);
        let all = join_all(envelopes.into_iter().map(|envelope| self.engine.submit(envelope)));
        let open = async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            self.store.gate.add_permits(closed);
        };
        tokio::join!(all, open).0
    }

    pub async fn purchase(&self, reference: &str, credits: &str, expires_at: Option<Timestamp>) {
        let command = Command::PurchaseCredits(PurchaseCredits {
            credits: serde_json::from_value(credits.into()).unwrap(),
            bonus_credits: None,
            amount_minor: 1,
            currency: Currency::new("EUR").unwrap(),
            payment_reference: PaymentReference::new(reference).unwrap(),
            expires_at,
        });
        let reply = self.engine.submit(self.envelope(self.workspace_id, reference, command)).await;
        assert!(matches!(reply, Ok(Reply::Decided { rejection: None, .. })), "{reply:?}");
    }

    pub async fn schedule(&self, workspace_id: WorkspaceId, key: &str, command: Command) {
        let reply = self.engine.submit(self.envelope(workspace_id, key, command)).await;
        assert!(matches!(reply, Ok(Reply::Decided { rejection: None, .. })), "{reply:?}");
    }

    pub async fn balance(&self) -> String {
        let state = self.store.workspace(self.workspace_id).await.unwrap().unwrap();
        state.credits.current_credits.to_string()
    }

    pub async fn audit_and_close(self) {
        assert_eq!(self.store.audit(5).await.unwrap(), []);
        self.engine.stop().await;
        self.database.close().await;
    }
}

pub fn engine_over(store: Arc<dyn Store>, config: &EngineConfig) -> Engine {
    Engine::start(config, store, Arc::new(TestPorts), Arc::new(TestPorts), Arc::new(TestPorts))
}

/// A plan with a monthly allowance and no rollover.
fn plan(code: &str, allowance: i64) -> PlanVersion {
    let render = FeatureTerms { enabled: true, unit_price: None, limit: None };
    PlanVersion {
        plan_code: PlanCode::new(code).unwrap(),
        version: 1,
        name: Label::new(code).unwrap(),
        period_months: 1,
        allowance: Credits::whole(allowance),
        rollover_cap: Credits::ZERO,
        overdraft_limit: Credits::ZERO,
        monthly_limit: None,
        rate_limit: None,
        low_credit_thresholds: Vec::new(),
        expiry_warning_days: 7,
        refund_validity_days: 30,
        reversal_shortfall: ReversalShortfall::Debt,
        purchased_on_cancel: PurchasedOnCancel::Keep,
        features: [(FeatureCode::new("render").unwrap(), render)].into(),
    }
}

pub fn outcome(reply: &Result<Reply, EngineError>) -> &'static str {
    match reply {
        Ok(Reply::Decided { rejection: None, .. }) => "accepted",
        Ok(Reply::Decided { rejection: Some(_), .. }) => "refused",
        Ok(Reply::Replayed(_)) => "replayed",
        Ok(Reply::KeyReused) => "key reused",
        Ok(Reply::Nothing) => "nothing",
        Err(EngineError::Overloaded | EngineError::WaitedTooLong) => "overloaded",
        Err(EngineError::OverShare) => "over share",
        Err(EngineError::Stopping) => "stopping",
        Err(EngineError::Unavailable) => "unavailable",
        Err(EngineError::Failed) => "failed",
    }
}

pub fn outcomes(replies: &[Result<Reply, EngineError>]) -> Vec<&'static str> {
    replies.iter().map(outcome).collect()
}
