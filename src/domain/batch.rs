//! A batch: many commands, decided one after the other on one snapshot.
//!
//! Deciding commands in a batch gives exactly what deciding them one at a time would: each sees
//! the effects of those before it. Changes are collected, so that every row is written once, with its
//! final value.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::change_set::{ChangeSet, Rows};
use super::cloud_event::EventRecord;
use super::command_record::CommandRecord;
use super::commands::{Command, Decision, Effects, Envelope, MAX_DUE_COMMANDS, RefundUsage, decide, remedies};
use super::counter::CounterSubject;
use super::credits::Credits;
use super::event::EventData;
use super::explanation::Explanation;
use super::grant::{Grant, GrantSource};
use super::hold::{Hold, OpenHold};
use super::ids::{EventId, GrantId, HoldId, IdSequence, Partition, WorkspaceId};
use super::ledger::Account;
use super::metadata::Metadata;
use super::partition_head::PartitionHead;
use super::receipt::Receipt;
use super::refund::{RefundableUsage, UsageShare};
use super::rejection::Rejection;
use super::reversal::ReversiblePurchase;
use super::snapshot::{Snapshot, WorkspaceState};
use super::text::IdempotencyKey;
use super::time::Timestamp;
use super::usage::UsageLog;
use super::workspace::FeatureOverride;

/// The result of one command of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Accepted(Rendered),
    Refused {
        rejection: Rejection,
        answer: Rendered,
    },
    /// The stored answer: the same command was decided before under the same key.
    Replayed(Rendered),
    /// The key was used with another body.
    KeyReused,
    /// A command of the scheduler that found nothing to do.
    Nothing,
}

/// An answer as it is stored and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The HTTP status.
    pub status: u16,
    pub body: String,
}

/// Turns a decision into the answer that is stored with it. The caller of a batch provides it, because the
/// domain does not know HTTP.
pub trait Render: Send + Sync {
    fn receipt(&self, receipt: &Receipt) -> Rendered;
    /// `explanation` is that of a deduction or a hold.
    fn rejection(&self, rejection: &Rejection, explanation: Option<&Explanation>) -> Rendered;
}

/// An event's data could not be serialized or does not match its schema: a defect of the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event data does not match its schema: {0}")]
pub struct InvalidEvent(pub String);

/// Serializes the data of an event with the metadata of its command, and checks it against its schema.
pub trait EventWriter: Send + Sync {
    fn write(&self, data: &EventData, metadata: Option<&Metadata>) -> Result<String, InvalidEvent>;
}

/// Whether a row was created in this batch: it is inserted, not updated.
type IsNew = bool;

/// The keys of the changed rows of one workspace.
#[derive(Default)]
struct ChangedRows {
    grants: BTreeMap<GrantId, IsNew>,
    counters: BTreeMap<CounterSubject, IsNew>,
    has_subscription: bool,
}

impl ChangedRows {
    /// Adds the rows that a command changes. `state` is the one before it.
    fn add(&mut self, effects: &Effects, state: &WorkspaceState) {
        self.has_subscription |= effects.subscription.is_some();
        for subject in effects.counters.keys() {
            let is_new = || state.counter(subject).is_none();
            self.counters.entry(subject.clone()).or_insert_with(is_new);
        }
        for grant in effects.changed_grants.values() {
            self.grants.entry(grant.grant_id).or_insert(false);
        }
        for grant in &effects.reopened_grants {
            self.grants.entry(grant.grant_id).or_insert(false);
        }
        self.grants.extend(effects.added_grants.iter().map(|grant| (grant.grant_id, true)));
    }
}

/// The current states of a batch, and the rows that it will write.
pub struct Batch<'a> {
    snapshot: Snapshot,
    render: &'a dyn Render,
    events: &'a dyn EventWriter,
    /// The workspaces that were changed so far.
    workspaces: BTreeMap<WorkspaceId, IsNew>,
    changed: BTreeMap<WorkspaceId, ChangedRows>,
    /// The holds that were placed or changed.
    holds: BTreeMap<(WorkspaceId, HoldId), (Hold, IsNew)>,
    /// The index in `changes.commands` of each command that was recorded in this batch.
    decided: HashMap<(WorkspaceId, IdempotencyKey), usize>,
    changes: ChangeSet,
}

impl<'a> Batch<'a> {
    #[must_use]
    pub fn new(snapshot: Snapshot, render: &'a dyn Render, events: &'a dyn EventWriter) -> Self {
        Self {
            snapshot,
            render,
            events,
            workspaces: BTreeMap::new(),
            changed: BTreeMap::new(),
            holds: BTreeMap::new(),
            decided: HashMap::new(),
            changes: ChangeSet::default(),
        }
    }

    /// Decides one command and applies its effects to the snapshot. On an error nothing of the command is kept.
    pub fn run(&mut self, envelope: &Envelope) -> Result<Outcome, InvalidEvent> {
        let key = (envelope.workspace_id, envelope.idempotency_key.clone());
        if let Some(recorded) = self.recorded_command(&key) {
            let same = recorded.fingerprint == envelope.fingerprint && recorded.command_type == envelope.command.name();
            let answer = || Rendered { status: recorded.status.unsigned_abs(), body: recorded.body.clone() };
            return Ok(if same { Outcome::Replayed(answer()) } else { Outcome::KeyReused });
        }
        if let Some(rejection) = self.do_due_work(envelope)? {
            let answer = self.render.rejection(&rejection, None);
            return Ok(Outcome::Refused { rejection, answer });
        }
        self.look_up_usage_of_batch(envelope);
        match decide(&self.snapshot, envelope) {
            Decision::Nothing => Ok(Outcome::Nothing),
            Decision::Accepted { effects, receipt } => {
                let answer = self.render.receipt(&receipt);
                self.accept(envelope, *effects, "accepted", answer.clone())?;
                Ok(Outcome::Accepted(answer))
            }
            Decision::Refused { rejection, event, mut explanation } => {
                if let Some(explanation) = &mut explanation {
                    explanation.remedies = remedies(&self.snapshot, envelope, &rejection);
                }
                let answer = self.render.rejection(&rejection, explanation.as_deref());
                if let Some(state) = self.snapshot.workspaces.get(&envelope.workspace_id)
                    && rejection.is_recorded()
                    && !envelope.command.is_internal()
                {
                    let effects = Effects::of_refusal(state, envelope, event);
                    self.accept(envelope, effects, rejection.code(), answer.clone())?;
                }
                Ok(Outcome::Refused { rejection, answer })
            }
        }
    }

    /// The command that was recorded under the key, in this batch or before.
    fn recorded_command(&self, key: &(WorkspaceId, IdempotencyKey)) -> Option<&CommandRecord> {
        let decided = self.decided.get(key).and_then(|index| self.changes.commands.get(*index));
        decided.or_else(|| self.snapshot.commands.get(key))
    }

    /// Runs the internal commands that are due before this one. Returns the rejection if one is refused: the command
    /// itself is then not decided.
    fn do_due_work(&mut self, envelope: &Envelope) -> Result<Option<Rejection>, InvalidEvent> {
        let mut cause = envelope.message_id;
        for _ in 0..MAX_DUE_COMMANDS {
            cause = cause.of_internal_command();
            let Some(prerequisite) = envelope.prerequisite(&self.snapshot, cause) else { break };
            if let Outcome::Refused { rejection, .. } = self.run(&prerequisite)? {
                return Ok(Some(rejection));
            }
        }
        Ok(None)
    }

    /// Returns the rows to write, and the snapshot after the batch. Its states are what the next batch would load;
    /// it does not contain the commands of this batch.
    #[must_use]
    pub fn finish(mut self) -> (ChangeSet, Snapshot) {
        let partitions: BTreeSet<_> = self.workspaces.keys().copied().map(Partition::of).collect();
        for partition in partitions {
            if let Some(head) = self.snapshot.heads.get_mut(&partition) {
                head.version += 1;
                self.changes.heads.push(*head);
            }
        }
        for (hold, is_new) in std::mem::take(&mut self.holds).into_values() {
            put(&mut self.changes.holds, is_new, hold);
        }
        for (workspace_id, is_new) in &self.workspaces {
            let Some(state) = self.snapshot.workspaces.get(workspace_id) else { continue };
            let mut changed = self.changed.remove(workspace_id).unwrap_or_default();
            if *is_new {
                self.changes.workspaces.push(state.workspace.clone());
                let overrides = state.feature_overrides.iter().map(|(code, terms)| FeatureOverride {
                    workspace_id: *workspace_id,
                    feature_code: code.clone(),
                    terms: *terms,
                });
                self.changes.feature_overrides.extend(overrides);
            }
            put(&mut self.changes.credits, *is_new, state.credits.clone());
            if changed.has_subscription {
                put(&mut self.changes.subscriptions, *is_new, state.subscription.clone());
            }
            for counter in &state.counters {
                let Some(is_new) = changed.counters.get(&counter.subject) else { continue };
                put(&mut self.changes.counters, *is_new, counter.clone());
            }
            for grant in &state.grants {
                let Some(is_new) = changed.grants.remove(&grant.grant_id) else { continue };
                put(&mut self.changes.grants, is_new, grant.clone());
            }
            // The others were closed in this batch and removed from the state.
            for (grant_id, is_new) in changed.grants {
                let Some(grant) = self.snapshot.closed_grants.get(&(*workspace_id, grant_id)) else { continue };
                put(&mut self.changes.grants, is_new, grant.clone());
            }
        }
        (self.changes, self.snapshot)
    }

    /// Applies the effects of a recorded command to the snapshot and adds its rows.
    fn accept(
        &mut self,
        envelope: &Envelope,
        effects: Effects,
        outcome: &str,
        answer: Rendered,
    ) -> Result<(), InvalidEvent> {
        let mut written = Vec::with_capacity(effects.events.len());
        for (event_id, data) in &effects.events {
            let text = self.events.write(data, envelope.metadata.as_ref())?;
            written.push((*event_id, data.event_type(), text));
        }
        let workspace_id = envelope.workspace_id;
        let recorded_at = effects.recorded_at;
        self.apply(workspace_id, effects);
        for (event_id, event_type, data) in written {
            let (seq, workspace_seq) = self.next_event_seqs(workspace_id, event_id);
            self.changes.events.push(EventRecord {
                event_id,
                event_type: event_type.into(),
                schema_version: event_type.schema_version(),
                partition: Partition::of(workspace_id),
                seq,
                workspace_id,
                workspace_seq,
                recorded_at,
                correlation_id: envelope.correlation_id.clone(),
                causation_id: envelope.message_id.0,
                traceparent: envelope.traceparent.clone(),
                data,
            });
        }
        self.record_command(envelope, recorded_at, outcome, answer);
        Ok(())
    }

    fn record_command(&mut self, envelope: &Envelope, recorded_at: Timestamp, outcome: &str, answer: Rendered) {
        let seq = self.snapshot.workspaces.get_mut(&envelope.workspace_id).map_or(0, |state| {
            state.credits.version += 1;
            state.credits.version
        });
        let record = CommandRecord {
            workspace_id: envelope.workspace_id,
            idempotency_key: envelope.idempotency_key.clone(),
            command_id: envelope.message_id,
            seq,
            command_type: envelope.command.name().to_owned(),
            fingerprint: envelope.fingerprint,
            outcome: outcome.to_owned(),
            status: i16::try_from(answer.status).unwrap_or(i16::MAX),
            body: answer.body,
            actor: envelope.actor.clone(),
            correlation_id: envelope.correlation_id.clone(),
            traceparent: envelope.traceparent.clone(),
            metadata: envelope.metadata.clone(),
            received_at: envelope.received_at,
            recorded_at,
        };
        let key = (envelope.workspace_id, envelope.idempotency_key.clone());
        self.decided.insert(key, self.changes.commands.len());
        self.changes.commands.push(record);
    }

    /// Returns the event's `seq` and `workspace_seq`.
    fn next_event_seqs(&mut self, workspace_id: WorkspaceId, event_id: EventId) -> (i64, i64) {
        let partition = Partition::of(workspace_id);
        let head = self.snapshot.heads.entry(partition).or_insert(PartitionHead::empty(partition));
        head.seq += 1;
        head.last_event_id = Some(event_id);
        let workspace_seq = self.snapshot.workspaces.get_mut(&workspace_id).map_or(0, |state| {
            state.credits.event_seq += 1;
            state.credits.event_seq
        });
        (head.seq, workspace_seq)
    }

    fn apply(&mut self, workspace_id: WorkspaceId, mut effects: Effects) {
        self.workspaces.entry(workspace_id).or_insert(effects.workspace.is_some());
        self.update_look_ups(workspace_id, &effects);
        self.changes.ledger_entries.append(&mut effects.entries);
        self.changes.usage_logs.extend(effects.usage_log.take());
        self.changes.periods.append(&mut effects.periods);
        self.changes.refunds.extend(effects.refund.take());
        self.changes.reversals.extend(effects.reversal.take());
        if let Some(state) = effects.new_state() {
            self.snapshot.workspaces.insert(workspace_id, Box::new(state));
        }
        self.add_holds(&effects);
        let Some(state) = self.snapshot.workspaces.get_mut(&workspace_id) else { return };
        self.changed.entry(workspace_id).or_default().add(&effects, state);
        // Later commands of this batch cannot use the same payment again.
        let payment = |grant: &Grant| Some(((workspace_id, grant.payment_reference.clone()?), grant.grant_id));
        self.snapshot.payments.extend(effects.added_grants.iter().filter_map(payment));
        // A closed grant leaves its state. Later commands of this batch must still find it.
        let closed = state.apply(effects).into_iter();
        self.snapshot.closed_grants.extend(closed.map(|grant| ((workspace_id, grant.grant_id), grant)));
    }

    /// A usage log of this batch was not there to be looked up.
    fn look_up_usage_of_batch(&mut self, envelope: &Envelope) {
        let Command::RefundUsage(RefundUsage { usage_id, .. }) = &envelope.command else { return };
        let (workspace_id, usage_id) = (envelope.workspace_id, *usage_id);
        let is_named = |log: &&UsageLog| log.workspace_id == workspace_id && log.id() == usage_id;
        let Some(log) = self.changes.usage_logs.iter().find(is_named) else { return };
        let ChangeSet { ledger_entries, periods, .. } = &self.changes;
        self.snapshot.usages.entry((workspace_id, usage_id)).or_insert_with(|| RefundableUsage {
            log: log.clone(),
            shares: UsageShare::of_entries(ledger_entries.iter().filter(|entry| entry.command_id == log.command_id)),
            refunded: Credits::ZERO,
            is_of_current_period: !periods.iter().any(|p| p.workspace_id == workspace_id && p.usage_seq >= log.seq),
        });
    }

    /// Later commands of this batch must see what this one changes of what was looked up.
    fn update_look_ups(&mut self, workspace_id: WorkspaceId, effects: &Effects) {
        let Snapshot { usages, purchases, .. } = &mut self.snapshot;
        if !effects.periods.is_empty() {
            let of_workspace = usages.iter_mut().filter(|((of, _), _)| *of == workspace_id);
            of_workspace.for_each(|(_, usage)| usage.is_of_current_period = false);
        }
        if let Some(refund) = &effects.refund
            && let Some(usage) = usages.get_mut(&(workspace_id, refund.usage_id))
        {
            usage.refunded = usage.refunded.saturating_plus(refund.credits);
        }
        if let Some(reversal) = &effects.reversal
            && let Some(purchase) = purchases.get_mut(&(workspace_id, reversal.grant_id))
        {
            purchase.add(reversal);
        }
        let bought = effects.added_grants.iter().filter(|grant| grant.source == GrantSource::Purchase);
        purchases.extend(bought.map(|grant| ((workspace_id, grant.grant_id), ReversiblePurchase::default())));
        if purchases.is_empty() {
            return;
        }
        for entry in effects.entries.iter().filter(|entry| entry.accounts.credit == Account::Expired) {
            if let Some(grant_id) = entry.accounts.grant_id()
                && let Some(purchase) = purchases.get_mut(&(workspace_id, grant_id))
            {
                purchase.expired = purchase.expired.saturating_plus(entry.amount);
            }
        }
    }

    fn add_holds(&mut self, effects: &Effects) {
        if let Some(OpenHold { hold, shares }) = &effects.placed_hold {
            self.holds.insert((hold.workspace_id, hold.hold_id), (hold.clone(), true));
            self.changes.held_shares.extend(shares.iter().copied());
        }
        for hold in effects.changed_holds.values() {
            let key = (hold.workspace_id, hold.hold_id);
            let is_new = self.holds.get(&key).is_some_and(|(_, is_new)| *is_new);
            self.holds.insert(key, (hold.clone(), is_new));
            // A hold that is over leaves its state. Later commands of this batch must still find it.
            if !hold.is_open() {
                self.snapshot.holds.insert(key, hold.clone());
            }
        }
    }
}

fn put<T>(rows: &mut Rows<T>, is_new: bool, row: T) {
    if is_new { rows.inserted.push(row) } else { rows.updated.push(row) }
}

impl Effects {
    /// A recorded refusal changes nothing but `updated_at`, and raises the event of the refusal.
    fn of_refusal(state: &WorkspaceState, envelope: &Envelope, event: Option<EventData>) -> Self {
        let mut effects = Self::unchanged(state, state.times(envelope.received_at).recorded_at);
        let event_id = || EventId(IdSequence::new(envelope.message_id).draw());
        effects.events.extend(event.map(|event| (event_id(), event)));
        effects
    }
}
