//! Runs the shared statements on PostgreSQL, and locks partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::DerefMut;
use std::sync::LazyLock;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgRow, Postgres};

use super::audit;
use super::database::{BEGIN_READING, PostgresStore};
use super::error::store_error;
use super::rows::{BindColumn, array, bind, bind_keys, insert, update, write_rows};
use crate::domain::event::EventRecord;
use crate::domain::ids::Partition;
use crate::domain::partition_head::PartitionHead;
use crate::domain::time::Timestamp;
use crate::store::columns::Fields;
use crate::store::dialect::{Dialect, Keys, Parameters, rows};
use crate::store::error::{StoreError, with_timeout};
use crate::store::plan_cache::PlanCache;
use crate::store::queries::{AuditFinding, EventPosition};
use crate::store::reads::Database;
use crate::store::statements::{KeyColumn, Statement, Statements, Syntax};
use crate::store::tables::Table;

static STATEMENTS: LazyLock<Statements> = LazyLock::new(Statements::new::<PgConnection>);

/// Each list and look-up with its index. It is empty if a small table is read whole.
pub(super) fn indexes() -> Vec<(&'static str, &'static str)> {
    let own = [(LOCK_HEADS.as_str(), "outbox_partitions_pkey"), (EVENTS_AFTER.as_str(), "event_outbox_pkey")];
    STATEMENTS.all().into_iter().chain(own).collect()
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

pub(super) const PING: &str = "select 1";

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
}

impl Dialect for PgConnection {
    type Row = PgRow;

    fn statements() -> &'static Statements {
        &STATEMENTS
    }

    async fn look_up(&mut self, statement: &'static Statement, keys: &Keys<'_>) -> Result<Vec<PgRow>, StoreError> {
        let statement = bind_keys(sqlx::query(statement.text.as_str()), statement.key, keys);
        statement.fetch_all(self).await.map_err(store_error)
    }

    async fn list(
        &mut self,
        statement: &'static Statement,
        parameters: Parameters<'_>,
    ) -> Result<Vec<PgRow>, StoreError> {
        let statement = parameters.0.into_iter().fold(sqlx::query(statement.text.as_str()), bind);
        statement.fetch_all(self).await.map_err(store_error)
    }

    async fn insert<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_rows(self, insert::<T>(1), rows).await
    }

    async fn update<T: Table + Sync>(&mut self, rows: &[T]) -> Result<(), StoreError> {
        write_rows(self, update::<T>(&array::<T>(1)), rows).await
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
        self.reads.begin_with(BEGIN_READING).await.map_err(store_error)
    }

    fn plan_cache(&self) -> &PlanCache {
        &self.plans
    }

    async fn run_invariants(&self, limit: u32) -> Result<Vec<AuditFinding>, StoreError> {
        with_timeout(audit::TIMEOUT, audit::run(&self.reads, limit)).await
    }

    async fn answer(&self) -> Result<(), StoreError> {
        let mut held = self.writes.take().await?;
        sqlx::query(PING).execute(held.connection()).await.map_err(store_error)?;
        held.give_back();
        Ok(())
    }
}
