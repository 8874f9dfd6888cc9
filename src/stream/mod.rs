//! The event stream: consumers read events here. Only durable events are published to it.
//!
//! Each partition and generation has a stream with the key `vs:{pNN}:g<generation>`. The key
//! `vs:{pNN}:generation` tells consumers which generation to read. The braces keep both keys in one slot of a
//! Redis Cluster. An entry's id is `<seq>-0`, so a consumer that has seen entry 41 continues after `41-0` in any
//! generation.
//!
//! Invariant: entries are only appended, in order and without gaps. An atomic script inside Redis (`append.lua`)
//! ensures it by comparing event ids.
//!
//! A stream is trimmed up to a *floor*: the first event that it must hold. The database keeps the floor, and whoever
//! appends or trims says it.
//!
//! Deliberately absent: decisions based on a failed XADD (it does not prove that the entry exists), choosing a floor,
//! and any knowledge of who publishes.
//!
//! *Architecture invariant:* the crates redis and deadpool-redis are known only below this module.

use async_trait::async_trait;
use serde::Serialize;

use crate::domain::cloud_event::{EventRecord, EventSource};
use crate::domain::ids::{EventId, Partition};

pub mod redis;

/// The most events in one append. The script blocks its Redis node, and takes about 3 ms for 500 events: long
/// enough to amortize the round trip, short enough for other clients.
pub const MAX_APPEND_EVENTS: u32 = 500;
/// The most bytes of events in one append: it bounds the script's arguments and its running time.
pub const MAX_APPEND_BYTES: usize = 1024 * 1024;
/// The most consumer groups that are looked at in one stream.
pub const MAX_GROUPS: usize = 100;
/// Approximate size of an entry beside the event's own texts: field names and the event's attributes.
const ENTRY_OVERHEAD_BYTES: usize = 768;

/// An error of the stream; the variant says whether to retry.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StreamError {
    /// It cannot be reached, is too slow, or refuses for now. Whether an append took effect is unknown; appending
    /// the same events again is safe.
    #[error("stream unavailable: {0}")]
    Unavailable(String),
    /// An event cannot be written as JSON, or an answer is invalid. Retrying does not help.
    #[error("stream: {0}")]
    Corrupt(String),
    /// The address or another setting is invalid.
    #[error("stream configuration: {0}")]
    Configuration(String),
}

/// In [`Appended::Diverged`] instead of an event's number: consumers already read a later generation.
pub const LATER_GENERATION: i64 = 0;

/// The result of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The stream holds all the events. Some or all of them may have been there before.
    Ok,
    /// The stream ends before the previous event; an empty one ends right before the floor. Nothing was written.
    Behind { top_seq: i64 },
    /// At this number the stream has another entry, or a gap. At the floor, it starts too late. With
    /// [`LATER_GENERATION`], consumers already read a later generation, because the database was restored to a time
    /// before a rebuild. Nothing was written.
    Diverged { seq: i64 },
}

/// The number and the id of the event before an append; none at the start of a stream.
pub type Previous = Option<(i64, EventId)>;

/// The id of an entry. `sub` is 0 for every entry that a publisher wrote.
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

/// An entry as stored; missing fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEntry {
    pub id: EntryId,
    pub event_id: String,
    pub event_type: String,
    pub workspace_id: String,
    /// The event as a CloudEvent in JSON.
    pub event: String,
}

/// How far a consumer group has read a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPosition {
    pub name: String,
    pub last_delivered: EntryId,
}

impl GroupPosition {
    /// The number of the last event that was delivered. An id that Redis chose is beyond every number.
    #[must_use]
    pub fn delivered_seq(&self) -> i64 {
        i64::try_from(self.last_delivered.seq).unwrap_or(i64::MAX)
    }
}

/// A durable, ordered stream per partition and generation.
#[async_trait]
pub trait EventStream: Send + Sync {
    /// Compares and appends at most [`MAX_APPEND_EVENTS`] events, which follow `previous` without a gap. The stream
    /// must hold all events from the floor on. Without events it only checks that the stream starts at the floor or
    /// before it, and holds `previous`.
    async fn append(
        &self,
        partition: Partition,
        generation: i32,
        floor_seq: i64,
        previous: Previous,
        events: &[EventRecord],
    ) -> Result<Appended, StreamError>;

    /// Entries after an id, in order, at most `limit`.
    async fn read(
        &self,
        partition: Partition,
        generation: i32,
        after: EntryId,
        limit: u32,
    ) -> Result<Vec<StreamEntry>, StreamError>;

    /// The last entry.
    async fn top(&self, partition: Partition, generation: i32) -> Result<Option<StreamEntry>, StreamError>;

    /// Removes entries before the floor; some may stay. Returns whether there may be more to remove.
    async fn trim(&self, partition: Partition, generation: i32, floor_seq: i64) -> Result<bool, StreamError>;

    /// The consumer groups of a stream, at most [`MAX_GROUPS`].
    async fn groups(&self, partition: Partition, generation: i32) -> Result<Vec<GroupPosition>, StreamError>;

    /// The text of an event exactly as an entry holds it.
    fn text(&self, event: &EventRecord) -> Result<String, StreamError>;

    /// Succeeds if the stream answers.
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

/// Approximate size of an event in the stream, and an upper bound for its size in memory.
#[must_use]
pub fn entry_bytes(event: &EventRecord) -> usize {
    ENTRY_OVERHEAD_BYTES + event.data.len()
}

/// How many of these events fit into one append: at least one, unless there are none.
#[must_use]
pub fn append_len(events: &[EventRecord]) -> usize {
    let mut bytes = 0_usize;
    let fits = |event: &&EventRecord| {
        bytes += entry_bytes(event);
        bytes <= MAX_APPEND_BYTES
    };
    let bound = usize::try_from(MAX_APPEND_EVENTS).unwrap_or(usize::MAX);
    events.iter().take(bound).take_while(fits).count().max(usize::from(!events.is_empty()))
}

/// The published form of an event.
pub fn cloud_event_json(event: &EventRecord, source: &EventSource) -> Result<String, StreamError> {
    let corrupt = |error| StreamError::Corrupt(format!("event {} is no JSON: {error}", event.event_id));
    event.to_cloud_event_json(source).map_err(corrupt)
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
            event_type: EventType::LowCreditWarning.into(),
            schema_version: 1,
            partition: Partition::all().last().unwrap(),
            seq: 1,
            workspace_id: WorkspaceId(Uuid::from_u128(2)),
            workspace_seq: 1,
            recorded_at: Timestamp::from_micros(0),
            correlation_id: "c".into(),
            causation_id: Uuid::from_u128(3),
            traceparent: None,
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
    fn an_append_is_bounded_in_events_and_bytes_and_never_empty() {
        assert_eq!(append_len(&[]), 0);
        assert_eq!(append_len(&vec![event(10); 600]), 500);
        assert_eq!(append_len(&[event(2 * MAX_APPEND_BYTES), event(1)]), 1);
        assert_eq!(append_len(&vec![event(MAX_APPEND_BYTES / 4); 5]), 3);
    }

    #[test]
    fn an_event_with_invalid_json_is_refused() {
        let source = EventSource::new("urn:test").unwrap();
        let mut broken = event(1);
        broken.data = "{".into();
        assert!(matches!(cloud_event_json(&broken, &source), Err(StreamError::Corrupt(_))));
        assert!(cloud_event_json(&event(1), &source).unwrap().starts_with("{\"specversion\":\"1.0\","));
    }
}
