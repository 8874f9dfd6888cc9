//! Usage counters: how much of a feature was used in a billing period.
//!
//! A counter names the period that it counts. A counter of an older period means that nothing was used in this
//! one, so the end of a period writes no counters.

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

/// The use of one subject in one billing period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageCounter {
    pub workspace_id: WorkspaceId,
    pub subject: CounterSubject,
    /// The start of the billing period that it counts.
    pub window_start: Timestamp,
    pub used_credits: Credits,
    /// The soft limit whose passing was reported in this period.
    pub reported_limit: Option<Credits>,
}

impl UsageCounter {
    /// A counter that starts at zero.
    #[must_use]
    pub const fn new(workspace_id: WorkspaceId, subject: CounterSubject, window_start: Timestamp) -> Self {
        Self { workspace_id, subject, window_start, used_credits: Credits::ZERO, reported_limit: None }
    }

    /// What was used in the period that begins at `window_start`.
    #[must_use]
    pub fn used_in(&self, window_start: Timestamp) -> Credits {
        if self.window_start == window_start { self.used_credits } else { Credits::ZERO }
    }

    /// The counter of the period that begins at `window_start`: this one, or a new one if this one counts another
    /// period.
    #[must_use]
    pub fn in_window(&self, window_start: Timestamp) -> Self {
        if self.window_start == window_start {
            self.clone()
        } else {
            Self::new(self.workspace_id, self.subject.clone(), window_start)
        }
    }
}
