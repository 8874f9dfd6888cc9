//! The meaning of PostgreSQL errors. Only this file knows SQLSTATEs.
//!
//! A state that is not listed is [`StoreError::Corrupt`], because a retry is not known to help.

use sqlx::error::DatabaseError;

use crate::store::error::StoreError;

/// Another writer was first: unique and exclusion violations, serialization failure,
/// deadlock, lock timeout.
const CONFLICTS: [&str; 5] = ["23505", "23P01", "40001", "40P01", "55P03"];

/// The server cannot do it now: a statement or idle timeout, or a read-only standby after a failover.
const UNAVAILABLE: [&str; 3] = ["57014", "25P03", "25006"];

/// Classes of the same meaning: connection, authorization, resources (disk full, too many connections),
/// operator intervention (shutdown, crash), and system errors.
const UNAVAILABLE_CLASSES: [&str; 5] = ["08", "28", "53", "57", "58"];

/// A table or a column that this version's statements name does not exist.
const OTHER_SCHEMA: [&str; 2] = ["42P01", "42703"];

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
    let code = error.code().unwrap_or_default();
    let text = match error.constraint() {
        Some(constraint) => format!("{code} on {constraint}: {}", error.message()),
        None => format!("{code}: {}", error.message()),
    };
    if CONFLICTS.contains(&&*code) {
        StoreError::Conflict(text)
    } else if UNAVAILABLE.contains(&&*code) || UNAVAILABLE_CLASSES.iter().any(|class| code.starts_with(class)) {
        StoreError::Unavailable(text)
    } else if OTHER_SCHEMA.contains(&&*code) {
        StoreError::other_schema(&text)
    } else {
        StoreError::Corrupt(text)
    }
}
