//! Publishes one partition: takes its next events from the event buffer or the outbox, and appends them to its
//! stream. The outbox is read for several partitions at once, and the loop records all positions together
//! (`publisher_loop.rs`).
//!
//! The position is only an assumption, and every append checks it. It starts at the recorded one, moves forward
//! with each append, and moves back when the stream turns out to end earlier. So a crash at any point, a second
//! publisher, or a stream that lost its tail all lead to the same stream.
//!
//! Trimming is part of a step, so no append of this process is under way at the same time: one that was sent with
//! the old floor and executed after the trim would find that the stream starts too late. Whoever has lost the lease
//! can still send one, but what it finds does not count (`mark_diverged`). The floor is raised in the database before
//! the stream is trimmed, and only while the lease is in force; so whoever leases the partition later knows a floor
//! that is at least as high as that of every trim.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::breaker::{Breaker, CallError};
use super::event_buffer::EventBuffer;
use super::measure;
use crate::domain::cloud_event::EventRecord;
use crate::domain::ids::{EventId, Partition};
use crate::store::queries::{EventPosition, Lease, Recorded};
use crate::store::{Outbox, StoreError};
use crate::stream::{Appended, EntryId, EventStream, MAX_APPEND_EVENTS, StreamError, append_len};

/// How long one call to the outbox may take. The stores have shorter timeouts; this one does not rely on them.
pub(super) const OUTBOX_TIMEOUT: Duration = Duration::from_secs(5);

/// How many partitions may be between reading from the outbox and appending, and how many one statement reads.
/// Enough to keep the database and the stream busy at once; few enough to bound memory, and to leave database
/// connections to others.
pub(super) const MAX_CONCURRENT_READS: usize = 8;

/// How many commands one step sends to trim a stream, a few thousand entries each. What remains is removed by the next
/// steps that trim.
const MAX_TRIMS: usize = 20;

/// What all partitions of a publisher share.
pub(super) struct PublisherContext {
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) stream: Arc<dyn EventStream>,
    pub(super) events: EventBuffer,
    pub(super) breaker: Breaker,
    pub(super) owner: String,
    read_permits: Arc<Semaphore>,
}

impl PublisherContext {
    pub(super) fn new(
        outbox: Arc<dyn Outbox>,
        stream: Arc<dyn EventStream>,
        events: EventBuffer,
        owner: String,
    ) -> Self {
        Self {
            outbox,
            stream,
            events,
            breaker: Breaker::new(),
            owner,
            read_permits: Arc::new(Semaphore::new(MAX_CONCURRENT_READS)),
        }
    }
}

/// The result of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The stream holds all events of the outbox.
    Idle,
    /// Some events were appended. `has_more` says whether there may be further ones.
    Published { has_more: bool },
    /// The stream ends earlier than assumed; publishing continues there.
    Rewound { top_seq: i64 },
    /// Another publisher has leased the partition.
    LeaseLost,
    /// The stream differs from the outbox, and the outbox has recorded that.
    Diverged { seq: i64 },
}

/// Why a step failed. It is retried after a pause.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Outbox(#[from] StoreError),
    #[error(transparent)]
    Stream(StreamError),
    #[error("the circuit breaker is open")]
    BreakerOpen,
}

impl From<CallError<StreamError>> for StepError {
    fn from(error: CallError<StreamError>) -> Self {
        match error {
            CallError::Open => Self::BreakerOpen,
            CallError::Failed(error) => Self::Stream(error),
        }
    }
}

/// The events to append next.
pub(super) struct NextEvents {
    /// As many as fit into one append.
    events: Vec<EventRecord>,
    /// Whether there may be more.
    has_more: bool,
    /// Held by events from the outbox until they are appended.
    _read_permit: Option<OwnedSemaphorePermit>,
}

/// How far a leased partition is published.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) lease: Lease,
    /// The last event believed to be in the stream; 0 for none.
    pub(super) position: i64,
    /// The id of that event, if known.
    event_id: Option<EventId>,
    /// Whether the next step checks the start and the end of the stream even if there is nothing to publish.
    pub(super) is_probe: bool,
    /// Whether the next step trims the stream: how long events stay in it.
    pub(super) trim: Option<Duration>,
}

impl Progress {
    pub(super) fn new(lease: Lease) -> Self {
        Self { position: lease.published_seq, event_id: None, is_probe: false, trim: None, lease }
    }

    /// Appends the events. A probe first compares without events, because an append that continues a stream looks
    /// at its last entry only.
    pub(super) async fn advance(&mut self, context: &PublisherContext, next: NextEvents) -> Result<Step, StepError> {
        let mut appended = Appended::Ok;
        if self.is_probe {
            appended = self.append(context, &[]).await?;
        }
        if appended == Appended::Ok && self.trim.is_some() {
            // Nothing depends on it, so a failure delays no event.
            if let Err(error) = self.trim(context).await {
                tracing::warn!(partition = self.lease.partition.number(), %error, "the stream cannot be trimmed");
            }
        }
        if appended == Appended::Ok && !next.events.is_empty() {
            appended = self.append(context, &next.events).await?;
        }
        match appended {
            Appended::Ok => self.appended(context, &next).await,
            Appended::Behind { top_seq } if (0..self.position).contains(&top_seq) => {
                (self.position, self.event_id) = (top_seq, None);
                Ok(Step::Rewound { top_seq })
            }
            Appended::Behind { top_seq } => {
                Err(StepError::Stream(StreamError::Corrupt(format!("behind {} at {top_seq}", self.position))))
            }
            Appended::Diverged { seq } => self.mark_diverged(context, seq).await,
        }
    }

    async fn append(&self, context: &PublisherContext, events: &[EventRecord]) -> Result<Appended, StepError> {
        let Lease { partition, generation, floor_seq, .. } = self.lease;
        let previous = self.event_id.map(|event_id| (self.position, event_id));
        let started = Instant::now();
        let appended =
            context.breaker.call(context.stream.append(partition, generation, floor_seq, previous, events)).await?;
        measure::record_append_time(started.elapsed());
        Ok(appended)
    }

    /// Raises the floor, and removes what is before it. A lost lease is noticed by the next record.
    async fn trim(&mut self, context: &PublisherContext) -> Result<(), StepError> {
        let Some(retain) = self.trim.take() else { return Ok(()) };
        let Some(floor_seq) = with_timeout(context.outbox.raise_floor(&self.lease, retain)).await? else {
            return Ok(());
        };
        self.lease.floor_seq = floor_seq;
        let Lease { partition, generation, .. } = self.lease;
        for _ in 0..MAX_TRIMS {
            // Without the breaker: a command that Redis refuses does not mean that it cannot append.
            if !context.stream.trim(partition, generation, floor_seq).await.map_err(StepError::Stream)? {
                break;
            }
        }
        Ok(())
    }

    /// The next events, if the buffer has them. After a new lease or a rewind the id of the previous event is
    /// unknown, and only the outbox has it.
    pub(super) fn next_from_buffer(&self, buffer: &EventBuffer) -> Option<NextEvents> {
        if self.needs_event_id() {
            return None;
        }
        let (events, has_more) = buffer.take_after(self.lease.partition, self.position)?;
        Some(NextEvents { events, has_more, _read_permit: None })
    }

    fn needs_event_id(&self) -> bool {
        self.position > 0 && self.event_id.is_none()
    }

    /// Where to read from: one event earlier, if the id of the last one is unknown.
    fn read_position(&self) -> EventPosition {
        EventPosition { partition: self.lease.partition, seq: self.position - i64::from(self.needs_event_id()) }
    }

    /// The next events, from those read at [`Self::read_position`].
    fn next_from_outbox(
        &mut self,
        mut events: Vec<EventRecord>,
        read_permit: Option<OwnedSemaphorePermit>,
    ) -> Result<NextEvents, StepError> {
        if self.needs_event_id() {
            let found = events.first().filter(|event| event.seq == self.position).map(|event| event.event_id);
            let Some(event_id) = found else {
                let partition = self.lease.partition.number();
                let reason = format!("event {} of partition {partition} is not in the outbox", self.position);
                return Err(StoreError::Corrupt(reason).into());
            };
            self.event_id = Some(event_id);
            events.remove(0);
        }
        let len = append_len(&events);
        let has_more = len < events.len() || len == usize::try_from(MAX_APPEND_EVENTS).unwrap_or(usize::MAX);
        events.truncate(len);
        Ok(NextEvents { events, has_more, _read_permit: read_permit })
    }

    async fn appended(&mut self, context: &PublisherContext, next: &NextEvents) -> Result<Step, StepError> {
        let Some(last) = next.events.last() else {
            return if self.is_probe { self.check_stream_end(context).await } else { Ok(Step::Idle) };
        };
        (self.position, self.event_id) = (last.seq, Some(last.event_id));
        measure::count_published(next.events.len());
        Ok(Step::Published { has_more: next.has_more })
    }

    /// Checks that the stream has no entries after the last event of the outbox. The outbox is read after the
    /// stream, because another publisher may append events that are committed meanwhile.
    async fn check_stream_end(&mut self, context: &PublisherContext) -> Result<Step, StepError> {
        let Lease { partition, generation, .. } = self.lease;
        let top = context.breaker.call(context.stream.top(partition, generation)).await?;
        if top.is_none_or(|entry| entry.id <= EntryId::of(self.position)) {
            return Ok(Step::Idle);
        }
        let next = with_timeout(context.outbox.read(partition, self.position, 1)).await?;
        if next.is_empty() {
            self.mark_diverged(context, self.position + 1).await
        } else {
            Ok(Step::Published { has_more: true })
        }
    }

    /// Only a publisher whose lease is still in force may stop the partition: one that lost it long ago may have
    /// compared with a stream that has been trimmed or rebuilt since.
    async fn mark_diverged(&mut self, context: &PublisherContext, seq: i64) -> Result<Step, StepError> {
        match with_timeout(context.outbox.mark_diverged(&self.lease, seq)).await? {
            Recorded::Done => Ok(Step::Diverged { seq }),
            Recorded::LeaseLost => Ok(Step::LeaseLost),
        }
    }
}

/// The events of one partition that were read from the outbox.
pub(super) type ReadResult = (Progress, Result<NextEvents, StepError>);

/// Reads the next events of at most [`MAX_CONCURRENT_READS`] partitions in one statement.
pub(super) async fn read_next(context: &PublisherContext, partitions: Vec<Progress>) -> Vec<ReadResult> {
    let count = u32::try_from(partitions.len()).unwrap_or(u32::MAX);
    let permits = Arc::clone(&context.read_permits).acquire_many_owned(count).await;
    let mut permits = permits.expect("the semaphore is never closed");
    let after: Vec<_> = partitions.iter().map(Progress::read_position).collect();
    let events = match with_timeout(context.outbox.read_each(&after, MAX_APPEND_EVENTS + 1)).await {
        Ok(events) => events,
        Err(error) => return partitions.into_iter().map(|progress| (progress, Err(error.clone().into()))).collect(),
    };
    let mut by_partition: BTreeMap<Partition, Vec<EventRecord>> = BTreeMap::new();
    for event in events {
        by_partition.entry(event.partition).or_default().push(event);
    }
    let result = |mut progress: Progress| {
        let events = by_partition.remove(&progress.lease.partition).unwrap_or_default();
        let next = progress.next_from_outbox(events, permits.split(1));
        (progress, next)
    };
    partitions.into_iter().map(result).collect()
}

/// Bounds a call to the outbox.
pub(super) async fn with_timeout<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match timeout(OUTBOX_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Unavailable("no answer from the outbox in time".into())),
    }
}
