//! Where the periods of statements begin: one answer for all consumers, so that they agree on which event closes which
//! statement.

use crate::domain::event::{CreditReset, EventData, SubscriptionChangeKind, SubscriptionChanged, WorkspaceProvisioned};
use crate::domain::text::PlanCode;
use crate::domain::time::Timestamp;

/// A period that begins with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beginning<'d> {
    pub(super) start: Timestamp,
    /// None while there is no subscription.
    pub(super) end: Option<Timestamp>,
    pub(super) plan_code: &'d PlanCode,
    pub(super) plan_version: i32,
}

impl<'d> Beginning<'d> {
    /// The period that begins with this event, if one does.
    pub(super) fn of(data: &'d EventData) -> Option<Self> {
        match data {
            EventData::WorkspaceProvisioned(data) => Some(data.into()),
            EventData::CreditReset(data) => Some(data.into()),
            EventData::SubscriptionChanged(data) => Self::of_change(data),
            _ => None,
        }
    }

    /// After the end of a subscription, a period without an end begins. A change that moves the period begins none: the
    /// `CreditReset` of the period follows it, and says what became of the old credits.
    pub(super) fn of_change(data: &'d SubscriptionChanged) -> Option<Self> {
        (data.change == SubscriptionChangeKind::Canceled).then_some(Self {
            start: data.effective_at,
            end: None,
            plan_code: &data.after.plan_code,
            plan_version: data.after.plan_version,
        })
    }

    /// Whether it closes the statement that is open. A period that begins with the open statement only replaces its terms:
    /// then nothing lies between the two.
    pub(super) fn closes(&self, open_start: Timestamp) -> bool {
        self.start != open_start
    }
}

impl<'d> From<&'d WorkspaceProvisioned> for Beginning<'d> {
    fn from(data: &'d WorkspaceProvisioned) -> Self {
        Self {
            start: data.period.start,
            end: Some(data.period.end),
            plan_code: &data.plan_code,
            plan_version: data.plan_version,
        }
    }
}

impl<'d> From<&'d CreditReset> for Beginning<'d> {
    fn from(data: &'d CreditReset) -> Self {
        Self {
            start: data.period.start,
            end: Some(data.period.end),
            plan_code: &data.plan_code,
            plan_version: data.plan_version,
        }
    }
}
