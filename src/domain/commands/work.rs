//! Work.
use super::Envelope;
use crate::domain::credits::Credits;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::time::Timestamp;
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effects {}
pub(super) struct Work<'a> {
    _s: &'a WorkspaceState,
}
impl<'a> Work<'a> {
    pub(super) fn new(s: &'a WorkspaceState, _e: &'a Envelope) -> Self {
        Self { _s: s }
    }
}
/// What can be spent now on any feature: spendable grants plus what is left of the overdraft.
#[must_use]
pub fn available_credits(_state: &WorkspaceState, _now: Timestamp) -> Credits {
    todo!()
}
