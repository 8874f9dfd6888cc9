//! The closed vocabulary of rows that a batch writes.
//!
//! A store knows these and no command. Rows that can change come as their whole new value; history
//! (ledger entries, usage logs, commands, events, periods) is only ever inserted.

use std::collections::{BTreeMap, HashMap};

use super::command_record::CommandRecord;
use super::counter::UsageCounter;
use super::event::EventRecord;
use super::grant::Grant;
use super::ids::{CommandId, SubscriptionId, WorkspaceId};
use super::ledger::LedgerEntry;
use super::partition_head::PartitionHead;
use super::period::Period;
use super::subscription::Subscription;
use super::usage::UsageLog;
use super::workspace::{FeatureOverride, Workspace, WorkspaceCredits};

/// New and changed rows of one table; each row's key occurs once in both together.
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

/// What one batch writes, all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// The new heads of all partitions that the batch wrote to, in ascending order, if nobody else writes to
    /// them first. If somebody does, the batch's events follow theirs (see [`ChangeSet::renumber_events`]).
    pub heads: Vec<PartitionHead>,
    pub workspaces: Vec<Workspace>,
    /// Of new workspaces.
    pub feature_overrides: Vec<FeatureOverride>,
    pub credits: Rows<WorkspaceCredits>,
    pub subscriptions: Rows<Subscription>,
    pub counters: Rows<UsageCounter>,
    pub grants: Rows<Grant>,
    pub ledger_entries: Vec<LedgerEntry>,
    pub usage_logs: Vec<UsageLog>,
    pub commands: Vec<CommandRecord>,
    pub events: Vec<EventRecord>,
    pub periods: Vec<SubscriptionPeriod>,
}

impl ChangeSet {
    /// Nothing to write: every command was a replay, unknown or came too late.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Whether it has nothing but what deductions usually write: new figures of rows that are there, and history.
    #[must_use]
    pub fn only_updates(&self) -> bool {
        let Self { workspaces, credits, subscriptions, counters, grants, periods, .. } = self;
        let has_new = !(credits.inserted.is_empty() && counters.inserted.is_empty() && grants.inserted.is_empty());
        !has_new && workspaces.is_empty() && subscriptions.is_empty() && periods.is_empty()
    }

    /// For each updated row of `credits`, in order, the version it was decided on: the workspace must still have
    /// it when the batch is written.
    #[must_use]
    pub fn expected_versions(&self) -> Vec<i64> {
        let mut before = HashMap::with_capacity(self.credits.updated.len());
        for command in &self.commands {
            before.entry(command.workspace_id).or_insert(command.seq - 1);
        }
        // A row without a command is decided on no version: no workspace has that one.
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

    /// Moves the events behind those that others have written to their partitions meanwhile.
    pub fn renumber_events(&mut self, written: &[PartitionHead]) {
        let ahead: BTreeMap<_, _> =
            self.heads.iter().zip(written).map(|(head, actual)| (head.partition, actual.seq - head.seq)).collect();
        if ahead.values().any(|by| *by != 0) {
            let ahead = |partition| ahead.get(&partition).copied().unwrap_or_default();
            for event in &mut self.events {
                event.seq += ahead(event.partition);
            }
        }
        self.heads = written.to_vec();
    }
}

/// A period that began: there is one per subscription and start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionPeriod {
    pub workspace_id: WorkspaceId,
    pub subscription_id: SubscriptionId,
    pub period: Period,
    /// The last usage log before the period: what came after it is used in this period.
    pub usage_seq: i64,
    pub command_id: CommandId,
}
