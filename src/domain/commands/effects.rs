//! What a command does, in rows and events.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::change_set::ResetRecord;
use crate::domain::entry::Entry;
use crate::domain::event::EventData;
use crate::domain::grant::Grant;
use crate::domain::ids::EventId;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::subscription::Subscription;
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::{Workspace, WorkspaceCredits, WorkspaceFeature};

/// What follows from an accepted (or recorded) command: the new values of the rows that changed,
/// the rows to insert, and the events to raise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effects {
    pub now: Timestamp,
    /// There when the workspace is new.
    pub workspace: Option<Workspace>,
    pub credits: WorkspaceCredits,
    pub subscription: Option<Subscription>,
    /// The plan in force, when it changed.
    pub plan: Option<Arc<PlanVersion>>,
    /// The plan of a pending change, when there is one now.
    pub pending_plan: Option<Arc<PlanVersion>>,
    /// New and changed features.
    pub features: BTreeMap<FeatureCode, WorkspaceFeature>,
    /// Changed grants, by their place in the state's list.
    pub changed_grants: BTreeMap<usize, Grant>,
    pub added_grants: Vec<Grant>,
    pub entries: Vec<Entry>,
    pub usage_log: Option<UsageLog>,
    pub events: Vec<(EventId, EventData)>,
    pub resets: Vec<ResetRecord>,
}

impl Effects {
    /// Nothing but the instant at which a command that came in then is decided.
    pub(super) fn unchanged(state: &WorkspaceState, received_at: Timestamp) -> Self {
        let now = state.now(received_at);
        let mut credits = state.credits.clone();
        credits.updated_at = now;
        Self {
            now,
            workspace: None,
            credits,
            subscription: None,
            plan: None,
            pending_plan: None,
            features: BTreeMap::new(),
            changed_grants: BTreeMap::new(),
            added_grants: Vec::new(),
            entries: Vec::new(),
            usage_log: None,
            events: Vec::new(),
            resets: Vec::new(),
        }
    }
}
