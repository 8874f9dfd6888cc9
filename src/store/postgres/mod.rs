//! The store on PostgreSQL: for production, with any number of replicas.
//!
//! Invariants: every write transaction locks its partitions first, in ascending order, so writers of
//! one partition are serial and there are no deadlocks. `synchronous_commit` is on. Every wait has a
//! timeout, on the server (statement, lock and idle timeouts) and here (the pools and
//! `ANSWER_TIMEOUT`, for a server that does not answer). Commands have a pool of their own, so slow
//! reads do not delay them.
//!
//! Deliberately absent: LISTEN/NOTIFY (the publisher is woken within its process and polls otherwise),
//! advisory locks (the partition's row is the lock), and single-row statements on the write path.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::PgPoolOptions;

use self::database::{CLOSE_TIMEOUT, MIGRATE_TIMEOUT, MIGRATOR};
pub use self::database::{MAX_STATEMENT_TIMEOUT, PostgresConfig, PostgresStore};
use self::error::{of_migration, store_error};
use self::write::PostgresTx;
use crate::domain::change_set::ChangeSet;
use crate::domain::cloud_event::EventSource;
use crate::domain::ids::WorkspaceId;
use crate::domain::partition_head::PartitionHead;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::time::Timestamp;
use crate::store::dialect::Dialect;
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
impl Store for PostgresStore {
    async fn begin(&self) -> Result<Box<dyn WriteTx>, StoreError> {
        let tx = with_answer_timeout(self.writes.begin()).await?;
        Ok(Box::new(PostgresTx::new(tx, Arc::clone(&self.plans))))
    }

    async fn states(&self, ids: &[WorkspaceId]) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
        with_answer_timeout(async {
            let mut held = self.writes.take().await?;
            let states = states(held.connection(), &self.plans, ids).await?;
            held.give_back();
            Ok(states)
        })
        .await
    }

    async fn stale_workspaces(&self, known: &[(WorkspaceId, i64)]) -> Result<Vec<WorkspaceId>, StoreError> {
        with_answer_timeout(async {
            let mut held = self.writes.take().await?;
            let stale = stale_workspaces(held.connection(), known).await?;
            held.give_back();
            Ok(stale)
        })
        .await
    }

    async fn write(&self, changes: &ChangeSet) -> Result<Vec<PartitionHead>, StoreError> {
        if !has_only_deduction_rows(changes) {
            return with_answer_timeout(async {
                let mut tx = self.writes.begin().await?;
                // The heads are locked first, as everywhere, so that there are no deadlocks.
                let partitions = changes.heads.iter().map(|head| head.partition).collect();
                tx.connection().lock_heads(&partitions).await?;
                let heads = write::write(tx.connection(), changes).await?;
                tx.commit().await?;
                Ok(heads)
            })
            .await;
        }
        with_answer_timeout(async {
            let mut held = self.writes.take().await?;
            let written = write::write_batch(held.connection(), changes).await;
            // After an answer of the server the statement has ended; after any other error it may be running.
            if matches!(written, Ok(_) | Err(StoreError::Conflict(_))) {
                held.give_back();
            }
            written
        })
        .await
    }

    async fn put_plans(&self, plans: &[PlanVersion], now: Timestamp) -> Result<(), StoreError> {
        with_answer_timeout(async {
            let mut tx = self.writes.begin().await?;
            put_plans(tx.connection(), plans, now).await?;
            tx.commit().await
        })
        .await
    }

    async fn event_source(&self, wanted: &EventSource) -> Result<EventSource, StoreError> {
        with_answer_timeout(async {
            let mut tx = self.writes.begin().await?;
            let source = event_source(tx.connection(), wanted).await?;
            tx.commit().await?;
            Ok(source)
        })
        .await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        if with_answer_timeout(self.is_migrated()).await? {
            // A user that may not create tables can run the server.
            return Ok(());
        }
        let ms = MIGRATE_TIMEOUT.as_millis().to_string();
        let options = self.writes.options().clone().options([("statement_timeout", &ms), ("lock_timeout", &ms)]);
        let work = async {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .acquire_timeout(self.writes.wait())
                .connect_with(options)
                .await
                .map_err(store_error)?;
            let migrated = MIGRATOR.run(&pool).await.map_err(of_migration);
            pool.close().await;
            migrated
        };
        with_timeout(MIGRATE_TIMEOUT, work).await
    }

    async fn close(&self) {
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.reads.close()).await;
        self.writes.close();
        self.background.close();
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
    let fixed = [database::STATEMENTS, connection::STATEMENTS, consumers::STATEMENTS, outbox::STATEMENTS];
    let fixed = fixed.into_iter().flatten().copied();
    let invariants = dialect::INVARIANTS.iter().map(|(_, statement)| statement.as_str());
    let looked_up = dialect::indexes().into_iter().map(|(statement, _)| statement);
    let texts =
        fixed.chain(invariants).chain(looked_up).chain([dialect::PING, dialect::DATABASE_NOW, dialect::AUDIT_SETTINGS]);
    texts.map(str::to_owned).chain(write::statements())
}
