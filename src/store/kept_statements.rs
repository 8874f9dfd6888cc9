//! Closed statements are kept: where a new build would make another statement of a period, it takes over the one in use.
//!
//! A rebuild may know more than the build before it, such as an event that was discarded then and could be mended. But
//! somebody may have been billed by the closed statement.

use std::collections::BTreeMap;

use super::columns::{Stored as _, Value};
use super::dialect::{Dialect, Keys, Parameters, rows};
use super::error::StoreError;
use crate::domain::consumers::{ConsumerRows, Statement, StatementLine};
use crate::domain::ids::WorkspaceId;
use crate::domain::time::Timestamp;

/// Replaces the statements that these rows close, where the build in use has closed another one of the same period.
pub(super) async fn keep_closed<C: Dialect>(connection: &mut C, new: &mut ConsumerRows) -> Result<(), StoreError> {
    let keys: Vec<_> = new.statements.iter().filter(|statement| statement.is_closed()).map(key).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let statements = C::consumer_statements();
    let found = connection.look_up(&statements.closed_in_use, &Keys(keys)).await?;
    let kept: BTreeMap<(WorkspaceId, Timestamp), Statement> =
        rows(&found)?.into_iter().map(|kept: Statement| ((kept.workspace_id, kept.period_start), kept)).collect();
    for statement in new.statements.iter_mut().filter(|statement| statement.is_closed()) {
        let (version, place) = (statement.version, (statement.workspace_id, statement.period_start));
        let Some(kept) = kept.get(&place).filter(|kept| kept.sha256 != statement.sha256) else { continue };
        tracing::warn!(
            workspace_id = %statement.workspace_id, period_start = %statement.period_start,
            "a rebuild makes another statement of a closed period; the closed one is kept"
        );
        let parameters = Parameters::of(&kept.version).and(&place.0).and(&place.1);
        let lines: Vec<StatementLine> = rows(&connection.list(&statements.statement_lines.text, parameters).await?)?;
        connection.look_up(&statements.delete_lines, &Keys(vec![key(statement)])).await?;
        new.statement_lines.retain(|line| (line.workspace_id, line.period_start) != place);
        new.statement_lines.extend(lines.into_iter().map(|line| StatementLine { version, ..line }));
        *statement = Statement { version, ..kept.clone() };
    }
    Ok(())
}

fn key(statement: &Statement) -> Vec<Value<'_>> {
    vec![statement.version.to_value(), statement.workspace_id.to_value(), statement.period_start.to_value()]
}
