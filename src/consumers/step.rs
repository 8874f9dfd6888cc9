//! One step: some events of a partition for one build, and what the fold makes of them.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::domain::cloud_event::EventRecord;
use crate::domain::consumers::{Build, ConsumerRows, DeadLetter, Fact, Fault, Folded, Newer, fold, up_to_newer};
use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::store::StoreError;
use crate::store::consumers::Advance;

use super::positions::Position;

/// Events right after the position of a build. It does not know that position: steps before it may move it.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) build: Build,
    pub(super) partition: Partition,
    /// The position when the step is done.
    pub(super) to: i64,
    pub(super) facts: Arc<[Fact]>,
    /// The event after the step is newer than this version of the server.
    pub(super) newer: Option<Newer>,
}

impl Step {
    /// The step over these events, which are in order. Events up to the position are left out.
    pub(super) fn new(build: Build, partition: Partition, position: i64, facts: &Arc<[Fact]>) -> Self {
        let seen = facts.partition_point(|fact| fact.event.seq <= position);
        let (count, newer) = up_to_newer(build.consumer, &facts[seen..]);
        let facts: Arc<[Fact]> =
            if (seen, count) == (0, facts.len()) { Arc::clone(facts) } else { facts[seen..seen + count].into() };
        let to = facts.last().map_or(position, |fact| fact.event.seq);
        Self { build, partition, to, facts, newer }
    }

    /// Both halves of a step of several events.
    pub(super) fn halves(&self) -> Option<[Self; 2]> {
        let (first, second) = self.facts.split_at(self.facts.len() / 2);
        let last = first.last()?;
        let first = Self { to: last.event.seq, facts: first.into(), newer: None, ..self.clone() };
        Some([first, Self { facts: second.into(), ..self.clone() }])
    }

    /// Folds the events. What cannot be taken becomes a dead letter, and its workspace is left out from there on.
    pub(super) fn fold(&self, position: &Position, rows: &ConsumerRows, now: Timestamp) -> Result<Advance, StoreError> {
        let mut left_out: HashMap<WorkspaceId, i64> =
            position.parked.keys().map(|workspace_id| (*workspace_id, i64::MIN)).collect();
        let mut letters = Vec::new();
        let folded = loop {
            let is_left_out =
                |event: &EventRecord| left_out.get(&event.workspace_id).is_some_and(|at| event.seq >= *at);
            match self.try_fold(rows, is_left_out) {
                Folded::Rows(rows) => break rows,
                Folded::Faulted { index, fault } => {
                    let fact = self.facts.get(index).filter(|fact| !is_left_out(&fact.event));
                    // To leave an event out twice would be to try for ever.
                    let at_no_event = || StoreError::Corrupt(format!("the fold fails at no event: {}", fault.text));
                    let fact = fact.ok_or_else(at_no_event)?;
                    left_out.insert(fact.event.workspace_id, fact.event.seq);
                    letters.push(DeadLetter::new(self.build, &fact.event, &fault, now));
                }
            }
        };
        Ok(self.advance(position, folded, letters, now))
    }

    /// The step without its only event, which the database has refused.
    pub(super) fn without_event(&self, position: &Position, fault: &Fault, now: Timestamp) -> Advance {
        let letter = |fact: &Fact| DeadLetter::new(self.build, &fact.event, fault, now);
        self.advance(position, ConsumerRows::default(), self.facts.iter().map(letter).collect(), now)
    }

    fn try_fold(&self, rows: &ConsumerRows, is_left_out: impl Fn(&EventRecord) -> bool) -> Folded {
        let taken = std::cell::Cell::new(0);
        let noting = |event: &EventRecord| {
            taken.set(event.seq);
            is_left_out(event)
        };
        let folded = catch_unwind(AssertUnwindSafe(|| fold(self.build, &self.facts, rows.clone(), noting)));
        folded.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the fold has panicked");
            let index = self.facts.partition_point(|fact| fact.event.seq < taken.get());
            Folded::Faulted { index, fault: Fault { class: Fault::PANIC, text: text.to_owned() } }
        })
    }

    fn advance(&self, position: &Position, rows: ConsumerRows, letters: Vec<DeadLetter>, at: Timestamp) -> Advance {
        let last = self.facts.last().map(|fact| fact.event.event_id);
        let waiting_for = self.newer.as_ref().map(|newer| format!("{} {}", newer.event_type, newer.schema_version));
        Advance {
            build: self.build,
            partition: self.partition,
            epoch: position.epoch,
            from: position.seq,
            to: self.to,
            last_event_id: last.or(position.last_event_id),
            waiting_for,
            rows,
            letters,
            at,
        }
    }
}

/// The rows of each build's version and partition, as the steps need them.
pub(super) fn by_step(rows: ConsumerRows) -> BTreeMap<(i32, Partition), ConsumerRows> {
    let mut split: BTreeMap<(i32, Partition), ConsumerRows> = BTreeMap::new();
    for row in rows.activities {
        split.entry((row.version, row.partition)).or_default().activities.push(row);
    }
    for row in rows.revenues {
        split.entry((row.version, row.partition)).or_default().revenues.push(row);
    }
    for row in rows.statements {
        split.entry((row.version, row.partition)).or_default().statements.push(row);
    }
    for row in rows.notified_workspaces {
        split.entry((row.version, row.partition)).or_default().notified_workspaces.push(row);
    }
    for row in rows.statement_lines {
        split.entry((row.version, row.partition)).or_default().statement_lines.push(row);
    }
    split
}
