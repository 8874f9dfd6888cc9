//! Executes one batch in one transaction: optimistically on cached states, or else under locks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;

use super::config::EngineConfig;
use super::decide::{decide, latest_received_at};
use super::dependencies::Dependencies;
use super::reply::{EngineError, Reply};
use super::state_cache::{ReadPlan, StateCache};
use crate::domain::batch::Batch;
use crate::domain::change_set::ChangeSet;
use crate::domain::commands::Envelope;
use crate::domain::ids::PARTITIONS;
use crate::domain::snapshot::{KeySet, Snapshot};
use crate::store::StoreError;
use crate::telemetry::metric;

/// How long one transaction may take, whatever the database's own limits are: a lane that hangs would block
/// every workspace of its partitions.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) type Answer = Result<Reply, EngineError>;

pub(super) struct BatchExecutor {
    lane: usize,
    dependencies: Arc<Dependencies>,
    cache: StateCache,
    max_clock_ahead: Option<TimeDelta>,
}

/// A batch before it is written.
struct DecidedBatch {
    answers: Vec<Answer>,
    changes: ChangeSet,
    snapshot: Snapshot,
}

/// A batch after an optimistic write.
struct OptimisticWrite {
    answers: Vec<Answer>,
    /// Indexes of the commands without a row in the write. Nothing has checked their keys or the states that
    /// they were decided on, so they are decided again under locks.
    unverified: Vec<usize>,
}

impl BatchExecutor {
    pub(super) fn new(lane: usize, dependencies: Arc<Dependencies>, config: &EngineConfig) -> Self {
        let cache = StateCache::new(config.cache_bytes / usize::from(PARTITIONS));
        Self { lane, dependencies, cache, max_clock_ahead: config.max_clock_ahead }
    }

    /// Returns an answer for each command once all of them are durable. On an error it is unknown whether
    /// the batch was committed.
    pub(super) async fn execute(&mut self, envelopes: &[&Envelope]) -> Result<Vec<Answer>, StoreError> {
        let result = tokio::time::timeout(TRANSACTION_TIMEOUT, self.execute_unbounded(envelopes)).await;
        let result = result.unwrap_or_else(|_| Err(StoreError::Unavailable("the transaction took too long".into())));
        if let Err(error) = &result {
            let kind = match error {
                StoreError::Conflict(_) => "conflict",
                StoreError::Unavailable(_) => "unavailable",
                StoreError::Corrupt(_) => "corrupt",
            };
            metrics::counter!(metric::STORE_ERRORS, "kind" => kind).increment(1);
            self.cache.clear();
        }
        result
    }

    async fn execute_unbounded(&mut self, envelopes: &[&Envelope]) -> Result<Vec<Answer>, StoreError> {
        let keys = keys_of(envelopes);
        match self.write_optimistically(envelopes, &keys).await? {
            Some(OptimisticWrite { answers, unverified }) if unverified.is_empty() => Ok(answers),
            Some(OptimisticWrite { mut answers, unverified }) => {
                let again: Vec<&Envelope> =
                    unverified.iter().filter_map(|index| envelopes.get(*index).copied()).collect();
                let verified = self.write_under_locks(&again, keys_of(&again)).await?;
                for (index, answer) in unverified.into_iter().zip(verified) {
                    answers[index] = answer;
                }
                Ok(answers)
            }
            None => self.write_under_locks(envelopes, keys).await,
        }
    }

    /// Locks, loads, decides, writes.
    async fn write_under_locks(
        &mut self,
        envelopes: &[&Envelope],
        mut keys: KeySet,
    ) -> Result<Vec<Answer>, StoreError> {
        self.cache.add_cached_versions(&mut keys, Instant::now());
        let mut transaction = self.dependencies.store.begin().await?;
        let mut snapshot = transaction.load(&keys).await?;
        self.cache.fill_snapshot(&mut snapshot, &keys, Instant::now());
        let DecidedBatch { answers, changes, snapshot } = self.decide_all(envelopes, snapshot);
        if !changes.is_empty() {
            transaction.commit(&changes).await?;
            self.dependencies.signal.committed(changes.events);
        }
        self.cache.insert_locked(snapshot, Instant::now());
        Ok(answers)
    }

    /// Decides on cached states, or on states read without locks; the write checks their versions. None if the
    /// batch must lock first: a partition is not cached, a state is stale, a key is taken, or there is nothing
    /// to write.
    async fn write_optimistically(
        &mut self,
        envelopes: &[&Envelope],
        keys: &KeySet,
    ) -> Result<Option<OptimisticWrite>, StoreError> {
        let Some(ReadPlan { mut missing, maybe_stale }) = self.cache.plan_reads(keys, Instant::now()) else {
            return Ok(None);
        };
        if !maybe_stale.is_empty() {
            let stale = self.dependencies.store.stale_workspaces(&maybe_stale).await?;
            self.cache.evict(&stale);
            missing.extend(stale);
        }
        let read = if missing.is_empty() { HashMap::new() } else { self.dependencies.store.states(&missing).await? };
        if read.len() < missing.len() {
            return Ok(None);
        }
        let Some(snapshot) = self.cache.take_snapshot(keys, read, Instant::now()) else { return Ok(None) };
        let DecidedBatch { answers, mut changes, snapshot } = self.decide_all(envelopes, snapshot);
        if changes.is_empty() {
            return Ok(None);
        }
        let heads = match self.dependencies.store.write(&changes).await {
            Ok(heads) => heads,
            Err(StoreError::Conflict(reason)) => {
                tracing::debug!(reason, lane = self.lane, "an optimistic write was refused");
                self.cache.write_refused();
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        changes.renumber_events(&heads);
        let written = changes.commands.iter().map(|command| command.workspace_id).collect();
        self.cache.insert_written(snapshot.workspaces, &heads, &written, Instant::now());
        let unverified = unverified(envelopes, &answers, &changes);
        self.dependencies.signal.committed(changes.events);
        Ok(Some(OptimisticWrite { answers, unverified }))
    }

    fn decide_all(&self, envelopes: &[&Envelope], mut snapshot: Snapshot) -> DecidedBatch {
        snapshot.offered_plans = self.dependencies.offered_plans.borrow().clone();
        let latest = latest_received_at(&snapshot, self.max_clock_ahead);
        let mut batch = Batch::new(snapshot, &*self.dependencies.render, &*self.dependencies.events);
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
        DecidedBatch { answers, changes, snapshot }
    }
}

/// The indexes of the answered commands that have no row in the write.
fn unverified(envelopes: &[&Envelope], answers: &[Answer], changes: &ChangeSet) -> Vec<usize> {
    let written: HashSet<_> = changes.commands.iter().map(|command| command.command_id).collect();
    let commands = envelopes.iter().zip(answers).enumerate();
    let unverified =
        commands.filter(|(_, (envelope, answer))| answer.is_ok() && !written.contains(&envelope.message_id));
    unverified.map(|(index, _)| index).collect()
}

fn keys_of(envelopes: &[&Envelope]) -> KeySet {
    let mut keys = KeySet::default();
    for envelope in envelopes {
        envelope.add_keys(&mut keys);
    }
    keys
}
