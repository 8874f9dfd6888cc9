//! What an operator did by hand, and why.

use uuid::Uuid;

use super::text::Label;
use super::time::Timestamp;

/// One act of an operator. It never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorAct {
    /// Version 7, so that acts lie in the order of time.
    pub audit_id: Uuid,
    pub at: Timestamp,
    /// The `sub` of the token.
    pub actor: String,
    /// What was done, such as `consumer.pause`.
    pub action: String,
    /// To what.
    pub target: String,
    pub reason: Label,
    /// JSON of what was changed, before and after.
    pub before: Option<String>,
    pub after: Option<String>,
}
