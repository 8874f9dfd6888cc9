//! The list of all commands, and what is known about each before it is decided.

use super::advance_period::AdvancePeriod;
use super::cancel_subscription::CancelSubscription;
use super::capture_hold::CaptureHold;
use super::deduct_credits::DeductCredits;
use super::due_work::Prerequisite;
use super::expire_grants::ExpireGrants;
use super::expire_holds::ExpireHolds;
use super::extend_hold::ExtendHold;
use super::grant_credits::GrantCredits;
use super::place_hold::PlaceHold;
use super::process_subscription_change::ProcessSubscriptionChange;
use super::provision_workspace::ProvisionWorkspace;
use super::purchase_credits::PurchaseCredits;
use super::refund_usage::RefundUsage;
use super::release_hold::ReleaseHold;
use super::repay_debt::RepayDebt;
use super::reset_monthly_credits::ResetMonthlyCredits;
use super::resume_subscription::ResumeSubscription;
use super::reverse_purchase::ReversePurchase;
use super::spending::Charge;
use super::void_grant::VoidGrant;
use super::warn_of_expiry::WarnOfExpiry;
use crate::domain::text::FeatureCode;

/// One change that a caller or the scheduler wants in one workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    DeductCredits(DeductCredits),
    PurchaseCredits(PurchaseCredits),
    GrantCredits(GrantCredits),
    VoidGrant(VoidGrant),
    RefundUsage(RefundUsage),
    ReversePurchase(ReversePurchase),
    PlaceHold(PlaceHold),
    CaptureHold(CaptureHold),
    ReleaseHold(ReleaseHold),
    ExtendHold(ExtendHold),
    ResetMonthlyCredits(ResetMonthlyCredits),
    ProcessSubscriptionChange(ProcessSubscriptionChange),
    CancelSubscription(CancelSubscription),
    ResumeSubscription(ResumeSubscription),
    ProvisionWorkspace(ProvisionWorkspace),
    /// Sent by the scheduler: passes every period boundary that is due.
    AdvancePeriod(AdvancePeriod),
    /// Comes before other commands: repays debt with grants that have begun.
    RepayDebt(RepayDebt),
    /// Sent by the scheduler: books expired holds.
    ExpireHolds(ExpireHolds),
    /// Sent by the scheduler: books expired grants.
    ExpireGrants(ExpireGrants),
    /// Sent by the scheduler: reports grants that will expire soon.
    WarnOfExpiry(WarnOfExpiry),
}

impl Command {
    /// The name in the API and in stored records.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::DeductCredits(_) => "DeductCredits",
            Self::PurchaseCredits(_) => "PurchaseCredits",
            Self::GrantCredits(_) => "GrantCredits",
            Self::VoidGrant(_) => "VoidGrant",
            Self::RefundUsage(_) => "RefundUsage",
            Self::ReversePurchase(_) => "ReversePurchase",
            Self::PlaceHold(_) => "PlaceHold",
            Self::CaptureHold(_) => "CaptureHold",
            Self::ReleaseHold(_) => "ReleaseHold",
            Self::ExtendHold(_) => "ExtendHold",
            Self::ResetMonthlyCredits(_) => "ResetMonthlyCredits",
            Self::ProcessSubscriptionChange(_) => "ProcessSubscriptionChange",
            Self::CancelSubscription(_) => "CancelSubscription",
            Self::ResumeSubscription(_) => "ResumeSubscription",
            Self::ProvisionWorkspace(_) => "ProvisionWorkspace",
            Self::AdvancePeriod(_) => "AdvancePeriod",
            Self::RepayDebt(_) => "RepayDebt",
            Self::ExpireHolds(_) => "ExpireHolds",
            Self::ExpireGrants(_) => "ExpireGrants",
            Self::WarnOfExpiry(_) => "WarnOfExpiry",
        }
    }

    /// The feature that a deduction or a hold is for.
    pub(super) const fn feature_code(&self) -> Option<&FeatureCode> {
        match self {
            Self::DeductCredits(command) => Some(&command.feature_code),
            Self::PlaceHold(command) => Some(&command.feature_code),
            _ => None,
        }
    }

    /// Whether the price of a feature decides what it costs.
    pub(super) const fn is_by_quantity(&self) -> bool {
        match self {
            Self::DeductCredits(DeductCredits { charge, .. }) | Self::PlaceHold(PlaceHold { charge, .. }) => {
                matches!(charge, Charge::Quantity(_))
            }
            _ => false,
        }
    }

    /// The same command, whose receipt says why it was accepted.
    #[must_use]
    pub fn explained(mut self) -> Self {
        match &mut self {
            Self::DeductCredits(command) => command.explain = true,
            Self::PlaceHold(command) => command.explain = true,
            _ => {}
        }
        self
    }

    /// Whether the server sends the command itself. No caller waits for the answer.
    #[must_use]
    pub const fn is_internal(&self) -> bool {
        matches!(
            self,
            Self::AdvancePeriod(_)
                | Self::RepayDebt(_)
                | Self::ExpireHolds(_)
                | Self::ExpireGrants(_)
                | Self::WarnOfExpiry(_)
        )
    }

    /// Whether that work must be done before this command is decided.
    pub(super) fn comes_after(&self, due: Prerequisite) -> bool {
        match self {
            Self::DeductCredits(_)
            | Self::PurchaseCredits(_)
            | Self::GrantCredits(_)
            | Self::VoidGrant(_)
            | Self::RefundUsage(_)
            | Self::ReversePurchase(_)
            | Self::PlaceHold(_)
            | Self::CaptureHold(_)
            | Self::ReleaseHold(_)
            | Self::ExtendHold(_)
            | Self::ProcessSubscriptionChange(_)
            | Self::CancelSubscription(_)
            | Self::ResumeSubscription(_) => true,
            // A reset passes the boundary itself, and of what has expired nobody is warned.
            Self::ResetMonthlyCredits(_) | Self::WarnOfExpiry(_) => due != Prerequisite::Boundary,
            // What a grant has repaid does not expire, nor does the next period's allowance repay it. Held credits go back
            // to the period that they are of.
            Self::AdvancePeriod(_) | Self::ExpireGrants(_) => {
                matches!(due, Prerequisite::Repayment | Prerequisite::HoldExpiry)
            }
            Self::ExpireHolds(_) => due == Prerequisite::Repayment,
            Self::ProvisionWorkspace(_) | Self::RepayDebt(_) => false,
        }
    }
}
