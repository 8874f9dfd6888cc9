//! A fake engine and an empty store, for tests of the HTTP layer alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;
use visionscope_billing::domain::change_set::ChangeSet;
use visionscope_billing::domain::cloud_event::{EventRecord, EventSource};
use visionscope_billing::domain::commands::Envelope;
use visionscope_billing::domain::consumers::{
    Build, Consumer, ConsumerRows, ConsumerState, Fact, Notification, Statement, StatementLine,
};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::dead_letter::{DeadLetter, FailedEvent, FailedWork, LetterState};
use visionscope_billing::domain::grant::Grant;
use visionscope_billing::domain::hold::HoldState;
use visionscope_billing::domain::ids::{CommandId, EventId, GrantId, HoldId, Partition, WorkspaceId};
use visionscope_billing::domain::ledger::LedgerEntry;
use visionscope_billing::domain::operator_act::OperatorAct;
use visionscope_billing::domain::partition_head::PartitionHead;
use visionscope_billing::domain::plan::PlanVersion;
use visionscope_billing::domain::rejection::Rejection;
use visionscope_billing::domain::snapshot::{KeySet, Snapshot, WorkspaceState};
use visionscope_billing::domain::text::{FeatureCode, PaymentReference};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::usage::{UsageId, UsageLog};
use visionscope_billing::engine::Decide;
use visionscope_billing::engine::{DryRun, EngineError, Render, Rendered, Reply};
use visionscope_billing::http::render::JsonRender;
use visionscope_billing::store::consumers::Registered;
use visionscope_billing::store::figures::{
    AsOf, KpiPage, KpiQuery, NotificationQuery, ServerAsOf, UsageFigure, UsageFigures,
};
use visionscope_billing::store::operations::{ConsumerStatus, DeadLetterGroup, DeadLetterQuery, LetterChange};
use visionscope_billing::store::queries::{
    AuditFinding, DueWorkspace, EventPosition, EventQuery, GrantFilter, HistoryQuery, Lease, ListedHold, ListedUsage,
    Order, Page, PartitionStatus, Publication, Purchase, Recorded,
};
use visionscope_billing::store::{Figures, Operations, Outbox, Reads, Store, StoreError, WriteTx};

/// The next reply of the engine.
#[derive(Clone)]
pub enum Script {
    Accept,
    Reject(Rejection),
    Replay,
    KeyReused,
    Fail(EngineError),
    /// Accepts after `release` is notified.
    Hang,
}

pub const ACCEPTED_BODY: &str = r#"{"accepted":true}"#;

/// Replies as scripted, and records the commands.
pub struct FakeEngine {
    pub script: Mutex<Script>,
    pub seen: Mutex<Vec<Envelope>>,
    /// The commands of dry runs.
    pub tried: Mutex<Vec<Envelope>>,
    pub release: tokio::sync::Notify,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self {
            script: Mutex::new(Script::Accept),
            seen: Mutex::default(),
            tried: Mutex::default(),
            release: tokio::sync::Notify::new(),
        }
    }
}

#[async_trait]
impl Decide for FakeEngine {
    async fn decide(&self, envelope: Envelope) -> Result<Reply, EngineError> {
        self.seen.lock().unwrap().push(envelope);
        let accepted = Rendered { status: 200, body: ACCEPTED_BODY.into() };
        let script = self.script.lock().unwrap().clone();
        match script {
            Script::Accept => Ok(Reply::Decided { answer: accepted, rejection: None }),
            Script::Reject(rejection) => {
                Ok(Reply::Decided { answer: JsonRender.rejection(&rejection, None), rejection: Some(rejection) })
            }
            Script::Replay => Ok(Reply::Replayed(accepted)),
            Script::KeyReused => Ok(Reply::KeyReused),
            Script::Fail(error) => Err(error),
            Script::Hang => {
                self.release.notified().await;
                Ok(Reply::Decided { answer: accepted, rejection: None })
            }
        }
    }

    async fn dry_run(&self, envelope: &Envelope) -> Result<DryRun, EngineError> {
        self.tried.lock().unwrap().push(envelope.clone());
        let answer = Rendered { status: 200, body: ACCEPTED_BODY.into() };
        let reply = Reply::Decided { answer, rejection: None };
        Ok(DryRun { reply, events: Vec::new(), plan_preview: None })
    }
}

/// An empty store that can be made unavailable.
#[derive(Default)]
pub struct FakeStore {
    pub is_unavailable: std::sync::atomic::AtomicBool,
    /// Reads of a workspace's state wait until this is unlocked.
    pub reads: tokio::sync::Mutex<()>,
    /// How many reads of a workspace's state have begun.
    pub begun: std::sync::atomic::AtomicUsize,
    pub usage: FakeUsage,
}

/// Usage logs with the numbers from 1 to `len`, each recorded at as many microseconds.
#[derive(Default)]
pub struct FakeUsage {
    pub len: AtomicI64,
    /// How many pages were read.
    pub pages: AtomicI64,
    /// From this page on, reads fail. 0 if none does.
    pub fails_from_page: AtomicI64,
    /// How long it takes to read a page, in milliseconds.
    pub delay_ms: AtomicU64,
}

impl FakeUsage {
    async fn page(&self, query: &HistoryQuery) -> Result<Page<ListedUsage>, StoreError> {
        let page = self.pages.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst))).await;
        let fails_from = self.fails_from_page.load(Ordering::SeqCst);
        if fails_from != 0 && page >= fails_from {
            return Err(StoreError::Unavailable("connection to 10.1.2.3 refused".into()));
        }
        let len = self.len.load(Ordering::SeqCst);
        let last = query.to.map_or(len, |to| len.min(to.micros().saturating_sub(1)));
        let (limit, start) = (i64::from(query.limit), query.start_at.map(|row| row.seq));
        let numbers: Vec<i64> = match query.order {
            Order::Ascending => (start.unwrap_or(1)..=last).take(query.limit as usize).collect(),
            Order::Descending => (1..=start.unwrap_or(last).min(last)).rev().take(query.limit as usize).collect(),
        };
        let has_more = match query.order {
            Order::Ascending => start.unwrap_or(1) + limit <= last,
            Order::Descending => start.unwrap_or(last).min(last) > limit,
        };
        Ok(Page { rows: numbers.into_iter().map(|seq| usage_log(query.workspace_id, seq)).collect(), has_more })
    }
}

fn usage_log(workspace_id: WorkspaceId, seq: i64) -> ListedUsage {
    let at = Timestamp::from_micros(seq);
    let log = UsageLog {
        workspace_id,
        seq,
        command_id: CommandId(Uuid::from_u128(u128::try_from(seq).unwrap())),
        feature_code: FeatureCode::new("render").unwrap(),
        user_id: None,
        credits: Credits::whole(1),
        quantity: None,
        occurred_at: at,
        recorded_at: at,
        metadata: None,
    };
    ListedUsage { log, refunded: Credits::ZERO }
}

impl FakeStore {
    pub fn answer<T>(&self, value: T) -> Result<T, StoreError> {
        if self.is_unavailable.load(std::sync::atomic::Ordering::Relaxed) {
            Err(StoreError::Unavailable("connection to 10.1.2.3 refused".into()))
        } else {
            Ok(value)
        }
    }
}

#[async_trait]
impl Reads for FakeStore {
    async fn workspace(&self, _: WorkspaceId) -> Result<Option<WorkspaceState>, StoreError> {
        self.begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        drop(self.reads.lock().await);
        self.answer(None)
    }
    async fn snapshot(&self, _: &KeySet) -> Result<Snapshot, StoreError> {
        self.answer(Snapshot::default())
    }
    async fn last_entry(&self, _: WorkspaceId, _: Timestamp) -> Result<Option<LedgerEntry>, StoreError> {
        self.answer(None)
    }
    async fn usage(&self, query: &HistoryQuery, _: Option<&FeatureCode>) -> Result<Page<ListedUsage>, StoreError> {
        let page = self.usage.page(query).await?;
        self.answer(page)
    }
    async fn usage_log(&self, _: WorkspaceId, _: UsageId) -> Result<Option<ListedUsage>, StoreError> {
        self.answer(None)
    }
    async fn ledger(&self, _: &HistoryQuery, _: Option<GrantId>) -> Result<Page<LedgerEntry>, StoreError> {
        self.answer(Page { rows: vec![], has_more: false })
    }
    async fn events(&self, _: &EventQuery) -> Result<Vec<EventRecord>, StoreError> {
        self.answer(vec![])
    }
    async fn event(&self, _: EventId, _: Option<WorkspaceId>) -> Result<Option<EventRecord>, StoreError> {
        self.answer(None)
    }
    async fn plans(&self) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
        self.answer(vec![])
    }
    async fn due_boundaries(&self, _: Timestamp, _: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        self.answer(vec![])
    }
    async fn due_holds(&self, _: Timestamp, _: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        self.answer(vec![])
    }
    async fn holds(&self, _: &HistoryQuery, _: Option<HoldState>) -> Result<Page<ListedHold>, StoreError> {
        self.answer(Page { rows: vec![], has_more: false })
    }
    async fn hold(&self, _: WorkspaceId, _: HoldId) -> Result<Option<ListedHold>, StoreError> {
        self.answer(None)
    }
    async fn due_warnings(&self, _: Timestamp, _: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        self.answer(vec![])
    }
    async fn purchases(&self, _: &HistoryQuery) -> Result<Page<Purchase>, StoreError> {
        self.answer(Page { rows: vec![], has_more: false })
    }
    async fn purchase(&self, _: WorkspaceId, _: &PaymentReference) -> Result<Option<Purchase>, StoreError> {
        self.answer(None)
    }
    async fn grants(&self, _: &HistoryQuery, _: GrantFilter) -> Result<Page<Grant>, StoreError> {
        self.answer(Page { rows: vec![], has_more: false })
    }
    async fn grant(&self, _: WorkspaceId, _: GrantId) -> Result<Option<Grant>, StoreError> {
        self.answer(None)
    }
    async fn due_expiries(&self, _: Timestamp, _: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        self.answer(vec![])
    }
    async fn audit(&self, _: u32) -> Result<Vec<AuditFinding>, StoreError> {
        self.answer(vec![])
    }
    async fn ping(&self) -> Result<(), StoreError> {
        self.answer(())
    }
}

#[async_trait]
impl Figures for FakeStore {
    async fn as_of(&self, _: Consumer, _: WorkspaceId) -> Result<AsOf, StoreError> {
        self.answer(AsOf { version: 1, seq: 0, waiting_since: None, is_parked: false, has_discarded: false })
    }
    async fn event_seq(&self, _: WorkspaceId, _: i64) -> Result<Option<i64>, StoreError> {
        self.answer(None)
    }
    async fn usage_figures(&self, _: i32, _: &UsageFigures) -> Result<Page<UsageFigure>, StoreError> {
        self.answer(Page { rows: vec![], has_more: false })
    }
    async fn server_as_of(&self, _: Consumer) -> Result<ServerAsOf, StoreError> {
        self.answer(ServerAsOf { version: 1, seqs: vec![], waiting_since: None, has_parked: false })
    }
    async fn kpis(&self, _: i32, _: &KpiQuery) -> Result<KpiPage, StoreError> {
        self.answer(KpiPage { page: Page { rows: vec![], has_more: false }, deferred_before: None })
    }
    async fn statements(
        &self,
        _: i32,
        _: WorkspaceId,
        _: Option<Timestamp>,
        _: u32,
    ) -> Result<Page<Statement>, StoreError> {
        self.answer(Page { rows: vec![], has_more: false })
    }
    async fn statement(
        &self,
        _: i32,
        _: WorkspaceId,
        _: Timestamp,
    ) -> Result<Option<(Statement, Vec<StatementLine>)>, StoreError> {
        self.answer(None)
    }
    async fn notifications(&self, _: i32, _: &NotificationQuery) -> Result<Page<Notification>, StoreError> {
        self.answer(Page { rows: vec![], has_more: false })
    }
}

#[async_trait]
impl Operations for FakeStore {
    async fn consumer_statuses(&self) -> Result<Vec<ConsumerStatus>, StoreError> {
        let registered = Registered {
            consumer: Consumer::Analytics,
            version: 1,
            fold_version: 1,
            building_version: None,
            building_fold_version: None,
            state: ConsumerState::Running,
            reason: None,
            changed_by: None,
            changed_at: Timestamp::from_micros(0),
        };
        self.answer(vec![ConsumerStatus { registered, positions: vec![], parked: 0 }])
    }
    async fn stream_statuses(&self) -> Result<Vec<PartitionStatus>, StoreError> {
        self.answer(vec![])
    }
    async fn newest_build(&self, _: Consumer) -> Result<i32, StoreError> {
        self.answer(1)
    }
    async fn change_consumer(&self, _: &Registered, _: &Registered, _: &OperatorAct) -> Result<(), StoreError> {
        self.answer(())
    }
    async fn operator_acts(&self, _: Option<Uuid>, _: u32) -> Result<Page<OperatorAct>, StoreError> {
        self.answer(Page { rows: vec![], has_more: false })
    }
    async fn dead_letters(&self, _: &DeadLetterQuery) -> Result<Page<DeadLetter>, StoreError> {
        self.answer(Page { rows: vec![], has_more: false })
    }
    async fn dead_letter_groups(&self, _: LetterState, _: u32) -> Result<Vec<DeadLetterGroup>, StoreError> {
        self.answer(vec![])
    }
    async fn dead_letters_by_id(&self, ids: &[Uuid]) -> Result<Vec<DeadLetter>, StoreError> {
        let open = |dead_letter_id: &Uuid| DeadLetter {
            dead_letter_id: *dead_letter_id,
            work: FailedWork::Event(FailedEvent {
                build: Build { consumer: Consumer::Analytics, version: 1 },
                workspace_id: WorkspaceId(Uuid::nil()),
                partition: Partition::of(WorkspaceId(Uuid::nil())),
                seq: 1,
                workspace_seq: 1,
                event_id: EventId(Uuid::nil()),
            }),
            kind: "CreditConsumed".into(),
            fingerprint: "9c3a1f0e5b7d2468".into(),
            error_class: "contradiction".into(),
            error: "the purchase is unknown".into(),
            attempts: 1,
            first_failed_at: Timestamp::from_micros(0),
            last_failed_at: Timestamp::from_micros(0),
            state: LetterState::Open,
            replay_id: None,
            resolved_at: None,
        };
        self.answer(ids.iter().map(open).collect())
    }
    async fn event_trial(&self, _: &FailedEvent) -> Result<Option<(Fact, ConsumerRows)>, StoreError> {
        self.answer(None)
    }
    async fn change_letters(&self, _: &[LetterChange], _: &OperatorAct) -> Result<(), StoreError> {
        self.answer(())
    }
    async fn keep_act(&self, _: &OperatorAct) -> Result<(), StoreError> {
        self.answer(())
    }

    async fn operator_act(&self, _: Uuid) -> Result<Option<OperatorAct>, StoreError> {
        self.answer(None)
    }
    async fn replay_progress(&self, _: Uuid) -> Result<Vec<(LetterState, i64)>, StoreError> {
        self.answer(vec![])
    }
}

#[async_trait]
impl Outbox for FakeStore {
    async fn lease(&self, _: &str, _: Duration) -> Result<Vec<Lease>, StoreError> {
        self.answer(vec![])
    }
    async fn release(&self, _: &str) -> Result<(), StoreError> {
        self.answer(())
    }
    async fn heads(&self) -> Result<Vec<EventPosition>, StoreError> {
        self.answer(vec![])
    }
    async fn read_each(&self, _: &[EventPosition], _: u32) -> Result<Vec<EventRecord>, StoreError> {
        self.answer(vec![])
    }
    async fn record(&self, _: &[Publication]) -> Result<Vec<Recorded>, StoreError> {
        self.answer(vec![])
    }
    async fn mark_diverged(&self, _: &Lease, _: i64) -> Result<Recorded, StoreError> {
        self.answer(Recorded::Done)
    }
    async fn raise_floor(&self, _: &Lease, _: Duration) -> Result<Option<i64>, StoreError> {
        self.answer(Some(1))
    }
    async fn delete_batches(&self, _: Partition, _: Duration, _: u32) -> Result<u64, StoreError> {
        self.answer(0)
    }
    async fn start_generation(&self, _: Partition) -> Result<i32, StoreError> {
        self.answer(1)
    }
    async fn status(&self) -> Result<Vec<PartitionStatus>, StoreError> {
        self.answer(vec![])
    }
}

#[async_trait]
impl Store for FakeStore {
    async fn begin(&self) -> Result<Box<dyn WriteTx>, StoreError> {
        Err(StoreError::Unavailable("a fake does not accept writes".into()))
    }
    async fn states(&self, _: &[WorkspaceId]) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
        self.answer(HashMap::new())
    }
    async fn stale_workspaces(&self, _: &[(WorkspaceId, i64)]) -> Result<Vec<WorkspaceId>, StoreError> {
        self.answer(vec![])
    }
    async fn write(&self, _: &ChangeSet) -> Result<Vec<PartitionHead>, StoreError> {
        Err(StoreError::Unavailable("a fake does not accept writes".into()))
    }
    async fn put_plans(&self, _: &[PlanVersion], _: Timestamp) -> Result<(), StoreError> {
        self.answer(())
    }
    async fn event_source(&self, wanted: &EventSource) -> Result<EventSource, StoreError> {
        self.answer(wanted.clone())
    }
    async fn migrate(&self) -> Result<(), StoreError> {
        self.answer(())
    }
    async fn close(&self) {}
}
