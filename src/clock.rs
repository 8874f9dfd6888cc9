//! The only source of time and randomness. All other code gets them injected, so that a test can stop the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use uuid::Uuid;

use crate::domain::ids::CommandId;
use crate::domain::time::Timestamp;

/// Provides the time and new ids.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;

    /// A new version 7 UUID.
    fn new_id(&self) -> Uuid;

    fn new_command_id(&self) -> CommandId {
        CommandId(self.new_id())
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the only source of time")]
    fn now(&self) -> Timestamp {
        Timestamp::from_datetime(chrono::Utc::now())
    }

    #[allow(clippy::disallowed_methods, reason = "the only source of ids")]
    fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }
}

/// A clock for tests that only changes when it is set.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self(Arc::new(AtomicI64::new(now.micros())))
    }

    pub fn set(&self, now: Timestamp) {
        self.0.store(now.micros(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }

    #[allow(clippy::disallowed_methods, reason = "ids stay unique while the clock stands")]
    fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }
}
