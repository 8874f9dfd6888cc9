//! A write transaction: load, then write all rows of a batch, then commit.
//!
//! Every statement is a visit to the connection's thread, which costs as much as writing a command. So one statement
//! writes all tables that a deduction changes: it inserts a row into the view `write_batch`, whose trigger writes the
//! tables. Rows that only some commands have are written before it, with one statement per table that has any.
//!
//! A head or a workspace with another version than the decision was based on is a conflict.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::connection::Transaction;
use super::error::store_error;
use super::rows::{insert, insert_missing, json, json_of, put, update};
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
use crate::store::tables::{self, Table, Visitor};
use crate::store::write::write_other_rows;

/// The inserts and updates of each table, and the statement of a usual batch.
pub(super) fn statements() -> Vec<String> {
    struct OfEach(Vec<String>);
    impl Visitor for OfEach {
        fn visit<T: Table>(&mut self) {
            self.0.extend([insert::<T>("?1"), update::<T>("?1"), put::<T>("?1"), insert_missing::<T>("?1")]);
        }
    }
    let mut statements = OfEach(vec![WRITE_BATCH.to_owned()]);
    tables::visit_all(&mut statements);
    statements.0
}

/// A transaction on the writing connection.
pub(super) struct SqliteTx {
    tx: Transaction,
    plans: Arc<PlanCache>,
}

impl SqliteTx {
    pub(super) fn new(tx: Transaction, plans: Arc<PlanCache>) -> Self {
        Self { tx, plans }
    }
}

#[async_trait]
impl WriteTx for SqliteTx {
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

/// Writes all rows of a batch in a transaction.
pub(super) async fn write(connection: &mut SqliteConnection, changes: &ChangeSet) -> Result<(), StoreError> {
    write_other_rows(connection, changes).await?;
    write_batch(connection, changes).await
}

const WRITE_BATCH: &str = "insert into write_batch values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";

/// What [`WRITE_BATCH`] needs on a connection: a view whose one row is a batch, and its trigger, which writes the rows
/// to their tables.
pub(super) static PREPARE_CONNECTION: LazyLock<[String; 2]> = LazyLock::new(|| {
    let view = "
create temp view if not exists write_batch as
select null as heads, null as credits, null as counters, null as grants, null as commands, null as entries,
    null as usage_logs, null as events, 0 as head_count, 0 as credits_count, 0 as counter_count, 0 as grant_count";
    let must_be = |count: &str, reason: &str| format!("select raise(abort, '{reason}') where changes() <> new.{count}");
    // Where a version is in the JSON array of a row; a workspace's expected one comes after its columns.
    let head_version = PartitionHead::columns().iter().position(|column| column.name == "version").expect("a column");
    let expected_version = WorkspaceCredits::columns().len();
    let steps = [
        format!(
            "{} and outbox_partitions.version = (value ->> {head_version}) - 1",
            update::<PartitionHead>("new.heads")
        ),
        must_be("head_count", "conflict: a partition has another version than the one that was decided on"),
        format!(
            "{} and workspace_credits.version = value ->> {expected_version}",
            update::<WorkspaceCredits>("new.credits")
        ),
        must_be("credits_count", "conflict: a workspace has another version than the one that was decided on"),
        update::<UsageCounter>("new.counters"),
        must_be("counter_count", "a row to update is not in usage_counters"),
        update::<Grant>("new.grants"),
        must_be("grant_count", "a row to update is not in credit_grants"),
        insert::<CommandRecord>("new.commands"),
        insert::<LedgerEntry>("new.entries"),
        insert::<UsageLog>("new.usage_logs"),
        insert::<EventRecord>("new.events"),
    ];
    let trigger = format!(
        "create temp trigger if not exists write_batch_rows instead of insert on write_batch begin {}; end",
        steps.join(";\n")
    );
    [view.to_owned(), trigger]
});

/// Writes everything or nothing, inside a transaction or outside. The connection must be prepared for it.
pub(super) async fn write_batch(connection: &mut SqliteConnection, changes: &ChangeSet) -> Result<(), StoreError> {
    let ChangeSet { heads, credits, counters, grants, commands, ledger_entries, usage_logs, events, .. } = changes;
    let versions = changes.expected_versions();
    let credits_json = json_of(credits.updated.iter().zip(&versions), |row, (credits, version_before)| {
        credits.put(row);
        row.add(version_before);
    });
    let statement = sqlx::query(WRITE_BATCH)
        .bind(json(heads))
        .bind(credits_json)
        .bind(json(&counters.updated))
        .bind(json(&grants.updated))
        .bind(json(commands))
        .bind(json(ledger_entries))
        .bind(json(usage_logs))
        .bind(json(events))
        .bind(count(heads))
        .bind(count(&credits.updated))
        .bind(count(&counters.updated))
        .bind(count(&grants.updated));
    statement.execute(connection).await.map_err(store_error)?;
    Ok(())
}

fn count<T>(rows: &[T]) -> i64 {
    i64::try_from(rows.len()).unwrap_or(i64::MAX)
}
