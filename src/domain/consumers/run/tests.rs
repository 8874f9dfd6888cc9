//! Events that are newer than the server, that cannot be read, or that make the fold panic.

use serde_json::json;

use super::*;
use crate::domain::consumers::tests::{BUILD, CREDIT, DAY_1, World, at, event, grant, workspace};

#[test]
fn a_panic_is_a_fault_of_the_event_that_was_taken() {
    let mut world = World::of(1);
    world.use_credits(DAY_1, CREDIT, grant(1));
    let panics_at_second = |event: &EventRecord| {
        assert!(event.event_type == EventType::WorkspaceProvisioned, "it panics");
        Treatment::Take
    };
    let fault = Fault { class: Fault::PANIC, text: "it panics".into() };
    let folded = fold(BUILD, &world.facts, ConsumerRows::default(), panics_at_second);
    assert_eq!(folded, Folded::Faulted { index: 1, fault });
}

#[test]
fn data_that_cannot_be_read_is_a_fault_and_newer_data_is_waited_for() {
    let mut world = World::of(1);
    world.use_credits(DAY_1, CREDIT, grant(1));
    let mut record = world.facts.pop().unwrap().event;
    record.data = r#"{"credits": "many"}"#.into();
    let unreadable = Fact::new(record.clone());
    record.schema_version += 1;
    let newer = Fact::new(record);
    let facts = [world.facts[0].clone(), unreadable, newer];
    let (count, found) = up_to_newer(Consumer::Analytics, &facts);
    let found = found.unwrap();
    assert_eq!((count, &*found.event_type, found.schema_version), (2, "CreditConsumed", 2));
    match fold(BUILD, &facts[..count], ConsumerRows::default(), |_| Treatment::Take) {
        Folded::Faulted { index: 1, fault } => assert_eq!(fault.class, Fault::UNREADABLE),
        other => panic!("{other:?}"),
    }
    let left_out = fold(BUILD, &facts, ConsumerRows::default(), |event| match event.workspace_seq {
        1 => Treatment::LeaveOut,
        _ => Treatment::Take,
    });
    assert_eq!(left_out, Folded::Rows(ConsumerRows::default()), "what is left out is neither read nor judged");
}

#[test]
fn newer_data_of_a_type_that_the_consumer_does_not_read_is_passed() {
    let mut fact = event(
        EventType::GrantVoided,
        workspace(1),
        at(DAY_1),
        json!({
            "grant_id": grant(1), "source": "promotion", "credits": "1", "remaining_credits": "0",
        }),
    );
    fact.event.schema_version += 1;
    let newer = Fact::new(fact.event);
    assert_eq!(up_to_newer(Consumer::Analytics, std::slice::from_ref(&newer)), (1, None));
    assert_eq!(
        fold(BUILD, &[newer], ConsumerRows::default(), |_| Treatment::Take),
        Folded::Rows(ConsumerRows::default())
    );
}
