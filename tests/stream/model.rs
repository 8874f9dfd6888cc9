//! The append script against a model, in which a stream is a list of entry ids with event ids.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use uuid::Uuid;
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::ids::EventId;
use visionscope_billing::stream::{Appended, EntryId, EventStream, stream_key};

use crate::events::{entries, event, partition};
use crate::redis_server::RedisServer;

/// A random operation on a stream.
#[derive(Clone, Debug)]
enum Operation {
    /// An append after that number. `wrong` replaces the event at that offset by another one.
    Append {
        floor: i64,
        previous: i64,
        count: i64,
        wrong: Option<i64>,
    },
    /// The last entries are deleted.
    LoseTail(usize),
    /// The first entries are trimmed.
    LoseHead(usize),
    /// One entry is deleted.
    Delete(usize),
    /// An entry that is no event is added.
    AddForeign,
    Flush,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let append = (1_i64..8, 0_i64..14, 0_i64..6, proptest::option::weighted(0.15, 0_i64..6))
        .prop_map(|(floor, previous, count, wrong)| Operation::Append { floor, previous, count, wrong });
    let operation = prop_oneof![
        20 => append,
        2 => (0_usize..4).prop_map(Operation::LoseTail),
        2 => (0_usize..4).prop_map(Operation::LoseHead),
        1 => (0_usize..10).prop_map(Operation::Delete),
        1 => Just(Operation::AddForeign),
        1 => Just(Operation::Flush),
    ];
    proptest::collection::vec(operation, 1..25)
}

#[derive(Default)]
struct Model(Vec<(EntryId, String)>);

impl Model {
    fn event_id(&self, seq: i64) -> Option<&str> {
        self.0.iter().find(|(id, _)| *id == EntryId::of(seq)).map(|(_, event_id)| event_id.as_str())
    }

    fn append(&mut self, floor: i64, previous: Option<(i64, EventId)>, events: &[EventRecord]) -> Appended {
        let after = previous.map_or(0, |(seq, _)| seq);
        let top = self.0.last().map_or(EntryId::of(floor - 1), |(id, _)| *id);
        let first = self.0.first().map_or(EntryId::of(floor), |(id, _)| *id);
        let is_continued = !self.0.is_empty() && top == EntryId::of(after);
        if top < EntryId::of(after) {
            return Appended::Behind { top_seq: i64::try_from(top.seq).unwrap() };
        }
        let looks_at_start = !is_continued || events.is_empty();
        if looks_at_start && first.seq > EntryId::of(floor).seq {
            return Appended::Diverged { seq: floor };
        }
        if let Some((seq, event_id)) = previous
            && EntryId::of(seq).seq >= first.seq
            && self.event_id(seq) != Some(&event_id.to_string())
        {
            return Appended::Diverged { seq };
        }
        let following: Vec<_> = self.0.iter().filter(|(id, _)| *id > EntryId::of(after)).cloned().collect();
        if events.is_empty() && following.first().is_some_and(|(id, _)| id.seq == EntryId::of(after).seq) {
            return Appended::Diverged { seq: after };
        }
        let is_trimmed = |event: &&EventRecord| EntryId::of(event.seq).seq < first.seq;
        let events = &events[events.iter().take_while(is_trimmed).count()..];
        let mut new = Vec::new();
        for (index, event) in events.iter().enumerate() {
            let entry = (EntryId::of(event.seq), event.event_id.to_string());
            match following.get(index) {
                Some(found) if *found == entry => {}
                Some(_) => return Appended::Diverged { seq: event.seq },
                None => new.push(entry),
            }
        }
        self.0.extend(new);
        Appended::Ok
    }
}

/// Applies the operations to the stream and to the model, and compares their results and contents.
async fn compare_with_model(
    redis: &RedisServer,
    stream: &dyn EventStream,
    operations: Vec<Operation>,
) -> Result<(), TestCaseError> {
    redis.execute::<()>(&["FLUSHALL"]);
    let (p, mut model) = (partition(5), Model::default());
    let key = stream_key(p, 1);
    let delete = |id: EntryId| redis.execute::<i64>(&["XDEL", &key, &id.to_string()]);
    for operation in operations {
        match operation {
            Operation::Append { floor, previous, count, wrong } => {
                let mut events: Vec<_> = (previous + 1..=previous + count).map(|seq| event(p, seq)).collect();
                if let Some(event) = wrong.and_then(|offset| events.get_mut(usize::try_from(offset).unwrap())) {
                    event.event_id = EventId(Uuid::from_u128(404));
                }
                let previous = (previous > 0).then(|| (previous, event(p, previous).event_id));
                let expected = model.append(floor, previous, &events);
                prop_assert_eq!(stream.append(p, 1, floor, previous, &events).await.unwrap(), expected);
            }
            Operation::LoseTail(count) => {
                let kept = model.0.len().saturating_sub(count);
                model.0.drain(kept..).for_each(|(id, _)| {
                    delete(id);
                });
            }
            Operation::LoseHead(count) => {
                let lost = count.min(model.0.len());
                model.0.drain(..lost).for_each(|(id, _)| {
                    delete(id);
                });
            }
            Operation::Delete(index) if index < model.0.len() => {
                delete(model.0.remove(index).0);
            }
            Operation::Delete(_) => {}
            Operation::AddForeign => {
                if let Some((top, _)) = model.0.last().cloned() {
                    let id = EntryId { seq: top.seq, sub: top.sub + 1 };
                    // Redis refuses it if a higher id was deleted.
                    if redis.try_execute(&["XADD", &key, &id.to_string(), "a", "b"]) {
                        model.0.push((id, String::new()));
                    }
                }
            }
            Operation::Flush => {
                redis.execute::<()>(&["FLUSHALL"]);
                model.0.clear();
            }
        }
        let found: Vec<_> = entries(stream, p, 1).await.into_iter().map(|entry| (entry.id, entry.event_id)).collect();
        prop_assert_eq!(&found, &model.0);
    }
    Ok(())
}

#[test]
fn the_script_behaves_like_the_model() {
    let redis = RedisServer::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stream = runtime.block_on(async { redis.stream() });
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    runner.run(&operations(), |operations| runtime.block_on(compare_with_model(&redis, &*stream, operations))).unwrap();
}
