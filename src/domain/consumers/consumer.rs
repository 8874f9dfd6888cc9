//! The consumers of this server, and their builds.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A consumer that is part of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Consumer {
    /// Usage by day, and the figures of the whole server.
    Analytics,
    /// Statements by period.
    Billing,
    /// What people should be told.
    Notifications,
}

impl Consumer {
    pub const ALL: [Self; 3] = [Self::Analytics, Self::Billing, Self::Notifications];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Analytics => "analytics",
            Self::Billing => "billing",
            Self::Notifications => "notifications",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|consumer| consumer.as_str() == text)
    }

    /// The version of its fold. A higher one makes other rows of the same events: all of them are built again.
    #[must_use]
    pub const fn fold_version(self) -> i32 {
        match self {
            Self::Analytics | Self::Billing | Self::Notifications => 1,
        }
    }
}

/// One set of rows of a consumer. A rebuild makes another one beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Build {
    pub consumer: Consumer,
    /// From 1. Every rebuild has the next number.
    pub version: i32,
}

/// Whether a consumer takes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConsumerState {
    Running,
    /// An operator has stopped it.
    Paused,
    /// It has stopped itself, because it could not take the events of many workspaces.
    Tripped,
}

impl ConsumerState {
    pub const ALL: [Self; 3] = [Self::Running, Self::Paused, Self::Tripped];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Tripped => "tripped",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}
