//! The publisher with the real stores and a real Redis. `DATABASE_URL` names the PostgreSQL server; each test
//! creates a database of its own there.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};
use tempfile::TempDir;
use visionscope_billing::clock::{Clock, SystemClock};
use visionscope_billing::domain::change_set::ChangeSet;
use visionscope_billing::domain::cloud_event::AnyEventType;
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::ids::Partition;
use visionscope_billing::domain::partition_head::PartitionHead;
use visionscope_billing::domain::snapshot::KeySet;
use visionscope_billing::domain::text::Label;
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::workspace::Workspace;
use visionscope_billing::outbox::{rebuild, status, verify};
use visionscope_billing::publisher::{PublisherConfig, Retention};
use visionscope_billing::store::Store;
use visionscope_billing::store::postgres::{PostgresConfig, PostgresStore};
use visionscope_billing::store::sqlite::{SqliteConfig, SqliteStore};
use visionscope_billing::stream::{EntryId, EventStream};

use crate::events::{event, eventually, eventually_ends_at, json_of, partition, workspace_of};
use crate::publishing::{RunningPublisher, test_config};
use crate::redis_server::RedisServer;

const WITHIN: Duration = Duration::from_secs(30);

/// Commits this many events of a partition in one transaction, like a batch. Some are of a type that only a newer version
/// of the server knows.
async fn commit(store: &dyn Store, partition: Partition, count: i64) -> Vec<EventRecord> {
    let newer = AnyEventType::Newer("CreditsLent".to_owned());
    let of_any_type = |seq| match event(partition, seq) {
        event if seq % 5 == 0 => EventRecord { event_type: newer.clone(), ..event },
        event => event,
    };
    commit_each(store, partition, count, of_any_type).await
}

async fn commit_each(
    store: &dyn Store,
    partition: Partition,
    count: i64,
    event: impl Fn(i64) -> EventRecord,
) -> Vec<EventRecord> {
    let workspace_id = workspace_of(partition);
    let mut tx = store.begin().await.unwrap();
    let keys = KeySet { workspaces: [workspace_id].into(), ..KeySet::default() };
    let head = tx.load(&keys).await.unwrap().heads[&partition];
    let events: Vec<_> = (head.seq + 1..=head.seq + count).map(event).collect();
    let workspace = Workspace {
        workspace_id,
        name: Label::new("Acme Studio").unwrap(),
        time_zone: chrono_tz::UTC,
        monthly_limit_override: None,
        overdraft_limit_override: None,
        metadata: None,
        created_at: Timestamp::from_micros(1_760_000_000_000_000),
    };
    let changes = ChangeSet {
        heads: vec![PartitionHead {
            seq: head.seq + count,
            last_event_id: events.last().map(|event| event.event_id),
            version: head.version + 1,
            ..head
        }],
        workspaces: if head.seq == 0 { vec![workspace] } else { Vec::new() },
        events,
        ..ChangeSet::default()
    };
    tx.commit(&changes).await.unwrap();
    changes.events
}

/// Publishes, loses the streams, takes over and rebuilds. In the end the streams equal the outbox.
async fn streams_follow_the_outbox<S: Store + 'static>(store: Arc<S>, config: PublisherConfig) {
    let redis = RedisServer::start();
    let stream = redis.stream();
    let all: Vec<_> = Partition::all().collect();
    let used = [partition(0), partition(7), partition(15)];
    let first = RunningPublisher::start(&store, &stream, config);
    let second = RunningPublisher::start(&store, &stream, config);
    for round in 0..20 {
        for p in used {
            let events = commit(&*store, p, 43).await;
            first.events.committed(events);
        }
        if round == 8 {
            redis.execute::<()>(&["FLUSHALL"]);
        }
    }
    for p in used {
        eventually_ends_at(&*stream, p, 1, 860).await;
    }
    first.stop().await;
    for p in used {
        commit(&*store, p, 7).await;
        eventually_ends_at(&*stream, p, 1, 867).await;
    }
    let is_up_to_date = async || status(&*store, &*stream).await.unwrap().is_up_to_date();
    eventually("all is recorded", is_up_to_date).await;
    assert!(verify(&*store, &*stream, &all).await.unwrap().is_equal());

    redis.execute::<i64>(&["XDEL", "vs:{p07}:g1", "5-0"]);
    assert!(!verify(&*store, &*stream, &all).await.unwrap().is_equal());
    let report = rebuild(store.clone(), stream.clone(), Arc::new(SystemClock), &[used[1]], WITHIN).await.unwrap();
    assert!(report.is_done(), "{report:?}");
    assert_eq!(report.partitions[0].generation, 2);
    second.stop().await;
    let report = rebuild(store.clone(), stream.clone(), Arc::new(SystemClock), &all, WITHIN).await.unwrap();
    assert!(report.is_done(), "{report:?}");
    assert!(verify(&*store, &*stream, &all).await.unwrap().is_equal());
    assert!(status(&*store, &*stream).await.unwrap().is_up_to_date());
}

/// Trims a stream, loses it and rebuilds it. Each time it begins at the floor.
async fn a_trimmed_stream_is_dense_from_its_floor<S: Store + 'static>(store: Arc<S>) {
    let redis = RedisServer::start();
    let (stream, p, soon) = (redis.stream(), partition(7), Duration::from_millis(50));
    let retention = Some(Retention { events: soon, batches: soon });
    let config = PublisherConfig { retention, trim_interval: soon, probe_interval: soon, ..test_config() };
    let running = RunningPublisher::start(&store, &stream, config);
    for _ in 0..5 {
        running.events.committed(commit(&*store, p, 500).await);
    }
    let floor = async || store.status().await.unwrap()[7].floor_seq;
    eventually("the floor is raised", async || floor().await == 1_500).await;
    let first = async || stream.read(p, 1, EntryId::START, 1).await.unwrap().first().map(|entry| entry.id.seq);
    eventually("the stream is trimmed", async || (1_400..=1_500).contains(&first().await.unwrap())).await;
    assert!(verify(&*store, &*stream, &[p]).await.unwrap().is_equal());
    redis.execute::<()>(&["FLUSHALL"]);
    eventually_ends_at(&*stream, p, 1, 2_500).await;
    assert_eq!(first().await, Some(1_500));
    assert!(verify(&*store, &*stream, &[p]).await.unwrap().is_equal());
    let report = rebuild(store.clone(), stream.clone(), Arc::new(SystemClock), &[p], WITHIN).await.unwrap();
    assert!(report.is_done(), "{report:?}");
    assert_eq!(stream.read(p, 2, EntryId::START, 1).await.unwrap()[0].id.seq, 1_500);
    assert!(verify(&*store, &*stream, &[p]).await.unwrap().is_equal());
    assert!(status(&*store, &*stream).await.unwrap().is_up_to_date());
    running.stop().await;
}

/// Committed events make the same entries as the events read from the outbox.
async fn committed_events_equal_read_events(store: &dyn Store) {
    let p = partition(4);
    let odd = |seq| EventRecord {
        correlation_id: "request \"1\" \\ \u{e9}\u{1f600}".into(),
        traceparent: (seq % 2 == 0).then(|| "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        data: " {\"z\":[1e3, 0.10],\"y\":\"\\/ \u{e9}\"} ".into(),
        recorded_at: Timestamp::from_micros(1_760_000_000_999_999 + seq),
        ..event(p, seq)
    };
    let committed = commit_each(store, p, 6, odd).await;
    let read = store.read(p, 0, 10).await.unwrap();
    assert_eq!(committed, read);
    for (committed, read) in committed.iter().zip(&read) {
        assert_eq!(json_of(committed), json_of(read));
    }
}

/// Prints how fast a backlog is published.
async fn drain_a_backlog<S: Store + 'static>(store: Arc<S>) {
    let redis = RedisServer::start();
    let stream = redis.stream();
    for p in Partition::all() {
        for _ in 0..5 {
            commit(&*store, p, 500).await;
        }
    }
    let started = Instant::now();
    let running = RunningPublisher::start(&store, &stream, test_config());
    for p in Partition::all() {
        eventually_ends_at(&*stream, p, 1, 2500).await;
    }
    let took = started.elapsed();
    println!("40,000 events in {took:?}: {:.0}/s", 40_000.0 / took.as_secs_f64());
    running.stop().await;
}

async fn sqlite() -> (Arc<SqliteStore>, TempDir) {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(&SqliteConfig::new(folder.path().join("test.db"))).await.unwrap();
    store.migrate().await.unwrap();
    (Arc::new(store), folder)
}

/// A new database, and what is needed to drop it.
async fn postgres() -> (Arc<PostgresStore>, PgConnectOptions, String) {
    let url = std::env::var("DATABASE_URL").expect(
        "DATABASE_URL names no PostgreSQL server: run the tests with scripts/test, which starts one, or set it",
    );
    let server = PgConnectOptions::from_str(&url).unwrap();
    let name = format!("stream_{}", SystemClock.new_id().simple());
    let create = AssertSqlSafe(format!("create database {name}"));
    server.connect().await.unwrap().execute(create).await.unwrap();
    let url = server.clone().database(&name).to_url_lossy().to_string();
    let config = PostgresConfig { acquire_timeout: WITHIN, ..PostgresConfig::new(SecretString::from(url)) };
    let store = PostgresStore::connect(&config).await.unwrap();
    store.migrate().await.unwrap();
    (Arc::new(store), server, name)
}

async fn drop_database(store: Arc<PostgresStore>, server: PgConnectOptions, name: String) {
    store.close().await;
    let drop = AssertSqlSafe(format!("drop database {name} with (force)"));
    server.connect().await.unwrap().execute(drop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_equal_the_outbox_on_sqlite() {
    let (store, _folder) = sqlite().await;
    let config = PublisherConfig { poll_interval: Duration::from_millis(100), ..test_config() };
    streams_follow_the_outbox(store, config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_equal_the_outbox_on_postgres() {
    let (store, server, name) = postgres().await;
    streams_follow_the_outbox(Arc::clone(&store), test_config()).await;
    drop_database(store, server, name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_stream_is_dense_from_its_floor_on_sqlite() {
    let (store, _folder) = sqlite().await;
    a_trimmed_stream_is_dense_from_its_floor(store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_stream_is_dense_from_its_floor_on_postgres() {
    let (store, server, name) = postgres().await;
    a_trimmed_stream_is_dense_from_its_floor(Arc::clone(&store)).await;
    drop_database(store, server, name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_events_equal_read_events_on_sqlite() {
    let (store, _folder) = sqlite().await;
    committed_events_equal_read_events(&*store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_events_equal_read_events_on_postgres() {
    let (store, server, name) = postgres().await;
    committed_events_equal_read_events(&*store).await;
    drop_database(store, server, name).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn publishing_speed_of_a_backlog_on_sqlite() {
    let (store, _folder) = sqlite().await;
    drain_a_backlog(store).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn publishing_speed_of_a_backlog_on_postgres() {
    let (store, server, name) = postgres().await;
    drain_a_backlog(Arc::clone(&store)).await;
    drop_database(store, server, name).await;
}
