//! The loop of the consumers: leases, beats, and what happens when a beat fails.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::config::ConsumersConfig;
use super::measure;
use super::positions::Positions;
use super::reader::Reader;
use super::step::{Replay, Step, by_step};
use super::wakeup::Wakeup;
use crate::clock::Clock;
use crate::domain::consumers::{Build, ConsumerKeys, ConsumerRows, ConsumerState, Fact, Fault, keys};
use crate::domain::ids::{Partition, WorkspaceId};
use crate::store::consumers::Advance;
use crate::store::queries::EventPosition;
use crate::store::{Consumption, StoreError};
use crate::telemetry;

/// How often everything is read again: what other replicas and operators have changed.
const REFRESH: Duration = Duration::from_secs(1);
/// How often a lease is renewed within its lifetime.
const RENEWALS_PER_TTL: u32 = 3;
/// How long releasing the leases may take when the server stops.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// The fewest events that one beat reads of a partition.
const MIN_EVENTS: u32 = 16;
/// How many workspaces may be parked within [`PARKING_WINDOW`] before the consumer is tripped.
const MAX_PARKED: usize = 20;
const PARKING_WINDOW: chrono::TimeDelta = chrono::TimeDelta::minutes(5);
/// A cursor that stands still for so long while there are events is moved whoever has leased the partition, and a workspace
/// that is to be tried again for so long is tried: the owner may be an older server that cannot do it, or one that hangs.
const STALLED: Duration = Duration::from_secs(5);
/// The first and the longest pause after a failure. There is no last attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

pub(super) struct Runner {
    store: Arc<dyn Consumption>,
    clock: Arc<dyn Clock>,
    wakeup: Wakeup,
    config: ConsumersConfig,
    owner: String,
    leased: BTreeSet<Partition>,
    positions: Positions,
    reader: Reader,
    heads: BTreeMap<Partition, i64>,
    /// Where a build met an event that is newer than this version of the server: it does not look there again.
    newer_at: HashMap<(Partition, Build), i64>,
    /// Where each build that is behind was first seen where it is now, and when.
    seen_at: HashMap<(Partition, Build), (i64, Instant)>,
    /// Parked workspaces that are to be tried again now.
    replays: VecDeque<(Partition, Build, WorkspaceId)>,
    next_lease: Instant,
    next_refresh: Instant,
    /// How long to wait before looking for events of other servers.
    poll_pause: Duration,
}

/// What a turn has done.
enum Turn {
    /// Events were taken, in so much time.
    Busy(Duration),
    Idle,
}

impl Runner {
    pub(super) fn new(
        store: Arc<dyn Consumption>,
        clock: Arc<dyn Clock>,
        wakeup: Wakeup,
        config: ConsumersConfig,
    ) -> Self {
        let (owner, now) = (clock.new_id().to_string(), Instant::now());
        Self {
            store,
            clock,
            wakeup,
            config,
            owner,
            leased: BTreeSet::new(),
            positions: Positions::default(),
            reader: Reader::default(),
            heads: BTreeMap::new(),
            newer_at: HashMap::new(),
            seen_at: HashMap::new(),
            replays: VecDeque::new(),
            next_lease: now,
            next_refresh: now,
            poll_pause: REFRESH,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut backoff: Option<ExponentialBackoff> = None;
        loop {
            let begun = Instant::now();
            let turn = tokio::select! {
                () = stop.cancelled() => break,
                turn = self.turn() => turn,
            };
            let pause = match turn {
                Ok(Turn::Busy(transaction)) => {
                    self.poll_pause = self.config.first_poll.unwrap_or(REFRESH);
                    let pause = transaction * self.config.pause_factor;
                    pause.max(self.config.beat.saturating_sub(begun.elapsed()))
                }
                Ok(Turn::Idle) => {
                    let until_refresh = self.next_refresh.saturating_duration_since(Instant::now());
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = self.wakeup.wait() => {}
                        () = sleep(self.poll_pause.min(until_refresh)) => {}
                    }
                    self.poll_pause = (self.poll_pause * 2).min(REFRESH);
                    // Commits of one beat are taken together.
                    self.config.beat
                }
                Err(error) => {
                    if backoff.is_none() {
                        tracing::warn!(%error, "the consumers cannot go on; trying again");
                    }
                    self.forget();
                    let pauses = backoff.get_or_insert_with(pauses);
                    let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = sleep(pause) => continue,
                    }
                }
            };
            if backoff.take().is_some() {
                tracing::info!("the consumers go on");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(pause) => {}
            }
        }
        let released = timeout(RELEASE_TIMEOUT, self.store.release_consumer_leases(&self.owner)).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::warn!("the leases of the consumers could not be released; they expire");
        }
    }

    /// Reads everything again before the next step.
    fn forget(&mut self) {
        (self.next_lease, self.next_refresh) = (Instant::now(), Instant::now());
    }

    async fn turn(&mut self) -> Result<Turn, StoreError> {
        let now = Instant::now();
        if self.next_lease <= now {
            let leased = self.store.lease_consumers(&self.owner, self.config.lease_ttl).await?;
            self.leased = leased.into_iter().collect();
            self.next_lease = now + self.config.lease_ttl / RENEWALS_PER_TTL;
        }
        if self.next_refresh <= now {
            // Before it is done, because what it changes must be read again at once.
            self.next_refresh = now + REFRESH;
            self.refresh().await?;
        } else if self.config.first_poll.is_some() {
            self.look_for_events().await?;
        }
        let steps = self.next_steps().await?;
        if steps.is_empty() && self.replays.is_empty() {
            return Ok(Turn::Idle);
        }
        let begun = Instant::now();
        // After a conflict, the positions must be read again first.
        if steps.is_empty() || self.take(steps).await? {
            self.take_replays().await?;
        }
        measure::beat(begun.elapsed());
        Ok(Turn::Busy(begun.elapsed()))
    }

    async fn refresh(&mut self) -> Result<(), StoreError> {
        self.positions = Positions::read(&*self.store).await?;
        self.look_for_events().await?;
        self.note_standstills();
        self.note_replays();
        measure::report(&self.positions, &self.heads, &self.store.waiting_since().await?, self.clock.now());
        self.start_rebuilds().await?;
        self.switch_builds().await?;
        self.trip_consumers().await
    }

    async fn look_for_events(&mut self) -> Result<(), StoreError> {
        let heads = self.store.heads().await?;
        self.heads = heads.into_iter().map(|head| (head.partition, head.seq)).collect();
        Ok(())
    }

    fn note_standstills(&mut self) {
        let now = Instant::now();
        let mut seen_at = HashMap::new();
        for (partition, build, position) in
            self.positions.running().filter(|(partition, _, position)| position.seq < self.head(*partition))
        {
            let before = self.seen_at.get(&(partition, build)).filter(|(seq, _)| *seq == position.seq);
            seen_at.insert((partition, build), before.copied().unwrap_or((position.seq, now)));
        }
        self.seen_at = seen_at;
    }

    fn note_replays(&mut self) {
        let now = self.clock.now();
        let stalled = chrono::TimeDelta::from_std(STALLED).unwrap_or_default();
        let mut due: Vec<_> = Vec::new();
        for (partition, build, position) in self.positions.running() {
            let is_mine = self.leased.contains(&partition);
            let since = if is_mine { now } else { now.minus(stalled) };
            let parked = position.parked.values();
            let is_due = parked.filter_map(|parked| Some((parked.replay_at?, parked.workspace_id)));
            due.extend(is_due.filter(|(at, _)| *at <= since).map(|(at, id)| (at, partition, build, id)));
        }
        due.sort_unstable();
        self.replays = due.into_iter().map(|(_, partition, build, id)| (partition, build, id)).collect();
    }

    fn is_stalled(&self, partition: Partition, build: Build, position: i64) -> bool {
        let seen = self.seen_at.get(&(partition, build));
        seen.is_some_and(|(seq, since)| *seq == position && since.elapsed() >= STALLED)
    }

    /// The last known event of a partition.
    fn head(&self, partition: Partition) -> i64 {
        self.heads.get(&partition).copied().unwrap_or_default().max(self.wakeup.head(partition))
    }

    /// Reads the events after every position that is behind. Builds that are near to each other share a read, and are at one
    /// position after it: so one that is made catches up with the one in use.
    async fn next_steps(&mut self) -> Result<Vec<Step>, StoreError> {
        let mut behind: BTreeMap<Partition, BTreeMap<i64, Vec<Build>>> = BTreeMap::new();
        for (partition, build, position) in self.positions.running() {
            let is_newer = self.newer_at.get(&(partition, build)) == Some(&position.seq);
            let is_mine = self.leased.contains(&partition) || self.is_stalled(partition, build, position.seq);
            let is_behind = position.seq < self.head(partition);
            if is_mine && is_behind && !is_newer && self.reader.can_read(partition) {
                behind.entry(partition).or_default().entry(position.seq).or_default().push(build);
            }
        }
        let positions: usize = behind.values().map(BTreeMap::len).sum();
        let limit = self.config.max_events / u32::try_from(positions.max(1)).unwrap_or(u32::MAX);
        let limit = limit.max(MIN_EVENTS);
        let mut steps = Vec::new();
        while !behind.is_empty() {
            let first = |(partition, builds): (&Partition, &BTreeMap<i64, Vec<Build>>)| {
                builds.keys().next().map(|seq| EventPosition { partition: *partition, seq: *seq })
            };
            let after: Vec<_> = behind.iter().filter_map(first).collect();
            for (partition, facts) in self.reader.read(&*self.store, &after, limit).await? {
                let Some(mut near) = behind.remove(&partition) else { continue };
                let from = near.keys().next().copied().unwrap_or_default();
                let far = near.split_off(&(from + i64::from(limit)));
                if !far.is_empty() {
                    behind.insert(partition, far);
                }
                let of_builds =
                    near.into_iter().flat_map(|(seq, builds)| builds.into_iter().map(move |build| (seq, build)));
                let steps_of = of_builds.map(|(seq, build)| Step::new(build, partition, seq, &facts));
                steps.extend(steps_of.filter(|step| !step.facts.is_empty() || step.newer.is_some()));
            }
        }
        Ok(steps)
    }

    /// Takes the steps in one transaction. If the database refuses their rows, the event is found by halving. Returns whether
    /// all was taken: otherwise the positions must be read again.
    async fn take(&mut self, steps: Vec<Step>) -> Result<bool, StoreError> {
        let mut queue = VecDeque::from([steps]);
        while let Some(steps) = queue.pop_front() {
            let span = tracing::info_span!("consume", steps = steps.len());
            let events = steps.iter().flat_map(|step| step.facts.iter());
            telemetry::link(&span, events.filter_map(|fact| fact.event.traceparent.as_deref()));
            let written = match self.write(&steps, None).instrument(span).await {
                Err(StoreError::Corrupt(text)) => match halves(&steps) {
                    Some(halves) => {
                        halves.into_iter().rev().for_each(|half| queue.push_front(half));
                        Ok(())
                    }
                    None => self.write(&steps, Some(&Fault { class: Fault::REFUSED, text })).await,
                },
                written => written,
            };
            match written {
                Ok(()) => {}
                Err(StoreError::Conflict(text)) => {
                    tracing::debug!(text, "another replica has taken these events");
                    self.forget();
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Folds the steps and writes what comes of them. With `refused`, the database has refused the rows of the only event.
    async fn write(&mut self, steps: &[Step], refused: Option<&Fault>) -> Result<(), StoreError> {
        let mut wanted = ConsumerKeys::default();
        for step in steps {
            keys(step.build, &step.facts, &mut wanted);
        }
        let rows = by_step(self.store.consumer_rows(&wanted).await?);
        let (none, now) = (ConsumerRows::default(), self.clock.now());
        let advance = |step: &Step| {
            let rows = rows.get(&(step.build.version, step.partition)).unwrap_or(&none);
            step.fold(&self.positions, rows, refused, now)
        };
        let advances: Vec<Advance> = steps.iter().map(advance).collect::<Result<_, _>>()?;
        self.store.advance_consumers(&advances).await?;
        self.advanced(&advances);
        Ok(())
    }

    /// Takes events of parked workspaces that are to be tried again, as many as one beat may take.
    async fn take_replays(&mut self) -> Result<(), StoreError> {
        let mut left = self.config.max_events;
        while left > 0
            && let Some((partition, build, workspace_id)) = self.replays.front().copied()
        {
            let limit = left.max(MIN_EVENTS);
            let Some(step) = self.next_replay(partition, build, workspace_id, limit).await? else {
                self.replays.pop_front();
                continue;
            };
            left = left.saturating_sub(u32::try_from(step.facts.len()).unwrap_or(u32::MAX).max(MIN_EVENTS));
            if !self.take(vec![step]).await? {
                break;
            }
        }
        Ok(())
    }

    /// The next events of a parked workspace. None if it is no longer parked, or if a newer server must take them.
    async fn next_replay(
        &self,
        partition: Partition,
        build: Build,
        workspace_id: WorkspaceId,
        limit: u32,
    ) -> Result<Option<Step>, StoreError> {
        let Some(position) = self.positions.of_builds.get(&(partition, build)) else { return Ok(None) };
        let parked = position.parked.get(&workspace_id).filter(|parked| parked.replay_at.is_some());
        let Some(parked) = parked.copied() else { return Ok(None) };
        let Some(letter) = self.store.dead_letter(parked.dead_letter_id).await? else { return Ok(None) };
        let mut events = self.store.events_left_out(&parked, limit).await?;
        let is_full = events.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
        let is_last = !is_full || events.last().is_some_and(|event| event.seq > position.seq);
        events.retain(|event| event.seq <= position.seq);
        let facts: Arc<[Fact]> = events.into_iter().map(Fact::new).collect();
        Ok(Step::replay(build, position, Replay { parked, letter, is_last }, &facts))
    }

    /// Notes what was written.
    fn advanced(&mut self, advances: &[Advance]) {
        for advance in advances {
            let key = (advance.partition, advance.build);
            if let Some(event) = &advance.waiting_for {
                let (consumer, partition) = (advance.build.consumer.as_str(), advance.partition.number());
                tracing::warn!(consumer, partition, event, "the next event waits for a newer version of the server");
                self.newer_at.insert(key, advance.to);
            }
            if let Some((seq, _)) = self.seen_at.get_mut(&key) {
                // Its owner has not moved it since.
                *seq = advance.to;
            }
            let Some(position) = self.positions.of_builds.get_mut(&key) else { continue };
            (position.seq, position.last_event_id) = (advance.to, advance.last_event_id);
            position.epoch = advance.epoch_to;
            position.waiting_for.clone_from(&advance.waiting_for);
            position.parked.extend(advance.parked.iter().map(|parked| (parked.workspace_id, *parked)));
            advance.freed.iter().for_each(|workspace_id| _ = position.parked.remove(workspace_id));
            advance.letters.iter().for_each(measure::tell);
        }
        if advances.iter().any(|advance| advance.to > advance.from && !advance.parked.is_empty()) {
            // Before the next beat it is seen whether too many workspaces are parked.
            self.forget();
        }
        measure::count(advances);
    }

    /// Begins new builds where all are made by an older version of the server.
    async fn start_rebuilds(&mut self) -> Result<(), StoreError> {
        let outdated: Vec<_> = self.positions.consumers.values().filter(|one| one.is_outdated()).cloned().collect();
        for before in outdated {
            match self.store.start_rebuild(&before, self.clock.new_id(), self.clock.now()).await {
                Ok(()) => tracing::info!(consumer = before.consumer.as_str(), "the figures are made again"),
                Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
            self.forget();
        }
        Ok(())
    }

    /// Switches to builds that are as far as those in use, and leave no more workspaces out.
    async fn switch_builds(&mut self) -> Result<(), StoreError> {
        let building = self.positions.consumers.values().filter_map(|registered| {
            let in_use = Build { consumer: registered.consumer, version: registered.version };
            let building = Build { version: registered.building_version?, ..in_use };
            (registered.state == ConsumerState::Running).then_some((in_use, building))
        });
        let is_built = |(in_use, building): &(Build, Build)| {
            Partition::all().all(|partition| {
                let position = |build: &Build| self.positions.of_builds.get(&(partition, *build));
                position(building).zip(position(in_use)).is_some_and(|(new, old)| new.can_replace(old))
            })
        };
        let built: Vec<_> = building.filter(is_built).map(|(_, building)| building).collect();
        for build in built {
            self.store.switch_consumer(build).await?;
            tracing::info!(consumer = build.consumer.as_str(), version = build.version, "the new figures are in use");
            self.forget();
        }
        Ok(())
    }

    /// Stops consumers that cannot take the events of many workspaces: the fault is theirs.
    async fn trip_consumers(&mut self) -> Result<(), StoreError> {
        let since = self.clock.now().minus(PARKING_WINDOW);
        let mut parked: BTreeMap<Build, usize> = BTreeMap::new();
        for (_, build, position) in self.positions.running() {
            let Some(registered) = self.positions.consumers.get(&build.consumer) else { continue };
            // An operator who resumes it knows those that are parked already.
            let since = since.max(registered.changed_at);
            *parked.entry(build).or_default() += position.parked.values().filter(|parked| parked.since > since).count();
        }
        for (build, count) in parked.into_iter().filter(|(_, count)| *count > MAX_PARKED) {
            let reason = format!("the events of {count} workspaces could not be taken within five minutes");
            self.store.trip_consumer(build.consumer, &reason, self.clock.now()).await?;
            tracing::error!(consumer = build.consumer.as_str(), reason, "the consumer stands still");
            self.forget();
        }
        Ok(())
    }
}

fn pauses() -> ExponentialBackoff {
    let pauses = ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE);
    pauses.with_jitter().without_max_times().build()
}

/// Both halves of some steps, or of the events of a single one. None if it has one event.
fn halves(steps: &[Step]) -> Option<Vec<Vec<Step>>> {
    if let [step] = steps {
        return step.halves().map(|halves| halves.into_iter().map(|half| vec![half]).collect());
    }
    let (first, second) = steps.split_at(steps.len() / 2);
    Some(vec![first.to_vec(), second.to_vec()])
}
