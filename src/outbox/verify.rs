//! Compares the stream with the outbox, entry by entry, page by page, in constant memory.
//!
//! It may run while events are published: each page of the stream is read before the same events of the outbox,
//! and an event is in the outbox before it is in the stream. It may run while the stream is trimmed, too: the floor is
//! read after each page, and no event before it is missing.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::error::OutboxError;
use crate::domain::cloud_event::{EventRecord, Sequence};
use crate::domain::ids::Partition;
use crate::store::Outbox;
use crate::store::queries::PartitionStatus;
use crate::stream::{EntryId, EventStream, StreamEntry};

/// How many entries and events are in memory at a time.
const PAGE: u32 = 500;
/// How many findings are listed per partition; further ones are only counted.
const MAX_FINDINGS: usize = 100;

/// How the stream differs from the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Published events are not in the stream at their number, although it must still hold them.
    Missing,
    /// An event is in the stream twice.
    Doubled,
    /// An event is at another event's number, and not at its own.
    Reordered,
    /// The event is there, but its bytes differ from the outbox.
    Altered,
    /// An entry belongs to no event of the outbox.
    Foreign,
}

/// One difference, or a range of missing events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: FindingKind,
    /// The number in the outbox; the first one of a range.
    pub seq: i64,
    /// The last number of a range.
    pub seq_to: i64,
    /// The id of the wrong entry; none for missing events.
    pub entry: Option<String>,
    pub event_id: String,
}

/// The result of comparing one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionVerdict {
    pub partition: Partition,
    pub generation: i32,
    pub entries: u64,
    /// Events that are not published yet. They are not a difference.
    pub waiting: i64,
    pub findings: Vec<Finding>,
    /// How many differences there are, listed or not. A range counts as one.
    pub differences: u64,
}

/// `outbox verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    pub partitions: Vec<PartitionVerdict>,
}

impl VerifyReport {
    /// Whether the streams equal the outbox: nothing lost, doubled, reordered or altered.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.partitions.iter().all(|verdict| verdict.differences == 0)
    }
}

/// Compares every entry of the current generations with the outbox.
pub async fn verify(
    outbox: &dyn Outbox,
    stream: &dyn EventStream,
    partitions: &[Partition],
) -> Result<VerifyReport, OutboxError> {
    let mut report = VerifyReport { partitions: Vec::new() };
    for status in outbox.status().await? {
        if partitions.contains(&status.partition) {
            let comparison = Comparison::new(outbox, stream, &status);
            report.partitions.push(comparison.run(&status).await?);
        }
    }
    Ok(report)
}

/// The number in a published event.
#[derive(Deserialize)]
struct Numbered {
    sequence: Sequence,
}

struct Comparison<'a> {
    outbox: &'a dyn Outbox,
    stream: &'a dyn EventStream,
    /// Events read from the outbox and not compared yet.
    events: VecDeque<EventRecord>,
    /// The last event read from the outbox.
    read_to: i64,
    /// The first event that the stream must hold.
    floor_seq: i64,
    /// The last event found missing.
    missing_to: i64,
    verdict: PartitionVerdict,
}

impl<'a> Comparison<'a> {
    fn new(outbox: &'a dyn Outbox, stream: &'a dyn EventStream, status: &PartitionStatus) -> Self {
        let verdict = PartitionVerdict {
            partition: status.partition,
            generation: status.generation,
            entries: 0,
            waiting: 0,
            findings: Vec::new(),
            differences: 0,
        };
        let floor_seq = status.floor_seq;
        Self { outbox, stream, events: VecDeque::new(), read_to: 0, floor_seq, missing_to: 0, verdict }
    }

    async fn run(mut self, status: &PartitionStatus) -> Result<PartitionVerdict, OutboxError> {
        let mut after = EntryId::START;
        let mut top = 0;
        loop {
            let entries = self.stream.read(status.partition, status.generation, after, PAGE).await?;
            self.read_floor().await?;
            if after == EntryId::START {
                let first = entries.first().and_then(|entry| i64::try_from(entry.id.seq).ok());
                self.read_to = first.map_or(self.floor_seq, |first| first.min(self.floor_seq)).max(1) - 1;
            }
            for entry in &entries {
                self.compare(entry).await?;
            }
            let Some(last) = entries.last() else { break };
            after = last.id;
            top = self.read_to.min(i64::try_from(last.id.seq).unwrap_or(i64::MAX));
        }
        while let Some(event) = self.next_up_to(status.published_seq).await? {
            self.add_missing(&event);
        }
        self.verdict.waiting = status.seq.saturating_sub(status.published_seq.max(top)).max(0);
        Ok(self.verdict)
    }

    async fn read_floor(&mut self) -> Result<(), OutboxError> {
        let is_same = |status: &&PartitionStatus| status.partition == self.verdict.partition;
        let floor_seq = self.outbox.status().await?.iter().find(is_same).map(|status| status.floor_seq);
        self.floor_seq = floor_seq.unwrap_or(self.floor_seq);
        Ok(())
    }

    async fn compare(&mut self, entry: &StreamEntry) -> Result<(), OutboxError> {
        self.verdict.entries += 1;
        let seq = i64::try_from(entry.id.seq).unwrap_or(i64::MAX);
        if entry.id.sub != 0 || !self.has_event(seq).await? {
            let kind = self.classify_misplaced(entry).await?;
            self.add_finding(kind, seq, Some(entry), &entry.event_id);
            return Ok(());
        }
        while let Some(event) = self.next_up_to(seq - 1).await? {
            self.add_missing(&event);
        }
        let Some(event) = self.next_up_to(seq).await? else { return Ok(()) };
        if entry.event_id == event.event_id.to_string() {
            if !self.is_equal(entry, &event)? {
                self.add_finding(FindingKind::Altered, seq, Some(entry), &entry.event_id);
            }
            return Ok(());
        }
        let kind = match self.classify_misplaced(entry).await? {
            FindingKind::Foreign => FindingKind::Altered,
            kind => kind,
        };
        self.add_finding(kind, seq, Some(entry), &entry.event_id);
        if kind == FindingKind::Doubled {
            self.add_missing(&event);
        }
        Ok(())
    }

    fn is_equal(&self, entry: &StreamEntry, event: &EventRecord) -> Result<bool, OutboxError> {
        Ok(entry.event == self.stream.text(event)?
            && entry.event_type == event.event_type.as_str()
            && entry.workspace_id == event.workspace_id.to_string())
    }

    /// Whether the outbox has an event with that number.
    async fn has_event(&mut self, seq: i64) -> Result<bool, OutboxError> {
        if self.events.is_empty() && self.read_to + 1 == seq {
            self.read_page().await?;
        }
        let is_held = |events: &VecDeque<EventRecord>| events.iter().any(|event| event.seq == seq);
        if self.events.front().is_some_and(|event| event.seq <= seq) && seq <= self.read_to {
            return Ok(is_held(&self.events));
        }
        let found = self.outbox.read(self.verdict.partition, seq.saturating_sub(1), 1).await?;
        Ok(found.first().is_some_and(|event| event.seq == seq))
    }

    async fn read_page(&mut self) -> Result<(), OutboxError> {
        let events = self.outbox.read(self.verdict.partition, self.read_to, PAGE).await?;
        self.read_to = events.last().map_or(self.read_to, |event| event.seq);
        self.events = events.into();
        Ok(())
    }

    /// Classifies an entry that is not at its event's number.
    async fn classify_misplaced(&self, entry: &StreamEntry) -> Result<FindingKind, OutboxError> {
        let Ok(Numbered { sequence: Sequence(seq) }) = serde_json::from_str(&entry.event) else {
            return Ok(FindingKind::Foreign);
        };
        let partition = self.verdict.partition;
        let found = self.outbox.read(partition, seq.saturating_sub(1), 1).await?;
        if !found.first().is_some_and(|event| event.seq == seq && event.event_id.to_string() == entry.event_id) {
            return Ok(FindingKind::Foreign);
        }
        let before = EntryId { seq: EntryId::of(seq).seq.saturating_sub(1), sub: u64::MAX };
        let at_own_number = self.stream.read(partition, self.verdict.generation, before, 1).await?;
        let is_same = |other: &StreamEntry| other.id == EntryId::of(seq) && other.event_id == entry.event_id;
        Ok(if at_own_number.first().is_some_and(is_same) { FindingKind::Doubled } else { FindingKind::Reordered })
    }

    /// The next event of the outbox, unless its number is higher.
    async fn next_up_to(&mut self, seq: i64) -> Result<Option<EventRecord>, OutboxError> {
        if self.events.is_empty() && self.read_to < seq {
            self.read_page().await?;
        }
        Ok(self.events.pop_front_if(|event| event.seq <= seq))
    }

    fn add_missing(&mut self, event: &EventRecord) {
        if event.seq < self.floor_seq {
            return;
        }
        let continues = self.missing_to + 1 == event.seq && event.seq > 1;
        self.missing_to = event.seq;
        if continues {
            let range = self.verdict.findings.last_mut().filter(|finding| finding.seq_to + 1 == event.seq);
            if let Some(range) = range.filter(|finding| finding.kind == FindingKind::Missing) {
                range.seq_to = event.seq;
            }
            return;
        }
        self.add_finding(FindingKind::Missing, event.seq, None, &event.event_id.to_string());
    }

    fn add_finding(&mut self, kind: FindingKind, seq: i64, entry: Option<&StreamEntry>, event_id: &str) {
        self.verdict.differences += 1;
        if self.verdict.findings.len() < MAX_FINDINGS {
            let entry = entry.map(|entry| entry.id.to_string());
            self.verdict.findings.push(Finding { kind, seq, seq_to: seq, entry, event_id: event_id.to_owned() });
        }
    }
}
