//! Why a deduction or a hold was accepted or refused, and what would help.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::credits::{Credits, Quantity};
use super::event::{GrantShare, LimitScope};
use super::plan::LimitMode;
use super::subscription::CreditPolicy;
use super::text::PlanCode;
use super::time::Timestamp;

/// How many plans a refusal names.
pub const MAX_PLANS_NAMED: usize = 10;

/// Why a deduction or a hold was accepted or refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Decision)]
pub struct Explanation {
    /// What it costs. Absent if that is unknown: the feature is not available, or has no price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_credits: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantity: Option<Quantity>,
    /// The price that was applied to the quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit_price: Option<Credits>,
    /// What could be spent on the feature, the overdraft included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_credits: Option<Credits>,
    /// The limits that it was checked against, in order, as they were before. An ended subscription has none.
    pub limits: Vec<LimitInForce>,
    /// The grants that bear it, in burn order. Empty in a refusal.
    pub grants: Vec<GrantShare>,
    /// The part that the overdraft bears.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_credits: Option<Credits>,
    /// The thresholds whose `LowCreditWarning` it raises.
    pub thresholds_crossed: Vec<Credits>,
    /// What would help, each on its own: the same request is then accepted, as things stand. Empty if nothing does.
    pub remedies: Vec<Remedy>,
}

/// A limit as a request finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = LimitInForce)]
pub struct LimitInForce {
    pub limit_scope: LimitScope,
    pub mode: LimitMode,
    pub limit_credits: Credits,
    /// Used in the period, or in the window, before.
    pub used_credits: Credits,
    /// Reserved by open holds, which count as used. Of a rate window they are part of `used_credits`.
    pub held_credits: Credits,
    /// What can be used before the limit is reached.
    pub headroom_credits: Credits,
    /// When usage counts from zero again.
    pub resets_at: Timestamp,
    /// The length of the window in seconds, if the limit is that of a rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_s: Option<u32>,
}

/// Something that would make the same request succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Remedy {
    /// Send it again at that time.
    WaitUntil { at: Timestamp },
    /// Buy at least so many credits.
    BuyCredits { credits: Credits },
    /// Change to that plan now, with that policy for the credits of the period.
    ChangePlan { plan_code: PlanCode, plan_version: i32, credit_policy: CreditPolicy },
    /// Let an operator raise the workspace's own limit, or that of the feature, to at least so much.
    RaiseLimit { limit_scope: LimitScope, credits: Credits },
}
