//! Publishing from the event buffer, and what it costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::ids::{PARTITIONS, Partition};
use visionscope_billing::publisher::PublisherConfig;
use visionscope_billing::stream::redis::RedisStream;
use visionscope_billing::stream::{Appended, EntryId, EventStream, GroupPosition, Previous, StreamEntry, StreamError};

use crate::events::{assert_stream_equals, events, eventually, eventually_ends_at, partition};
use crate::memory_outbox::MemoryOutbox;
use crate::publishing::{RunningPublisher, test_config};
use crate::redis_server::RedisServer;

const NEVER: Duration = Duration::from_mins(10);

/// Only commits in the event buffer trigger work.
fn buffer_only() -> PublisherConfig {
    PublisherConfig {
        poll_interval: NEVER,
        probe_interval: NEVER,
        status_interval: NEVER,
        lease_ttl: NEVER,
        ..test_config()
    }
}

/// Starts a publisher and waits until it has read every partition once. Returns how often it has read.
async fn start_idle(outbox: &Arc<MemoryOutbox>, stream: &Arc<impl EventStream + 'static>) -> (RunningPublisher, u32) {
    let running = RunningPublisher::start(outbox, stream, buffer_only());
    let reads = u32::from(PARTITIONS);
    eventually("all partitions were read once", async || outbox.reads.load(Ordering::SeqCst) >= reads).await;
    (running, reads)
}

#[tokio::test(flavor = "multi_thread")]
async fn buffered_events_are_not_read_from_the_outbox() {
    let redis = RedisServer::start();
    let (outbox, stream) = (Arc::new(MemoryOutbox::new()), redis.stream());
    let (running, reads) = start_idle(&outbox, &stream).await;
    for _ in 0..40 {
        for p in Partition::all() {
            running.events.committed(outbox.commit(p, 3));
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for p in Partition::all() {
        eventually_ends_at(&*stream, p, 1, 120).await;
        assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    }
    assert_eq!(outbox.reads.load(Ordering::SeqCst), reads);
    eventually("all is recorded", async || Partition::all().all(|p| outbox.published_seq(p) == 120)).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unbuffered_events_are_read_from_the_outbox_in_order() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(3));
    let (running, reads) = start_idle(&outbox, &stream).await;
    // A commit whose answer was lost.
    outbox.commit(p, 5);
    running.events.committed(outbox.commit(p, 5));
    eventually_ends_at(&*stream, p, 1, 10).await;
    assert!(outbox.reads.load(Ordering::SeqCst) > reads);
    let reads = outbox.reads.load(Ordering::SeqCst);
    running.events.committed(outbox.commit(p, 5));
    eventually_ends_at(&*stream, p, 1, 15).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    assert_eq!(outbox.reads.load(Ordering::SeqCst), reads);
    running.stop().await;
}

/// Other replicas committed in between, so all partitions have events to read.
#[tokio::test(flavor = "multi_thread")]
async fn one_statement_reads_several_partitions() {
    const ROUNDS: i64 = 30;
    let redis = RedisServer::start();
    let (outbox, stream) = (Arc::new(MemoryOutbox::new()), redis.stream());
    let (running, reads) = start_idle(&outbox, &stream).await;
    let statements = outbox.statements.load(Ordering::SeqCst);
    for _ in 0..ROUNDS {
        for p in Partition::all() {
            outbox.commit(p, 1);
            running.events.committed(outbox.commit(p, 1));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for p in Partition::all() {
        eventually_ends_at(&*stream, p, 1, 2 * ROUNDS).await;
        assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    }
    let reads = outbox.reads.load(Ordering::SeqCst) - reads;
    let statements = outbox.statements.load(Ordering::SeqCst) - statements;
    assert!(statements * 3 < reads, "{statements} statements for {reads} reads");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_partition_does_not_delay_the_others() {
    let redis = RedisServer::start();
    let (outbox, stream, bad) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(3));
    *outbox.unreadable.lock().unwrap() = Some(bad);
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    for _ in 0..10 {
        Partition::all().for_each(|p| drop(outbox.commit(p, 4)));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for p in Partition::all().filter(|p| *p != bad) {
        eventually_ends_at(&*stream, p, 1, 40).await;
    }
    assert!(stream.top(bad, 1).await.unwrap().is_none());
    *outbox.unreadable.lock().unwrap() = None;
    eventually_ends_at(&*stream, bad, 1, 40).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_beyond_the_buffer_limit_are_read_from_the_outbox() {
    let mut redis = RedisServer::not_started(&[]);
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(3));
    let (running, reads) = start_idle(&outbox, &stream).await;
    for _ in 0..70 {
        running.events.committed(outbox.commit(p, 100));
    }
    redis.start_process();
    eventually_ends_at(&*stream, p, 1, 7000).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    assert!(outbox.reads.load(Ordering::SeqCst) > reads);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alternating_commits_of_two_replicas_are_published_once_each() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(3));
    let first = RunningPublisher::start(&outbox, &stream, test_config());
    let second = RunningPublisher::start(&outbox, &stream, test_config());
    for round in 0..80 {
        let replica = if round % 3 == 0 { &first } else { &second };
        replica.events.committed(outbox.commit(p, 7));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    eventually_ends_at(&*stream, p, 1, 560).await;
    first.stop().await;
    for _ in 0..20 {
        second.events.committed(outbox.commit(p, 2));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    eventually_ends_at(&*stream, p, 1, 600).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    assert_eq!(outbox.diverged_seq(p), None);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_does_not_prevent_recording_the_other_partitions() {
    let redis = RedisServer::start();
    let (outbox, stream, lost) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(5));
    let (running, _) = start_idle(&outbox, &stream).await;
    outbox.failing_records.store(u32::MAX, Ordering::SeqCst);
    for p in Partition::all() {
        running.events.committed(outbox.commit(p, 4));
    }
    for p in Partition::all() {
        eventually_ends_at(&*stream, p, 1, 4).await;
    }
    outbox.take_over(lost);
    outbox.failing_records.store(0, Ordering::SeqCst);
    let is_recorded = |p| outbox.published_seq(p) == 4;
    eventually("the others are recorded", async || Partition::all().all(|p| p == lost || is_recorded(p))).await;
    running.events.committed(outbox.commit(lost, 1));
    running.events.committed(outbox.commit(partition(6), 1));
    eventually("publishing continues", async || outbox.published_seq(partition(6)) == 5).await;
    assert_eq!(outbox.published_seq(lost), 0);
    assert_eq!(stream.top(lost, 1).await.unwrap().unwrap().id, EntryId::of(4), "it is left to the other publisher");
    running.stop().await;
}

/// Counts the appends.
struct Counted {
    stream: Arc<RedisStream>,
    appends: AtomicU32,
}

#[async_trait]
impl EventStream for Counted {
    async fn append(
        &self,
        partition: Partition,
        generation: i32,
        floor_seq: i64,
        previous: Previous,
        events: &[EventRecord],
    ) -> Result<Appended, StreamError> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        self.stream.append(partition, generation, floor_seq, previous, events).await
    }

    async fn read(
        &self,
        partition: Partition,
        generation: i32,
        after: EntryId,
        limit: u32,
    ) -> Result<Vec<StreamEntry>, StreamError> {
        self.stream.read(partition, generation, after, limit).await
    }

    async fn top(&self, partition: Partition, generation: i32) -> Result<Option<StreamEntry>, StreamError> {
        self.stream.top(partition, generation).await
    }

    async fn trim(&self, partition: Partition, generation: i32, floor_seq: i64) -> Result<bool, StreamError> {
        self.stream.trim(partition, generation, floor_seq).await
    }

    async fn groups(&self, partition: Partition, generation: i32) -> Result<Vec<GroupPosition>, StreamError> {
        self.stream.groups(partition, generation).await
    }

    fn text(&self, event: &EventRecord) -> Result<String, StreamError> {
        self.stream.text(event)
    }

    async fn ping(&self) -> Result<(), StreamError> {
        self.stream.ping().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_appends_and_records_depend_on_time_and_not_on_commits() {
    let redis = RedisServer::start();
    let outbox = Arc::new(MemoryOutbox::new());
    let stream = Arc::new(Counted { stream: redis.stream(), appends: AtomicU32::new(0) });
    let (running, reads) = start_idle(&outbox, &stream).await;
    let (started, config) = (Instant::now(), buffer_only());
    let mut commits = 0;
    while started.elapsed() < Duration::from_secs(1) {
        let events = Partition::all().flat_map(|p| outbox.commit(p, 1)).collect();
        running.events.committed(events);
        commits += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    eventually("all is recorded", async || Partition::all().all(|p| outbox.published_seq(p) == commits)).await;
    let intervals = |every: Duration| u32::try_from(started.elapsed().as_nanos() / every.as_nanos()).unwrap();
    let (appends, records) = (stream.appends.load(Ordering::SeqCst), outbox.records.load(Ordering::SeqCst));
    let append_intervals = intervals(config.append_interval) + 2;
    assert!(
        appends <= u32::from(PARTITIONS) * append_intervals,
        "{appends} appends for {commits} commits in {append_intervals} intervals"
    );
    assert!(records <= intervals(config.record_interval) + 2, "{records} records");
    assert_eq!(outbox.reads.load(Ordering::SeqCst), reads);
    for p in Partition::all() {
        assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    }
    running.stop().await;
}

/// CPU time of this process so far, in seconds.
fn own_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // In hundredths of a second.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// CPU time of Redis so far, in seconds.
fn redis_cpu(redis: &RedisServer) -> f64 {
    let info = redis.execute::<String>(&["INFO", "cpu"]);
    let seconds =
        |name: &str| -> f64 { info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap() };
    seconds("used_cpu_sys:") + seconds("used_cpu_user:")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn cpu_time_per_event_at_different_rates() {
    for per_partition in [1, 2, 10] {
        let redis = RedisServer::start();
        let (outbox, stream) = (Arc::new(MemoryOutbox::new()), redis.stream());
        let (running, _) = start_idle(&outbox, &stream).await;
        // A commit every 8 ms, over all partitions. Prepared beforehand, so that only publishing is measured.
        let commit =
            |n: i64| Partition::all().flat_map(move |p| events(p, n * per_partition + 1..=(n + 1) * per_partition));
        let commits: Vec<Vec<EventRecord>> = (0..500).map(|n| commit(n).collect()).collect();
        let (started, own, of_redis) = (Instant::now(), own_cpu(), redis_cpu(&redis));
        for (n, commit) in (0..).zip(commits) {
            tokio::time::sleep_until((started + Duration::from_millis(8) * n).into()).await;
            running.events.committed(commit);
        }
        for p in Partition::all() {
            eventually_ends_at(&*stream, p, 1, 500 * per_partition).await;
        }
        let count = f64::from(u32::from(PARTITIONS) * 500 * u32::try_from(per_partition).unwrap());
        let rate = count / started.elapsed().as_secs_f64();
        let each = |seconds: f64| seconds * 1e6 / count;
        let (own, of_redis) = (each(own_cpu() - own), each(redis_cpu(&redis) - of_redis));
        println!("{rate:.0} events/s: {own:.1} us here and {of_redis:.1} us in Redis for each");
        running.stop().await;
    }
}
