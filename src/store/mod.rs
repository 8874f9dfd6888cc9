//! The store: where decisions become durable, and where everything that is read comes from.
//!
//! A store never sees a command: only the keys to load and the rows to write. There are two, each
//! with handwritten SQL in files of the same names: [`sqlite`], embedded and the default, and
//! [`postgres`]. One conformance suite (`tests/conformance`) holds them to one behaviour.
//!
//! *Architecture invariant:* sqlx is known only below `store/postgres` and `store/sqlite`; its
//! errors leave as a [`StoreError`], whose variant says what may be tried again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use self::error::StoreError;
use self::queries::{
    AuditFinding, DueWorkspace, EventPosition, EventQuery, HistoryQuery, Lease, Page, PartitionStatus, Publication,
    Recorded,
};
use crate::domain::change_set::ChangeSet;
use crate::domain::event::EventRecord;
use crate::domain::ids::{EventId, GrantId, Partition, WorkspaceId};
use crate::domain::ledger::LedgerEntry;
use crate::domain::partition_head::PartitionHead;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::{KeySet, Snapshot, WorkspaceState};
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;
use crate::domain::usage::{UsageId, UsageLog};

mod columns;
mod dialect;
mod error;
mod invariants;
mod load;
mod plan_cache;
mod plan_rows;
pub mod postgres;
pub mod queries;
mod reads;
pub mod sqlite;
mod statements;
mod states;
mod tables;

/// How many expired grants a look for due work reads for each workspace that it may return: most
/// workspaces have one or two at a time, and all of a workspace's are booked at once.
const EXPIRIES_PER_WORKSPACE: u32 = 4;

/// The tables that are written in batches, with their columns in order, for the test that compares them with the
/// migrations.
#[doc(hidden)]
#[must_use]
pub fn tables() -> Vec<(&'static str, Vec<&'static str>)> {
    tables::all()
}

/// The write side, for the engine.
#[async_trait]
pub trait Store: Reads + Outbox {
    /// Begins a transaction. Dropping it rolls back.
    async fn begin(&self) -> Result<Box<dyn WriteTx>, StoreError>;

    /// The states of those of the workspaces that exist, read without locks and not in one view: true for
    /// certain only if a write shows that their versions still are the same.
    async fn states(&self, ids: &[WorkspaceId]) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError>;

    /// Those of the workspaces that have another version than the given one, read without locks.
    async fn stale_workspaces(&self, known: &[(WorkspaceId, i64)]) -> Result<Vec<WorkspaceId>, StoreError>;

    /// Writes what was decided without locks: all of it in a transaction of its own, or nothing. When a
    /// workspace has another version than the one that was decided on, or a command's key is taken,
    /// it is a conflict. Returns the partition heads after the write, in input order: the events follow
    /// those that others have written to their partitions meanwhile.
    async fn write(&self, changes: &ChangeSet) -> Result<Vec<PartitionHead>, StoreError>;

    /// Makes these the plans that are offered. Stores new versions; a version that is already stored must be
    /// equal, and an older one than what is stored is kept as history. A plan that is not among them is retired:
    /// the workspaces that have it keep it.
    async fn put_plans(&self, plans: &[PlanVersion], now: Timestamp) -> Result<(), StoreError>;

    /// Applies the migrations that are missing.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Closes all connections.
    async fn close(&self);
}

/// One write transaction.
#[async_trait]
pub trait WriteTx: Send {
    /// Locks the partitions of the keys in ascending order, in a statement of its own, and then
    /// reads: waiting for a lock does not refresh the snapshot of the statement that waits.
    async fn load(&mut self, keys: &KeySet) -> Result<Snapshot, StoreError>;

    /// Writes all rows in a fixed number of statements and commits.
    async fn commit(self: Box<Self>, changes: &ChangeSet) -> Result<(), StoreError>;
}

/// What the API and the scheduler read. Every query names the workspace, but for those of the
/// scheduler, the operator and a token for all workspaces.
#[async_trait]
pub trait Reads: Send + Sync {
    /// The current state of one workspace, read without locks in one consistent view.
    async fn workspace(&self, workspace_id: WorkspaceId) -> Result<Option<WorkspaceState>, StoreError>;

    /// A page of usage logs, perhaps of one feature.
    async fn usage(
        &self,
        query: &HistoryQuery,
        feature_code: Option<&FeatureCode>,
    ) -> Result<Page<UsageLog>, StoreError>;

    /// One usage log.
    async fn usage_log(&self, workspace_id: WorkspaceId, usage_id: UsageId) -> Result<Option<UsageLog>, StoreError>;

    /// A page of ledger entries, perhaps of one grant.
    async fn ledger(&self, query: &HistoryQuery, grant_id: Option<GrantId>) -> Result<Page<LedgerEntry>, StoreError>;

    /// Events in order: of one workspace by `workspace_seq`, of all by partition and `seq`.
    async fn events(&self, query: &EventQuery) -> Result<Vec<EventRecord>, StoreError>;

    /// One event, if it is of that workspace (or whichever, with none named).
    async fn event(
        &self,
        event_id: EventId,
        workspace_id: Option<WorkspaceId>,
    ) -> Result<Option<EventRecord>, StoreError>;

    /// The newest version of every plan that is offered, by code.
    async fn plans(&self) -> Result<Vec<Arc<PlanVersion>>, StoreError>;

    /// Workspaces with a period that is over, the longest due first.
    async fn due_boundaries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError>;

    /// Workspaces with expired grants that are not booked, the longest due first: those among the
    /// first [`EXPIRIES_PER_WORKSPACE`] times `limit` grants, so one workspace with many of them
    /// makes the list shorter and not the look longer.
    async fn due_expiries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError>;

    /// Checks the invariants; every row is a violation. At most `limit` per invariant.
    async fn audit(&self, limit: u32) -> Result<Vec<AuditFinding>, StoreError>;

    /// Answers when the database does, on a connection that commands use.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// The outbox as the publisher sees it. All times are the database's.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// Takes every partition whose lease is free, expired or already this owner's, and extends it
    /// by `ttl`. Taking over from another owner (or from nobody) raises the epoch.
    async fn lease(&self, owner: &str, ttl: Duration) -> Result<Vec<Lease>, StoreError>;

    /// Gives all leases of this owner back.
    async fn release(&self, owner: &str) -> Result<(), StoreError>;

    /// The last event's number of every partition, in order of partitions.
    async fn heads(&self) -> Result<Vec<EventPosition>, StoreError>;

    /// Events of several partitions, of each those after that number, in order and at most `limit`.
    async fn read_each(&self, after: &[EventPosition], limit: u32) -> Result<Vec<EventRecord>, StoreError>;

    /// Events of one partition after `after`, in order, at most `limit`.
    async fn read(&self, partition: Partition, after: i64, limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        self.read_each(&[EventPosition { partition, seq: after }], limit).await
    }

    /// Notes what is in the streams, at most once for each partition; answers in the same order. A
    /// batch continues where the last one of its generation ended, and is noted only while the lease's
    /// owner, epoch and generation are still in force: one lost lease does not hold up the others.
    async fn record(&self, publications: &[Publication]) -> Result<Vec<Recorded>, StoreError>;

    /// Stops the publishing of a partition whose stream says something else than the outbox, while
    /// the lease's owner, epoch and generation are still in force: a publisher that lost its lease
    /// compares with what was since rebuilt.
    async fn mark_diverged(&self, lease: &Lease, seq: i64) -> Result<Recorded, StoreError>;

    /// Begins a new, empty stream for a partition and lifts a divergence; the publisher fills it.
    /// Returns its generation.
    async fn start_generation(&self, partition: Partition) -> Result<i32, StoreError>;

    /// Where every partition stands.
    async fn status(&self) -> Result<Vec<PartitionStatus>, StoreError>;
}
