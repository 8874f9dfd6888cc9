//! The reference consumers of `examples/` on a real server and a real Redis: whatever happens to them, every event takes
//! effect exactly once. Each group has two consumers, and each language its own group.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use deadpool_redis::redis::{Value, from_redis_value};
use futures::future::join_all;
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::task::JoinSet;

use crate::load::{Client, deduct_path, workspace};
use crate::processes::{Billing, Redis};
use crate::reference_processes::{FAILING, Figures, Group, IDLE_LIMIT, Language, Operator};
use crate::{Random, seed};

const WORKSPACES: u128 = 5;
const FEATURES: [&str; 2] = ["video.render", "image.upscale"];
/// A feature that is used once, behind an event that fails.
const BEHIND: &str = "image.generate";
const KILLS: u64 = 8;
/// More than a stream keeps at least, so that some are trimmed.
const MISSED: u64 = 1_260;
/// The consumers must have all events in this time. It is long because the processors are shared.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(40);

/// Deducts until it is told to stop.
struct Deductions {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Figures>,
}

fn micro_credits(credits: &str) -> i64 {
    let (whole, places) = credits.split_once('.').unwrap_or((credits, ""));
    format!("{whole}{places:0<6}").parse().unwrap()
}

fn add(figures: &mut Figures, others: Figures) {
    for (key, amount) in others {
        *figures.entry(key).or_default() += amount;
    }
}

/// One deduction of a whole number of micro-credits, sent until it is answered.
async fn deduct(client: &Client, number: u128, feature: &str, micro: i64, key: &str) -> Figures {
    let credits = format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000);
    let id = workspace(number);
    client.post(&deduct_path(id), key, &json!({"feature_code": feature, "credits": credits})).await;
    Figures::from([((id.to_string(), feature.to_owned()), micro)])
}

impl Deductions {
    fn start(client: &Client, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..WORKSPACES {
            let (client, stop, name) = (client.clone(), Arc::clone(&stop), name.to_owned());
            clients.spawn(async move {
                let (mut figures, mut random) = (Figures::new(), Random(u64::try_from(number).unwrap()));
                for round in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let (feature, micro) = (FEATURES[round % 2], 1 + i64::try_from(random.below(2_000_000)).unwrap());
                    add(&mut figures, deduct(&client, number, feature, micro, &format!("{name}-{round}")).await);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                figures
            });
        }
        Self { stop, clients }
    }

    async fn finish(self) -> Figures {
        self.stop.store(true, Ordering::SeqCst);
        let mut sum = Figures::new();
        self.clients.join_all().await.into_iter().for_each(|figures| add(&mut sum, figures));
        sum
    }
}

struct World {
    redis: Redis,
    operator: Operator,
    billing: Billing,
    client: Client,
    groups: Vec<Group>,
    /// What was acknowledged.
    expected: Figures,
    begun: Instant,
}

impl World {
    async fn create() -> Self {
        let redis = Redis::create();
        let operator = Operator(redis.url());
        operator.create_user();
        // A publisher that was killed keeps its leases for this long.
        let settings = [("VISIONSCOPE__PUBLISHER__LEASE_TTL_MS", "1000".to_owned())];
        let billing = Billing::create_with(None, Some(&redis), &settings).await;
        let client = Client::new(&billing);
        for number in 0..WORKSPACES {
            let id = workspace(number);
            let body = json!({"name": "Consumed", "plan_code": "scale"});
            assert_eq!(client.put(&format!("/v1/workspaces/{id}"), &body).await, 201);
            let purchase = json!({
                "credits": "1000000", "amount_minor": 1, "currency": "EUR", "payment_reference": "pay-1",
            });
            client.post(&format!("/v1/workspaces/{id}/credits/purchase"), "buy", &purchase).await;
        }
        let groups = Language::all().into_iter().map(|language| Group::new(language, &billing, &redis)).collect();
        Self { redis, operator, billing, client, groups, expected: Figures::new(), begun: Instant::now() }
    }

    fn start_consumers(&mut self) {
        for group in &mut self.groups {
            group.start("one");
            group.start("two");
        }
    }

    async fn terminate_consumers(&mut self) {
        join_all(self.groups.iter_mut().map(Group::terminate)).await;
    }

    /// Waits until every group has added up what was acknowledged.
    async fn wait_until_equal(&self, what: &str) {
        let started = Instant::now();
        for group in &self.groups {
            loop {
                let figures = group.figures().await;
                if figures == self.expected {
                    break;
                }
                let (language, log, expected) = (group.language, group.log(), &self.expected);
                let late = started.elapsed() > CATCH_UP_TIMEOUT;
                assert!(!late, "{what}: {language:?} has {figures:?} and not {expected:?}: {log}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        println!("{:?} {what}: equal after {:?}", self.begun.elapsed(), started.elapsed());
    }

    async fn kill_at_random(&mut self, random: &mut Random) {
        for _ in 0..KILLS {
            tokio::time::sleep(Duration::from_millis(150 + random.below(400))).await;
            let group = usize::try_from(random.below(self.groups.len() as u64)).unwrap();
            let consumer = ["one", "two"][usize::from(random.below(2) == 1)];
            println!("kill {consumer} of {:?}", self.groups[group].language);
            self.groups[group].kill(consumer);
            self.groups[group].start(consumer);
        }
    }

    /// An event fails, its workspace waits behind it, and goes on when it is a dead letter.
    async fn poison(&mut self) {
        deduct(&self.client, 0, FAILING, 1_000_000, "fails").await;
        let behind = deduct(&self.client, 0, BEHIND, 2_000_000, "behind").await;
        let other = deduct(&self.client, 1, BEHIND, 3_000_000, "other").await;
        let is_dead = |group: &Group| {
            let length = |number| self.operator.run::<i64>(&format!("XLEN vs:{{p{number:02}}}:dlq:{}", group.name));
            (0..16).map(length).sum::<i64>() > 0
        };
        let key = behind.keys().next().unwrap();
        let (mut waiting, started) = (self.groups.iter().collect::<Vec<_>>(), Instant::now());
        while !waiting.is_empty() {
            for group in std::mem::take(&mut waiting) {
                let figures = group.figures().await;
                if !is_dead(group) {
                    assert!(!figures.contains_key(key), "{:?}: later events of a workspace wait", group.language);
                    waiting.push(group);
                }
            }
            let logs = || waiting.iter().map(|group| group.log()).collect::<String>();
            assert!(started.elapsed() < CATCH_UP_TIMEOUT, "no dead letter: {}", logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        add(&mut self.expected, behind);
        add(&mut self.expected, other);
        self.wait_until_equal("a dead letter").await;
    }

    /// The consumers are away for longer than the streams hold events, and one never comes back.
    async fn trim_past_the_groups(&mut self) {
        self.terminate_consumers().await;
        let mut received = 0;
        for consumer in ["gone", "one"] {
            // The rounds make sure that there is something to receive.
            let deductions = Deductions::start(&self.client, consumer);
            tokio::time::sleep(Duration::from_millis(300)).await;
            add(&mut self.expected, deductions.finish().await);
            self.billing.wait_until_published().await;
            for (stream, group) in self.streams_of_groups() {
                let read = format!("XREADGROUP GROUP {group} {consumer} COUNT 3 STREAMS {stream} >");
                received += usize::from(self.operator.run::<Option<Value>>(&read).is_some());
            }
        }

        assert!(received > 0, "both consumers have received something before it is trimmed");

        let mut clients = JoinSet::new();
        for number in 0..20 {
            let client = self.client.clone();
            clients.spawn(async move {
                let mut sum = Figures::new();
                for round in 0..MISSED / 20 {
                    add(&mut sum, deduct(&client, 0, FEATURES[0], 1, &format!("missed-{number}-{round}")).await);
                }
                sum
            });
        }

        clients.join_all().await.into_iter().for_each(|figures| add(&mut self.expected, figures));
        self.billing.wait_until_published().await;
        self.billing.stop();

        self.age_publications().await;
        self.billing.start();

        self.billing.wait_until_ready().await;
        let started = Instant::now();
        while self.groups.iter().any(|group| !self.is_trimmed_past(&group.name)) {
            assert!(started.elapsed() < CATCH_UP_TIMEOUT, "the publisher does not trim");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// As if all events had been published two days ago.
    async fn age_publications(&self) {
        let options = SqliteConnectOptions::new().filename(self.billing.sqlite_file());
        let mut database = options.connect().await.unwrap();
        sqlx::raw_sql(
            "drop trigger stream_batches_refuse_update;
            update stream_batches set published_at = published_at - 2 * 86400 * 1000000;",
        )
        .execute(&mut database)
        .await
        .unwrap();
        database.close().await.unwrap();
    }

    fn streams_of_groups(&self) -> Vec<(String, String)> {
        let names = |stream: String| self.groups.iter().map(move |group| (stream.clone(), group.name.clone()));
        self.operator.streams().into_iter().flat_map(names).collect()
    }

    /// Whether the first entry of some stream is not the next one for the group.
    fn is_trimmed_past(&self, name: &str) -> bool {
        self.operator.streams().iter().any(|stream| {
            let first: Vec<(String, Vec<String>)> = self.operator.run(&format!("XRANGE {stream} - + COUNT 1"));
            let groups: Vec<HashMap<String, Value>> = self.operator.run(&format!("XINFO GROUPS {stream}"));
            let number = |id: &str| id.split('-').next().unwrap().parse::<i64>().unwrap();
            groups.iter().any(|group| {
                let text = |field: &str| from_redis_value::<String>(group[field].clone()).unwrap();
                text("name") == name && number(&first[0].0) > number(&text("last-delivered-id")) + 1
            })
        })
    }

    /// The server's own usage logs.
    async fn usage(&self) -> Figures {
        let mut figures = Figures::new();
        for number in 0..WORKSPACES {
            let (id, mut cursor) = (workspace(number), String::new());
            loop {
                let page = self.client.get(&format!("/v1/workspaces/{id}/usage?limit=200{cursor}")).await;
                for item in page["items"].as_array().unwrap() {
                    let key = (id.to_string(), item["feature_code"].as_str().unwrap().to_owned());
                    *figures.entry(key).or_default() += micro_credits(item["credits"].as_str().unwrap());
                }
                let Some(next) = page["next"].as_str() else { break };
                cursor = format!("&cursor={next}");
            }
        }
        figures
    }

    /// Nothing is pending, failed or waiting.
    async fn wait_until_idle(&self) {
        let started = Instant::now();
        for (stream, group) in self.streams_of_groups() {
            let pending = || self.operator.run::<PendingSummary>(&format!("XPENDING {stream} {group}"));
            while pending().0 > 0 {
                assert!(started.elapsed() < CATCH_UP_TIMEOUT, "{group} {stream}: {:?}", pending());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        for group in &self.groups {
            assert_eq!(group.held().await, 0, "{:?}", group.language);
        }
    }
}

/// How many entries are pending, the first, the last, and how many of each consumer.
type PendingSummary = (i64, Option<String>, Option<String>, Option<Vec<(String, String)>>);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_consumers_add_up_every_event_exactly_once() {
    let mut random = Random(seed());
    let mut world = World::create().await;
    world.start_consumers();
    let deductions = Deductions::start(&world.client, "kills");
    world.kill_at_random(&mut random).await;
    add(&mut world.expected, deductions.finish().await);
    world.wait_until_equal("consumers were killed").await;

    world.poison().await;

    let deductions = Deductions::start(&world.client, "redis");
    world.redis.kill_and_restart(Duration::from_millis(300)).await;
    world.operator.create_user();
    tokio::time::sleep(Duration::from_millis(500)).await;
    add(&mut world.expected, deductions.finish().await);
    world.wait_until_equal("Redis was lost").await;

    let deductions = Deductions::start(&world.client, "rebuild");
    assert!(world.billing.run(&["outbox", "rebuild"]), "the new generation is filled");
    add(&mut world.expected, deductions.finish().await);
    world.wait_until_equal("a new generation").await;

    world.trim_past_the_groups().await;
    world.start_consumers();
    world.wait_until_equal("the streams were trimmed").await;
    // Everything that the streams hold comes a second time.

    for (stream, group) in world.streams_of_groups() {
        world.operator.run::<()>(&format!("XGROUP SETID {stream} {group} 0"));
    }
    world.terminate_consumers().await;
    world.groups.iter_mut().for_each(Group::replay);

    let again = deduct(&world.client, 0, FAILING, 500_000, "fails-no-more").await;
    add(&mut world.expected, again);
    add(&mut world.expected, Figures::from([((workspace(0).to_string(), FAILING.to_owned()), 1_000_000)]));
    world.start_consumers();
    world.wait_until_equal("dead letters were replayed").await;

    assert_eq!(world.usage().await, world.expected, "the server's usage");

    world.wait_until_idle().await;

    world.terminate_consumers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_consumer_keeps_its_entries_while_its_work_takes_long() {
    let mut world = World::create().await;
    for group in &mut world.groups {
        group.start("one");
    }
    let first = deduct(&world.client, 0, FEATURES[0], 1, "first").await;
    add(&mut world.expected, first);
    world.wait_until_equal("started").await;
    for group in &world.groups {
        // The work waits for the lock of the database.
        let mut database = group.database().await;
        let lock = database.begin_with("begin immediate").await.unwrap();
        let key = format!("slow-{}", group.name);
        let slow = deduct(&world.client, 0, FEATURES[0], 1, &key).await;
        add(&mut world.expected, slow);
        let started = Instant::now();
        let mut was_pending = false;
        while started.elapsed() < IDLE_LIMIT * 2 + Duration::from_millis(500) {
            for stream in world.operator.streams() {
                let claim = format!("XAUTOCLAIM {stream} {} other {} 0 JUSTID", group.name, IDLE_LIMIT.as_millis());
                let (_, claimed, _): (String, Vec<String>, Vec<String>) = world.operator.run(&claim);
                assert!(claimed.is_empty(), "{:?} has not kept {claimed:?} of {stream}", group.language);
                let pending: PendingSummary = world.operator.run(&format!("XPENDING {stream} {}", group.name));
                was_pending |= pending.0 > 0;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(was_pending, "the work has waited");
        lock.rollback().await.unwrap();
    }
    world.wait_until_equal("the work was done").await;
    world.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_two_reference_consumers_have_at_once_counts_once() {
    let mut world = World::create().await;
    for group in &mut world.groups {
        group.start("one");
    }
    let first = deduct(&world.client, 0, FEATURES[0], 1, "first").await;
    add(&mut world.expected, first);
    world.wait_until_equal("started").await;
    let mut locked = Vec::new();
    for group in &world.groups {
        locked.push(group.database().await);
    }
    let mut locks = Vec::new();
    for database in &mut locked {
        locks.push(database.begin_with("begin immediate").await.unwrap());
    }
    // The first consumers have the event, and wait for the lock. The second ones get it too, and wait as well.
    let second = deduct(&world.client, 0, FEATURES[0], 2, "second").await;
    add(&mut world.expected, second);
    let started = Instant::now();
    let has_pending = |world: &World, group: &str, consumer: &str| {
        world.streams_of_groups().iter().filter(|(_, of)| of == group).any(|(stream, _)| {
            let owners: Vec<Value> = world.operator.run(&format!("XPENDING {stream} {group} - + 9 {consumer}"));
            !owners.is_empty()
        })
    };
    for consumer in ["one", "two"] {
        if consumer == "two" {
            for (stream, group) in world.streams_of_groups() {
                world.operator.run::<()>(&format!("XGROUP SETID {stream} {group} 0"));
            }
            world.groups.iter_mut().for_each(|group| group.start(consumer));
        }
        for group in &world.groups {
            while !has_pending(&world, &group.name, consumer) {
                assert!(started.elapsed() < IDLE_LIMIT * 5, "{:?} {consumer} gets nothing", group.language);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for lock in locks {
        lock.rollback().await.unwrap();
    }
    world.wait_until_equal("both went on").await;
    world.wait_until_idle().await;
    assert_eq!(world.usage().await, world.expected);
    for group in &world.groups {
        assert_eq!(group.figures().await, world.expected, "{:?}", group.language);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_consumer_ends_with_a_clear_error_if_a_person_must_act() {
    let mut world = World::create().await;
    for group in &mut world.groups {
        group.start("one");
    }
    let first = deduct(&world.client, 0, FEATURES[0], 1, "first").await;
    add(&mut world.expected, first);
    world.wait_until_equal("started").await;
    world.terminate_consumers().await;
    for group in &world.groups {
        group.fails_to_start(Some(("BILLING_TOKEN", "")), "BILLING_TOKEN is not set").await;
        group.fails_to_start(Some(("BILLING_TOKEN", "wrong")), "401").await;
        group.fails_to_start(Some(("IDLE_LIMIT_S", "soon")), "soon").await;
        // The server's database has another event at that place, or has fewer events.
        for change in ["event_id = 'another'", "sequence = sequence + 1000"] {
            let mut database = group.database().await;
            let update = format!("update positions set {change}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(update)).execute(&mut database).await.unwrap();
            database.close().await.unwrap();
            group.fails_to_start(None, "the server's database was restored").await;
        }
    }
}
