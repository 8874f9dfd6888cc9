//! What the reads take and give, beyond the domain's own rows.

use std::collections::BTreeSet;

use super::StoreError;
use crate::domain::event::EventRecord;
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
/// found over several pages.
pub const PAGE_WALK: i64 = 2_000;

/// Some of a workspace's history, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// At most as many as were asked for; fewer, or none, when few of those looked at match.
    pub rows: Vec<T>,
    /// Where to look further: rows with a smaller `seq`. None when all of the range was looked at.
    pub next_before_seq: Option<i64>,
}

/// A step of the walk from row to row: how many rows were walked over with it, the number of its row, and the row
/// if it is one that was looked for.
pub(super) struct Step<T> {
    pub(super) walked: i64,
    pub(super) seq: i64,
    pub(super) found: Option<T>,
}

impl<T> Page<T> {
    /// From the steps that found something, up to one more than the limit, and the last one.
    pub(super) fn of(
        query: &HistoryQuery,
        steps: impl Iterator<Item = Result<Step<T>, StoreError>>,
    ) -> Result<Self, StoreError> {
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let (mut rows, mut last_found, mut end) = (Vec::new(), None, None);
        for step in steps {
            let Step { walked, seq, found } = step?;
            end = Some((walked, seq));
            if let Some(row) = found {
                if rows.len() == limit {
                    return Ok(Self { rows, next_before_seq: last_found });
                }
                rows.push(row);
                last_found = Some(seq);
            }
        }
        let next_before_seq = match end {
            None | Some((_, ..=1)) => None,
            Some((PAGE_WALK, seq)) => Some(seq),
            Some((_, seq)) if query.from.is_none() => return Err(is_broken(query.workspace_id, seq)),
            Some(_) => None,
        };
        Ok(Self { rows, next_before_seq })
    }
}

/// Events of a workspace after that number, which have no gap.
pub(super) fn without_gap(after: i64, events: Vec<EventRecord>) -> Result<Vec<EventRecord>, StoreError> {
    match events.first() {
        Some(first) if first.workspace_seq != after.saturating_add(1) => {
            Err(is_broken(first.workspace_id, first.workspace_seq))
        }
        _ => Ok(events),
    }
}

fn is_broken(workspace_id: WorkspaceId, seq: i64) -> StoreError {
    StoreError::Corrupt(format!("the history of workspace {} is broken before {seq}", workspace_id.0))
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
        let whole = HistoryQuery {
            workspace_id: WorkspaceId(uuid::Uuid::from_u128(1)),
            before_seq: None,
            feature_code: None,
            from: None,
            to: None,
            limit: 2,
        };
        let later = HistoryQuery { from: Some(Timestamp::from_micros(1)), ..whole.clone() };
        let page = |rows: &[i64], query: &HistoryQuery, walked, seq| {
            let mut steps: Vec<_> =
                rows.iter().map(|row| Step { walked: walked - 1, seq: *row, found: Some(*row) }).collect();
            match steps.last_mut() {
                Some(last) if last.seq == seq => last.walked = walked,
                _ if walked == 0 => {}
                _ => steps.push(Step { walked, seq, found: None }),
            }
            let page = Page::of(query, steps.into_iter().map(Ok));
            page.map(|page| (page.rows, page.next_before_seq)).map_err(|error| error.to_string())
        };
        for query in [&whole, &later] {
            assert_eq!(page(&[9, 8, 7], query, 3, 7), Ok((vec![9, 8], Some(8))));
            assert_eq!(page(&[2, 1], query, 2, 1), Ok((vec![2, 1], None)));
            assert_eq!(page(&[9, 8, 7], query, PAGE_WALK, 7), Ok((vec![9, 8], Some(8))));
            assert_eq!(page(&[9], query, PAGE_WALK, 4), Ok((vec![9], Some(4))));
            assert_eq!(page(&[], query, PAGE_WALK, 4), Ok((vec![], Some(4))));
            assert_eq!(page(&[], query, PAGE_WALK, 1), Ok((vec![], None)), "there is nothing before the first row");
            assert_eq!(page(&[], query, 0, 0), Ok((vec![], None)));
        }
        assert_eq!(page(&[9, 8], &later, 2, 8), Ok((vec![9, 8], None)), "what is before is earlier");
        assert!(page(&[9, 8], &whole, 2, 8).is_err_and(|error| error.contains("broken before 8")));
    }
}
