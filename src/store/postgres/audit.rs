//! Running the invariants.

use std::time::Duration;

use sqlx::postgres::PgPool;

use super::database::BEGIN_READING;
use super::error::store_error;
use crate::store::columns::Fields;
use crate::store::error::StoreError;
use crate::store::invariants::INVARIANTS;
use crate::store::queries::AuditFinding;

/// An audit reads all of history, so it gets more time than anything else.
pub(super) const TIMEOUT: Duration = Duration::from_mins(30);

/// An audit reads whole tables, so it allows every plan except nested loops, and a longer timeout. With a limit, or
/// without statistics, the planner would choose nested loops where a hash join is needed.
pub(super) const AUDIT_SETTINGS: &str = "
select set_config('statement_timeout', $1, true), set_config('plan_cache_mode', 'auto', true),
    set_config('enable_seqscan', 'on', true), set_config('enable_hashjoin', 'on', true),
    set_config('enable_mergejoin', 'on', true), set_config('enable_nestloop', 'off', true)";

/// Runs every invariant in one snapshot.
pub(super) async fn run(pool: &PgPool, limit: u32) -> Result<Vec<AuditFinding>, StoreError> {
    let mut tx = pool.begin_with(BEGIN_READING).await.map_err(store_error)?;
    let timeout_ms = TIMEOUT.as_millis().to_string();
    sqlx::query(AUDIT_SETTINGS).bind(timeout_ms).execute(&mut *tx).await.map_err(store_error)?;
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
