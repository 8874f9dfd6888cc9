//! The consumers of this server: brings the events of the outbox into figures, each event exactly once.
//!
//! One task per process. It leases every free partition, and takes the new events of its partitions beat by beat: it reads
//! them ([`Consumption`]), folds them (`domain::consumers`), and writes the rows and the new
//! positions in one transaction. A position moves only from where the fold began. So no event is taken twice or left out,
//! whoever else runs: leases only save work.
//!
//! An event that cannot be taken becomes a dead letter, and its workspace is *parked*: the consumer leaves its later events
//! out, and goes on with all others. Where many workspaces are parked, the consumer itself is wrong: it is *tripped* and
//! stands still until an operator resumes it.
//!
//! Deliberately absent: state that survives a beat, apart from positions that are checked when they are written.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use self::config::ConsumersConfig;
use self::runner::Runner;
pub use self::wakeup::Wakeup;
use crate::clock::Clock;
use crate::store::Consumption;

mod config;
mod measure;
mod positions;
mod reader;
mod runner;
mod step;
mod wakeup;

/// Takes events until `stop` is cancelled; then it ends its beat and releases its leases.
pub async fn run(
    store: Arc<dyn Consumption>,
    clock: Arc<dyn Clock>,
    wakeup: Wakeup,
    config: ConsumersConfig,
    stop: CancellationToken,
) {
    Runner::new(store, clock, wakeup, config).run(stop).await;
}
