//! Plans: what a subscription grants and allows.
//!
//! A plan has a code and versions. A stored version never changes, and a subscription names its version. So a new
//! version never changes what a workspace has agreed to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::credits::Credits;
use super::text::{FeatureCode, Label, PlanCode};

/// How many features one plan may have.
pub const MAX_FEATURES: usize = 200;
/// How many low-credit thresholds one plan may have. Each is one bit of `low_credit_alerts`.
pub const MAX_THRESHOLDS: usize = 8;
/// The longest billing period.
pub const MAX_PERIOD_MONTHS: u32 = 36;

/// What happens at a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitMode {
    /// A deduction that would pass the limit is refused.
    Hard,
    /// The deduction is accepted. The first that exceeds the limit in a period raises `UsageLimitExceeded`, and again
    /// if the limit has changed.
    Soft,
}

impl LimitMode {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Soft => "soft",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        [Self::Hard, Self::Soft].into_iter().find(|mode| mode.as_str() == text)
    }
}

/// A bound on what may be used within one billing period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageLimit {
    pub credits: Credits,
    pub mode: LimitMode,
}

impl UsageLimit {
    #[must_use]
    pub const fn hard(credits: Credits) -> Self {
        Self { credits, mode: LimitMode::Hard }
    }
}

/// A bound on what may be used within one window of `window_s` seconds. Windows are aligned to the
/// Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RateLimit {
    pub credits: Credits,
    pub window_s: u32,
}

/// What becomes of bought and promotional credits when the subscription ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PurchasedOnCancel {
    /// They stay and can be spent.
    Keep,
    /// They stay, but cannot be spent until the workspace subscribes again.
    Freeze,
    /// They can be spent for this many days more.
    ExpireAfterDays(u32),
}

/// What becomes of the spent credits of a purchase that is reversed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReversalShortfall {
    /// The workspace owes them.
    #[default]
    Debt,
    /// Nobody owes them.
    WriteOff,
}

/// What a plan says about one feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FeatureTerms {
    pub enabled: bool,
    /// Credits for one unit; without it, a deduction must name its credits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit_price: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<UsageLimit>,
}

/// One immutable version of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanVersion {
    pub plan_code: PlanCode,
    pub version: i32,
    pub name: Label,
    /// The length of a billing period.
    pub period_months: u32,
    /// Credits granted at the start of every period; they end with it.
    pub allowance: Credits,
    /// The most of an unspent allowance that is carried over into the next period.
    pub rollover_cap: Credits,
    /// How far below zero the balance may go.
    pub overdraft_limit: Credits,
    /// A bound on what the whole workspace may use in a period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_limit: Option<UsageLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Available balances at which `LowCreditWarning` is raised, each once until re-armed.
    pub low_credit_thresholds: Vec<Credits>,
    pub purchased_on_cancel: PurchasedOnCancel,
    /// How many days before credits that belong to no period expire `CreditsExpiring` is raised. 0 for never.
    pub expiry_warning_days: u32,
    /// How many days credits can be spent that are refunded after the expiry of their grant.
    pub refund_validity_days: u32,
    /// What becomes of the spent credits of a purchase that is reversed.
    pub reversal_shortfall: ReversalShortfall,
    /// Terms by feature code.
    pub features: BTreeMap<FeatureCode, FeatureTerms>,
}

/// The most days ahead.
const MAX_EXPIRY_WARNING_DAYS: u32 = 365;
/// The longest time in which credits can be spent that a refund gives a grant of their own.
const MAX_REFUND_VALIDITY_DAYS: u32 = 3650;

/// Why a plan cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plan {plan_code} version {version}: {field} {problem}")]
pub struct InvalidPlan {
    pub plan_code: PlanCode,
    pub version: i32,
    pub field: &'static str,
    pub problem: String,
}

impl PlanVersion {
    /// Checks every bound. The store refuses a plan that fails here.
    pub fn validate(&self) -> Result<(), InvalidPlan> {
        let refuse = |field, problem: &str| {
            Err(InvalidPlan {
                plan_code: self.plan_code.clone(),
                version: self.version,
                field,
                problem: problem.to_owned(),
            })
        };
        if self.version < 1 {
            return refuse("version", "must be at least 1");
        }
        if !(1..=MAX_PERIOD_MONTHS).contains(&self.period_months) {
            return refuse("period_months", "must be 1 to 36");
        }
        if self.features.len() > MAX_FEATURES {
            return refuse("features", "must be at most 200");
        }
        if self.low_credit_thresholds.len() > MAX_THRESHOLDS {
            return refuse("low_credit_thresholds", "must be at most 8");
        }
        if self.rate_limit.is_some_and(|limit| !(1..=86_400).contains(&limit.window_s)) {
            return refuse("rate_limit.window_s", "must be 1 to 86400");
        }
        if let PurchasedOnCancel::ExpireAfterDays(days) = self.purchased_on_cancel
            && !(1..=3650).contains(&days)
        {
            return refuse("purchased_on_cancel", "must be 1 to 3650 days");
        }
        if self.expiry_warning_days > MAX_EXPIRY_WARNING_DAYS {
            return refuse("expiry_warning_days", "must be at most 365");
        }
        if !(1..=MAX_REFUND_VALIDITY_DAYS).contains(&self.refund_validity_days) {
            return refuse("refund_validity_days", "must be 1 to 3650");
        }
        if self.amounts().any(|amount| amount < Credits::ZERO) {
            return refuse("amounts", "must not be negative");
        }
        Ok(())
    }

    fn amounts(&self) -> impl Iterator<Item = Credits> + '_ {
        let of_features = self
            .features
            .values()
            .flat_map(|terms| terms.unit_price.into_iter().chain(terms.limit.map(|limit| limit.credits)));
        [self.allowance, self.rollover_cap, self.overdraft_limit]
            .into_iter()
            .chain(self.monthly_limit.map(|limit| limit.credits))
            .chain(self.rate_limit.map(|limit| limit.credits))
            .chain(self.low_credit_thresholds.iter().copied())
            .chain(of_features)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plan with every kind of term, for the tests of the whole domain.
    pub(crate) fn pro() -> PlanVersion {
        let terms = |price: &str, limit: Option<UsageLimit>| FeatureTerms {
            enabled: true,
            unit_price: Some(price.parse().unwrap()),
            limit,
        };
        PlanVersion {
            plan_code: PlanCode::new("pro").unwrap(),
            version: 1,
            name: Label::new("Pro").unwrap(),
            period_months: 1,
            allowance: Credits::whole(1000),
            rollover_cap: Credits::whole(200),
            overdraft_limit: Credits::ZERO,
            monthly_limit: None,
            rate_limit: None,
            low_credit_thresholds: vec![Credits::whole(100)],
            purchased_on_cancel: PurchasedOnCancel::Keep,
            expiry_warning_days: 7,
            refund_validity_days: 30,
            reversal_shortfall: ReversalShortfall::Debt,
            features: [
                (FeatureCode::new("render").unwrap(), terms("0.5", None)),
                (FeatureCode::new("upscale").unwrap(), terms("2", Some(UsageLimit::hard(Credits::whole(50))))),
            ]
            .into(),
        }
    }

    #[test]
    fn an_invalid_plan_is_refused_with_the_name_of_the_field() {
        let field = |change: fn(&mut PlanVersion)| {
            let mut plan = pro();
            change(&mut plan);
            plan.validate().unwrap_err().field
        };
        assert_eq!(pro().validate(), Ok(()));
        assert_eq!(field(|plan| plan.version = 0), "version");
        assert_eq!(field(|plan| plan.period_months = 37), "period_months");
        assert_eq!(field(|plan| plan.allowance = Credits::whole(-1)), "amounts");
        assert_eq!(field(|plan| plan.low_credit_thresholds = vec![Credits::ZERO; 9]), "low_credit_thresholds");
        assert_eq!(
            field(|plan| plan.purchased_on_cancel = PurchasedOnCancel::ExpireAfterDays(0)),
            "purchased_on_cancel"
        );
        assert_eq!(field(|plan| plan.refund_validity_days = 0), "refund_validity_days");
        assert_eq!(field(|plan| plan.refund_validity_days = 3651), "refund_validity_days");
    }
}
