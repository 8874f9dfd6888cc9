//! What every consumer is.

use super::fact::Fact;
use super::fault::Fault;
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

pub(super) fn add(sum: &mut i64, part: i64) -> Result<(), Fault> {
    *sum = sum.checked_add(part).ok_or_else(|| Fault::too_large("a sum"))?;
    Ok(())
}

/// A negative amount would be refused by the database or not, by what other events of the batch add to it.
pub(super) fn not_negative(amounts: &[i64]) -> Result<(), Fault> {
    match amounts.iter().find(|amount| **amount < 0) {
        Some(amount) => Err(Fault::contradiction(format!("the amount {amount} is negative"))),
        None => Ok(()),
    }
}
