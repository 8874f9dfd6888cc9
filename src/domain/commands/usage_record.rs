//! The record of a use: its usage log and its event. Deductions and captures make one.

use super::spending::Taken;
use super::work::Work;
use crate::domain::credits::{Credits, Quantity};
use crate::domain::event::CreditConsumed;
use crate::domain::ids::HoldId;
use crate::domain::metadata::Metadata;
use crate::domain::text::{FeatureCode, UserId};
use crate::domain::time::Timestamp;
use crate::domain::usage::{UsageId, UsageLog};

/// What was used, and what was taken for it.
pub(super) struct Usage<'a> {
    pub feature_code: &'a FeatureCode,
    pub user_id: Option<&'a UserId>,
    pub credits: Credits,
    pub quantity: Option<Quantity>,
    pub taken: Taken,
    pub occurred_at: Timestamp,
    pub metadata: Option<&'a Metadata>,
    /// The hold that was captured.
    pub hold: Option<(HoldId, Capture)>,
}

/// What a capture did with its hold.
#[derive(Clone, Copy)]
pub(super) struct Capture {
    pub released: Credits,
    /// What could not be charged.
    pub uncovered: Credits,
}

/// Writes the usage log and raises the event, after the credits were taken and counted. Returns both, for the receipt.
pub(super) fn record_usage(work: &mut Work<'_>, usage: Usage<'_>) -> (UsageId, CreditConsumed) {
    work.credits_mut().usage_seq += 1;
    let log = UsageLog {
        workspace_id: work.workspace().workspace_id,
        seq: work.credits().usage_seq,
        command_id: work.command_id(),
        feature_code: usage.feature_code.clone(),
        user_id: usage.user_id.cloned(),
        credits: usage.credits,
        quantity: usage.quantity,
        occurred_at: usage.occurred_at,
        recorded_at: work.recorded_at(),
        metadata: usage.metadata.cloned(),
    };
    let consumed = CreditConsumed {
        feature_code: usage.feature_code.clone(),
        user_id: usage.user_id.cloned(),
        credits: usage.credits,
        quantity: usage.quantity,
        grants: usage.taken.grants,
        overdraft_credits: usage.taken.overdraft.positive(),
        hold_id: usage.hold.map(|(hold_id, _)| hold_id),
        released_credits: usage.hold.map(|(_, capture)| capture.released),
        uncovered_credits: usage.hold.map(|(_, capture)| capture.uncovered),
        current_credits: work.credits().current_credits,
        used_this_month: work.credits().used_this_month,
        occurred_at: usage.occurred_at,
    };
    let usage_id = log.id();
    work.effects_mut().usage_log = Some(log);
    work.raise(consumed.clone());
    (usage_id, consumed)
}
