//! Builds the states of workspaces from their rows.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use super::error::StoreError;
use super::plan_cache::{PlanKey, pending_key, plan_of};
use crate::domain::counter::{CounterSubject, UsageCounter};
use crate::domain::grant::Grant;
use crate::domain::hold::{HeldShare, Hold, OpenHold};
use crate::domain::ids::{HoldId, WorkspaceId};
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::subscription::Subscription;
use crate::domain::text::FeatureCode;
use crate::domain::workspace::{FeatureOverride, Workspace, WorkspaceCredits};

/// The rows of some workspaces, by table.
#[derive(Default)]
pub(super) struct StateRows {
    /// The tables that have exactly one row per workspace.
    pub(super) heads: Vec<(Workspace, WorkspaceCredits, Subscription)>,
    pub(super) overrides: Vec<FeatureOverride>,
    pub(super) counters: Vec<UsageCounter>,
    /// Open grants only.
    pub(super) grants: Vec<Grant>,
    /// Open holds only.
    pub(super) holds: Vec<Hold>,
    pub(super) held_shares: Vec<HeldShare>,
}

impl StateRows {
    /// The states, given the plans that the subscriptions name.
    pub(super) fn into_states(
        self,
        plans: &HashMap<PlanKey, Arc<PlanVersion>>,
    ) -> Result<HashMap<WorkspaceId, Box<WorkspaceState>>, StoreError> {
        let mut overrides = group(self.overrides, |row| row.workspace_id);
        let mut counters = group(self.counters, |row| row.workspace_id);
        let mut grants = group(self.grants, |row| row.workspace_id);
        let mut holds = group(self.holds, |row| row.workspace_id);
        let mut shares = group(self.held_shares, |row| row.hold_id);
        let mut states = HashMap::with_capacity(self.heads.len());
        for (workspace, credits, subscription) in self.heads {
            let id = workspace.workspace_id;
            let plan = plan_of(plans, &(subscription.plan_code.clone(), subscription.plan_version))?;
            let pending_plan = pending_key(&subscription).map(|key| plan_of(plans, &key)).transpose()?;
            let own = overrides.remove(&id).unwrap_or_default();
            let mut counters = counters.remove(&id).unwrap_or_default();
            for counter in &mut counters {
                share_code(counter, &plan);
            }
            counters.sort_by(|one, other| one.subject.cmp(&other.subject));
            let mut grants = grants.remove(&id).unwrap_or_default();
            grants.sort_by(Grant::cmp_burn_order);
            grants.shrink_to_fit();
            let holds = holds.remove(&id).unwrap_or_default().into_iter();
            let mut holds: Vec<_> = holds.map(|hold| with_shares(hold, &mut shares)).collect();
            holds.sort_by_key(|open| open.hold.hold_id);
            let state = WorkspaceState {
                workspace,
                credits,
                subscription: Subscription { plan_code: plan.plan_code.clone(), ..subscription },
                plan,
                pending_plan,
                feature_overrides: own.into_iter().map(|row| (row.feature_code, row.terms)).collect(),
                counters,
                grants,
                holds,
            };
            states.insert(id, Box::new(state));
        }
        Ok(states)
    }
}

fn with_shares(hold: Hold, shares: &mut HashMap<HoldId, Vec<HeldShare>>) -> OpenHold {
    let mut shares = shares.remove(&hold.hold_id).unwrap_or_default();
    shares.sort_by_key(|share| share.position);
    OpenHold { hold, shares: shares.into() }
}

/// Lets a counter share the feature code's text with its plan, because thousands of states are cached.
fn share_code(counter: &mut UsageCounter, plan: &PlanVersion) {
    let CounterSubject::Feature(code) = &counter.subject;
    if let Some((shared, _)) = plan.features.get_key_value(code) {
        counter.subject = CounterSubject::Feature(FeatureCode::clone(shared));
    }
}

fn group<K: Eq + Hash, T>(rows: Vec<T>, key: impl Fn(&T) -> K) -> HashMap<K, Vec<T>> {
    let mut groups: HashMap<K, Vec<T>> = HashMap::new();
    for row in rows {
        groups.entry(key(&row)).or_default().push(row);
    }
    groups
}
