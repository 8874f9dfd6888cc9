//! Limits per workspace, checked in this process before a request is parsed or queued.
//!
//! Three limits protect the other tenants: the numbers of commands and of reads in flight, and the number of requests per
//! second, including reads. They protect the server; the limits of plans belong to the domain. Only authenticated requests
//! are counted.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::problem::Problem;
use super::refusal::Refusal;
use crate::domain::ids::{Partition, WorkspaceId};

/// Commands of one workspace in flight: enough for several batches.
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 1024;
/// Reads of one workspace in flight: a few pages of a frontend, each with all its requests.
pub const DEFAULT_MAX_READS: u32 = 32;
/// One shard per partition, so that worker threads rarely wait for each other.
const SHARDS: usize = crate::domain::ids::PARTITIONS as usize;
/// The rate limiter evicts idle workspaces once per this many checks.
const EVICT_EVERY_CHECKS: u32 = 4096;

/// Limits per workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Commands of one workspace in flight.
    pub max_in_flight: u32,
    /// Reads of one workspace in flight. Reads wait for a connection of one pool, so this is also how many reads of one
    /// workspace another may have to wait for.
    pub max_reads: u32,
    /// Requests of one workspace per second, which is also the burst. 0 means no limit.
    pub requests_per_second: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { max_in_flight: DEFAULT_MAX_IN_FLIGHT, max_reads: DEFAULT_MAX_READS, requests_per_second: 0 }
    }
}

/// Counts what is in flight and the requests of each workspace.
pub struct WorkspaceLimits {
    pub commands: InFlight,
    /// Reads of all workspaces together count for the nil workspace.
    pub reads: InFlight,
    rate: Option<Rate>,
}

/// Requests of one kind in flight, by workspace.
pub struct InFlight {
    max: u32,
    counts: Arc<[Mutex<HashMap<WorkspaceId, u32>>]>,
}

struct Rate {
    limiter: DefaultKeyedRateLimiter<WorkspaceId>,
    clock: DefaultClock,
    checks: AtomicU32,
}

/// One request in flight. Dropping the permit releases it.
#[derive(Debug)]
pub struct Permit {
    counts: Arc<[Mutex<HashMap<WorkspaceId, u32>>]>,
    workspace_id: WorkspaceId,
}

type Shard<'a> = MutexGuard<'a, HashMap<WorkspaceId, u32>>;

fn shard(counts: &[Mutex<HashMap<WorkspaceId, u32>>], workspace_id: WorkspaceId) -> Shard<'_> {
    let index = usize::from(Partition::of(workspace_id).number());
    counts[index].lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkspaceLimits {
    #[must_use]
    pub fn new(config: LimitsConfig) -> Self {
        let rate = NonZeroU32::new(config.requests_per_second).map(|per_second| Rate {
            limiter: RateLimiter::keyed(Quota::per_second(per_second)),
            clock: DefaultClock::default(),
            checks: AtomicU32::new(0),
        });
        Self { commands: InFlight::new(config.max_in_flight), reads: InFlight::new(config.max_reads), rate }
    }

    /// Counts a request against the workspace's rate.
    pub fn check_rate(&self, workspace_id: WorkspaceId) -> Result<(), Problem> {
        let Some(rate) = &self.rate else { return Ok(()) };
        if rate.checks.fetch_add(1, Ordering::Relaxed) % EVICT_EVERY_CHECKS == EVICT_EVERY_CHECKS - 1 {
            rate.limiter.retain_recent();
        }
        rate.limiter.check_key(&workspace_id).map_err(|refused| {
            let wait_s = refused.wait_time_from(rate.clock.now()).as_secs() + 1;
            Problem::from(Refusal::Rate).retry_after(u32::try_from(wait_s).unwrap_or(u32::MAX))
        })
    }
}

impl InFlight {
    fn new(max: u32) -> Self {
        Self { max: max.max(1), counts: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// Counts one more request of the workspace in flight, up to the limit.
    pub fn acquire(&self, workspace_id: WorkspaceId) -> Result<Permit, Problem> {
        let mut counts = shard(&self.counts, workspace_id);
        let count = counts.entry(workspace_id).or_insert(0);
        if *count >= self.max {
            return Err(Refusal::InFlight.into());
        }
        *count += 1;
        drop(counts);
        Ok(Permit { counts: Arc::clone(&self.counts), workspace_id })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = shard(&self.counts, self.workspace_id);
        if let Some(count) = counts.get_mut(&self.workspace_id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.workspace_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::problem::Code;
    use super::*;

    #[test]
    fn commands_beyond_the_limit_are_refused_until_one_is_done() {
        let limits = WorkspaceLimits::new(LimitsConfig { max_in_flight: 2, ..LimitsConfig::default() });
        let (one, other) = (WorkspaceId(Uuid::from_u128(1)), WorkspaceId(Uuid::from_u128(2)));
        let first = limits.commands.acquire(one).ok().unwrap();
        let _second = limits.commands.acquire(one).ok().unwrap();
        let refused = limits.commands.acquire(one).err().unwrap();
        assert_eq!((refused.code, refused.retry_after_s()), (Code::TooManyRequests, Some(1)));
        assert!(limits.commands.acquire(other).is_ok(), "another workspace is not affected");
        drop(first);
        assert!(limits.commands.acquire(one).is_ok());
    }

    #[test]
    fn a_workspace_without_commands_in_flight_is_removed() {
        let limits = WorkspaceLimits::new(LimitsConfig::default());
        let workspace_id = WorkspaceId(Uuid::from_u128(1));
        drop(limits.commands.acquire(workspace_id));
        assert!(shard(&limits.commands.counts, workspace_id).is_empty());
    }

    #[test]
    fn requests_beyond_the_rate_get_retry_after() {
        let limits = WorkspaceLimits::new(LimitsConfig { requests_per_second: 3, ..LimitsConfig::default() });
        let workspace_id = WorkspaceId(Uuid::from_u128(1));
        let refused = (0..10).find_map(|_| limits.check_rate(workspace_id).err()).unwrap();
        assert_eq!((refused.code, refused.retry_after_s()), (Code::TooManyRequests, Some(1)));
        assert!(limits.check_rate(WorkspaceId(Uuid::from_u128(2))).is_ok());
    }
}
