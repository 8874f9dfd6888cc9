//! The state cache of a lane: a steady batch needs no reads and one write.
//!
//! The state that a batch leaves is what the next batch would load, unless another replica writes to the
//! workspace. Each write increments the workspace's version, so every use of a cached state is checked in the
//! database: the write is refused if a version differs ([`crate::store::Store::write`]), or the partition's
//! head is locked and its version compared. Commands without a write are decided under the lock.
//!
//! The partition's version shows writes of other replicas: a write returns it, and it has then grown by more
//! than one. For a while, batches of that partition first ask which cached states are stale, and read only
//! those. Where two replicas keep writing to the same workspaces, taking locks first is cheaper than refused
//! writes, so the lane does that for a while.
//!
//! Deliberately absent: payments and the newest plans, which only rare commands need; which features exist, which the store
//! caches; and stored answers, because the database refuses a key that is taken.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use hashlink::LinkedHashMap;

use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::partition_head::PartitionHead;
use crate::domain::snapshot::{KeySet, Snapshot, WorkspaceState};
use crate::domain::time::Timestamp;

/// Approximate size of an entry beside its state: its slot in a table that doubles when full, and its texts.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// How long a partition counts as shared after another replica wrote to it.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// How long a lane locks first after two refused writes in a row. Each further refusal doubles it.
const LOCK_FIRST_FOR: Duration = Duration::from_millis(50);
const MAX_DOUBLINGS: u32 = 4;

/// How long an idle partition stays cached. A database restored from a backup could reach the same version
/// with other contents. A restore takes longer than this, and a busy lane loses its connection meanwhile and
/// clears its cache.
const IDLE_TTL: Duration = Duration::from_secs(5);

/// How long the database's clock is extrapolated from its last reading. The elapsed time comes from a
/// monotonic clock, because this machine's wall clock may be set.
const CLOCK_TTL: Duration = Duration::from_mins(1);

/// The version of a cached state that another replica may have changed. Lower than every real version.
const UNKNOWN_VERSION: i64 = i64::MIN;

#[derive(Debug)]
pub(super) struct StateCache {
    /// Approximate limit for the states of one partition.
    max_partition_bytes: usize,
    partitions: BTreeMap<Partition, CachedPartition>,
    /// The database's clock as last read, and when it was read.
    clock: Option<(Timestamp, Instant)>,
    /// Whether the last optimistic write was refused.
    was_refused: bool,
    /// Refusals in a row that another replica's write caused.
    refusals: u32,
    lock_first_until: Option<Instant>,
}

/// One partition as last seen. Its least recently used states are evicted first.
#[derive(Debug)]
struct CachedPartition {
    head: PartitionHead,
    /// The partition's version since which, as far as is known, only this lane has written.
    exclusive_since: i64,
    /// The most recently used come last.
    states: LinkedHashMap<WorkspaceId, CachedState>,
    bytes: usize,
    /// When the database last confirmed the version.
    checked_at: Instant,
    shared_until: Option<Instant>,
}

#[derive(Debug)]
struct CachedState {
    state: Box<WorkspaceState>,
    /// The partition's version at which the state was current, or [`UNKNOWN_VERSION`].
    partition_version: i64,
    /// Approximate size.
    bytes: usize,
}

/// What to read, without locks, before a batch can be decided.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ReadPlan {
    /// Workspaces that are not cached.
    pub(super) missing: Vec<WorkspaceId>,
    /// Cached workspaces, with their cached versions, that another replica may have written to.
    pub(super) maybe_stale: Vec<(WorkspaceId, i64)>,
}

impl StateCache {
    pub(super) fn new(max_partition_bytes: usize) -> Self {
        Self {
            max_partition_bytes,
            partitions: BTreeMap::new(),
            clock: None,
            was_refused: false,
            refusals: 0,
            lock_first_until: None,
        }
    }

    /// What to read before a batch with these keys can be decided without locks. None if it must lock first: a
    /// partition is not cached, writes were refused lately, or the keys need more than states.
    pub(super) fn plan_reads(&mut self, keys: &KeySet, now: Instant) -> Option<ReadPlan> {
        if !(keys.payments.is_empty() && keys.plans.is_empty())
            || self.lock_first_until.is_some_and(|until| now < until)
        {
            return None;
        }
        self.evict_idle(now);
        self.database_now(now)?;
        let mut plan = ReadPlan::default();
        for id in &keys.workspaces {
            let cached = self.partitions.get(&Partition::of(*id))?;
            match cached.states.get(id) {
                None => plan.missing.push(*id),
                Some(entry) if cached.is_shared(now) || !cached.is_current(entry) => {
                    plan.maybe_stale.push((*id, entry.state.credits.version));
                }
                Some(_) => {}
            }
        }
        Some(plan)
    }

    pub(super) fn evict(&mut self, stale: &[WorkspaceId]) {
        for id in stale {
            if let Some(cached) = self.partitions.get_mut(&Partition::of(*id)) {
                cached.remove(*id);
            }
        }
    }

    /// A snapshot for these keys from the cache and `read`. Its states leave the cache: the batch changes them
    /// and puts them back.
    pub(super) fn take_snapshot(
        &mut self,
        keys: &KeySet,
        mut read: HashMap<WorkspaceId, Box<WorkspaceState>>,
        now: Instant,
    ) -> Option<Snapshot> {
        let mut snapshot = Snapshot { database_now: self.database_now(now)?, ..Snapshot::default() };
        for id in &keys.workspaces {
            let cached = self.partitions.get_mut(&Partition::of(*id))?;
            snapshot.heads.insert(cached.head.partition, cached.head);
            let state = cached.remove(*id).map(|entry| entry.state).or_else(|| read.remove(id))?;
            snapshot.workspaces.insert(*id, state);
        }
        Some(snapshot)
    }

    /// The database's current time, if it has a clock of its own; `None` if the last reading is too old.
    #[allow(clippy::option_option, reason = "whether it is known, and then whether there is one")]
    fn database_now(&self, now: Instant) -> Option<Option<Timestamp>> {
        let Some((read, read_at)) = self.clock else { return Some(None) };
        let elapsed = now.saturating_duration_since(read_at);
        let elapsed = (elapsed <= CLOCK_TTL).then(|| chrono::TimeDelta::from_std(elapsed).ok())??;
        Some(Some(read.plus(elapsed)))
    }

    fn evict_idle(&mut self, now: Instant) {
        self.partitions.retain(|_, cached| now.duration_since(cached.checked_at) <= IDLE_TTL);
    }

    /// For after an error: neither the outcome of the last write nor the database that answers next is known.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.max_partition_bytes);
    }

    /// Notes that an optimistic write was refused. The next locked batch shows whether another replica wrote.
    pub(super) fn write_refused(&mut self) {
        self.was_refused = true;
    }

    fn update_lock_first(&mut self, has_other_writer: bool, now: Instant) {
        if !std::mem::take(&mut self.was_refused) {
            return;
        }
        self.refusals = if has_other_writer { self.refusals + 1 } else { 0 };
        if let Some(doublings) = self.refusals.checked_sub(2) {
            self.lock_first_until = Some(now + LOCK_FIRST_FOR * (1 << doublings.min(MAX_DOUBLINGS)));
        }
    }

    /// Tells the store which states it need not read if their partition still has the cached version.
    pub(super) fn add_cached_versions(&mut self, keys: &mut KeySet, now: Instant) {
        self.evict_idle(now);
        for id in &keys.workspaces {
            let Some(cached) = self.partitions.get(&Partition::of(*id)) else { continue };
            if cached.states.get(id).is_some_and(|entry| cached.is_current(entry)) {
                keys.cached_versions.insert(*id, cached.head.version);
            }
        }
    }

    /// Adds the cached states that the store did not read, now that the heads are locked.
    pub(super) fn fill_snapshot(&mut self, snapshot: &mut Snapshot, keys: &KeySet, now: Instant) {
        self.clock = snapshot.database_now.map(|read| (read, now));
        let mut has_other_writer = false;
        for (partition, head) in &snapshot.heads {
            if let Some(cached) = self.partitions.get_mut(partition)
                && cached.head.version != head.version
            {
                cached.mark_shared(*head, now);
                has_other_writer = true;
            }
        }
        self.update_lock_first(has_other_writer, now);
        for (id, version) in &keys.cached_versions {
            let partition = Partition::of(*id);
            let entry = self.partitions.get_mut(&partition).and_then(|cached| cached.remove(*id));
            let is_current = snapshot.heads.get(&partition).is_some_and(|head| head.version == *version);
            if let Some(entry) = entry.filter(|_| is_current) {
                snapshot.workspaces.entry(*id).or_insert(entry.state);
            }
        }
    }

    /// Caches the states after a batch that held the locks.
    pub(super) fn insert_locked(&mut self, snapshot: Snapshot, now: Instant) {
        for (partition, head) in &snapshot.heads {
            let cached = self.partitions.entry(*partition).or_insert_with(|| CachedPartition::new(*head, now));
            (cached.head, cached.checked_at) = (*head, now);
        }
        for (id, state) in snapshot.workspaces {
            if let Some(cached) = self.partitions.get_mut(&Partition::of(id)) {
                let version = cached.head.version;
                cached.insert(id, state, version, self.max_partition_bytes);
            }
        }
    }

    /// Caches the states after an optimistic write, given the heads that it returned and the workspaces that it
    /// wrote.
    pub(super) fn insert_written(
        &mut self,
        states: HashMap<WorkspaceId, Box<WorkspaceState>>,
        heads: &[PartitionHead],
        written: &HashSet<WorkspaceId>,
        now: Instant,
    ) {
        (self.refusals, self.lock_first_until) = (0, None);
        let mut exclusive = BTreeSet::new();
        for head in heads {
            let Some(cached) = self.partitions.get_mut(&head.partition) else { continue };
            if head.version == cached.head.version + 1 {
                (cached.head, cached.checked_at) = (*head, now);
                exclusive.insert(head.partition);
            } else {
                cached.mark_shared(*head, now);
            }
        }
        for (id, state) in states {
            let partition = Partition::of(id);
            let Some(cached) = self.partitions.get_mut(&partition) else { continue };
            let is_current = exclusive.contains(&partition) || written.contains(&id);
            let version = if is_current { cached.head.version } else { UNKNOWN_VERSION };
            cached.insert(id, state, version, self.max_partition_bytes);
        }
    }
}

impl CachedPartition {
    fn new(head: PartitionHead, now: Instant) -> Self {
        let states = LinkedHashMap::new();
        Self { head, exclusive_since: head.version, states, bytes: 0, checked_at: now, shared_until: None }
    }

    /// Another replica has written to the partition. A lower version means that another database took over and
    /// lost the last writes.
    fn mark_shared(&mut self, head: PartitionHead, now: Instant) {
        if head.version < self.head.version {
            (self.states, self.bytes) = (LinkedHashMap::new(), 0);
        }
        (self.head, self.exclusive_since, self.checked_at) = (head, head.version, now);
        self.shared_until = Some(now + SHARED_FOR);
    }

    fn is_shared(&self, now: Instant) -> bool {
        self.shared_until.is_some_and(|until| now < until)
    }

    /// Whether only this lane has written to the partition since the state was cached, as far as is known.
    fn is_current(&self, entry: &CachedState) -> bool {
        entry.partition_version >= self.exclusive_since
    }

    fn remove(&mut self, id: WorkspaceId) -> Option<CachedState> {
        let entry = self.states.remove(&id)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }

    /// Evicts others to make room. A state larger than `max_bytes` is not cached.
    fn insert(&mut self, id: WorkspaceId, mut state: Box<WorkspaceState>, partition_version: i64, max_bytes: usize) {
        self.remove(id);
        state.shrink();
        let bytes = state.bytes() + ENTRY_OVERHEAD_BYTES;
        if bytes > max_bytes {
            return;
        }
        while self.bytes + bytes > max_bytes
            && let Some((_, oldest)) = self.states.pop_front()
        {
            self.bytes -= oldest.bytes;
        }
        self.bytes += bytes;
        self.states.insert(id, CachedState { state, partition_version, bytes });
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::plan::tests::pro;
    use crate::domain::tests::World;

    fn empty_partition() -> CachedPartition {
        CachedPartition::new(PartitionHead::empty(Partition::new(0).unwrap()), Instant::now())
    }

    fn id(n: u128) -> WorkspaceId {
        WorkspaceId(Uuid::from_u128(n))
    }

    fn counted_bytes(cached: &CachedPartition) -> usize {
        cached.states.values().map(|entry| entry.state.bytes() + ENTRY_OVERHEAD_BYTES).sum()
    }

    #[test]
    fn evicts_least_recently_used() {
        let state = World::on(pro()).state().clone();
        let max_bytes = 3 * (state.bytes() + ENTRY_OVERHEAD_BYTES) + 1;
        let mut cached = empty_partition();
        for n in [1, 2, 3, 1, 4] {
            cached.insert(id(n), Box::new(state.clone()), 0, max_bytes);
        }
        let ids: Vec<_> = cached.states.keys().copied().collect();
        assert_eq!(ids, [id(3), id(1), id(4)]);
        assert_eq!(cached.bytes, counted_bytes(&cached));
        assert!(cached.remove(id(3)).is_some() && cached.remove(id(3)).is_none());
        assert_eq!(cached.bytes, counted_bytes(&cached));
    }

    #[test]
    fn a_growing_state_evicts_others_and_an_oversized_state_is_not_cached() {
        let mut world = World::on(pro());
        let small = world.state().clone();
        for n in 0..40 {
            world.purchase("1", &format!("payment-{n}"));
        }
        let large = world.state().clone();
        assert!(large.bytes() > 5 * small.bytes());
        let mut cached = empty_partition();
        let max_bytes = large.bytes() + small.bytes() + 2 * ENTRY_OVERHEAD_BYTES;
        for n in 1..=4 {
            cached.insert(id(n), Box::new(small.clone()), 0, max_bytes);
        }
        cached.insert(id(1), Box::new(large.clone()), 0, max_bytes);
        assert_eq!(cached.states.keys().copied().collect::<Vec<_>>(), [id(4), id(1)]);
        assert_eq!(cached.bytes, counted_bytes(&cached));
        cached.insert(id(5), Box::new(large), 0, max_bytes / 2);
        assert!(cached.states.get(&id(5)).is_none() && cached.states.get(&id(4)).is_some());
        // The memory of closed grants is freed.
        let mut closed = cached.remove(id(1)).unwrap().state;
        closed.grants.truncate(1);
        cached.insert(id(1), closed, 0, max_bytes);
        assert!(cached.states.get(&id(1)).unwrap().state.bytes() < 2 * small.bytes());
    }
}
