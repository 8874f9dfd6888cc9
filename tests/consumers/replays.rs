//! Dead letters that are tried again, and those that are discarded.

use std::time::Duration;

use uuid::Uuid;
use visionscope_billing::clock::Clock as _;
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::consumers::Consumer;
use visionscope_billing::domain::dead_letter::{DeadLetter, LetterState};
use visionscope_billing::domain::event::EventType;
use visionscope_billing::domain::ids::WorkspaceId;
use visionscope_billing::domain::operator_act::OperatorAct;
use visionscope_billing::domain::text::Label;
use visionscope_billing::store::operations::{DeadLetterQuery, LetterChange, LetterFilter};

use crate::databases::Database;
use crate::figures::id;
use crate::world::{NO_LEASE, Random, World};

const LEASE: Duration = Duration::from_secs(10);
pub const PARKED: &str = "select cast(count(*) as bigint) from parked_workspaces";
const TRIED: &str = "select cast(count(*) as bigint) from parked_workspaces where replay_at is not null";

impl World {
    pub async fn letters_in(&self, state: LetterState) -> Vec<DeadLetter> {
        let query = DeadLetterQuery { state, filter: LetterFilter::default(), start_at: None, limit: 1000 };
        self.database.server_store.dead_letters(&query).await.unwrap().rows
    }

    fn act(&self) -> OperatorAct {
        OperatorAct {
            audit_id: self.clock.new_id(),
            at: self.clock.now(),
            actor: "operator".into(),
            action: "dead_letters.replay".into(),
            target: "all".into(),
            reason: Label::new("A test").unwrap(),
            before: None,
            after: None,
        }
    }

    /// What an operator does to these open letters. Returns its id.
    pub async fn change_letters(&self, letters: Vec<DeadLetter>, state: LetterState) -> Uuid {
        let (act, now) = (self.act(), self.clock.now());
        let change = |letter: DeadLetter| LetterChange {
            letter: match state {
                LetterState::Discarded => letter.closed(state, now),
                _ => DeadLetter { state, replay_id: Some(act.audit_id), ..letter },
            },
            replay_at: now,
            job: None,
        };
        let changes: Vec<_> = letters.into_iter().map(change).collect();
        self.database.server_store.change_letters(&changes, &act).await.unwrap();
        act.audit_id
    }

    /// Makes the nth event of this type one that nobody can take. Returns it as it was.
    pub async fn poison(&self, workspace_id: WorkspaceId, event_type: EventType, nth: usize) -> EventRecord {
        let event = self.event(workspace_id, event_type, nth).await;
        self.change_event(&event, "data = '{}'").await;
        event
    }

    pub async fn mend(&self, event: &EventRecord) {
        self.change_event(event, &format!("data = '{}'", event.data)).await;
    }

    /// Checks that usage, revenue and statements are what the history says.
    pub async fn assert_all(&self, version: i32) {
        self.assert_figures(version).await;
        assert_eq!(self.database.store.audit(10).await.unwrap(), []);
    }
}

/// How many consumers make something of such an event.
fn readers(event_type: EventType) -> usize {
    Consumer::ALL.into_iter().filter(|consumer| consumer.reads(event_type)).count()
}

/// Random commands of some workspaces, the events of which are not taken yet.
async fn world(kind: Database, random: &mut Random) -> World {
    let world = World::with_usage(kind, 6).await;
    world.random_commands(random, 100).await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mended_event_is_taken_once_whoever_tries_it_and_the_rest_of_its_workspace_follows() {
    for kind in Database::ALL {
        let mut random = Random(11);
        let world = world(kind, &mut random).await;
        let [first, second, ..] = world.workspaces[..] else { panic!() };
        let of_first = world.poison(first, EventType::CreditConsumed, 1).await;
        let of_second = world.poison(second, EventType::CreditConsumed, 0).await;
        // Without leases, all of them work on the same events.
        let runners: Vec<_> = (0..3).map(|_| world.consume(NO_LEASE)).collect();
        world.wait_until_taken(1).await;
        let letters = world.letters_in(LetterState::Open).await;
        let each = readers(EventType::CreditConsumed);
        assert_eq!(
            (letters.len(), world.integers(PARKED).await),
            (2 * each, vec![vec![i64::try_from(2 * each).unwrap()]])
        );

        assert_eq!(world.database.store.audit(10).await.unwrap(), [], "two workspaces wait");
        world.mend(&of_first).await;
        let replay_id = world.change_letters(letters, LetterState::Replaying).await;
        world.random_commands(&mut random, 50).await;
        world.wait_for(TRIED, 0).await;
        world.wait_until_taken(1).await;
        world.assert_usage(1, &[second]).await;
        let again = world.letters_in(LetterState::Open).await;
        assert!(
            again.iter().all(|letter| (letter.work.workspace_id(), letter.attempts) == (Some(second), 2)),
            "{again:?}"
        );
        let resolved = world.letters_in(LetterState::Resolved).await;
        assert!(
            resolved.iter().all(|letter| letter.work.workspace_id() == Some(first) && letter.resolved_at.is_some())
        );
        let mut progress = world.database.server_store.replay_progress(replay_id).await.unwrap();
        progress.sort_by_key(|(state, _)| state.as_str());
        assert_eq!(
            progress,
            [(LetterState::Open, i64::try_from(each).unwrap()), (LetterState::Resolved, i64::try_from(each).unwrap())]
        );

        world.mend(&of_second).await;
        world.change_letters(again, LetterState::Replaying).await;
        world.random_commands(&mut random, 50).await;
        world.wait_for(PARKED, 0).await;
        world.wait_until_taken(1).await;
        assert_eq!(world.letters_in(LetterState::Resolved).await.len(), 2 * each);
        for runner in runners {
            runner.stop().await;
        }
        world.assert_all(1).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_event_that_cannot_be_taken_either_becomes_the_next_letter() {
    for kind in Database::ALL {
        let world = World::on(kind, 2).await;
        let workspace_id = world.workspaces[0];
        for _ in 0..200 {
            world.deduct(workspace_id, "0.001").await.unwrap();
        }
        let poisoned = [
            world.poison(workspace_id, EventType::CreditConsumed, 5).await,
            world.poison(workspace_id, EventType::CreditConsumed, 150).await,
        ];
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        for (n, event) in poisoned.iter().enumerate() {
            world.mend(event).await;
            world.change_letters(world.letters_in(LetterState::Open).await, LetterState::Replaying).await;
            world.wait_for(TRIED, 0).await;
            let expected = readers(EventType::CreditConsumed) * (n + 1);
            assert_eq!(world.letters_in(LetterState::Resolved).await.len(), expected);
        }
        assert_eq!(world.integers(PARKED).await, [[0]]);
        runner.stop().await;
        world.assert_all(1).await;
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discarded_event_is_left_out_by_this_build_and_the_next_and_later_events_follow() {
    for kind in Database::ALL {
        let mut random = Random(12);
        let world = world(kind, &mut random).await;
        let [used, bought, ..] = world.workspaces[..] else { panic!() };
        let has_purchase = async |workspace_id| {
            let place = format!("where workspace_id = {} and event_type = 'CreditsPurchased'", id(kind, workspace_id));
            let sql = format!("select cast(count(*) as bigint) from event_outbox {place}");
            world.integers(&sql).await[0][0] > 0
        };
        assert!(has_purchase(bought).await, "choose another seed");
        world.poison(used, EventType::CreditConsumed, 1).await;
        world.poison(bought, EventType::CreditsPurchased, 0).await;
        let runners: Vec<_> = (0..2).map(|_| world.consume(NO_LEASE)).collect();
        world.wait_until_taken(1).await;
        let letters = world.letters_in(LetterState::Open).await;
        assert_eq!(letters.len(), readers(EventType::CreditConsumed) + readers(EventType::CreditsPurchased));
        world.change_letters(letters, LetterState::Discarded).await;
        world.random_commands(&mut random, 150).await;
        world.wait_for(TRIED, 0).await;
        assert_eq!(world.letters_in(LetterState::Open).await, [], "nothing else fails");
        world.wait_for(PARKED, 0).await;
        world.wait_until_taken(1).await;
        assert_left_out(&world, 1, [used, bought]).await;

        world.begin_second_build().await;
        world.wait_until_taken(2).await;
        world.wait_for("select cast(min(version) as bigint) from consumers", 2).await;
        assert_eq!(world.integers(PARKED).await, [[0]], "nobody must discard it again");
        assert_left_out(&world, 2, [used, bought]).await;
        for runner in runners {
            runner.stop().await;
        }
        world.close().await;
    }
}

/// The version of the build that could not take the event.
pub fn version_of(letter: &DeadLetter) -> Option<i32> {
    letter.event().map(|event| event.build.version)
}

/// Checks figures of a build where one event of each of two workspaces was discarded: a deduction, and a purchase.
async fn assert_left_out(world: &World, version: i32, [used, bought]: [WorkspaceId; 2]) {
    world.assert_usage(version, &[used]).await;
    assert_eq!(world.database.store.audit(10).await.unwrap(), [], "no invariant is broken");
    let discarded = world.letters_in(LetterState::Discarded).await;
    let expected = readers(EventType::CreditConsumed) + readers(EventType::CreditsPurchased);
    assert_eq!(discarded.iter().filter(|letter| version_of(letter) == Some(version)).count(), expected);
    for workspace_id in &world.workspaces {
        let is_left_out = [used, bought].contains(workspace_id);
        for consumer in Consumer::ALL {
            let as_of = world.database.store.as_of(consumer, *workspace_id).await.unwrap();
            assert_eq!((as_of.is_parked, as_of.has_discarded), (false, is_left_out));
        }
        let place = format!("where version = {version} and workspace_id = {}", id(world.kind, *workspace_id));
        let closing = format!(
            "select closing, (select c.current_credits from workspace_credits c where c.workspace_id = s.workspace_id)
            from statements s {place} and closed_at is null"
        );
        let row = &world.integers(&closing).await[0];
        assert_eq!(row[0], row[1], "the open statement ends with the balance");
        let unexplained = format!("select cast(sum(unexplained) as bigint) from statements {place}");
        let moved = world.integers(&unexplained).await[0][0];
        match workspace_id {
            id if *id == used => assert_eq!(moved, -2_000_000),
            id if *id == bought => assert!(moved > 0, "what was bought"),
            _ => assert_eq!(moved, 0),
        }
    }
    let usage = format!(
        "select cast(sum(d.credits) as bigint) from usage_days d where version = {version} and workspace_id = {}",
        id(world.kind, used)
    );
    let logged =
        format!("select cast(sum(credits) as bigint) from usage_logs where workspace_id = {}", id(world.kind, used));
    assert_eq!(world.integers(&usage).await[0][0] + 2_000_000, world.integers(&logged).await[0][0]);
}
