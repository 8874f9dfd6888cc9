//! The publisher's loop: starts work when it is due, and handles the results.
//!
//! All work that waits for the database or the stream is a future in one bounded set. The loop itself waits only
//! for the first result, signal, deadline or stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::breaker::{Backoff, BreakerState};
use super::config::PublisherConfig;
use super::failure_log::{log_divergence, log_failure};
use super::group_lag::GroupLags;
use super::health::PublisherHealth;
use super::leased_partition::LeasedPartition;
use super::measure;
use super::partition::{MAX_CONCURRENT_READS, Progress, PublisherContext, ReadResult, Step, StepError};
use super::periodic_task::PeriodicTask;
use super::work::{self, Completed, Work};
use crate::clock::Clock;
use crate::domain::ids::Partition;
use crate::store::StoreError;
use crate::store::queries::{Lease, Publication, Recorded};

/// How often a lease is renewed within its lifetime, so that one failed renewal does not lose it.
const RENEWALS_PER_TTL: u32 = 3;
/// The pause between polls is at least this many times as long as a poll took, so that polling never overloads a
/// slow database.
const POLL_PAUSE_FACTOR: u32 = 4;
/// The pause before more records of batches are deleted, so that others use the database in between.
const CLEANING_PAUSE: Duration = Duration::from_millis(500);
/// How long recording the last positions and releasing the leases may take at a stop. Without it the next
/// publisher finds the events in the stream, and the leases expire.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct PublisherLoop {
    context: Arc<PublisherContext>,
    clock: Arc<dyn Clock>,
    config: PublisherConfig,
    partitions: BTreeMap<Partition, LeasedPartition>,
    work: FuturesUnordered<Work>,
    /// Busy partitions step together, at multiples of the append interval after this.
    started: Instant,
    is_draining: bool,
    leasing: PeriodicTask,
    polling: PeriodicTask,
    status: PeriodicTask,
    recording: PeriodicTask,
    cleaning: PeriodicTask,
    health: PublisherHealth,
    group_lags: GroupLags,
    report: watch::Sender<PublisherHealth>,
}

impl PublisherLoop {
    pub(super) fn new(
        context: Arc<PublisherContext>,
        clock: Arc<dyn Clock>,
        config: PublisherConfig,
        report: watch::Sender<PublisherHealth>,
    ) -> Self {
        let now = Instant::now();
        Self {
            context,
            clock,
            config,
            partitions: BTreeMap::new(),
            work: FuturesUnordered::new(),
            started: now,
            is_draining: false,
            leasing: PeriodicTask::new(now),
            polling: PeriodicTask::new(now),
            status: PeriodicTask::new(now),
            recording: PeriodicTask::new(now),
            cleaning: PeriodicTask::new(now),
            health: PublisherHealth::default(),
            group_lags: GroupLags::default(),
            report,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let events = self.context.events.clone();
        loop {
            self.begin_periodic_tasks();
            self.begin_steps();
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = events.wait_for_commit() => self.take_committed_heads(),
                Some(completed) = self.work.next(), if !self.work.is_empty() => self.handle(completed),
                () = sleep_until(deadline) => {}
            }
        }
        self.finish().await;
    }

    fn take_committed_heads(&mut self) {
        for (partition, head) in self.context.events.take_heads() {
            if let Some(leased) = self.partitions.get_mut(&partition) {
                leased.head = leased.head.max(head);
            }
        }
    }

    fn begin_periodic_tasks(&mut self) {
        let now = Instant::now();
        if self.leasing.start_if_due(now) {
            self.work.push(work::lease(&self.context, self.config.lease_ttl));
        }
        if !self.partitions.is_empty() && self.polling.start_if_due(now) {
            self.work.push(work::poll(&self.context, now));
        }
        if self.status.start_if_due(now) {
            self.work.push(work::status(&self.context));
        }
        if let Some(retention) = self.config.retention
            && !self.partitions.is_empty()
            && self.cleaning.start_if_due(now)
        {
            let partitions = self.partitions.keys().copied().collect();
            self.work.push(work::delete_batches(&self.context, partitions, retention.batches));
        }
        if self.has_unrecorded() && self.recording.start_if_due(now) {
            self.work.push(work::record(&self.context, self.unrecorded()));
        }
    }

    fn has_unrecorded(&self) -> bool {
        self.partitions.values().any(|leased| leased.unrecorded().is_some())
    }

    fn unrecorded(&self) -> Vec<Publication> {
        self.partitions.values().filter_map(LeasedPartition::unrecorded).collect()
    }

    /// Begins a step of each partition that is due.
    fn begin_steps(&mut self) {
        let now = Instant::now();
        let mut to_read = Vec::new();
        for leased in self.partitions.values_mut().filter(|leased| leased.next_step().is_some_and(|at| at <= now)) {
            let Some(mut progress) = leased.progress.take() else { continue };
            (leased.is_signalled, leased.head_at_step_start) = (false, leased.head);
            // After a failure the stream must answer, even if there are no events.
            progress.is_probe = leased.next_probe <= now || leased.backoff.is_some();
            if progress.is_probe {
                leased.next_probe = now + self.config.probe_interval;
            }
            progress.trim = None;
            if progress.is_probe && leased.next_trim <= now {
                leased.next_trim = now + self.config.trim_interval;
                progress.trim = self.config.retention.map(|retention| retention.events);
            }
            match progress.next_from_buffer(&self.context.events) {
                Some(next) => self.work.push(work::step(&self.context, progress, next)),
                // After a failure it is read alone: its events may be the unreadable ones.
                None if leased.backoff.is_some() => self.work.push(work::read(&self.context, vec![progress])),
                None => to_read.push(progress),
            }
        }
        while !to_read.is_empty() {
            let together = to_read.split_off(to_read.len().saturating_sub(MAX_CONCURRENT_READS));
            self.work.push(work::read(&self.context, together));
        }
    }

    /// The next common time for steps. After an append a partition waits for it, so that busy partitions step
    /// together, and each at most once per interval.
    fn next_common_step(&self) -> Instant {
        let now = Instant::now();
        if self.is_draining {
            return now;
        }
        let (interval, elapsed) = (self.config.append_interval.as_nanos().max(1), (now - self.started).as_nanos());
        now + Duration::from_nanos(u64::try_from(interval - elapsed % interval).unwrap_or(0))
    }

    /// When the next work is due.
    fn deadline(&self) -> Instant {
        let poll = self.polling.next_run.filter(|_| !self.partitions.is_empty());
        let record = self.recording.next_run.filter(|_| self.has_unrecorded());
        let clean = self.cleaning.next_run.filter(|_| self.config.retention.is_some() && !self.partitions.is_empty());
        let steps = self.partitions.values().filter_map(LeasedPartition::next_step);
        let tasks = [self.leasing.next_run, poll, self.status.next_run, record, clean].into_iter().flatten();
        tasks.chain(steps).min().unwrap_or_else(|| Instant::now() + self.config.lease_ttl)
    }

    fn handle(&mut self, completed: Completed) {
        match completed {
            Completed::Leased(leases) => {
                self.leasing.finished(&leases, self.config.lease_ttl / RENEWALS_PER_TTL);
                if let Some(leases) = self.note_outbox(leases) {
                    self.update_leases(leases);
                }
            }
            Completed::Polled(heads, took) => {
                self.polling.finished(&heads, self.config.poll_interval.max(took * POLL_PAUSE_FACTOR));
                for head in self.note_outbox(heads).into_iter().flatten() {
                    if let Some(leased) = self.partitions.get_mut(&head.partition) {
                        leased.head = leased.head.max(head.seq);
                    }
                }
            }
            Completed::Status(status, groups) => {
                self.status.finished(&status, self.config.status_interval);
                if let Some(status) = self.note_outbox(status) {
                    self.health.update_lag(&status, self.clock.now());
                    measure::report_streams(&status);
                    if let Some(groups) = groups {
                        measure::report_groups(self.group_lags.update(groups, &status));
                    }
                }
                self.report_health();
            }
            Completed::Cleaned(deleted) => {
                let pause = if matches!(deleted, Ok(true)) { CLEANING_PAUSE } else { self.config.trim_interval };
                if let Err(error) = deleted {
                    tracing::warn!(%error, "old records of batches cannot be deleted");
                }
                // Nobody waits for it, so a failure is not retried earlier.
                self.cleaning.next_run = Some(Instant::now() + pause);
            }
            Completed::Read(results) => self.read_finished(results),
            Completed::Stepped(progress, step) => self.step_finished(progress, step),
            Completed::Recorded(publications, recorded) => {
                self.recording.finished(&recorded, self.config.record_interval);
                if let Some(recorded) = self.note_outbox(recorded) {
                    self.record_finished(&publications, &recorded);
                }
            }
        }
    }

    fn note_outbox<T>(&mut self, result: Result<T, StoreError>) -> Option<T> {
        if let Err(error) = &result
            && !self.health.is_outbox_down
        {
            tracing::warn!(%error, "the outbox cannot be read");
        }
        self.health.is_outbox_down = result.is_err();
        result.ok()
    }

    /// Keeps the partitions with an unchanged lease, starts over with new leases and generations, and drops the
    /// rest. The result of a step that runs for a dropped lease will be ignored.
    fn update_leases(&mut self, leases: Vec<Lease>) {
        let now = Instant::now();
        let events = &self.context.events;
        let is_leased = |partition: Partition| leases.iter().any(|lease| lease.partition == partition);
        for (partition, _) in self.partitions.extract_if(.., |partition, _| !is_leased(*partition)) {
            events.set_enabled(partition, false);
        }
        for lease in leases {
            events.set_enabled(lease.partition, lease.diverged_seq.is_none());
            let current = self.partitions.get_mut(&lease.partition).filter(|leased| leased.has_lease(&lease));
            if let Some(leased) = current {
                leased.is_stopped |= lease.diverged_seq.is_some();
            } else {
                self.partitions.insert(lease.partition, LeasedPartition::new(lease, now, self.config.probe_interval));
            }
        }
        self.health.leased = self.partitions.len();
    }

    fn record_finished(&mut self, publications: &[Publication], recorded: &[Recorded]) {
        for (Publication { lease, seq_to }, recorded) in publications.iter().zip(recorded) {
            let Some(leased) = self.partitions.get_mut(&lease.partition).filter(|leased| leased.has_lease(lease))
            else {
                continue;
            };
            match recorded {
                Recorded::Done => leased.recorded_seq = leased.recorded_seq.max(*seq_to),
                Recorded::LeaseLost => self.lease_lost(lease.partition),
            }
        }
    }

    fn lease_lost(&mut self, partition: Partition) {
        tracing::info!(partition = partition.number(), "another publisher has leased the partition");
        self.partitions.remove(&partition);
        self.context.events.set_enabled(partition, false);
    }

    fn read_finished(&mut self, results: Vec<ReadResult>) {
        for (progress, next) in results {
            match next {
                Ok(next) => self.work.push(work::step(&self.context, progress, next)),
                Err(error) => self.step_finished(progress, Err(error)),
            }
        }
    }

    fn step_finished(&mut self, progress: Progress, step: Result<Step, StepError>) {
        let was_broken = self.health.breaker != BreakerState::Closed;
        self.note_breaker();
        let (partition, next_common_step) = (progress.lease.partition, self.next_common_step());
        let Some(leased) = self.partitions.get_mut(&partition).filter(|leased| leased.has_lease(&progress.lease))
        else {
            return;
        };
        let number = partition.number();
        leased.appended_seq = progress.position;
        match step {
            Ok(Step::Idle) => leased.found_no_events(progress.position),
            Ok(Step::Published { has_more: true }) => leased.is_signalled = true,
            Ok(Step::Published { has_more: false }) => {
                leased.not_before = next_common_step;
                // While draining, steps repeat until one finds no events.
                leased.is_signalled |= self.is_draining;
            }
            Ok(Step::Rewound { top_seq }) => {
                tracing::warn!(partition = number, top_seq, "the stream lost its tail; publishing it again");
                leased.is_signalled = true;
            }
            Ok(Step::LeaseLost) => return self.lease_lost(partition),
            Ok(Step::Diverged { seq }) => {
                log_divergence(number, seq);
                leased.is_stopped = true;
                self.context.events.set_enabled(partition, false);
                self.health.diverged.push(partition);
            }
            Err(error) => {
                log_failure(number, &error, leased.backoff.is_none());
                let pause = leased.backoff.get_or_insert_with(Backoff::new).next_pause();
                leased.not_before = Instant::now() + pause;
                leased.is_signalled = true;
                // While draining, a failed partition is left to the next publisher.
                leased.is_stopped |= self.is_draining;
                leased.progress = Some(progress);
                return;
            }
        }
        leased.backoff = None;
        leased.progress = Some(progress);
        self.report_health();
        if was_broken && self.health.breaker == BreakerState::Closed {
            self.end_pauses();
        }
    }

    /// The stream is back: no partition has to wait for the end of its pause.
    fn end_pauses(&mut self) {
        for leased in self.partitions.values_mut() {
            leased.not_before = Instant::now();
        }
    }

    fn note_breaker(&mut self) {
        let state = self.context.breaker.state();
        if state == self.health.breaker {
            return;
        }
        if state == BreakerState::Closed {
            tracing::info!("the stream answers again");
        } else if self.health.breaker == BreakerState::Closed {
            tracing::warn!("the stream does not answer; events wait");
        }
        self.health.breaker = state;
        self.report_health();
    }

    fn report_health(&self) {
        measure::report_health(&self.health);
        self.report.send_if_modified(|health| {
            let is_new = *health != self.health;
            if is_new {
                health.clone_from(&self.health);
            }
            is_new
        });
    }

    /// Publishes the remaining events, records the positions and releases the leases, each within its timeout.
    async fn finish(mut self) {
        if self.context.breaker.state() == BreakerState::Closed
            && timeout(self.config.stop_timeout, self.drain()).await.is_err()
        {
            tracing::warn!("stopping before all events were published; the next publisher continues");
        }
        // Running work is dropped. The next publisher finds out whether it took effect.
        self.work.clear();
        Partition::all().for_each(|partition| self.context.events.set_enabled(partition, false));
        let unrecorded = self.unrecorded();
        if !matches!(timeout(RELEASE_TIMEOUT, work::record_and_release(&self.context, &unrecorded)).await, Ok(Ok(()))) {
            tracing::warn!("the last positions could not be recorded or the leases not released; the leases expire");
        }
    }

    async fn drain(&mut self) {
        self.is_draining = true;
        let now = Instant::now();
        for leased in self.partitions.values_mut() {
            leased.is_signalled = true;
            if leased.backoff.is_none() {
                leased.not_before = now;
            }
        }
        self.begin_steps();
        while let Some(completed) = self.work.next().await {
            match completed {
                Completed::Read(results) => self.read_finished(results),
                Completed::Stepped(progress, step) => self.step_finished(progress, step),
                Completed::Recorded(publications, recorded) => {
                    self.record_finished(&publications, &recorded.unwrap_or_default());
                }
                // A stopping publisher neither leases, polls nor cleans.
                Completed::Leased(_) | Completed::Polled(..) | Completed::Status(..) | Completed::Cleaned(_) => {}
            }
            if self.context.breaker.state() != BreakerState::Closed {
                return;
            }
            self.begin_steps();
        }
    }
}
