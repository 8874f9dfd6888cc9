//! One write transaction: load, then all rows of a batch in a fixed number of statements, then commit.
//!
//! All that nearly every command writes goes in one statement, and with that in one visit to the connection's thread,
//! each of which costs as much as writing a command: a row of the view `write_batch`, whose trigger writes the
//! tables. Rows that only some commands have go before it, each table in one statement that is sent when there are
//! such rows.
//!
//! A head or a workspace with another version than the one that was decided on is a conflict.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::connection::Transaction;
use super::error::store_error;
use super::rows::{insert, insert_rows, json, json_of, update, update_rows};
use crate::domain::change_set::{ChangeSet, SubscriptionPeriod};
use crate::domain::command_record::CommandRecord;
use crate::domain::counter::UsageCounter;
use crate::domain::event::EventRecord;
use crate::domain::grant::Grant;
use crate::domain::ledger::LedgerEntry;
use crate::domain::partition_head::PartitionHead;
use crate::domain::snapshot::{KeySet, Snapshot};
use crate::domain::subscription::Subscription;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::{FeatureOverride, Workspace, WorkspaceCredits};
use crate::store::WriteTx;
use crate::store::error::{StoreError, in_time};
use crate::store::load::load;
use crate::store::plan_cache::PlanCache;
use crate::store::plan_rows::{PlanFeatureRow, PlanVersionRow};
use crate::store::tables::Table;

pub(super) fn statements() -> Vec<String> {
    vec![
        insert::<PlanVersionRow>("?1"),
        insert::<PlanFeatureRow>("?1"),
        insert::<Workspace>("?1"),
        insert::<FeatureOverride>("?1"),
        insert::<WorkspaceCredits>("?1"),
        insert::<Subscription>("?1"),
        update::<Subscription>("?1"),
        insert::<SubscriptionPeriod>("?1"),
        insert::<UsageCounter>("?1"),
        insert::<Grant>("?1"),
        WRITE_BATCH.to_owned(),
    ]
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
        in_time(load(self.tx.connection(), &self.plans, keys)).await
    }

    async fn commit(self: Box<Self>, changes: &ChangeSet) -> Result<(), StoreError> {
        let mut tx = self.tx;
        in_time(async move {
            write(tx.connection(), changes).await?;
            tx.commit().await
        })
        .await
    }
}

/// All rows of a batch, in a transaction.
pub(super) async fn write(connection: &mut SqliteConnection, changes: &ChangeSet) -> Result<(), StoreError> {
    // In the order of the foreign keys.
    insert_rows(connection, &changes.workspaces).await?;
    insert_rows(connection, &changes.feature_overrides).await?;
    insert_rows(connection, &changes.credits.inserted).await?;
    insert_rows(connection, &changes.subscriptions.inserted).await?;
    update_rows(connection, &changes.subscriptions.updated).await?;
    insert_rows(connection, &changes.periods).await?;
    insert_rows(connection, &changes.counters.inserted).await?;
    insert_rows(connection, &changes.grants.inserted).await?;
    write_batch(connection, changes).await
}

const WRITE_BATCH: &str = "insert into write_batch values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";

/// What [`WRITE_BATCH`] needs on a connection: the rows of a batch as one row of a view, and a trigger that writes them
/// where they belong.
pub(super) static PREPARE_CONNECTION: LazyLock<[String; 2]> = LazyLock::new(|| {
    let view = "
create temp view if not exists write_batch as
select null as heads, null as credits, null as counters, null as grants, null as commands, null as entries,
    null as usage_logs, null as events, 0 as head_count, 0 as credits_count, 0 as counter_count, 0 as grant_count";
    let must_be = |count: &str, reason: &str| format!("select raise(abort, '{reason}') where changes() <> new.{count}");
    let credits_place = WorkspaceCredits::columns().len();
    let steps = [
        format!("{} and outbox_partitions.version = (value ->> 3) - 1", update::<PartitionHead>("new.heads")),
        must_be("head_count", "conflict: a partition has another version than the one that was decided on"),
        format!(
            "{} and workspace_credits.version = value ->> {credits_place}",
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
