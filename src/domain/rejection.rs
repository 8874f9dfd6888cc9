//! Every reason for which a business rule refuses a command. The order of the checks is in each command's `decide`.
//!
//! A rejection is an expected answer, not an error. It is stored like any other answer, so that sending the
//! command again returns it again; [`Rejection::is_recorded`] lists the exceptions.

use super::credits::{Credits, OutOfRange};
use super::event::LimitScope;
use super::grant::GrantSource;
use super::hold::HoldState;
use super::ids::{GrantId, HoldId};
use super::text::{FeatureCode, PaymentReference, PlanCode};
use super::time::Timestamp;
use super::usage::UsageId;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("the workspace does not exist")]
    WorkspaceNotFound,
    #[error("the workspace already exists with another definition")]
    WorkspaceExists,
    /// A well-formed time that is too early or too late now. Checked when the command is decided, not when the
    /// body is read, so that a stored command can be replayed at any time.
    #[error("{pointer}: {detail}")]
    TimeOutOfRange {
        /// The field, as a JSON pointer into the command's body.
        pointer: &'static str,
        detail: &'static str,
    },
    #[error("plan {0} does not exist")]
    PlanNotFound(PlanCode),
    #[error("plan {0} is no longer offered")]
    PlanNotOffered(PlanCode),
    #[error("the subscription is at version {actual}, not {expected}")]
    VersionMismatch { expected: i64, actual: i64 },
    #[error("the subscription has ended")]
    SubscriptionCanceled,
    #[error("the workspace already has this version of plan {0}")]
    PlanUnchanged(PlanCode),
    #[error("the new plan has another period length: use credit_policy restart, or change at the period's end")]
    RestartRequired,
    #[error("no change or cancellation is scheduled")]
    NothingScheduled,
    #[error("no reset is due before the period ends at {ends_at}")]
    ResetNotDue { ends_at: Timestamp },
    #[error("the next period to begin starts at {next}")]
    PeriodMismatch { next: Timestamp },
    #[error("payment reference {reference} was already used: it paid for grant {grant_id}")]
    PaymentReferenceUsed { reference: PaymentReference, grant_id: GrantId },
    #[error("the maximum of {0} open grants is reached")]
    TooManyGrants(usize),
    #[error("there is no grant {0}")]
    GrantNotFound(GrantId),
    #[error("a grant of source {} cannot be voided, only a promotion or an adjustment", .0.as_str())]
    GrantNotVoidable(GrantSource),
    #[error("the grant is closed: nothing of it is left to void")]
    GrantClosed,
    #[error("{requested} credits to void, {remaining} remaining")]
    VoidExceedsRemaining { requested: Credits, remaining: Credits },
    #[error("there is no usage log {0}")]
    UsageLogNotFound(UsageId),
    #[error("{requested} credits to refund, {left} of the usage not refunded yet")]
    RefundExceedsUsage { requested: Credits, left: Credits },
    #[error("there is no purchase {0}")]
    PurchaseNotFound(GrantId),
    #[error("more than is left of the purchase: {left} credits, paid with {left_minor} in minor units")]
    ReversalExceedsPurchase { left: Credits, left_minor: i64 },
    /// No version of a plan has it, and this workspace has agreed on no terms for it.
    #[error("there is no feature {0}")]
    FeatureNotFound(FeatureCode),
    #[error("feature {0} is not available to this workspace")]
    FeatureDisabled(FeatureCode),
    #[error("feature {0} has no unit price: send credits instead of a quantity")]
    FeatureNotPriced(FeatureCode),
    #[error("{}", limit_exceeded(*limit, *used, *held, *requested, *resets_at, *window_s))]
    LimitExceeded {
        scope: LimitScope,
        limit: Credits,
        used: Credits,
        /// What open holds reserve.
        held: Credits,
        requested: Credits,
        /// When usage counts from zero again. None if the request is larger than the whole limit: it never passes.
        resets_at: Option<Timestamp>,
        /// The length of the window, if the limit is that of a rate.
        window_s: Option<u32>,
    },
    #[error("the rate of {limit} credits in {window_s} seconds would be exceeded")]
    RateExceeded {
        limit: Credits,
        window_s: u32,
        /// Whole seconds until the window ends, at least one.
        retry_after_s: u32,
    },
    #[error("{requested} credits requested, {available} available")]
    InsufficientCredits { requested: Credits, available: Credits },
    #[error("the balance would be outside the range of ±10^12 credits")]
    BalanceOutOfRange,
    #[error("there is no hold {0}")]
    HoldNotFound(HoldId),
    #[error("the hold is over: it was {}", .0.as_str())]
    HoldOver(HoldState),
    #[error("the hold expired at {0}")]
    HoldExpired(Timestamp),
    #[error("{requested} credits to capture, {held} held")]
    CaptureExceedsHold { requested: Credits, held: Credits },
    #[error("the maximum of {0} open holds is reached")]
    TooManyHolds(i16),
    #[error("the credits lie in more than {0} grants")]
    HoldSpansTooManyGrants(usize),
}

fn limit_exceeded(
    limit: Credits,
    used: Credits,
    held: Credits,
    requested: Credits,
    resets_at: Option<Timestamp>,
    window_s: Option<u32>,
) -> String {
    match (resets_at, window_s) {
        (Some(_), _) => {
            let held = if held.is_zero() { String::new() } else { format!("{held} held, ") };
            format!(
                "the limit of {limit} credits in this period would be exceeded: {used} used, {held}{requested} requested"
            )
        }
        (None, Some(seconds)) => {
            format!("{requested} credits requested, but at most {limit} can be used within {seconds} seconds")
        }
        (None, None) => {
            format!("{requested} credits requested, but at most {limit} can be used in a billing period")
        }
    }
}

impl Rejection {
    /// The stable code that callers match on.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::WorkspaceNotFound => "workspace-not-found",
            Self::WorkspaceExists => "workspace-exists",
            Self::TimeOutOfRange { .. } => "invalid-field",
            Self::PlanNotFound(_) => "plan-not-found",
            Self::PlanNotOffered(_) => "plan-not-offered",
            Self::VersionMismatch { .. } => "version-mismatch",
            Self::SubscriptionCanceled => "subscription-canceled",
            Self::PlanUnchanged(_) => "plan-unchanged",
            Self::RestartRequired => "restart-required",
            Self::NothingScheduled => "nothing-scheduled",
            Self::ResetNotDue { .. } => "reset-not-due",
            Self::PeriodMismatch { .. } => "period-mismatch",
            Self::PaymentReferenceUsed { .. } => "payment-reference-used",
            Self::TooManyGrants(_) => "too-many-grants",
            Self::GrantNotFound(_) => "grant-not-found",
            Self::GrantNotVoidable(_) => "grant-not-voidable",
            Self::GrantClosed => "grant-closed",
            Self::VoidExceedsRemaining { .. } => "void-exceeds-remaining",
            Self::UsageLogNotFound(_) => "usage-log-not-found",
            Self::RefundExceedsUsage { .. } => "refund-exceeds-usage",
            Self::PurchaseNotFound(_) => "purchase-not-found",
            Self::ReversalExceedsPurchase { .. } => "reversal-exceeds-purchase",
            Self::FeatureNotFound(_) => "feature-not-found",
            Self::FeatureDisabled(_) => "feature-disabled",
            Self::FeatureNotPriced(_) => "feature-not-priced",
            Self::LimitExceeded { .. } => "limit-exceeded",
            Self::RateExceeded { .. } => "rate-exceeded",
            Self::InsufficientCredits { .. } => "insufficient-credits",
            Self::BalanceOutOfRange => "amount-out-of-range",
            Self::HoldNotFound(_) => "hold-not-found",
            Self::HoldOver(_) => "hold-over",
            Self::HoldExpired(_) => "hold-expired",
            Self::CaptureExceedsHold { .. } => "capture-exceeds-hold",
            Self::TooManyHolds(_) => "too-many-holds",
            Self::HoldSpansTooManyGrants(_) => "hold-spans-too-many-grants",
        }
    }

    /// Whether the refusal of a deduction or a hold is explained, with what would help: it is about what the workspace has
    /// and may use.
    #[must_use]
    pub const fn is_explained(&self) -> bool {
        matches!(
            self,
            Self::FeatureDisabled(_)
                | Self::FeatureNotPriced(_)
                | Self::LimitExceeded { .. }
                | Self::RateExceeded { .. }
                | Self::InsufficientCredits { .. }
                | Self::TooManyHolds(_)
                | Self::HoldSpansTooManyGrants(_)
        )
    }

    /// Whether the refusal is stored under the command's key. It is not stored if there is no workspace to store
    /// it with, if the same command should be tried again later, or if a field or an id must be corrected first.
    #[must_use]
    pub const fn is_recorded(&self) -> bool {
        !matches!(
            self,
            Self::WorkspaceNotFound
                | Self::WorkspaceExists
                | Self::GrantNotFound(_)
                | Self::HoldNotFound(_)
                | Self::UsageLogNotFound(_)
                | Self::PurchaseNotFound(_)
                | Self::FeatureNotFound(_)
                | Self::TimeOutOfRange { .. }
                | Self::RateExceeded { .. }
        )
    }
}

impl From<OutOfRange> for Rejection {
    fn from(_: OutOfRange) -> Self {
        Self::BalanceOutOfRange
    }
}
