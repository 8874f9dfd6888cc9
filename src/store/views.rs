//! What the reads take and give, beyond the domain's own rows.

use std::collections::BTreeSet;

use crate::domain::ids::{EventId, Partition, SubscriptionId, WorkspaceId};
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;

/// A page of a workspace's usage logs or ledger entries, newest first.
#[derive(Clone, Debug)]
pub struct HistoryQuery {
    pub workspace_id: WorkspaceId,
    /// Only rows with a smaller `seq`; none for the newest page.
    pub before_seq: Option<i64>,
    /// Only usage of that feature; of the ledger, the entries into its `consumed` account.
    pub feature_code: Option<FeatureCode>,
    /// `recorded_at` at or after.
    pub from: Option<Timestamp>,
    /// `recorded_at` before.
    pub to: Option<Timestamp>,
    pub limit: u32,
}

/// How many rows of a workspace's history one page looks through. A feature that is rare in a long history is
/// found over several pages, each of which takes a few milliseconds.
pub const PAGE_WALK: i64 = 2_000;

/// Some of a workspace's history, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// At most as many as were asked for; fewer, or none, when few of those looked at match.
    pub rows: Vec<T>,
    /// Where to look further: rows with a smaller `seq`. None when all of the range was looked at.
    pub next_before_seq: Option<i64>,
}

impl<T> Page<T> {
    /// From the rows that match among those that were looked at: up to one more than the limit, and none is left
    /// unless the look ended at the row with the number `looked_to`.
    pub(super) fn of(mut rows: Vec<T>, limit: u32, looked_to: Option<i64>, seq: impl Fn(&T) -> i64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let next_before_seq = if rows.len() > limit {
            rows.truncate(limit);
            rows.last().map(seq)
        } else {
            looked_to.filter(|seq| *seq > 1)
        };
        Self { rows, next_before_seq }
    }
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

/// How far a partition is published: its stream holds all events up to and with `seq_to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    pub lease: Lease,
    pub seq_to: i64,
}

/// What came of noting a publication or a divergence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is noted now, or was already.
    Done,
    /// Another publisher has the partition.
    LeaseLost,
}

impl Recorded {
    /// The answer for each publication, from the partitions whose leases were in force.
    pub(super) fn of_each(publications: &[Publication], held: &BTreeSet<Partition>) -> Vec<Self> {
        let is_held = |publication: &Publication| held.contains(&publication.lease.partition);
        publications.iter().map(|of| if is_held(of) { Self::Done } else { Self::LeaseLost }).collect()
    }
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
    /// The invariant's name: one word per rule of `docs/INVARIANTS.md`.
    pub invariant: &'static str,
    pub workspace_id: Option<WorkspaceId>,
    pub event_id: Option<EventId>,
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_goes_on_behind_its_last_row_or_behind_what_it_looked_at() {
        let page = |rows: &[i64], looked_to| Page::of(rows.to_vec(), 2, looked_to, |seq| *seq);
        assert_eq!(page(&[9, 8, 7], None), Page { rows: vec![9, 8], next_before_seq: Some(8) });
        assert_eq!(page(&[2, 1], None), Page { rows: vec![2, 1], next_before_seq: None });
        assert_eq!(page(&[9, 8, 7], Some(4)), Page { rows: vec![9, 8], next_before_seq: Some(8) });
        assert_eq!(page(&[], Some(4)), Page { rows: vec![], next_before_seq: Some(4) });
        assert_eq!(page(&[1], Some(1)), Page { rows: vec![1], next_before_seq: None });
    }
}
