//! Counters: how much was used of something in a billing period.
//!
//! A counter names the window that it counts. One of an older window counts as nothing used, so the end of a
//! period writes no counter.

use super::credits::Credits;
use super::ids::WorkspaceId;
use super::text::FeatureCode;
use super::time::Timestamp;

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CounterSubject {
    /// The use of one feature.
    Feature(FeatureCode),
}

/// What was used in one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageCounter {
    pub workspace_id: WorkspaceId,
    pub subject: CounterSubject,
    /// The start of the billing period that it counts.
    pub window_start: Timestamp,
    pub used_credits: Credits,
    /// The soft limit whose passing was reported in this window.
    pub reported_limit: Option<Credits>,
}

impl UsageCounter {
    /// One that has counted nothing.
    #[must_use]
    pub const fn new(workspace_id: WorkspaceId, subject: CounterSubject, window_start: Timestamp) -> Self {
        Self { workspace_id, subject, window_start, used_credits: Credits::ZERO, reported_limit: None }
    }

    /// What it counted in the window that begins at that instant.
    #[must_use]
    pub fn used_in(&self, window_start: Timestamp) -> Credits {
        if self.window_start == window_start { self.used_credits } else { Credits::ZERO }
    }

    /// The same counter in that window, begun anew if it counted another one.
    #[must_use]
    pub fn in_window(&self, window_start: Timestamp) -> Self {
        if self.window_start == window_start {
            self.clone()
        } else {
            Self::new(self.workspace_id, self.subject.clone(), window_start)
        }
    }
}
