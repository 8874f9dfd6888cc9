//! Events: immutable facts. Their data, in the form in which it is stored and published; the attributes around it are
//! in [`super::cloud_event`].
//!
//! The types here are the contract: the JSON Schemas in `openapi/events/` are generated from them. A field may be
//! added. To remove or rename one, or to change its meaning, raise the `schema_version`.
//!
//! Every event carries `current_credits`: the balance after what the event itself tells. So the events of a workspace
//! can be summed up ([`EventData::balance_change`]), and whoever does it can see after each that nothing is missing.
//!
//! Each entry into the `expired` account is reported by exactly one event: `CreditsExpired` (a grant's expiry, or the
//! release of a hold after it), `CreditReset.expired` (a period's end) or `SubscriptionChanged.credits_removed`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::jobs::{JobCompleted, JobFailed, JobSubmitted};
use super::credits::{Credits, OutOfRange, Quantity};
use super::grant::GrantSource;
use super::ids::{GrantId, HoldId, RefundId, ReversalId};
use super::metadata::Metadata;
use super::period::Period;
use super::plan::FeatureTerms;
use super::reversal::ReversalReason;
use super::subscription::{CreditPolicy, PendingView, SubscriptionStatus};
use super::text::{FeatureCode, Label, PaymentReference, PlanCode, UserId};
use super::time::Timestamp;
use super::usage::UsageId;

mod jobs;

/// Declares all events: the enum of their types, the enum of their data, and the mapping between them.
macro_rules! events {
    ($($name:ident $version:literal),+ $(,)?) => {
        /// The type of an event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum EventType { $($name),+ }

        impl EventType {
            pub const ALL: &[Self] = &[$(Self::$name),+];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }

            /// The version of its data's schema.
            #[must_use]
            pub const fn schema_version(self) -> i16 {
                match self { $(Self::$name => $version),+ }
            }

            /// The schema of its data, and of what that refers to.
            #[must_use]
            pub fn schema(self) -> (utoipa::openapi::RefOr<utoipa::openapi::Schema>, Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>) {
                let mut parts = Vec::new();
                match self {
                    $(Self::$name => {
                        <$name as ToSchema>::schemas(&mut parts);
                        (<$name as utoipa::PartialSchema>::schema(), parts)
                    })+
                }
            }
        }

        /// The data of an event.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        pub enum EventData { $($name($name)),+ }

        impl EventData {
            #[must_use]
            pub const fn event_type(&self) -> EventType {
                match self { $(Self::$name(_) => EventType::$name),+ }
            }

            /// The balance after what the event tells.
            #[must_use]
            pub const fn current_credits(&self) -> Credits {
                match self { $(Self::$name(data) => data.current_credits),+ }
            }

            /// Parses the data of a stored or published event. Fields that this version does not know are ignored.
            pub fn parse(event_type: EventType, json: &str) -> serde_json::Result<Self> {
                match event_type { $(EventType::$name => serde_json::from_str::<$name>(json).map(Self::$name)),+ }
            }
        }

        $(impl From<$name> for EventData {
            fn from(data: $name) -> Self { Self::$name(data) }
        })+
    };
}

events! {
    CreditConsumed 1,
    CreditsHeld 1,
    HoldReleased 1,
    CreditLimitExceeded 1,
    LowCreditWarning 1,
    UsageLimitExceeded 1,
    CreditsPurchased 1,
    CreditsGranted 1,
    GrantVoided 1,
    CreditsRefunded 1,
    PurchaseReversed 1,
    CreditsExpiring 1,
    CreditsExpired 1,
    DebtRepaid 1,
    CreditReset 1,
    SubscriptionChanged 1,
    WorkspaceProvisioned 1,
    JobSubmitted 1,
    JobCompleted 1,
    JobFailed 1,
}

impl EventData {
    /// What the event tells was added to the balance, or taken from it.
    pub fn balance_change(&self) -> Result<Credits, OutOfRange> {
        let (added, taken) = match self {
            Self::CreditConsumed(data) => (Credits::ZERO, data.credits),
            Self::CreditsPurchased(data) => (data.credits.plus(data.bonus_credits)?, Credits::ZERO),
            Self::CreditsGranted(data) => (data.credits, Credits::ZERO),
            Self::GrantVoided(data) => (Credits::ZERO, data.credits),
            Self::CreditsRefunded(data) => (data.credits, Credits::ZERO),
            Self::PurchaseReversed(data) => {
                let bonus = data.bonus_removed.plus(data.bonus_owed)?;
                (Credits::ZERO, data.credits_removed.plus(data.credits_owed)?.plus(bonus)?)
            }
            Self::CreditsExpired(data) => (Credits::ZERO, data.credits),
            Self::CreditReset(data) => (data.granted, data.expired),
            Self::SubscriptionChanged(data) => (data.credits_granted, data.credits_removed),
            Self::WorkspaceProvisioned(data) => (data.granted, Credits::ZERO),
            Self::CreditsHeld(_)
            | Self::HoldReleased(_)
            | Self::CreditLimitExceeded(_)
            | Self::LowCreditWarning(_)
            | Self::UsageLimitExceeded(_)
            | Self::CreditsExpiring(_)
            | Self::DebtRepaid(_)
            | Self::JobSubmitted(_)
            | Self::JobCompleted(_)
            | Self::JobFailed(_) => (Credits::ZERO, Credits::ZERO),
        };
        added.minus(taken)
    }

    /// The JSON that is stored and published: the fields of the event, and `metadata` if its command has some.
    pub fn to_json(&self, metadata: Option<&Metadata>) -> serde_json::Result<String> {
        serde_json::to_string(&Published { data: self, metadata })
    }
}

/// The data of an event with the metadata of its command.
#[derive(Serialize)]
struct Published<'a> {
    #[serde(flatten)]
    data: &'a EventData,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a Metadata>,
}

/// The part of an amount that is of one grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GrantShare {
    pub grant_id: GrantId,
    pub source: GrantSource,
    pub credits: Credits,
}

/// A deduction was accepted, or a hold was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditConsumed {
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    pub credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantity: Option<Quantity>,
    /// The grants that the credits were taken from, in burn order.
    pub grants: Vec<GrantShare>,
    /// The part that was taken from the overdraft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_credits: Option<Credits>,
    /// The hold that was captured. A deduction has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_id: Option<HoldId>,
    /// What the hold reserved and the capture did not take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released_credits: Option<Credits>,
    /// The part of a capture that could not be charged. It is not in `credits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncovered_credits: Option<Credits>,
    /// The balance after it.
    pub current_credits: Credits,
    pub used_this_month: Credits,
    pub occurred_at: Timestamp,
}

/// Credits were reserved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditsHeld {
    pub hold_id: HoldId,
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    pub credits: Credits,
    /// The grants that the credits were reserved from, in burn order.
    pub grants: Vec<GrantShare>,
    /// The part that was reserved from the overdraft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_credits: Option<Credits>,
    pub expires_at: Timestamp,
    /// What can still be spent, whatever the feature.
    pub available_credits: Credits,
    /// The balance, which held credits are part of.
    pub current_credits: Credits,
}

/// Why a hold ended without a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseReason {
    /// A caller released it.
    Released,
    /// It was not captured in time.
    Expired,
}

/// A hold ended, and its credits can be spent again. Those whose grant has expired meanwhile expire at once:
/// `CreditsExpired` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HoldReleased {
    pub hold_id: HoldId,
    pub reason: ReleaseReason,
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    pub credits: Credits,
    /// The grants that the credits went back to.
    pub grants: Vec<GrantShare>,
    /// The part that went back to the overdraft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_credits: Option<Credits>,
    pub current_credits: Credits,
}

/// A deduction or a hold was refused because there are not enough credits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditLimitExceeded {
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    pub requested_credits: Credits,
    /// What could have been spent on this feature, the overdraft included.
    pub available_credits: Credits,
    pub current_credits: Credits,
}

/// The available credits fell to or below a threshold of the plan. Raised once, until the balance
/// has been above the threshold again or a new period has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LowCreditWarning {
    pub threshold_credits: Credits,
    pub available_credits: Credits,
    pub current_credits: Credits,
}

/// What a limit applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitScope {
    Feature,
    Workspace,
    /// One request that costs more than the plan's rate allows in a whole window.
    Window,
}

/// A deduction or a hold was refused at a hard limit, or was the first in this period to exceed a soft limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageLimitExceeded {
    pub scope: LimitScope,
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    pub limit_credits: Credits,
    /// Used in this period before this request.
    pub used_credits: Credits,
    /// Reserved by open holds, which count as used. Of a rate window they are part of `used_credits`.
    pub held_credits: Credits,
    pub requested_credits: Credits,
    /// Whether the request was refused.
    pub refused: bool,
    /// When the period ends and usage is counted from zero. Absent if the request is larger than the whole limit, so that
    /// it never passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Timestamp>,
    /// The length of the window in seconds, if the scope is `window`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_s: Option<u32>,
    /// The balance. A refusal does not change it, and a soft limit is reported after the deduction.
    pub current_credits: Credits,
}

/// Credits were bought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditsPurchased {
    pub grant_id: GrantId,
    pub credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bonus_grant_id: Option<GrantId>,
    pub bonus_credits: Credits,
    /// The amount paid, in minor units of the currency.
    pub amount_minor: i64,
    /// ISO 4217.
    pub currency: String,
    pub payment_reference: PaymentReference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The part that repaid debt.
    pub debt_repaid: Credits,
    /// Whether they can be spent now. They cannot while they are frozen, because the subscription has ended.
    pub spendable: bool,
    pub current_credits: Credits,
}

/// A caller granted credits that nobody paid for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditsGranted {
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
    /// Whether they can be spent now. They cannot before `effective_at`, nor while they are frozen because the
    /// subscription has ended.
    pub spendable: bool,
    /// The balance, which the credits are in at once.
    pub current_credits: Credits,
}

/// Credits of a grant were taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GrantVoided {
    pub grant_id: GrantId,
    pub source: GrantSource,
    /// What was taken back.
    pub credits: Credits,
    /// What remains of the grant.
    pub remaining_credits: Credits,
    pub reason: Label,
    pub current_credits: Credits,
}

/// A deduction or a capture was given back, as a whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditsRefunded {
    pub refund_id: RefundId,
    /// The usage log of what was refunded.
    pub usage_id: UsageId,
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
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
}

/// A purchase was taken back, as a whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PurchaseReversed {
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
}

/// Unspent credits that belong to no period will expire soon. Raised once for each grant, as many days before as the plan
/// says, but not before the grant begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditsExpiring {
    pub grant_id: GrantId,
    pub source: GrantSource,
    /// What remains of the grant.
    pub credits: Credits,
    /// They cannot be spent at or after this instant.
    pub expires_at: Timestamp,
    pub current_credits: Credits,
}

/// Unspent credits expired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditsExpired {
    pub credits: Credits,
    pub grants: Vec<GrantShare>,
    pub current_credits: Credits,
}

/// Credits of grants repaid debt. The balance stays the same, because debt is taken off it: raised by every command that
/// repays some, after its other events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DebtRepaid {
    /// What was repaid.
    pub credits: Credits,
    /// The grants that the credits were taken from.
    pub grants: Vec<GrantShare>,
    /// What is left of the debt.
    pub debt_credits: Credits,
    pub current_credits: Credits,
}

/// A billing period began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditReset {
    pub period: Period,
    pub plan_code: PlanCode,
    pub plan_version: i32,
    /// Credits of the old period that expired.
    pub expired: Credits,
    /// Credits of the old period that were carried over.
    pub rolled_over: Credits,
    /// The new allowance. It is less than the plan's only if the balance would exceed its largest value.
    pub granted: Credits,
    /// Credits that were used in the previous period.
    pub previously_used: Credits,
    pub debt_repaid: Credits,
    pub current_credits: Credits,
}

/// What happened to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionChangeKind {
    /// Another plan is in force.
    Changed,
    /// Another plan will be in force when the period ends.
    ChangeScheduled,
    /// The subscription will end with the period.
    CancelScheduled,
    /// The subscription has ended.
    Canceled,
    /// A scheduled change or cancellation was withdrawn.
    Resumed,
    /// An ended subscription was reactivated.
    Reactivated,
}

/// What was scheduled for the period's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduledKind {
    Change,
    Cancel,
}

/// A subscription at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubscriptionSummary {
    pub plan_code: PlanCode,
    pub plan_version: i32,
    pub status: SubscriptionStatus,
    pub period: Period,
    pub version: i64,
}

/// How the terms of one feature changed. Without `before`, the feature is new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FeatureChange {
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<FeatureTerms>,
    pub after: FeatureTerms,
}

/// Credits of one grant, and when they expire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExpiringCredits {
    pub grant_id: GrantId,
    pub source: GrantSource,
    pub credits: Credits,
    pub expires_at: Timestamp,
}

/// A subscription changed, or a change was scheduled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubscriptionChanged {
    pub change: SubscriptionChangeKind,
    pub effective_at: Timestamp,
    pub before: SubscriptionSummary,
    pub after: SubscriptionSummary,
    /// What is scheduled for the end of the period, now or from before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingView>,
    /// What was scheduled before and will no longer take effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<ScheduledKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit_policy: Option<CreditPolicy>,
    /// Features whose terms changed.
    pub features: Vec<FeatureChange>,
    pub credits_granted: Credits,
    pub credits_removed: Credits,
    /// Credits that a lower allowance should have removed, but that were already spent.
    pub credits_uncollected: Credits,
    /// Credits that the change would have granted too, had an earlier change in this period collected all it should.
    pub credits_set_off: Credits,
    /// Credits that belong to no period and expire, the soonest first, at most 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub expiring: Vec<ExpiringCredits>,
    /// Credits that cannot be spent until the workspace subscribes again.
    pub frozen_credits: Credits,
    pub current_credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Label>,
}

/// A workspace was created and subscribed to its first plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkspaceProvisioned {
    pub name: Label,
    pub time_zone: String,
    pub plan_code: PlanCode,
    pub plan_version: i32,
    pub period: Period,
    /// The first allowance.
    pub granted: Credits,
    pub current_credits: Credits,
}
