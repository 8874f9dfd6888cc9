//! The store in a SQLite file: embedded, the default, nothing to install.
//!
//! Invariants: one connection writes, in transactions that take the write lock before they read, so
//! all writers are serial. The log is synced before a commit is answered (`synchronous = FULL`), so
//! committed rows survive a power cut. Readers have their own read-only connections; readers and the
//! writer do not wait for each other.
//!
//! Only one server at a time serves a file ([`SqliteStore::open_to_serve`]). An operator's commands can
//! run beside it; then one writer waits for the other's lock, up to a timeout.
//!
//! Deliberately absent: locks of partitions (SQLite's write lock covers all), and single-row statements
//! on the write path.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;

use self::database::{CLOSE_TIMEOUT, MIGRATE_TIMEOUT};
pub use self::database::{SqliteConfig, SqliteStore};
use self::write::SqliteTx;
use crate::domain::change_set::ChangeSet;
use crate::domain::cloud_event::EventSource;
use crate::domain::ids::WorkspaceId;
use crate::domain::partition_head::PartitionHead;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::time::Timestamp;
use crate::store::error::{StoreError, with_answer_timeout, with_timeout};
use crate::store::load::{event_source, put_plans, stale_workspaces, states};
use crate::store::write::has_only_deduction_rows;
use crate::store::{Store, WriteTx};

mod connection;
mod consumers;
mod database;
mod dialect;
mod error;
mod outbox;
mod rows;
mod write;

#[async_trait]
impl Store for SqliteStore {
    async fn begin(&self) -> Result<Box<dyn WriteTx>, StoreError> {
        let tx = with_answer_timeout(self.writer.begin()).await?;
        Ok(Box::new(SqliteTx::new(tx, Arc::clone(&self.plans))))
    }

    async fn states(&self, ids: &[WorkspaceId]) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
        // On the writing connection: every commit invalidates the page caches of the others.
        with_answer_timeout(async {
            let mut held = self.writer.acquire().await?;
            let states = states(held.connection(), &self.plans, ids).await?;
            held.give_back();
            Ok(states)
        })
        .await
    }

    async fn stale_workspaces(&self, known: &[(WorkspaceId, i64)]) -> Result<Vec<WorkspaceId>, StoreError> {
        with_answer_timeout(async {
            let mut held = self.writer.acquire().await?;
            let stale = stale_workspaces(held.connection(), known).await?;
            held.give_back();
            Ok(stale)
        })
        .await
    }

    async fn write(&self, changes: &ChangeSet) -> Result<Vec<PartitionHead>, StoreError> {
        with_answer_timeout(async {
            if has_only_deduction_rows(changes) {
                let mut held = self.writer.acquire().await?;
                let written = write::write_batch(held.connection(), changes).await;
                // An answer of the database ends the statement, and with it the transaction.
                if !matches!(written, Err(StoreError::Unavailable(_))) {
                    held.give_back();
                }
                written?;
            } else {
                let mut tx = self.writer.begin().await?;
                write::write(tx.connection(), changes).await?;
                tx.commit().await?;
            }
            // One writer at a time: whoever else wrote to these partitions made this a conflict.
            Ok(changes.heads.clone())
        })
        .await
    }

    async fn put_plans(&self, plans: &[PlanVersion], now: Timestamp) -> Result<(), StoreError> {
        with_answer_timeout(async {
            let mut tx = self.writer.begin().await?;
            put_plans(tx.connection(), plans, now).await?;
            tx.commit().await
        })
        .await
    }

    async fn event_source(&self, wanted: &EventSource) -> Result<EventSource, StoreError> {
        with_answer_timeout(async {
            let mut tx = self.writer.begin().await?;
            let source = event_source(tx.connection(), wanted).await?;
            tx.commit().await?;
            Ok(source)
        })
        .await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        with_timeout(MIGRATE_TIMEOUT, self.writer.migrate()).await
    }

    async fn close(&self) {
        // Readers first: the last connection to close copies the log into the file.
        for pool in [&self.probe, &self.readers] {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, pool.close()).await;
        }
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.writer.close()).await;
        if let Some(Err(error)) = self.claim.as_ref().map(|claim| claim.unlock()) {
            tracing::warn!(%error, "giving back the database's lock");
        }
    }
}

/// Each list and look-up with its index, by the name in PostgreSQL, for the test that asserts its use. It is
/// empty if a small table is read whole.
#[doc(hidden)]
#[must_use]
pub fn indexes() -> Vec<(&'static str, &'static str)> {
    dialect::indexes()
}

/// Every statement of this store, for the test that prepares them.
#[doc(hidden)]
pub fn statements() -> impl Iterator<Item = String> {
    let fixed = [connection::STATEMENTS, consumers::STATEMENTS, outbox::STATEMENTS].into_iter().flatten().copied();
    let invariants = dialect::INVARIANTS.iter().map(|(_, statement)| statement.as_str());
    let looked_up = dialect::indexes().into_iter().map(|(statement, _)| statement);
    let texts = fixed.chain(invariants).chain(looked_up).chain([dialect::PING]);
    texts.map(str::to_owned).chain(write::statements())
}

#[cfg(test)]
mod tests;
