//! The dispatcher: gives ready jobs to the workers of this server that wait for them.
//!
//! One task serves all of them: so many workers that wait cost as little as one. It claims for several at once, and looks at a
//! queue that was empty after longer and longer pauses, unless this server makes a job of it ready.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::handle::{HandedOver, Inner, Leased, QueueError, Waiting};
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

/// A claim that is over, and those that it was for.
struct Done {
    seated: Vec<Waiting>,
    seats: usize,
    claimed: Claimed,
}

#[derive(Default)]
struct Dispatcher {
    /// Those that no claim is under way for. The first one has waited for the longest.
    waiting: VecDeque<Waiting>,
    looks: HashMap<Line, Look>,
    turns: BTreeMap<Runner, Turns<QueueName>>,
    /// One of each runner at most: with two, the queue whose turn it is would be passed over while it is claimed of.
    claims: JoinSet<Done>,
    /// The lines that are being claimed of.
    claiming: HashMap<task::Id, Line>,
    /// The lines that may have got jobs since the claim under way began.
    told: BTreeSet<Line>,
    is_closed: bool,
}

pub(super) async fn run(inner: Weak<Inner>, mut received: OwnedMutexGuard<mpsc::Receiver<Waiting>>) {
    let mut dispatcher = Dispatcher::default();
    let Some(mut draining) = inner.upgrade().map(|inner| inner.draining.subscribe()) else { return };
    loop {
        let signals = inner.upgrade().map(|inner| (Arc::clone(&inner.ready), inner.closing.clone()));
        let Some((ready, closing)) = signals else { return };
        let next = dispatcher.next_event();
        let done = tokio::select! {
            waiting = received.recv() => match waiting {
                Some(waiting) => {
                    dispatcher.waiting.push_back(waiting);
                    None
                }
                None => return,
            },
            names = ready.wait() => {
                dispatcher.look_at(&names);
                None
            }
            Some(done) = dispatcher.claims.join_next_with_id() => Some(done),
            _ = draining.changed() => None,
            () = closing.cancelled(), if !dispatcher.is_closed => {
                dispatcher.is_closed = true;
                None
            }
            () = sleep_until(next) => None,
        };
        while let Ok(waiting) = received.try_recv() {
            dispatcher.waiting.push_back(waiting);
        }
        let Some(inner) = inner.upgrade() else { return };
        match done {
            Some(Ok((id, done))) => dispatcher.hand_over(&inner, id, done),
            // A defect. Those that waited are told to ask again.
            Some(Err(error)) => drop(dispatcher.claiming.remove(&error.id())),
            None => {}
        }
        dispatcher.serve(&inner);
    }
}

impl Dispatcher {
    /// Begins claims for those that wait, as long as there are both.
    fn serve(&mut self, inner: &Arc<Inner>) {
        self.dismiss(inner);
        while let Some(line) = self.next_line() {
            let (seated, seats) = self.seat(inner, &line);
            self.told.remove(&line);
            let (inner, claimed_line) = (Arc::clone(inner), line.clone());
            let claim = async move {
                let claimed = inner.claim(&claimed_line, &seats).await.unwrap_or_else(|error| {
                    tracing::warn!(%error, queue = %claimed_line.0, "jobs could not be claimed; trying again");
                    Claimed::default()
                });
                Done { seated, seats: seats.len(), claimed }
            };
            self.claiming.insert(self.claims.spawn(claim).id(), line);
        }
    }

    /// When something is to be done, if nothing comes before.
    fn next_event(&self) -> Instant {
        let wanted = self.wanted();
        let looks = self.looks.iter().filter(|(line, _)| wanted.contains(line) && self.is_free(line.1));
        let looks = looks.map(|(_, look)| look.next);
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
        self.told.extend(self.claiming.values().filter(|(queue, _)| names.contains(queue)).cloned());
    }

    /// Answers those that have waited long enough or are drained, and forgets those that have gone away. Who was drained before it
    /// asked waits for no queue, and waits on: it does not ask again and again.
    fn dismiss(&mut self, inner: &Arc<Inner>) {
        let now = Instant::now();
        let draining = Arc::clone(&inner.draining.borrow());
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.reply.is_closed() {
                continue;
            }
            let is_drained = !waiting.queues.is_empty() && draining.contains(&waiting.worker_id);
            if self.is_closed || waiting.until <= now || is_drained {
                let _ = waiting.reply.send(HandedOver::new(Vec::new(), inner));
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    /// The line that is wanted, to be looked at, and whose turn it is.
    fn next_line(&mut self) -> Option<Line> {
        let now = Instant::now();
        let is_due = |line: &Line| self.looks.get(line).is_none_or(|look| look.next <= now);
        let due: Vec<_> = self.wanted().into_iter().filter(|line| is_due(line) && self.is_free(line.1)).collect();
        let runner = due.first()?.1;
        let names = due.into_iter().filter(|line| line.1 == runner).map(|(queue, _)| queue);
        Some((self.turns.entry(runner).or_default().next(names)?, runner))
    }

    fn is_free(&self, runner: Runner) -> bool {
        self.claiming.values().all(|(_, claiming)| *claiming != runner)
    }

    /// Takes out those that want jobs of the line, with a place for each job.
    fn seat(&mut self, inner: &Inner, line: &Line) -> (Vec<Waiting>, Vec<Seat>) {
        let (mut seated, mut seats) = (Vec::new(), Vec::new());
        for waiting in std::mem::take(&mut self.waiting) {
            if !wants(&waiting, line) || seats.len() >= MAX_SEATS {
                self.waiting.push_back(waiting);
                continue;
            }
            let room = waiting.most.min(MAX_SEATS - seats.len());
            let worker_id = waiting.worker_id;
            seats.extend((0..room).map(|_| Seat { worker_id, lease_id: LeaseId(inner.parts.clock.new_id()) }));
            seated.push(waiting);
        }
        (seated, seats)
    }

    /// Answers those that have got jobs; the others go on waiting. What nobody takes any more is given back.
    fn hand_over(&mut self, inner: &Arc<Inner>, id: task::Id, Done { seated, seats, claimed }: Done) {
        let Some(line) = self.claiming.remove(&id) else { return };
        let count = claimed.leased.len();
        let weight = inner.settings.borrow().get(&line.0).map_or(1, |settings| settings.weight);
        self.turns.entry(line.1).or_default().took(&line.0, u64::try_from(count).unwrap_or_default(), weight);
        let may_have_more = (count > 0 && count == seats) || claimed.has_set_aside || self.told.contains(&line);
        self.look_again(line, count > 0, may_have_more, inner.share());

        let mut by_worker: HashMap<_, VecDeque<Leased>> = HashMap::new();
        for leased in claimed.leased {
            by_worker.entry(leased.lease.worker_id).or_default().push_back(leased);
        }
        let mut unserved = VecDeque::new();
        for waiting in seated {
            match by_worker.get_mut(&waiting.worker_id).filter(|jobs| !jobs.is_empty()) {
                Some(jobs) => {
                    let own = jobs.drain(..waiting.most.min(jobs.len())).collect();
                    // What is not taken is given back.
                    let _ = waiting.reply.send(HandedOver::new(own, inner));
                }
                None => unserved.push_back(waiting),
            }
        }
        unserved.append(&mut self.waiting);
        self.waiting = unserved;
        drop(HandedOver::new(by_worker.into_values().flatten().collect(), inner));
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
            let settings = found.settings(queue).map(|settings| settings.for_runner(*runner));
            let Some(settings) = settings else { return JobChanges::default() };
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
