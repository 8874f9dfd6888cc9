//! Events: immutable facts, in the form in which they are published.
//!
//! The types here are the contract: the JSON Schemas in `openapi/events/` are generated from them. A field may be
//! added. To remove or rename one, or to change its meaning, raise the `schema_version`.
//!
//! Each entry into the `expired` account is reported by exactly one event: `CreditsExpired` (a grant's expiry),
//! `CreditReset.expired` (a period's end) or `SubscriptionChanged.credits_removed`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::credits::{Credits, Quantity};
use super::grant::GrantSource;
use super::ids::{EventId, GrantId, Partition, WorkspaceId};
pub use super::metadata::Metadata;
use super::period::Period;
use super::plan::FeatureTerms;
use super::subscription::{CreditPolicy, SubscriptionStatus};
use super::text::{FeatureCode, Label, PaymentReference, PlanCode, UserId};
use super::time::Timestamp;

/// The name of this service in published events.
pub const SERVICE_NAME: &str = "visionscope-billing";

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
        }

        $(impl From<$name> for EventData {
            fn from(data: $name) -> Self { Self::$name(data) }
        })+
    };
}

events! {
    CreditConsumed 1,
    CreditLimitExceeded 1,
    LowCreditWarning 1,
    UsageLimitExceeded 1,
    CreditsPurchased 1,
    CreditsExpired 1,
    CreditReset 1,
    SubscriptionChanged 1,
    WorkspaceProvisioned 1,
}

impl EventType {
    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|event_type| event_type.as_str() == text)
    }
}

/// The part of a deduction or an expiry that was taken from one grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct GrantShare {
    pub grant_id: GrantId,
    pub source: GrantSource,
    pub credits: Credits,
}

/// A deduction was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
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
    /// The balance after the deduction.
    pub current_credits: Credits,
    pub used_this_month: Credits,
    pub occurred_at: Timestamp,
}

/// A deduction was refused because there are not enough credits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CreditLimitExceeded {
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    pub requested_credits: Credits,
    /// What could have been spent on this feature, the overdraft included.
    pub available_credits: Credits,
}

/// The available credits fell to or below a threshold of the plan. Raised once, until the balance
/// has been above the threshold again or a new period has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LowCreditWarning {
    pub threshold_credits: Credits,
    pub available_credits: Credits,
}

/// What a limit applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitScope {
    Feature,
    Workspace,
    /// One deduction that costs more than the plan's rate allows in a whole window.
    Window,
}

/// A deduction was refused at a hard limit, or was the first in this period to exceed a soft limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct UsageLimitExceeded {
    pub scope: LimitScope,
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    pub limit_credits: Credits,
    /// Used in this period before this deduction.
    pub used_credits: Credits,
    pub requested_credits: Credits,
    /// Whether the deduction was refused.
    pub refused: bool,
    /// When the period ends and usage is counted from zero. Absent if the request is larger than the whole limit, so that
    /// it never passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Timestamp>,
    /// The length of the window in seconds, if the scope is `window`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_s: Option<u32>,
}

/// Credits were bought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
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
    pub current_credits: Credits,
}

/// Unspent credits expired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CreditsExpired {
    pub credits: Credits,
    pub grants: Vec<GrantShare>,
    pub current_credits: Credits,
}

/// A billing period began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduledKind {
    Change,
    Cancel,
}

/// A subscription at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SubscriptionSummary {
    pub plan_code: PlanCode,
    pub plan_version: i32,
    pub status: SubscriptionStatus,
    pub period: Period,
    pub version: i64,
}

/// How the terms of one feature changed. Without `before`, the feature is new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FeatureChange {
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<FeatureTerms>,
    pub after: FeatureTerms,
}

/// A subscription changed, or a change was scheduled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SubscriptionChanged {
    pub change: SubscriptionChangeKind,
    pub effective_at: Timestamp,
    pub before: SubscriptionSummary,
    pub after: SubscriptionSummary,
    /// The plan of the scheduled change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_plan_code: Option<PlanCode>,
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
    pub current_credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Label>,
}

/// A workspace was created and subscribed to its first plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct WorkspaceProvisioned {
    pub name: Label,
    pub time_zone: String,
    pub plan_code: PlanCode,
    pub plan_version: i32,
    pub period: Period,
    /// The first allowance.
    pub granted: Credits,
}

/// An event as it is stored, with its numbers in the partition and in the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    pub event_id: EventId,
    pub event_type: EventType,
    pub schema_version: i16,
    pub partition: Partition,
    pub seq: i64,
    pub workspace_id: WorkspaceId,
    pub workspace_seq: i64,
    pub recorded_at: Timestamp,
    pub correlation_id: String,
    pub causation_id: Uuid,
    pub traceparent: Option<String>,
    /// JSON, as the caller sent it.
    pub metadata: Option<String>,
    /// JSON of one of the types above.
    pub data: String,
}

/// An event as consumers get it, from a stream or from the API.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventEnvelope {
    pub event_id: EventId,
    pub event_type: EventType,
    /// The version of the schema of `data`.
    pub schema_version: i16,
    pub service_name: String,
    pub partition: Partition,
    /// Gap-free within the partition, from 1.
    pub seq: i64,
    pub workspace_id: WorkspaceId,
    /// Gap-free within the workspace, from 1: a consumer that misses a number missed an event.
    pub workspace_seq: i64,
    pub occurred_at: Timestamp,
    pub correlation_id: String,
    /// The id of the command that caused it.
    pub causation_id: Uuid,
    /// W3C Trace Context of the request that caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Metadata>)]
    pub metadata: Option<Box<serde_json::value::RawValue>>,
    /// By event type: see `openapi/events/`.
    #[schema(value_type = Object)]
    pub data: Box<serde_json::value::RawValue>,
}

impl EventRecord {
    /// The envelope in its only form, so that the entries of a stream can be compared byte for byte.
    pub fn to_envelope(&self) -> Result<EventEnvelope, serde_json::Error> {
        let raw = |json: &str| serde_json::value::RawValue::from_string(json.to_owned());
        Ok(EventEnvelope {
            event_id: self.event_id,
            event_type: self.event_type,
            schema_version: self.schema_version,
            service_name: SERVICE_NAME.to_owned(),
            partition: self.partition,
            seq: self.seq,
            workspace_id: self.workspace_id,
            workspace_seq: self.workspace_seq,
            occurred_at: self.recorded_at,
            correlation_id: self.correlation_id.clone(),
            causation_id: self.causation_id,
            traceparent: self.traceparent.clone(),
            metadata: self.metadata.as_deref().map(raw).transpose()?,
            data: raw(&self.data)?,
        })
    }
}
