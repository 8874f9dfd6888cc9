//! Usage logs: what was consumed, by whom, for how much.

use super::credits::{Credits, Quantity};
use super::event::Metadata;
use super::ids::{CommandId, WorkspaceId};
use super::text::{FeatureCode, UserId};
use super::time::Timestamp;

/// One accepted deduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageLog {
    pub workspace_id: WorkspaceId,
    /// Gap-free within the workspace, from 1.
    pub seq: i64,
    pub command_id: CommandId,
    pub feature_code: FeatureCode,
    pub user_id: Option<UserId>,
    pub credits: Credits,
    pub quantity: Option<Quantity>,
    pub occurred_at: Timestamp,
    pub recorded_at: Timestamp,
    pub metadata: Option<Metadata>,
    /// The command of the workspace's usage log before this one.
    pub previous: Option<CommandId>,
}
