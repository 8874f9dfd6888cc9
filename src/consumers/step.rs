//! One step: some events of a partition for one build, and what the fold makes of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::domain::cloud_event::EventRecord;
use crate::domain::consumers::{Build, ConsumerRows, Fact, Fault, Folded, Newer, Treatment, fold, up_to_newer};
use crate::domain::dead_letter::{DeadLetter, LetterState, ParkedWorkspace};
use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::store::StoreError;
use crate::store::consumers::Advance;

use super::positions::{Position, Positions};

/// After so many events that cannot be taken, a step ends. Each of them makes the fold begin again.
const MAX_FAILED: usize = 16;

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
    pub(super) replay: Option<Replay>,
}

/// A parked workspace is tried again: the events are its own, and those that were left out.
#[derive(Clone, Debug)]
pub(super) struct Replay {
    pub(super) parked: ParkedWorkspace,
    /// The letter that it waits behind.
    pub(super) letter: DeadLetter,
    /// After these events, none is left out.
    pub(super) is_last: bool,
}

impl Step {
    /// The step over these events, which are in order. Events up to the position are left out.
    pub(super) fn new(build: Build, partition: Partition, position: i64, facts: &Arc<[Fact]>) -> Self {
        let seen = facts.partition_point(|fact| fact.event.seq <= position);
        let (count, newer) = up_to_newer(build.consumer, &facts[seen..]);
        let facts: Arc<[Fact]> =
            if (seen, count) == (0, facts.len()) { Arc::clone(facts) } else { facts[seen..seen + count].into() };
        let to = facts.last().map_or(position, |fact| fact.event.seq);
        Self { build, partition, to, facts, newer, replay: None }
    }

    /// The step over the next events of a parked workspace. None if there is nothing that can be taken now.
    pub(super) fn replay(build: Build, position: &Position, replay: Replay, facts: &Arc<[Fact]>) -> Option<Self> {
        let partition = replay.parked.partition;
        let step = Self::new(build, partition, 0, facts);
        let replay = Replay { is_last: replay.is_last && step.newer.is_none(), ..replay };
        let can_go_on = !step.facts.is_empty() || replay.is_last;
        can_go_on.then_some(Self { to: position.seq, newer: None, replay: Some(replay), ..step })
    }

    /// The first half of a step of several events, and the second if it does not depend on the first.
    pub(super) fn halves(&self) -> Option<Vec<Self>> {
        let (first, second) = self.facts.split_at(self.facts.len() / 2);
        let last = first.last()?;
        let (facts, newer) = (first.into(), None);
        if let Some(replay) = self.replay.clone() {
            let replay = Some(Replay { is_last: false, ..replay });
            return Some(vec![Self { facts, newer, replay, ..self.clone() }]);
        }
        let first = Self { to: last.event.seq, facts, newer, ..self.clone() };
        Some(vec![first, Self { facts: second.into(), ..self.clone() }])
    }

    /// Folds the events. What cannot be taken becomes a dead letter, and its workspace is left out from there on. With
    /// `refused`, the database has refused the rows of the only event, for this reason.
    pub(super) fn fold(
        &self,
        positions: &Positions,
        rows: &ConsumerRows,
        refused: Option<&Fault>,
        now: Timestamp,
    ) -> Result<Advance, StoreError> {
        let position = positions.of_builds.get(&(self.partition, self.build));
        let position = position.ok_or_else(|| StoreError::Conflict("the build is gone".into()))?;
        // The steps of a beat are one after the other, and one of them may have ended early.
        let is_next = |fact: &Fact| self.replay.is_some() || fact.event.seq == position.seq + 1;
        if !self.facts.first().is_none_or(is_next) {
            return Err(StoreError::Conflict("the events before these were not taken".into()));
        }
        let mut tried = Tried::new(self, position);
        let mut fault = refused.cloned().map(|fault| (0, fault));
        let rows = loop {
            if let Some((index, fault)) = fault.take() {
                let fact = self.facts.get(index).filter(|fact| tried.treat(&fact.event) == Treatment::Take);
                // To leave an event out twice would be to try for ever.
                let at_no_event = || StoreError::Corrupt(format!("the fold fails at no event: {}", fault.text));
                let event = &fact.ok_or_else(at_no_event)?.event;
                let is_discarded = positions.discarded.contains(&(self.build.consumer, event.event_id));
                tried.fail(event, DeadLetter::of_event(self.build, event, &fault, now), is_discarded);
            }
            match fold(self.build, &self.facts, rows.clone(), |event| tried.treat(event)) {
                Folded::Rows(rows) => break rows,
                Folded::Faulted { index, fault: found } => fault = Some((index, found)),
            }
        };
        Ok(match &self.replay {
            None => self.advance(position, tried, rows, now),
            Some(replay) => self.advance_replay(position, replay, tried, rows, now),
        })
    }

    fn advance(&self, position: &Position, tried: Tried, rows: ConsumerRows, at: Timestamp) -> Advance {
        let Tried { failed, discarded, end, .. } = tried;
        let taken = self.facts.iter().rev().find(|fact| end.is_none_or(|end| fact.event.seq <= end));
        let newer = self.newer.as_ref().filter(|_| end.is_none());
        Advance {
            to: end.unwrap_or(self.to),
            last_event_id: taken.map(|fact| fact.event.event_id).or(position.last_event_id),
            waiting_for: newer.map(|newer| format!("{} {}", newer.event_type, newer.schema_version)),
            rows,
            parked: failed.iter().filter_map(ParkedWorkspace::behind).collect(),
            letters: closed(discarded, at).chain(failed).collect(),
            ..self.standstill(position, at)
        }
    }

    /// The cursor stays where it is. Its epoch is raised, so that nobody else writes these rows.
    fn advance_replay(
        &self,
        position: &Position,
        replay: &Replay,
        tried: Tried,
        rows: ConsumerRows,
        at: Timestamp,
    ) -> Advance {
        let Tried { mut failed, discarded, .. } = tried;
        let Replay { parked, letter, is_last } = replay;
        let again = failed.pop();
        let is_letter = |failed: &DeadLetter| failed.dead_letter_id == letter.dead_letter_id;
        let is_over = letter.event().is_some_and(|event| event.workspace_seq == parked.workspace_seq)
            && !again.iter().chain(&discarded).any(is_letter)
            && !self.facts.is_empty();
        let resolved = is_over.then(|| letter.clone().closed(LetterState::Resolved, at));
        let again = again.map(|failed| if is_letter(&failed) { letter.failed_again(&failed) } else { failed });
        let next = self.facts.last().map_or(parked.workspace_seq, |fact| fact.event.workspace_seq + 1);
        let (moved, freed) = match again.as_ref().and_then(ParkedWorkspace::behind) {
            Some(behind) => (Some(ParkedWorkspace { since: parked.since, ..behind }), None),
            None if *is_last => (None, Some(parked.workspace_id)),
            None => (Some(ParkedWorkspace { workspace_seq: next, ..*parked }), None),
        };
        let discarded = discarded.into_iter().map(|failed| if is_letter(&failed) { letter.clone() } else { failed });
        Advance {
            epoch_to: position.epoch + 1,
            rows,
            letters: closed(discarded, at).chain(resolved).chain(again).collect(),
            parked: moved.into_iter().collect(),
            freed: freed.into_iter().collect(),
            ..self.standstill(position, at)
        }
    }

    fn standstill(&self, position: &Position, at: Timestamp) -> Advance {
        Advance {
            build: self.build,
            partition: self.partition,
            epoch: position.epoch,
            epoch_to: position.epoch,
            from: position.seq,
            to: position.seq,
            last_event_id: position.last_event_id,
            waiting_for: position.waiting_for.clone(),
            rows: ConsumerRows::default(),
            letters: Vec::new(),
            parked: Vec::new(),
            freed: Vec::new(),
            at,
        }
    }
}

fn closed(discarded: impl IntoIterator<Item = DeadLetter>, at: Timestamp) -> impl Iterator<Item = DeadLetter> {
    discarded.into_iter().map(move |letter| letter.closed(LetterState::Discarded, at))
}

/// What a fold of the events of a step has met.
struct Tried {
    /// The workspaces that are left out, from which event on.
    left_out: HashMap<WorkspaceId, i64>,
    /// The events that are skipped.
    skipped: HashSet<i64>,
    failed: Vec<DeadLetter>,
    discarded: Vec<DeadLetter>,
    /// The step ends with this event, because too many have failed.
    end: Option<i64>,
}

impl Tried {
    fn new(step: &Step, position: &Position) -> Self {
        let waiting = position.parked.keys().filter(|_| step.replay.is_none());
        Self {
            left_out: waiting.map(|workspace_id| (*workspace_id, i64::MIN)).collect(),
            skipped: HashSet::new(),
            failed: Vec::new(),
            discarded: Vec::new(),
            end: None,
        }
    }

    fn treat(&self, event: &EventRecord) -> Treatment {
        let is_after_end = self.end.is_some_and(|end| event.seq > end);
        if is_after_end || self.left_out.get(&event.workspace_id).is_some_and(|from| event.seq >= *from) {
            Treatment::LeaveOut
        } else if self.skipped.contains(&event.seq) {
            Treatment::Skip
        } else {
            Treatment::Take
        }
    }

    fn fail(&mut self, event: &EventRecord, letter: DeadLetter, is_discarded: bool) {
        if is_discarded {
            self.skipped.insert(event.seq);
            self.discarded.push(letter);
            return;
        }
        self.left_out.insert(event.workspace_id, event.seq);
        if self.failed.len() + 1 >= MAX_FAILED {
            self.end = Some(event.seq);
        }
        self.failed.push(letter);
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::consumers::Consumer;
    use crate::domain::event::EventType;
    use crate::domain::ids::EventId;

    const BUILD: Build = Build { consumer: Consumer::Analytics, version: 1 };
    const FAILING: i64 = 40;

    fn partition() -> Partition {
        Partition::new(3).unwrap()
    }

    /// An event that cannot be read, of a workspace of its own.
    fn failing(seq: i64) -> Fact {
        let id = Uuid::from_u128(u128::try_from(seq).unwrap());
        Fact::new(EventRecord {
            event_id: EventId(id),
            event_type: EventType::CreditConsumed.into(),
            schema_version: 1,
            partition: partition(),
            seq,
            workspace_id: WorkspaceId(id),
            workspace_seq: 1,
            recorded_at: Timestamp::from_micros(seq),
            correlation_id: String::new(),
            causation_id: id,
            traceparent: None,
            data: "{}".into(),
        })
    }

    fn positions(seq: i64) -> Positions {
        let position = Position { seq, last_event_id: None, epoch: 0, waiting_for: None, parked: BTreeMap::new() };
        Positions { of_builds: [((partition(), BUILD), position)].into(), ..Positions::default() }
    }

    #[test]
    fn a_step_ends_after_some_events_that_cannot_be_taken_and_no_event_is_left_out() {
        let (none, now) = (ConsumerRows::default(), Timestamp::from_micros(0));
        let (mut seq, mut letters) = (0, Vec::new());
        for end in [16, 32, FAILING] {
            let facts: Arc<[Fact]> = (seq + 1..=FAILING).map(failing).collect();
            let step = Step::new(BUILD, partition(), seq, &facts);
            let advance = step.fold(&positions(seq), &none, None, now).unwrap();
            assert_eq!((advance.from, advance.to, advance.waiting_for), (seq, end, None));
            assert_eq!(advance.last_event_id, Some(EventId(Uuid::from_u128(u128::try_from(end).unwrap()))));
            assert_eq!(advance.parked, advance.letters.iter().filter_map(ParkedWorkspace::behind).collect::<Vec<_>>());
            letters.extend(advance.letters.iter().filter_map(|letter| Some(letter.event()?.seq)));
            // What follows was made for where the step would have ended.
            let rest: Arc<[Fact]> = [failing(FAILING + 1)].into();
            let next = Step::new(BUILD, partition(), FAILING, &rest).fold(&positions(end), &none, None, now);
            assert_eq!(next.is_ok(), end == FAILING, "{next:?}");
            seq = end;
        }
        assert_eq!(letters, (1..=FAILING).collect::<Vec<_>>());
    }
}
