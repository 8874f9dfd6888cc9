//! ProcessSubscriptionChange.
use super::{Effects, Refusal, Work};
use crate::domain::plan::PlanVersion;
use crate::domain::receipt::Receipt;
use crate::domain::subscription::{CreditPolicy, Effective};
use crate::domain::text::PlanCode;
use std::collections::HashMap;
use std::sync::Arc;
/// Moves a workspace to the newest version of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSubscriptionChange {
    pub plan_code: PlanCode,
    pub effective: Effective,
    /// What an immediate change does with the running period's credits; of no effect at the period's end.
    pub credit_policy: CreditPolicy,
    pub expected_version: Option<i64>,
}
impl ProcessSubscriptionChange {
    pub(super) fn decide(
        &self,
        _work: Work<'_>,
        _plans: &HashMap<PlanCode, Arc<PlanVersion>>,
    ) -> Result<(Effects, Receipt), Refusal> {
        todo!()
    }
}
