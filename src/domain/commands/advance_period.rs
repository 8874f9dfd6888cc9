//! AdvancePeriod.
use super::{Effects, Envelope, Refusal, Work};
use crate::domain::ids::CommandId;
use crate::domain::receipt::Receipt;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::time::Timestamp;
/// Passes every period boundary that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvancePeriod;
impl AdvancePeriod {
    pub(super) fn envelope(_command_id: CommandId, _state: &WorkspaceState, _now: Timestamp) -> Envelope {
        todo!()
    }
    pub(super) fn decide(&self, _work: Work<'_>) -> Result<Option<(Effects, Receipt)>, Refusal> {
        todo!()
    }
}
