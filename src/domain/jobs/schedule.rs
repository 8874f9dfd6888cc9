//! The server's own schedules: work that is done again and again, each time by one server, whichever notices first.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::ids::JobId;
use crate::domain::text::JobKind;
use crate::domain::time::Timestamp;

/// What the server does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SystemSchedule {
    /// Begins billing periods that are due.
    Periods,
    /// Books holds that have expired.
    Holds,
    /// Books grants that have expired or have begun.
    Expiries,
    /// Announces grants that expire soon.
    ExpiryWarnings,
    /// Deletes rows that nobody needs any more.
    Cleaning,
}

/// When a schedule fires next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The kind of its jobs.
    pub kind: JobKind,
    pub next_at: Timestamp,
    pub is_paused: bool,
    /// When it has fired last, and the job of that.
    pub fired_at: Option<Timestamp>,
    pub job_id: Option<JobId>,
    pub changed_by: Option<String>,
    pub changed_at: Timestamp,
}

impl SystemSchedule {
    pub const ALL: [Self; 5] = [Self::Periods, Self::Holds, Self::Expiries, Self::ExpiryWarnings, Self::Cleaning];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Periods => "periods",
            Self::Holds => "holds",
            Self::Expiries => "expiries",
            Self::ExpiryWarnings => "expiry_warnings",
            Self::Cleaning => "cleaning",
        }
    }

    /// The kind of its jobs.
    #[must_use]
    pub fn kind(self) -> JobKind {
        JobKind::from_stored(&format!("system.{}", self.as_str()))
    }

    /// The schedule whose jobs are of this kind.
    #[must_use]
    pub fn of(kind: &JobKind) -> Option<Self> {
        Self::ALL.into_iter().find(|schedule| schedule.kind() == *kind)
    }

    /// The time between two firings.
    #[must_use]
    pub const fn interval(self) -> TimeDelta {
        TimeDelta::seconds(match self {
            Self::Periods | Self::Holds | Self::Expiries => 10,
            Self::ExpiryWarnings => 60,
            Self::Cleaning => 600,
        })
    }

    /// The schedule before its first firing.
    #[must_use]
    pub fn begin(self, now: Timestamp) -> Schedule {
        Schedule {
            kind: self.kind(),
            next_at: now,
            is_paused: false,
            fired_at: None,
            job_id: None,
            changed_by: None,
            changed_at: now,
        }
    }
}

impl Schedule {
    /// What only one job of a schedule has at a time.
    pub const UNIQUE_KEY: &'static str = "schedule";

    /// When it fires after that instant: the same on all servers, and firings that were missed are not made up for.
    pub(super) fn next_after(interval: TimeDelta, now: Timestamp) -> Timestamp {
        let micros = interval.num_microseconds().unwrap_or(i64::MAX).max(1);
        now.plus(TimeDelta::microseconds(micros - now.micros().rem_euclid(micros)))
    }
}
