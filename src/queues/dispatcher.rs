//! The dispatcher: gives ready jobs to the workers of this server that wait for them.
//!
//! One task serves all of them: so many workers that wait cost as little as one. It claims for several at once, and looks at a
//! queue that was empty after longer and longer pauses, unless this server makes a job of it ready.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::ends::{EndOfJob, JobEnd};
use super::handle::{Inner, Leased, QueueError, Waiting};
use crate::domain::ids::LeaseId;
use crate::domain::jobs::{JobChanges, JobState, Runner, Seat, Turns};
use crate::domain::text::QueueName;
use crate::store::jobs::JobSelection;

/// The pauses between two looks at an empty queue.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How many jobs one claim takes.
const MAX_SEATS: usize = 128;

/// The jobs of a queue that workers, or this server, can run.
type Line = (QueueName, Runner);

/// When a line is looked at again.
#[derive(Clone, Copy, Debug)]
struct Look {
    next: Instant,
    pause: Duration,
}

/// What one claim has found.
#[derive(Default)]
struct Claimed {
    leased: Vec<Leased>,
    /// Whether jobs were set aside: there may be others behind them.
    has_set_aside: bool,
}

#[derive(Default)]
struct Dispatcher {
    /// The first one has waited for the longest.
    waiting: VecDeque<Waiting>,
    looks: HashMap<Line, Look>,
    turns: Turns<Line>,
}

pub(super) async fn run(inner: Weak<Inner>, mut received: mpsc::Receiver<Waiting>) {
    let mut dispatcher = Dispatcher::default();
    loop {
        let Some(ready) = inner.upgrade().map(|inner| Arc::clone(&inner.ready)) else { return };
        let next = dispatcher.next_event();
        tokio::select! {
            waiting = received.recv() => match waiting {
                Some(waiting) => dispatcher.waiting.push_back(waiting),
                None => return,
            },
            names = ready.wait() => dispatcher.look_at(&names),
            () = sleep_until(next) => {}
        }
        while let Ok(waiting) = received.try_recv() {
            dispatcher.waiting.push_back(waiting);
        }
        let Some(inner) = inner.upgrade() else { return };
        dispatcher.serve(&inner).await;
    }
}

impl Dispatcher {
    /// Gives jobs to those that wait, as long as there are both.
    async fn serve(&mut self, inner: &Arc<Inner>) {
        loop {
            self.dismiss();
            let Some(line) = self.next_line() else { return };
            let seats = self.seats(inner, &line);
            let settings = inner.settings.borrow().get(&line.0).cloned();
            let claimed = inner.claim(&line, &seats.values().copied().collect::<Vec<_>>()).await;
            let claimed = claimed.unwrap_or_else(|error| {
                tracing::warn!(%error, queue = %line.0, "jobs could not be claimed; trying again");
                Claimed::default()
            });
            let count = claimed.leased.len();
            let is_full = count > 0 && count == seats.len();
            self.turns.took(&line, u64::try_from(count).unwrap_or_default(), settings.map_or(1, |of| of.weight));
            self.look_again(line.clone(), count > 0, is_full || claimed.has_set_aside, inner.share());
            self.hand_over(inner, &line, claimed.leased, &seats);
        }
    }

    /// When something is to be done, if nothing comes before.
    fn next_event(&self) -> Instant {
        let wanted = self.wanted();
        let looks = self.looks.iter().filter(|(line, _)| wanted.contains(line)).map(|(_, look)| look.next);
        let ends = self.waiting.iter().map(|waiting| waiting.until);
        looks.chain(ends).min().unwrap_or_else(|| Instant::now() + LAST_PAUSE)
    }

    fn wanted(&self) -> BTreeSet<Line> {
        let lines = |waiting: &Waiting| {
            let runner = waiting.runner;
            waiting.queues.iter().map(move |queue| (queue.clone(), runner)).collect::<Vec<_>>()
        };
        self.waiting.iter().flat_map(lines).collect()
    }

    /// This server has made jobs of these queues ready.
    fn look_at(&mut self, names: &BTreeSet<QueueName>) {
        self.looks.retain(|(queue, _), _| !names.contains(queue));
    }

    /// Answers those that have waited long enough, and forgets those that have gone away.
    fn dismiss(&mut self) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.reply.is_closed() {
                continue;
            }
            if waiting.until <= now {
                let _ = waiting.reply.send(Vec::new());
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    /// The line that is wanted, to be looked at, and whose turn it is.
    fn next_line(&self) -> Option<Line> {
        let now = Instant::now();
        let is_due = |line: &Line| self.looks.get(line).is_none_or(|look| look.next <= now);
        self.turns.next(self.wanted().into_iter().filter(is_due))
    }

    /// A place for each job that is wanted of the line, by the waiting one that gets it.
    fn seats(&self, inner: &Inner, line: &Line) -> BTreeMap<LeaseId, Seat> {
        let workers = self.waiting.iter().filter(|waiting| wants(waiting, line));
        let workers = workers.flat_map(|waiting| std::iter::repeat_n(waiting.worker_id, waiting.most));
        let seat = |worker_id| {
            let lease_id = LeaseId(inner.parts.clock.new_id());
            (lease_id, Seat { worker_id, lease_id })
        };
        workers.take(MAX_SEATS).map(seat).collect()
    }

    fn look_again(&mut self, line: Line, has_found: bool, may_have_more: bool, share: f64) {
        if may_have_more {
            self.looks.remove(&line);
            return;
        }
        let last = self.looks.get(&line).map_or(Duration::ZERO, |look| look.pause);
        let pause = if has_found { FIRST_PAUSE } else { (last * 2).clamp(FIRST_PAUSE, LAST_PAUSE) };
        // Several servers do not look at the same time.
        let next = Instant::now() + pause.mul_f64(0.75 + share / 2.0);
        self.looks.insert(line, Look { next, pause });
    }

    /// Answers those that have got jobs. What nobody takes any more is given back.
    fn hand_over(&mut self, inner: &Arc<Inner>, line: &Line, leased: Vec<Leased>, seats: &BTreeMap<LeaseId, Seat>) {
        let mut by_worker: HashMap<_, VecDeque<Leased>> = HashMap::new();
        for leased in leased.into_iter().filter(|leased| seats.contains_key(&leased.lease.lease_id)) {
            by_worker.entry(leased.lease.worker_id).or_default().push_back(leased);
        }
        let mut left = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let jobs = by_worker.get_mut(&waiting.worker_id).filter(|jobs| !jobs.is_empty() && wants(&waiting, line));
            let Some(jobs) = jobs else {
                self.waiting.push_back(waiting);
                continue;
            };
            let own = jobs.drain(..waiting.most.min(jobs.len())).collect();
            left.extend(waiting.reply.send(own).err().unwrap_or_default());
        }
        left.extend(by_worker.into_values().flatten());
        if left.is_empty() {
            return;
        }
        let given_back = left.iter().map(|Leased { lease, .. }| EndOfJob {
            job_id: lease.job_id,
            lease_id: lease.lease_id,
            worker_id: Some(lease.worker_id),
            end: JobEnd::Release,
        });
        let (inner, given_back) = (Arc::clone(inner), given_back.collect());
        // If it cannot be written now, the leases end by themselves.
        tokio::spawn(async move { inner.end(given_back).await });
    }
}

fn wants(waiting: &Waiting, (queue, runner): &Line) -> bool {
    waiting.runner == *runner && waiting.queues.contains(queue)
}

impl Inner {
    async fn claim(&self, (queue, runner): &Line, seats: &[Seat]) -> Result<Claimed, QueueError> {
        let limit = u32::try_from(seats.len()).unwrap_or(u32::MAX);
        let which = JobSelection::Ready { queue: queue.clone(), runner: *runner, limit };
        let mut claimed = Claimed::default();
        self.change(&which, &mut |found| {
            let Some(settings) = found.settings(queue).cloned() else { return JobChanges::default() };
            let running = found.running.get(queue).cloned().unwrap_or_default();
            let changes = JobChanges::claim(found.jobs, seats, &settings, running, self.parts.clock.now());
            let jobs = changes.updated.iter().filter(|job| job.state == JobState::Running);
            let leased =
                jobs.zip(&changes.leases).map(|(job, lease)| Leased { job: job.clone(), lease: lease.clone() });
            let has_set_aside = changes.updated.iter().any(|job| job.state == JobState::Capped);
            claimed = Claimed { leased: leased.collect(), has_set_aside };
            changes
        })
        .await?;
        Ok(claimed)
    }
}
