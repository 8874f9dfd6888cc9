//! Runs the fold of a consumer over some events of a partition.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::analytics::{self, Analytics};
use super::billing::{self, Billing};
use super::consumer::{Build, Consumer};
use super::fact::{Fact, FactData};
use super::fault::Fault;
use super::fold::Fold;
use super::notifications::{self, Notifications};
use super::rows::{ConsumerKeys, ConsumerRows};
use crate::domain::cloud_event::EventRecord;
use crate::domain::event::EventType;

impl Consumer {
    /// Whether it makes something of events of this type.
    #[must_use]
    pub const fn reads(self, event_type: EventType) -> bool {
        match self {
            Self::Analytics => analytics::reads(event_type),
            Self::Billing => billing::reads(event_type),
            Self::Notifications => notifications::reads(event_type),
        }
    }
}

/// What a fold does with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    Take,
    /// Its workspace waits: this event is taken later.
    LeaveOut,
    /// An operator has discarded it.
    Skip,
}

/// The outcome of a fold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folded {
    Rows(ConsumerRows),
    /// The event with this index cannot be taken. Nothing must be written.
    Faulted {
        index: usize,
        fault: Fault,
    },
}

/// Whether the consumer makes something of this event, as far as is known: it may be of a newer type.
fn is_read(consumer: Consumer, event: &EventRecord) -> bool {
    event.event_type.known().is_none_or(|event_type| consumer.reads(event_type))
}

/// The first event whose type or data is newer than this version of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newer {
    pub event_type: String,
    pub schema_version: i16,
}

/// How many of the events come before the first that the consumer reads and that is newer than it. A consumer waits there:
/// it is never wrong, and a newer version of the server goes on.
#[must_use]
pub fn up_to_newer(consumer: Consumer, facts: &[Fact]) -> (usize, Option<Newer>) {
    let is_newer = |fact: &Fact| matches!(fact.data, FactData::Newer) && is_read(consumer, &fact.event);
    let Some(index) = facts.iter().position(is_newer) else { return (facts.len(), None) };
    let event = &facts[index].event;
    (index, Some(Newer { event_type: event.event_type.as_str().to_owned(), schema_version: event.schema_version }))
}

/// Adds the keys of the rows that the fold of these events must know.
pub fn keys(build: Build, facts: &[Fact], keys: &mut ConsumerKeys) {
    for fact in facts.iter().filter(|fact| is_read(build.consumer, &fact.event)) {
        let data = match &fact.data {
            FactData::Known(data) => Some(&**data),
            FactData::Newer | FactData::Unreadable(_) => None,
        };
        match build.consumer {
            Consumer::Analytics => Analytics::add_keys(build.version, fact, data, keys),
            Consumer::Billing => Billing::add_keys(build.version, fact, data, keys),
            Consumer::Notifications => Notifications::add_keys(build.version, fact, data, keys),
        }
    }
}

/// Folds these events. `rows` are those of [`keys`] that exist. A panic is a fault of the event that is taken then.
pub fn fold(build: Build, facts: &[Fact], rows: ConsumerRows, treat: impl Fn(&EventRecord) -> Treatment) -> Folded {
    let (version, consumer, place) = (build.version, build.consumer, Cell::new(0));
    let folded = catch_unwind(AssertUnwindSafe(|| match consumer {
        Consumer::Analytics => run(Analytics::new(version, rows), consumer, facts, &place, treat),
        Consumer::Billing => run(Billing::new(version, rows), consumer, facts, &place, treat),
        Consumer::Notifications => run(Notifications::new(version, rows), consumer, facts, &place, treat),
    }));
    folded.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the fold has panicked");
        Folded::Faulted { index: place.get(), fault: Fault { class: Fault::PANIC, text: text.to_owned() } }
    })
}

/// Notes the index of the event that is taken in `place`.
fn run(
    mut fold: impl Fold,
    consumer: Consumer,
    facts: &[Fact],
    place: &Cell<usize>,
    treat: impl Fn(&EventRecord) -> Treatment,
) -> Folded {
    for (index, fact) in facts.iter().enumerate().filter(|(_, fact)| is_read(consumer, &fact.event)) {
        place.set(index);
        match treat(&fact.event) {
            Treatment::Take => {}
            Treatment::LeaveOut => continue,
            Treatment::Skip => {
                fold.skip(&fact.event);
                continue;
            }
        }
        let taken = match &fact.data {
            FactData::Known(data) => fold.take(fact, data),
            FactData::Newer => Err(Fault::contradiction("the event is newer than this version of the server")),
            FactData::Unreadable(error) => Err(Fault { class: Fault::UNREADABLE, text: error.clone() }),
        };
        if let Err(fault) = taken {
            return Folded::Faulted { index, fault };
        }
    }
    Folded::Rows(fold.finish())
}

#[cfg(test)]
mod tests;
