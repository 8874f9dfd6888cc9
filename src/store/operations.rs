//! The store as operators see it.

use async_trait::async_trait;
use uuid::Uuid;

use super::columns::Fields;
use super::consumers::{ConsumerCursor, Registered};
use super::error::StoreError;
use super::queries::{Page, PartitionStatus};
use crate::domain::consumers::{Consumer, ConsumerRows, Fact};
use crate::domain::dead_letter::{DeadLetter, FailedEvent, LetterSource, LetterState};
use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::jobs::Job;
use crate::domain::operator_act::OperatorAct;
use crate::domain::time::Timestamp;

/// What operators look at and do. Every change is written together with its record.
#[async_trait]
pub trait Operations: Send + Sync {
    /// All consumers, by name.
    async fn consumer_statuses(&self) -> Result<Vec<ConsumerStatus>, StoreError>;

    /// How far the publishing of every partition is.
    async fn stream_statuses(&self) -> Result<Vec<PartitionStatus>, StoreError>;

    /// The highest version that a build of the consumer has or had.
    async fn newest_build(&self, consumer: Consumer) -> Result<i32, StoreError>;

    /// Changes a consumer. It is a conflict if it is no longer what it was before. A new `building_version` gets its cursors,
    /// at the first event.
    async fn change_consumer(
        &self,
        before: &Registered,
        after: &Registered,
        act: &OperatorAct,
    ) -> Result<(), StoreError>;

    /// What operators did, the newest first. The page begins with this act, or with the one before it.
    async fn operator_acts(&self, start_at: Option<Uuid>, limit: u32) -> Result<Page<OperatorAct>, StoreError>;

    /// Dead letters, the one that failed last first.
    async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<Page<DeadLetter>, StoreError>;

    /// How many letters in that state have one cause, the most first.
    async fn dead_letter_groups(&self, state: LetterState, limit: u32) -> Result<Vec<DeadLetterGroup>, StoreError>;

    /// Those of these letters that exist.
    async fn dead_letters_by_id(&self, ids: &[Uuid]) -> Result<Vec<DeadLetter>, StoreError>;

    /// What a fold needs to try the event again: the event, and the rows that it changes. None if the event is no longer
    /// stored.
    async fn event_trial(&self, failed: &FailedEvent) -> Result<Option<(Fact, ConsumerRows)>, StoreError>;

    /// Gives open letters a new state, and lets the events of their workspaces be taken again from an instant on. It is a
    /// conflict if one of the letters is no longer open.
    async fn change_letters(&self, changes: &[LetterChange], act: &OperatorAct) -> Result<(), StoreError>;

    /// Keeps what an operator does to something that changes by itself too.
    async fn keep_act(&self, act: &OperatorAct) -> Result<(), StoreError>;

    async fn operator_act(&self, audit_id: Uuid) -> Result<Option<OperatorAct>, StoreError>;

    /// How many letters that the act has tried last are in each state.
    async fn replay_progress(&self, replay_id: Uuid) -> Result<Vec<(LetterState, i64)>, StoreError>;
}

/// What becomes of an open letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterChange {
    pub letter: DeadLetter,
    /// From when on it is tried again, or the events behind it are.
    pub replay_at: Timestamp,
    /// The job that tries the letter of a job again.
    pub job: Option<Job>,
}

/// A consumer, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerStatus {
    pub registered: Registered,
    /// Of the build whose figures are read and of the one that is built, by version and partition.
    pub positions: Vec<ConsumerPosition>,
    /// The workspaces that the build in use leaves out.
    pub parked: i64,
}

/// How far a build is in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerPosition {
    pub cursor: ConsumerCursor,
    /// The last event of the partition.
    pub head: i64,
    /// When the first event was recorded that was not taken.
    pub waiting_since: Option<Timestamp>,
    /// Who has leased the partition last.
    pub owner: Option<String>,
    pub leased_until: Timestamp,
}

impl ConsumerPosition {
    pub(super) fn read(mut row: Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            cursor: ConsumerCursor::take(&mut row)?,
            head: row.next()?,
            waiting_since: row.next()?,
            owner: row.next()?,
            leased_until: row.next()?,
        })
    }

    /// How many events were not taken.
    #[must_use]
    pub fn lag(&self) -> i64 {
        self.head.saturating_sub(self.cursor.seq).max(0)
    }

    #[must_use]
    pub fn partition(&self) -> Partition {
        self.cursor.partition
    }
}

/// Which dead letters.
#[derive(Clone, Debug)]
pub struct DeadLetterQuery {
    pub state: LetterState,
    pub filter: LetterFilter,
    /// The page begins with this letter, or with the one before it.
    pub start_at: Option<(Timestamp, Uuid)>,
    pub limit: u32,
}

/// Which dead letters, in any state: those that match all that is given. Letters of builds that are no longer in use belong
/// to none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterFilter {
    pub source: Option<LetterSource>,
    /// The consumer or the queue.
    pub name: Option<String>,
    pub fingerprint: Option<String>,
    pub workspace_id: Option<WorkspaceId>,
}

/// Dead letters with one cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterGroup {
    pub fingerprint: String,
    pub source: LetterSource,
    /// The consumer or the queue.
    pub name: String,
    /// The type of the events, or the kind of the jobs.
    pub kind: String,
    pub error_class: String,
    /// One of their errors.
    pub error: String,
    pub count: i64,
    pub first_failed_at: Timestamp,
    pub last_failed_at: Timestamp,
}

impl DeadLetterGroup {
    pub(super) fn read(mut row: Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            fingerprint: row.next()?,
            source: row.next()?,
            name: row.next()?,
            kind: row.next()?,
            error_class: row.next()?,
            error: row.next()?,
            count: row.next()?,
            first_failed_at: row.next()?,
            last_failed_at: row.next()?,
        })
    }
}
