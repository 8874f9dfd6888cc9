//! What connects a workspace to a plan version, and the change that may be pending for the period's end.

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{SubscriptionId, WorkspaceId};
use super::period::{Period, Schedule};
use super::text::{Label, PlanCode};
use super::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionStatus {
    Active,
    Canceled,
}

impl SubscriptionStatus {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Canceled => "canceled",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        [Self::Active, Self::Canceled].into_iter().find(|status| status.as_str() == text)
    }
}

/// What an immediate change of plan does with the credits of the running period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CreditPolicy {
    /// The difference of the allowances, for the part of the period that is left.
    Prorate,
    /// The whole difference of the allowances.
    Full,
    /// Nothing until the next period.
    None,
    /// The period ends now and a new one begins, with the new allowance.
    Restart,
}

/// When a change takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effective {
    Immediate,
    PeriodEnd,
}

/// A change that is scheduled for the end of the period. Stored as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PendingChange {
    /// A change to another plan, at the version that was newest when the change was scheduled.
    Change {
        plan_code: PlanCode,
        plan_version: i32,
    },
    Cancel {
        reason: Option<Label>,
    },
}

/// What is scheduled for the end of the period, as the API and events show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PendingView {
    /// A change to another plan.
    Change { plan_code: PlanCode, plan_version: i32, effective_at: Timestamp },
    /// The end of the subscription.
    Cancel {
        effective_at: Timestamp,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<Label>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub workspace_id: WorkspaceId,
    pub subscription_id: SubscriptionId,
    pub plan_code: PlanCode,
    pub plan_version: i32,
    pub status: SubscriptionStatus,
    /// The instant that all periods are counted from.
    pub billing_anchor: Timestamp,
    /// The current period. Its length is that of the plan in force.
    pub period: Period,
    /// Grows by one with every change. `expected_version` is compared with it.
    pub version: i64,
    pub pending_change: Option<PendingChange>,
    pub canceled_at: Option<Timestamp>,
    pub updated_at: Timestamp,
}

impl Subscription {
    #[must_use]
    pub fn schedule(&self, zone: Tz) -> Schedule {
        Schedule { anchor: self.billing_anchor, zone }
    }

    #[must_use]
    pub fn is_active(&self) -> bool {
        self.status == SubscriptionStatus::Active
    }

    /// What is scheduled for the end of the period.
    #[must_use]
    pub fn pending(&self) -> Option<PendingView> {
        let effective_at = self.period.end;
        self.pending_change.clone().map(|pending| match pending {
            PendingChange::Change { plan_code, plan_version } => {
                PendingView::Change { plan_code, plan_version, effective_at }
            }
            PendingChange::Cancel { reason } => PendingView::Cancel { effective_at, reason },
        })
    }

    /// Whether the current period has ended, so that a boundary must be passed first.
    #[must_use]
    pub fn is_boundary_due(&self, now: Timestamp) -> bool {
        self.is_active() && self.period.end <= now
    }
}
