//! Running the shared statements: each database binds parameters and returns rows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::cleaning_statements::CleaningStatements;
use super::columns::{Fields, Kind, ReadValue, Stored, Value};
use super::consumer_statements::ConsumerStatements;
use super::error::StoreError;
use super::invariants::Invariant;
use super::job_statements::JobStatements;
use super::queries::EventPosition;
use super::statements::{Statement, Statements, Syntax};
use super::tables::Table;
use crate::domain::cloud_event::EventRecord;
use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::partition_head::PartitionHead;
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageId;

/// A list of keys. Each has its values in order of the columns.
#[derive(Debug)]
pub(super) struct Keys<'k>(pub(super) Vec<Vec<Value<'k>>>);

impl<'k> Keys<'k> {
    pub(super) fn of<T: Stored + 'k>(keys: impl IntoIterator<Item = &'k T>) -> Self {
        Self(keys.into_iter().map(|key| vec![key.to_value()]).collect())
    }

    pub(super) fn pairs<A: Stored + 'k, B: Stored + 'k>(keys: impl IntoIterator<Item = &'k (A, B)>) -> Self {
        Self(keys.into_iter().map(|(one, other)| vec![one.to_value(), other.to_value()]).collect())
    }

    pub(super) fn triples<A: Stored + 'k, B: Stored + 'k, C: Stored + 'k>(
        keys: impl IntoIterator<Item = &'k (A, B, C)>,
    ) -> Self {
        Self(keys.into_iter().map(|(one, two, three)| vec![one.to_value(), two.to_value(), three.to_value()]).collect())
    }

    pub(super) fn usages(keys: impl IntoIterator<Item = &'k (WorkspaceId, UsageId)>) -> Self {
        let values = |(workspace_id, usage_id): &'k (WorkspaceId, UsageId)| {
            vec![workspace_id.to_value(), usage_id.recorded_at.to_value(), usage_id.seq.to_value()]
        };
        Self(keys.into_iter().map(values).collect())
    }
}

/// The parameters of a list, in order.
#[derive(Debug, Default)]
pub(super) struct Parameters<'v>(pub(super) Vec<(Kind, Value<'v>)>);

impl<'v> Parameters<'v> {
    pub(super) fn of<T: Stored>(value: &'v T) -> Self {
        Self::default().and(value)
    }

    pub(super) fn and<T: Stored>(mut self, value: &'v T) -> Self {
        self.0.push((T::KIND, value.to_value()));
        self
    }
}

/// A connection to a database.
pub(super) trait Dialect: Syntax + Send + Sized {
    type Row: ReadValue + Send;

    fn statements() -> &'static Statements;

    fn consumer_statements() -> &'static ConsumerStatements;

    fn job_statements() -> &'static JobStatements;

    fn cleaning_statements() -> &'static CleaningStatements;

    fn invariants() -> &'static [Invariant];

    /// Runs a statement for keys, if there are any.
    fn look_up(
        &mut self,
        statement: &'static Statement,
        keys: &Keys<'_>,
    ) -> impl Future<Output = Result<Vec<Self::Row>, StoreError>> + Send;

    fn list(
        &mut self,
        statement: &'static str,
        parameters: Parameters<'_>,
    ) -> impl Future<Output = Result<Vec<Self::Row>, StoreError>> + Send;

    /// Lets the statements of a transaction read whole tables, and take this long.
    fn begin_audit(&mut self, timeout: Duration) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Inserts rows, if there are any.
    fn insert<T: Table + Sync>(&mut self, rows: &[T]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Updates rows by their keys, if there are any. Each must exist.
    fn update<T: Table + Sync>(&mut self, rows: &[T]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Inserts rows, or replaces what is stored.
    fn put<T: Table + Sync>(&mut self, rows: &[T]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Inserts the rows whose keys are not stored yet, if there are any. The others are left as they are.
    fn insert_missing<T: Table + Sync>(&mut self, rows: &[T]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Inserts rows, or adds their figures to what is stored.
    fn add<T: Table + Sync>(&mut self, rows: &[T]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Locks and reads the heads of the partitions. Also returns the database's time, if it has a clock of its own.
    fn lock_heads(
        &mut self,
        partitions: &BTreeSet<Partition>,
    ) -> impl Future<Output = Result<(BTreeMap<Partition, PartitionHead>, Option<Timestamp>), StoreError>> + Send;

    /// The database's time, if it has a clock of its own.
    fn database_now(&mut self) -> impl Future<Output = Result<Option<Timestamp>, StoreError>> + Send;

    /// The events of each partition after the given number, at most `limit` of each.
    fn events_after(
        &mut self,
        after: &[EventPosition],
        limit: u32,
    ) -> impl Future<Output = Result<Vec<EventRecord>, StoreError>> + Send;
}

/// The rows of a table that belong to keys. The statement selects its columns in order.
pub(super) async fn rows_by_key<D: Dialect, T: Table>(
    connection: &mut D,
    statement: &'static Statement,
    keys: Keys<'_>,
) -> Result<Vec<T>, StoreError> {
    rows(&connection.look_up(statement, &keys).await?)
}

/// Reads rows of a table. The statement selected its columns in order.
pub(super) fn rows<R: ReadValue, T: Table>(found: &[R]) -> Result<Vec<T>, StoreError> {
    found.iter().map(|row| T::take(&mut Fields::of(row))).collect()
}

/// Reads each row with the function.
pub(super) fn each<R: ReadValue, T>(
    found: &[R],
    read: impl Fn(Fields<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    found.iter().map(|row| read(Fields::of(row))).collect()
}
