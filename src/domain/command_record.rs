//! The record of a decided command, for audits and for idempotency.

use super::ids::{CommandId, WorkspaceId};
use super::metadata::Metadata;
use super::text::IdempotencyKey;
use super::time::Timestamp;

/// A decided command with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRecord {
    pub workspace_id: WorkspaceId,
    pub idempotency_key: IdempotencyKey,
    pub command_id: CommandId,
    /// Gap-free within the workspace, from 1.
    pub seq: i64,
    /// The command's name, such as `DeductCredits`.
    pub command_type: String,
    /// SHA-256 over the command's name and its canonical body.
    pub fingerprint: [u8; 32],
    /// `accepted`, or the code of the rejection.
    pub outcome: String,
    /// The HTTP status that was answered, and the body, byte for byte.
    pub status: i16,
    pub body: String,
    pub actor: String,
    pub correlation_id: String,
    pub traceparent: Option<String>,
    pub metadata: Option<Metadata>,
    pub received_at: Timestamp,
    pub recorded_at: Timestamp,
}
