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
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqlitePool;

use self::connection::Writer;
use self::write::SqliteTx;
use crate::domain::change_set::ChangeSet;
use crate::domain::ids::WorkspaceId;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::{PartitionHead, WorkspaceState};
use crate::domain::workspace::WorkspaceCredits;
use crate::store::plan_cache::PlanCache;
use crate::store::{Store, StoreError, WriteTx, within};

mod audit;
mod connection;
mod error;
mod json;
mod load;
mod outbox;
mod plans;
mod rare;
mod reads;
mod rows;
mod write;

/// How long one operation of the store, of a handful of statements, may take before it is given up:
/// longer than the waits for connections and locks, which tell the reason.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long migrating may take.
const MIGRATE_TIMEOUT: Duration = Duration::from_hours(1);
/// How long closing waits for connections that are in use.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections for reading: pages are small and come from memory, so few serve many requests.
const DEFAULT_READERS: u32 = 4;

/// Where the file is, and how many connections read from it.
#[derive(Clone, Debug)]
pub struct SqliteConfig {
    /// Created when it is missing, with its folder.
    pub path: PathBuf,
    pub readers: u32,
}

impl SqliteConfig {
    /// The defaults for a file.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), readers: DEFAULT_READERS }
    }
}

/// The store in a SQLite file. Cheap to clone.
#[derive(Clone)]
pub struct SqliteStore {
    writer: Arc<Writer>,
    readers: SqlitePool,
    plans: Arc<PlanCache>,
    /// The lock of the one server; none where a command works beside it.
    claim: Option<Arc<File>>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file, or creates an empty one, which [`Store::migrate`] fills.
    pub async fn open(config: &SqliteConfig) -> Result<Self, StoreError> {
        let writer = in_time(Writer::open(&config.path)).await?;
        let readers = connection::readers(&config.path, config.readers);
        Ok(Self { writer: Arc::new(writer), readers, plans: Arc::default(), claim: None })
    }

    /// The same for a server, of which there is one at a time: another one gets
    /// [`StoreError::Unavailable`] until this store is closed or its process has ended.
    pub async fn open_to_serve(config: &SqliteConfig) -> Result<Self, StoreError> {
        let claim = connection::claim(&config.path)?;
        Ok(Self { claim: Some(Arc::new(claim)), ..Self::open(config).await? })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn begin(&self) -> Result<Box<dyn WriteTx>, StoreError> {
        let tx = in_time(self.writer.begin()).await?;
        Ok(Box::new(SqliteTx::new(tx, Arc::clone(&self.plans))))
    }

    async fn states(&self, ids: &[WorkspaceId]) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        // On the writing connection: every commit makes the others forget the pages that they have read.
        in_time(async {
            let mut held = self.writer.acquire().await?;
            let states = load::workspaces(held.connection(), &self.plans, &ids).await?;
            held.put_back();
            Ok(states)
        })
        .await
    }

    async fn credits_since(&self, known: &[(WorkspaceId, i64)]) -> Result<Vec<WorkspaceCredits>, StoreError> {
        in_time(async {
            let mut held = self.writer.acquire().await?;
            let credits = load::credits_since(held.connection(), known).await?;
            held.put_back();
            Ok(credits)
        })
        .await
    }

    async fn write(&self, changes: &ChangeSet) -> Result<Vec<PartitionHead>, StoreError> {
        in_time(async {
            if changes.is_usual() {
                let mut held = self.writer.acquire().await?;
                held.make_ready().await?;
                let written = write::write_at_once(held.connection(), changes).await;
                // An answer of the database ends the statement, and with it the transaction.
                if !matches!(written, Err(StoreError::Unavailable(_))) {
                    held.put_back();
                }
                match written {
                    Ok(()) => return Ok(changes.heads.clone()),
                    // That is no conflict of what was decided: the slow way gives other numbers.
                    Err(StoreError::Conflict(reason)) if reason.contains(write::HEAD_MOVED) => {}
                    Err(error) => return Err(error),
                }
            }
            let mut tx = self.writer.begin().await?;
            let heads = write::write(tx.connection(), changes).await?;
            tx.commit().await?;
            Ok(heads)
        })
        .await
    }

    async fn put_plans(&self, plans: &[PlanVersion]) -> Result<(), StoreError> {
        in_time(plans::put(&self.writer, plans)).await
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

/// Every statement of this store, for the test that prepares them all.
#[doc(hidden)]
pub fn statements() -> impl Iterator<Item = &'static str> {
    [
        connection::STATEMENTS,
        load::STATEMENTS,
        write::STATEMENTS,
        rare::STATEMENTS,
        plans::STATEMENTS,
        reads::STATEMENTS,
        outbox::STATEMENTS,
        audit::STATEMENTS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Waits for an operation, but not for ever.
async fn in_time<T>(work: impl Future<Output = Result<T, StoreError>> + Send) -> Result<T, StoreError> {
    within(ANSWER_TIMEOUT, work).await
}

#[cfg(test)]
mod tests;
