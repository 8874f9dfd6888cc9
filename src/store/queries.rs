//! Parameters and results of the reads, besides the rows of the domain.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::columns::Fields;
use super::error::StoreError;
use crate::domain::credits::Credits;
use crate::domain::grant::Grant;
use crate::domain::hold::{HeldShare, Hold};
use crate::domain::ids::{Partition, SubscriptionId, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageLog;

/// The key of a row in a workspace's history. All rows of a command share `recorded_at`; `seq` orders them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HistoryPosition {
    pub recorded_at: Timestamp,
    pub seq: i64,
}

impl HistoryPosition {
    /// Grants are listed in the order in which they were issued.
    #[must_use]
    pub const fn of_grant(grant: &Grant) -> Self {
        Self { recorded_at: grant.created_at, seq: grant.issued_seq }
    }

    /// No two holds of a workspace were placed at the same instant.
    #[must_use]
    pub const fn of_hold(hold: &Hold) -> Self {
        Self { recorded_at: hold.created_at, seq: 1 }
    }
}

/// The order of a page of history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The oldest first.
    Ascending,
    /// The newest first.
    #[default]
    Descending,
}

/// A page of a workspace's usage logs or ledger entries.
#[derive(Clone, Debug)]
pub struct HistoryQuery {
    pub workspace_id: WorkspaceId,
    /// `recorded_at` at or after.
    pub from: Option<Timestamp>,
    /// `recorded_at` before.
    pub to: Option<Timestamp>,
    pub order: Order,
    /// The page starts with this row, or with the next one if it does not exist.
    pub start_at: Option<HistoryPosition>,
    pub limit: u32,
}

impl HistoryQuery {
    /// The newest page of a workspace.
    #[must_use]
    pub fn newest(workspace_id: WorkspaceId, limit: u32) -> Self {
        Self { workspace_id, from: None, to: None, order: Order::default(), start_at: None, limit }
    }

    /// The lower and upper bound of its rows, both exclusive. Numbers start at 1, so a `seq` of 0 is before all rows
    /// of its instant.
    pub(super) fn bounds(&self) -> (HistoryPosition, HistoryPosition) {
        let before_all_of = |recorded_at| HistoryPosition { recorded_at, seq: 0 };
        let from = before_all_of(self.from.unwrap_or(Timestamp::MIN));
        let to = self.to.map_or(HistoryPosition { recorded_at: Timestamp::MAX, seq: i64::MAX }, before_all_of);
        match (self.order, self.start_at) {
            (_, None) => (from, to),
            (Order::Ascending, Some(row)) => (from.max(HistoryPosition { seq: row.seq.saturating_sub(1), ..row }), to),
            (Order::Descending, Some(row)) => (from, to.min(HistoryPosition { seq: row.seq.saturating_add(1), ..row })),
        }
    }
}

/// A page of a workspace's history, in the order of the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// At most `limit` rows.
    pub rows: Vec<T>,
    /// Whether more rows follow.
    pub has_more: bool,
}

impl<T> Page<T> {
    /// Makes a page of up to `limit + 1` rows; the last one only shows that more follow.
    pub(super) fn of(mut rows: Vec<T>, limit: u32) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        Self { rows, has_more }
    }

    /// Puts a row before the others. The page keeps its limit.
    pub(super) fn insert_first(&mut self, row: Option<T>, limit: u32) {
        let Some(row) = row else { return };
        self.rows.insert(0, row);
        let Self { rows, has_more } = Self::of(std::mem::take(&mut self.rows), limit);
        *self = Self { rows, has_more: has_more || self.has_more };
    }
}

/// A usage log, and what was given back of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedUsage {
    pub log: UsageLog,
    pub refunded: Credits,
}

/// A purchase: the grant that was bought, that of its bonus, and what was reversed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purchase {
    pub grant: Grant,
    pub bonus: Option<Grant>,
    pub reversed: Credits,
    /// Of the amount paid.
    pub reversed_minor: i64,
}

/// Which grants a list has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantFilter {
    All,
    /// Those with held credits, or with remaining ones that have not expired by then.
    Open(Timestamp),
    /// The others.
    Closed(Timestamp),
}

/// A hold, open or over, with what it reserves of grants, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedHold {
    pub hold: Hold,
    /// In burn order.
    pub shares: Vec<HeldShare>,
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

/// The position of an event in its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventPosition {
    pub partition: Partition,
    pub seq: i64,
}

impl EventPosition {
    pub(super) fn read(mut row: Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self { partition: row.next()?, seq: row.next()? })
    }
}

/// A workspace that needs a command of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueWorkspace {
    pub workspace_id: WorkspaceId,
    pub work: DueWork,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DueWork {
    /// The period has ended. It names the boundary, so the command needs no read of the workspace.
    Boundary { subscription_id: SubscriptionId, period_end: Timestamp },
    /// A hold was not captured in time.
    HoldExpiry,
    /// A grant that belongs to no period has expired and still has credits.
    Expiry,
    /// A grant will expire soon, and nobody was told.
    ExpiryWarning,
}

/// A partition that a publisher may write to until another one raises the epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub partition: Partition,
    pub owner: String,
    pub epoch: i64,
    /// The stream's generation, from 1.
    pub generation: i32,
    /// The last event recorded as published in this generation; before the first, the one before the floor.
    pub published_seq: i64,
    /// The first event that the stream must still hold, from 1. Events before it may have been trimmed.
    pub floor_seq: i64,
    /// The number of the first event at which the stream differs from the outbox. Publishing is stopped.
    pub diverged_seq: Option<i64>,
}

impl Lease {
    pub(super) fn read(mut row: Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            partition: row.next()?,
            owner: row.next()?,
            epoch: row.next()?,
            generation: row.next()?,
            diverged_seq: row.next()?,
            floor_seq: row.next()?,
            published_seq: row.next()?,
        })
    }
}

/// How far a partition is published: its stream holds all events up to and with `seq_to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    pub lease: Lease,
    pub seq_to: i64,
}

/// How many of the newest events a stream always holds, however old they are: a consumer of a quiet partition that
/// was away for some days need not catch up over HTTP.
pub const MIN_EVENTS_IN_STREAM: i64 = 1_000;
/// How many batches one raise of the floor looks at. The publisher records 600 a minute at most, so a floor that is
/// far behind catches up, and no raise reads the batches of a whole day.
pub(super) const BATCHES_PER_RAISE: u32 = 10_000;

/// A duration as the statements of the outbox take it.
pub(super) fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The result of recording a publication or a divergence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is recorded now, or was before.
    Done,
    /// Another publisher has the partition.
    LeaseLost,
}

impl Recorded {
    /// The result of each publication, given the partitions whose leases were in force.
    pub(super) fn of_each(publications: &[Publication], held: &BTreeSet<Partition>) -> Vec<Self> {
        let is_held = |publication: &Publication| held.contains(&publication.lease.partition);
        publications.iter().map(|of| if is_held(of) { Self::Done } else { Self::LeaseLost }).collect()
    }
}

/// The publishing status of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionStatus {
    pub partition: Partition,
    pub generation: i32,
    /// The last event in the outbox.
    pub seq: i64,
    /// The last event recorded as published in this generation.
    pub published_seq: i64,
    /// The first event that the stream must still hold.
    pub floor_seq: i64,
    pub diverged_seq: Option<i64>,
    pub owner: Option<String>,
    pub epoch: i64,
    /// Until when the owner has the lease. None if no lease is in force.
    pub leased_until: Option<Timestamp>,
    /// When the oldest unpublished event was recorded.
    pub oldest_waiting_at: Option<Timestamp>,
}

impl PartitionStatus {
    pub(super) fn read(mut row: Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            partition: row.next()?,
            generation: row.next()?,
            seq: row.next()?,
            published_seq: row.next()?,
            floor_seq: row.next()?,
            diverged_seq: row.next()?,
            owner: row.next()?,
            epoch: row.next()?,
            leased_until: row.next()?,
            oldest_waiting_at: row.next()?,
        })
    }
}

/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFinding {
    /// The name of the check, as `docs/INVARIANTS.md` lists it.
    pub invariant: &'static str,
    pub workspace_id: Option<WorkspaceId>,
    /// The event or the grant concerned.
    pub row_id: Option<Uuid>,
    pub detail: String,
}

impl AuditFinding {
    /// From a row of an invariant's statement.
    pub(super) fn read(invariant: &'static str, mut row: Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self { invariant, workspace_id: row.next()?, row_id: row.next()?, detail: row.next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_a_page_are_the_narrowest_that_are_asked_for() {
        let at = |micros, seq| HistoryPosition { recorded_at: Timestamp::from_micros(micros), seq };
        let whole = HistoryQuery::newest(WorkspaceId(uuid::Uuid::from_u128(1)), 2);
        let (first, last) = (at(i64::MIN, 0), at(i64::MAX, i64::MAX));
        assert_eq!(whole.bounds(), (first, last));
        let (from, to) = (Some(Timestamp::from_micros(10)), Some(Timestamp::from_micros(20)));
        let range = HistoryQuery { from, to, ..whole.clone() };
        assert_eq!(range.bounds(), (at(10, 0), at(20, 0)));
        // The row itself is within the bounds.
        for (row, ascending, descending) in [
            (at(15, 3), (at(15, 2), at(20, 0)), (at(10, 0), at(15, 4))),
            (at(5, 3), (at(10, 0), at(20, 0)), (at(10, 0), at(5, 4))),
            (at(25, 3), (at(25, 2), at(20, 0)), (at(10, 0), at(20, 0))),
        ] {
            for (order, bounds) in [(Order::Ascending, ascending), (Order::Descending, descending)] {
                assert_eq!(HistoryQuery { order, start_at: Some(row), ..range.clone() }.bounds(), bounds);
            }
        }
    }

    #[test]
    fn a_page_is_cut_at_its_limit_and_knows_whether_there_is_more() {
        assert_eq!(Page::of(vec![1, 2, 3], 2), Page { rows: vec![1, 2], has_more: true });
        assert_eq!(Page::of(vec![1, 2], 2), Page { rows: vec![1, 2], has_more: false });
    }
}
