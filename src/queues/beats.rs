//! Heartbeats: those of all workers of this server are one transaction now and then.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, mpsc};

use super::handle::{Beating, Inner, QueueError};
use crate::domain::jobs::{BeatAnswer, LeaseChanges, QueueSettings, WorkerBeat};
use crate::store::StoreError;

/// How long the first heartbeat waits for others. A lease lasts many times as long.
const GATHER: Duration = Duration::from_millis(500);
/// How many heartbeats are taken together.
const MAX_BEATS: usize = 1024;
/// How often they are taken again if another transaction was in the way.
const MAX_CONFLICTS: usize = 3;

pub(super) async fn run(inner: Weak<Inner>, mut received: OwnedMutexGuard<mpsc::Receiver<Beating>>) {
    while let Some(first) = received.recv().await {
        tokio::time::sleep(GATHER).await;
        let mut beating = vec![first];
        while beating.len() < MAX_BEATS
            && let Ok(next) = received.try_recv()
        {
            beating.push(next);
        }
        let Some(inner) = inner.upgrade() else { return };
        let (beats, replies): (Vec<_>, Vec<_>) = beating.into_iter().map(|one| (one.beat, one.reply)).unzip();
        let answers = inner.take_beats(&beats).await;
        inner.let_go(&beats);
        for (place, reply) in replies.into_iter().enumerate() {
            let answer = match &answers {
                Ok(answers) => answers.get(place).cloned().ok_or(QueueError::Failed),
                Err(error) => Err(*error),
            };
            let _ = reply.send(answer);
        }
    }
}

impl Inner {
    /// Those of these that take no more jobs need not wait for them. The other servers hear of it when they read it.
    fn let_go(&self, beats: &[WorkerBeat]) {
        let draining: Vec<_> = beats.iter().filter(|beat| beat.is_draining).map(|beat| beat.worker_id).collect();
        if !draining.is_empty() {
            self.draining.send_modify(|all| Arc::make_mut(all).extend(draining));
        }
    }

    async fn take_beats(&self, beats: &[WorkerBeat]) -> Result<Vec<BeatAnswer>, QueueError> {
        let jobs: Vec<_> = beats.iter().flat_map(|beat| beat.leases.iter().map(|lease| lease.job_id)).collect();
        let workers: Vec<_> = beats.iter().map(|beat| beat.worker_id).collect();
        let (settings, now) = (self.settings.borrow().clone(), self.parts.clock.now());
        let mut answers = Vec::new();
        let mut decide = |found| {
            let lease_of = |queue: &_| settings.get(queue).map(QueueSettings::lease);
            let (changes, told) = LeaseChanges::beat(found, beats, lease_of, now);
            answers = told;
            changes
        };
        let mut conflicts = 0;
        loop {
            match self.parts.jobs.change_leases(&jobs, &workers, &mut decide).await {
                Ok(()) => return Ok(answers),
                Err(StoreError::Conflict(_)) if conflicts < MAX_CONFLICTS => conflicts += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
