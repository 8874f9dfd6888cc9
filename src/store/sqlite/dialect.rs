//! Runs the shared statements on SQLite.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::DerefMut;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{Sqlite, SqliteConnection, SqliteRow};

use super::connection::limit as limit_time;
use super::database::{BEGIN_READING, SqliteStore};
use super::error::store_error;
use super::rows::{add, bind, element, insert, json_of, keys_json, put, update, write_missing_rows, write_rows};
use crate::domain::cloud_event::EventRecord;
use crate::domain::ids::Partition;
use crate::domain::partition_head::PartitionHead;
use crate::domain::time::Timestamp;
use crate::store::cleaning_statements::CleaningStatements;
use crate::store::consumer_statements::ConsumerStatements;
use crate::store::dialect::{Dialect, Keys, Parameters, rows};
use crate::store::error::StoreError;
use crate::store::invariants::{Invariant, invariants};
use crate::store::job_statements::JobStatements;
use crate::store::kpi_statements::KPI_STATEMENTS;
use crate::store::plan_cache::PlanCache;
use crate::store::queries::EventPosition;
use crate::store::reads::Database;
use crate::store::statements::{KeyColumn, Lock, Statement, Statements, Syntax};
use crate::store::tables::{Column, Table, list};

static STATEMENTS: LazyLock<Statements> = LazyLock::new(Statements::new::<SqliteConnection>);

static OF_CONSUMERS: LazyLock<ConsumerStatements> = LazyLock::new(ConsumerStatements::new::<SqliteConnection>);
static OF_JOBS: LazyLock<JobStatements> = LazyLock::new(JobStatements::new::<SqliteConnection>);
static OF_CLEANING: LazyLock<CleaningStatements> = LazyLock::new(CleaningStatements::new);
pub(super) static INVARIANTS: LazyLock<Vec<Invariant>> = LazyLock::new(invariants::<SqliteConnection>);

/// Each list and look-up with its index. It is empty if a small table is read whole.
pub(super) fn indexes() -> Vec<(&'static str, &'static str)> {
    let own = [(HEADS.as_str(), "outbox_partitions_pkey"), (EVENTS_OF_PARTITION.as_str(), "event_outbox_pkey")];
    let shared = STATEMENTS.all().into_iter().chain(OF_CONSUMERS.all()).chain(OF_CLEANING.all());
    shared.chain(KPI_STATEMENTS.all()).chain(OF_JOBS.all()).chain(own).collect()
}

static HEADS: LazyLock<String> = LazyLock::new(|| {
    let columns = PartitionHead::select("p");
    format!("select {columns} from jsonb_each($1) k cross join outbox_partitions p on p.partition_id = k.value ->> 0")
});

static EVENTS_OF_PARTITION: LazyLock<String> = LazyLock::new(|| {
    let columns = EventRecord::select("o");
    format!("select {columns} from event_outbox o where o.partition_id = $1 and o.seq > $2 order by o.seq limit $3")
});

pub(super) const PING: &str = "select 1";

impl Syntax for SqliteConnection {
    fn key_list(key: &[KeyColumn]) -> String {
        let columns: Vec<_> = key.iter().map(|(name, kind)| Column { name, kind: *kind }).collect();
        let values = list(&columns, |place, column| format!("{} as {}", element(place, column), column.name));
        format!("(select {values} from jsonb_each($1)) k")
    }

    fn indexed_by(index: &str) -> String {
        format!("indexed by {index}")
    }

    fn start_of_day(column: &str) -> String {
        format!("({column} / 86400000000 * 86400000000)")
    }

    /// Nothing: a write transaction holds the write lock since it began.
    fn lock(_: Lock) -> &'static str {
        ""
    }
}

impl Dialect for SqliteConnection {
    type Row = SqliteRow;

    fn statements() -> &'static Statements {
        &STATEMENTS
    }

    fn consumer_statements() -> &'static ConsumerStatements {
        &OF_CONSUMERS
    }

    fn job_statements() -> &'static JobStatements {
        &OF_JOBS
    }

    fn cleaning_statements() -> &'static CleaningStatements {
        &OF_CLEANING
    }

    fn invariants() -> &'static [Invariant] {
        &INVARIANTS
    }

    async fn look_up(&mut self, statement: &'static Statement, keys: &Keys<'_>) -> Result<Vec<SqliteRow>, StoreError> {
        if keys.0.is_empty() {
            return Ok(Vec::new());
        }
        let statement = sqlx::query(statement.text.as_str()).bind(keys_json(statement.key, keys));
        statement.fetch_all(self).await.map_err(store_error)
    }

    async fn list(
        &mut self,
        statement: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        let statement = parameters.0.into_iter().fold(sqlx::query(statement), bind);
        statement.fetch_all(self).await.map_err(store_error)
    }

    async fn begin_audit(&mut self, timeout: Duration) -> Result<(), StoreError> {
        limit_time(self, timeout).await.map_err(store_error)
    }

    async fn insert<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_rows(self, insert::<T>("?1"), rows).await
    }

    async fn update<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_rows(self, update::<T>("?1"), rows).await
    }

    async fn put<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_rows(self, put::<T>("?1"), rows).await
    }

    async fn insert_missing<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_missing_rows(self, rows).await
    }

    async fn add<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_rows(self, add::<T>("?1"), rows).await
    }

    /// Locks nothing: a write transaction holds the write lock since it began. SQLite has the clock of this machine.
    async fn lock_heads(
        &mut self,
        partitions: &BTreeSet<Partition>,
    ) -> Result<(BTreeMap<Partition, PartitionHead>, Option<Timestamp>), StoreError> {
        let keys = json_of(partitions, |row, partition| {
            row.add(partition);
        });
        let found = sqlx::query(HEADS.as_str()).bind(keys).fetch_all(self).await.map_err(store_error)?;
        if found.len() != partitions.len() {
            return Err(StoreError::Corrupt("a row of outbox_partitions is missing".into()));
        }
        let heads = rows(&found)?.into_iter().map(|head: PartitionHead| (head.partition, head)).collect();
        Ok((heads, None))
    }

    /// SQLite has the clock of this machine.
    async fn database_now(&mut self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// One statement per partition, because none is a round trip to a server.
    async fn events_after(&mut self, after: &[EventPosition], limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        let mut events = Vec::new();
        let after: BTreeMap<_, _> = after.iter().map(|position| (position.partition, position.seq)).collect();
        for (partition, seq) in after {
            let statement = sqlx::query(EVENTS_OF_PARTITION.as_str()).bind(partition.stored()).bind(seq);
            let found = statement.bind(i64::from(limit)).fetch_all(&mut *self).await.map_err(store_error)?;
            events.extend(rows(&found)?);
        }
        Ok(events)
    }
}

impl Database for SqliteStore {
    type Connection = SqliteConnection;
    type Guard = PoolConnection<Sqlite>;

    async fn reader(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        self.readers.acquire().await.map_err(store_error)
    }

    async fn view(&self) -> Result<impl DerefMut<Target = SqliteConnection> + Send, StoreError> {
        self.readers.begin_with(BEGIN_READING).await.map_err(store_error)
    }

    fn plan_cache(&self) -> &PlanCache {
        &self.plans
    }

    async fn answer(&self) -> Result<(), StoreError> {
        sqlx::query(PING).execute(&self.probe).await.map_err(store_error)?;
        Ok(())
    }
}
