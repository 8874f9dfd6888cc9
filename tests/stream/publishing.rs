//! The publisher in normal operation, and after a crash of another one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use visionscope_billing::clock::SystemClock;
use visionscope_billing::domain::ids::Partition;
use visionscope_billing::publisher::{EventBuffer, Publisher, PublisherConfig, PublisherHandle};
use visionscope_billing::store::Outbox;
use visionscope_billing::stream::EventStream;

use crate::events::{assert_stream_equals, eventually, eventually_ends_at, partition};
use crate::memory_outbox::MemoryOutbox;
use crate::redis_server::RedisServer;

/// The real configuration with shorter probes, status checks and leases.
pub fn test_config() -> PublisherConfig {
    PublisherConfig {
        probe_interval: Duration::from_millis(300),
        status_interval: Duration::from_millis(100),
        lease_ttl: Duration::from_secs(2),
        ..PublisherConfig::shared()
    }
}

pub struct RunningPublisher {
    pub events: EventBuffer,
    pub handle: PublisherHandle,
    stop: CancellationToken,
}

impl RunningPublisher {
    pub fn start(
        outbox: &Arc<impl Outbox + 'static>,
        stream: &Arc<impl EventStream + 'static>,
        config: PublisherConfig,
    ) -> Self {
        let (events, stop) = (EventBuffer::new(), CancellationToken::new());
        let (outbox, stream) = (Arc::clone(outbox), Arc::clone(stream));
        let publisher = Publisher::new(outbox, stream, events.clone(), Arc::new(SystemClock), config);
        Self { events, handle: publisher.spawn(stop.clone()), stop }
    }

    /// Stops it and returns how long that took.
    pub async fn stop(self) -> Duration {
        let started = Instant::now();
        self.stop.cancel();
        self.handle.stopped().await;
        started.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_in_the_stream_within_50_ms_of_its_commit_buffered_or_not() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(4));
    let running = RunningPublisher::start(&outbox, &stream, PublisherConfig::shared());
    outbox.commit(p, 1);
    eventually_ends_at(&*stream, p, 1, 1).await;
    let mut delays = Vec::new();
    for seq in 2..=21 {
        tokio::time::sleep(Duration::from_millis(7)).await;
        let committed = outbox.commit(p, 1);
        if seq % 2 == 0 {
            running.events.committed(committed);
        }
        delays.push(eventually_ends_at(&*stream, p, 1, seq).await);
    }
    delays.sort();
    // The median, because other tests on the same machine may delay single events.
    assert!(delays[delays.len() / 2] < Duration::from_millis(50), "{delays:?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_are_published_without_gaps_and_recorded() {
    let redis = RedisServer::start();
    let (outbox, stream) = (Arc::new(MemoryOutbox::new()), redis.stream());
    for p in Partition::all() {
        outbox.commit(p, 1300);
    }
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    let health = running.handle.health();
    eventually("everything is recorded", async || Partition::all().all(|p| outbox.published_seq(p) == 1300)).await;
    for p in Partition::all() {
        assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    }
    eventually("the health says so", async || health.borrow().lag_events == 0 && health.borrow().leased == 16).await;
    running.stop().await;
    assert_eq!(outbox.leases_of_anyone(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_append_and_record_doubles_nothing() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(2));
    outbox.commit(p, 700);
    outbox.failing_records.store(u32::MAX, Ordering::SeqCst);
    // Shutting down its runtime simulates a crash of the process.
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = {
        let _inside = process.enter();
        RunningPublisher::start(&outbox, &redis.stream(), test_config())
    };
    eventually("something is appended", async || stream.top(p, 1).await.unwrap().is_some()).await;
    process.shutdown_background();
    drop(first);
    assert_eq!(outbox.published_seq(p), 0);
    outbox.failing_records.store(0, Ordering::SeqCst);
    outbox.expire_leases();
    outbox.commit(p, 50);
    let second = RunningPublisher::start(&outbox, &stream, test_config());
    eventually("all is recorded", async || outbox.published_seq(p) == 750).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_publishers_with_the_same_lease_double_nothing() {
    let redis = RedisServer::start();
    let (outbox, stream) = (Arc::new(MemoryOutbox::new()), redis.stream());
    let (p, q) = (partition(8), partition(9));
    // Every publisher gets every lease again and again, so no lease stays in force for long.
    outbox.ignores_leases.store(true, Ordering::SeqCst);
    // Long enough to record something within, also where tests share the processors.
    let config = PublisherConfig { lease_ttl: Duration::from_millis(150), ..test_config() };
    let running: Vec<_> = (0..3).map(|_| RunningPublisher::start(&outbox, &stream, config)).collect();
    for _ in 0..60 {
        outbox.commit(p, 37);
        outbox.commit(q, 3);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    outbox.ignores_leases.store(false, Ordering::SeqCst);
    eventually("all is recorded", async || outbox.published_seq(p) == 60 * 37 && outbox.published_seq(q) == 180).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    assert_stream_equals(&*stream, 1, &outbox.all(q)).await;
    for publisher in running {
        publisher.stop().await;
    }
    assert_eq!((outbox.diverged_seq(p), outbox.diverged_seq(q)), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_publishes_the_committed_events_and_releases_the_leases() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(1));
    let config = PublisherConfig { poll_interval: Duration::from_mins(1), ..test_config() };
    let running = RunningPublisher::start(&outbox, &stream, config);
    running.events.committed(outbox.commit(p, 1));
    eventually_ends_at(&*stream, p, 1, 1).await;
    outbox.commit(p, 3000);
    running.stop().await;
    assert_eq!(outbox.published_seq(p), 3001);
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    assert_eq!(outbox.leases_of_anyone(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_publisher_takes_over_when_the_first_stops() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(1));
    let (first, second) = (
        RunningPublisher::start(&outbox, &stream, test_config()),
        RunningPublisher::start(&outbox, &stream, test_config()),
    );
    outbox.commit(p, 10);
    eventually_ends_at(&*stream, p, 1, 10).await;
    first.stop().await;
    outbox.commit(p, 10);
    eventually_ends_at(&*stream, p, 1, 20).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    second.stop().await;
}
