//! What a command may know of the envelope that it came in.

use crate::domain::ids::{CommandId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::time::Timestamp;

/// The part of an envelope that is the same for every command, as far as a decision depends on it.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub received_at: Timestamp,
    pub metadata: Option<&'a Metadata>,
}
