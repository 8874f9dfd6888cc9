//! The rows that a batch needs, and the snapshot that the store loads for them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::command_record::CommandRecord;
use super::counter::{CounterSubject, UsageCounter};
use super::credits::Credits;
use super::grant::Grant;
use super::hold::{Hold, OpenHold};
use super::ids::{GrantId, HoldId, Partition, WorkspaceId};
use super::metadata::Metadata;
use super::partition_head::PartitionHead;
use super::plan::{FeatureTerms, PlanVersion};
use super::refund::RefundableUsage;
use super::reversal::ReversiblePurchase;
use super::subscription::{PendingChange, Subscription};
use super::text::{FeatureCode, IdempotencyKey, PaymentReference, PlanCode};
use super::time::{CommandTimes, Timestamp};
use super::usage::UsageId;
use super::workspace::{FeatureOverrides, Workspace, WorkspaceCredits, feature_terms};

/// The keys of the rows that a batch needs. The store first locks the partitions of the workspaces, in
/// ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    pub workspaces: BTreeSet<WorkspaceId>,
    /// The workspaces with a cached state, each with the partition version of that state. A state is read only
    /// if its partition has another version.
    pub cached_versions: BTreeMap<WorkspaceId, i64>,
    pub commands: BTreeSet<(WorkspaceId, IdempotencyKey)>,
    pub payments: BTreeSet<(WorkspaceId, PaymentReference)>,
    /// Grants that may be closed.
    pub grants: BTreeSet<(WorkspaceId, GrantId)>,
    /// Usage logs to refund, with the grants that they took.
    pub usages: BTreeSet<(WorkspaceId, UsageId)>,
    /// Purchases to reverse, with the grants of their bonuses.
    pub purchases: BTreeSet<(WorkspaceId, GrantId)>,
    pub holds: BTreeSet<(WorkspaceId, HoldId)>,
    /// Plans whose newest version is needed.
    pub plans: BTreeSet<PlanCode>,
    /// Features, to find out which of them exist.
    pub features: BTreeSet<FeatureCode>,
}

impl KeySet {
    #[must_use]
    pub fn partitions(&self) -> BTreeSet<Partition> {
        self.workspaces.iter().copied().map(Partition::of).collect()
    }

    /// The workspaces whose states must be read, given the locked heads.
    pub fn uncached_workspaces(&self, heads: &BTreeMap<Partition, PartitionHead>) -> impl Iterator<Item = WorkspaceId> {
        let is_current = |id: &WorkspaceId| {
            let version = heads.get(&Partition::of(*id)).map(|head| head.version);
            version.is_some() && self.cached_versions.get(id).copied() == version
        };
        self.workspaces.iter().copied().filter(move |id| !is_current(id))
    }
}

/// Unused slots for grants and for holds that a state may keep, besides one for each open one.
const SPARE_GRANTS: usize = 4;
/// The approximate size of one override in a state.
const OVERRIDE_BYTES: usize = 96;

/// Everything of one workspace that a decision may depend on.
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
    /// The usage counters in the order of their subjects. A feature that was never used has none.
    pub counters: Vec<UsageCounter>,
    /// The open grants, in burn order.
    pub grants: Vec<Grant>,
    /// The open holds, in the order of their ids.
    pub holds: Vec<OpenHold>,
}

/// Grants that are not in a state, because they are closed.
pub type ClosedGrants = HashMap<(WorkspaceId, GrantId), Grant>;

/// What the store loaded for a batch. Commands are decided on it one after the other, and each accepted
/// command updates it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The time of the database server, which the replica's clock is compared with. None on SQLite, where both
    /// are the same.
    pub database_now: Option<Timestamp>,
    pub heads: BTreeMap<Partition, PartitionHead>,
    pub workspaces: HashMap<WorkspaceId, Box<WorkspaceState>>,
    pub commands: HashMap<(WorkspaceId, IdempotencyKey), CommandRecord>,
    /// The grant of each payment that was booked.
    pub payments: HashMap<(WorkspaceId, PaymentReference), GrantId>,
    /// The grants of the keys, and those that were closed in this batch. A grant that is open is the one in the state:
    /// what is here may be older. Like `features`, empty on cached states.
    pub closed_grants: ClosedGrants,
    /// The usage logs of the keys. Empty on cached states, as above.
    pub usages: HashMap<(WorkspaceId, UsageId), RefundableUsage>,
    /// The purchases of the keys. Empty on cached states, as above.
    pub purchases: HashMap<(WorkspaceId, GrantId), ReversiblePurchase>,
    /// The holds of the keys, and those that ended in this batch. Empty on cached states, as above.
    pub holds: HashMap<(WorkspaceId, HoldId), Hold>,
    pub plans: HashMap<PlanCode, CataloguePlan>,
    /// The newest version of each plan that is offered, for those who are refused. It may be some seconds old.
    pub offered_plans: Arc<[Arc<PlanVersion>]>,
    /// The features of the keys that a version of a plan has. Empty on cached states: whoever decides on those that a
    /// feature does not exist is decided again.
    pub features: HashSet<FeatureCode>,
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
    /// The approximate size in memory, without shared data and short texts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of_grant = |grant: &Grant| {
            let reference = grant.payment_reference.as_ref().map_or(0, |text| text.as_str().len());
            let reason = grant.reason.as_ref().map_or(0, |text| text.as_str().len());
            reference + reason + grant.metadata.as_ref().map_or(0, |metadata| metadata.bytes())
        };
        let of_grants: usize = self.grants.iter().map(of_grant).sum();
        let metadata = self.workspace.metadata.as_ref().map_or(0, Metadata::bytes);
        let overrides = self.feature_overrides.len() * (size_of::<FeatureCode>() + OVERRIDE_BYTES);
        let counters = self.counters.capacity() * size_of::<UsageCounter>();
        let of_hold = |open: &OpenHold| {
            let metadata = open.hold.metadata.as_ref().map_or(0, |metadata| metadata.bytes());
            size_of_val(&*open.shares) + metadata
        };
        let holds = self.holds.capacity() * size_of::<OpenHold>() + self.holds.iter().map(of_hold).sum::<usize>();
        let grants = self.grants.capacity() * size_of::<Grant>() + of_grants;
        size_of::<Self>() + metadata + overrides + counters + grants + holds
    }

    /// Frees the memory of closed grants and holds.
    pub fn shrink(&mut self) {
        if self.grants.capacity() > 2 * self.grants.len() + SPARE_GRANTS {
            self.grants.shrink_to_fit();
        }
        if self.holds.capacity() > 2 * self.holds.len() + SPARE_GRANTS {
            self.holds.shrink_to_fit();
        }
    }

    /// The two instants of a command that was received then.
    #[must_use]
    pub fn times(&self, received_at: Timestamp) -> CommandTimes {
        CommandTimes { now: received_at, recorded_at: received_at.max(self.credits.updated_at.next()) }
    }

    /// The terms of a feature in force. None if neither the plan nor an override has it.
    #[must_use]
    pub fn feature_terms(&self, code: &FeatureCode) -> Option<FeatureTerms> {
        feature_terms(&self.plan, &self.feature_overrides, code)
    }

    /// The credits that were used on a feature in this billing period.
    #[must_use]
    pub fn feature_usage(&self, code: &FeatureCode) -> Credits {
        let counter = self.counter(&CounterSubject::Feature(code.clone()));
        counter.map_or(Credits::ZERO, |counter| counter.used_in(self.subscription.period.start))
    }

    /// How far the balance may go below zero by the terms of the workspace or of its plan.
    #[must_use]
    pub fn agreed_overdraft(&self) -> Credits {
        if self.subscription.is_active() { self.workspace.overdraft_limit(&self.plan) } else { Credits::ZERO }
    }

    /// What open holds reserve for a feature.
    #[must_use]
    pub fn held_on(&self, code: &FeatureCode) -> Credits {
        let held = self.holds.iter().map(|open| &open.hold).filter(|hold| hold.feature_code == *code);
        held.map(|hold| hold.amount).fold(Credits::ZERO, Credits::saturating_plus)
    }

    /// What open holds reserve of the overdraft.
    #[must_use]
    pub fn held_overdraft(&self) -> Credits {
        self.holds.iter().map(|open| open.hold.overdraft).fold(Credits::ZERO, Credits::saturating_plus)
    }

    /// The features to list, in order: those of the plan, those with an override, those that were used in this period, and
    /// those that credits are held for.
    #[must_use]
    pub fn feature_codes(&self) -> BTreeSet<&FeatureCode> {
        let used = self.counters.iter().filter(|counter| counter.window_start == self.subscription.period.start);
        let used = used.map(|counter| match &counter.subject {
            CounterSubject::Feature(code) => code,
        });
        let held = self.holds.iter().map(|open| &open.hold.feature_code);
        self.plan.features.keys().chain(self.feature_overrides.keys()).chain(used).chain(held).collect()
    }

    #[must_use]
    pub fn counter(&self, subject: &CounterSubject) -> Option<&UsageCounter> {
        let index = self.counters.binary_search_by(|counter| counter.subject.cmp(subject)).ok()?;
        self.counters.get(index)
    }

    /// Inserts a counter or replaces the one of the same subject.
    pub fn put_counter(&mut self, counter: UsageCounter) {
        match self.counters.binary_search_by(|existing| existing.subject.cmp(&counter.subject)) {
            Ok(index) => self.counters[index] = counter,
            Err(index) => self.counters.insert(index, counter),
        }
    }

    /// The plan of the pending change, if it is a change of plan.
    #[must_use]
    pub fn pending_plan(&self) -> Option<&Arc<PlanVersion>> {
        match self.subscription.pending_change {
            Some(PendingChange::Change { .. }) => self.pending_plan.as_ref(),
            Some(PendingChange::Cancel { .. }) | None => None,
        }
    }
}
