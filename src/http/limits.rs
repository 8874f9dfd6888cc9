//! What one workspace may do at once: decided in this process, before anything is parsed or queued.
//!
//! Two bounds keep a noisy tenant from the others: how many of its commands may be under way, and how
//! many of its requests, reads too, may come in a second. They protect the server; what a plan allows
//! is the domain's matter. Only an authenticated workspace is ever counted.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::problem::{Code, Problem};
use crate::domain::ids::{Partition, WorkspaceId};
use crate::telemetry::metric;

/// How many commands of one workspace may be under way: several batches' worth.
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 1024;
/// The counters are kept per partition, so that workers rarely wait for each other.
const SHARDS: usize = crate::domain::ids::PARTITIONS as usize;
/// After how many checks the rate limiter forgets workspaces that have been quiet.
const FORGET_EVERY: u32 = 4096;

/// Bounds per workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Commands of one workspace that may be under way.
    pub max_in_flight: u32,
    /// Requests of one workspace per second, as many at once; 0 for no bound.
    pub requests_per_second: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { max_in_flight: DEFAULT_MAX_IN_FLIGHT, requests_per_second: 0 }
    }
}

/// Counts what is under way.
pub struct WorkspaceLimits {
    max_in_flight: u32,
    in_flight: Arc<[Mutex<HashMap<WorkspaceId, u32>>]>,
    rate: Option<Rate>,
}

struct Rate {
    limiter: DefaultKeyedRateLimiter<WorkspaceId>,
    clock: DefaultClock,
    checks: AtomicU32,
}

/// One command under way; dropping it makes room for another.
pub struct Permit {
    in_flight: Arc<[Mutex<HashMap<WorkspaceId, u32>>]>,
    workspace_id: WorkspaceId,
}

type Shard<'a> = MutexGuard<'a, HashMap<WorkspaceId, u32>>;

fn shard(in_flight: &[Mutex<HashMap<WorkspaceId, u32>>], workspace_id: WorkspaceId) -> Shard<'_> {
    let index = usize::from(Partition::of(workspace_id).number());
    in_flight[index].lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkspaceLimits {
    #[must_use]
    pub fn new(config: LimitsConfig) -> Self {
        let rate = NonZeroU32::new(config.requests_per_second).map(|per_second| Rate {
            limiter: RateLimiter::keyed(Quota::per_second(per_second)),
            clock: DefaultClock::default(),
            checks: AtomicU32::new(0),
        });
        let in_flight = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { max_in_flight: config.max_in_flight.max(1), in_flight, rate }
    }

    /// Counts a request against the workspace's rate.
    pub fn check_rate(&self, workspace_id: WorkspaceId) -> Result<(), Problem> {
        let Some(rate) = &self.rate else { return Ok(()) };
        if rate.checks.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            rate.limiter.retain_recent();
        }
        rate.limiter.check_key(&workspace_id).map_err(|refused| {
            let wait_s = refused.wait_time_from(rate.clock.now()).as_secs() + 1;
            metrics::counter!(metric::HTTP_SHED, "reason" => "rate").increment(1);
            let problem = Problem::new(Code::TooManyRequests, "the request rate of this workspace is too high");
            problem.retry_after(u32::try_from(wait_s).unwrap_or(u32::MAX))
        })
    }

    /// Makes room for one more command of the workspace, if there is any.
    pub fn enter(&self, workspace_id: WorkspaceId) -> Result<Permit, Problem> {
        let mut counts = shard(&self.in_flight, workspace_id);
        let count = counts.entry(workspace_id).or_insert(0);
        if *count >= self.max_in_flight {
            metrics::counter!(metric::HTTP_SHED, "reason" => "in-flight").increment(1);
            return Err(Problem::new(Code::TooManyRequests, "too many commands of this workspace are under way"));
        }
        *count += 1;
        drop(counts);
        Ok(Permit { in_flight: Arc::clone(&self.in_flight), workspace_id })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = shard(&self.in_flight, self.workspace_id);
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

    use super::*;

    #[test]
    fn commands_beyond_the_bound_are_refused_until_one_is_done() {
        let limits = WorkspaceLimits::new(LimitsConfig { max_in_flight: 2, requests_per_second: 0 });
        let (one, other) = (WorkspaceId(Uuid::from_u128(1)), WorkspaceId(Uuid::from_u128(2)));
        let first = limits.enter(one).ok().unwrap();
        let _second = limits.enter(one).ok().unwrap();
        let refused = limits.enter(one).err().unwrap();
        assert_eq!((refused.code, refused.retry_after_s()), (Code::TooManyRequests, Some(1)));
        assert!(limits.enter(other).is_ok(), "another workspace is not held up");
        drop(first);
        assert!(limits.enter(one).is_ok());
    }

    #[test]
    fn a_workspace_with_nothing_under_way_is_forgotten() {
        let limits = WorkspaceLimits::new(LimitsConfig::default());
        let workspace_id = WorkspaceId(Uuid::from_u128(1));
        drop(limits.enter(workspace_id));
        assert!(shard(&limits.in_flight, workspace_id).is_empty());
    }

    #[test]
    fn requests_beyond_the_rate_are_told_when_to_come_back() {
        let limits = WorkspaceLimits::new(LimitsConfig { max_in_flight: 1, requests_per_second: 3 });
        let workspace_id = WorkspaceId(Uuid::from_u128(1));
        let refused = (0..10).find_map(|_| limits.check_rate(workspace_id).err()).unwrap();
        assert_eq!((refused.code, refused.retry_after_s()), (Code::TooManyRequests, Some(1)));
        assert!(limits.check_rate(WorkspaceId(Uuid::from_u128(2))).is_ok());
    }
}
