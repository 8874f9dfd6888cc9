//! How the file is opened, and the one connection that writes to it.
//!
//! SQLite has one writer at a time, so this store has one writing connection and tasks wait for it
//! in order: no writer ever meets another one's lock within the process. A transaction takes the
//! connection out of its slot and puts it back when it ended well; whatever else happens (an error,
//! a cancelled task, a rollback that SQLite has made on its own because the disk is full), the slot
//! stays empty or is filled after a proven rollback, and the next transaction opens a new connection.
//!
//! Deliberately absent: sqlx's own transactions for writing. They count their depth themselves and
//! would take the connection for one in a transaction after SQLite has rolled back on its own.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use super::error::{of_migration, store_error};
use crate::store::error::{ANSWER_TIMEOUT, StoreError};

pub(super) const STATEMENTS: &[&str] = &[BEGIN, COMMIT, ROLLBACK];

/// How long a transaction waits for the writing connection: many batches' worth.
const WRITER_WAIT: Duration = Duration::from_millis(500);
/// How long a read waits for a free connection.
const READER_WAIT: Duration = Duration::from_millis(500);
/// How long SQLite waits for the lock of another process (`visionscope verify`, a backup). Within
/// this process nobody waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a rollback may take before the connection is given up.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(5);
/// To how much the write-ahead log shrinks after it was checkpointed, in bytes: a burst does not
/// keep the disk.
const LOG_SIZE_LIMIT: i64 = 64 * 1024 * 1024;
/// The log is copied into the file after so many pages (of 4 KiB): a page that many batches change
/// is copied once for all of them.
const CHECKPOINT_PAGES: i64 = 4_000;
/// The page cache of the writer and of each reader, in negative KiB as SQLite wants it. The
/// operating system caches the file too. A larger one gained nothing: where a batch split pages that lie in another
/// order than their keys, its commit looks at every page in the cache.
const PAGE_CACHE: i64 = -8 * 1024;
/// Rows that the connection's thread may be ahead of its reader.
const ROW_BUFFER: usize = 512;

/// Instructions of SQLite's machine between two looks at the clock: a fraction of a millisecond.
const INSTRUCTIONS_PER_LOOK: i32 = 10_000;

const BEGIN: &str = "begin immediate";
const COMMIT: &str = "commit";
const ROLLBACK: &str = "rollback";

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(ROW_BUFFER)
        .pragma("temp_store", "memory")
        .pragma("mmap_size", "0")
        .pragma("cache_size", PAGE_CACHE.to_string())
        // So that REPLACE fires the triggers that protect history.
        .pragma("recursive_triggers", "on")
        .disable_statement_logging()
}

/// The pool of connections that cannot write.
pub(super) fn readers(path: &Path, connections: u32) -> SqlitePool {
    let options = options(path).read_only(true).pragma("query_only", "on");
    SqlitePoolOptions::new()
        .max_connections(connections.max(1))
        .acquire_timeout(READER_WAIT)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        // Dropping a read does not stop the connection's thread: it would go on to its end.
        .after_connect(|connection, _| Box::pin(limit(connection, ANSWER_TIMEOUT)))
        .before_acquire(|connection, _| {
            Box::pin(async move {
                limit(connection, ANSWER_TIMEOUT).await?;
                Ok(true)
            })
        })
        // A read that was cancelled may leave its transaction open, and with it an old view.
        .after_release(|connection, _| Box::pin(std::future::ready(Ok(!connection.is_in_transaction()))))
        .connect_lazy_with(options)
}

/// Interrupts whatever the connection does after this time, whether anybody still waits for it or not.
pub(super) async fn limit(connection: &mut SqliteConnection, time: Duration) -> Result<(), sqlx::Error> {
    let deadline = Instant::now() + time;
    connection.lock_handle().await?.set_progress_handler(INSTRUCTIONS_PER_LOOK, move || Instant::now() < deadline);
    Ok(())
}

type Slot = Arc<Mutex<Option<SqliteConnection>>>;

/// The one connection that writes.
pub(super) struct Writer {
    options: SqliteConnectOptions,
    /// What is run on every new connection.
    prepare: &'static [String],
    slot: Slot,
    is_closed: AtomicBool,
}

impl Writer {
    /// Creates the file, if it is missing, and opens it. The statements are run on every connection to it.
    pub(super) async fn open(path: &Path, prepare: &'static [String]) -> Result<Self, StoreError> {
        create_file(path).map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))?;
        let options = options(path)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("journal_size_limit", LOG_SIZE_LIMIT.to_string())
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string());
        let connection = connect(&options, prepare).await.map_err(|error| naming(path, error))?;
        Ok(Self { options, prepare, slot: Arc::new(Mutex::new(Some(connection))), is_closed: AtomicBool::new(false) })
    }

    /// Waits for the connection and begins a transaction that may write.
    pub(super) async fn begin(&self) -> Result<Transaction, StoreError> {
        let mut transaction = self.acquire().await?;
        sqlx::query(BEGIN).execute(transaction.connection()).await.map_err(store_error)?;
        Ok(transaction)
    }

    /// Applies the migrations, each in its own transaction.
    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        let mut held = self.acquire().await?;
        let migrator = sqlx::migrate!("migrations/sqlite");
        migrator.run_direct(None, held.connection(), false).await.map_err(of_migration)?;
        held.put_back();
        Ok(())
    }

    /// Closes the connection; nothing begins afterwards. Waits for the transaction under way.
    pub(super) async fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        let connection = self.slot.lock().await.take();
        if let Some(connection) = connection
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "closing the database");
        }
    }

    /// Waits for the connection, outside a transaction.
    pub(super) async fn acquire(&self) -> Result<Transaction, StoreError> {
        let mut slot = timeout(WRITER_WAIT, Arc::clone(&self.slot).lock_owned())
            .await
            .map_err(|_| StoreError::Unavailable("the writing connection is busy".into()))?;
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the database is closed".into()));
        }
        let connection = match slot.take() {
            Some(connection) => connection,
            None => connect(&self.options, self.prepare).await?,
        };
        Ok(Transaction(Some(Held { slot, connection })))
    }
}

async fn connect(options: &SqliteConnectOptions, prepare: &'static [String]) -> Result<SqliteConnection, StoreError> {
    let mut connection = options.connect().await.map_err(store_error)?;
    for statement in prepare {
        connection.execute(statement.as_str()).await.map_err(store_error)?;
    }
    Ok(connection)
}

struct Held {
    slot: OwnedMutexGuard<Option<SqliteConnection>>,
    connection: SqliteConnection,
}

/// The writing connection. Dropping it rolls back, or closes it where no transaction had begun.
pub(super) struct Transaction(Option<Held>);

impl Transaction {
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.0.as_mut().expect("it is held until the transaction is consumed").connection
    }

    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        sqlx::query(COMMIT).execute(self.connection()).await.map_err(store_error)?;
        self.put_back();
        Ok(())
    }

    /// Gives the connection back. To be called outside a transaction.
    pub(super) fn put_back(&mut self) {
        if let Some(mut held) = self.0.take() {
            *held.slot = Some(held.connection);
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let (Some(mut held), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else { return };
        // The slot stays locked meanwhile. When the rollback fails, the connection is dropped, which
        // closes it, which rolls back.
        runtime.spawn(async move {
            let rollback = sqlx::query(ROLLBACK).execute(&mut held.connection);
            if let Ok(Ok(_)) = timeout(ROLLBACK_TIMEOUT, rollback).await {
                *held.slot = Some(held.connection);
            }
        });
    }
}

/// SQLite's messages do not say which file they are about.
fn naming(path: &Path, error: StoreError) -> StoreError {
    let name = |text: String| format!("{}: {text}", path.display());
    match error {
        StoreError::Conflict(text) => StoreError::Conflict(name(text)),
        StoreError::Unavailable(text) => StoreError::Unavailable(name(text)),
        StoreError::Corrupt(text) => StoreError::Corrupt(name(text)),
    }
}

/// Creates the folder and the file, readable only by its owner; SQLite gives the log the same mode.
fn create_file(path: &Path) -> std::io::Result<()> {
    create_folder_of(path)?;
    match private_file().create_new(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn create_folder_of(path: &Path) -> std::io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => std::fs::create_dir_all(folder),
        None => Ok(()),
    }
}

/// How a file that only its owner may read is opened for writing.
fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Takes the lock that one server at a time has on a database, until the file that is returned is
/// closed: at the latest when its process ends, however it ends.
///
/// The lock is on a file of its own, because SQLite's locks are lost when any other handle of the
/// database is closed. That file stays: removing it would let two servers lock two files.
pub(super) fn claim(path: &Path) -> Result<File, StoreError> {
    // The same database under another name (a link) has the same lock.
    let mut lock = path.canonicalize().unwrap_or_else(|_| path.to_owned()).into_os_string();
    lock.push(".lock");
    let lock = PathBuf::from(lock);
    let failed = |error: std::io::Error| StoreError::Unavailable(format!("{}: {error}", lock.display()));
    create_folder_of(&lock).map_err(failed)?;
    let file = private_file().create(true).truncate(false).open(&lock).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let text = format!("another server serves {} (it has locked {})", path.display(), lock.display());
            Err(StoreError::Unavailable(text))
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}
