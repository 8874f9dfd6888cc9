//! What a batch of commands needs to know, and what was found.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::command_record::CommandRecord;
use super::counter::{CounterSubject, UsageCounter};
use super::credits::Credits;
use super::grant::Grant;
use super::ids::{Partition, WorkspaceId};
use super::partition_head::PartitionHead;
use super::plan::{FeatureTerms, PlanVersion};
use super::subscription::{PendingChange, Subscription};
use super::text::{FeatureCode, IdempotencyKey, PaymentReference, PlanCode};
use super::time::Timestamp;
use super::workspace::{FeatureOverrides, Workspace, WorkspaceCredits, feature_terms};

/// The rows that a batch will look at. The store locks the partitions of the workspaces first, in
/// ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    pub workspaces: BTreeSet<WorkspaceId>,
    /// Those of the workspaces whose state is known, each with the version of its partition that it is
    /// true at. They are read only if the partition has another one.
    pub cached_versions: BTreeMap<WorkspaceId, i64>,
    pub commands: BTreeSet<(WorkspaceId, IdempotencyKey)>,
    pub payments: BTreeSet<(WorkspaceId, PaymentReference)>,
    /// Plans whose newest version is wanted.
    pub plans: BTreeSet<PlanCode>,
}

impl KeySet {
    #[must_use]
    pub fn partitions(&self) -> BTreeSet<Partition> {
        self.workspaces.iter().copied().map(Partition::of).collect()
    }

    /// The workspaces to read once the heads are locked.
    pub fn uncached_workspaces(&self, heads: &BTreeMap<Partition, PartitionHead>) -> impl Iterator<Item = WorkspaceId> {
        let is_current = |id: &WorkspaceId| {
            let version = heads.get(&Partition::of(*id)).map(|head| head.version);
            version.is_some() && self.cached_versions.get(id).copied() == version
        };
        self.workspaces.iter().copied().filter(move |id| !is_current(id))
    }
}

/// Room for so many more grants than twice those that are open is left to a state.
const SPARE_GRANTS: usize = 4;
/// What one override takes in a state, about.
const OVERRIDE_BYTES: usize = 96;

/// Everything about one workspace that a decision may depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceState {
    pub workspace: Workspace,
    pub credits: WorkspaceCredits,
    pub subscription: Subscription,
    /// The version that the subscription names.
    pub plan: Arc<PlanVersion>,
    /// The version that a pending change names.
    pub pending_plan: Option<Arc<PlanVersion>>,
    pub feature_overrides: FeatureOverrides,
    /// What was used of each feature, in order of subjects. A feature that was never used has none.
    pub counters: Vec<UsageCounter>,
    /// The open grants, in burn order.
    pub grants: Vec<Grant>,
}

/// What the store found, and afterwards what the batch made of it: commands are decided one after
/// the other against this running state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The database's clock, where it is not this machine's: what a replica's clock is held against.
    pub database_now: Option<Timestamp>,
    pub heads: BTreeMap<Partition, PartitionHead>,
    pub workspaces: HashMap<WorkspaceId, Box<WorkspaceState>>,
    pub commands: HashMap<(WorkspaceId, IdempotencyKey), CommandRecord>,
    pub payments: HashSet<(WorkspaceId, PaymentReference)>,
    pub plans: HashMap<PlanCode, CataloguePlan>,
}

/// A plan of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CataloguePlan {
    /// Its newest version.
    pub newest: Arc<PlanVersion>,
    /// Whether a workspace that does not have it can subscribe to it.
    pub is_offered: bool,
}

impl WorkspaceState {
    /// How much memory it takes, about, without what is shared and short texts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let references: usize = self
            .grants
            .iter()
            .filter_map(|grant| grant.payment_reference.as_ref())
            .map(|text| text.as_str().len())
            .sum();
        let overrides = self.feature_overrides.len() * (size_of::<FeatureCode>() + OVERRIDE_BYTES);
        let counters = self.counters.capacity() * size_of::<UsageCounter>();
        size_of::<Self>() + overrides + counters + self.grants.capacity() * size_of::<Grant>() + references
    }

    /// Gives back the room of grants that were closed.
    pub fn shrink(&mut self) {
        if self.grants.capacity() > 2 * self.grants.len() + SPARE_GRANTS {
            self.grants.shrink_to_fit();
        }
    }

    /// The instant at which a command is decided: when it was received, but always later than the
    /// command before it. So every command of a workspace has an instant of its own, whatever the
    /// clocks of the replicas say, and no two periods can begin at one.
    #[must_use]
    pub fn now(&self, received_at: Timestamp) -> Timestamp {
        received_at.max(self.credits.updated_at.next())
    }

    /// The terms of a feature in force; none if neither the plan nor the workspace names it.
    #[must_use]
    pub fn feature_terms(&self, code: &FeatureCode) -> Option<FeatureTerms> {
        feature_terms(&self.plan, &self.feature_overrides, code)
    }

    /// What was used of a feature in this billing period.
    #[must_use]
    pub fn feature_usage(&self, code: &FeatureCode) -> Credits {
        let counter = self.counter(&CounterSubject::Feature(code.clone()));
        counter.map_or(Credits::ZERO, |counter| counter.used_in(self.subscription.period.start))
    }

    /// The features that are worth listing, in order: those of the plan and of the workspace's own terms, and what
    /// was used in this period.
    #[must_use]
    pub fn feature_codes(&self) -> BTreeSet<&FeatureCode> {
        let used = self.counters.iter().filter(|counter| counter.window_start == self.subscription.period.start);
        let used = used.map(|counter| match &counter.subject {
            CounterSubject::Feature(code) => code,
        });
        self.plan.features.keys().chain(self.feature_overrides.keys()).chain(used).collect()
    }

    #[must_use]
    pub fn counter(&self, subject: &CounterSubject) -> Option<&UsageCounter> {
        let place = self.counters.binary_search_by(|counter| counter.subject.cmp(subject)).ok()?;
        self.counters.get(place)
    }

    /// Puts a counter in the place of the one with its subject; true if there was none.
    pub fn put_counter(&mut self, counter: UsageCounter) -> bool {
        match self.counters.binary_search_by(|known| known.subject.cmp(&counter.subject)) {
            Ok(place) => {
                self.counters[place] = counter;
                false
            }
            Err(place) => {
                self.counters.insert(place, counter);
                true
            }
        }
    }

    /// The plan that is waiting for the period's end, if the pending change is one of plan.
    #[must_use]
    pub fn pending_plan(&self) -> Option<&Arc<PlanVersion>> {
        match self.subscription.pending_change {
            Some(PendingChange::Change { .. }) => self.pending_plan.as_ref(),
            Some(PendingChange::Cancel { .. }) | None => None,
        }
    }
}
