//! The ports that the lanes work with.

use std::sync::Arc;

use crate::domain::batch::{EventWriter, Render};
use tokio::sync::watch;

use crate::domain::cloud_event::EventRecord;
use crate::domain::plan::PlanVersion;
use crate::store::Store;

/// Called after each commit with the events that it wrote, in the order of each partition's `seq`.
pub trait CommitSignal: Send + Sync + 'static {
    fn committed(&self, events: Vec<EventRecord>);
}

pub(super) struct Dependencies {
    pub store: Arc<dyn Store>,
    pub render: Arc<dyn Render>,
    pub events: Arc<dyn EventWriter>,
    pub signal: Arc<dyn CommitSignal>,
    /// The plans that a refusal may name.
    pub offered_plans: watch::Sender<Arc<[Arc<PlanVersion>]>>,
}
