//! The rows of a batch that a deduction does not write. A batch without them is one statement.
//!
//! [`has_only_deduction_rows`] names every field of [`ChangeSet`], so that the compiler asks what becomes of a new one.

use super::dialect::Dialect;
use super::error::StoreError;
use crate::domain::change_set::ChangeSet;

/// Whether the batch has only rows that deductions write: updates of existing rows, and history.
pub(super) fn has_only_deduction_rows(changes: &ChangeSet) -> bool {
    let ChangeSet {
        workspaces,
        feature_overrides,
        credits,
        subscriptions,
        periods,
        refunds,
        reversals,
        counters,
        grants,
        holds,
        held_shares,
        heads: _,
        commands: _,
        ledger_entries: _,
        usage_logs: _,
        events: _,
    } = changes;
    let has_new = !(credits.inserted.is_empty() && counters.inserted.is_empty() && grants.inserted.is_empty());
    let has_holds = !(holds.is_empty() && held_shares.is_empty());
    !has_new
        && !has_holds
        && workspaces.is_empty()
        && feature_overrides.is_empty()
        && subscriptions.is_empty()
        && periods.is_empty()
        && refunds.is_empty()
        && reversals.is_empty()
}

/// Writes the rows that a deduction does not write, in the order of the foreign keys.
pub(super) async fn write_other_rows<D: Dialect>(connection: &mut D, changes: &ChangeSet) -> Result<(), StoreError> {
    connection.insert(&changes.workspaces).await?;
    connection.insert(&changes.feature_overrides).await?;
    connection.insert(&changes.credits.inserted).await?;
    connection.insert(&changes.subscriptions.inserted).await?;
    connection.update(&changes.subscriptions.updated).await?;
    connection.insert(&changes.periods).await?;
    connection.insert(&changes.counters.inserted).await?;
    connection.insert(&changes.grants.inserted).await?;
    connection.insert(&changes.holds.inserted).await?;
    connection.update(&changes.holds.updated).await?;
    connection.insert(&changes.held_shares).await?;
    connection.insert(&changes.refunds).await?;
    connection.insert(&changes.reversals).await
}
