//! What a batch of commands needs to know, and what was found.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::change_set::CommandRecord;
use super::grant::Grant;
use super::ids::{EventId, Partition, WorkspaceId};
use super::plan::PlanVersion;
use super::subscription::{Pending, Subscription};
use super::text::{IdempotencyKey, PaymentReference, PlanCode};
use super::time::Timestamp;
use super::workspace::{Workspace, WorkspaceCredits, WorkspaceFeatures};

/// The rows that a batch will look at. The store locks the partitions of the workspaces first, in
/// ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    pub workspaces: BTreeSet<WorkspaceId>,
    /// Those of the workspaces whose state is known, each with the version of its partition that it is
    /// true at. They are read only if the partition has another one.
    pub known: BTreeMap<WorkspaceId, i64>,
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
    pub fn unknown(&self, heads: &BTreeMap<Partition, PartitionHead>) -> impl Iterator<Item = WorkspaceId> {
        let is_known = |id: &WorkspaceId| {
            let version = heads.get(&Partition::of(*id)).map(|head| head.version);
            version.is_some() && self.known.get(id).copied() == version
        };
        self.workspaces.iter().copied().filter(move |id| !is_known(id))
    }
}

/// The head of a partition's sequence of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionHead {
    pub partition: Partition,
    /// The last event's number; 0 before the first.
    pub seq: i64,
    pub last_event_id: Option<EventId>,
    /// Grows by one with every batch that wrote to the partition: whoever wrote the last one knows from
    /// it that nobody else has written since.
    pub version: i64,
}

/// Room for so many more grants than twice those that are open is left to a state.
const GRANTS_TO_SPARE: usize = 4;

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
    pub features: WorkspaceFeatures,
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
    pub plans: HashMap<PlanCode, Arc<PlanVersion>>,
}

impl PartitionHead {
    #[must_use]
    pub const fn empty(partition: Partition) -> Self {
        Self { partition, seq: 0, last_event_id: None, version: 0 }
    }
}

impl WorkspaceState {
    /// Shares what it has in common with all workspaces of its plan, given the features that these begin with:
    /// states are remembered by the ten thousand.
    pub fn share(&mut self, of_plan: &WorkspaceFeatures) {
        self.subscription.plan_code = self.plan.plan_code.clone();
        self.features.share(of_plan);
        if let Some(current) = &mut self.credits.current.feature
            && let Some(feature) = self.features.get(&current.feature_code)
        {
            current.feature_code = feature.feature_code.clone();
        }
    }

    /// How much memory it takes, about, without what is shared and short texts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let references: usize = self
            .grants
            .iter()
            .filter_map(|grant| grant.payment_reference.as_ref())
            .map(|text| text.as_str().len())
            .sum();
        size_of::<Self>() + self.features.bytes() + self.grants.capacity() * size_of::<Grant>() + references
    }

    /// Gives back the room of grants that were closed.
    pub fn shrink(&mut self) {
        if self.grants.capacity() > 2 * self.grants.len() + GRANTS_TO_SPARE {
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

    /// The plan that is waiting for the period's end, if the pending change is one of plan.
    #[must_use]
    pub fn pending_plan(&self) -> Option<&Arc<PlanVersion>> {
        match self.subscription.pending {
            Some(Pending::Change { .. }) => self.pending_plan.as_ref(),
            Some(Pending::Cancel { .. }) | None => None,
        }
    }
}
