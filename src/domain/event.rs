//! Events: facts about the domain, in the words in which they go out.
//!
//! Every type here *is* the contract: the JSON Schema under `openapi/events/` is generated from it.
//! A field may be added; none is ever removed, renamed or given another meaning without a new
//! `schema_version`.
//!
//! Each movement into the `expired` account is told by exactly one event: `CreditsExpired` (the
//! sweeper), `CreditReset.expired` (a period's end) or `SubscriptionChanged.credits_removed`.

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

/// The name under which events of this service go out.
pub const SERVICE_NAME: &str = "visionscope-billing";

/// Declares the closed set of events: the enum of types, the enum of data, and how they match.
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

        /// What an event says.
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

/// A part of a deduction, a purchase or an expiry that one grant bore.
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
    /// Which grants paid, in the order in which they burned.
    pub grants: Vec<GrantShare>,
    /// What went beyond the grants, into the overdraft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overdraft_credits: Option<Credits>,
    /// The balance after it.
    pub current_credits: Credits,
    pub used_this_month: Credits,
    pub occurred_at: Timestamp,
}

/// A deduction was refused for want of credits.
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

/// What a limit bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitScope {
    Feature,
    Workspace,
    /// One deduction of more than the plan's rate lets through in a whole window.
    Window,
}

/// A deduction was refused at a hard limit, or passed a soft one for the first time in this period.
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
    /// When the period ends and the limit begins anew.
    pub resets_at: Timestamp,
}

/// Credits were bought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CreditsPurchased {
    pub grant_id: GrantId,
    pub credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bonus_grant_id: Option<GrantId>,
    pub bonus_credits: Credits,
    /// What was paid, in minor units of the currency.
    pub amount_minor: i64,
    /// ISO 4217.
    pub currency: String,
    pub payment_reference: PaymentReference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// What of it paid back an overdraft.
    pub debt_repaid: Credits,
    pub current_credits: Credits,
}

/// Credits reached their expiry unspent.
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
    /// What of the old period's credits was lost.
    pub expired: Credits,
    /// What of them was carried over.
    pub rolled_over: Credits,
    /// The new allowance; less than the plan's only where the balance would pass its largest value.
    pub granted: Credits,
    /// What was used in the period before.
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
    /// It will end with the period.
    CancelScheduled,
    /// It has ended.
    Canceled,
    /// A scheduled change or cancellation was withdrawn.
    Resumed,
    /// An ended subscription began anew.
    Reactivated,
}

/// What was waiting for the period's end.
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

/// How the terms of one feature changed; without `before`, the feature is new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FeatureChange {
    pub feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<FeatureTerms>,
    pub after: FeatureTerms,
}

/// A subscription changed, or will.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SubscriptionChanged {
    pub change: SubscriptionChangeKind,
    pub effective_at: Timestamp,
    pub before: SubscriptionSummary,
    pub after: SubscriptionSummary,
    /// The plan that a scheduled change will bring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_plan_code: Option<PlanCode>,
    /// What had been scheduled before and will not take effect now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<ScheduledKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit_policy: Option<CreditPolicy>,
    /// Features whose terms changed with it.
    pub features: Vec<FeatureChange>,
    pub credits_granted: Credits,
    pub credits_removed: Credits,
    /// What a lower allowance should have taken back, but was already spent.
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

/// An event as it is stored, with its place in the partition's and in the workspace's sequence.
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
    /// JSON, as the command brought it.
    pub metadata: Option<String>,
    /// JSON, as one of the types above wrote it.
    pub data: String,
}

/// An event as it goes out: in a stream's entry, and from the API.
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
    /// The envelope, in one canonical form: what a stream holds can be compared byte for byte.
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
