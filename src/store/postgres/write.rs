//! A write transaction: load under locks, then write all rows of a batch.
//!
//! [`WRITE_BATCH`] writes all tables that a deduction changes, in one statement. Rows that only some commands have
//! (new workspaces, grants, subscriptions, periods) are written before it, with one statement per table that has any.
//!
//! Every update must find its row: a missing row is corruption, and a workspace with another version than the decision
//! was based on is a conflict. The statement itself raises the error, so it needs no transaction around it. It counts
//! the updated heads first, so it locks them first. The batch's events are numbered behind those that other replicas
//! have written to the partition. An event of a partition without a head would get no number, which its column
//! refuses.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::connection::Transaction;
use super::error::store_error;
use super::rows::{BindColumn, BindRows, array, insert, insert_missing, put, update};
use crate::domain::change_set::ChangeSet;
use crate::domain::cloud_event::EventRecord;
use crate::domain::command_record::CommandRecord;
use crate::domain::counter::UsageCounter;
use crate::domain::grant::Grant;
use crate::domain::ledger::LedgerEntry;
use crate::domain::partition_head::PartitionHead;
use crate::domain::snapshot::{KeySet, Snapshot};
use crate::domain::usage::UsageLog;
use crate::domain::workspace::WorkspaceCredits;
use crate::store::WriteTx;
use crate::store::error::{StoreError, with_answer_timeout};
use crate::store::load::load;
use crate::store::plan_cache::PlanCache;
use crate::store::tables::{self, Table, Visitor, list};
use crate::store::write::write_other_rows;

/// The inserts and updates of each table, and the statement of a usual batch.
pub(super) fn statements() -> Vec<String> {
    struct OfEach(Vec<String>);
    impl Visitor for OfEach {
        fn visit<T: Table>(&mut self) {
            // Only [`WRITE_BATCH`] writes heads, without a type of their rows.
            if T::NAME != PartitionHead::NAME {
                self.0.extend([insert::<T>(1), update::<T>(&array::<T>(1)), put::<T>(1), insert_missing::<T>(1)]);
            }
        }
    }
    let mut statements = OfEach(vec![WRITE_BATCH.clone()]);
    tables::visit_all(&mut statements);
    statements.0
}

/// A transaction that locks its partitions.
pub(super) struct PostgresTx {
    tx: Transaction,
    plans: Arc<PlanCache>,
}

impl PostgresTx {
    pub(super) const fn new(tx: Transaction, plans: Arc<PlanCache>) -> Self {
        Self { tx, plans }
    }
}

#[async_trait]
impl WriteTx for PostgresTx {
    async fn load(&mut self, keys: &KeySet) -> Result<Snapshot, StoreError> {
        with_answer_timeout(load(self.tx.connection(), &self.plans, keys)).await
    }

    async fn commit(self: Box<Self>, changes: &ChangeSet) -> Result<(), StoreError> {
        let mut tx = self.tx;
        with_answer_timeout(async move {
            write(tx.connection(), changes).await?;
            tx.commit().await
        })
        .await
    }
}

/// Writes all rows of a batch in a transaction that has locked its partitions. Returns the heads after the write.
pub(super) async fn write(
    connection: &mut PgConnection,
    changes: &ChangeSet,
) -> Result<Vec<PartitionHead>, StoreError> {
    write_other_rows(connection, changes).await?;
    write_batch(connection, changes).await
}

static WRITE_BATCH: LazyLock<String> = LazyLock::new(|| {
    let credits = format!("rows from ({}, unnest($6::bigint[]))", array::<WorkspaceCredits>(5));
    let event_columns = EventRecord::columns();
    let event_values = list(&event_columns, |_, column| {
        if column.name == "seq" { "n.seq + h.ahead".into() } else { format!("n.{}", column.name) }
    });
    format!(
        "
with heads as (
    update outbox_partitions t
    set seq = t.seq + n.events, version = t.version + 1, last_event_id = coalesce(n.last_event_id, t.last_event_id)
    from unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::uuid[]) as n (partition_id, seq, events, last_event_id)
    where t.partition_id = n.partition_id
    returning t.partition_id, t.seq, t.version, t.seq - n.seq as ahead
), credits as (
    {update_credits} and t.version = n.unnest
    returning 1
), counters as (
    {update_counters}
    returning 1
), grants as (
    {update_grants}
    returning 1
), new_commands as (
    {insert_commands}
), new_entries as (
    {insert_entries}
), new_usage_logs as (
    {insert_usage_logs}
), new_events as (
    insert into event_outbox ({event_names}) select {event_values}
    from {events} n left join heads h on h.partition_id = n.partition_id
)
select
    case when (select count(*) from heads) <> cardinality($1)
        then refuse('XX001', 'a row to update is not in outbox_partitions') end,
    case when (select count(*) from credits) <> cardinality($5)
        then refuse('40001', 'a workspace has another version than the one that was decided on') end,
    case when (select count(*) from counters) <> cardinality($7)
        then refuse('XX001', 'a row to update is not in usage_counters') end,
    case when (select count(*) from grants) <> cardinality($8)
        then refuse('XX001', 'a row to update is not in credit_grants') end,
    (select array_agg(h.seq order by h.partition_id) from heads h) as seqs,
    (select array_agg(h.version order by h.partition_id) from heads h) as versions",
        update_credits = update::<WorkspaceCredits>(&credits),
        update_counters = update::<UsageCounter>(&array::<UsageCounter>(7)),
        update_grants = update::<Grant>(&array::<Grant>(8)),
        insert_commands = insert::<CommandRecord>(9),
        insert_entries = insert::<LedgerEntry>(10),
        insert_usage_logs = insert::<UsageLog>(11),
        event_names = list(&event_columns, |_, column| column.name.into()),
        events = array::<EventRecord>(12),
    )
});

/// Writes everything or nothing, inside a transaction or outside. Returns the heads after the write.
pub(super) async fn write_batch(
    connection: &mut PgConnection,
    changes: &ChangeSet,
) -> Result<Vec<PartitionHead>, StoreError> {
    let added = changes.event_counts();
    let heads = || changes.heads.iter();
    let row = sqlx::query(WRITE_BATCH.as_str())
        .column(heads(), |head| head.partition.stored())
        .column(heads(), |head| head.seq)
        .bind(&added)
        .column(heads().zip(&added), |(head, added)| head.last_event_id.filter(|_| *added > 0).map(|id| id.0))
        .rows(&changes.credits.updated)
        .bind(changes.expected_versions())
        .rows(&changes.counters.updated)
        .rows(&changes.grants.updated)
        .rows(&changes.commands)
        .rows(&changes.ledger_entries)
        .rows(&changes.usage_logs)
        .rows(&changes.events)
        .fetch_one(connection)
        .await
        .map_err(store_error)?;
    let get = |column| sqlx::Row::try_get::<Option<Vec<i64>>, _>(&row, column).map_err(store_error);
    let (seqs, versions) = (get("seqs")?.unwrap_or_default(), get("versions")?.unwrap_or_default());
    let after = changes.heads.iter().zip(seqs.into_iter().zip(versions));
    Ok(after.map(|(head, (seq, version))| PartitionHead { seq, version, ..*head }).collect())
}
