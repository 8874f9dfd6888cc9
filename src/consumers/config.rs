//! How the consumers pace themselves.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct ConsumersConfig {
    /// How many events one beat takes at most, of all partitions together.
    pub max_events: u32,
    /// The least time from one beat to the next.
    pub beat: Duration,
    /// The pause after a beat is at least this many times as long as its transaction took, so that commands have the
    /// database for most of the time.
    pub pause_factor: u32,
    /// The first pause before it looks for events that other servers have committed. Each further one is twice as long, up
    /// to a second, until there are some. None where no other server can commit.
    pub first_poll: Option<Duration>,
    /// How long a lease on a partition lasts.
    pub lease_ttl: Duration,
}

impl ConsumersConfig {
    /// For SQLite, which has one writer: short transactions, and few of them.
    #[must_use]
    pub const fn embedded() -> Self {
        Self {
            max_events: 500,
            beat: Duration::from_millis(100),
            pause_factor: 4,
            first_poll: None,
            lease_ttl: Duration::from_secs(10),
        }
    }

    /// For PostgreSQL.
    #[must_use]
    pub const fn shared() -> Self {
        Self {
            max_events: 4000,
            beat: Duration::from_millis(100),
            pause_factor: 0,
            first_poll: Some(Duration::from_millis(100)),
            lease_ttl: Duration::from_secs(10),
        }
    }
}
