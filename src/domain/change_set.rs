//! The rows that a batch writes.
//!
//! A store knows these rows and no commands. A row that can change is given with all its new values. History
//! (ledger entries, usage logs, refunds, reversals, commands, events, periods) is only inserted.

use std::collections::{BTreeMap, HashMap};

use super::cloud_event::EventRecord;
use super::command_record::CommandRecord;
use super::counter::UsageCounter;
use super::grant::Grant;
use super::hold::{HeldShare, Hold};
use super::ids::{CommandId, SubscriptionId, WorkspaceId};
use super::ledger::LedgerEntry;
use super::partition_head::PartitionHead;
use super::period::Period;
use super::refund::UsageRefund;
use super::reversal::PurchaseReversal;
use super::subscription::Subscription;
use super::usage::UsageLog;
use super::workspace::{FeatureOverride, Workspace, WorkspaceCredits};

/// New and changed rows of one table. A key occurs at most once in both lists together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows<T> {
    pub inserted: Vec<T>,
    pub updated: Vec<T>,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self { inserted: Vec::new(), updated: Vec::new() }
    }
}

impl<T> Rows<T> {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inserted.is_empty() && self.updated.is_empty()
    }
}

/// The rows that one batch writes: all of them or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// The new heads of all partitions that the batch writes to, in ascending order. If another replica writes
    /// first, the heads and the events get later numbers (see [`ChangeSet::renumber_events`]).
    pub heads: Vec<PartitionHead>,
    pub workspaces: Vec<Workspace>,
    /// The overrides of new workspaces.
    pub feature_overrides: Vec<FeatureOverride>,
    pub credits: Rows<WorkspaceCredits>,
    pub subscriptions: Rows<Subscription>,
    pub counters: Rows<UsageCounter>,
    pub grants: Rows<Grant>,
    pub holds: Rows<Hold>,
    /// What new holds reserve of grants.
    pub held_shares: Vec<HeldShare>,
    pub ledger_entries: Vec<LedgerEntry>,
    pub usage_logs: Vec<UsageLog>,
    pub commands: Vec<CommandRecord>,
    pub events: Vec<EventRecord>,
    pub periods: Vec<SubscriptionPeriod>,
    pub refunds: Vec<UsageRefund>,
    pub reversals: Vec<PurchaseReversal>,
}

impl ChangeSet {
    /// Whether there is nothing to write. Every other row belongs to a command.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// For each row of `credits.updated`, in order, the version that the workspace had when the batch was decided.
    /// The write must be refused if the workspace has another one by then.
    #[must_use]
    pub fn expected_versions(&self) -> Vec<i64> {
        let mut before = HashMap::with_capacity(self.credits.updated.len());
        for command in &self.commands {
            before.entry(command.workspace_id).or_insert(command.seq - 1);
        }
        // -1 for a row without a command: no workspace has this version, so the write is refused.
        self.credits.updated.iter().map(|row| before.get(&row.workspace_id).copied().unwrap_or(-1)).collect()
    }

    /// For each of `heads`, in order, how many events the batch adds to its partition.
    #[must_use]
    pub fn event_counts(&self) -> Vec<i64> {
        let mut added = BTreeMap::new();
        for event in &self.events {
            *added.entry(event.partition).or_default() += 1;
        }
        self.heads.iter().map(|head| added.get(&head.partition).copied().unwrap_or_default()).collect()
    }

    /// Replaces the heads by those that were written, and renumbers the events accordingly: other replicas may
    /// have written events to the same partitions since the batch was decided.
    pub fn renumber_events(&mut self, written: &[PartitionHead]) {
        let offsets: BTreeMap<_, _> =
            self.heads.iter().zip(written).map(|(head, actual)| (head.partition, actual.seq - head.seq)).collect();
        if offsets.values().any(|offset| *offset != 0) {
            let offset_of = |partition| offsets.get(&partition).copied().unwrap_or_default();
            for event in &mut self.events {
                event.seq += offset_of(event.partition);
            }
        }
        self.heads = written.to_vec();
    }
}

/// A period that began. The subscription and the start identify it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionPeriod {
    pub workspace_id: WorkspaceId,
    pub subscription_id: SubscriptionId,
    pub period: Period,
    /// The number of the last usage log before the period. Later logs count in this period.
    pub usage_seq: i64,
    pub command_id: CommandId,
}
