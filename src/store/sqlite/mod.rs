//! The store in a SQLite file: embedded, the default, nothing to install.
//!
//! Invariants: one connection writes, in transactions that take the write lock before they read, so
//! all writers are strictly serial. The log is synced before a commit is answered
//! (`synchronous = FULL`): what is committed survives the power. Readers have their own connections,
//! cannot write, and neither wait for the writer nor hold it up.
//!
//! One server at a time serves a file ([`SqliteStore::open_to_serve`]); an operator's commands work
//! beside it, and SQLite's own locks make one writer wait for the other, up to a bound.
//!
//! Deliberately absent: locks of partitions (the write lock is the lock), and statements for single
//! rows on the write path.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;

use self::database::{CLOSE_TIMEOUT, MIGRATE_TIMEOUT};
pub use self::database::{SqliteConfig, SqliteStore};
use self::write::SqliteTx;
use crate::domain::change_set::ChangeSet;
use crate::domain::ids::WorkspaceId;
use crate::domain::partition_head::PartitionHead;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::time::Timestamp;
use crate::store::error::{StoreError, in_time, within};
use crate::store::load::{put_plans, stale_workspaces, states};
use crate::store::{Store, WriteTx, invariants};

mod audit;
mod connection;
mod database;
mod dialect;
mod error;
mod outbox;
mod rows;
mod write;

#[async_trait]
impl Store for SqliteStore {
    async fn begin(&self) -> Result<Box<dyn WriteTx>, StoreError> {
        let tx = in_time(self.writer.begin()).await?;
        Ok(Box::new(SqliteTx::new(tx, Arc::clone(&self.plans))))
    }

    async fn states(&self, ids: &[WorkspaceId]) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
        // On the writing connection: every commit makes the others forget the pages that they have read.
        in_time(async {
            let mut held = self.writer.acquire().await?;
            let states = states(held.connection(), &self.plans, ids).await?;
            held.put_back();
            Ok(states)
        })
        .await
    }

    async fn stale_workspaces(&self, known: &[(WorkspaceId, i64)]) -> Result<Vec<WorkspaceId>, StoreError> {
        in_time(async {
            let mut held = self.writer.acquire().await?;
            let stale = stale_workspaces(held.connection(), known).await?;
            held.put_back();
            Ok(stale)
        })
        .await
    }

    async fn write(&self, changes: &ChangeSet) -> Result<Vec<PartitionHead>, StoreError> {
        in_time(async {
            if changes.only_updates() {
                let mut held = self.writer.acquire().await?;
                let written = write::write_batch(held.connection(), changes).await;
                // An answer of the database ends the statement, and with it the transaction.
                if !matches!(written, Err(StoreError::Unavailable(_))) {
                    held.put_back();
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
        in_time(async {
            let mut tx = self.writer.begin().await?;
            put_plans(tx.connection(), plans, now).await?;
            tx.commit().await
        })
        .await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        within(MIGRATE_TIMEOUT, self.writer.migrate()).await
    }

    async fn close(&self) {
        // Readers first: the last connection to close copies the log into the file.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.readers.close()).await;
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.writer.close()).await;
        if let Some(Err(error)) = self.claim.as_ref().map(|claim| claim.unlock()) {
            tracing::warn!(%error, "giving back the database's lock");
        }
    }
}

/// Each list and look-up with the index that finds its rows, for the test that asserts it. It has the
/// name that PostgreSQL gives it; where a small table is read whole, there is none.
#[doc(hidden)]
#[must_use]
pub fn indexes() -> Vec<(&'static str, &'static str)> {
    dialect::indexes()
}

/// Every statement of this store, for the test that prepares them all.
#[doc(hidden)]
pub fn statements() -> impl Iterator<Item = String> {
    let fixed = [connection::STATEMENTS, outbox::STATEMENTS].into_iter().flatten().copied();
    let invariants = invariants::INVARIANTS.iter().map(|(_, statement)| *statement);
    let looked_up = dialect::indexes().into_iter().map(|(statement, _)| statement);
    let texts = fixed.chain(invariants).chain(looked_up).chain([dialect::PING]);
    texts.map(str::to_owned).chain(write::statements())
}

#[cfg(test)]
mod tests;
