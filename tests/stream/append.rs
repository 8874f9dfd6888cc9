//! Compare and append, without a publisher.

use futures::future::join_all;
use visionscope_billing::domain::ids::Partition;
use visionscope_billing::stream::{Appended, EntryId, EventStream, LATER_GENERATION, MAX_APPEND_EVENTS, StreamError};

use crate::events::{assert_stream_equals, event, event_id, events, partition};
use crate::redis_server::RedisServer;

#[tokio::test]
async fn appending_the_same_events_again_changes_nothing() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(3));
    for _ in 0..3 {
        assert_eq!(stream.append(p, 1, 1, None, &events(p, 1..=5)).await.unwrap(), Appended::Ok);
    }
    let previous = Some((2, event_id(p, 2)));
    assert_eq!(stream.append(p, 1, 1, previous, &events(p, 3..=8)).await.unwrap(), Appended::Ok);
    assert_stream_equals(&*stream, 1, &events(p, 1..=8)).await;
    assert_eq!(redis.execute::<String>(&["GET", "vs:{p03}:generation"]), "1");
}

#[tokio::test]
async fn appending_after_a_missing_event_is_behind_and_writes_nothing() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    let previous = Some((3, event_id(p, 3)));
    assert_eq!(stream.append(p, 1, 1, previous, &events(p, 4..=5)).await.unwrap(), Appended::Behind { top_seq: 0 });
    stream.append(p, 1, 1, None, &events(p, 1..=2)).await.unwrap();
    assert_eq!(stream.append(p, 1, 1, previous, &[]).await.unwrap(), Appended::Behind { top_seq: 2 });
    assert_eq!(stream.top(p, 1).await.unwrap().unwrap().id, EntryId::of(2));
}

#[tokio::test]
async fn another_event_with_the_same_number_is_diverged() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    stream.append(p, 1, 1, None, &events(p, 1..=3)).await.unwrap();
    let other = event_id(p, 77);
    assert_eq!(stream.append(p, 1, 1, Some((3, other)), &[]).await.unwrap(), Appended::Diverged { seq: 3 });
    assert_eq!(stream.append(p, 1, 1, Some((2, other)), &[]).await.unwrap(), Appended::Diverged { seq: 2 });
    let mut batch = events(p, 1..=5);
    batch[1].event_id = other;
    assert_eq!(stream.append(p, 1, 1, None, &batch).await.unwrap(), Appended::Diverged { seq: 2 });
    assert_stream_equals(&*stream, 1, &events(p, 1..=3)).await;
}

#[tokio::test]
async fn a_gap_or_a_foreign_entry_is_diverged() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    stream.append(p, 1, 1, None, &events(p, 1..=5)).await.unwrap();
    redis.execute::<i64>(&["XDEL", "vs:{p00}:g1", "3-0"]);
    assert_eq!(stream.append(p, 1, 1, None, &events(p, 1..=6)).await.unwrap(), Appended::Diverged { seq: 3 });
    let previous = Some((5, event_id(p, 5)));
    assert_eq!(stream.append(p, 1, 1, previous, &[]).await.unwrap(), Appended::Ok);
    redis.execute::<String>(&["XADD", "vs:{p00}:g1", "5-1", "a", "b"]);
    assert_eq!(stream.append(p, 1, 1, previous, &[]).await.unwrap(), Appended::Diverged { seq: 5 });
    assert_eq!(stream.append(p, 1, 1, previous, &events(p, 6..=6)).await.unwrap(), Appended::Diverged { seq: 6 });
    redis.execute::<()>(&["SET", "vs:{p01}:g1", "text"]);
    let q = partition(1);
    assert_eq!(stream.append(q, 1, 1, None, &events(q, 1..=1)).await.unwrap(), Appended::Diverged { seq: 1 });
}

#[tokio::test]
async fn deleted_entries_at_the_end_are_written_again_with_the_same_ids() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    stream.append(p, 1, 1, None, &events(p, 1..=5)).await.unwrap();
    redis.execute::<i64>(&["XDEL", "vs:{p00}:g1", "4-0", "5-0"]);
    let behind = stream.append(p, 1, 1, Some((5, event_id(p, 5))), &events(p, 6..=6)).await.unwrap();
    assert_eq!(behind, Appended::Behind { top_seq: 3 });
    assert_eq!(stream.append(p, 1, 1, Some((3, event_id(p, 3))), &events(p, 4..=6)).await.unwrap(), Appended::Ok);
    assert_stream_equals(&*stream, 1, &events(p, 1..=6)).await;

    redis.execute::<i64>(&["XTRIM", "vs:{p00}:g1", "MAXLEN", "0"]);
    let behind = stream.append(p, 1, 1, Some((6, event_id(p, 6))), &[]).await.unwrap();
    assert_eq!(behind, Appended::Behind { top_seq: 0 });
    assert_eq!(stream.append(p, 1, 1, None, &events(p, 1..=6)).await.unwrap(), Appended::Ok);
    assert_stream_equals(&*stream, 1, &events(p, 1..=6)).await;
}

#[tokio::test]
async fn the_generation_key_never_decreases_and_an_earlier_generation_is_diverged() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    for generation in [1, 10] {
        assert_eq!(stream.append(p, generation, 1, None, &events(p, 1..=1)).await.unwrap(), Appended::Ok);
    }
    let earlier = Appended::Diverged { seq: LATER_GENERATION };
    assert_eq!(stream.append(p, 9, 1, None, &events(p, 1..=1)).await.unwrap(), earlier);
    assert_eq!(stream.append(p, 1, 1, Some((1, event_id(p, 1))), &[]).await.unwrap(), earlier);
    assert!(stream.top(p, 9).await.unwrap().is_none());
    assert_eq!(redis.execute::<String>(&["GET", "vs:{p00}:generation"]), "10");
}

#[tokio::test]
async fn an_append_that_is_too_large_or_has_a_gap_is_not_sent() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    let too_many = events(p, 1..=i64::from(MAX_APPEND_EVENTS) + 1);
    assert!(matches!(stream.append(p, 1, 1, None, &too_many).await, Err(StreamError::Corrupt(_))));
    for batch in [vec![event(p, 2)], vec![event(p, 1), event(p, 3)], vec![event(partition(1), 1)]] {
        assert!(matches!(stream.append(p, 1, 1, None, &batch).await, Err(StreamError::Corrupt(_))));
    }
    assert!(stream.top(p, 1).await.unwrap().is_none());
}

#[tokio::test]
async fn a_server_without_the_script_gets_it_again() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    stream.append(p, 1, 1, None, &events(p, 1..=1)).await.unwrap();
    redis.execute::<()>(&["SCRIPT", "FLUSH"]);
    let previous = Some((1, event_id(p, 1)));
    assert_eq!(stream.append(p, 1, 1, previous, &events(p, 2..=2)).await.unwrap(), Appended::Ok);
    stream.ping().await.unwrap();
}

#[tokio::test]
async fn a_closed_connection_is_replaced_without_a_failure() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    stream.append(p, 1, 1, None, &events(p, 1..=1)).await.unwrap();
    for seq in 2..=5 {
        assert!(redis.execute::<i64>(&["CLIENT", "KILL", "TYPE", "normal"]) >= 1);
        let previous = Some((seq - 1, event_id(p, seq - 1)));
        assert_eq!(stream.append(p, 1, 1, previous, &events(p, seq..=seq)).await.unwrap(), Appended::Ok);
    }
    assert_stream_equals(&*stream, 1, &events(p, 1..=5)).await;
}

#[tokio::test]
async fn appends_of_all_partitions_share_one_connection() {
    let redis = RedisServer::start();
    let stream = redis.stream();
    stream.append(partition(0), 1, 1, None, &[]).await.unwrap();
    let received = || redis.execute::<String>(&["INFO", "stats"]);
    let connections = |stats: &str| -> i64 {
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse().unwrap()
    };
    let before = connections(&received());
    let appends = Partition::all().map(async |p| stream.append(p, 1, 1, None, &events(p, 1..=20)).await.unwrap());
    assert!(join_all(appends).await.iter().all(|appended| *appended == Appended::Ok));
    // The one that reads the statistics.
    assert_eq!(connections(&received()), before + 1);
}
