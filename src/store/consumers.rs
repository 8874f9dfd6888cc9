//! The store as the consumers of this server see it.
//!
//! A build's rows of a partition are written only together with its cursor, and a cursor moves only from where it was when
//! the rows were made. So rows that were read before are still right when they are written, without any lock.

use super::columns::{Fields, Stored, Value};
use super::error::StoreError;
use crate::domain::consumers::{Build, Consumer, ConsumerRows, ConsumerState};
use crate::domain::dead_letter::{DeadLetter, ParkedWorkspace};
use crate::domain::ids::{EventId, Partition, WorkspaceId};
use crate::domain::time::Timestamp;

/// A consumer, and its builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    pub consumer: Consumer,
    /// The build whose figures are read.
    pub version: i32,
    /// The version of the fold that makes them.
    pub fold_version: i32,
    pub building_version: Option<i32>,
    pub building_fold_version: Option<i32>,
    pub state: ConsumerState,
    pub reason: Option<String>,
    pub changed_by: Option<String>,
    pub changed_at: Timestamp,
}

impl Registered {
    pub(super) fn read(mut row: Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            consumer: row.next()?,
            version: row.next()?,
            fold_version: row.next()?,
            building_version: row.next()?,
            building_fold_version: row.next()?,
            state: row.next()?,
            reason: row.next()?,
            changed_by: row.next()?,
            changed_at: row.next()?,
        })
    }

    /// The consumer after a rebuild has begun by this version of the server. `used` is the highest version of a build so far.
    #[must_use]
    pub fn rebuilding(&self, used: i32) -> Self {
        Self {
            building_version: Some(used.max(self.version).saturating_add(1)),
            building_fold_version: Some(self.consumer.fold_version()),
            ..self.clone()
        }
    }

    /// Whether all its builds are made by folds that are older than this version of the server.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.building_fold_version.unwrap_or(self.fold_version) < self.consumer.fold_version()
    }

    /// What is kept of it in the record of a change.
    #[must_use]
    pub fn told(&self) -> String {
        let Self { state, version, building_version, .. } = self;
        let told = match building_version {
            Some(building) => serde_json::json!({"state": state, "version": version, "building_version": building}),
            None => serde_json::json!({"state": state, "version": version}),
        };
        told.to_string()
    }

    /// Whether this version of the server makes rows of that build. Another version may fold otherwise.
    #[must_use]
    pub fn folds(&self, version: i32) -> bool {
        let fold_version = if version == self.version {
            Some(self.fold_version)
        } else {
            self.building_fold_version.filter(|_| self.building_version == Some(version))
        };
        fold_version == Some(self.consumer.fold_version())
    }
}

/// Where a build is in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerCursor {
    pub build: Build,
    pub partition: Partition,
    /// The last event that was taken.
    pub seq: i64,
    pub last_event_id: Option<EventId>,
    /// Raised when a workspace is tried again.
    pub epoch: i64,
    /// The type and the schema version of the next event, if this server does not know it.
    pub waiting_for: Option<String>,
    pub updated_at: Timestamp,
}

impl ConsumerCursor {
    pub(super) fn read(mut row: Fields<'_>) -> Result<Self, StoreError> {
        Self::take(&mut row)
    }

    pub(super) fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            build: Build { consumer: row.next()?, version: row.next()? },
            partition: row.next()?,
            seq: row.next()?,
            last_event_id: row.next()?,
            epoch: row.next()?,
            waiting_for: row.next()?,
            updated_at: row.next()?,
        })
    }
}

/// What a build made of the events after its cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    pub build: Build,
    pub partition: Partition,
    /// Of the cursor, when the fold began.
    pub epoch: i64,
    /// Of the cursor, when this is written. Higher where the cursor may stay where it is, so that nobody writes it twice.
    pub epoch_to: i64,
    pub from: i64,
    pub to: i64,
    pub last_event_id: Option<EventId>,
    pub waiting_for: Option<String>,
    pub rows: ConsumerRows,
    /// New and changed letters.
    pub letters: Vec<DeadLetter>,
    /// Workspaces that wait from now on, or elsewhere.
    pub parked: Vec<ParkedWorkspace>,
    /// Workspaces that wait no more.
    pub freed: Vec<WorkspaceId>,
    pub at: Timestamp,
}

impl Advance {
    /// In the order of the statement's key.
    pub(super) fn key(&self) -> Vec<Value<'_>> {
        vec![
            self.build.consumer.to_value(),
            self.build.version.to_value(),
            self.partition.to_value(),
            self.from.to_value(),
            self.epoch.to_value(),
            self.to.to_value(),
            self.epoch_to.to_value(),
            self.last_event_id.to_value(),
            self.waiting_for.to_value(),
            self.at.to_value(),
        ]
    }

    /// The keys of the workspaces that wait no more.
    pub(super) fn freed(&self) -> impl Iterator<Item = Vec<Value<'_>>> {
        let Build { consumer, version } = &self.build;
        let key = move |freed| vec![consumer.to_value(), version.to_value(), Stored::to_value(freed)];
        self.freed.iter().map(key)
    }
}
