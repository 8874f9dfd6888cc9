//! Random faults while events are published and streams are trimmed: publishers are killed or run twice, Redis loses
//! data or gets an older copy back, somebody else trims or writes, and the database is restored from a backup.
//!
//! Whatever happens, in the end each stream equals the outbox: dense from the floor or earlier to the last event. If
//! somebody else altered what the stream must hold, the partition is marked as diverged until it is rebuilt, and it
//! is marked for no other reason.
//!
//! A run is made from a seed, which a failure names. `STREAM_FAULT_RUNS` sets how many seeds are run, and
//! `STREAM_FAULT_SEED` the first.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool_redis::redis::Value;
use tokio::runtime::Runtime;
use visionscope_billing::clock::SystemClock;
use visionscope_billing::domain::ids::Partition;
use visionscope_billing::outbox::{rebuild, verify};
use visionscope_billing::publisher::{PublisherConfig, Retention};
use visionscope_billing::stream::redis::RedisStream;
use visionscope_billing::stream::{EntryId, EventStream, stream_key};

use crate::cluster::{cluster, stream_of};
use crate::events::{entries, eventually, partition};
use crate::memory_outbox::{Backup, MemoryOutbox};
use crate::publishing::{RunningPublisher, test_config};
use crate::redis_server::RedisServer;

/// Seeds that are run each time, on one node and on a cluster.
const SEEDS: u64 = 16;
const SEEDS_ON_A_CLUSTER: u64 = 4;
/// Runs at a time. Most of their time they wait.
const THREADS: usize = 4;
const OPERATIONS: u64 = 30;
const MIN_EVENTS: i64 = 20;
const MAX_REBUILDS: u32 = 10;
/// A rebuild is done within this time, or the partition has diverged again.
const WITHIN: Duration = Duration::from_secs(20);

fn config() -> PublisherConfig {
    PublisherConfig {
        probe_interval: Duration::from_millis(40),
        status_interval: Duration::from_millis(100),
        record_interval: Duration::from_millis(15),
        trim_interval: Duration::from_millis(30),
        lease_ttl: Duration::from_millis(600),
        retention: Some(Retention { events: Duration::from_millis(60), batches: Duration::from_mins(1) }),
        ..test_config()
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// One node, or a cluster.
struct Nodes(Vec<RedisServer>);

impl Nodes {
    fn stream(&self) -> Arc<RedisStream> {
        if self.0.len() == 1 { self.0[0].stream() } else { stream_of(&self.0) }
    }

    /// The answer of the node that has the key; none if it refuses.
    fn answer(&self, arguments: &[&[u8]]) -> Option<Value> {
        self.0.iter().find_map(|node| node.answer(arguments))
    }

    fn try_execute(&self, arguments: &[&str]) -> bool {
        self.0.iter().any(|node| node.try_execute(arguments))
    }

    fn flush(&self) {
        self.0.iter().for_each(|node| node.execute::<()>(&["FLUSHALL"]));
    }
}

/// A publisher on a runtime of its own, so that it can be killed.
struct Process {
    runtime: Option<Runtime>,
    running: RunningPublisher,
}

impl Process {
    fn start(outbox: &Arc<MemoryOutbox>, nodes: &Nodes) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let running = {
            let _inside = runtime.enter();
            RunningPublisher::start(outbox, &nodes.stream(), config())
        };
        Self { runtime: Some(runtime), running }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What happened in all runs, to see that the faults had effects.
#[derive(Default)]
struct Counts {
    trimmed: AtomicU64,
    diverged: AtomicU64,
}

struct World<'a> {
    nodes: &'a Nodes,
    stream: Arc<RedisStream>,
    outbox: Arc<MemoryOutbox>,
    processes: Vec<Process>,
    random: Random,
    /// By partition: whether somebody else altered what the stream must hold, or the database was restored.
    altered: [bool; 2],
    /// A copy of a stream, and its key.
    copy: Option<(String, Vec<u8>)>,
    backup: Option<Backup>,
    counts: &'a Counts,
}

impl World<'_> {
    fn key(&self, p: Partition) -> String {
        stream_key(p, self.outbox.generation(p))
    }

    /// Redis may refuse the command, for want of a stream.
    fn try_on(&self, p: Partition, command: &str, arguments: &[&str]) {
        self.nodes.try_execute(&[&[command, &self.key(p)], arguments].concat());
    }

    async fn operate(&mut self) {
        let index = self.random.below(2);
        let p = partition(u8::try_from(index).unwrap());
        let index = usize::try_from(index).unwrap();
        match self.random.below(32) {
            0..=11 => self.commit(p),
            12 => self.nodes.flush(),
            13 => self.try_on(p, "DEL", &[]),
            14 => self.try_on(p, "XTRIM", &["MAXLEN", "0"]),
            15 => self.try_on(p, "XTRIM", &["MINID", &self.outbox.floor_seq(p).to_string()]),
            16..=17 => {
                let kept = (1 + self.random.below(30)).to_string();
                if self.nodes.try_execute(&["XTRIM", &self.key(p), "MAXLEN", &kept]) {
                    self.alter(p, index).await;
                }
            }
            18..=19 => {
                let top = self.stream.top(p, self.outbox.generation(p)).await.unwrap().map_or(0, |top| top.id.seq);
                let ids = ["*".to_owned(), format!("{}-0", top + 1), format!("{top}-7")];
                let id = &ids[usize::try_from(self.random.below(3)).unwrap()];
                if self.nodes.try_execute(&["XADD", &self.key(p), id, "event_id", "foreign"]) {
                    self.alter(p, index).await;
                }
            }
            20..=21 => {
                let key = self.key(p);
                if let Some(Value::BulkString(bytes)) = self.nodes.answer(&[b"DUMP", key.as_bytes()]) {
                    self.copy = Some((key, bytes));
                }
            }
            22..=23 => {
                // A replica that was behind is promoted.
                if let Some((key, bytes)) = self.copy.take().filter(|(key, _)| *key == self.key(p)) {
                    self.nodes.answer(&[b"RESTORE", key.as_bytes(), b"0", &bytes, b"REPLACE"]).unwrap();
                }
            }
            24 => self.restart(),
            25 => self.processes.push(Process::start(&self.outbox, self.nodes)),
            26 => {
                // Everybody believes to have the lease.
                let ignored = self.outbox.ignores_leases.load(Ordering::SeqCst);
                self.outbox.ignores_leases.store(!ignored, Ordering::SeqCst);
            }
            27 => self.outbox.failing_records.store(3, Ordering::SeqCst),
            28 => self.outbox.failing_raises.store(4, Ordering::SeqCst),
            29 => self.backup = Some(self.outbox.backup()),
            30 => {
                if let Some(backup) = self.backup.take() {
                    self.processes.clear();
                    self.outbox.restore(backup);
                    (self.altered, self.copy) = ([true; 2], None);
                    self.restart();
                }
            }
            _ => self.settle(p, index).await,
        }
        let pause = self.random.below(25);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        self.assert_not_trimmed_too_far(p, index).await;
    }

    fn commit(&mut self, p: Partition) {
        let count = 1 + i64::try_from(self.random.below(60)).unwrap();
        let events = self.outbox.commit(p, count);
        let is_buffered = self.random.below(2) == 0;
        if let Some(process) = self.processes.first().filter(|_| is_buffered) {
            process.running.events.committed(events);
        }
    }

    /// Kills all publishers and starts one.
    fn restart(&mut self) {
        self.processes.clear();
        self.outbox.expire_leases();
        self.processes.push(Process::start(&self.outbox, self.nodes));
    }

    async fn alter(&mut self, p: Partition, index: usize) {
        self.altered[index] = true;
        if self.random.below(2) == 0 {
            self.settle(p, index).await;
        }
    }

    /// Without a fault from outside, no entry that the stream must hold was removed: the floor is committed first.
    async fn assert_not_trimmed_too_far(&self, p: Partition, index: usize) {
        let first = self.stream.read(p, self.outbox.generation(p), EntryId::START, 1).await.unwrap();
        let floor = self.outbox.floor_seq(p);
        let first = first.first().map_or(0, |entry| entry.id.seq);
        let is_held = i64::try_from(first).is_ok_and(|first| first <= floor);
        assert!(is_held || self.altered[index], "the stream starts at {first}, the floor is {floor}");
    }

    /// Whether the stream is dense from the floor or earlier to the last event, equal to the outbox, and all of it is
    /// recorded.
    async fn is_right(&self, p: Partition) -> bool {
        let all = self.outbox.all(p);
        let head = i64::try_from(all.len()).unwrap();
        if self.outbox.published_seq(p) != head {
            return false;
        }
        let found = entries(&*self.stream, p, self.outbox.generation(p)).await;
        let floor = self.outbox.floor_seq(p);
        let first = found.first().map_or(floor, |entry| i64::try_from(entry.id.seq).unwrap_or(i64::MAX));
        let expected = usize::try_from(first - 1).ok().and_then(|skipped| all.get(skipped..)).unwrap_or_default();
        let is_equal = found.len() == expected.len()
            && found.iter().zip(expected).all(|(entry, event)| {
                entry.id == EntryId::of(event.seq) && entry.event_id == event.event_id.to_string()
            });
        first <= floor && is_equal
    }

    /// Waits until the partition is right, or is marked as diverged for a reason and rebuilt.
    async fn settle(&mut self, p: Partition, index: usize) {
        self.outbox.ignores_leases.store(false, Ordering::SeqCst);
        for _ in 0..MAX_REBUILDS {
            let outcome = "the stream is right or has diverged";
            eventually(outcome, async || self.outbox.diverged_seq(p).is_some() || self.is_right(p).await).await;
            let Some(seq) = self.outbox.diverged_seq(p) else {
                self.altered[index] = false;
                return;
            };
            assert!(self.altered[index], "partition {index} diverged at {seq} without a reason");
            self.counts.diverged.fetch_add(1, Ordering::SeqCst);
            let (outbox, stream) = (self.outbox.clone(), self.stream.clone());
            rebuild(outbox, stream, Arc::new(SystemClock), &[p], WITHIN).await.unwrap();
        }
        panic!("partition {index} diverges again and again");
    }

    async fn finish(mut self) {
        if self.processes.is_empty() {
            self.restart();
        }
        for index in 0..2 {
            let p = partition(u8::try_from(index).unwrap());
            self.settle(p, index).await;
            self.counts.trimmed.fetch_add(u64::from(self.outbox.floor_seq(p) > 1), Ordering::SeqCst);
        }
        let used = [partition(0), partition(1)];
        let report = verify(&*self.outbox, &*self.stream, &used).await.unwrap();
        assert!(report.is_equal(), "{report:?}");
        self.processes.clear();
    }
}

async fn run(seed: u64, nodes: &Nodes, counts: &Counts) {
    nodes.flush();
    let outbox = Arc::new(MemoryOutbox::new());
    outbox.min_events_in_stream.store(MIN_EVENTS, Ordering::SeqCst);
    let processes = vec![Process::start(&outbox, nodes)];
    let (random, stream) = (Random(seed), nodes.stream());
    let (altered, copy, backup) = ([false; 2], None, None);
    let mut world = World { nodes, stream, outbox, processes, random, altered, copy, backup, counts };
    for _ in 0..OPERATIONS {
        world.operate().await;
    }
    world.finish().await;
}

/// Runs the seeds, several at a time, each thread with nodes of its own.
fn run_all(seeds: u64, threads: usize, nodes: impl Fn() -> Nodes + Sync) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("STREAM_FAULT_SEED").unwrap_or(1);
    let last = first + number("STREAM_FAULT_RUNS").unwrap_or(seeds);
    let (next, failed, counts) = (AtomicU64::new(first), Mutex::new(Vec::new()), Counts::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let nodes = nodes();
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= last {
                        return;
                    }
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    if catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(seed, &nodes, &counts)))).is_err() {
                        eprintln!("STREAM_FAULT_SEED={seed} STREAM_FAULT_RUNS=1 runs this again");
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let (trimmed, diverged) = (counts.trimmed.into_inner(), counts.diverged.into_inner());
    println!("{} runs: {trimmed} streams were trimmed, {diverged} divergences", last - first);
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed seeds: {failed:?}");
    assert!(last - first < seeds || (trimmed > 0 && diverged > 0), "the faults had no effect");
}

#[test]
fn random_faults_lose_nothing_and_every_divergence_is_raised() {
    run_all(SEEDS, THREADS, || Nodes(vec![RedisServer::start()]));
}

#[test]
fn random_faults_on_a_cluster_lose_nothing_and_every_divergence_is_raised() {
    run_all(SEEDS_ON_A_CLUSTER, 1, || Nodes(cluster()));
}
