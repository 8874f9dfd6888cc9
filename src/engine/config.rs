//! How the engine is sized.

use chrono::TimeDelta;

#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// How many lanes there are; each owns every n-th partition.
    pub lanes: usize,
    /// How many commands may wait in one lane; further ones are refused at once with 503.
    pub queue_capacity: usize,
    /// How many commands one transaction may hold.
    pub max_batch: usize,
    /// The approximate size of the cached states of all lanes together.
    pub cache_bytes: usize,
    /// How far this machine's clock may be ahead of the database's. History never runs backwards within a
    /// workspace, so one command from a clock far ahead would move its history's time forward for good.
    pub max_clock_ahead: Option<TimeDelta>,
}
