//! What a database does for the statements that both share: it takes parameters in and gives rows out.

use std::collections::{BTreeMap, BTreeSet};

use super::columns::{Fields, Kind, ReadValue, Stored, Value};
use super::error::StoreError;
use super::queries::EventPosition;
use super::statements::{Statement, Statements, Syntax};
use super::tables::Table;
use crate::domain::event::EventRecord;
use crate::domain::ids::Partition;
use crate::domain::partition_head::PartitionHead;
use crate::domain::time::Timestamp;

/// A list of keys: for each its values, in the order of the columns.
#[derive(Debug)]
pub(super) struct Keys<'k>(pub(super) Vec<Vec<Value<'k>>>);

impl<'k> Keys<'k> {
    pub(super) fn of<T: Stored + 'k>(keys: impl IntoIterator<Item = &'k T>) -> Self {
        Self(keys.into_iter().map(|key| vec![key.to_value()]).collect())
    }

    pub(super) fn pairs<A: Stored + 'k, B: Stored + 'k>(keys: impl IntoIterator<Item = &'k (A, B)>) -> Self {
        Self(keys.into_iter().map(|(one, other)| vec![one.to_value(), other.to_value()]).collect())
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

    fn look_up(
        &mut self,
        statement: &'static Statement,
        keys: &Keys<'_>,
    ) -> impl Future<Output = Result<Vec<Self::Row>, StoreError>> + Send;

    fn list(
        &mut self,
        statement: &'static Statement,
        parameters: Parameters<'_>,
    ) -> impl Future<Output = Result<Vec<Self::Row>, StoreError>> + Send;

    /// Inserts rows, if there are any.
    fn insert<T: Table + Sync>(&mut self, rows: &[T]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The heads of the partitions, locked where there may be more than one writer; and the database's clock, where it
    /// is not this machine's.
    fn lock_heads(
        &mut self,
        partitions: &BTreeSet<Partition>,
    ) -> impl Future<Output = Result<(BTreeMap<Partition, PartitionHead>, Option<Timestamp>), StoreError>> + Send;

    /// Of each partition the events after that number, at most so many.
    fn events_after(
        &mut self,
        after: &[EventPosition],
        limit: u32,
    ) -> impl Future<Output = Result<Vec<EventRecord>, StoreError>> + Send;
}

/// Reads rows of a table, whose columns were selected in their order.
pub(super) fn rows<R: ReadValue, T: Table>(found: &[R]) -> Result<Vec<T>, StoreError> {
    found.iter().map(|row| T::take(&mut Fields::of(row))).collect()
}

/// Reads of each row what the function says.
pub(super) fn each<R: ReadValue, T>(
    found: &[R],
    read: impl Fn(Fields<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    found.iter().map(|row| read(Fields::of(row))).collect()
}
