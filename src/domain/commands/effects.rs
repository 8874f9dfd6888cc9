//! The effects of a command: rows and events.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::change_set::SubscriptionPeriod;
use crate::domain::counter::{CounterSubject, UsageCounter};
use crate::domain::event::EventData;
use crate::domain::grant::Grant;
use crate::domain::ids::EventId;
use crate::domain::ledger::LedgerEntry;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::subscription::Subscription;
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
    pub added_grants: Vec<Grant>,
    pub entries: Vec<LedgerEntry>,
    pub usage_log: Option<UsageLog>,
    pub events: Vec<(EventId, EventData)>,
    pub periods: Vec<SubscriptionPeriod>,
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
            added_grants: Vec::new(),
            entries: Vec::new(),
            usage_log: None,
            events: Vec::new(),
            periods: Vec::new(),
        }
    }
}
