//! Events to publish, and waiting for them in a stream.

use std::time::{Duration, Instant};

use uuid::Uuid;
use visionscope_billing::domain::cloud_event::{EventRecord, EventSource};
use visionscope_billing::domain::event::EventType;
use visionscope_billing::domain::ids::{EventId, Partition, WorkspaceId};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::stream::{EntryId, EventStream, StreamEntry};

/// How long `eventually` waits. Only a failing test waits that long.
const EVENTUALLY_TIMEOUT: Duration = Duration::from_secs(30);

pub fn partition(number: u8) -> Partition {
    Partition::new(number).unwrap()
}

/// A workspace of the partition.
pub fn workspace_of(partition: Partition) -> WorkspaceId {
    (1..=u128::MAX >> 64)
        .map(|n: u128| WorkspaceId(Uuid::from_u128(n << 64 | n)))
        .find(|id| Partition::of(*id) == partition)
        .unwrap()
}

pub fn event_id(partition: Partition, seq: i64) -> EventId {
    let seq = u128::try_from(seq).unwrap();
    EventId(Uuid::from_u128(0x019a_0000_0000_7000_8000_0000_0000_0000 | u128::from(partition.number()) << 48 | seq))
}

pub fn event(partition: Partition, seq: i64) -> EventRecord {
    EventRecord {
        event_id: event_id(partition, seq),
        event_type: EventType::LowCreditWarning.into(),
        schema_version: 1,
        partition,
        seq,
        workspace_id: workspace_of(partition),
        workspace_seq: seq,
        recorded_at: Timestamp::from_micros(1_760_000_000_000_000 + seq),
        correlation_id: format!("request-{seq}"),
        causation_id: Uuid::from_u128(9),
        traceparent: None,
        data: format!(r#"{{"threshold_credits":"100","available_credits":"{seq}"}}"#),
    }
}

/// The source of the events of these tests.
pub fn source() -> EventSource {
    EventSource::new("urn:test").unwrap()
}

/// The published form.
pub fn json_of(event: &EventRecord) -> String {
    event.to_cloud_event_json(&source()).unwrap()
}

pub fn events(partition: Partition, seqs: std::ops::RangeInclusive<i64>) -> Vec<EventRecord> {
    seqs.map(|seq| event(partition, seq)).collect()
}

/// All entries of a stream.
pub async fn entries(stream: &dyn EventStream, partition: Partition, generation: i32) -> Vec<StreamEntry> {
    let mut all: Vec<StreamEntry> = Vec::new();
    loop {
        let after = all.last().map_or(EntryId::START, |entry| entry.id);
        let page = stream.read(partition, generation, after, 1000).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// The stream holds exactly these events: none lost, doubled, reordered or altered.
pub async fn assert_stream_equals(stream: &dyn EventStream, generation: i32, expected: &[EventRecord]) {
    let partition = expected[0].partition;
    let found = entries(stream, partition, generation).await;
    assert_eq!(found.len(), expected.len(), "entries of partition {}", partition.number());
    for (entry, event) in found.iter().zip(expected) {
        assert_eq!((entry.id, &entry.event), (EntryId::of(event.seq), &json_of(event)));
        assert_eq!(entry.event_id, event.event_id.to_string());
    }
}

/// Waits until the condition holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < EVENTUALLY_TIMEOUT, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    started.elapsed()
}

/// Waits until the last entry of the stream has that number.
pub async fn eventually_ends_at(stream: &dyn EventStream, partition: Partition, generation: i32, seq: i64) -> Duration {
    eventually(&format!("partition {} ends at {seq}", partition.number()), async || {
        let top = stream.top(partition, generation).await.ok().flatten();
        top.is_some_and(|top| top.id == EntryId::of(seq))
    })
    .await
}
