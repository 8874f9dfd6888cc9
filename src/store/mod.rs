//! The store: durable writes, and all reads.
//!
//! A store never sees a command: only the keys to load and the rows to write. There are two:
//! [`sqlite`], embedded and the default, and [`postgres`]. They share the statements that both
//! databases understand. One conformance suite (`tests/conformance`) runs over both.
//!
//! *Architecture invariant:* sqlx is known only below `store/postgres` and `store/sqlite`. Its
//! errors leave as a [`StoreError`], whose variant says what may be retried.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

pub use self::cleaning::Cleaning;
use self::consumers::{Advance, ConsumerCursor, Registered};
pub use self::error::StoreError;
pub use self::figures::Figures;
pub use self::jobs::Jobs;
pub use self::operations::Operations;
use self::queries::{
    AuditFinding, DueWorkspace, EventPosition, EventQuery, GrantFilter, HistoryQuery, Lease, ListedHold, ListedUsage,
    Page, PartitionStatus, Publication, Purchase, Recorded,
};
use crate::domain::change_set::ChangeSet;
use crate::domain::cloud_event::{EventRecord, EventSource};
use crate::domain::consumers::{Build, Consumer, ConsumerKeys, ConsumerRows};
use crate::domain::dead_letter::{DeadLetter, ParkedWorkspace};
use crate::domain::grant::Grant;
use crate::domain::hold::HoldState;
use crate::domain::ids::{EventId, GrantId, HoldId, Partition, WorkspaceId};
use crate::domain::ledger::LedgerEntry;
use crate::domain::partition_head::PartitionHead;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::{KeySet, Snapshot, WorkspaceState};
use crate::domain::text::{FeatureCode, PaymentReference};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageId;

pub mod cleaning;
mod cleaning_statements;
mod cleaning_writes;
mod columns;
mod consumer_statements;
pub mod consumers;
mod consumption;
mod dialect;
mod error;
mod figure_reads;
pub mod figures;
mod invariants;
mod job_statements;
mod job_writes;
pub mod jobs;
mod kept_statements;
mod kpi_reads;
mod kpi_statements;
mod load;
mod operation_writes;
pub mod operations;
mod plan_cache;
mod plan_rows;
pub mod postgres;
pub mod queries;
mod reads;
pub mod sqlite;
mod statements;
mod states;
mod tables;
mod write;

/// How many expired grants [`Reads::due_expiries`] reads per workspace that it may return. Most workspaces
/// have one or two at a time, and one command expires all of a workspace's.
const EXPIRIES_PER_WORKSPACE: u32 = 4;

/// The tables that are written in batches and their columns in order. A test compares them with the migrations.
#[doc(hidden)]
#[must_use]
pub fn tables() -> Vec<(&'static str, Vec<&'static str>)> {
    tables::all()
}

/// The write side, for the engine.
#[async_trait]
pub trait Store: Reads + Outbox + Figures {
    /// Begins a transaction. Dropping it rolls back.
    async fn begin(&self) -> Result<Box<dyn WriteTx>, StoreError>;

    /// The states of the workspaces that exist. They are read without locks and in several statements, so a
    /// decision on them is valid only if the write finds the same versions.
    async fn states(&self, ids: &[WorkspaceId]) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError>;

    /// The workspaces whose version is not the given one. Reads without locks.
    async fn stale_workspaces(&self, known: &[(WorkspaceId, i64)]) -> Result<Vec<WorkspaceId>, StoreError>;

    /// Optimistic write: writes what was decided without locks, all of it or nothing. It is a conflict if a
    /// workspace has another version than the decision was based on, or if an idempotency key is taken.
    /// Returns the partition heads after the write, in input order. The events are numbered behind those that
    /// other replicas have written to the partition.
    async fn write(&self, changes: &ChangeSet) -> Result<Vec<PartitionHead>, StoreError>;

    /// Offers these plans, each in the newest version that is stored. New versions are stored first; a version that
    /// is already stored must be equal. Every other plan is retired: workspaces that have it keep it, and no other
    /// workspace can get it.
    async fn put_plans(&self, plans: &[PlanVersion], now: Timestamp) -> Result<(), StoreError>;

    /// The source of this database's events: the given one, unless another was stored before.
    async fn event_source(&self, wanted: &EventSource) -> Result<EventSource, StoreError>;

    /// Applies pending migrations.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Closes all connections.
    async fn close(&self);
}

/// The store as the consumers of this server see it. They read the events from the outbox.
#[async_trait]
pub trait Consumption: Outbox {
    /// Leases every partition that is free or this owner's. Returns those that it has now.
    async fn lease_consumers(&self, owner: &str, ttl: Duration) -> Result<Vec<Partition>, StoreError>;

    async fn release_consumer_leases(&self, owner: &str) -> Result<(), StoreError>;

    async fn consumers(&self) -> Result<Vec<Registered>, StoreError>;

    /// The cursors of all builds.
    async fn consumer_cursors(&self) -> Result<Vec<ConsumerCursor>, StoreError>;

    async fn parked_workspaces(&self) -> Result<Vec<ParkedWorkspace>, StoreError>;

    /// The events that operators have discarded.
    async fn discarded_events(&self) -> Result<HashSet<(Consumer, EventId)>, StoreError>;

    /// When the oldest event was recorded that each consumer has not taken yet. Those that have taken all are absent.
    async fn waiting_since(&self) -> Result<BTreeMap<Consumer, Timestamp>, StoreError>;

    async fn dead_letter(&self, dead_letter_id: Uuid) -> Result<Option<DeadLetter>, StoreError>;

    /// The next events of a parked workspace, in order.
    async fn events_left_out(&self, parked: &ParkedWorkspace, limit: u32) -> Result<Vec<EventRecord>, StoreError>;

    /// Those of the rows that exist.
    async fn consumer_rows(&self, keys: &ConsumerKeys) -> Result<ConsumerRows, StoreError>;

    /// Writes what the consumers made of some events, all of it or nothing. It is a conflict if a cursor is not where the
    /// fold began.
    async fn advance_consumers(&self, advances: &[Advance]) -> Result<(), StoreError>;

    /// Begins a build by this version of the server, because all builds are older. It is a conflict if somebody else has changed
    /// the consumer.
    async fn start_rebuild(&self, before: &Registered, audit_id: Uuid, now: Timestamp) -> Result<(), StoreError>;

    /// Reads the figures of this build from now on. Nothing happens if it is not the one that is being built.
    async fn switch_consumer(&self, build: Build) -> Result<(), StoreError>;

    /// Stops a running consumer because it seems to be wrong.
    async fn trip_consumer(&self, consumer: Consumer, reason: &str, now: Timestamp) -> Result<(), StoreError>;
}

/// All that a database can do, for the server that composes its parts.
pub trait ServerStore: Store + Consumption + Operations + Jobs + Cleaning {}

impl<S: Store + Consumption + Operations + Jobs + Cleaning> ServerStore for S {}

/// One write transaction.
#[async_trait]
pub trait WriteTx: Send {
    /// Locks the partitions of the keys in ascending order, and then reads. These are separate statements,
    /// because waiting for a lock does not refresh the snapshot of the statement that waits.
    async fn load(&mut self, keys: &KeySet) -> Result<Snapshot, StoreError>;

    /// Writes all rows in a fixed number of statements and commits.
    async fn commit(self: Box<Self>, changes: &ChangeSet) -> Result<(), StoreError>;
}

/// The reads of the API and the scheduler. Every query names the workspace, except those of the
/// scheduler, of the operator, and of a token for all workspaces.
#[async_trait]
pub trait Reads: Send + Sync {
    /// The current state of one workspace, read without locks in one consistent view.
    async fn workspace(&self, workspace_id: WorkspaceId) -> Result<Option<WorkspaceState>, StoreError>;

    /// The rows of the keys, read without locks in one consistent view, and no heads: to decide a command without writing
    /// anything.
    async fn snapshot(&self, keys: &KeySet) -> Result<Snapshot, StoreError>;

    /// The last ledger entry of a workspace that was recorded at this instant or before.
    async fn last_entry(&self, workspace_id: WorkspaceId, at: Timestamp) -> Result<Option<LedgerEntry>, StoreError>;

    /// A page of usage logs, optionally of one feature.
    async fn usage(
        &self,
        query: &HistoryQuery,
        feature_code: Option<&FeatureCode>,
    ) -> Result<Page<ListedUsage>, StoreError>;

    /// One usage log.
    async fn usage_log(&self, workspace_id: WorkspaceId, usage_id: UsageId) -> Result<Option<ListedUsage>, StoreError>;

    /// A page of ledger entries, optionally of one grant.
    async fn ledger(&self, query: &HistoryQuery, grant_id: Option<GrantId>) -> Result<Page<LedgerEntry>, StoreError>;

    /// A page of events: of one workspace by `workspace_seq`, or of all by partition and `seq`.
    async fn events(&self, query: &EventQuery) -> Result<Vec<EventRecord>, StoreError>;

    /// One event; with a workspace given, only if it belongs to that workspace.
    async fn event(
        &self,
        event_id: EventId,
        workspace_id: Option<WorkspaceId>,
    ) -> Result<Option<EventRecord>, StoreError>;

    /// The newest version of every plan that is offered, by code.
    async fn plans(&self) -> Result<Vec<Arc<PlanVersion>>, StoreError>;

    /// Workspaces whose period has ended, the longest overdue first.
    async fn due_boundaries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError>;

    /// Workspaces with open holds that have expired, the longest overdue first. Bounded like [`Self::due_expiries`].
    async fn due_holds(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError>;

    /// Workspaces with expired grants that still have credits, the longest overdue first. Reads at most
    /// [`EXPIRIES_PER_WORKSPACE`] times `limit` grants, so a workspace with many of them makes the list
    /// shorter, not the query slower.
    async fn due_expiries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError>;

    /// Workspaces with grants whose `CreditsExpiring` is due, the longest overdue first. Bounded like
    /// [`Self::due_expiries`].
    async fn due_warnings(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError>;

    /// A page of the grants that were bought, each with its bonus, if there was one.
    async fn purchases(&self, query: &HistoryQuery) -> Result<Page<Purchase>, StoreError>;

    /// The purchase that a payment paid for.
    async fn purchase(
        &self,
        workspace_id: WorkspaceId,
        payment_reference: &PaymentReference,
    ) -> Result<Option<Purchase>, StoreError>;

    /// A page of grants. It also starts with the row of `start_at` if that is not one of those that the filter wants: a
    /// grant that closes between two pages does not end the list.
    async fn grants(&self, query: &HistoryQuery, filter: GrantFilter) -> Result<Page<Grant>, StoreError>;

    /// One grant, open or closed.
    async fn grant(&self, workspace_id: WorkspaceId, grant_id: GrantId) -> Result<Option<Grant>, StoreError>;

    /// A page of holds, optionally of those in a state.
    async fn holds(&self, query: &HistoryQuery, state: Option<HoldState>) -> Result<Page<ListedHold>, StoreError>;

    /// One hold, open or over.
    async fn hold(&self, workspace_id: WorkspaceId, hold_id: HoldId) -> Result<Option<ListedHold>, StoreError>;

    /// Checks the invariants. Returns the violations, at most `limit` per invariant.
    async fn audit(&self, limit: u32) -> Result<Vec<AuditFinding>, StoreError>;

    /// Checks that the database answers, on a connection that commands use.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// The outbox as the publisher sees it. All times are the database's.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Takes or extends, by `ttl`, the lease of every partition that is free, expired or already this
    /// owner's. A new owner raises the epoch.
    async fn lease(&self, owner: &str, ttl: Duration) -> Result<Vec<Lease>, StoreError>;

    /// Releases all leases of this owner.
    async fn release(&self, owner: &str) -> Result<(), StoreError>;

    /// The number of the last event of every partition, ordered by partition.
    async fn heads(&self) -> Result<Vec<EventPosition>, StoreError>;

    /// Events of several partitions after the given numbers, in order, at most `limit` of each.
    async fn read_each(&self, after: &[EventPosition], limit: u32) -> Result<Vec<EventRecord>, StoreError>;

    /// Events of one partition after `after`, in order, at most `limit`.
    async fn read(&self, partition: Partition, after: i64, limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        self.read_each(&[EventPosition { partition, seq: after }], limit).await
    }

    /// Records what was published, at most once for each partition. Answers in input order. A batch
    /// continues where the last one of its generation ended. It is recorded only while the lease's owner,
    /// epoch and generation are in force; a lost lease does not affect the other partitions.
    async fn record(&self, publications: &[Publication]) -> Result<Vec<Recorded>, StoreError>;

    /// Stops publishing a partition whose stream differs from the outbox. It takes effect only while the
    /// lease's owner, epoch and generation are in force: a publisher that lost its lease may have compared
    /// with a stream that was rebuilt since.
    async fn mark_diverged(&self, lease: &Lease, seq: i64) -> Result<Recorded, StoreError>;

    /// Raises the floor to the first event that was published within `retain`, but never so far that the stream
    /// need hold fewer than [`queries::MIN_EVENTS_IN_STREAM`] events. Returns the floor in force, or none if the
    /// lease is lost. The floor never falls.
    async fn raise_floor(&self, lease: &Lease, retain: Duration) -> Result<Option<i64>, StoreError>;

    /// Deletes the oldest records of batches of a partition: those that were published before `retain`, and whose
    /// events its stream need no longer hold. Looks at no more than `limit` records. Returns how many it deleted.
    async fn delete_batches(&self, partition: Partition, retain: Duration, limit: u32) -> Result<u64, StoreError>;

    /// Starts a new, empty stream for a partition and clears a divergence. The publisher fills the stream, from the
    /// floor on. Returns the new generation.
    async fn start_generation(&self, partition: Partition) -> Result<i32, StoreError>;

    /// The publishing status of every partition.
    async fn status(&self) -> Result<Vec<PartitionStatus>, StoreError>;
}
