//! What every consumer is.

use super::fact::Fact;
use super::letter::Fault;
use super::rows::ConsumerRows;
use crate::domain::cloud_event::EventRecord;
use crate::domain::event::EventData;

/// The fold of one consumer.
pub(super) trait Fold {
    /// Takes one event. After a fault, the whole fold is thrown away.
    fn take(&mut self, fact: &Fact, data: &EventData) -> Result<(), Fault>;

    /// Goes past an event that an operator has discarded. What it would have said is in no figure.
    fn skip(&mut self, event: &EventRecord);

    /// The rows to write.
    fn finish(self) -> ConsumerRows;
}
