//! What a lane remembers of its partitions, so that a steady batch is one write and no read.
//!
//! What a batch leaves is what the next one would load, for as long as nobody else writes to the
//! partition; and whoever does, raises its version. So everything here is true at the version of the
//! partition's head that stands beside it, and every use of it is checked against the database:
//! either the write is refused because the version has moved ([`crate::store::Store::write`]), or the
//! head was locked and read first.
//!
//! A partition that another replica writes to as well is remembered in vain: once that was seen, it is
//! locked and read first for a while.
//!
//! Deliberately absent: payments and the newest plans, which only rare commands ask for, and answers
//! to keys: the database refuses a key that is taken.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::snapshot::{KeySet, PartitionHead, Snapshot, WorkspaceState};
use crate::domain::time::Timestamp;

/// How many rows (features and grants count too) the states of one partition may have. A workspace of a
/// plan with five features has seven, and takes about two kilobytes: sixteen partitions hold 28,000.
const MAX_ROWS_PER_PARTITION: usize = 12_288;

/// How long a partition is locked and read first after another replica wrote to it.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// How long a partition is remembered that nothing is asked of. A database that was restored from a backup
/// could have come to the same version by another way; it takes longer than this, and who is at work
/// meanwhile loses its connection and forgets everything.
const REMEMBERED_WHEN_IDLE: Duration = Duration::from_secs(5);

/// How long the database's clock is told from the last look at it. This machine's clock may have been
/// set since, but the time that has passed is told by one that cannot be.
const CLOCK_TRUSTED_FOR: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(super) struct Memory {
    partitions: BTreeMap<Partition, Remembered>,
    /// The database's clock as it was last read, and when.
    clock: Option<(Timestamp, Instant)>,
}

/// One partition at one version. What is asked for moves from the old half to the young one; when that
/// is full it becomes the old one, and what nobody asked for meanwhile is forgotten.
#[derive(Debug)]
struct Remembered {
    head: PartitionHead,
    young: HashMap<WorkspaceId, WorkspaceState>,
    old: HashMap<WorkspaceId, WorkspaceState>,
    young_rows: usize,
    /// When its version was last checked.
    checked_at: Instant,
    shared_until: Option<Instant>,
}

impl Memory {
    /// Which states are to be read before the keys can be answered from memory. None when locks must be
    /// taken first: a partition is not remembered, another replica writes to it, or the keys ask for
    /// more than states.
    pub(super) fn missing(&mut self, keys: &KeySet, now: Instant) -> Option<Vec<WorkspaceId>> {
        if !(keys.payments.is_empty() && keys.plans.is_empty()) {
            return None;
        }
        self.forget_idle(now);
        self.database_now(now)?;
        let mut missing = Vec::new();
        for id in &keys.workspaces {
            let remembered = self.partitions.get(&Partition::of(*id)).filter(|remembered| remembered.is_own(now))?;
            if !remembered.has(*id) {
                missing.push(*id);
            }
        }
        Some(missing)
    }

    /// All that the keys ask for. What is handed out is forgotten here, until it is kept again.
    ///
    /// What was missing was read without a lock, after the version that is remembered: if nobody has
    /// changed that when the batch is written, nobody had when the states were read.
    pub(super) fn recall(
        &mut self,
        keys: &KeySet,
        mut read: HashMap<WorkspaceId, WorkspaceState>,
        now: Instant,
    ) -> Option<Snapshot> {
        let mut snapshot = Snapshot { database_now: self.database_now(now)?, ..Snapshot::default() };
        for id in &keys.workspaces {
            let remembered = self.partitions.get_mut(&Partition::of(*id))?;
            snapshot.heads.insert(remembered.head.partition, remembered.head);
            snapshot.workspaces.insert(*id, remembered.take(*id).or_else(|| read.remove(id))?);
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
        *self = Self::default();
    }

    /// Tells the keys which workspaces need not be read if their partition is still at that version.
    pub(super) fn add_known(&mut self, keys: &mut KeySet, now: Instant) {
        self.forget_idle(now);
        for id in &keys.workspaces {
            let remembered = self.partitions.get(&Partition::of(*id)).filter(|remembered| remembered.has(*id));
            keys.known.extend(remembered.map(|remembered| (*id, remembered.head.version)));
        }
    }

    /// Adds what was not read because it is known, and forgets what somebody else has changed.
    pub(super) fn complete(&mut self, snapshot: &mut Snapshot, keys: &KeySet, now: Instant) {
        self.clock = snapshot.database_now.map(|read| (read, now));
        for (partition, head) in &snapshot.heads {
            let Some(remembered) = self.partitions.get_mut(partition) else { continue };
            if remembered.head.version != head.version {
                *remembered = Remembered::new(*head, now);
                remembered.shared_until = Some(now + SHARED_FOR);
            }
        }
        for id in keys.known.keys() {
            let known = self.partitions.get_mut(&Partition::of(*id)).and_then(|remembered| remembered.take(*id));
            if let Some(state) = known {
                snapshot.workspaces.entry(*id).or_insert(state);
            }
        }
    }

    /// Keeps what a batch left: it is what the next one would read.
    pub(super) fn keep(&mut self, snapshot: Snapshot, now: Instant) {
        for (partition, head) in snapshot.heads {
            let remembered = self.partitions.entry(partition).or_insert_with(|| Remembered::new(head, now));
            (remembered.head, remembered.checked_at) = (head, now);
        }
        for (id, state) in snapshot.workspaces {
            if let Some(remembered) = self.partitions.get_mut(&Partition::of(id)) {
                remembered.put(id, state);
            }
        }
    }
}

impl Remembered {
    fn new(head: PartitionHead, now: Instant) -> Self {
        Self { head, young: HashMap::new(), old: HashMap::new(), young_rows: 0, checked_at: now, shared_until: None }
    }

    fn is_own(&self, now: Instant) -> bool {
        self.shared_until.is_none_or(|until| until <= now)
    }

    fn has(&self, id: WorkspaceId) -> bool {
        self.young.contains_key(&id) || self.old.contains_key(&id)
    }

    fn take(&mut self, id: WorkspaceId) -> Option<WorkspaceState> {
        let young = self.young.remove(&id);
        self.young_rows -= young.as_ref().map_or(0, rows);
        young.or_else(|| self.old.remove(&id))
    }

    fn put(&mut self, id: WorkspaceId, state: WorkspaceState) {
        let rows = rows(&state);
        if self.young_rows + rows > MAX_ROWS_PER_PARTITION / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_rows = 0;
        }
        self.young_rows += rows;
        self.young.insert(id, state);
    }
}

fn rows(state: &WorkspaceState) -> usize {
    1 + state.features.len() + state.grants.len()
}
