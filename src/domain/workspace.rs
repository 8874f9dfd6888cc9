//! A workspace, its balance and its overrides.

use std::collections::BTreeMap;

use chrono_tz::Tz;

use super::credits::Credits;
use super::ids::{Partition, WorkspaceId};
use super::metadata::Metadata;
use super::plan::{FeatureTerms, PlanVersion, UsageLimit};
use super::text::{FeatureCode, Label};
use super::time::Timestamp;

/// The tenant. Its row is written once, when it is provisioned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    pub workspace_id: WorkspaceId,
    pub name: Label,
    pub time_zone: Tz,
    /// An override of the plan's monthly limit. It survives a change of plan.
    pub monthly_limit_override: Option<Credits>,
    pub overdraft_limit_override: Option<Credits>,
    /// What the caller attached when it was provisioned.
    pub metadata: Option<Metadata>,
    pub created_at: Timestamp,
}

impl Workspace {
    #[must_use]
    pub fn partition(&self) -> Partition {
        Partition::of(self.workspace_id)
    }

    /// The monthly limit in force under a plan: the workspace's own, which is hard, or the plan's.
    #[must_use]
    pub fn monthly_limit(&self, plan: &PlanVersion) -> Option<UsageLimit> {
        self.monthly_limit_override.map(UsageLimit::hard).or(plan.monthly_limit)
    }

    /// How far the balance may go below zero under a plan: the workspace's own limit, or the plan's.
    #[must_use]
    pub fn overdraft_limit(&self, plan: &PlanVersion) -> Credits {
        self.overdraft_limit_override.unwrap_or(plan.overdraft_limit)
    }
}

/// The balance of a workspace and the last numbers of its gap-free sequences. All of them are derived from history,
/// and `verify` checks them against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceCredits {
    pub workspace_id: WorkspaceId,
    /// The balance: what remains of all grants less the debt.
    pub current_credits: Credits,
    /// What open holds reserve, in grants and in the overdraft.
    pub held_credits: Credits,
    /// What was spent beyond the grants.
    pub debt_credits: Credits,
    /// How far `debt_credits` may go.
    pub overdraft_limit: Credits,
    /// What was used in the current billing period.
    pub used_this_month: Credits,
    /// What changes of plan in this period should have taken back and could not. Later changes grant that much less.
    pub uncollected_credits: Credits,
    /// The soft monthly limit whose passing was reported in this period.
    pub reported_limit: Option<Credits>,
    /// What was used in the rate window that began at `rate_window_start`.
    pub rate_window_start: Timestamp,
    pub rate_window_used: Credits,
    /// Bit n is set if the plan's n-th low-credit threshold was reported and the credits have not been above it since.
    pub low_credit_alerts: i16,
    /// How many holds are open.
    pub open_holds: i16,
    /// The last command's number. Optimistic locking compares it.
    pub version: i64,
    /// The last ledger entry's number.
    pub ledger_seq: i64,
    /// The last usage log's number.
    pub usage_seq: i64,
    /// The last event's number: `workspace_seq` in the event.
    pub event_seq: i64,
    /// When the last command of this workspace was recorded. It rises strictly, even if the clocks of the replicas
    /// differ.
    pub updated_at: Timestamp,
}

impl WorkspaceCredits {
    #[must_use]
    pub const fn new(workspace_id: WorkspaceId, at: Timestamp) -> Self {
        Self {
            workspace_id,
            current_credits: Credits::ZERO,
            held_credits: Credits::ZERO,
            debt_credits: Credits::ZERO,
            overdraft_limit: Credits::ZERO,
            used_this_month: Credits::ZERO,
            uncollected_credits: Credits::ZERO,
            reported_limit: None,
            rate_window_start: at,
            rate_window_used: Credits::ZERO,
            low_credit_alerts: 0,
            open_holds: 0,
            version: 0,
            ledger_seq: 0,
            usage_seq: 0,
            event_seq: 0,
            updated_at: at,
        }
    }
}

/// A workspace's own terms for a feature. Each that is given replaces the plan's, and survives a change of plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverrideTerms {
    pub enabled: Option<bool>,
    pub unit_price: Option<Credits>,
    /// A hard limit.
    pub limit: Option<Credits>,
}

/// The stored override of one feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureOverride {
    pub workspace_id: WorkspaceId,
    pub feature_code: FeatureCode,
    pub terms: OverrideTerms,
}

/// The overrides of a workspace, by feature.
pub type FeatureOverrides = BTreeMap<FeatureCode, OverrideTerms>;

impl OverrideTerms {
    /// The plan's terms with these overrides applied.
    #[must_use]
    pub fn apply_to(&self, plan: FeatureTerms) -> FeatureTerms {
        FeatureTerms {
            enabled: self.enabled.unwrap_or(plan.enabled),
            unit_price: self.unit_price.or(plan.unit_price),
            limit: self.limit.map(UsageLimit::hard).or(plan.limit),
        }
    }
}

/// The terms of a feature in force: the plan's with the override applied. None if neither exists. A feature that the plan
/// does not have is enabled if the workspace has agreed on a price for it, unless its override says otherwise.
#[must_use]
pub fn feature_terms(plan: &PlanVersion, overrides: &FeatureOverrides, code: &FeatureCode) -> Option<FeatureTerms> {
    let of_plan = plan.features.get(code).copied();
    let Some(own) = overrides.get(code) else { return of_plan };
    let without_plan = || FeatureTerms { enabled: own.unit_price.is_some(), ..FeatureTerms::default() };
    Some(own.apply_to(of_plan.unwrap_or_else(without_plan)))
}
