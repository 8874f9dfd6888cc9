//! A lane: one queue, and one transaction at a time, for the partitions that it owns.
//!
//! It takes all queued commands (up to a limit) as a batch, executes the batch, and answers. While one batch
//! commits, the queue fills the next: the busier the lane, the larger its batches, and the fewer commits a
//! command costs.
//!
//! *When a whole batch fails.* A command's answer is stored under its key in the command's own transaction.
//! So retrying is always safe, even after a commit with an unknown outcome: the retry waits for the first
//! attempt's locks and then finds its rows, or does not. The commands of a failed batch are retried by
//! partition and then one by one. Those that fail again are answered as failed. When the database is
//! unavailable, the first command that fails ends the retries of its partition. A partition that fails slowly
//! is refused for a while (see [`super::partition_breaker`]), so that it does not delay the lane's others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch_executor::{Answer, BatchExecutor};
use super::command_queue::{CommandQueue, QueuedCommand};
use super::config::EngineConfig;
use super::dependencies::Dependencies;
use super::partition_breaker::{PartitionBreaker, PartitionState, SLOW_FAILURE};
use super::reply::{EngineError, outcome};
use crate::domain::commands::Envelope;
use crate::domain::ids::Partition;
use crate::store::StoreError;
use crate::telemetry::metric;

/// How long a command may wait in the queue. After that its caller is about to give up, and the queue must
/// drain faster than it fills.
const MAX_QUEUE_TIME: Duration = Duration::from_secs(5);

/// How long after a batch began its commands are still retried one by one. A database that takes longer to
/// fail is overloaded or gone: more retries would only keep callers waiting and block the queue.
const RETRY_BUDGET: Duration = Duration::from_secs(1);

pub(super) struct Lane {
    number: usize,
    queue: Arc<CommandQueue>,
    breaker: PartitionBreaker,
    executor: BatchExecutor,
}

impl Lane {
    pub(super) fn new(
        number: usize,
        dependencies: Arc<Dependencies>,
        queue: Arc<CommandQueue>,
        config: &EngineConfig,
    ) -> Self {
        let executor = BatchExecutor::new(number, dependencies, config);
        Self { number, queue, breaker: PartitionBreaker::default(), executor }
    }

    /// Runs until the queue is closed and empty.
    pub(super) async fn run(mut self) {
        loop {
            let commands = self.queue.take().await;
            if commands.is_empty() {
                return;
            }
            metrics::gauge!(metric::ENGINE_QUEUE_DEPTH, "lane" => self.number.to_string()).set(count(self.queue.len()));
            let batch = Self::reject_expired(commands);
            if !batch.is_empty() {
                let began = Instant::now();
                self.process(batch).await;
                self.queue.record_batch_time(began.elapsed());
            }
        }
    }

    /// Refuses commands that waited too long, and drops those whose caller is gone.
    fn reject_expired(commands: Vec<QueuedCommand>) -> Vec<QueuedCommand> {
        let mut fresh = Vec::with_capacity(commands.len());
        for command in commands {
            if command.queued_at.elapsed() > MAX_QUEUE_TIME {
                reply(command, Err(EngineError::WaitedTooLong));
            } else if !command.reply_to.is_closed() {
                fresh.push(command);
            }
        }
        fresh
    }

    /// Answers all commands: those of closed partitions share a transaction, half-open partitions get one each,
    /// and those of open partitions are refused.
    async fn process(&mut self, commands: Vec<QueuedCommand>) {
        let now = Instant::now();
        let (mut shared, mut trials) = (Vec::with_capacity(commands.len()), Vec::new());
        for command in commands {
            match self.breaker.state(command.partition(), now) {
                PartitionState::Closed => shared.push(command),
                PartitionState::HalfOpen => trials.push(command),
                PartitionState::Open => reply(command, Err(EngineError::Unavailable)),
            }
        }
        self.process_batch(shared).await;
        self.process_partitions(by_partition(trials)).await;
    }

    /// Each partition in a transaction of its own. After the first timeout the others are refused at once: the
    /// database itself may be slow. They are tried first the next time, because the partition that timed out
    /// stays open for longer.
    async fn process_partitions(&mut self, partitions: BTreeMap<Partition, Vec<QueuedCommand>>) {
        let mut is_database_slow = false;
        for (partition, commands) in partitions {
            if is_database_slow {
                reply_all(commands, EngineError::Unavailable);
            } else {
                is_database_slow = self.process_partition(partition, commands).await;
            }
        }
    }

    async fn process_batch(&mut self, commands: Vec<QueuedCommand>) {
        if commands.is_empty() {
            return;
        }
        let began = Instant::now();
        let size = commands.len();
        if let Err((commands, error)) = self.execute(commands).await {
            tracing::warn!(%error, lane = self.number, size, "a batch failed");
            let partitions = by_partition(commands);
            if partitions.len() == 1 {
                // The batch was this partition already: trying it as a whole again would be the same.
                for (partition, commands) in partitions {
                    self.recover(partition, commands, &error, began).await;
                }
            } else if matches!(error, StoreError::Unavailable(_)) && began.elapsed() >= SLOW_FAILURE {
                // Which partition timed out is unknown, so each gets a trial of its own a little later.
                for (partition, commands) in partitions {
                    self.breaker.record_slow_failure(partition, Instant::now());
                    reply_all(commands, EngineError::Unavailable);
                }
            } else {
                self.process_partitions(partitions).await;
            }
        }
        metrics::histogram!(metric::ENGINE_BATCH_SIZE).record(count(size));
        metrics::histogram!(metric::ENGINE_BATCH_SECONDS).record(began.elapsed().as_secs_f64());
    }

    /// Executes one partition's commands together, and one by one if that fails fast. Returns whether the
    /// database timed out.
    async fn process_partition(&mut self, partition: Partition, commands: Vec<QueuedCommand>) -> bool {
        let began = Instant::now();
        match self.execute(commands).await {
            Ok(()) => {
                self.breaker.record_success(partition);
                false
            }
            Err((commands, error)) => self.recover(partition, commands, &error, began).await,
        }
    }

    /// Retries one partition's commands after they failed together, or opens its breaker if that was slow.
    /// Returns whether the database timed out.
    async fn recover(
        &mut self,
        partition: Partition,
        commands: Vec<QueuedCommand>,
        error: &StoreError,
        began: Instant,
    ) -> bool {
        if began.elapsed() < SLOW_FAILURE {
            self.process_one_by_one(commands, error, began + RETRY_BUDGET).await;
            return false;
        }
        tracing::error!(%error, partition = partition.number(), "a partition timed out; it is refused for a while");
        self.breaker.record_slow_failure(partition, Instant::now());
        reply_all(commands, EngineError::Unavailable);
        matches!(error, StoreError::Unavailable(_))
    }

    async fn process_one_by_one(&mut self, commands: Vec<QueuedCommand>, batch_error: &StoreError, until: Instant) {
        let mut give_up_with = match (batch_error, commands.len()) {
            // The batch was this one command already: it would fail in the same way again.
            (StoreError::Corrupt(_), 1) => Some(EngineError::Failed),
            _ => None,
        };
        if give_up_with.is_some() {
            tracing::error!(error = %batch_error, lane = self.number, "a command could not be written");
        }
        for command in commands {
            if give_up_with.is_none() && Instant::now() >= until {
                give_up_with = Some(EngineError::Unavailable);
            }
            if let Some(error) = give_up_with {
                reply(command, Err(error));
                continue;
            }
            if let Err((commands, error)) = self.execute(vec![command]).await {
                tracing::error!(%error, lane = self.number, "a command could not be written");
                let answer = match error {
                    StoreError::Unavailable(_) => {
                        give_up_with = Some(EngineError::Unavailable);
                        EngineError::Unavailable
                    }
                    StoreError::Conflict(_) => EngineError::Unavailable,
                    StoreError::Corrupt(_) => EngineError::Failed,
                };
                reply_all(commands, answer);
            }
        }
    }

    /// Executes the commands in one transaction and answers them; gives them back if it fails.
    async fn execute(&mut self, commands: Vec<QueuedCommand>) -> Result<(), (Vec<QueuedCommand>, StoreError)> {
        let envelopes: Vec<&Envelope> = commands.iter().map(|command| &command.envelope).collect();
        match self.executor.execute(&envelopes).await {
            Ok(answers) => {
                for (command, answer) in commands.into_iter().zip(answers) {
                    reply(command, answer);
                }
                Ok(())
            }
            Err(error) => Err((commands, error)),
        }
    }
}

fn by_partition(commands: Vec<QueuedCommand>) -> BTreeMap<Partition, Vec<QueuedCommand>> {
    let mut partitions: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for command in commands {
        partitions.entry(command.partition()).or_default().push(command);
    }
    partitions
}

fn reply_all(commands: Vec<QueuedCommand>, error: EngineError) {
    for command in commands {
        reply(command, Err(error));
    }
}

fn reply(command: QueuedCommand, answer: Answer) {
    let outcome = outcome(answer.as_ref().map_err(|error| *error));
    let name = command.envelope.command.name();
    metrics::counter!(metric::ENGINE_COMMANDS, "type" => name, "outcome" => outcome).increment(1);
    // A caller that is gone finds the answer under its key.
    let _ = command.reply_to.send(answer);
}

#[allow(clippy::cast_precision_loss, reason = "a gauge needs no more than 52 bits")]
fn count(n: usize) -> f64 {
    n as f64
}
