//! Receipts: the answers to accepted commands, in the form in which the API sends them.

use serde::Serialize;
use utoipa::ToSchema;

use super::credits::{Credits, Quantity};
use super::event::{CreditReset, ExpiringCredits, GrantShare};
use super::explanation::Explanation;
use super::grant::GrantSource;
use super::hold::HoldState;
use super::ids::{CommandId, GrantId, HoldId, RefundId, ReversalId, SubscriptionId, WorkspaceId};
use super::period::Period;
use super::reversal::ReversalReason;
use super::snapshot::WorkspaceState;
use super::subscription::{PendingView, Subscription, SubscriptionStatus};
use super::text::{FeatureCode, Label, PaymentReference, PlanCode, UserId};
use super::time::Timestamp;
use super::usage::UsageId;

/// The answer to an accepted command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Receipt {
    Deducted(DeductReceipt),
    Purchased(PurchaseReceipt),
    Granted(GrantReceipt),
    Voided(VoidReceipt),
    Refunded(RefundReceipt),
    Reversed(ReversalReceipt),
    Held(HoldReceipt),
    /// A hold was extended or released.
    HoldChanged(HoldReceipt),
    Captured(CaptureReceipt),
    Reset(ResetReceipt),
    Subscription(SubscriptionReceipt),
    Provisioned(ProvisionReceipt),
    /// The receipt of an internal command. Nobody reads it.
    Internal(InternalReceipt),
}

/// Credits were deducted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeductReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    /// The usage log of the deduction.
    pub usage_id: UsageId,
    pub feature_code: FeatureCode,
    pub credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantity: Option<Quantity>,
    /// The grants that the credits were taken from, in burn order.
    pub grants: Vec<GrantShare>,
    /// The part that was taken from the overdraft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_credits: Option<Credits>,
    /// The balance after the deduction.
    pub current_credits: Credits,
    pub used_this_month: Credits,
    pub recorded_at: Timestamp,
    /// Why it was accepted, if `explain` was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Explanation>)]
    pub decision: Option<Box<Explanation>>,
}

/// Credits were bought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PurchaseReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub grant_id: GrantId,
    pub credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bonus_grant_id: Option<GrantId>,
    pub bonus_credits: Credits,
    pub payment_reference: PaymentReference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The part that repaid debt.
    pub debt_repaid: Credits,
    /// Whether the credits can be spent now. They cannot while they are frozen, because the subscription has ended.
    pub spendable: bool,
    pub current_credits: Credits,
    pub recorded_at: Timestamp,
}

/// Credits were granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct GrantReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub grant_id: GrantId,
    pub source: GrantSource,
    pub credits: Credits,
    /// 0 to 100. Lower is spent first.
    pub priority: i16,
    /// From when on they can be spent.
    pub effective_at: Timestamp,
    /// They cannot be spent at or after this instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The only feature that they can be spent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature_scope: Option<FeatureCode>,
    pub reason: Label,
    /// The part that repaid debt.
    pub debt_repaid: Credits,
    /// Whether the credits can be spent now. They cannot before `effective_at`, nor while they are frozen because the
    /// subscription has ended.
    pub spendable: bool,
    /// The balance, which the credits are in at once.
    pub current_credits: Credits,
    pub recorded_at: Timestamp,
}

/// Credits of a grant were taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct VoidReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub grant_id: GrantId,
    pub source: GrantSource,
    /// What was taken back.
    pub credits: Credits,
    /// What remains of the grant.
    pub remaining_credits: Credits,
    pub reason: Label,
    pub current_credits: Credits,
    pub recorded_at: Timestamp,
}

/// A deduction or a capture was given back, as a whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RefundReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub refund_id: RefundId,
    /// The usage log of what was refunded.
    pub usage_id: UsageId,
    pub feature_code: FeatureCode,
    /// What was given back.
    pub credits: Credits,
    /// The grants that the credits went to: those that they came from, or a new one where that has expired.
    pub grants: Vec<GrantShare>,
    /// The part that went back to the overdraft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_credits: Option<Credits>,
    /// What the credits of these grants repaid of other debt at once.
    pub debt_repaid: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Label>,
    pub current_credits: Credits,
    /// It has fallen if the deduction was made in the period that is still the current one.
    pub used_this_month: Credits,
    pub recorded_at: Timestamp,
}

/// A purchase was taken back, as a whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ReversalReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub reversal_id: ReversalId,
    /// The purchase.
    pub grant_id: GrantId,
    pub reason: ReversalReason,
    /// What was reversed: `credits_removed`, `credits_owed` and `credits_written_off`.
    pub credits: Credits,
    /// What was reversed of the amount paid, in minor units of the currency.
    pub amount_minor: i64,
    /// ISO 4217.
    pub currency: String,
    /// What was removed from the purchase.
    pub credits_removed: Credits,
    /// What was spent and became debt.
    pub credits_owed: Credits,
    /// What was spent or has expired, and nobody owes.
    pub credits_written_off: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bonus_grant_id: Option<GrantId>,
    /// What was removed from the bonus.
    pub bonus_removed: Credits,
    /// What is held of the bonus and became debt.
    pub bonus_owed: Credits,
    /// What other credits repaid of the debt at once.
    pub debt_repaid: Credits,
    pub current_credits: Credits,
    pub recorded_at: Timestamp,
}

/// A hold was placed, extended or released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct HoldReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub hold_id: HoldId,
    pub state: HoldState,
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// What it reserves, or has released.
    pub credits: Credits,
    /// The grants that the credits are of, in burn order.
    pub grants: Vec<GrantShare>,
    /// The part that is reserved from the overdraft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_credits: Option<Credits>,
    /// The price at which a quantity is captured. Absent if the feature had none when the hold was placed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit_price: Option<Credits>,
    /// It cannot be captured at or after this instant.
    pub expires_at: Timestamp,
    /// What can be spent now, whatever the feature.
    pub available_credits: Credits,
    /// The balance, which held credits are part of.
    pub current_credits: Credits,
    pub recorded_at: Timestamp,
    /// Why it was accepted, if `explain` was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Explanation>)]
    pub decision: Option<Box<Explanation>>,
}

/// A hold was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CaptureReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub hold_id: HoldId,
    /// `expired` if it was captured late.
    pub state: HoldState,
    /// The usage log of the capture.
    pub usage_id: UsageId,
    pub feature_code: FeatureCode,
    /// What was charged. It may be more than what was held.
    pub captured_credits: Credits,
    /// What was held and not charged. It can be spent again, unless its grant has expired meanwhile.
    pub released_credits: Credits,
    /// What could not be charged.
    pub uncovered_credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantity: Option<Quantity>,
    /// The grants that the credits were taken from.
    pub grants: Vec<GrantShare>,
    /// The part that was taken from the overdraft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_credits: Option<Credits>,
    /// What can be spent now, whatever the feature.
    pub available_credits: Credits,
    /// The balance after the capture.
    pub current_credits: Credits,
    pub used_this_month: Credits,
    pub recorded_at: Timestamp,
}

/// One or more billing periods began: more than one if some were missed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ResetReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    /// The periods that began, in order.
    pub resets: Vec<CreditReset>,
    pub subscription: SubscriptionView,
    pub current_credits: Credits,
    pub recorded_at: Timestamp,
}

/// A subscription changed, or a change was scheduled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SubscriptionReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub subscription: SubscriptionView,
    /// Credits that the change granted: the difference of the allowances by the credit policy, or the
    /// allowance of the new period.
    pub credits_granted: Credits,
    /// Credits that the change removed: unspent allowance, or credits that expired with the old period.
    pub credits_removed: Credits,
    /// Credits that a lower allowance should have removed, but that were already spent. What a later change in this
    /// period grants is less by them.
    pub credits_uncollected: Credits,
    /// Credits that the change would have granted too, had an earlier change in this period collected all it should.
    pub credits_set_off: Credits,
    /// Credits that belong to no period and expire, the soonest first, at most 50.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub expiring: Vec<ExpiringCredits>,
    /// Credits that cannot be spent until the workspace subscribes again.
    pub frozen_credits: Credits,
    pub current_credits: Credits,
    pub recorded_at: Timestamp,
}

/// A workspace was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProvisionReceipt {
    pub command_id: CommandId,
    pub workspace_id: WorkspaceId,
    pub name: Label,
    pub time_zone: String,
    pub subscription: SubscriptionView,
    pub current_credits: Credits,
    pub recorded_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InternalReceipt {
    pub command_id: CommandId,
    pub recorded_at: Timestamp,
}

/// A subscription as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SubscriptionView {
    pub subscription_id: SubscriptionId,
    pub plan_code: PlanCode,
    pub plan_version: i32,
    pub status: SubscriptionStatus,
    pub period: Period,
    /// Grows with every change. Send it as `expected_version` to refuse your change if the subscription has
    /// changed since.
    pub version: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canceled_at: Option<Timestamp>,
}

impl From<&Subscription> for SubscriptionView {
    fn from(subscription: &Subscription) -> Self {
        Self {
            subscription_id: subscription.subscription_id,
            plan_code: subscription.plan_code.clone(),
            plan_version: subscription.plan_version,
            status: subscription.status,
            period: subscription.period,
            version: subscription.version,
            pending: subscription.pending(),
            canceled_at: subscription.canceled_at,
        }
    }
}

impl From<&WorkspaceState> for SubscriptionView {
    fn from(state: &WorkspaceState) -> Self {
        Self::from(&state.subscription)
    }
}
