//! `notifications`: what the people of a workspace should be told.
//!
//! An event may be raised thousands of times, as a refusal in a flood is. So each notification has a subject, and there is one
//! at most for each kind and subject in a period. The first event that gives it counts: it does not matter whether others are
//! in the same batch, because a notification that is stored already is left as it is. Only one thing must be known of a
//! workspace besides its period: whether it was told that its credits are exhausted since some were added.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::beginning::Beginning;
use super::fact::Fact;
use super::fault::Fault;
use super::fold::Fold;
use super::notification::{
    CreditsExhaustedData, CreditsExpiringData, LimitReachedData, LowCreditData, Notification, NotificationData,
    NotificationKind, NotifiedPlan, NotifiedWorkspace, PlanChangedData, StatementClosedData,
};
use super::rows::{ConsumerKeys, ConsumerRows};
use crate::domain::cloud_event::EventRecord;
use crate::domain::credits::Credits;
use crate::domain::event::{
    CreditConsumed, EventData, EventType, LimitScope, SubscriptionChangeKind, SubscriptionChanged, SubscriptionSummary,
    UsageLimitExceeded,
};
use crate::domain::ids::{NotificationId, WorkspaceId};
use crate::domain::time::Timestamp;

/// The subject of a closed statement, whose period tells it from others.
const STATEMENT: &str = "statement";

/// Whether it makes something of events of this type.
pub(super) const fn reads(event_type: EventType) -> bool {
    match event_type {
        EventType::LowCreditWarning
        | EventType::CreditLimitExceeded
        | EventType::UsageLimitExceeded
        | EventType::CreditsExpiring
        | EventType::CreditConsumed
        | EventType::HoldReleased
        | EventType::CreditsPurchased
        | EventType::CreditsGranted
        | EventType::CreditsRefunded
        | EventType::DebtRepaid
        | EventType::CreditReset
        | EventType::SubscriptionChanged
        | EventType::WorkspaceProvisioned => true,
        EventType::CreditsHeld
        | EventType::GrantVoided
        | EventType::PurchaseReversed
        | EventType::CreditsExpired
        | EventType::JobSubmitted
        | EventType::JobCompleted
        | EventType::JobFailed => false,
    }
}

pub(super) struct Notifications {
    version: i32,
    workspaces: HashMap<WorkspaceId, NotifiedWorkspace>,
    changed: HashSet<WorkspaceId>,
    raised: BTreeMap<(WorkspaceId, NotificationKind, String, Timestamp), Notification>,
}

impl Notifications {
    pub(super) fn new(version: i32, rows: ConsumerRows) -> Self {
        let workspaces = rows.notified_workspaces.into_iter().map(|row| (row.workspace_id, row));
        Self { version, workspaces: workspaces.collect(), changed: HashSet::new(), raised: BTreeMap::new() }
    }

    pub(super) fn add_keys(version: i32, fact: &Fact, data: Option<&EventData>, keys: &mut ConsumerKeys) {
        if data.is_none_or(is_of_use) {
            keys.notified_workspaces.insert((version, fact.event.workspace_id));
        }
    }

    fn workspace(&mut self, workspace_id: WorkspaceId) -> Result<&mut NotifiedWorkspace, Fault> {
        let unknown = || Fault::contradiction(format!("the workspace {workspace_id} was not created"));
        self.workspaces.get_mut(&workspace_id).ok_or_else(unknown)
    }

    fn provision(&mut self, fact: &Fact, period: &Beginning<'_>) -> Result<(), Fault> {
        let event = &fact.event;
        let workspace = NotifiedWorkspace {
            version: self.version,
            workspace_id: event.workspace_id,
            partition: event.partition,
            period_start: period.start,
            added_seq: event.workspace_seq,
            is_exhausted: false,
        };
        if self.workspaces.insert(event.workspace_id, workspace).is_some() {
            return Err(Fault::contradiction(format!("the workspace {} was created before", event.workspace_id)));
        }
        self.changed.insert(event.workspace_id);
        Ok(())
    }

    fn notify(&mut self, fact: &Fact, subject: String, data: NotificationData) -> Result<(), Fault> {
        let (event, kind) = (&fact.event, data.kind());
        let period_start = self.workspace(event.workspace_id)?.period_start;
        let key = (event.workspace_id, kind, subject.clone(), period_start);
        self.raised.entry(key).or_insert_with(|| Notification {
            version: self.version,
            workspace_id: event.workspace_id,
            data,
            subject,
            period_start,
            partition: event.partition,
            notification_id: NotificationId::of_event(event.event_id, kind.number()),
            event_id: event.event_id,
            workspace_seq: event.workspace_seq,
            created_at: event.recorded_at,
        });
        Ok(())
    }

    /// Tells that credits are exhausted, unless it was told since credits were added.
    fn exhaust(&mut self, fact: &Fact, data: CreditsExhaustedData) -> Result<(), Fault> {
        let workspace = self.workspace(fact.event.workspace_id)?;
        if workspace.is_exhausted {
            return Ok(());
        }
        workspace.is_exhausted = true;
        let subject = format!("{:019}", workspace.added_seq);
        self.changed.insert(fact.event.workspace_id);
        self.notify(fact, subject, NotificationData::CreditsExhausted(data))
    }

    /// Notes what every event may do: it adds credits, or it closes a statement.
    fn move_on(&mut self, fact: &Fact, data: &EventData) -> Result<(), Fault> {
        let workspace_id = fact.event.workspace_id;
        if adds_credits(data) {
            let workspace = self.workspace(workspace_id)?;
            (workspace.added_seq, workspace.is_exhausted) = (fact.event.workspace_seq, false);
            self.changed.insert(workspace_id);
        }
        let Some(period) = Beginning::of(data) else { return Ok(()) };
        let period_start = self.workspace(workspace_id)?.period_start;
        if period.closes(period_start) {
            let closed = StatementClosedData {
                period_start,
                period_end: period.start,
                closing_credits: balance_before_period(data)?,
            };
            self.notify(fact, STATEMENT.to_owned(), NotificationData::StatementClosed(closed))?;
            self.workspace(workspace_id)?.period_start = period.start;
            self.changed.insert(workspace_id);
        }
        Ok(())
    }
}

impl Fold for Notifications {
    fn take(&mut self, fact: &Fact, data: &EventData) -> Result<(), Fault> {
        match data {
            EventData::WorkspaceProvisioned(data) => self.provision(fact, &data.into())?,
            EventData::LowCreditWarning(data) => {
                let told = LowCreditData {
                    threshold_credits: data.threshold_credits,
                    available_credits: data.available_credits,
                    current_credits: data.current_credits,
                };
                self.notify(fact, data.threshold_credits.to_string(), NotificationData::LowCredit(told))?;
            }
            EventData::CreditLimitExceeded(data) => {
                let told = CreditsExhaustedData {
                    feature_code: data.feature_code.clone(),
                    requested_credits: data.requested_credits,
                    available_credits: data.available_credits,
                    current_credits: data.current_credits,
                };
                self.exhaust(fact, told)?;
            }
            EventData::UsageLimitExceeded(data) => {
                self.notify(fact, limit_subject(data), NotificationData::LimitReached(data.into()))?;
            }
            EventData::CreditsExpiring(data) => {
                let told = CreditsExpiringData {
                    grant_id: data.grant_id,
                    source: data.source,
                    credits: data.credits,
                    expires_at: data.expires_at,
                    current_credits: data.current_credits,
                };
                self.notify(fact, data.grant_id.to_string(), NotificationData::CreditsExpiring(told))?;
            }
            EventData::SubscriptionChanged(data) => {
                self.notify(fact, data.after.version.to_string(), NotificationData::PlanChanged(data.into()))?;
            }
            _ => {}
        }
        self.move_on(fact, data)
    }

    /// It may have added credits: rather tell once more that they are exhausted than never again.
    fn skip(&mut self, event: &EventRecord) {
        let Some(workspace) = self.workspaces.get_mut(&event.workspace_id) else { return };
        (workspace.added_seq, workspace.is_exhausted) = (event.workspace_seq, false);
        self.changed.insert(event.workspace_id);
    }

    fn finish(mut self) -> ConsumerRows {
        self.workspaces.retain(|workspace_id, _| self.changed.contains(workspace_id));
        ConsumerRows {
            notified_workspaces: self.workspaces.into_values().collect(),
            notifications: self.raised.into_values().collect(),
            ..ConsumerRows::default()
        }
    }
}

impl From<&UsageLimitExceeded> for LimitReachedData {
    fn from(data: &UsageLimitExceeded) -> Self {
        Self {
            scope: data.scope,
            feature_code: data.feature_code.clone(),
            limit_credits: data.limit_credits,
            used_credits: data.used_credits,
            held_credits: data.held_credits,
            requested_credits: data.requested_credits,
            refused: data.refused,
            resets_at: data.resets_at,
            window_s: data.window_s,
        }
    }
}

impl From<&SubscriptionChanged> for PlanChangedData {
    fn from(data: &SubscriptionChanged) -> Self {
        let plan = |summary: &SubscriptionSummary| NotifiedPlan {
            plan_code: summary.plan_code.clone(),
            plan_version: summary.plan_version,
        };
        Self {
            change: data.change,
            effective_at: data.effective_at,
            before: plan(&data.before),
            after: plan(&data.after),
            pending: data.pending.clone(),
            credits_granted: data.credits_granted,
            credits_removed: data.credits_removed,
            current_credits: data.current_credits,
        }
    }
}

/// Whether it tells something, or adds credits. Of most deductions, nothing must be known.
fn is_of_use(data: &EventData) -> bool {
    !matches!(data, EventData::CreditConsumed(_)) || adds_credits(data)
}

/// Whether the event may raise what can be spent. A change of plan does not tell the overdraft that comes with it, and a
/// resubscription gives back what was frozen.
fn adds_credits(data: &EventData) -> bool {
    match data {
        EventData::CreditConsumed(CreditConsumed { released_credits, .. }) => {
            released_credits.is_some_and(Credits::is_positive)
        }
        EventData::CreditReset(data) => data.granted.is_positive(),
        EventData::SubscriptionChanged(data) => {
            matches!(data.change, SubscriptionChangeKind::Changed | SubscriptionChangeKind::Reactivated)
        }
        EventData::HoldReleased(_)
        | EventData::CreditsPurchased(_)
        | EventData::CreditsGranted(_)
        | EventData::CreditsRefunded(_)
        | EventData::DebtRepaid(_) => true,
        // The first credits of a workspace are noted where it is created.
        EventData::WorkspaceProvisioned(_)
        | EventData::CreditsHeld(_)
        | EventData::CreditLimitExceeded(_)
        | EventData::LowCreditWarning(_)
        | EventData::UsageLimitExceeded(_)
        | EventData::GrantVoided(_)
        | EventData::PurchaseReversed(_)
        | EventData::CreditsExpiring(_)
        | EventData::CreditsExpired(_)
        | EventData::JobSubmitted(_)
        | EventData::JobCompleted(_)
        | EventData::JobFailed(_) => false,
    }
}

/// The balance at the end of the period before the one that begins with this event.
fn balance_before_period(data: &EventData) -> Result<Credits, Fault> {
    let granted = match data {
        EventData::CreditReset(data) => data.granted,
        _ => Credits::ZERO,
    };
    data.current_credits().minus(granted).map_err(|_| Fault::too_large("the balance of a statement"))
}

fn limit_subject(data: &UsageLimitExceeded) -> String {
    let limit = match data.scope {
        LimitScope::Feature => format!("feature:{}:{}", data.feature_code, data.limit_credits),
        LimitScope::Workspace => format!("workspace:{}", data.limit_credits),
        LimitScope::Window => format!("window:{}", data.limit_credits),
    };
    // A request that is too large says nothing about how much of the limit was used.
    if data.refused && data.resets_at.is_none() { limit + ":request" } else { limit }
}

#[cfg(test)]
mod tests;
