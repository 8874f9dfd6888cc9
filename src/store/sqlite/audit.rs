//! Runs the invariants.

use std::time::Duration;

use sqlx::sqlite::SqlitePool;

use super::connection::limit as limit_time;
use super::database::BEGIN_READING;
use super::error::store_error;
use crate::store::columns::Fields;
use crate::store::error::StoreError;
use crate::store::invariants::INVARIANTS;
use crate::store::queries::AuditFinding;

/// An audit reads the whole history, so its timeout is the longest.
pub(super) const TIMEOUT: Duration = Duration::from_mins(30);

/// Runs every invariant in one snapshot.
pub(super) async fn run(pool: &SqlitePool, limit: u32) -> Result<Vec<AuditFinding>, StoreError> {
    let mut tx = pool.begin_with(BEGIN_READING).await.map_err(store_error)?;
    limit_time(&mut tx, TIMEOUT).await.map_err(store_error)?;
    let mut findings = Vec::new();
    for (invariant, statement) in INVARIANTS {
        let statement = sqlx::query(*statement).bind(i64::from(limit));
        for row in &statement.fetch_all(&mut *tx).await.map_err(store_error)? {
            findings.push(AuditFinding::read(invariant, &mut Fields::of(row))?);
        }
    }
    tx.commit().await.map_err(store_error)?;
    Ok(findings)
}
