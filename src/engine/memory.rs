//! What a lane remembers of its workspaces, so that a steady batch is one write and no read.
//!
//! What a batch leaves is what the next one would load, for as long as nobody else writes to the
//! workspace; and whoever does, raises the number of its last command. So every use of it is checked
//! against the database: either the write is refused because a workspace has moved on
//! ([`crate::store::Store::write`]), or its partition's head was locked and it was read first. What nothing is
//! written for is decided under the lock.
//!
//! That somebody else writes to a partition is seen from its version, which every write gives back: it has
//! then grown by more than one. For a while each batch asks first which of its workspaces have moved on,
//! and reads only those. Where two replicas keep writing to the same workspaces at once, locking first is
//! cheaper than being refused, and is done for a while.
//!
//! Deliberately absent: payments and the newest plans, which only rare commands ask for, and answers
//! to keys: the database refuses a key that is taken.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use hashlink::LinkedHashMap;

use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::partition_head::PartitionHead;
use crate::domain::snapshot::{KeySet, Snapshot, WorkspaceState};
use crate::domain::time::Timestamp;

/// What a state takes besides its rows, about: its place in a table that grows by doubling, and texts of its own.
const BYTES_BESIDES: usize = 128;

/// How long a partition's workspaces are asked for first after another replica wrote to it.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// How long a lane locks first after its writes were refused twice in a row; each further one doubles it.
const LOCK_FIRST_FOR: Duration = Duration::from_millis(50);
const MAX_DOUBLINGS: u32 = 4;

/// How long a partition is remembered that nothing is asked of. A database that was restored from a backup
/// could have come to the same version by another way; it takes longer than this, and who is at work
/// meanwhile loses its connection and forgets everything.
const REMEMBERED_WHEN_IDLE: Duration = Duration::from_secs(5);

/// How long the database's clock is told from the last look at it. This machine's clock may have been
/// set since, but the time that has passed is told by one that cannot be.
const CLOCK_TRUSTED_FOR: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Memory {
    /// How much the states of one partition may take, about.
    partition_bytes: usize,
    partitions: BTreeMap<Partition, Remembered>,
    /// The database's clock as it was last read, and when.
    clock: Option<(Timestamp, Instant)>,
    /// Whether the last write was refused, how many in a row were because somebody else came before them,
    /// and until when locking comes first.
    was_refused: bool,
    refusals: u32,
    lock_first_until: Option<Instant>,
}

/// One partition as it was last seen. When its states take too much, those are forgotten that nobody has asked
/// for the longest.
#[derive(Debug)]
struct Remembered {
    head: PartitionHead,
    /// The version from which on nobody else has written, as far as the versions told.
    own_since: i64,
    /// Those that were asked for last come last.
    states: LinkedHashMap<WorkspaceId, Seen>,
    bytes: usize,
    /// When its version was last checked.
    checked_at: Instant,
    shared_until: Option<Instant>,
}

/// A state, and the version of the partition that it was true at; [`UNSURE`] if that is not known.
#[derive(Debug)]
struct Seen {
    state: Box<WorkspaceState>,
    version: i64,
    /// How much memory it takes, about.
    bytes: usize,
}

const UNSURE: i64 = i64::MIN;

/// What is to be read, without locks, before a batch can be decided.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ToRead {
    /// These are not remembered.
    pub(super) missing: Vec<WorkspaceId>,
    /// These are, as of that last command, but somebody else may have written since.
    pub(super) unsure: Vec<(WorkspaceId, i64)>,
}

impl Memory {
    /// One whose states take about so many bytes for each partition.
    pub(super) fn new(partition_bytes: usize) -> Self {
        Self {
            partition_bytes,
            partitions: BTreeMap::new(),
            clock: None,
            was_refused: false,
            refusals: 0,
            lock_first_until: None,
        }
    }

    /// What is to be read before the keys can be answered. None when locks must be taken first: a
    /// partition is not remembered, writes without locks were refused lately, or the keys ask for more
    /// than states.
    pub(super) fn what_to_read(&mut self, keys: &KeySet, now: Instant) -> Option<ToRead> {
        if !(keys.payments.is_empty() && keys.plans.is_empty())
            || self.lock_first_until.is_some_and(|until| now < until)
        {
            return None;
        }
        self.forget_idle(now);
        self.database_now(now)?;
        let mut to_read = ToRead::default();
        for id in &keys.workspaces {
            let remembered = self.partitions.get(&Partition::of(*id))?;
            match remembered.states.get(id) {
                None => to_read.missing.push(*id),
                Some(seen) if remembered.is_shared(now) || !remembered.is_sure_of(seen) => {
                    to_read.unsure.push((*id, seen.state.credits.version));
                }
                Some(_) => {}
            }
        }
        Some(to_read)
    }

    /// Forgets these workspaces, to which somebody else has written.
    pub(super) fn evict(&mut self, stale: &[WorkspaceId]) {
        for id in stale {
            if let Some(remembered) = self.partitions.get_mut(&Partition::of(*id)) {
                remembered.take(*id);
            }
        }
    }

    /// All that the keys ask for. What is handed out is forgotten here, until it is kept again.
    pub(super) fn recall(
        &mut self,
        keys: &KeySet,
        mut read: HashMap<WorkspaceId, Box<WorkspaceState>>,
        now: Instant,
    ) -> Option<Snapshot> {
        let mut snapshot = Snapshot { database_now: self.database_now(now)?, ..Snapshot::default() };
        for id in &keys.workspaces {
            let remembered = self.partitions.get_mut(&Partition::of(*id))?;
            snapshot.heads.insert(remembered.head.partition, remembered.head);
            let state = remembered.take(*id).map(|seen| seen.state).or_else(|| read.remove(id))?;
            snapshot.workspaces.insert(*id, state);
        }
        Some(snapshot)
    }

    /// The database's clock now, if it has one of its own; `None` when it was not read lately.
    #[allow(clippy::option_option, reason = "whether it is known, and then whether there is one")]
    fn database_now(&self, now: Instant) -> Option<Option<Timestamp>> {
        let Some((read, at)) = self.clock else { return Some(None) };
        let passed = now.saturating_duration_since(at);
        let passed = (passed <= CLOCK_TRUSTED_FOR).then(|| chrono::TimeDelta::from_std(passed).ok())??;
        Some(Some(read.plus(passed)))
    }

    fn forget_idle(&mut self, now: Instant) {
        self.partitions.retain(|_, remembered| now.duration_since(remembered.checked_at) <= REMEMBERED_WHEN_IDLE);
    }

    /// Forgets everything: what became of the last write is not known, or who answers now.
    pub(super) fn forget(&mut self) {
        *self = Self::new(self.partition_bytes);
    }

    /// A write was refused. Whether somebody else came before it is seen when the heads are locked next.
    pub(super) fn refused(&mut self) {
        self.was_refused = true;
    }

    /// What locking showed of a write that was refused before, if one was.
    fn learn_from_refusal(&mut self, somebody_wrote: bool, now: Instant) {
        if !std::mem::take(&mut self.was_refused) {
            return;
        }
        self.refusals = if somebody_wrote { self.refusals + 1 } else { 0 };
        if let Some(doublings) = self.refusals.checked_sub(2) {
            self.lock_first_until = Some(now + LOCK_FIRST_FOR * (1 << doublings.min(MAX_DOUBLINGS)));
        }
    }

    /// Tells the keys which workspaces need not be read if their partition is still at that version.
    pub(super) fn add_known(&mut self, keys: &mut KeySet, now: Instant) {
        self.forget_idle(now);
        for id in &keys.workspaces {
            let Some(remembered) = self.partitions.get(&Partition::of(*id)) else { continue };
            if remembered.states.get(id).is_some_and(|seen| remembered.is_sure_of(seen)) {
                keys.known.insert(*id, remembered.head.version);
            }
        }
    }

    /// Adds what was not read because it is known, after the heads were locked.
    pub(super) fn complete(&mut self, snapshot: &mut Snapshot, keys: &KeySet, now: Instant) {
        self.clock = snapshot.database_now.map(|read| (read, now));
        let mut somebody_wrote = false;
        for (partition, head) in &snapshot.heads {
            if let Some(remembered) = self.partitions.get_mut(partition)
                && remembered.head.version != head.version
            {
                remembered.share(*head, now);
                somebody_wrote = true;
            }
        }
        self.learn_from_refusal(somebody_wrote, now);
        for (id, version) in &keys.known {
            let partition = Partition::of(*id);
            let known = self.partitions.get_mut(&partition).and_then(|remembered| remembered.take(*id));
            let is_true = snapshot.heads.get(&partition).is_some_and(|head| head.version == *version);
            if let Some(seen) = known.filter(|_| is_true) {
                snapshot.workspaces.entry(*id).or_insert(seen.state);
            }
        }
    }

    /// Keeps what a batch left that had locked its partitions: it is what the next one would read.
    pub(super) fn keep(&mut self, snapshot: Snapshot, now: Instant) {
        for (partition, head) in &snapshot.heads {
            let remembered = self.partitions.entry(*partition).or_insert_with(|| Remembered::new(*head, now));
            (remembered.head, remembered.checked_at) = (*head, now);
        }
        for (id, state) in snapshot.workspaces {
            if let Some(remembered) = self.partitions.get_mut(&Partition::of(id)) {
                let version = remembered.head.version;
                remembered.put(id, state, version, self.partition_bytes);
            }
        }
    }

    /// Keeps what a batch left that locked nothing, given the heads as its write left them and the
    /// workspaces that it wrote.
    pub(super) fn keep_written(
        &mut self,
        states: HashMap<WorkspaceId, Box<WorkspaceState>>,
        heads: &[PartitionHead],
        written: &HashSet<WorkspaceId>,
        now: Instant,
    ) {
        (self.refusals, self.lock_first_until) = (0, None);
        let mut own = BTreeSet::new();
        for head in heads {
            let Some(remembered) = self.partitions.get_mut(&head.partition) else { continue };
            if head.version == remembered.head.version + 1 {
                (remembered.head, remembered.checked_at) = (*head, now);
                own.insert(head.partition);
            } else {
                remembered.share(*head, now);
            }
        }
        for (id, state) in states {
            let partition = Partition::of(id);
            let Some(remembered) = self.partitions.get_mut(&partition) else { continue };
            let is_sure = own.contains(&partition) || written.contains(&id);
            let version = if is_sure { remembered.head.version } else { UNSURE };
            remembered.put(id, state, version, self.partition_bytes);
        }
    }
}

impl Remembered {
    fn new(head: PartitionHead, now: Instant) -> Self {
        let states = LinkedHashMap::new();
        Self { head, own_since: head.version, states, bytes: 0, checked_at: now, shared_until: None }
    }

    /// Somebody else has written to the partition. One that has gone back is that of another database: one
    /// that took over and lost the last writes.
    fn share(&mut self, head: PartitionHead, now: Instant) {
        if head.version < self.head.version {
            (self.states, self.bytes) = (LinkedHashMap::new(), 0);
        }
        (self.head, self.own_since, self.checked_at) = (head, head.version, now);
        self.shared_until = Some(now + SHARED_FOR);
    }

    fn is_shared(&self, now: Instant) -> bool {
        self.shared_until.is_some_and(|until| now < until)
    }

    /// Whether nobody else has written since it was seen, as far as the versions told.
    fn is_sure_of(&self, seen: &Seen) -> bool {
        seen.version >= self.own_since
    }

    fn take(&mut self, id: WorkspaceId) -> Option<Seen> {
        let seen = self.states.remove(&id)?;
        self.bytes -= seen.bytes;
        Some(seen)
    }

    /// One that alone takes more than all may is not kept.
    fn put(&mut self, id: WorkspaceId, mut state: Box<WorkspaceState>, version: i64, max_bytes: usize) {
        self.take(id);
        state.shrink();
        let bytes = state.bytes() + BYTES_BESIDES;
        if bytes > max_bytes {
            return;
        }
        while self.bytes + bytes > max_bytes
            && let Some((_, oldest)) = self.states.pop_front()
        {
            self.bytes -= oldest.bytes;
        }
        self.bytes += bytes;
        self.states.insert(id, Seen { state, version, bytes });
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::plan::tests::pro;
    use crate::domain::tests::World;

    fn remembered() -> Remembered {
        Remembered::new(PartitionHead::empty(Partition::new(0).unwrap()), Instant::now())
    }

    fn id(n: u128) -> WorkspaceId {
        WorkspaceId(Uuid::from_u128(n))
    }

    fn counted(remembered: &Remembered) -> usize {
        remembered.states.values().map(|seen| seen.state.bytes() + BYTES_BESIDES).sum()
    }

    #[test]
    fn what_was_not_asked_for_the_longest_is_forgotten_first() {
        let state = World::on(pro()).state().clone();
        let room = 3 * (state.bytes() + BYTES_BESIDES) + 1;
        let mut remembered = remembered();
        for n in [1, 2, 3, 1, 4] {
            remembered.put(id(n), Box::new(state.clone()), 0, room);
        }
        let ids: Vec<_> = remembered.states.keys().copied().collect();
        assert_eq!(ids, [id(3), id(1), id(4)]);
        assert_eq!(remembered.bytes, counted(&remembered));
        assert!(remembered.take(id(3)).is_some() && remembered.take(id(3)).is_none());
        assert_eq!(remembered.bytes, counted(&remembered));
    }

    #[test]
    fn a_state_that_grows_takes_the_room_of_others_and_one_that_is_too_large_takes_none() {
        let mut world = World::on(pro());
        let small = world.state().clone();
        for n in 0..40 {
            world.purchase("1", &format!("payment-{n}"));
        }
        let large = world.state().clone();
        assert!(large.bytes() > 5 * small.bytes());
        let mut remembered = remembered();
        let room = large.bytes() + small.bytes() + 2 * BYTES_BESIDES;
        for n in 1..=4 {
            remembered.put(id(n), Box::new(small.clone()), 0, room);
        }
        remembered.put(id(1), Box::new(large.clone()), 0, room);
        assert_eq!(remembered.states.keys().copied().collect::<Vec<_>>(), [id(4), id(1)]);
        assert_eq!(remembered.bytes, counted(&remembered));
        remembered.put(id(5), Box::new(large), 0, room / 2);
        assert!(remembered.states.get(&id(5)).is_none() && remembered.states.get(&id(4)).is_some());
        // What was closed leaves no room behind.
        let mut closed = remembered.take(id(1)).unwrap().state;
        closed.grants.truncate(1);
        remembered.put(id(1), closed, 0, room);
        assert!(remembered.states.get(&id(1)).unwrap().state.bytes() < 2 * small.bytes());
    }
}
