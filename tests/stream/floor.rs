//! Compare and append on a stream that was trimmed, and trimming itself.

use visionscope_billing::stream::{Appended, EntryId, EventStream, GroupPosition};

use crate::events::{assert_stream_equals, entries, event_id, events, partition};
use crate::redis_server::RedisServer;

const KEY: &str = "vs:{p00}:g1";

/// One row of a table of appends.
struct Case {
    what: &'static str,
    /// The first and the last event that the stream holds; it is empty if the last comes before the first.
    holds: (i64, i64),
    floor: i64,
    previous: i64,
    /// The last event that is sent. They follow the previous one.
    sends_to: i64,
    answer: Appended,
    /// The first and the last event that the stream holds afterwards.
    then: (i64, i64),
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Empty.
    Case { what: "an empty stream begins at the floor", holds: (1, 0), floor: 5, previous: 4, sends_to: 8, answer: Appended::Ok, then: (5, 8) },
    Case { what: "an empty stream ends right before the floor", holds: (1, 0), floor: 5, previous: 7, sends_to: 9, answer: Appended::Behind { top_seq: 4 }, then: (1, 0) },
    Case { what: "a probe finds the same", holds: (1, 0), floor: 5, previous: 7, sends_to: 7, answer: Appended::Behind { top_seq: 4 }, then: (1, 0) },
    Case { what: "a probe of what the floor covers finds nothing", holds: (1, 0), floor: 5, previous: 4, sends_to: 4, answer: Appended::Ok, then: (1, 0) },
    Case { what: "events before the floor are skipped in an empty stream", holds: (1, 0), floor: 5, previous: 2, sends_to: 7, answer: Appended::Ok, then: (5, 7) },
    Case { what: "only events before the floor are no entries", holds: (1, 0), floor: 9, previous: 2, sends_to: 7, answer: Appended::Ok, then: (1, 0) },
    // It starts at the floor or before it.
    Case { what: "the usual case", holds: (5, 8), floor: 5, previous: 8, sends_to: 9, answer: Appended::Ok, then: (5, 9) },
    Case { what: "a re-send with its predecessor", holds: (5, 8), floor: 5, previous: 6, sends_to: 9, answer: Appended::Ok, then: (5, 9) },
    Case { what: "a re-send from the start", holds: (5, 8), floor: 5, previous: 4, sends_to: 9, answer: Appended::Ok, then: (5, 9) },
    Case { what: "a re-send whose predecessor was trimmed", holds: (5, 8), floor: 5, previous: 2, sends_to: 9, answer: Appended::Ok, then: (5, 9) },
    Case { what: "a re-send of what was trimmed", holds: (5, 8), floor: 5, previous: 1, sends_to: 3, answer: Appended::Ok, then: (5, 8) },
    Case { what: "a re-send from the first event on", holds: (5, 8), floor: 5, previous: 0, sends_to: 9, answer: Appended::Ok, then: (5, 9) },
    Case { what: "entries before the floor may be there", holds: (3, 8), floor: 5, previous: 8, sends_to: 8, answer: Appended::Ok, then: (3, 8) },
    Case { what: "the floor may be beyond what the stream holds", holds: (3, 8), floor: 20, previous: 8, sends_to: 9, answer: Appended::Ok, then: (3, 9) },
    Case { what: "a stream that ends early is dense from its end", holds: (3, 8), floor: 20, previous: 25, sends_to: 26, answer: Appended::Behind { top_seq: 8 }, then: (3, 8) },
    // It starts after the floor.
    Case { what: "a probe", holds: (6, 8), floor: 5, previous: 8, sends_to: 8, answer: Appended::Diverged { seq: 5 }, then: (6, 8) },
    Case { what: "a re-send from the floor", holds: (6, 8), floor: 5, previous: 4, sends_to: 9, answer: Appended::Diverged { seq: 5 }, then: (6, 8) },
    Case { what: "a re-send within it", holds: (6, 8), floor: 5, previous: 7, sends_to: 9, answer: Appended::Diverged { seq: 5 }, then: (6, 8) },
    Case { what: "an append that continues does not look", holds: (6, 8), floor: 5, previous: 8, sends_to: 9, answer: Appended::Ok, then: (6, 9) },
    Case { what: "no floor", holds: (2, 8), floor: 1, previous: 8, sends_to: 8, answer: Appended::Diverged { seq: 1 }, then: (2, 8) },
];

#[tokio::test]
async fn appends_to_a_trimmed_stream() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    for Case { what, holds: (first, last), floor, previous, sends_to, answer, then } in CASES {
        // Trimmed from the first event on, so its last generated id is that of a stream that held more. Or never written.
        for was_longer in [false, true] {
            redis.execute::<()>(&["FLUSHALL"]);
            stream.append(p, 1, *first, None, &events(p, 1..=*last)).await.unwrap();
            if was_longer && last >= first {
                let all = events(p, 1..=*last);
                redis.execute::<()>(&["FLUSHALL"]);
                stream.append(p, 1, 1, None, &all).await.unwrap();
                redis.execute::<i64>(&["XTRIM", KEY, "MINID", &first.to_string()]);
            } else if was_longer {
                stream.append(p, 1, 1, None, &events(p, 1..=30)).await.unwrap();
                redis.execute::<i64>(&["XTRIM", KEY, "MAXLEN", "0"]);
            }
            let before = (*previous > 0).then(|| (*previous, event_id(p, *previous)));
            let sent = events(p, previous + 1..=*sends_to);
            let what = format!("{what}, trimmed: {was_longer}");
            assert_eq!(stream.append(p, 1, *floor, before, &sent).await.unwrap(), *answer, "{what}");
            let found: Vec<_> = entries(&*stream, p, 1).await.into_iter().map(|entry| entry.id).collect();
            assert_eq!(found, (then.0..=then.1).map(EntryId::of).collect::<Vec<_>>(), "{what}");
        }
    }
}

#[tokio::test]
async fn a_wrong_entry_after_the_start_is_diverged_whatever_the_floor() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    let other = event_id(p, 77);
    let mut wrong = events(p, 1..=9);
    wrong[6].event_id = other;
    for (floor, previous) in [(5, 4), (5, 2), (7, 0), (9, 2)] {
        redis.execute::<()>(&["FLUSHALL"]);
        stream.append(p, 1, 5, None, &wrong).await.unwrap();
        let before = (previous > 0).then(|| (previous, event_id(p, previous)));
        let answer = stream.append(p, 1, floor, before, &events(p, previous + 1..=12)).await.unwrap();
        assert_eq!(answer, Appended::Diverged { seq: 7 }, "{floor} {previous}");
    }
    let before = Some((7, event_id(p, 7)));
    assert_eq!(stream.append(p, 1, 9, before, &[]).await.unwrap(), Appended::Diverged { seq: 7 });
    // A foreign entry right before the first event, and one at its number.
    for (id, seq) in [("4-7", 5), ("5-1", 5)] {
        redis.execute::<()>(&["FLUSHALL"]);
        redis.execute::<String>(&["XADD", KEY, id, "a", "b"]);
        let answer = stream.append(p, 1, 5, Some((2, event_id(p, 2))), &events(p, 3..=8)).await.unwrap();
        assert!(matches!(answer, Appended::Diverged { seq: found } if found <= seq), "{id}: {answer:?}");
    }
    // One that Redis chose the id of, on an emptied stream.
    redis.execute::<()>(&["FLUSHALL"]);
    redis.execute::<String>(&["XADD", KEY, "*", "a", "b"]);
    for to in [4, 8] {
        let answer = stream.append(p, 1, 5, Some((4, event_id(p, 4))), &events(p, 5..=to)).await.unwrap();
        assert_eq!(answer, Appended::Diverged { seq: 5 });
    }
}

#[tokio::test]
async fn a_trim_keeps_every_entry_from_the_floor_on_and_removes_the_others_in_bounded_steps() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    assert!(!stream.trim(p, 1, 5).await.unwrap(), "there is no stream");
    for from in (1..=24_501).step_by(500) {
        let previous = (from > 1).then(|| (from - 1, event_id(p, from - 1)));
        assert_eq!(stream.append(p, 1, 1, previous, &events(p, from..=from + 499)).await.unwrap(), Appended::Ok);
    }
    assert!(stream.trim(p, 1, 24_000).await.unwrap());
    let first = async || stream.read(p, 1, EntryId::START, 1).await.unwrap()[0].id.seq;
    assert!((2_500..=5_001).contains(&first().await), "one command removes 5,000 entries at most");
    while stream.trim(p, 1, 24_000).await.unwrap() {}
    assert!((23_900..=24_000).contains(&first().await), "{}", first().await);
    let first = i64::try_from(first().await).unwrap();
    assert_stream_equals(&*stream, 1, &events(p, first..=25_000)).await;
    let previous = Some((25_000, event_id(p, 25_000)));
    assert_eq!(stream.append(p, 1, 24_000, previous, &[]).await.unwrap(), Appended::Ok);
}

#[tokio::test]
async fn the_position_of_each_group_is_read() {
    let redis = RedisServer::start();
    let (stream, p) = (redis.stream(), partition(0));
    assert_eq!(stream.groups(p, 1).await.unwrap(), []);
    stream.append(p, 1, 1, None, &events(p, 1..=5)).await.unwrap();
    assert_eq!(stream.groups(p, 1).await.unwrap(), []);
    redis.execute::<()>(&["XGROUP", "CREATE", KEY, "mail", "3-0"]);
    redis.execute::<()>(&["XGROUP", "CREATE", KEY, "search", "$"]);
    let at = |name: &str, seq| GroupPosition { name: name.to_owned(), last_delivered: EntryId::of(seq) };
    assert_eq!(stream.groups(p, 1).await.unwrap(), [at("mail", 3), at("search", 5)]);
    for n in 0..120 {
        redis.execute::<()>(&["XGROUP", "CREATE", KEY, &format!("more-{n}"), "0"]);
    }
    assert_eq!(stream.groups(p, 1).await.unwrap().len(), 100);
}
