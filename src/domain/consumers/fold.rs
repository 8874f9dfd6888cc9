//! What every consumer is.

use super::fact::Fact;
use super::letter::Fault;
use super::rows::ConsumerRows;
use crate::domain::event::EventData;

/// The fold of one consumer.
pub(super) trait Fold {
    /// Takes one event. After a fault, the whole fold is thrown away.
    fn take(&mut self, fact: &Fact, data: &EventData) -> Result<(), Fault>;

    /// The rows to write.
    fn finish(self) -> ConsumerRows;
}
