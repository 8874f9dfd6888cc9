//! The effects of a command: rows and events, and how they change the state of a workspace.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::change_set::SubscriptionPeriod;
use crate::domain::counter::{CounterSubject, UsageCounter};
use crate::domain::event::EventData;
use crate::domain::grant::Grant;
use crate::domain::hold::{Hold, OpenHold};
use crate::domain::ids::{EventId, HoldId};
use crate::domain::ledger::LedgerEntry;
use crate::domain::plan::PlanVersion;
use crate::domain::refund::UsageRefund;
use crate::domain::reversal::PurchaseReversal;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::subscription::{PendingChange, Subscription};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::{FeatureOverrides, Workspace, WorkspaceCredits};

/// The effects of an accepted command or a recorded refusal: the new values of changed rows, the rows to
/// insert, and the events to raise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effects {
    pub recorded_at: Timestamp,
    /// Set if the workspace is new.
    pub workspace: Option<Workspace>,
    /// The overrides of a new workspace.
    pub feature_overrides: FeatureOverrides,
    pub credits: WorkspaceCredits,
    pub subscription: Option<Subscription>,
    /// The plan in force, if it changed.
    pub plan: Option<Arc<PlanVersion>>,
    /// The plan of a pending change, if one was scheduled.
    pub pending_plan: Option<Arc<PlanVersion>>,
    /// New and changed counters.
    pub counters: BTreeMap<CounterSubject, UsageCounter>,
    /// Changed grants, by their index in the state's `grants`.
    pub changed_grants: BTreeMap<usize, Grant>,
    /// Closed grants that have credits again. They come back into the state.
    pub reopened_grants: Vec<Grant>,
    pub added_grants: Vec<Grant>,
    pub placed_hold: Option<OpenHold>,
    /// Changed holds. Those that are over leave the state.
    pub changed_holds: BTreeMap<HoldId, Hold>,
    pub entries: Vec<LedgerEntry>,
    pub usage_log: Option<UsageLog>,
    pub events: Vec<(EventId, EventData)>,
    pub periods: Vec<SubscriptionPeriod>,
    pub refund: Option<UsageRefund>,
    pub reversal: Option<PurchaseReversal>,
}

impl Effects {
    /// No effects but a new `updated_at`: the instant at which the command is recorded.
    pub(in crate::domain) fn unchanged(state: &WorkspaceState, recorded_at: Timestamp) -> Self {
        let mut credits = state.credits.clone();
        credits.updated_at = recorded_at;
        Self {
            recorded_at,
            workspace: None,
            feature_overrides: FeatureOverrides::new(),
            credits,
            subscription: None,
            plan: None,
            pending_plan: None,
            counters: BTreeMap::new(),
            changed_grants: BTreeMap::new(),
            reopened_grants: Vec::new(),
            added_grants: Vec::new(),
            placed_hold: None,
            changed_holds: BTreeMap::new(),
            entries: Vec::new(),
            usage_log: None,
            events: Vec::new(),
            periods: Vec::new(),
            refund: None,
            reversal: None,
        }
    }

    /// The state of a new workspace, before the effects are applied. None if the workspace is not new.
    pub(in crate::domain) fn new_state(&self) -> Option<WorkspaceState> {
        Some(WorkspaceState {
            workspace: self.workspace.clone()?,
            credits: self.credits.clone(),
            subscription: self.subscription.clone()?,
            plan: self.plan.clone()?,
            pending_plan: None,
            feature_overrides: self.feature_overrides.clone(),
            counters: Vec::new(),
            grants: Vec::new(),
            holds: Vec::new(),
        })
    }
}

impl WorkspaceState {
    /// Applies the effects of a command that was decided on this state. The state is then the one that the store would
    /// load. Returns the grants that the command has closed: they are no longer part of it.
    pub(in crate::domain) fn apply(&mut self, effects: Effects) -> Vec<Grant> {
        self.credits = effects.credits;
        if let Some(subscription) = effects.subscription {
            if !matches!(subscription.pending_change, Some(PendingChange::Change { .. })) {
                self.pending_plan = None;
            }
            self.subscription = subscription;
        }
        if let Some(plan) = effects.plan {
            self.plan = plan;
        }
        if effects.pending_plan.is_some() {
            self.pending_plan = effects.pending_plan;
        }
        for counter in effects.counters.into_values() {
            self.put_counter(counter);
        }
        for (hold_id, hold) in effects.changed_holds {
            if let Ok(index) = self.holds.binary_search_by_key(&hold_id, |open| open.hold.hold_id) {
                self.holds[index].hold = hold;
            }
        }
        self.holds.retain(|open| open.hold.is_open());
        if let Some(placed) = effects.placed_hold {
            let place = self.holds.partition_point(|open| open.hold.hold_id < placed.hold.hold_id);
            self.holds.insert(place, placed);
        }
        let mut is_reordered = !(effects.reopened_grants.is_empty() && effects.added_grants.is_empty());
        for (index, grant) in effects.changed_grants {
            let Some(slot) = self.grants.get_mut(index) else { continue };
            is_reordered |= slot.expires_at != grant.expires_at;
            *slot = grant;
        }
        self.grants.extend(effects.reopened_grants);
        self.grants.extend(effects.added_grants);
        let closed = self.grants.extract_if(.., |grant| !grant.is_open()).collect();
        if is_reordered {
            self.grants.sort_by(Grant::cmp_burn_order);
        }
        closed
    }
}
