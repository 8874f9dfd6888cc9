//! What the lanes are made from: how they are sized, and what they work with.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::batch::{EventWriter, Render};
use crate::domain::event::EventRecord;
use crate::store::Store;

/// How the engine is sized.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// How many lanes there are; each owns every n-th partition.
    pub lanes: usize,
    /// How many commands may wait in one lane; one more is answered 503 at once.
    pub queue_capacity: usize,
    /// How many commands one transaction may hold.
    pub max_batch: usize,
    /// How much memory the states of workspaces may take that the lanes remember, about.
    pub memory_bytes: usize,
    /// How far this machine's clock may be ahead of the database's. Time never runs backwards within a
    /// workspace, so a command from a clock that is far ahead would take the workspace along for good.
    pub max_clock_ahead: Option<Duration>,
}

/// Told after a commit which events it wrote, in the order of each partition's sequence.
pub trait CommitSignal: Send + Sync + 'static {
    fn committed(&self, events: Vec<EventRecord>);
}

/// What the lanes work with.
pub(super) struct Parts {
    pub store: Arc<dyn Store>,
    pub render: Arc<dyn Render>,
    pub events: Arc<dyn EventWriter>,
    pub signal: Arc<dyn CommitSignal>,
}
