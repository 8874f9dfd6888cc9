//! The publisher's loop: what to do next, and what follows from what was done.
//!
//! Everything that waits for a database or a stream is a future in one bounded set, so that the loop
//! itself only ever waits for the first of: something done, a signal, a deadline, the stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::breaker::{Backoff, BreakerState};
use super::config::PublisherConfig;
use super::health::PublisherHealth;
use super::measure;
use super::partition::{self, Batch, Ends, MAX_READING, Next, Progress, Step, StepError, in_time};
use super::slot::{Chore, Slot};
use crate::clock::Clock;
use crate::domain::ids::Partition;
use crate::store::StoreError;
use crate::store::queries::{EventPosition, Lease, PartitionStatus, Publication, Recorded};
use crate::stream::{LATER_GENERATION, StreamError};

/// Leases are renewed this many times per lifetime, so that one failure loses none.
const RENEWALS_PER_TTL: u32 = 3;
/// Looking for heads takes at most one part in this many of the time, however slow the database is.
const HEADS_SHARE: u32 = 4;
/// How long recording the last events and giving the leases back may take at the end; without it the
/// next publisher finds them in the stream, and the leases expire.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Something that was waited for.
enum Done {
    Leased(Result<Vec<Lease>, StoreError>),
    Heads(Result<Vec<EventPosition>, StoreError>, Duration),
    Status(Result<Vec<PartitionStatus>, StoreError>),
    Read(Vec<Next>),
    Advanced(Progress, Result<Step, StepError>),
    Recorded(Vec<Publication>, Result<Vec<Recorded>, StoreError>),
}

pub(super) struct Run {
    ends: Arc<Ends>,
    clock: Arc<dyn Clock>,
    config: PublisherConfig,
    slots: BTreeMap<Partition, Slot>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Steps of paced partitions begin together, at multiples of a time after this.
    started: Instant,
    is_draining: bool,
    leasing: Chore,
    heads: Chore,
    status: Chore,
    recording: Chore,
    health: PublisherHealth,
    report: watch::Sender<PublisherHealth>,
}

impl Run {
    pub(super) fn new(
        ends: Arc<Ends>,
        clock: Arc<dyn Clock>,
        config: PublisherConfig,
        report: watch::Sender<PublisherHealth>,
    ) -> Self {
        let now = Instant::now();
        Self {
            ends,
            clock,
            config,
            slots: BTreeMap::new(),
            work: FuturesUnordered::new(),
            started: now,
            is_draining: false,
            leasing: Chore::new(now),
            heads: Chore::new(now),
            status: Chore::new(now),
            recording: Chore::new(now),
            health: PublisherHealth::default(),
            report,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let handover = self.ends.handover.clone();
        loop {
            self.begin_chores();
            self.begin_steps();
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = handover.signalled() => self.signalled(),
                Some(done) = self.work.next(), if !self.work.is_empty() => self.handle(done),
                () = sleep_until(deadline) => {}
            }
        }
        self.finish().await;
    }

    fn signalled(&mut self) {
        for (partition, head) in self.ends.handover.heads() {
            if let Some(slot) = self.slots.get_mut(&partition) {
                slot.head = slot.head.max(head);
            }
        }
    }

    fn begin_chores(&mut self) {
        let now = Instant::now();
        if self.leasing.begins(now) {
            let (ends, ttl) = (Arc::clone(&self.ends), self.config.lease_ttl);
            let lease = async move { Done::Leased(in_time(ends.outbox.lease(&ends.owner, ttl)).await) };
            self.work.push(lease.boxed());
        }
        if !self.slots.is_empty() && self.heads.begins(now) {
            let ends = Arc::clone(&self.ends);
            let heads = async move { Done::Heads(in_time(ends.outbox.heads()).await, now.elapsed()) };
            self.work.push(heads.boxed());
        }
        if self.status.begins(now) {
            let ends = Arc::clone(&self.ends);
            self.work.push(async move { Done::Status(in_time(ends.outbox.status()).await) }.boxed());
        }
        if self.has_unrecorded() && self.recording.begins(now) {
            let (ends, publications) = (Arc::clone(&self.ends), self.unrecorded());
            let record = async move {
                let recorded = in_time(ends.outbox.record(&publications)).await;
                Done::Recorded(publications, recorded)
            };
            self.work.push(record.boxed());
        }
    }

    fn has_unrecorded(&self) -> bool {
        self.slots.values().any(|slot| slot.unrecorded().is_some())
    }

    fn unrecorded(&self) -> Vec<Publication> {
        self.slots.values().filter_map(Slot::unrecorded).collect()
    }

    /// Begins a step of every partition that is due.
    fn begin_steps(&mut self) {
        let now = Instant::now();
        let mut to_read = Vec::new();
        for slot in self.slots.values_mut().filter(|slot| slot.due().is_some_and(|at| at <= now)) {
            let Some(mut progress) = slot.progress.take() else { continue };
            (slot.is_signalled, slot.head_before) = (false, slot.head);
            // After a failure only an answer of the stream counts as success, events or not.
            progress.is_probe = slot.probe_at <= now || slot.backoff.is_some();
            if progress.is_probe {
                slot.probe_at = now + self.config.probe_every;
            }
            match progress.handed_over(&self.ends.handover) {
                Some(batch) => self.work.push(step(&self.ends, progress, batch)),
                // What failed is read alone: it may be what cannot be read.
                None if slot.backoff.is_some() => self.work.push(read(&self.ends, vec![progress])),
                None => to_read.push(progress),
            }
        }
        while !to_read.is_empty() {
            let together = to_read.split_off(to_read.len().saturating_sub(MAX_READING));
            self.work.push(read(&self.ends, together));
        }
    }

    /// When a partition that was just appended to has its next step: at the next beat, so that
    /// partitions under load step together, and each at most once between two beats.
    fn next_beat(&self) -> Instant {
        let now = Instant::now();
        if self.is_draining {
            return now;
        }
        let (beat, elapsed) = (self.config.step_every.as_nanos().max(1), (now - self.started).as_nanos());
        now + Duration::from_nanos(u64::try_from(beat - elapsed % beat).unwrap_or(0))
    }

    /// When the loop has to look again, if nothing happens before.
    fn deadline(&self) -> Instant {
        let heads = self.heads.at.filter(|_| !self.slots.is_empty());
        let record = self.recording.at.filter(|_| self.has_unrecorded());
        let steps = self.slots.values().filter_map(Slot::due);
        let chores = [self.leasing.at, heads, self.status.at, record].into_iter().flatten();
        chores.chain(steps).min().unwrap_or_else(|| Instant::now() + self.config.lease_ttl)
    }

    fn handle(&mut self, done: Done) {
        match done {
            Done::Leased(leases) => {
                self.leasing.again(&leases, self.config.lease_ttl / RENEWALS_PER_TTL);
                if let Some(leases) = self.outbox_answered(leases) {
                    self.take_leases(leases);
                }
            }
            Done::Heads(heads, took) => {
                self.heads.again(&heads, self.config.heads_every.max(took * HEADS_SHARE));
                for head in self.outbox_answered(heads).into_iter().flatten() {
                    if let Some(slot) = self.slots.get_mut(&head.partition) {
                        slot.head = slot.head.max(head.seq);
                    }
                }
            }
            Done::Status(status) => {
                self.status.again(&status, self.config.status_every);
                if let Some(status) = self.outbox_answered(status) {
                    self.health.look_at(&status, self.clock.now());
                }
                self.tell();
            }
            Done::Read(read) => self.read(read),
            Done::Advanced(progress, step) => self.advanced(progress, step),
            Done::Recorded(publications, recorded) => {
                self.recording.again(&recorded, self.config.record_every);
                if let Some(recorded) = self.outbox_answered(recorded) {
                    self.recorded(&publications, &recorded);
                }
            }
        }
    }

    fn outbox_answered<T>(&mut self, result: Result<T, StoreError>) -> Option<T> {
        if let Err(error) = &result
            && !self.health.is_outbox_down
        {
            tracing::warn!(%error, "the outbox cannot be read");
        }
        self.health.is_outbox_down = result.is_err();
        result.ok()
    }

    /// Keeps what is still ours, begins what is new or has another generation, drops the rest. A step
    /// that is under way for a dropped lease is ignored when it ends.
    fn take_leases(&mut self, leases: Vec<Lease>) {
        let now = Instant::now();
        let handover = &self.ends.handover;
        let is_leased = |partition: Partition| leases.iter().any(|lease| lease.partition == partition);
        for (partition, _) in self.slots.extract_if(.., |partition, _| !is_leased(*partition)) {
            handover.want(partition, false);
        }
        for lease in leases {
            handover.want(lease.partition, lease.diverged_seq.is_none());
            let kept = self.slots.get_mut(&lease.partition).filter(|slot| slot.is_same(&lease));
            if let Some(slot) = kept {
                slot.is_stopped |= lease.diverged_seq.is_some();
            } else {
                self.slots.insert(lease.partition, Slot::new(lease, now, self.config.probe_every));
            }
        }
        self.health.leased = self.slots.len();
    }

    fn recorded(&mut self, publications: &[Publication], recorded: &[Recorded]) {
        for (Publication { lease, seq_to }, recorded) in publications.iter().zip(recorded) {
            let Some(slot) = self.slots.get_mut(&lease.partition).filter(|slot| slot.is_same(lease)) else { continue };
            match recorded {
                Recorded::Done => slot.recorded = slot.recorded.max(*seq_to),
                Recorded::LeaseLost => self.lease_lost(lease.partition),
            }
        }
    }

    fn lease_lost(&mut self, partition: Partition) {
        tracing::info!(partition = partition.number(), "another publisher has the partition");
        self.slots.remove(&partition);
        self.ends.handover.want(partition, false);
    }

    fn read(&mut self, read: Vec<Next>) {
        for (progress, batch) in read {
            match batch {
                Ok(batch) => self.work.push(step(&self.ends, progress, batch)),
                Err(error) => self.advanced(progress, Err(error)),
            }
        }
    }

    fn advanced(&mut self, progress: Progress, step: Result<Step, StepError>) {
        let was_broken = self.health.breaker != BreakerState::Closed;
        self.note_breaker();
        let (partition, next_beat) = (progress.lease.partition, self.next_beat());
        let Some(slot) = self.slots.get_mut(&partition).filter(|slot| slot.is_same(&progress.lease)) else { return };
        let number = partition.number();
        slot.appended = progress.position;
        match step {
            Ok(Step::Idle) => slot.found_nothing(progress.position),
            Ok(Step::Published { is_more: true }) => slot.is_signalled = true,
            Ok(Step::Published { is_more: false }) => {
                slot.not_before = next_beat;
                // At the end one more look, until there is nothing.
                slot.is_signalled |= self.is_draining;
            }
            Ok(Step::Rewound { top_seq }) => {
                tracing::warn!(partition = number, top_seq, "the stream lost its tail; publishing again from there");
                slot.is_signalled = true;
            }
            Ok(Step::LeaseLost) => return self.lease_lost(partition),
            Ok(Step::Diverged { seq }) => {
                log_divergence(number, seq);
                slot.is_stopped = true;
                self.ends.handover.want(partition, false);
                self.health.diverged.push(partition);
            }
            Err(error) => {
                log_failure(number, &error, slot.backoff.is_none());
                let pause = slot.backoff.get_or_insert_with(Backoff::new).pause();
                slot.not_before = Instant::now() + pause;
                slot.is_signalled = true;
                // At the end, what fails is left to the next publisher.
                slot.is_stopped |= self.is_draining;
                slot.progress = Some(progress);
                return;
            }
        }
        slot.backoff = None;
        slot.progress = Some(progress);
        self.tell();
        if was_broken && self.health.breaker == BreakerState::Closed {
            self.resume();
        }
    }

    /// The stream is back: nobody needs to sit out a pause.
    fn resume(&mut self) {
        for slot in self.slots.values_mut() {
            slot.not_before = Instant::now();
        }
    }

    fn note_breaker(&mut self) {
        let state = self.ends.breaker.state();
        if state == self.health.breaker {
            return;
        }
        if state == BreakerState::Closed {
            tracing::info!("the stream answers again");
        } else if self.health.breaker == BreakerState::Closed {
            tracing::warn!("the stream does not answer; events wait");
        }
        self.health.breaker = state;
        self.tell();
    }

    fn tell(&self) {
        measure::report(&self.health);
        self.report.send_if_modified(|health| {
            let is_new = *health != self.health;
            if is_new {
                health.clone_from(&self.health);
            }
            is_new
        });
    }

    /// Publishes what is there, records it and gives the leases back, all for a bounded time.
    async fn finish(mut self) {
        if self.ends.breaker.state() == BreakerState::Closed
            && timeout(self.config.stop_within, self.drain()).await.is_err()
        {
            tracing::warn!("stopping before all events were published; the next publisher continues");
        }
        // What is under way is dropped: whether it took effect, the next publisher will find out.
        self.work.clear();
        Partition::all().for_each(|partition| self.ends.handover.want(partition, false));
        let unrecorded = self.unrecorded();
        if !matches!(timeout(RELEASE_TIMEOUT, hand_back(&self.ends, &unrecorded)).await, Ok(Ok(()))) {
            tracing::warn!("the last events could not be recorded or the leases not be given back; they expire");
        }
    }

    async fn drain(&mut self) {
        self.is_draining = true;
        let now = Instant::now();
        for slot in self.slots.values_mut() {
            slot.is_signalled = true;
            if slot.backoff.is_none() {
                slot.not_before = now;
            }
        }
        self.begin_steps();
        while let Some(done) = self.work.next().await {
            match done {
                Done::Read(read) => self.read(read),
                Done::Advanced(progress, step) => self.advanced(progress, step),
                Done::Recorded(publications, recorded) => {
                    self.recorded(&publications, &recorded.unwrap_or_default());
                }
                // Nothing is leased or looked up any more.
                Done::Leased(_) | Done::Heads(..) | Done::Status(_) => {}
            }
            if self.ends.breaker.state() != BreakerState::Closed {
                return;
            }
            self.begin_steps();
        }
    }
}

fn step(ends: &Arc<Ends>, mut progress: Progress, batch: Batch) -> BoxFuture<'static, Done> {
    let ends = Arc::clone(ends);
    let step = async move {
        let step = progress.advance(&ends, batch).await;
        Done::Advanced(progress, step)
    };
    step.boxed()
}

fn read(ends: &Arc<Ends>, of: Vec<Progress>) -> BoxFuture<'static, Done> {
    let ends = Arc::clone(ends);
    async move { Done::Read(partition::read(&ends, of).await) }.boxed()
}

/// The leases are given back whether or not the last events could be recorded.
async fn hand_back(ends: &Ends, unrecorded: &[Publication]) -> Result<(), StoreError> {
    let recorded = if unrecorded.is_empty() { Ok(Vec::new()) } else { ends.outbox.record(unrecorded).await };
    ends.outbox.release(&ends.owner).await.and(recorded.map(drop))
}

fn log_divergence(partition: u8, seq: i64) {
    if seq == LATER_GENERATION {
        tracing::error!(partition, "consumers read a later generation than the database's; publishing is stopped");
    } else {
        tracing::error!(partition, seq, "the stream differs from the outbox; publishing is stopped");
    }
}

/// One line when a partition begins to fail; what cannot heal by itself is an error each time.
fn log_failure(partition: u8, error: &StepError, is_first: bool) {
    match error {
        StepError::Outbox(StoreError::Corrupt(_))
        | StepError::Stream(StreamError::Corrupt(_) | StreamError::Configuration(_)) => {
            tracing::error!(partition, %error, "a partition cannot be published");
        }
        _ if is_first => tracing::warn!(partition, %error, "publishing is delayed"),
        _ => tracing::debug!(partition, %error, "publishing is delayed"),
    }
}
