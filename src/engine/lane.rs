//! A lane: one queue, one transaction at a time, for the partitions it owns.
//!
//! It takes whatever waits (up to a bound), loads, decides each command in order, writes once,
//! commits, and answers. While a batch commits, the queue fills the next one: the busier the lane,
//! the fuller its batches, and the fewer commits a command costs.
//!
//! *What happens when a batch fails as a whole.* Every command has a key under which its answer is
//! stored in the same transaction, so trying again is always safe, even after a commit whose fate
//! is unknown: the second try waits for the first one's locks and finds its rows, or does not. So
//! the commands of a failed batch are tried again, partition by partition and then one by one; what
//! fails again is answered as failed. With the database away, the first that finds it so speaks for
//! its partition. A partition that fails slowly is left alone for a while (see [`super::stuck`]), so
//! that it does not hold up the others of the lane.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::decide::decide;
use super::memory::{Memory, ToRead};
use super::parts::{EngineConfig, Parts};
use super::reply::{EngineError, Reply};
use super::stuck::{SLOW, Stuck, Treatment};
use crate::domain::batch::Batch;
use crate::domain::change_set::ChangeSet;
use crate::domain::commands::Envelope;
use crate::domain::ids::{PARTITIONS, Partition};
use crate::domain::snapshot::{KeySet, Snapshot};
use crate::domain::time::Timestamp;
use crate::store::StoreError;
use crate::telemetry::metric;

/// How long one transaction may take, whatever the database's own limits are: a lane that hangs
/// would hold up every workspace of its partitions.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a command may wait in the queue. One that waited longer is not begun: its caller is
/// about to give up, and the queue must drain faster than it fills.
const MAX_QUEUE_TIME: Duration = Duration::from_secs(5);

/// How long after a batch began its commands are still tried one by one. A database that needs longer
/// to fail is overloaded or gone; more tries would keep callers waiting and hold up the queue.
const RETRY_BUDGET: Duration = Duration::from_secs(1);

/// A command on its way through the lane.
pub(super) struct Job {
    pub envelope: Envelope,
    pub answer: oneshot::Sender<Result<Reply, EngineError>>,
    pub queued_at: Instant,
}

pub(super) struct Lane {
    number: usize,
    parts: Arc<Parts>,
    queue: mpsc::Receiver<Job>,
    max_batch: usize,
    max_clock_ahead: Option<Duration>,
    stopping: CancellationToken,
    stuck: Stuck,
    memory: Memory,
}

type Answer = Result<Reply, EngineError>;

/// What a batch came to, before it is written.
struct Decided {
    answers: Vec<Answer>,
    changes: ChangeSet,
    snapshot: Snapshot,
}

/// What was written without locks.
struct Written {
    answers: Vec<Answer>,
    /// The places of those answers that nothing was written for: their keys may be taken, and what they rest
    /// on may have changed. Their commands are to be decided again.
    unchecked: Vec<usize>,
}

impl Job {
    fn partition(&self) -> Partition {
        Partition::of(self.envelope.workspace_id)
    }
}

impl Lane {
    pub(super) fn new(
        number: usize,
        parts: Arc<Parts>,
        queue: mpsc::Receiver<Job>,
        config: &EngineConfig,
        stopping: CancellationToken,
    ) -> Self {
        let (max_batch, max_clock_ahead) = (config.max_batch.max(1), config.max_clock_ahead);
        Self {
            number,
            parts,
            queue,
            max_batch,
            max_clock_ahead,
            stopping,
            stuck: Stuck::default(),
            memory: Memory::new(config.memory_bytes / usize::from(PARTITIONS)),
        }
    }

    /// Runs until the engine stops and the queue is empty.
    pub(super) async fn run(mut self) {
        let stopping = self.stopping.clone();
        let mut jobs = Vec::with_capacity(self.max_batch);
        loop {
            let taken = tokio::select! {
                biased;
                taken = self.queue.recv_many(&mut jobs, self.max_batch) => taken,
                () = stopping.cancelled(), if !self.queue.is_closed() => {
                    self.queue.close();
                    continue;
                }
            };
            if taken == 0 {
                return;
            }
            metrics::gauge!(metric::ENGINE_QUEUE_DEPTH, "lane" => self.number.to_string()).set(count(self.queue.len()));
            let batch = Self::shed(std::mem::take(&mut jobs));
            self.process(batch).await;
            jobs.reserve(self.max_batch);
        }
    }

    /// Answers those that waited too long, and whose caller is gone: their work is not begun.
    fn shed(jobs: Vec<Job>) -> Vec<Job> {
        let mut fresh = Vec::with_capacity(jobs.len());
        for job in jobs {
            if job.queued_at.elapsed() > MAX_QUEUE_TIME {
                reply(job, Err(EngineError::Overloaded));
            } else if !job.answer.is_closed() {
                fresh.push(job);
            }
        }
        fresh
    }

    /// Answers all jobs: those of healthy partitions in one transaction, those of partitions that were
    /// stuck in one each, and those of partitions that are stuck not at all.
    async fn process(&mut self, jobs: Vec<Job>) {
        let now = Instant::now();
        let (mut usual, mut alone) = (Vec::with_capacity(jobs.len()), Vec::new());
        for job in jobs {
            match self.stuck.treatment(job.partition(), now) {
                Treatment::Usual => usual.push(job),
                Treatment::Alone => alone.push(job),
                Treatment::Refused => reply(job, Err(EngineError::Unavailable)),
            }
        }
        self.process_together(usual).await;
        self.process_partitions(by_partition(alone)).await;
    }

    /// Each partition in a transaction of its own. Once the database let one wait in vain, the others
    /// are answered at once: it may be the database and not the partition. They come first the next
    /// time, because the one that failed is left alone for longer.
    async fn process_partitions(&mut self, partitions: BTreeMap<Partition, Vec<Job>>) {
        let mut is_database_slow = false;
        for (partition, jobs) in partitions {
            if is_database_slow {
                answer_all(jobs, EngineError::Unavailable);
            } else {
                is_database_slow = self.process_partition(partition, jobs).await;
            }
        }
    }

    async fn process_together(&mut self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let began = Instant::now();
        let size = jobs.len();
        if let Err((jobs, error)) = self.answer(jobs).await {
            tracing::warn!(%error, lane = self.number, size, "a batch failed");
            let parts = by_partition(jobs);
            if parts.len() == 1 {
                // To try them together would be the same again.
                for (partition, jobs) in parts {
                    self.recover(partition, jobs, &error, began).await;
                }
            } else if matches!(error, StoreError::Unavailable(_)) && began.elapsed() >= SLOW {
                // Whose wait it was that ran out is not known: each is tried alone, a little later.
                for (partition, jobs) in parts {
                    self.stuck.failed_slowly(partition, Instant::now());
                    answer_all(jobs, EngineError::Unavailable);
                }
            } else {
                self.process_partitions(parts).await;
            }
        }
        metrics::histogram!(metric::ENGINE_BATCH_SIZE).record(count(size));
        metrics::histogram!(metric::ENGINE_BATCH_SECONDS).record(began.elapsed().as_secs_f64());
    }

    /// The commands of one partition: together, and if that fails fast, one by one. Returns whether the
    /// database let it wait in vain.
    async fn process_partition(&mut self, partition: Partition, jobs: Vec<Job>) -> bool {
        let began = Instant::now();
        match self.answer(jobs).await {
            Ok(()) => {
                self.stuck.succeeded(partition);
                false
            }
            Err((jobs, error)) => self.recover(partition, jobs, &error, began).await,
        }
    }

    /// What becomes of one partition's commands that failed together. Returns whether the database let
    /// them wait in vain.
    async fn recover(&mut self, partition: Partition, jobs: Vec<Job>, error: &StoreError, began: Instant) -> bool {
        if began.elapsed() < SLOW {
            self.process_one_by_one(jobs, error, began + RETRY_BUDGET).await;
            return false;
        }
        tracing::error!(%error, partition = partition.number(), "a partition is stuck; it is left alone for a while");
        self.stuck.failed_slowly(partition, Instant::now());
        answer_all(jobs, EngineError::Unavailable);
        matches!(error, StoreError::Unavailable(_))
    }

    async fn process_one_by_one(&mut self, jobs: Vec<Job>, batch_error: &StoreError, until: Instant) {
        let mut given_up = match (batch_error, jobs.len()) {
            // Alone it would fail in the same way again.
            (StoreError::Corrupt(_), 1) => Some(EngineError::Failed),
            _ => None,
        };
        if given_up.is_some() {
            tracing::error!(error = %batch_error, lane = self.number, "a command could not be written");
        }
        for job in jobs {
            if given_up.is_none() && Instant::now() >= until {
                given_up = Some(EngineError::Unavailable);
            }
            if let Some(error) = given_up {
                reply(job, Err(error));
                continue;
            }
            if let Err((jobs, error)) = self.answer(vec![job]).await {
                tracing::error!(%error, lane = self.number, "a command could not be written");
                let answer = match error {
                    StoreError::Unavailable(_) => {
                        given_up = Some(EngineError::Unavailable);
                        EngineError::Unavailable
                    }
                    StoreError::Conflict(_) => EngineError::Unavailable,
                    StoreError::Corrupt(_) => EngineError::Failed,
                };
                answer_all(jobs, answer);
            }
        }
    }

    /// Answers the jobs if their transaction succeeds, and gives them back if not.
    async fn answer(&mut self, jobs: Vec<Job>) -> Result<(), (Vec<Job>, StoreError)> {
        let envelopes: Vec<&Envelope> = jobs.iter().map(|job| &job.envelope).collect();
        match self.transact(&envelopes).await {
            Ok(replies) => {
                for (job, answer) in jobs.into_iter().zip(replies) {
                    reply(job, answer);
                }
                Ok(())
            }
            Err(error) => Err((jobs, error)),
        }
    }

    /// Decides on what is remembered and writes, or loads under locks, decides, writes and commits.
    async fn transact(&mut self, envelopes: &[&Envelope]) -> Result<Vec<Answer>, StoreError> {
        let done = tokio::time::timeout(TRANSACTION_TIMEOUT, self.transact_unbounded(envelopes)).await;
        let outcome = done.unwrap_or_else(|_| Err(StoreError::Unavailable("the transaction took too long".into())));
        if let Err(error) = &outcome {
            let kind = match error {
                StoreError::Conflict(_) => "conflict",
                StoreError::Unavailable(_) => "unavailable",
                StoreError::Corrupt(_) => "corrupt",
            };
            metrics::counter!(metric::STORE_ERRORS, "kind" => kind).increment(1);
            self.memory.forget();
        }
        outcome
    }

    async fn transact_unbounded(&mut self, envelopes: &[&Envelope]) -> Result<Vec<Answer>, StoreError> {
        let keys = keys_of(envelopes);
        match self.write_from_memory(envelopes, &keys).await? {
            Some(Written { answers, unchecked }) if unchecked.is_empty() => Ok(answers),
            Some(Written { mut answers, unchecked }) => {
                let again: Vec<&Envelope> =
                    unchecked.iter().filter_map(|place| envelopes.get(*place).copied()).collect();
                let checked = self.write_under_locks(&again, keys_of(&again)).await?;
                for (place, answer) in unchecked.into_iter().zip(checked) {
                    answers[place] = answer;
                }
                Ok(answers)
            }
            None => self.write_under_locks(envelopes, keys).await,
        }
    }

    /// The careful case: lock, load, decide, write.
    async fn write_under_locks(
        &mut self,
        envelopes: &[&Envelope],
        mut keys: KeySet,
    ) -> Result<Vec<Answer>, StoreError> {
        self.memory.add_known(&mut keys, Instant::now());
        let mut transaction = self.parts.store.begin().await?;
        let mut snapshot = transaction.load(&keys).await?;
        self.memory.complete(&mut snapshot, &keys, Instant::now());
        let Decided { answers, changes, snapshot } = self.decide_all(envelopes, snapshot);
        if !changes.is_empty() {
            transaction.commit(&changes).await?;
            self.parts.signal.committed(changes.events);
        }
        self.memory.keep(snapshot, Instant::now());
        Ok(answers)
    }

    /// The steady case: what the batch needs is remembered or read without a lock, and its one write says
    /// whether it still was true. None when the batch must lock first: a partition is not remembered,
    /// something is not true any more, a key is taken, or there is nothing to write.
    async fn write_from_memory(
        &mut self,
        envelopes: &[&Envelope],
        keys: &KeySet,
    ) -> Result<Option<Written>, StoreError> {
        let Some(ToRead { mut missing, unsure }) = self.memory.what_to_read(keys, Instant::now()) else {
            return Ok(None);
        };
        if !unsure.is_empty() {
            let stale = self.parts.store.stale_workspaces(&unsure).await?;
            self.memory.evict(&stale);
            missing.extend(stale);
        }
        let read = if missing.is_empty() { HashMap::new() } else { self.parts.store.states(&missing).await? };
        if read.len() < missing.len() {
            return Ok(None);
        }
        let Some(snapshot) = self.memory.recall(keys, read, Instant::now()) else { return Ok(None) };
        let Decided { answers, mut changes, snapshot } = self.decide_all(envelopes, snapshot);
        if changes.is_empty() {
            return Ok(None);
        }
        let heads = match self.parts.store.write(&changes).await {
            Ok(heads) => heads,
            Err(StoreError::Conflict(reason)) => {
                tracing::debug!(reason, lane = self.number, "what was remembered is not true any more");
                self.memory.refused();
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        changes.follow(&heads);
        let written = changes.commands.iter().map(|command| command.workspace_id).collect();
        self.memory.keep_written(snapshot.workspaces, &heads, &written, Instant::now());
        let unchecked = unchecked(envelopes, &answers, &changes);
        self.parts.signal.committed(changes.events);
        Ok(Some(Written { answers, unchecked }))
    }

    fn decide_all(&self, envelopes: &[&Envelope], snapshot: Snapshot) -> Decided {
        let latest = self.latest(&snapshot);
        let mut batch = Batch::new(snapshot, &*self.parts.render, &*self.parts.events);
        let mut answers = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            if latest.is_some_and(|latest| envelope.received_at > latest) {
                tracing::error!("this machine's clock is ahead of the database's; commands are refused");
                answers.push(Err(EngineError::Unavailable));
            } else {
                answers.push(decide(&mut batch, envelope).map(Reply::from));
            }
        }
        let (changes, snapshot) = batch.finish();
        Decided { answers, changes, snapshot }
    }

    /// The latest instant that a command of this batch may have been received at.
    fn latest(&self, snapshot: &Snapshot) -> Option<Timestamp> {
        let ahead = TimeDelta::from_std(self.max_clock_ahead?).ok()?;
        Some(snapshot.database_now?.plus(ahead))
    }
}

/// The places of the answers whose commands were not written. The write has proved the others: that they rest on
/// what is true, and that their keys were free.
fn unchecked(envelopes: &[&Envelope], answers: &[Answer], changes: &ChangeSet) -> Vec<usize> {
    let written: HashSet<_> = changes.commands.iter().map(|command| command.command_id).collect();
    let commands = envelopes.iter().zip(answers).enumerate();
    let unchecked = commands.filter(|(_, (of, answer))| answer.is_ok() && !written.contains(&of.message_id));
    unchecked.map(|(place, _)| place).collect()
}

fn keys_of(envelopes: &[&Envelope]) -> KeySet {
    let mut keys = KeySet::default();
    for envelope in envelopes {
        envelope.add_keys(&mut keys);
    }
    keys
}

fn by_partition(jobs: Vec<Job>) -> BTreeMap<Partition, Vec<Job>> {
    let mut parts: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for job in jobs {
        parts.entry(job.partition()).or_default().push(job);
    }
    parts
}

fn answer_all(jobs: Vec<Job>, error: EngineError) {
    for job in jobs {
        reply(job, Err(error));
    }
}

fn reply(job: Job, answer: Result<Reply, EngineError>) {
    let outcome = match &answer {
        Ok(Reply::Decided { rejection: None, .. }) => "accepted",
        Ok(Reply::Decided { rejection: Some(rejection), .. }) => rejection.code(),
        Ok(Reply::Replayed(_)) => "replayed",
        Ok(Reply::KeyReused) => "key-reused",
        Ok(Reply::Nothing) => "nothing",
        Err(EngineError::Overloaded) => "overloaded",
        Err(EngineError::Stopping) => "stopping",
        Err(EngineError::Unavailable) => "unavailable",
        Err(EngineError::Failed) => "failed",
    };
    let command = job.envelope.command.name();
    metrics::counter!(metric::ENGINE_COMMANDS, "type" => command, "outcome" => outcome).increment(1);
    // A caller that went away finds its answer under its key.
    let _ = job.answer.send(answer);
}

#[allow(clippy::cast_precision_loss, reason = "a gauge needs no more than 52 bits")]
fn count(n: usize) -> f64 {
    n as f64
}
