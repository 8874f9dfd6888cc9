//! What the reads take and give, beyond the domain's own rows.

use crate::domain::ids::{EventId, Partition, SubscriptionId, WorkspaceId};
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;

/// A page of usage logs, newest first.
#[derive(Clone, Debug)]
pub struct UsageQuery {
    pub workspace_id: WorkspaceId,
    /// Only logs with a smaller `seq`; none for the newest page.
    pub before_seq: Option<i64>,
    pub feature_code: Option<FeatureCode>,
    /// `recorded_at` at or after.
    pub from: Option<Timestamp>,
    /// `recorded_at` before.
    pub to: Option<Timestamp>,
    pub limit: u32,
}

/// A page of ledger entries, newest first. A feature selects the entries into its `consumed`
/// account.
#[derive(Clone, Debug)]
pub struct LedgerQuery {
    pub workspace_id: WorkspaceId,
    /// Only entries with a smaller `seq`; none for the newest page.
    pub before_seq: Option<i64>,
    pub feature_code: Option<FeatureCode>,
    /// `recorded_at` at or after.
    pub from: Option<Timestamp>,
    /// `recorded_at` before.
    pub to: Option<Timestamp>,
    pub limit: u32,
}

/// A page of events, oldest first.
#[derive(Clone, Debug)]
pub enum EventQuery {
    /// Of one workspace, after that `workspace_seq`.
    OfWorkspace { workspace_id: WorkspaceId, after: i64, limit: u32 },
    /// Of all workspaces: after the given number of each partition, at most `limit` per partition,
    /// ordered by partition and `seq`.
    OfAll { after: Vec<EventPosition>, limit: u32 },
}

/// A place in a partition's sequence of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventPosition {
    pub partition: Partition,
    pub seq: i64,
}

/// A workspace for which the scheduler has something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueWorkspace {
    pub workspace_id: WorkspaceId,
    pub work: DueWork,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DueWork {
    /// The period is over. It names the boundary, so that the command can be made without reading
    /// the workspace.
    Boundary { subscription_id: SubscriptionId, period_end: Timestamp },
    /// A grant that belongs to no period has expired and still has credits.
    Expiry,
}

/// A partition that a publisher may write to, for as long as nobody raised its epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub partition: Partition,
    pub owner: String,
    pub epoch: i64,
    /// The stream's generation, from 1.
    pub generation: i32,
    /// The last event recorded as published in this generation; 0 before the first.
    pub published_seq: i64,
    /// Where the stream was found to say something else; publishing is stopped.
    pub diverged_seq: Option<i64>,
}

/// What came of noting a batch or a divergence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is noted now, or was already.
    Done,
    /// Another publisher has the partition.
    LeaseLost,
}

/// Where a partition stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionStatus {
    pub partition: Partition,
    pub generation: i32,
    /// The last event in the outbox.
    pub seq: i64,
    /// The last event recorded as published in this generation.
    pub published_seq: i64,
    pub diverged_seq: Option<i64>,
    pub owner: Option<String>,
    pub epoch: i64,
    /// Whether the lease is in force.
    pub is_leased: bool,
    /// When the oldest event that waits was written.
    pub oldest_waiting_at: Option<Timestamp>,
}

/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFinding {
    /// The invariant's name: one word per rule of `docs/invariants.md`.
    pub invariant: &'static str,
    pub workspace_id: Option<WorkspaceId>,
    pub event_id: Option<EventId>,
    pub detail: String,
}
