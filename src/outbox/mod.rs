//! The operator's commands for the outbox: show its status, compare it with the streams, and rebuild streams. The
//! command line prints the returned reports.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub use self::error::OutboxError;
pub use self::verify::{Finding, FindingKind, PartitionVerdict, VerifyReport, verify};
use crate::clock::Clock;
use crate::domain::ids::Partition;
use crate::domain::time::Timestamp;
use crate::publisher::{EventBuffer, Publisher, PublisherConfig};
use crate::store::Outbox;
use crate::store::queries::PartitionStatus;
use crate::stream::{EventStream, GroupPosition, StreamError, generation_key, stream_key};

mod error;
mod verify;

/// How often a rebuild checks its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// How far a partition is, in the outbox and in the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionLine {
    pub partition: Partition,
    pub generation: i32,
    /// The stream's key.
    pub stream: String,
    /// The last event in the outbox.
    pub seq: i64,
    /// The last event recorded as published.
    pub published_seq: i64,
    /// The first event that the stream must still hold.
    pub floor_seq: i64,
    /// The last entry of the stream; none if it is empty or cannot be read.
    pub stream_seq: Option<u64>,
    /// The consumer groups of the stream, at most [`MAX_GROUPS`](crate::stream::MAX_GROUPS).
    pub groups: Vec<GroupLine>,
    pub waiting: i64,
    pub oldest_waiting_at: Option<Timestamp>,
    pub diverged_seq: Option<i64>,
    /// The publisher with a lease in force.
    pub publisher: Option<String>,
}

/// How far a consumer group has read a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupLine {
    pub name: String,
    /// The last event that was delivered to the group.
    pub delivered_seq: u64,
    /// The events after it, published or not.
    pub lag: i64,
    /// Whether the stream need no longer hold the group's next event: it catches up over HTTP.
    pub is_behind_floor: bool,
}

impl GroupLine {
    fn new(group: GroupPosition, status: &PartitionStatus) -> Self {
        let delivered = group.delivered_seq();
        Self {
            name: group.name,
            delivered_seq: group.last_delivered.seq,
            lag: status.seq.saturating_sub(delivered).max(0),
            is_behind_floor: delivered < status.floor_seq - 1,
        }
    }
}

/// `outbox status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatusReport {
    pub partitions: Vec<PartitionLine>,
    /// Why the stream could not be read.
    pub stream_error: Option<String>,
}

impl StatusReport {
    /// Whether everything is published, nothing has diverged, and every stream ends at the recorded position.
    #[must_use]
    pub fn is_up_to_date(&self) -> bool {
        let is_up_to_date = |line: &PartitionLine| {
            let in_stream = line.stream_seq.map_or(Ok(line.floor_seq - 1), i64::try_from);
            line.waiting == 0 && line.diverged_seq.is_none() && in_stream == Ok(line.published_seq)
        };
        self.stream_error.is_none() && self.partitions.iter().all(is_up_to_date)
    }
}

/// The status of every partition. An unreachable stream is part of the report and not an error.
pub async fn status(outbox: &dyn Outbox, stream: &dyn EventStream) -> Result<StatusReport, OutboxError> {
    let mut report = StatusReport { partitions: Vec::new(), stream_error: None };
    for status in outbox.status().await? {
        let (mut stream_seq, mut groups) = (None, Vec::new());
        // After the first failure the stream is not asked again: each failure may take a whole timeout.
        if report.stream_error.is_none() {
            match read_stream(stream, &status).await {
                Ok((top, found)) => (stream_seq, groups) = (top, found),
                Err(error) => report.stream_error = Some(error.to_string()),
            }
        }
        report.partitions.push(PartitionLine {
            partition: status.partition,
            generation: status.generation,
            stream: stream_key(status.partition, status.generation),
            seq: status.seq,
            published_seq: status.published_seq,
            floor_seq: status.floor_seq,
            stream_seq,
            groups,
            waiting: status.seq.saturating_sub(status.published_seq).max(0),
            oldest_waiting_at: status.oldest_waiting_at,
            diverged_seq: status.diverged_seq,
            publisher: status.owner.filter(|_| status.leased_until.is_some()),
        });
    }
    Ok(report)
}

/// The last entry of a stream, and its groups.
async fn read_stream(
    stream: &dyn EventStream,
    status: &PartitionStatus,
) -> Result<(Option<u64>, Vec<GroupLine>), StreamError> {
    let top = stream.top(status.partition, status.generation).await?;
    let groups = stream.groups(status.partition, status.generation).await?;
    let groups = groups.into_iter().map(|group| GroupLine::new(group, status)).collect();
    Ok((top.map(|entry| entry.id.seq), groups))
}

/// The progress of one partition's rebuild.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RebuiltPartition {
    pub partition: Partition,
    pub generation: i32,
    /// The key of the new stream.
    pub stream: String,
    /// The key that tells consumers which generation to read.
    pub pointer: String,
    /// The key of the old stream. The operator deletes it once no consumer reads it.
    pub old_stream: String,
    /// The first event of the new stream. Consumers read earlier ones over HTTP.
    pub floor_seq: i64,
    /// The last event when the rebuild began. The rebuild is done when it is published.
    pub target_seq: i64,
    pub published_seq: i64,
    /// Set if the new stream differs too, because something else writes to it.
    pub diverged_seq: Option<i64>,
}

impl RebuiltPartition {
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.diverged_seq.is_none() && self.published_seq >= self.target_seq
    }
}

/// `outbox rebuild`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RebuildReport {
    pub partitions: Vec<RebuiltPartition>,
}

impl RebuildReport {
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.partitions.iter().all(RebuiltPartition::is_done)
    }
}

/// Starts a new generation of these partitions' streams, and waits up to `within` until it holds all events.
/// Running publishers fill it; a publisher of this process fills the partitions that nobody has leased. A rebuild
/// that is not done in time is continued by any running publisher.
pub async fn rebuild(
    outbox: Arc<dyn Outbox>,
    stream: Arc<dyn EventStream>,
    clock: Arc<dyn Clock>,
    partitions: &[Partition],
    within: Duration,
) -> Result<RebuildReport, OutboxError> {
    let before = outbox.status().await?;
    let mut report = RebuildReport { partitions: Vec::new() };
    for status in before.iter().filter(|status| partitions.contains(&status.partition)) {
        let generation = outbox.start_generation(status.partition).await?;
        report.partitions.push(RebuiltPartition {
            partition: status.partition,
            generation,
            stream: stream_key(status.partition, generation),
            pointer: generation_key(status.partition),
            old_stream: stream_key(status.partition, status.generation),
            floor_seq: status.floor_seq,
            target_seq: status.seq,
            published_seq: status.floor_seq - 1,
            diverged_seq: None,
        });
    }
    let stop = CancellationToken::new();
    let publisher = Publisher::new(Arc::clone(&outbox), stream, EventBuffer::new(), clock, PublisherConfig::embedded());
    let running = publisher.spawn(stop.clone());
    let outcome = wait_until_rebuilt(&*outbox, &mut report, Instant::now() + within).await;
    stop.cancel();
    running.stopped().await;
    outcome.map(|()| report)
}

async fn wait_until_rebuilt(
    outbox: &dyn Outbox,
    report: &mut RebuildReport,
    deadline: Instant,
) -> Result<(), OutboxError> {
    loop {
        let statuses = outbox.status().await?;
        for rebuilt in &mut report.partitions {
            let is_rebuilt = |status: &&PartitionStatus| {
                (status.partition, status.generation) == (rebuilt.partition, rebuilt.generation)
            };
            if let Some(status) = statuses.iter().find(is_rebuilt) {
                (rebuilt.published_seq, rebuilt.diverged_seq) = (status.published_seq, status.diverged_seq);
            }
        }
        let is_finished = |rebuilt: &RebuiltPartition| rebuilt.is_done() || rebuilt.diverged_seq.is_some();
        if report.partitions.iter().all(is_finished) || Instant::now() >= deadline {
            return Ok(());
        }
        sleep(PROGRESS_INTERVAL).await;
    }
}
