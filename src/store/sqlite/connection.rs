//! How the file is opened, and the one connection that writes to it.
//!
//! SQLite has one writer at a time, so this store has one writing connection, and tasks wait for it
//! in order. Within the process no writer waits for a lock of SQLite. A transaction takes the
//! connection out of its slot and returns it after a commit. After anything else (an error, a
//! cancelled task, a rollback by SQLite itself because the disk is full) the slot gets the connection
//! back only after a successful rollback; otherwise the next transaction opens a new connection.
//!
//! Deliberately absent: sqlx's own transactions for writing. They count their depth, which is wrong
//! after SQLite has rolled back by itself.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// How long a transaction waits for the writing connection: the time of many batches.
const WRITER_WAIT: Duration = Duration::from_millis(500);
/// How long a transaction in the background lets others go first, and how often it looks.
const BACKGROUND_WAIT: Duration = Duration::from_millis(50);
const BACKGROUND_PAUSE: Duration = Duration::from_millis(1);
/// How long a read waits for a free connection.
const READER_WAIT: Duration = Duration::from_millis(500);
/// How long SQLite waits for a lock of another process (`visionscope verify`, a backup).
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a rollback may take before the connection is closed.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(5);
/// The size in bytes that the write-ahead log is truncated to after a checkpoint, so that a burst does
/// not occupy the disk for ever.
const LOG_SIZE_LIMIT: i64 = 64 * 1024 * 1024;
/// After how many pages (of 4 KiB) the log is checkpointed. A page that many batches change is then
/// copied once.
const CHECKPOINT_PAGES: i64 = 4_000;
/// The page cache of the writer and of each reader, in negative KiB as SQLite wants it. A larger one
/// gained nothing: the operating system caches the file too, and some commits visit every cached page.
const PAGE_CACHE: i64 = -8 * 1024;
/// How many rows the connection's thread may buffer for the reader.
const ROW_BUFFER: usize = 512;

/// Instructions of SQLite's virtual machine between two checks of the deadline: less than a millisecond.
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
        // REPLACE then fires the triggers that protect history.
        .pragma("recursive_triggers", "on")
        .disable_statement_logging()
}

/// The pool of read-only connections.
pub(super) fn readers(path: &Path, connections: u32) -> SqlitePool {
    let options = options(path).read_only(true).pragma("query_only", "on");
    SqlitePoolOptions::new()
        .max_connections(connections.max(1))
        .acquire_timeout(READER_WAIT)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        // Dropping the future of a read does not stop the connection's thread; the deadline does.
        .after_connect(|connection, _| Box::pin(limit(connection, ANSWER_TIMEOUT)))
        .before_acquire(|connection, _| {
            Box::pin(async move {
                limit(connection, ANSWER_TIMEOUT).await?;
                Ok(true)
            })
        })
        // A cancelled read may leave its transaction open, and with it an old snapshot.
        .after_release(|connection, _| Box::pin(std::future::ready(Ok(!connection.is_in_transaction()))))
        .connect_lazy_with(options)
}

/// Interrupts statements of the connection after this time, even if their futures were dropped.
pub(super) async fn limit(connection: &mut SqliteConnection, time: Duration) -> Result<(), sqlx::Error> {
    let deadline = Instant::now() + time;
    connection.lock_handle().await?.set_progress_handler(INSTRUCTIONS_PER_LOOK, move || Instant::now() < deadline);
    Ok(())
}

type Slot = Arc<Mutex<Option<SqliteConnection>>>;

/// The only connection that writes.
pub(super) struct Writer {
    options: SqliteConnectOptions,
    /// Statements to run on every new connection.
    prepare: &'static [String],
    slot: Slot,
    /// How many wait for the connection.
    waiting: AtomicUsize,
    is_closed: AtomicBool,
}

impl Writer {
    /// Opens the file, and creates it if it is missing. `prepare` is run on every new connection.
    pub(super) async fn open(path: &Path, prepare: &'static [String]) -> Result<Self, StoreError> {
        create_file(path).map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))?;
        let options = options(path)
            .journal_mode(SqliteJournalMode::Wal)
            .pragma("journal_size_limit", LOG_SIZE_LIMIT.to_string())
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string());
        let connection = connect(&options, prepare).await.map_err(|error| naming(path, error))?;
        let slot = Arc::new(Mutex::new(Some(connection)));
        Ok(Self { options, prepare, slot, waiting: AtomicUsize::new(0), is_closed: AtomicBool::new(false) })
    }

    /// Waits for the connection and begins a transaction that may write.
    pub(super) async fn begin(&self) -> Result<Transaction, StoreError> {
        let mut transaction = self.acquire().await?;
        sqlx::query(BEGIN).execute(transaction.connection()).await.map_err(store_error)?;
        Ok(transaction)
    }

    /// Begins a transaction of work that no caller waits for. Commands that wait go first, but not for ever.
    pub(super) async fn begin_background(&self) -> Result<Transaction, StoreError> {
        let begun = Instant::now();
        while self.waiting.load(Ordering::Relaxed) > 0 && begun.elapsed() < BACKGROUND_WAIT {
            tokio::time::sleep(BACKGROUND_PAUSE).await;
        }
        self.begin().await
    }

    /// Applies the migrations, each in its own transaction.
    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        let mut held = self.acquire().await?;
        let migrator = sqlx::migrate!("migrations/sqlite");
        migrator.run_direct(None, held.connection(), false).await.map_err(of_migration)?;
        held.give_back();
        Ok(())
    }

    /// Waits for the current transaction and closes the connection. No transaction begins afterwards.
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
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let locked = timeout(WRITER_WAIT, Arc::clone(&self.slot).lock_owned()).await;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let mut slot = locked.map_err(|_| StoreError::Unavailable("the writing connection is busy".into()))?;
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

/// The writing connection in use. Dropping it rolls back, or closes the connection if no transaction has begun.
pub(in crate::store) struct Transaction(Option<Held>);

impl Transaction {
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.0.as_mut().expect("it is held until the transaction is consumed").connection
    }

    pub(super) async fn commit(mut self) -> Result<(), StoreError> {
        sqlx::query(COMMIT).execute(self.connection()).await.map_err(store_error)?;
        self.give_back();
        Ok(())
    }

    /// Returns the connection. To be called outside a transaction.
    pub(super) fn give_back(&mut self) {
        if let Some(mut held) = self.0.take() {
            *held.slot = Some(held.connection);
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let (Some(mut held), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else { return };
        // The slot stays locked meanwhile. If the rollback fails, the connection is dropped, and closing
        // it rolls back.
        runtime.spawn(async move {
            let rollback = sqlx::query(ROLLBACK).execute(&mut held.connection);
            if let Ok(Ok(_)) = timeout(ROLLBACK_TIMEOUT, rollback).await {
                *held.slot = Some(held.connection);
            }
        });
    }
}

/// Adds the path, which SQLite's messages do not name.
fn naming(path: &Path, error: StoreError) -> StoreError {
    let name = |text: String| format!("{}: {text}", path.display());
    match error {
        StoreError::Conflict(text) => StoreError::Conflict(name(text)),
        StoreError::Unavailable(text) => StoreError::Unavailable(name(text)),
        StoreError::Corrupt(text) => StoreError::Corrupt(name(text)),
    }
}

/// Creates the folder and the file, readable by its owner only. SQLite gives the log the same mode.
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

/// Options to open a file for writing that only its owner may read.
fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Takes the lock that one server at a time has on a database. It is held until the returned file is
/// closed, at the latest when the process ends.
///
/// The lock is on a separate file, because SQLite's locks are lost when any other handle of the
/// database is closed. That file is never removed: otherwise two servers could lock two files.
pub(super) fn claim(path: &Path) -> Result<File, StoreError> {
    // The same database by another path (a link) has the same lock.
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
