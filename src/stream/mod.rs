//! The event stream: where events go after they are durable, and where consumers read them.
//!
//! One stream per partition and generation, on the key `vs:{pNN}:g<generation>`; the key
//! `vs:{pNN}:generation` tells consumers which generation to read. The braces keep both in one slot
//! of a Redis Cluster. An entry's id is `<seq>-0`, so a consumer that has seen entry 41 continues
//! after `41-0` in any generation.
//!
//! Invariants: entries are only ever appended, in order, each beside the one before it; whether that
//! holds is decided inside Redis, in one atomic script (`append.lua`), by comparing event ids.
//!
//! Deliberately absent: deciding anything from a failed XADD (it does not say that the entry is
//! there), trimming (an operator's decision), and any knowledge of who publishes.
//!
//! *Architecture invariant:* the crates redis and deadpool-redis are known only below this module.

use async_trait::async_trait;
use serde::Serialize;

use crate::domain::event::EventRecord;
use crate::domain::ids::{EventId, Partition};

pub mod redis;

/// The most events in one append. The script runs alone on its Redis node, and 500 events take it
/// about 3 ms: long enough to amortize the round trip, short enough for its neighbours.
pub const MAX_BATCH_EVENTS: u32 = 500;
/// The most bytes of events in one append: bounds the script's arguments and the time it takes.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// What an entry has beside the event's own texts: the envelope's field names and fixed values.
const ENTRY_OVERHEAD_BYTES: usize = 768;

/// What went wrong, by what may be done about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StreamError {
    /// It cannot be reached, is too slow, or refuses for now. Whether an append took effect is
    /// unknown; appending again settles it.
    #[error("stream unavailable: {0}")]
    Unavailable(String),
    /// An event cannot be written as JSON, or an answer makes no sense. Trying again cannot help.
    #[error("stream: {0}")]
    Corrupt(String),
    /// The address or another setting cannot be used.
    #[error("stream configuration: {0}")]
    Configuration(String),
}

/// In place of an event's number: the stream has a later generation than the one appended to.
pub const LATER_GENERATION: i64 = 0;

/// What an append found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// All events are in the stream now; some or all may have been there before.
    Ok,
    /// The stream ends before the event that the append continues after. Nothing was written.
    Behind { top_seq: i64 },
    /// At this number the stream holds something else, or nothing although it goes on behind it; or,
    /// with [`LATER_GENERATION`], consumers already read a later generation: the database was restored
    /// to a time before a rebuild. Nothing was written.
    Diverged { seq: i64 },
}

/// Where an append continues: the number and the id of the event before.
pub type Previous = Option<(i64, EventId)>;

/// The place of an entry. `sub` is 0 in every entry that a publisher wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct EntryId {
    pub seq: u64,
    pub sub: u64,
}

impl EntryId {
    /// Before every entry.
    pub const START: Self = Self { seq: 0, sub: 0 };

    #[must_use]
    pub fn of(seq: i64) -> Self {
        Self { seq: u64::try_from(seq).unwrap_or(0), sub: 0 }
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.seq, self.sub)
    }
}

/// An entry as it is in the stream; a field that is missing is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEntry {
    pub id: EntryId,
    pub event_id: String,
    pub event_type: String,
    pub workspace_id: String,
    /// The envelope's JSON.
    pub event: String,
}

/// A durable, ordered stream per partition and generation.
#[async_trait]
pub trait EventStream: Send + Sync {
    /// Compares and appends: the events follow `previous` without a gap, at most
    /// [`MAX_BATCH_EVENTS`]. Without events it is a probe that `previous` is there.
    async fn append(
        &self,
        partition: Partition,
        generation: i32,
        previous: Previous,
        events: &[EventRecord],
    ) -> Result<Appended, StreamError>;

    /// Entries after a place, in order, at most `limit`.
    async fn read(
        &self,
        partition: Partition,
        generation: i32,
        after: EntryId,
        limit: u32,
    ) -> Result<Vec<StreamEntry>, StreamError>;

    /// The last entry.
    async fn top(&self, partition: Partition, generation: i32) -> Result<Option<StreamEntry>, StreamError>;

    /// Answers when the stream does.
    async fn ping(&self) -> Result<(), StreamError>;
}

/// The key of a partition's stream.
#[must_use]
pub fn stream_key(partition: Partition, generation: i32) -> String {
    format!("vs:{{p{:02}}}:g{generation}", partition.number())
}

/// The key that names the generation that consumers read.
#[must_use]
pub fn generation_key(partition: Partition) -> String {
    format!("vs:{{p{:02}}}:generation", partition.number())
}

/// About how much room an event takes in the stream, and no more in memory.
#[must_use]
pub fn entry_bytes(event: &EventRecord) -> usize {
    ENTRY_OVERHEAD_BYTES + event.data.len() + event.metadata.as_ref().map_or(0, String::len)
}

/// How many of these events fit into one append: at least one, if there is one.
#[must_use]
pub fn batch_len(events: &[EventRecord]) -> usize {
    let mut bytes = 0_usize;
    let fits = |event: &&EventRecord| {
        bytes += entry_bytes(event);
        bytes <= MAX_BATCH_BYTES
    };
    let bound = usize::try_from(MAX_BATCH_EVENTS).unwrap_or(usize::MAX);
    events.iter().take(bound).take_while(fits).count().max(usize::from(!events.is_empty()))
}

/// The envelope's JSON, as an entry holds it, byte for byte.
pub fn envelope_json(event: &EventRecord) -> Result<String, StreamError> {
    let corrupt = |error| StreamError::Corrupt(format!("event {} is no JSON: {error}", event.event_id));
    event.to_envelope().and_then(|envelope| serde_json::to_string(&envelope)).map_err(corrupt)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::event::EventType;
    use crate::domain::ids::WorkspaceId;
    use crate::domain::time::Timestamp;

    fn event(bytes: usize) -> EventRecord {
        EventRecord {
            event_id: EventId(Uuid::from_u128(1)),
            event_type: EventType::LowCreditWarning,
            schema_version: 1,
            partition: Partition::all().last().unwrap(),
            seq: 1,
            workspace_id: WorkspaceId(Uuid::from_u128(2)),
            workspace_seq: 1,
            recorded_at: Timestamp::from_micros(0),
            correlation_id: "c".into(),
            causation_id: Uuid::from_u128(3),
            traceparent: None,
            metadata: None,
            data: format!("\"{}\"", "x".repeat(bytes)),
        }
    }

    #[test]
    fn keys_of_one_partition_share_a_hash_tag() {
        let partition = Partition::new(7).unwrap();
        assert_eq!(stream_key(partition, 3), "vs:{p07}:g3");
        assert_eq!(generation_key(partition), "vs:{p07}:generation");
    }

    #[test]
    fn a_batch_is_bounded_in_events_and_bytes_and_never_empty() {
        assert_eq!(batch_len(&[]), 0);
        assert_eq!(batch_len(&vec![event(10); 600]), 500);
        assert_eq!(batch_len(&[event(2 * MAX_BATCH_BYTES), event(1)]), 1);
        assert_eq!(batch_len(&vec![event(MAX_BATCH_BYTES / 4); 5]), 3);
    }

    #[test]
    fn an_envelope_that_is_no_json_is_refused() {
        let mut broken = event(1);
        broken.data = "{".into();
        assert!(matches!(envelope_json(&broken), Err(StreamError::Corrupt(_))));
        assert!(envelope_json(&event(1)).unwrap().starts_with("{\"event_id\":"));
    }
}
