//! The head of a partition's sequence of events.

use super::ids::{EventId, Partition};

/// The last event of a partition, and the partition's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionHead {
    pub partition: Partition,
    /// The last event's number; 0 before the first.
    pub seq: i64,
    pub last_event_id: Option<EventId>,
    /// Grows by one with every batch that wrote to the partition. A writer whose batch raised it by more than one
    /// knows that another replica wrote in between.
    pub version: i64,
}

impl PartitionHead {
    #[must_use]
    pub const fn empty(partition: Partition) -> Self {
        Self { partition, seq: 0, last_event_id: None, version: 0 }
    }
}
