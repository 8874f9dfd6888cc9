//! Holds: credits that are reserved for a use whose cost is not known yet.

use std::sync::Arc;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::credits::Credits;
use super::ids::{CommandId, GrantId, HoldId, WorkspaceId};
use super::metadata::Metadata;
use super::text::{FeatureCode, UserId};
use super::time::Timestamp;
use super::usage::UsageId;

/// How many holds a workspace may have open at once. Every command of the workspace reads all of them.
pub const MAX_OPEN_HOLDS: i16 = 1000;
/// How many grants one hold may reserve credits of.
pub const MAX_GRANTS_PER_HOLD: usize = 50;

/// What became of a hold. All but `open` are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HoldState {
    Open,
    /// Charged, in part or as a whole.
    Captured,
    /// Given up by a caller.
    Released,
    /// Not captured in time. A late capture is a charge of its own.
    Expired,
}

impl HoldState {
    pub const ALL: [Self; 4] = [Self::Open, Self::Captured, Self::Released, Self::Expired];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Captured => "captured",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// How long a hold lasts from now on, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldDuration(u32);

impl HoldDuration {
    pub const MIN: u32 = 60;
    pub const MAX: u32 = 7 * 24 * 3600;
    pub const DEFAULT: Self = Self(3600);

    #[must_use]
    pub fn new(seconds: i64) -> Option<Self> {
        u32::try_from(seconds).ok().filter(|seconds| (Self::MIN..=Self::MAX).contains(seconds)).map(Self)
    }

    /// When a hold ends that lasts so long from then on.
    #[must_use]
    pub fn after(self, now: Timestamp) -> Timestamp {
        now.plus(TimeDelta::seconds(i64::from(self.0)))
    }
}

/// What becomes of the part of a capture that is beyond its hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overrun {
    /// The capture is refused.
    Reject,
    /// It is charged as far as the limits allow and the grants have credits.
    #[default]
    ChargeAvailable,
    /// It is charged as far as the limits allow, from the overdraft too.
    Overdraft,
}

/// Reserved credits of a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub workspace_id: WorkspaceId,
    pub hold_id: HoldId,
    pub feature_code: FeatureCode,
    pub user_id: Option<UserId>,
    /// What it reserves, the part of the overdraft included.
    pub amount: Credits,
    /// The part that no grant covers.
    pub overdraft: Credits,
    /// The feature's price when the hold was placed.
    pub unit_price: Option<Credits>,
    pub metadata: Option<Arc<Metadata>>,
    pub command_id: CommandId,
    pub state: HoldState,
    /// The first instant at which it cannot be captured.
    pub expires_at: Timestamp,
    /// When it was placed: `recorded_at` of its command, which no other hold of the workspace has.
    pub created_at: Timestamp,
    /// `recorded_at` of the command that ended it.
    pub closed_at: Option<Timestamp>,
    /// What was charged. It may be more than the amount.
    pub captured: Credits,
    /// The usage log of the capture.
    pub usage_id: Option<UsageId>,
}

impl Hold {
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == HoldState::Open
    }

    /// Whether it has expired and was not captured late.
    #[must_use]
    pub fn can_be_captured_late(&self) -> bool {
        self.state == HoldState::Expired && self.usage_id.is_none()
    }

    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }
}

/// What a hold reserves of one grant. It never changes: only an open hold reserves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldShare {
    pub workspace_id: WorkspaceId,
    pub hold_id: HoldId,
    /// The place in burn order, from 0.
    pub position: i16,
    pub grant_id: GrantId,
    pub amount: Credits,
}

/// A hold that is open, with what it reserves of grants, in burn order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenHold {
    pub hold: Hold,
    pub shares: Arc<[HeldShare]>,
}
