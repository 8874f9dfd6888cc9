//! Notifications: what the people of a workspace should be told, each once.
//!
//! The data of a kind is a contract as that of an event: fields may be added, so that stored notifications stay readable.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::credits::Credits;
use crate::domain::event::{LimitScope, SubscriptionChangeKind};
use crate::domain::grant::GrantSource;
use crate::domain::ids::{EventId, GrantId, NotificationId, Partition, WorkspaceId};
use crate::domain::subscription::PendingView;
use crate::domain::text::{FeatureCode, PlanCode};
use crate::domain::time::Timestamp;

/// What the fold must know of a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotifiedWorkspace {
    pub version: i32,
    pub workspace_id: WorkspaceId,
    pub partition: Partition,
    /// The start of the open statement's period.
    pub period_start: Timestamp,
    /// The number in the workspace of the last event that added credits.
    pub added_seq: i64,
    /// Whether it was told since then that credits are exhausted.
    pub is_exhausted: bool,
}

/// One notification. There is at most one of a workspace, a kind, a subject and a period, and it never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    pub version: i32,
    pub workspace_id: WorkspaceId,
    pub data: NotificationData,
    /// What it is about, among others of its kind: see [`NotificationData`].
    pub subject: String,
    /// The start of the period that was the workspace's before the event. Of a closed statement, the start of its period.
    pub period_start: Timestamp,
    pub partition: Partition,
    pub notification_id: NotificationId,
    /// The event that it was made of.
    pub event_id: EventId,
    pub workspace_seq: i64,
    /// When the event was recorded.
    pub created_at: Timestamp,
}

/// Declares the kinds, and the number, the name and the data of each. Numbers and names never change.
macro_rules! notifications {
    ($($(#[$doc:meta])* $kind:ident $number:literal $name:literal $data:ident),+ $(,)?) => {
        /// What a notification tells.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum NotificationKind { $($(#[$doc])* $kind),+ }

        impl NotificationKind {
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name),+ }
            }

            /// A number of its own, which is part of what notification ids are made of.
            pub(super) const fn number(self) -> u8 {
                match self { $(Self::$kind => $number),+ }
            }
        }

        /// The figures that a message needs, by the kind of the notification.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
        #[serde(untagged)]
        pub enum NotificationData { $($kind($data)),+ }

        impl NotificationData {
            #[must_use]
            pub const fn kind(&self) -> NotificationKind {
                match self { $(Self::$kind(_) => NotificationKind::$kind),+ }
            }

            /// Parses stored data. Fields that this version does not know are ignored.
            pub fn parse(kind: NotificationKind, json: &str) -> serde_json::Result<Self> {
                match kind { $(NotificationKind::$kind => serde_json::from_str(json).map(Self::$kind)),+ }
            }
        }
    };
}

notifications! {
    /// The available credits fell to or below a threshold of the plan. Its subject is the threshold.
    LowCredit 1 "low_credit" LowCreditData,
    /// Something was refused for want of credits, for the first time since credits were added. Its subject is the
    /// `workspaceseq` of the event that added them.
    CreditsExhausted 2 "credits_exhausted" CreditsExhaustedData,
    /// A limit was reached. Its subject is the scope, the feature if the limit is of one, and the limit; and `request` behind
    /// them if a single request is larger than the whole limit.
    LimitReached 3 "limit_reached" LimitReachedData,
    /// Credits will expire unless they are spent. Its subject is the grant.
    CreditsExpiring 4 "credits_expiring" CreditsExpiringData,
    /// The subscription changed or ended, or that was scheduled or withdrawn. Its subject is the version of the subscription.
    PlanChanged 5 "plan_changed" PlanChangedData,
    /// The statement of a period is final. Its subject is `statement`.
    StatementClosed 6 "statement_closed" StatementClosedData,
}

impl NotificationKind {
    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }
}

/// The data of `low_credit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LowCreditData {
    pub threshold_credits: Credits,
    pub available_credits: Credits,
    pub current_credits: Credits,
}

/// The data of `credits_exhausted`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditsExhaustedData {
    /// What was refused.
    pub feature_code: FeatureCode,
    pub requested_credits: Credits,
    /// What could have been spent on this feature, the overdraft included.
    pub available_credits: Credits,
    pub current_credits: Credits,
}

/// The data of `limit_reached`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitReachedData {
    pub scope: LimitScope,
    /// What was used when the limit was reached.
    pub feature_code: FeatureCode,
    pub limit_credits: Credits,
    /// Used in this period before this request.
    pub used_credits: Credits,
    /// Reserved by open holds, which count as used.
    pub held_credits: Credits,
    pub requested_credits: Credits,
    /// Whether the request was refused.
    pub refused: bool,
    /// When usage is counted from zero. Absent if the request is larger than the whole limit, so that it never passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Timestamp>,
    /// The length of the window in seconds, if the scope is `window`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_s: Option<u32>,
}

/// The data of `credits_expiring`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreditsExpiringData {
    pub grant_id: GrantId,
    pub source: GrantSource,
    /// What remains of the grant.
    pub credits: Credits,
    /// They cannot be spent at or after this instant.
    pub expires_at: Timestamp,
    pub current_credits: Credits,
}

/// A version of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotifiedPlan {
    pub plan_code: PlanCode,
    pub plan_version: i32,
}

/// The data of `plan_changed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanChangedData {
    pub change: SubscriptionChangeKind,
    pub effective_at: Timestamp,
    /// The plan in force before, and after. They are the same if something was only scheduled or withdrawn.
    pub before: NotifiedPlan,
    pub after: NotifiedPlan,
    /// What is scheduled for the end of the period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<PendingView>,
    /// Without those of a period that begins.
    pub credits_granted: Credits,
    pub credits_removed: Credits,
    pub current_credits: Credits,
}

/// The data of `statement_closed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatementClosedData {
    /// When the period of the statement began: `…/statements/{period_start}` has the statement.
    pub period_start: Timestamp,
    pub period_end: Timestamp,
    /// The balance at its end. Debt makes it negative.
    pub closing_credits: Credits,
}
