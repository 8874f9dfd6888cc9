//! The closed vocabulary of rows that a batch writes.
//!
//! A store knows these and no command. Rows that can change come as their whole new value; history
//! (entries, usage logs, commands, events, resets) is only ever inserted.

use std::collections::{BTreeMap, HashMap};

use super::entry::Entry;
use super::event::EventRecord;
use super::grant::Grant;
use super::ids::{CommandId, SubscriptionId, WorkspaceId};
use super::metadata::Metadata;
use super::period::Period;
use super::snapshot::PartitionHead;
use super::subscription::Subscription;
use super::text::IdempotencyKey;
use super::time::Timestamp;
use super::usage::UsageLog;
use super::workspace::{Workspace, WorkspaceCredits, WorkspaceFeature};

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
    /// them first. If somebody does, the batch's events follow theirs (see [`ChangeSet::follow`]).
    pub heads: Vec<PartitionHead>,
    pub workspaces: Vec<Workspace>,
    pub credits: Rows<WorkspaceCredits>,
    pub subscriptions: Rows<Subscription>,
    pub features: Rows<(WorkspaceId, WorkspaceFeature)>,
    /// Of an updated grant only `remaining`, `held`, `expires_at` and whether it is open change.
    pub grants: Rows<Grant>,
    pub entries: Vec<Entry>,
    pub usage_logs: Vec<UsageLog>,
    pub commands: Vec<CommandRecord>,
    pub events: Vec<EventRecord>,
    pub resets: Vec<ResetRecord>,
}

impl ChangeSet {
    /// Nothing to write: every command was a replay, unknown or came too late.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Whether it has nothing but what deductions write: figures of rows that are there, and history.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        let Self { workspaces, credits, subscriptions, features, grants, resets, .. } = self;
        let has_new = !(credits.inserted.is_empty() && features.inserted.is_empty() && grants.inserted.is_empty());
        !has_new && workspaces.is_empty() && subscriptions.is_empty() && resets.is_empty()
    }

    /// The changed rows of workspaces, each with its last command before this batch: it must still be the
    /// last one when the batch is written.
    pub fn moved_credits(&self) -> impl Iterator<Item = (&WorkspaceCredits, Option<i64>)> {
        let mut before = HashMap::with_capacity(self.credits.updated.len());
        for command in &self.commands {
            before.entry(command.workspace_id).or_insert(command.seq - 1);
        }
        self.credits.updated.iter().map(move |credits| (credits, before.get(&credits.workspace_id).copied()))
    }

    /// The heads, each with how many events the batch adds to its partition.
    pub fn moved_heads(&self) -> impl Iterator<Item = (&PartitionHead, i64)> {
        let mut added = BTreeMap::new();
        for event in &self.events {
            *added.entry(event.partition).or_default() += 1;
        }
        self.heads.iter().map(move |head| (head, added.get(&head.partition).copied().unwrap_or_default()))
    }

    /// Moves the events behind those that others have written to their partitions meanwhile.
    pub fn follow(&mut self, written: &[PartitionHead]) {
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

/// A command that was decided: for the audit, and for its idempotency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandRecord {
    pub workspace_id: WorkspaceId,
    pub idempotency_key: IdempotencyKey,
    pub command_id: CommandId,
    /// Gap-free within the workspace, from 1.
    pub seq: i64,
    /// The command's name, such as `DeductCredits`.
    pub command_type: String,
    /// SHA-256 over the command's name and its canonical body.
    pub fingerprint: [u8; 32],
    /// `accepted`, or the code of the rejection.
    pub outcome: String,
    /// The HTTP status that was answered, and the body, byte for byte.
    pub status: i16,
    pub body: String,
    pub actor: String,
    pub correlation_id: String,
    pub traceparent: Option<String>,
    pub metadata: Option<Metadata>,
    pub received_at: Timestamp,
    pub recorded_at: Timestamp,
}

/// A period that began: there is one per subscription and start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetRecord {
    pub workspace_id: WorkspaceId,
    pub subscription_id: SubscriptionId,
    pub period: Period,
    /// The last usage log before the period: what came after it is used in this period.
    pub usage_seq: i64,
    pub command_id: CommandId,
    pub recorded_at: Timestamp,
}
