//! One partition's way into its stream: take what comes next, as it was handed over by the commits of
//! this process or from the outbox, and append it. The outbox is read for several partitions together, and that
//! it was done is recorded for all together (`run.rs`).
//!
//! The position is a belief, and every append checks it. It starts at what was recorded, goes back
//! when the stream is found to end earlier, and forward with each append, so a crash anywhere, a
//! second publisher or a stream that lost its tail all lead to the same stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::breaker::{Breaker, Broken};
use super::handover::Handover;
use super::measure;
use crate::domain::event::EventRecord;
use crate::domain::ids::{EventId, Partition};
use crate::store::queries::{EventPosition, Lease, Recorded};
use crate::store::{Outbox, StoreError};
use crate::stream::{Appended, EntryId, EventStream, MAX_BATCH_EVENTS, StreamError, batch_len};

/// How long one call to the outbox may take. The stores have shorter bounds of their own; this one
/// holds whatever they do.
pub(super) const OUTBOX_TIMEOUT: Duration = Duration::from_secs(5);

/// Partitions that are read from the outbox at a time, until what was read is appended: enough to keep
/// the database and the stream busy at once, and few enough to leave the database's connections to
/// others and to bound what is held. So many are read by one statement too.
pub(super) const MAX_READING: usize = 8;

/// What all partitions of a publisher share.
pub(super) struct Ends {
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) stream: Arc<dyn EventStream>,
    pub(super) handover: Handover,
    pub(super) breaker: Breaker,
    pub(super) owner: String,
    reading: Arc<Semaphore>,
}

impl Ends {
    pub(super) fn new(
        outbox: Arc<dyn Outbox>,
        stream: Arc<dyn EventStream>,
        handover: Handover,
        owner: String,
    ) -> Self {
        Self {
            outbox,
            stream,
            handover,
            breaker: Breaker::new(),
            owner,
            reading: Arc::new(Semaphore::new(MAX_READING)),
        }
    }
}

/// What came of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All that the outbox has is in the stream.
    Idle,
    /// Some events went out; whether the outbox had more than fitted into the batch.
    Published { is_more: bool },
    /// The stream ends at this number; publishing continues there.
    Rewound { top_seq: i64 },
    /// Another publisher has the partition.
    LeaseLost,
    /// The stream says something else than the outbox, and that is noted.
    Diverged { seq: i64 },
}

/// Why a step failed. All of it is tried again after a pause.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Outbox(#[from] StoreError),
    #[error(transparent)]
    Stream(StreamError),
    #[error("the circuit breaker is open")]
    BreakerOpen,
}

impl From<Broken<StreamError>> for StepError {
    fn from(broken: Broken<StreamError>) -> Self {
        match broken {
            Broken::Open => Self::BreakerOpen,
            Broken::Failed(error) => Self::Stream(error),
        }
    }
}

/// The events that are appended next.
pub(super) struct Batch {
    /// As many as fit into one append.
    events: Vec<EventRecord>,
    /// Whether there may be more.
    is_more: bool,
    /// Kept by what was read from the outbox, until it is appended.
    _turn: Option<OwnedSemaphorePermit>,
}

/// How far a leased partition is published.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) lease: Lease,
    /// The last event believed to be in the stream; 0 for none.
    pub(super) position: i64,
    /// That event's id, once it was read.
    event_id: Option<EventId>,
    /// Whether the next step asks the stream where it ends even if there is nothing to publish.
    pub(super) is_probe: bool,
}

impl Progress {
    pub(super) fn of(lease: Lease) -> Self {
        Self { position: lease.published_seq, event_id: None, is_probe: false, lease }
    }

    /// One batch. With nothing to publish, a probe still asks the stream whether it ends where it
    /// should.
    pub(super) async fn advance(&mut self, ends: &Ends, batch: Batch) -> Result<Step, StepError> {
        if batch.events.is_empty() && !self.is_probe {
            return Ok(Step::Idle);
        }
        let started = Instant::now();
        let previous = self.event_id.map(|event_id| (self.position, event_id));
        let append = ends.stream.append(self.lease.partition, self.lease.generation, previous, &batch.events);
        let appended = ends.breaker.call(append).await?;
        measure::append_took(started.elapsed());
        match appended {
            Appended::Ok => self.appended(ends, &batch).await,
            Appended::Behind { top_seq } if (0..self.position).contains(&top_seq) => {
                (self.position, self.event_id) = (top_seq, None);
                Ok(Step::Rewound { top_seq })
            }
            Appended::Behind { top_seq } => {
                Err(StepError::Stream(StreamError::Corrupt(format!("behind {} at {top_seq}", self.position))))
            }
            Appended::Diverged { seq } => self.diverged(ends, seq).await,
        }
    }

    /// The next events, if the commits of this process handed them over. The event before them must be
    /// known: after a new lease or a rewind only the outbox can tell.
    pub(super) fn handed_over(&self, handover: &Handover) -> Option<Batch> {
        if self.is_last_unknown() {
            return None;
        }
        let (events, is_more) = handover.take(self.lease.partition, self.position)?;
        Some(Batch { events, is_more, _turn: None })
    }

    fn is_last_unknown(&self) -> bool {
        self.position > 0 && self.event_id.is_none()
    }

    /// Where to read from: one event earlier, if that one's id is not known.
    fn reads_after(&self) -> EventPosition {
        EventPosition { partition: self.lease.partition, seq: self.position - i64::from(self.is_last_unknown()) }
    }

    /// What comes next of what was read.
    fn batch_of(
        &mut self,
        mut events: Vec<EventRecord>,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Result<Batch, StepError> {
        if self.is_last_unknown() {
            let found = events.first().filter(|event| event.seq == self.position).map(|event| event.event_id);
            let Some(event_id) = found else {
                let partition = self.lease.partition.number();
                let reason = format!("event {} of partition {partition} is not in the outbox", self.position);
                return Err(StoreError::Corrupt(reason).into());
            };
            self.event_id = Some(event_id);
            events.remove(0);
        }
        let fits = batch_len(&events);
        let is_more = fits < events.len() || fits == usize::try_from(MAX_BATCH_EVENTS).unwrap_or(usize::MAX);
        events.truncate(fits);
        Ok(Batch { events, is_more, _turn: turn })
    }

    async fn appended(&mut self, ends: &Ends, batch: &Batch) -> Result<Step, StepError> {
        let Some(last) = batch.events.last() else { return self.look_behind(ends).await };
        (self.position, self.event_id) = (last.seq, Some(last.event_id));
        measure::published(batch.events.len());
        Ok(Step::Published { is_more: batch.is_more })
    }

    /// Whether the stream goes on behind the last event of the outbox. The outbox is asked after the
    /// stream: what another publisher appended since the first look was committed before.
    async fn look_behind(&mut self, ends: &Ends) -> Result<Step, StepError> {
        let Lease { partition, generation, .. } = self.lease;
        let top = ends.breaker.call(ends.stream.top(partition, generation)).await?;
        if top.is_none_or(|entry| entry.id <= EntryId::of(self.position)) {
            return Ok(Step::Idle);
        }
        let next = in_time(ends.outbox.read(partition, self.position, 1)).await?;
        if next.is_empty() {
            self.diverged(ends, self.position + 1).await
        } else {
            Ok(Step::Published { is_more: true })
        }
    }

    /// A publisher that lost its lease long ago may compare with what was since trimmed or rebuilt,
    /// so only one whose lease is still in force may stop the partition.
    async fn diverged(&mut self, ends: &Ends, seq: i64) -> Result<Step, StepError> {
        match in_time(ends.outbox.mark_diverged(&self.lease, seq)).await? {
            Recorded::Done => Ok(Step::Diverged { seq }),
            Recorded::LeaseLost => Ok(Step::LeaseLost),
        }
    }
}

/// What comes next of a partition, as it was read.
pub(super) type Next = (Progress, Result<Batch, StepError>);

/// Reads what comes next of at most [`MAX_READING`] partitions, in one statement.
pub(super) async fn read(ends: &Ends, of: Vec<Progress>) -> Vec<Next> {
    let count = u32::try_from(of.len()).unwrap_or(u32::MAX);
    let mut turns = Arc::clone(&ends.reading).acquire_many_owned(count).await.expect("it is never closed");
    let after: Vec<_> = of.iter().map(Progress::reads_after).collect();
    let events = match in_time(ends.outbox.read_each(&after, MAX_BATCH_EVENTS + 1)).await {
        Ok(events) => events,
        Err(error) => return of.into_iter().map(|progress| (progress, Err(error.clone().into()))).collect(),
    };
    let mut by_partition: BTreeMap<Partition, Vec<EventRecord>> = BTreeMap::new();
    for event in events {
        by_partition.entry(event.partition).or_default().push(event);
    }
    let next = |mut progress: Progress| {
        let events = by_partition.remove(&progress.lease.partition).unwrap_or_default();
        let batch = progress.batch_of(events, turns.split(1));
        (progress, batch)
    };
    of.into_iter().map(next).collect()
}

/// Waits for the outbox, but not for ever.
pub(super) async fn in_time<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match timeout(OUTBOX_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Unavailable("no answer from the outbox in time".into())),
    }
}
