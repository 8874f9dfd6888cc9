//! ExpireGrants.
use super::{Effects, Refusal, Work};
use crate::domain::receipt::Receipt;
/// Books what has expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpireGrants;
impl ExpireGrants {
    pub(super) fn decide(&self, _work: Work<'_>) -> Result<Option<(Effects, Receipt)>, Refusal> {
        todo!()
    }
}
