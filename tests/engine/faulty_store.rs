//! A real store with injected transaction failures.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;
use visionscope_billing::domain::change_set::ChangeSet;
use visionscope_billing::domain::cloud_event::{EventRecord, EventSource};
use visionscope_billing::domain::consumers::{Consumer, Notification, Statement, StatementLine};
use visionscope_billing::domain::grant::Grant;
use visionscope_billing::domain::hold::HoldState;
use visionscope_billing::domain::ids::{EventId, GrantId, HoldId, Partition, WorkspaceId};
use visionscope_billing::domain::ledger::LedgerEntry;
use visionscope_billing::domain::partition_head::PartitionHead;
use visionscope_billing::domain::plan::PlanVersion;
use visionscope_billing::domain::snapshot::{KeySet, Snapshot, WorkspaceState};
use visionscope_billing::domain::text::{FeatureCode, PaymentReference};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::usage::UsageId;
use visionscope_billing::store::figures::{
    AsOf, KpiPage, KpiQuery, NotificationQuery, ServerAsOf, UsageFigure, UsageFigures,
};
use visionscope_billing::store::queries::{
    AuditFinding, DueWorkspace, EventPosition, EventQuery, GrantFilter, HistoryQuery, Lease, ListedHold, ListedUsage,
    Page, PartitionStatus, Publication, Purchase, Recorded,
};
use visionscope_billing::store::{Figures, Outbox, Reads, Store, StoreError, WriteTx};

/// What happens to one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    BeginUnavailable,
    LoadConflict,
    /// Nothing is written, and the caller is told so.
    CommitConflict,
    /// Nothing is written, and the caller cannot know.
    CommitLost,
    /// Everything is written, and the caller cannot know.
    AnswerLost,
}

/// The faults to inject, and counters.
#[derive(Default)]
pub struct FaultPlan {
    pub queue: Mutex<VecDeque<Fault>>,
    /// Every commit with this key fails as corrupt.
    pub corrupt_key: Mutex<Option<String>>,
    pub transactions: AtomicUsize,
    /// The transactions that took locks first.
    pub locked_transactions: AtomicUsize,
    /// States read without locks.
    pub states_read: AtomicUsize,
}

impl FaultPlan {
    fn check(&self, changes: &ChangeSet) -> Result<(), StoreError> {
        let corrupt_key = self.corrupt_key.lock().unwrap().clone();
        let has_key = |key: &str| changes.commands.iter().any(|command| command.idempotency_key.as_str() == key);
        if corrupt_key.is_some_and(|key| has_key(&key)) {
            return Err(StoreError::Corrupt("an injected fault".into()));
        }
        Ok(())
    }
}

pub struct FaultyStore {
    inner: Arc<dyn Store>,
    pub faults: Arc<FaultPlan>,
    /// Each transaction consumes a permit when it begins.
    pub gate: Arc<Semaphore>,
}

struct FaultyTx {
    inner: Box<dyn WriteTx>,
    fault: Option<Fault>,
    faults: Arc<FaultPlan>,
}

impl FaultyStore {
    pub fn over(inner: Arc<dyn Store>) -> Self {
        Self { inner, faults: Arc::default(), gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)) }
    }

    /// Waits at the gate, and returns the next fault.
    async fn enter(&self) -> Option<Fault> {
        let permit = self.gate.acquire().await.unwrap();
        permit.forget();
        self.faults.transactions.fetch_add(1, Ordering::SeqCst);
        self.faults.queue.lock().unwrap().pop_front()
    }

    pub fn fail_next(&self, faults: &[Fault]) {
        self.faults.queue.lock().unwrap().extend(faults);
    }
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("an injected fault".into())
}

#[async_trait]
impl Store for FaultyStore {
    async fn begin(&self) -> Result<Box<dyn WriteTx>, StoreError> {
        let fault = self.enter().await;
        self.faults.locked_transactions.fetch_add(1, Ordering::SeqCst);
        if fault == Some(Fault::BeginUnavailable) {
            return Err(unavailable());
        }
        Ok(Box::new(FaultyTx { inner: self.inner.begin().await?, fault, faults: Arc::clone(&self.faults) }))
    }

    async fn event_source(&self, wanted: &EventSource) -> Result<EventSource, StoreError> {
        self.inner.event_source(wanted).await
    }

    async fn states(&self, ids: &[WorkspaceId]) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
        self.faults.states_read.fetch_add(ids.len(), Ordering::SeqCst);
        self.inner.states(ids).await
    }

    async fn stale_workspaces(&self, known: &[(WorkspaceId, i64)]) -> Result<Vec<WorkspaceId>, StoreError> {
        self.inner.stale_workspaces(known).await
    }

    async fn write(&self, changes: &ChangeSet) -> Result<Vec<PartitionHead>, StoreError> {
        let fault = self.enter().await;
        self.faults.check(changes)?;
        match fault {
            Some(Fault::BeginUnavailable | Fault::CommitLost) => Err(unavailable()),
            Some(Fault::LoadConflict | Fault::CommitConflict) => Err(StoreError::Conflict("an injected fault".into())),
            Some(Fault::AnswerLost) => {
                self.inner.write(changes).await?;
                Err(unavailable())
            }
            None => self.inner.write(changes).await,
        }
    }

    async fn put_plans(&self, plans: &[PlanVersion], now: Timestamp) -> Result<(), StoreError> {
        self.inner.put_plans(plans, now).await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        self.inner.migrate().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[async_trait]
impl WriteTx for FaultyTx {
    async fn load(&mut self, keys: &KeySet) -> Result<Snapshot, StoreError> {
        if self.fault == Some(Fault::LoadConflict) {
            return Err(StoreError::Conflict("an injected fault".into()));
        }
        self.inner.load(keys).await
    }

    async fn commit(self: Box<Self>, changes: &ChangeSet) -> Result<(), StoreError> {
        self.faults.check(changes)?;
        match self.fault {
            Some(Fault::CommitConflict) => Err(StoreError::Conflict("an injected fault".into())),
            Some(Fault::CommitLost) => Err(unavailable()),
            Some(Fault::AnswerLost) => {
                self.inner.commit(changes).await?;
                Err(unavailable())
            }
            Some(Fault::BeginUnavailable | Fault::LoadConflict) | None => self.inner.commit(changes).await,
        }
    }
}

#[async_trait]
impl Reads for FaultyStore {
    async fn workspace(&self, workspace_id: WorkspaceId) -> Result<Option<WorkspaceState>, StoreError> {
        self.inner.workspace(workspace_id).await
    }

    async fn snapshot(&self, keys: &KeySet) -> Result<Snapshot, StoreError> {
        self.inner.snapshot(keys).await
    }

    async fn last_entry(&self, id: WorkspaceId, at: Timestamp) -> Result<Option<LedgerEntry>, StoreError> {
        self.inner.last_entry(id, at).await
    }

    async fn usage(
        &self,
        query: &HistoryQuery,
        feature_code: Option<&FeatureCode>,
    ) -> Result<Page<ListedUsage>, StoreError> {
        self.inner.usage(query, feature_code).await
    }

    async fn usage_log(&self, workspace_id: WorkspaceId, usage_id: UsageId) -> Result<Option<ListedUsage>, StoreError> {
        self.inner.usage_log(workspace_id, usage_id).await
    }

    async fn ledger(&self, query: &HistoryQuery, grant_id: Option<GrantId>) -> Result<Page<LedgerEntry>, StoreError> {
        self.inner.ledger(query, grant_id).await
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<EventRecord>, StoreError> {
        self.inner.events(query).await
    }

    async fn event(&self, id: EventId, workspace_id: Option<WorkspaceId>) -> Result<Option<EventRecord>, StoreError> {
        self.inner.event(id, workspace_id).await
    }

    async fn plans(&self) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
        self.inner.plans().await
    }

    async fn due_boundaries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        self.inner.due_boundaries(now, limit).await
    }

    async fn due_holds(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        self.inner.due_holds(now, limit).await
    }

    async fn holds(&self, query: &HistoryQuery, state: Option<HoldState>) -> Result<Page<ListedHold>, StoreError> {
        self.inner.holds(query, state).await
    }

    async fn hold(&self, id: WorkspaceId, hold_id: HoldId) -> Result<Option<ListedHold>, StoreError> {
        self.inner.hold(id, hold_id).await
    }

    async fn due_warnings(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        self.inner.due_warnings(now, limit).await
    }

    async fn purchases(&self, query: &HistoryQuery) -> Result<Page<Purchase>, StoreError> {
        self.inner.purchases(query).await
    }

    async fn purchase(&self, id: WorkspaceId, reference: &PaymentReference) -> Result<Option<Purchase>, StoreError> {
        self.inner.purchase(id, reference).await
    }

    async fn grants(&self, query: &HistoryQuery, filter: GrantFilter) -> Result<Page<Grant>, StoreError> {
        self.inner.grants(query, filter).await
    }

    async fn grant(&self, id: WorkspaceId, grant_id: GrantId) -> Result<Option<Grant>, StoreError> {
        self.inner.grant(id, grant_id).await
    }

    async fn due_expiries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        self.inner.due_expiries(now, limit).await
    }

    async fn audit(&self, limit: u32) -> Result<Vec<AuditFinding>, StoreError> {
        self.inner.audit(limit).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }
}

#[async_trait]
impl Figures for FaultyStore {
    async fn as_of(&self, consumer: Consumer, workspace_id: WorkspaceId) -> Result<AsOf, StoreError> {
        self.inner.as_of(consumer, workspace_id).await
    }

    async fn event_seq(&self, workspace_id: WorkspaceId, workspace_seq: i64) -> Result<Option<i64>, StoreError> {
        self.inner.event_seq(workspace_id, workspace_seq).await
    }

    async fn usage_figures(&self, version: i32, query: &UsageFigures) -> Result<Page<UsageFigure>, StoreError> {
        self.inner.usage_figures(version, query).await
    }

    async fn server_as_of(&self, consumer: Consumer) -> Result<ServerAsOf, StoreError> {
        self.inner.server_as_of(consumer).await
    }

    async fn kpis(&self, version: i32, query: &KpiQuery) -> Result<KpiPage, StoreError> {
        self.inner.kpis(version, query).await
    }

    async fn statements(
        &self,
        version: i32,
        workspace_id: WorkspaceId,
        start_at: Option<Timestamp>,
        limit: u32,
    ) -> Result<Page<Statement>, StoreError> {
        self.inner.statements(version, workspace_id, start_at, limit).await
    }

    async fn statement(
        &self,
        version: i32,
        workspace_id: WorkspaceId,
        period_start: Timestamp,
    ) -> Result<Option<(Statement, Vec<StatementLine>)>, StoreError> {
        self.inner.statement(version, workspace_id, period_start).await
    }

    async fn notifications(&self, version: i32, query: &NotificationQuery) -> Result<Page<Notification>, StoreError> {
        self.inner.notifications(version, query).await
    }
}

#[async_trait]
impl Outbox for FaultyStore {
    async fn lease(&self, owner: &str, ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        self.inner.lease(owner, ttl).await
    }

    async fn release(&self, owner: &str) -> Result<(), StoreError> {
        self.inner.release(owner).await
    }

    async fn heads(&self) -> Result<Vec<EventPosition>, StoreError> {
        self.inner.heads().await
    }

    async fn read_each(&self, after: &[EventPosition], limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        self.inner.read_each(after, limit).await
    }

    async fn record(&self, publications: &[Publication]) -> Result<Vec<Recorded>, StoreError> {
        self.inner.record(publications).await
    }

    async fn mark_diverged(&self, lease: &Lease, seq: i64) -> Result<Recorded, StoreError> {
        self.inner.mark_diverged(lease, seq).await
    }

    async fn raise_floor(&self, lease: &Lease, retain: Duration) -> Result<Option<i64>, StoreError> {
        self.inner.raise_floor(lease, retain).await
    }

    async fn delete_batches(&self, partition: Partition, retain: Duration, limit: u32) -> Result<u64, StoreError> {
        self.inner.delete_batches(partition, retain, limit).await
    }

    async fn start_generation(&self, partition: Partition) -> Result<i32, StoreError> {
        self.inner.start_generation(partition).await
    }

    async fn status(&self) -> Result<Vec<PartitionStatus>, StoreError> {
        self.inner.status().await
    }
}
