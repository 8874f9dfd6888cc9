//! The server, PostgreSQL and Redis are killed (SIGKILL) at random under load.
//!
//! Afterwards, every acknowledged answer is replayed byte for byte, every command ran exactly once, every invariant
//! holds in the database, the streams equal the outbox, usage, revenue and notifications are what history says, and what
//! was paid is recognised or deferred to the minor unit. The clients behave as documented: after no answer or a 5xx they
//! send the same key again.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod failover;
mod figures;
mod greedy;
mod jobs;
mod load;
mod processes;
mod reference_consumers;
mod reference_processes;
mod rolling;

use std::time::Duration;

use crate::load::Load;
use crate::processes::{Billing, Postgres, Redis};

const KILLS: u32 = 9;
/// The credits that each workspace buys at the start: more than the load can spend.
const BOUGHT_CREDITS: i64 = 1_000_000;

/// A linear congruential generator (Knuth's MMIX), so that a run can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn seed() -> u64 {
    let seed = std::env::var("CRASH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_123);
    println!("CRASH_SEED={seed}");
    seed
}

/// How often something is killed. A long run has `CRASH_KILLS=300`.
fn kills() -> u32 {
    std::env::var("CRASH_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_command_is_lost_when_server_postgres_and_redis_are_killed() {
    let mut random = Random(seed());
    let mut postgres = Postgres::create().await;
    let mut redis = Redis::create();
    let mut billing = Billing::create(Some(&postgres), Some(&redis)).await;
    let load = Load::start(&billing, BOUGHT_CREDITS).await;
    for _ in 0..kills() {
        tokio::time::sleep(Duration::from_millis(300 + random.below(500))).await;
        match random.below(3) {
            0 => billing.kill_and_restart().await,
            1 => postgres.kill_and_restart().await,
            _ => redis.kill_and_restart(Duration::from_millis(random.below(400))).await,
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let acknowledged = load.finish().await;
    billing.wait_until_ready().await;
    acknowledged.verify(&billing).await;
    billing.wait_until_published().await;
    assert!(billing.run(&["outbox", "verify"]), "the streams equal the outbox");
    billing.stop();
    assert!(billing.run(&["verify"]), "every invariant holds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_command_is_lost_when_the_embedded_server_is_killed() {
    let mut random = Random(seed());
    let mut billing = Billing::create(None, None).await;
    let load = Load::start(&billing, BOUGHT_CREDITS).await;
    for _ in 0..kills() {
        tokio::time::sleep(Duration::from_millis(100 + random.below(300))).await;
        billing.kill_and_restart().await;
    }
    let acknowledged = load.finish().await;
    acknowledged.verify(&billing).await;
    billing.stop();
    assert!(billing.run(&["verify"]), "every invariant holds");
}
