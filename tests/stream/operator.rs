//! The operator's commands: status, verify and rebuild.

use std::sync::Arc;
use std::time::Duration;

use visionscope_billing::clock::SystemClock;
use visionscope_billing::domain::ids::Partition;
use visionscope_billing::outbox::{FindingKind, rebuild, status, verify};
use visionscope_billing::publisher::{PublisherConfig, Retention};
use visionscope_billing::store::Outbox;
use visionscope_billing::stream::{EntryId, EventStream};

use crate::events::{assert_stream_equals, event, events, eventually, eventually_ends_at, json_of, partition};
use crate::memory_outbox::MemoryOutbox;
use crate::publishing::{RunningPublisher, test_config};
use crate::redis_server::RedisServer;

const WITHIN: Duration = Duration::from_secs(20);

/// An outbox with ten published events in one partition, and no running publisher.
async fn published(redis: &RedisServer) -> Arc<MemoryOutbox> {
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(0));
    outbox.commit(p, 10);
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    eventually("all is recorded", async || outbox.published_seq(p) == 10).await;
    running.stop().await;
    outbox
}

/// Nothing is kept longer than it must be.
fn trimming_config() -> PublisherConfig {
    let soon = Duration::from_millis(20);
    let retention = Some(Retention { events: soon, batches: soon });
    PublisherConfig { retention, probe_interval: soon, trim_interval: soon, ..test_config() }
}

async fn kinds(redis: &RedisServer, outbox: &MemoryOutbox) -> Vec<(FindingKind, i64, i64)> {
    let report = verify(outbox, &*redis.stream(), &[partition(0)]).await.unwrap();
    report.partitions[0].findings.iter().map(|finding| (finding.kind, finding.seq, finding.seq_to)).collect()
}

/// Replaces the stream by entries with these ids and events.
fn write(redis: &RedisServer, entries: &[(&str, i64)]) {
    redis.execute::<i64>(&["DEL", "vs:{p00}:g1"]);
    for (id, seq) in entries {
        let event = event(partition(0), *seq);
        let (event_id, workspace_id) = (event.event_id.to_string(), event.workspace_id.to_string());
        let envelope = json_of(&event);
        redis.execute::<String>(&[
            "XADD",
            "vs:{p00}:g1",
            id,
            "event_id",
            &event_id,
            "event_type",
            event.event_type.as_str(),
            "workspace_id",
            &workspace_id,
            "event",
            &envelope,
        ]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_missing_doubled_reordered_altered_and_foreign_entries() {
    use FindingKind::{Altered, Doubled, Foreign, Missing, Reordered};
    let redis = RedisServer::start();
    let outbox = published(&redis).await;
    assert_eq!(kinds(&redis, &outbox).await, []);
    let ids: Vec<String> = (0..=10).map(|seq| format!("{seq}-0")).collect();
    let good: Vec<(&str, i64)> = (1..=10).map(|seq: i64| (ids[usize::try_from(seq).unwrap()].as_str(), seq)).collect();

    redis.execute::<i64>(&["XDEL", "vs:{p00}:g1", "4-0", "5-0", "6-0", "10-0"]);
    assert_eq!(kinds(&redis, &outbox).await, [(Missing, 4, 6), (Missing, 10, 10)]);

    let mut doubled = good.clone();
    doubled.insert(7, ("7-1", 3));
    write(&redis, &doubled);
    assert_eq!(kinds(&redis, &outbox).await, [(Doubled, 7, 7)]);

    let mut swapped = good.clone();
    (swapped[2].1, swapped[3].1) = (4, 3);
    write(&redis, &swapped);
    assert_eq!(kinds(&redis, &outbox).await, [(Reordered, 3, 3), (Reordered, 4, 4)]);

    write(&redis, &good);
    redis.execute::<String>(&["XADD", "vs:{p00}:g1", "11-0", "event_id", "x", "event", "{}"]);
    assert_eq!(kinds(&redis, &outbox).await, [(Foreign, 11, 11)]);

    write(&redis, &good[..9]);
    let last = event(partition(0), 10);
    let altered = json_of(&last).replace("\"10\"", "\"11\"");
    let (event_id, workspace_id) = (last.event_id.to_string(), last.workspace_id.to_string());
    redis.execute::<String>(&[
        "XADD",
        "vs:{p00}:g1",
        "10-0",
        "event_id",
        &event_id,
        "event_type",
        last.event_type.as_str(),
        "workspace_id",
        &workspace_id,
        "event",
        &altered,
    ]);
    assert_eq!(kinds(&redis, &outbox).await, [(Altered, 10, 10)]);
    let report = verify(&*outbox, &*redis.stream(), &[partition(0)]).await.unwrap();
    assert!(!report.is_equal());
    assert_eq!((report.partitions[0].entries, report.partitions[0].differences), (10, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_counts_unpublished_events_without_a_finding() {
    let redis = RedisServer::start();
    let outbox = published(&redis).await;
    outbox.commit(partition(0), 700);
    let all: Vec<_> = Partition::all().collect();
    let report = verify(&*outbox, &*redis.stream(), &all).await.unwrap();
    assert!(report.is_equal());
    assert_eq!((report.partitions.len(), report.partitions[0].waiting), (16, 700));
    let status = status(&*outbox, &*redis.stream()).await.unwrap();
    assert!(!status.is_up_to_date());
    let line = &status.partitions[0];
    assert_eq!((line.seq, line.published_seq, line.stream_seq, line.waiting), (710, 10, Some(10), 700));
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_repairs_a_diverged_partition_while_its_publisher_runs() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(0));
    stream.append(p, 1, 1, None, &events(p, 1..=3)).await.unwrap();
    redis.execute::<i64>(&["XDEL", "vs:{p00}:g1", "2-0"]);
    outbox.commit(p, 900);
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    eventually("it is noticed", async || outbox.diverged_seq(p).is_some()).await;
    let report = rebuild(outbox.clone(), stream.clone(), Arc::new(SystemClock), &[p], WITHIN).await.unwrap();
    assert!(report.is_done(), "{report:?}");
    assert_eq!((report.partitions[0].generation, report.partitions[0].stream.as_str()), (2, "vs:{p00}:g2"));
    assert_stream_equals(&*stream, 2, &outbox.all(p)).await;
    assert_eq!(redis.execute::<String>(&["GET", "vs:{p00}:generation"]), "2");
    outbox.commit(p, 10);
    eventually_ends_at(&*stream, p, 2, 910).await;
    assert!(verify(&*outbox, &*stream, &[p]).await.unwrap().is_equal());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_fills_the_streams_itself_without_a_running_publisher() {
    let redis = RedisServer::start();
    let outbox = published(&redis).await;
    let all: Vec<_> = Partition::all().collect();
    let report = rebuild(outbox.clone(), redis.stream(), Arc::new(SystemClock), &all, WITHIN).await.unwrap();
    assert!(report.is_done());
    assert_stream_equals(&*redis.stream(), 2, &outbox.all(partition(0))).await;
    assert_eq!(outbox.leases_of_anyone(), 0);
    assert!(status(&*outbox, &*redis.stream()).await.unwrap().is_up_to_date());
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_reported_while_redis_is_down() {
    let redis = RedisServer::not_started(&[]);
    let outbox = MemoryOutbox::new();
    outbox.commit(partition(0), 3);
    let report = status(&outbox, &*redis.stream()).await.unwrap();
    assert!(report.stream_error.is_some() && !report.is_up_to_date());
    assert_eq!((report.partitions.len(), outbox.heads().await.unwrap().len()), (16, 16));
}

/// An outbox with 2,500 published events in one partition, whose stream was trimmed, and no running publisher.
async fn trimmed(redis: &RedisServer) -> Arc<MemoryOutbox> {
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(0));
    outbox.commit(p, 2_500);
    let running = RunningPublisher::start(&outbox, &stream, trimming_config());
    eventually("the floor is raised", async || outbox.floor_seq(p) == 1_500).await;
    let first = async || stream.read(p, 1, EntryId::START, 1).await.unwrap()[0].id.seq;
    eventually("the stream is trimmed", async || (1_400..=1_500).contains(&first().await)).await;
    running.stop().await;
    outbox
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_knows_the_floor() {
    let redis = RedisServer::start();
    let outbox = trimmed(&redis).await;
    assert_eq!(kinds(&redis, &outbox).await, [], "what was trimmed is not missing");
    let key = "vs:{p00}:g1";
    redis.execute::<i64>(&["XTRIM", key, "MINID", "1500"]);
    assert_eq!(kinds(&redis, &outbox).await, []);
    redis.execute::<i64>(&["XDEL", key, "1800-0"]);
    redis.execute::<i64>(&["XTRIM", key, "MINID", "1511"]);
    let missing = |from, to| (FindingKind::Missing, from, to);
    assert_eq!(kinds(&redis, &outbox).await, [missing(1_500, 1_510), missing(1_800, 1_800)]);
    redis.execute::<i64>(&["DEL", key]);
    assert_eq!(kinds(&redis, &outbox).await, [missing(1_500, 2_500)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_begins_at_the_floor_and_removes_nothing() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (trimmed(&redis).await, redis.stream(), partition(0));
    let report = rebuild(outbox.clone(), stream.clone(), Arc::new(SystemClock), &[p], WITHIN).await.unwrap();
    assert!(report.is_done(), "{report:?}");
    assert_eq!(report.partitions[0].floor_seq, 1_500);
    assert_stream_equals(&*stream, 2, &outbox.all(p)[1_499..]).await;
    assert!(verify(&*outbox, &*stream, &[p]).await.unwrap().is_equal());
    assert!(status(&*outbox, &*stream).await.unwrap().is_up_to_date());
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_floor_and_how_far_behind_each_group_is() {
    let redis = RedisServer::start();
    let outbox = trimmed(&redis).await;
    for (name, from) in [("behind", "1498-0"), ("ready", "1499-0"), ("new", "0"), ("latest", "$")] {
        redis.execute::<()>(&["XGROUP", "CREATE", "vs:{p00}:g1", name, from]);
    }
    outbox.commit(partition(0), 7);
    let report = status(&*outbox, &*redis.stream()).await.unwrap();
    let line = &report.partitions[0];
    assert_eq!((line.floor_seq, report.partitions[1].floor_seq), (1_500, 1));
    let groups: Vec<_> =
        line.groups.iter().map(|group| (group.name.as_str(), group.lag, group.is_behind_floor)).collect();
    let expected = [("behind", 1_009, true), ("latest", 7, false), ("new", 2_507, true), ("ready", 1_008, false)];
    assert_eq!(groups, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_records_of_batches_are_deleted_and_a_lost_stream_is_refilled_from_the_floor() {
    let redis = RedisServer::start();
    let (outbox, stream, p) = (Arc::new(MemoryOutbox::new()), redis.stream(), partition(0));
    let running = RunningPublisher::start(&outbox, &stream, trimming_config());
    for round in 1..=10 {
        outbox.commit(p, 250);
        eventually("it is recorded", async || outbox.published_seq(p) == round * 250).await;
    }
    eventually("the floor is raised", async || outbox.floor_seq(p) == 1_500).await;
    eventually("old records are deleted", async || outbox.first_batch(p) >= Some(1_500)).await;
    redis.execute::<()>(&["FLUSHALL"]);
    eventually_ends_at(&*stream, p, 1, 2_500).await;
    assert_stream_equals(&*stream, 1, &outbox.all(p)[1_499..]).await;
    // Somebody else trims more than that.
    redis.execute::<i64>(&["XTRIM", "vs:{p00}:g1", "MINID", "1502"]);
    eventually("it is noticed", async || outbox.diverged_seq(p) == Some(1_500)).await;
    running.stop().await;
}
