//! The part of an envelope that commands may depend on.

use crate::domain::ids::{CommandId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::time::Timestamp;

/// The part of an envelope that decisions may depend on, besides the command itself.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub received_at: Timestamp,
    pub metadata: Option<&'a Metadata>,
}
