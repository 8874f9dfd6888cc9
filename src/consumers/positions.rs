//! How far the consumers are, as far as this process knows.
//!
//! It may be wrong at any time, because other replicas move positions too. A write with a wrong one is refused, and then
//! everything is read again.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::domain::consumers::{Build, Consumer, ConsumerState};
use crate::domain::dead_letter::ParkedWorkspace;
use crate::domain::ids::{EventId, Partition, WorkspaceId};
use crate::store::consumers::{ConsumerCursor, Registered};
use crate::store::{Consumption, StoreError};

/// Where one build stands in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) seq: i64,
    pub(super) last_event_id: Option<EventId>,
    pub(super) epoch: i64,
    /// The schema that it waits for, and does not have.
    pub(super) waiting_for: Option<String>,
    /// Workspaces that it leaves out.
    pub(super) parked: BTreeMap<WorkspaceId, ParkedWorkspace>,
}

#[derive(Debug, Default)]
pub(super) struct Positions {
    pub(super) consumers: HashMap<Consumer, Registered>,
    pub(super) of_builds: BTreeMap<(Partition, Build), Position>,
    /// Events that operators have discarded.
    pub(super) discarded: HashSet<(Consumer, EventId)>,
}

impl Positions {
    /// Reads them. A workspace that is parked meanwhile moves the cursor, and one that is tried again raises its epoch, so a
    /// write is refused then.
    pub(super) async fn read(store: &dyn Consumption) -> Result<Self, StoreError> {
        let consumers = store.consumers().await?;
        let cursors = store.consumer_cursors().await?;
        let mut positions = Self {
            consumers: consumers.into_iter().map(|registered| (registered.consumer, registered)).collect(),
            of_builds: cursors
                .into_iter()
                .map(|cursor| ((cursor.partition, cursor.build), Position::of(cursor)))
                .collect(),
            discarded: HashSet::new(),
        };
        for parked in store.parked_workspaces().await? {
            let build = Build { consumer: parked.consumer, version: parked.version };
            if let Some(position) = positions.of_builds.get_mut(&(parked.partition, build)) {
                position.parked.insert(parked.workspace_id, parked);
            }
        }
        // Last, so that it has every event that has set one of these workspaces free.
        positions.discarded = store.discarded_events().await?;
        Ok(positions)
    }

    /// Whether events are folded for this build now.
    pub(super) fn is_running(&self, build: Build) -> bool {
        let Some(registered) = self.consumers.get(&build.consumer) else { return false };
        registered.state == ConsumerState::Running && registered.folds(build.version)
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (Partition, Build, &Position)> {
        let running = self.of_builds.iter().filter(|((_, build), _)| self.is_running(*build));
        running.map(|((partition, build), position)| (*partition, *build, position))
    }
}

impl Position {
    /// Whether nobody misses anything of the other build who reads this one instead.
    pub(super) fn can_replace(&self, other: &Self) -> bool {
        self.seq >= other.seq && self.parked.keys().all(|workspace_id| other.parked.contains_key(workspace_id))
    }

    fn of(cursor: ConsumerCursor) -> Self {
        Self {
            seq: cursor.seq,
            last_event_id: cursor.last_event_id,
            epoch: cursor.epoch,
            waiting_for: cursor.waiting_for,
            parked: BTreeMap::new(),
        }
    }
}
