//! The meaning of SQLite errors. Only this file knows result codes
//! (<https://www.sqlite.org/rescode.html>).
//!
//! A code that is not listed is [`StoreError::Corrupt`], because a retry is not known to help.

use sqlx::error::DatabaseError;

use crate::store::error::StoreError;

/// Another writer was first: `SQLITE_CONSTRAINT_PRIMARYKEY`, `_UNIQUE` and `_ROWID`.
const CONFLICTS: [i32; 3] = [1555, 2067, 2579];

/// `SQLITE_CONSTRAINT_TRIGGER`: a trigger refused, and its message says what kind of error it is.
const TRIGGER: i32 = 1811;

/// The file cannot be used now: `SQLITE_BUSY`, `_LOCKED`, `_NOMEM`, `_READONLY`, `_INTERRUPT`,
/// `_IOERR`, `_FULL`, `_CANTOPEN`, `_PROTOCOL` (the locks of the log) and `_AUTH` (permissions).
const UNAVAILABLE: [i32; 10] = [5, 6, 7, 8, 9, 10, 13, 14, 15, 23];

/// A table or a column that this version's statements name does not exist. `SQLITE_ERROR` says so only in its message.
const OTHER_SCHEMA: [&str; 2] = ["no such table", "no such column"];

/// The low byte of an extended code is the primary one.
const PRIMARY_CODE_MASK: i32 = 0xff;

/// The meaning of an error.
pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(error) => of_database(error.as_ref()),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => StoreError::Unavailable(error.to_string()),
        sqlx::Error::Migrate(error) => of_migration(*error),
        other => StoreError::Corrupt(other.to_string()),
    }
}

/// The meaning of an error while migrating: of the database, or of the history of migrations.
pub(super) fn of_migration(error: sqlx::migrate::MigrateError) -> StoreError {
    match error {
        sqlx::migrate::MigrateError::Execute(error) | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => {
            store_error(error)
        }
        other => StoreError::other_schema(&other),
    }
}

fn of_database(error: &dyn DatabaseError) -> StoreError {
    let code = error.code().and_then(|code| code.parse().ok()).unwrap_or_default();
    let text = format!("{code}: {}", error.message());
    if CONFLICTS.contains(&code) || code == TRIGGER && error.message().starts_with("conflict:") {
        StoreError::Conflict(text)
    } else if UNAVAILABLE.contains(&(code & PRIMARY_CODE_MASK)) {
        StoreError::Unavailable(text)
    } else if OTHER_SCHEMA.iter().any(|start| error.message().starts_with(start)) {
        StoreError::other_schema(&text)
    } else {
        StoreError::Corrupt(text)
    }
}
