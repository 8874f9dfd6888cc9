//! Redis loses data, hangs, is down, or holds foreign entries.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use visionscope_billing::domain::ids::Partition;
use visionscope_billing::publisher::BreakerState;
use visionscope_billing::stream::EventStream;

use crate::events::{assert_stream_equals, eventually, eventually_ends_at, partition};
use crate::memory_outbox::MemoryOutbox;
use crate::publishing::{RunningPublisher, test_config};
use crate::redis_server::RedisServer;

/// A stop may not take longer than this while Redis is down.
const STOP_LIMIT: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_redis_is_refilled_without_new_commands() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(6));
    outbox.commit(p, 1200);
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    eventually_ends_at(&*stream, p, 1, 1200).await;
    redis.execute::<()>(&["FLUSHALL"]);
    eventually_ends_at(&*stream, p, 1, 1200).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_wiped_under_load_is_refilled_in_order() {
    let redis = RedisServer::start();
    let (outbox, stream) = (Arc::new(MemoryOutbox::new()), redis.stream());
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    for round in 0..60 {
        for p in Partition::all() {
            running.events.committed(outbox.commit(p, 11));
        }
        if round % 20 == 10 {
            redis.execute::<()>(&["FLUSHALL"]);
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for p in Partition::all() {
        eventually_ends_at(&*stream, p, 1, 660).await;
        assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
        assert_eq!(outbox.diverged_seq(p), None);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_tail_is_published_again() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(0));
    outbox.commit(p, 100);
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    eventually_ends_at(&*stream, p, 1, 100).await;
    let last: Vec<String> = (81..=100).map(|seq| format!("{seq}-0")).collect();
    let arguments: Vec<&str> = ["XDEL", "vs:{p00}:g1"].into_iter().chain(last.iter().map(String::as_str)).collect();
    redis.execute::<i64>(&arguments);
    eventually_ends_at(&*stream, p, 1, 100).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    redis.execute::<i64>(&["XTRIM", "vs:{p00}:g1", "MAXLEN", "0"]);
    eventually_ends_at(&*stream, p, 1, 100).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_restarted_from_an_older_snapshot_is_refilled() {
    let mut redis = RedisServer::not_started(&["--dbfilename", "older.rdb"]);
    redis.start_process();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(0));
    outbox.commit(p, 600);
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    eventually_ends_at(&*stream, p, 1, 600).await;
    redis.execute::<()>(&["SAVE"]);
    outbox.commit(p, 600);
    eventually_ends_at(&*stream, p, 1, 1200).await;
    redis.kill();
    redis.start_process();
    eventually_ends_at(&*stream, p, 1, 1200).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_while_redis_is_down_and_are_then_published_in_order() {
    let mut redis = RedisServer::not_started(&[]);
    let (outbox, stream) = (Arc::new(MemoryOutbox::new()), redis.stream());
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    let health = running.handle.health();
    for p in Partition::all() {
        outbox.commit(p, 300);
    }
    eventually("the breaker opens", async || health.borrow().breaker == BreakerState::Open).await;
    assert!(health.borrow().is_degraded());
    redis.start_process();
    for p in Partition::all() {
        eventually_ends_at(&*stream, p, 1, 300).await;
    }
    redis.kill();
    for p in Partition::all() {
        outbox.commit(p, 300);
    }
    eventually("it opens again", async || health.borrow().breaker == BreakerState::Open).await;
    redis.start_process();
    for p in Partition::all() {
        eventually_ends_at(&*stream, p, 1, 600).await;
        assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    }
    eventually("all is well again", async || !health.borrow().is_degraded() && health.borrow().lag_events == 0).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_redis_opens_the_breaker_and_does_not_delay_a_stop() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(7));
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    outbox.commit(p, 5);
    eventually_ends_at(&*stream, p, 1, 5).await;
    let health = running.handle.health();
    redis.suspend();
    for p in Partition::all() {
        outbox.commit(p, 5);
    }
    eventually("the breaker opens", async || health.borrow().breaker == BreakerState::Open).await;
    redis.resume();
    eventually_ends_at(&*stream, p, 1, 10).await;
    eventually("it closes", async || health.borrow().breaker == BreakerState::Closed).await;
    redis.suspend();
    outbox.commit(p, 5);
    eventually("it fails again", async || health.borrow().breaker != BreakerState::Closed).await;
    assert!(running.stop().await < STOP_LIMIT);
    redis.resume();
    let next = RunningPublisher::start(&outbox, &stream, test_config());
    eventually_ends_at(&*stream, p, 1, 15).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_database_only_delays_events() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(7));
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    outbox.commit(p, 5);
    eventually_ends_at(&*stream, p, 1, 5).await;
    let health = running.handle.health();
    outbox.is_down.store(true, Ordering::SeqCst);
    eventually("it is noticed", async || health.borrow().is_outbox_down).await;
    assert_eq!(health.borrow().breaker, BreakerState::Closed);
    outbox.is_down.store(false, Ordering::SeqCst);
    outbox.commit(p, 5);
    eventually_ends_at(&*stream, p, 1, 10).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diverged_partition_does_not_stop_the_others() {
    let redis = RedisServer::start();
    let (outbox, stream) = (Arc::new(MemoryOutbox::new()), redis.stream());
    let (p, q) = (partition(0), partition(1));
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    let health = running.handle.health();
    outbox.commit(p, 5);
    outbox.commit(q, 5);
    eventually_ends_at(&*stream, p, 1, 5).await;
    // Replaces the last entry by another event.
    redis.execute::<i64>(&["XDEL", "vs:{p00}:g1", "5-0"]);
    redis.execute::<String>(&["XSETID", "vs:{p00}:g1", "4-0"]);
    redis.execute::<String>(&["XADD", "vs:{p00}:g1", "5-0", "event_id", "altered"]);
    eventually("it is noticed", async || outbox.diverged_seq(p) == Some(5)).await;
    outbox.commit(p, 5);
    outbox.commit(q, 5);
    eventually_ends_at(&*stream, q, 1, 10).await;
    tokio::time::sleep(test_config().probe_interval * 2).await;
    assert_eq!(stream.top(p, 1).await.unwrap().unwrap().id.seq, 5);
    eventually("the health says so", async || health.borrow().diverged == [p]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_entry_is_noticed_while_there_are_no_events() {
    let redis = RedisServer::start();
    let (outbox, stream) = (Arc::new(MemoryOutbox::new()), redis.stream());
    let (p, q, idle) = (partition(0), partition(1), partition(2));
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    outbox.commit(p, 5);
    outbox.commit(idle, 5);
    eventually_ends_at(&*stream, p, 1, 5).await;
    // Redis chooses the id: once after some events, once before the first event.
    redis.execute::<String>(&["XADD", "vs:{p00}:g1", "*", "a", "b"]);
    redis.execute::<String>(&["XADD", "vs:{p01}:g1", "*", "a", "b"]);
    eventually("it is noticed", async || outbox.diverged_seq(p) == Some(6) && outbox.diverged_seq(q) == Some(1)).await;
    tokio::time::sleep(test_config().probe_interval * 2).await;
    assert_eq!(outbox.diverged_seq(idle), None);
    running.stop().await;
}
