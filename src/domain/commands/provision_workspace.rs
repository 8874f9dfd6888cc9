//! ProvisionWorkspace.
use super::{Effects, Envelope, Refusal};
use crate::domain::credits::Credits;
use crate::domain::receipt::Receipt;
use crate::domain::snapshot::Snapshot;
use crate::domain::text::{FeatureCode, IdempotencyKey, Label, PlanCode};
use crate::domain::time::Timestamp;
use crate::domain::workspace::FeatureOverrides;
use chrono_tz::Tz;
/// What a workspace agreed on for one feature, whatever its plan says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureAgreement {
    pub feature_code: FeatureCode,
    pub overrides: FeatureOverrides,
}
/// Creates a workspace and subscribes it to its first plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvisionWorkspace {
    pub name: Label,
    pub plan_code: PlanCode,
    pub zone: Tz,
    /// Where billing periods are counted from; not in the future. Without it, now.
    pub anchor: Option<Timestamp>,
    pub monthly_limit: Option<Credits>,
    pub overdraft_limit: Option<Credits>,
    pub features: Vec<FeatureAgreement>,
}
impl ProvisionWorkspace {
    /// The natural key of provisioning: a workspace is created once.
    #[must_use]
    pub fn idempotency_key() -> IdempotencyKey {
        IdempotencyKey::system(format_args!("provision"))
    }
    pub(super) fn decide(&self, _snapshot: &Snapshot, _envelope: &Envelope) -> Result<(Effects, Receipt), Refusal> {
        todo!()
    }
}
