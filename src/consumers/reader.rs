//! Reads the events that the consumers take. An event that cannot be read, or that is missing, stops its partition only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::cloud_event::EventRecord;
use crate::domain::consumers::Fact;
use crate::domain::ids::Partition;
use crate::store::queries::EventPosition;
use crate::store::{Consumption, StoreError};

/// When a partition is tried again whose next event could not be read.
const RETRY_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The partitions whose next event could not be read, and when they are tried again.
    unreadable: HashMap<Partition, Instant>,
}

impl Reader {
    /// Whether it is of use to read this partition now.
    pub(super) fn can_read(&self, partition: Partition) -> bool {
        self.unreadable.get(&partition).is_none_or(|retry_at| *retry_at <= Instant::now())
    }

    /// The events right after each position, at most `limit` of each, up to the first that cannot be read.
    pub(super) async fn read(
        &mut self,
        store: &dyn Consumption,
        after: &[EventPosition],
        limit: u32,
    ) -> Result<BTreeMap<Partition, Arc<[Fact]>>, StoreError> {
        let mut events: BTreeMap<Partition, Vec<EventRecord>> = BTreeMap::new();
        match store.read_each(after, limit).await {
            Err(StoreError::Corrupt(_)) => {
                for position in after {
                    events.insert(position.partition, self.read_one(store, *position, limit).await?);
                }
            }
            found => {
                for event in found? {
                    events.entry(event.partition).or_default().push(event);
                }
            }
        }
        let following = |position: &EventPosition| {
            let events = events.remove(&position.partition).unwrap_or_default();
            (position.partition, self.up_to_gap(*position, events))
        };
        Ok(after.iter().map(following).collect())
    }

    /// Fewer and fewer events of a partition, until all of them can be read.
    async fn read_one(
        &mut self,
        store: &dyn Consumption,
        after: EventPosition,
        limit: u32,
    ) -> Result<Vec<EventRecord>, StoreError> {
        let mut limit = limit;
        loop {
            match store.read_each(&[after], limit).await {
                Err(StoreError::Corrupt(_)) if limit > 1 => limit /= 2,
                Err(StoreError::Corrupt(text)) => {
                    self.leave(after, &text);
                    return Ok(Vec::new());
                }
                found => return found,
            }
        }
    }

    /// The events that follow each other. Numbers have no gaps, so one that is missing was deleted by hand.
    fn up_to_gap(&mut self, after: EventPosition, mut events: Vec<EventRecord>) -> Arc<[Fact]> {
        let found = events.len();
        let dense = events.iter().zip(after.seq + 1..).take_while(|(event, seq)| event.seq == *seq).count();
        events.truncate(dense);
        if dense == 0 && found > 0 {
            self.leave(after, "it is missing");
        }
        events.into_iter().map(Fact::new).collect()
    }

    fn leave(&mut self, after: EventPosition, text: &str) {
        let (partition, seq) = (after.partition.number(), after.seq + 1);
        tracing::error!(partition, seq, text, "an event cannot be read; the consumers wait before it");
        self.unreadable.insert(after.partition, Instant::now() + RETRY_AFTER);
    }
}
