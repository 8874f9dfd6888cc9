//! The settings, connections and timeouts of a SQLite file.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqlitePool;

use super::connection::{self, Writer};
use super::write::PREPARE_CONNECTION;
use crate::store::error::{StoreError, with_answer_timeout};
use crate::store::plan_cache::PlanCache;

/// Begins a transaction whose statements all see the same snapshot.
pub(super) const BEGIN_READING: &str = "begin deferred";
/// How long migrating may take.
pub(super) const MIGRATE_TIMEOUT: Duration = Duration::from_hours(1);
/// How long closing waits for connections that are in use.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections for reading. Pages are small and cached, so a few serve many requests.
const DEFAULT_READERS: u32 = 4;

/// The path of the file, and the number of connections that read from it.
#[derive(Clone, Debug)]
pub struct SqliteConfig {
    /// The file and its folder are created if they are missing.
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
    pub(super) writer: Arc<Writer>,
    pub(super) readers: SqlitePool,
    /// One more reader, which only asks whether the file answers: it does not wait behind reads.
    pub(super) probe: SqlitePool,
    pub(super) plans: Arc<PlanCache>,
    /// The lock of a server. An operator's command has none.
    pub(super) claim: Option<Arc<File>>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file, or creates an empty one for [`migrate`](crate::store::Store::migrate).
    pub async fn open(config: &SqliteConfig) -> Result<Self, StoreError> {
        let writer = with_answer_timeout(Writer::open(&config.path, &*PREPARE_CONNECTION)).await?;
        let readers = connection::readers(&config.path, config.readers);
        let probe = connection::readers(&config.path, 1);
        Ok(Self { writer: Arc::new(writer), readers, probe, plans: Arc::default(), claim: None })
    }

    /// Opens the file for a server. Another server gets [`StoreError::Unavailable`] until this store is
    /// closed or its process has ended.
    pub async fn open_to_serve(config: &SqliteConfig) -> Result<Self, StoreError> {
        let claim = connection::claim(&config.path)?;
        Ok(Self { claim: Some(Arc::new(claim)), ..Self::open(config).await? })
    }
}
