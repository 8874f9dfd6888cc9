//! Runs the shared statements on PostgreSQL, and locks partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::DerefMut;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgRow, Postgres};

use super::database::{BEGIN_READING, PostgresStore};
use super::error::store_error;
use super::rows::{BindColumn, add, array, bind, bind_keys, insert, put, update, write_missing_rows, write_rows};
use crate::domain::cloud_event::EventRecord;
use crate::domain::ids::Partition;
use crate::domain::partition_head::PartitionHead;
use crate::domain::time::Timestamp;
use crate::store::cleaning_statements::CleaningStatements;
use crate::store::columns::Fields;
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
use crate::store::tables::Table;

static STATEMENTS: LazyLock<Statements> = LazyLock::new(Statements::new::<PgConnection>);

static OF_CONSUMERS: LazyLock<ConsumerStatements> = LazyLock::new(ConsumerStatements::new::<PgConnection>);
static OF_JOBS: LazyLock<JobStatements> = LazyLock::new(JobStatements::new::<PgConnection>);
static OF_CLEANING: LazyLock<CleaningStatements> = LazyLock::new(CleaningStatements::new);
pub(super) static INVARIANTS: LazyLock<Vec<Invariant>> = LazyLock::new(invariants::<PgConnection>);

/// Each list and look-up with its index. It is empty if a small table is read whole.
pub(super) fn indexes() -> Vec<(&'static str, &'static str)> {
    let own = [(LOCK_HEADS.as_str(), "outbox_partitions_pkey"), (EVENTS_AFTER.as_str(), "event_outbox_pkey")];
    let shared = STATEMENTS.all().into_iter().chain(OF_CONSUMERS.all()).chain(OF_CLEANING.all());
    shared.chain(KPI_STATEMENTS.all()).chain(OF_JOBS.all()).chain(own).collect()
}

static LOCK_HEADS: LazyLock<String> = LazyLock::new(|| {
    let columns = PartitionHead::select("p");
    format!(
        "select {columns}, clock_timestamp() as database_now from outbox_partitions p
where p.partition_id = any($1::smallint[]) order by p.partition_id for no key update"
    )
});

static EVENTS_AFTER: LazyLock<String> = LazyLock::new(|| {
    let columns = EventRecord::select("e");
    format!(
        "select {columns} from unnest($1::smallint[], $2::bigint[]) as a (partition_id, after)
cross join lateral (
    select * from event_outbox o where o.partition_id = a.partition_id and o.seq > a.after order by o.seq limit $3
) e
order by e.partition_id, e.seq"
    )
});

/// An audit reads whole tables, so it allows every plan except nested loops, and a longer timeout. With a limit, or
/// without statistics, the planner would choose nested loops where a hash join is needed.
pub(super) const AUDIT_SETTINGS: &str = "
select set_config('statement_timeout', $1, true), set_config('plan_cache_mode', 'auto', true),
    set_config('enable_seqscan', 'on', true), set_config('enable_hashjoin', 'on', true),
    set_config('enable_mergejoin', 'on', true), set_config('enable_nestloop', 'off', true),
    set_config('enable_bitmapscan', 'on', true), set_config('max_parallel_workers_per_gather', '2', true)";

pub(super) const PING: &str = "select 1";

pub(super) const DATABASE_NOW: &str = "select clock_timestamp()";

impl Syntax for PgConnection {
    fn key_list(key: &[KeyColumn]) -> String {
        let arrays = key.iter().zip(1..).map(|((_, kind), n)| format!("${n}::{}[]", kind.sql()));
        let names: Vec<_> = key.iter().map(|(name, _)| *name).collect();
        format!("unnest({}) as k ({})", arrays.collect::<Vec<_>>().join(", "), names.join(", "))
    }

    /// Not needed: the settings of the connections allow no scan of a table.
    fn indexed_by(_: &str) -> String {
        String::new()
    }

    fn start_of_day(column: &str) -> String {
        format!("date_trunc('day', {column}, 'UTC')")
    }

    fn lock(lock: Lock) -> &'static str {
        match lock {
            Lock::None => "",
            Lock::Share => "for share of t",
            Lock::Change => "for no key update of t",
            Lock::ChangeFree => "for no key update of t skip locked",
        }
    }
}

impl Dialect for PgConnection {
    type Row = PgRow;

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

    async fn look_up(&mut self, statement: &'static Statement, keys: &Keys<'_>) -> Result<Vec<PgRow>, StoreError> {
        if keys.0.is_empty() {
            return Ok(Vec::new());
        }
        let statement = bind_keys(sqlx::query(statement.text.as_str()), statement.key, keys);
        statement.fetch_all(self).await.map_err(store_error)
    }

    async fn list(&mut self, statement: &'static str, parameters: Parameters<'_>) -> Result<Vec<PgRow>, StoreError> {
        let statement = parameters.0.into_iter().fold(sqlx::query(statement), bind);
        statement.fetch_all(self).await.map_err(store_error)
    }

    async fn begin_audit(&mut self, timeout: Duration) -> Result<(), StoreError> {
        let statement = sqlx::query(AUDIT_SETTINGS).bind(timeout.as_millis().to_string());
        statement.execute(self).await.map_err(store_error)?;
        Ok(())
    }

    async fn insert<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_rows(self, insert::<T>(1), rows).await
    }

    async fn update<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_rows(self, update::<T>(&array::<T>(1)), rows).await
    }

    async fn put<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_rows(self, put::<T>(1), rows).await
    }

    async fn insert_missing<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_missing_rows(self, rows).await
    }

    async fn add<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_rows(self, add::<T>(1), rows).await
    }

    async fn lock_heads(
        &mut self,
        partitions: &BTreeSet<Partition>,
    ) -> Result<(BTreeMap<Partition, PartitionHead>, Option<Timestamp>), StoreError> {
        let numbers: Vec<i16> = partitions.iter().map(|partition| partition.stored()).collect();
        let found = sqlx::query(LOCK_HEADS.as_str()).bind(numbers).fetch_all(self).await.map_err(store_error)?;
        if found.len() != partitions.len() {
            return Err(StoreError::Corrupt("a row of outbox_partitions is missing".into()));
        }
        let (mut heads, mut database_now) = (BTreeMap::new(), None);
        for row in &found {
            let mut fields = Fields::of(row);
            let head = PartitionHead::take(&mut fields)?;
            heads.insert(head.partition, head);
            database_now = database_now.or(Some(fields.next()?));
        }
        Ok((heads, database_now))
    }

    async fn database_now(&mut self) -> Result<Option<Timestamp>, StoreError> {
        let row = sqlx::query(DATABASE_NOW).fetch_one(self).await.map_err(store_error)?;
        Fields::of(&row).next().map(Some)
    }

    async fn events_after(&mut self, after: &[EventPosition], limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        let statement = sqlx::query(EVENTS_AFTER.as_str())
            .column(after, |position| position.partition.stored())
            .column(after, |position| position.seq)
            .bind(i64::from(limit));
        rows(&statement.fetch_all(self).await.map_err(store_error)?)
    }
}

impl Database for PostgresStore {
    type Connection = PgConnection;
    type Guard = PoolConnection<Postgres>;

    async fn reader(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        self.reads.acquire().await.map_err(store_error)
    }

    async fn view(&self) -> Result<impl DerefMut<Target = PgConnection> + Send, StoreError> {
        self.begin_on_reader(BEGIN_READING).await
    }

    fn plan_cache(&self) -> &PlanCache {
        &self.plans
    }

    async fn answer(&self) -> Result<(), StoreError> {
        let mut held = self.writes.take().await?;
        sqlx::query(PING).execute(held.connection()).await.map_err(store_error)?;
        held.give_back();
        Ok(())
    }
}
