//! The queue between the callers and a lane: a [`FairQueue`] that the lane can wait for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::batch_executor::Answer;
use super::config::EngineConfig;
use super::fair_queue::{FairQueue, Refused};
use super::reply::EngineError;
use crate::domain::commands::Envelope;
use crate::domain::ids::{Partition, WorkspaceId};

/// How many commands of one workspace a batch holds at most while others send commands too. A quiet workspace waits for
/// the rest of the batch in progress and for its own batch, so batches must be short, however much another one sends.
const MAX_TURNS: usize = 16;

/// How long after its last command a workspace counts as one that sends commands. Meanwhile the others' batches are
/// short, so that it need not wait for a long one when it comes again.
const RECENT: Duration = Duration::from_secs(10);

/// How long the last command of a backlog should wait at most, as far as the recent batches tell. What would wait
/// longer is refused when it comes, and not after it has waited.
const MAX_EXPECTED_WAIT: Duration = Duration::from_secs(2);

pub(super) struct QueuedCommand {
    pub envelope: Envelope,
    pub reply_to: oneshot::Sender<Answer>,
    pub queued_at: Instant,
}

impl QueuedCommand {
    pub(super) fn partition(&self) -> Partition {
        Partition::of(self.envelope.workspace_id)
    }
}

pub(super) struct CommandQueue {
    state: Mutex<State>,
    arrived: Notify,
}

struct State {
    max_batch: usize,
    waiting: FairQueue<QueuedCommand>,
    senders: RecentSenders,
    /// The moving average of the time of a batch.
    batch_time: Duration,
    is_closed: bool,
}

impl CommandQueue {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let state = State {
            max_batch: config.max_batch.max(1),
            waiting: FairQueue::new(config.queue_capacity.max(1)),
            senders: RecentSenders::default(),
            batch_time: Duration::ZERO,
            is_closed: false,
        };
        Self { state: Mutex::new(state), arrived: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, command: QueuedCommand) -> Result<(), EngineError> {
        let mut state = self.state();
        if state.is_closed {
            return Err(EngineError::Stopping);
        }
        let workspace_id = command.envelope.workspace_id;
        state.senders.record(workspace_id, command.queued_at);
        let max_backlog = max_backlog(state.expected_turns(command.queued_at), state.batch_time);
        state.waiting.push(workspace_id, command, max_backlog).map_err(|refused| match refused {
            Refused::Full => EngineError::Overloaded,
            Refused::OverShare => EngineError::OverShare,
        })?;
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for commands and takes the next batch. It is empty only if the queue is closed and empty. One lane may
    /// wait at a time.
    pub(super) async fn take(&self) -> Vec<QueuedCommand> {
        loop {
            let (taken, is_closed) = {
                let mut state = self.state();
                let (max_batch, max_turns) = (state.max_batch, state.max_turns(Instant::now()));
                (state.waiting.take(max_batch, max_turns), state.is_closed)
            };
            if !taken.is_empty() || is_closed {
                return taken;
            }
            // A notification between the look above and this wait is not lost: it ends the wait at once.
            self.arrived.notified().await;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.state().waiting.len()
    }

    pub(super) fn record_batch_time(&self, took: Duration) {
        let mut state = self.state();
        state.batch_time = (state.batch_time * 7 + took) / 8;
    }

    /// Refuses further commands; the waiting ones can still be taken.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.arrived.notify_one();
    }

    /// Closes the queue for a lane that has ended, so that nobody waits for it. Returns whether it was open.
    pub(super) fn abandon(&self) -> bool {
        let mut state = self.state();
        state.waiting.clear();
        !std::mem::replace(&mut state.is_closed, true)
    }
}

impl State {
    fn max_turns(&self, now: Instant) -> usize {
        if self.senders.are_several(now) { MAX_TURNS.min(self.max_batch) } else { self.max_batch }
    }

    /// How many turns a workspace gets in each batch, if all that have waiting commands go on.
    fn expected_turns(&self, now: Instant) -> usize {
        let even_share = self.max_batch / self.waiting.workspaces().max(1);
        self.max_turns(now).min(even_share.max(1))
    }
}

/// How many commands of one workspace are done within the longest expected wait, if it has that many turns in a batch
/// and a batch takes that long.
fn max_backlog(max_turns: usize, batch_time: Duration) -> usize {
    let batches = MAX_EXPECTED_WAIT.as_micros() / batch_time.as_micros().max(1);
    usize::try_from(batches).unwrap_or(usize::MAX).max(1).saturating_mul(max_turns)
}

/// Tells whether more than one workspace has sent commands lately.
#[derive(Debug, Default)]
struct RecentSenders {
    last: Option<WorkspaceId>,
    several_until: Option<Instant>,
}

impl RecentSenders {
    fn record(&mut self, workspace_id: WorkspaceId, now: Instant) {
        if self.last.replace(workspace_id).is_some_and(|last| last != workspace_id) {
            self.several_until = Some(now + RECENT);
        }
    }

    fn are_several(&self, now: Instant) -> bool {
        self.several_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_workspace_counts_as_a_sender_for_a_while_after_its_last_command() {
        let (mut senders, start) = (RecentSenders::default(), Instant::now());
        let (loud, quiet) = (WorkspaceId(Uuid::from_u128(1)), WorkspaceId(Uuid::from_u128(2)));
        senders.record(loud, start);
        senders.record(loud, start);
        assert!(!senders.are_several(start));
        senders.record(quiet, start);
        senders.record(loud, start + RECENT / 2);
        assert!(senders.are_several(start + RECENT));
        senders.record(loud, start + RECENT);
        assert!(!senders.are_several(start + RECENT * 2));
    }

    #[test]
    fn a_backlog_is_what_can_be_done_in_time() {
        for (batch_ms, batches) in [(1, 2000), (10, 200), (600, 3), (2000, 1), (60_000, 1)] {
            assert_eq!(max_backlog(16, Duration::from_millis(batch_ms)), batches * 16, "{batch_ms} ms");
        }
        assert!(max_backlog(16, Duration::ZERO) > 1_000_000, "nothing is known yet");
    }
}
