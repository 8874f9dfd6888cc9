//! Holds: written, loaded, listed, due, and audited.

use std::sync::Arc;

use uuid::Uuid;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::hold::{Hold, HoldState, OpenHold};
use visionscope_billing::domain::ids::HoldId;
use visionscope_billing::domain::metadata::Metadata;
use visionscope_billing::domain::snapshot::KeySet;
use visionscope_billing::domain::text::UserId;
use visionscope_billing::domain::usage::UsageId;
use visionscope_billing::store::queries::{DueWork, DueWorkspace, HistoryPosition, HistoryQuery, ListedHold, Order};

use crate::database::TestDatabase;
use crate::fixtures::{at, keys_of, load, workspace, world_of};

fn listed(open: &OpenHold) -> ListedHold {
    ListedHold { hold: open.hold.clone(), shares: open.shares.to_vec() }
}

pub async fn a_hold_with_every_field_set_is_read_as_it_was_written(db: &impl TestDatabase) {
    let id = workspace(0);
    let mut world = world_of(db.store(), 2).await;
    let open = world.hold(id, Credits::whole(7), at(1));
    let full = Hold {
        user_id: Some(UserId::new("Zoë").unwrap()),
        overdraft: Credits::whole(2),
        unit_price: Some(Credits::ZERO),
        metadata: Some(Arc::new(Metadata::new([("job".to_owned(), "\"{}\"".to_owned())].into()).unwrap())),
        ..open.hold.clone()
    };
    world.pending().holds.inserted[0] = full.clone();
    world.store(db.store()).await;
    let found = db.store().hold(id, full.hold_id).await.unwrap().unwrap();
    assert_eq!(found, ListedHold { hold: full.clone(), shares: open.shares.to_vec() });

    let over = Hold {
        state: HoldState::Expired,
        expires_at: at(9),
        closed_at: Some(at(10)),
        captured: Credits::whole(30),
        usage_id: Some(UsageId { recorded_at: at(11), seq: 4 }),
        ..full.clone()
    };
    world.release(&open, at(12));
    world.pending().holds.updated[0] = over.clone();
    world.store(db.store()).await;
    assert_eq!(db.store().hold(id, full.hold_id).await.unwrap().unwrap().hold, over);
}

pub async fn only_open_holds_are_in_a_state_and_any_is_found_by_its_id(db: &impl TestDatabase) {
    let [id, other] = [0, 1].map(workspace);
    let mut world = world_of(db.store(), 3).await;
    let open: Vec<_> = (1..4).map(|n| world.hold(id, Credits::whole(n), at(n))).collect();
    let foreign = world.hold(other, Credits::whole(1), at(1));
    world.store(db.store()).await;
    let released = world.release(&open[1], at(5));
    world.store(db.store()).await;
    let keys = KeySet {
        holds: [
            (id, open[0].hold.hold_id),
            (id, released.hold_id),
            (other, released.hold_id),
            (id, HoldId(Uuid::nil())),
        ]
        .into(),
        ..keys_of([id, other, workspace(2)])
    };
    let snapshot = load(db.store(), &keys).await;
    assert_eq!(snapshot.workspaces[&id].holds, [open[0].clone(), open[2].clone()]);
    assert_eq!(snapshot.workspaces[&other].holds, [foreign]);
    assert!(snapshot.workspaces[&workspace(2)].holds.is_empty());
    assert_eq!(
        snapshot.holds,
        [((id, open[0].hold.hold_id), open[0].hold.clone()), ((id, released.hold_id), released)].into()
    );
    let find = async |workspace_id, hold_id| db.store().hold(workspace_id, hold_id).await.unwrap();
    assert_eq!(find(id, open[2].hold.hold_id).await, Some(listed(&open[2])));
    assert_eq!(find(other, open[2].hold.hold_id).await, None);
}

pub async fn holds_are_paged_by_their_state(db: &impl TestDatabase) {
    let id = workspace(0);
    let mut world = world_of(db.store(), 2).await;
    let placed: Vec<_> = (1..5).map(|n| world.hold(id, Credits::whole(n), at(n))).collect();
    world.hold(workspace(1), Credits::whole(1), at(1));
    world.store(db.store()).await;
    let released = world.release(&placed[1], at(9));
    world.store(db.store()).await;
    let newest = HistoryQuery::newest(id, 2);
    let oldest = HistoryQuery { order: Order::Ascending, ..newest.clone() };
    let from = |query: &HistoryQuery, n: usize| HistoryQuery {
        start_at: Some(HistoryPosition::of_hold(&placed[n].hold)),
        ..query.clone()
    };
    let between = HistoryQuery { from: Some(at(2)), to: Some(at(4)), ..newest.clone() };
    let open = Some(HoldState::Open);
    for (query, state, expected) in [
        (newest.clone(), None, (vec![3, 2], true)),
        (from(&newest, 1), None, (vec![1, 0], false)),
        (oldest.clone(), None, (vec![0, 1], true)),
        (from(&oldest, 2), None, (vec![2, 3], false)),
        (between, None, (vec![2, 1], false)),
        (newest.clone(), open, (vec![3, 2], true)),
        (from(&newest, 2), open, (vec![2, 0], false)),
        (oldest.clone(), open, (vec![0, 2], true)),
        (newest.clone(), Some(HoldState::Released), (vec![1], false)),
        (newest.clone(), Some(HoldState::Captured), (vec![], false)),
    ] {
        let page = db.store().holds(&query, state).await.unwrap();
        let place = |row: &ListedHold| placed.iter().position(|one| one.hold.hold_id == row.hold.hold_id).unwrap();
        assert_eq!((page.rows.iter().map(place).collect::<Vec<_>>(), page.has_more), expected, "{query:?} {state:?}");
    }
    let page = db.store().holds(&newest, Some(HoldState::Released)).await.unwrap();
    assert_eq!(page.rows, [ListedHold { hold: released, shares: placed[1].shares.to_vec() }]);
}

pub async fn an_open_hold_that_has_expired_is_due(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 3).await;
    let mut hold = |nth, end| {
        world.hold(workspace(nth), Credits::whole(1), at(1));
        world.pending().holds.inserted.last_mut().unwrap().expires_at = at(end);
        world.command(workspace(nth), "PlaceHold", "accepted", at(2));
    };
    hold(0, 20);
    hold(0, 30);
    hold(1, 10);
    world.store(db.store()).await;
    let over = world.hold(workspace(2), Credits::whole(1), at(1));
    world.store(db.store()).await;
    world.release(&over, at(3));
    world.store(db.store()).await;
    let due = async |now, limit| db.store().due_holds(at(now), limit).await.unwrap();
    let expiry = |nth| DueWorkspace { workspace_id: workspace(nth), work: DueWork::HoldExpiry };
    assert_eq!(due(9, 10).await, []);
    assert_eq!(due(10, 10).await, [expiry(1)]);
    assert_eq!(due(30, 10).await, [expiry(1), expiry(0)]);
    assert_eq!(due(30, 1).await, [expiry(1)]);
}

pub async fn a_hold_that_does_not_match_its_grants_its_events_or_its_usage_is_found(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    let id = workspace(0);
    let [first, _] = [1, 2].map(|n| world.hold(id, Credits::whole(n), at(n)));
    world.store(db.store()).await;
    world.release(&first, at(5));
    world.deduct(id, Credits::whole(3), at(6)).store(db.store()).await;
    assert_eq!(db.store().audit(10).await.unwrap(), []);
    let open = "where state = 'open'";
    for (fault, repair, expected) in [
        (
            format!("update credit_holds set amount = amount + 1 {open}"),
            format!("update credit_holds set amount = amount - 1 {open}"),
            &["held-is-sum-of-open-holds", "hold-is-sum-of-its-grants"][..],
        ),
        (
            "update workspace_credits set open_holds = 2".to_owned(),
            "update workspace_credits set open_holds = 1".to_owned(),
            &["held-is-sum-of-open-holds"],
        ),
        (
            "update credit_hold_grants set amount = amount + 1".to_owned(),
            "update credit_hold_grants set amount = amount - 1".to_owned(),
            &["grant-held-is-sum-of-open-holds", "hold-is-sum-of-its-grants"],
        ),
        (
            "update credit_holds set state = 'captured', captured = 2,
                usage_recorded_at = (select recorded_at from usage_logs), usage_seq = 1 where state = 'released'"
                .to_owned(),
            "update credit_holds set state = 'released', captured = 0, usage_recorded_at = null, usage_seq = null
                where state = 'captured'"
                .to_owned(),
            &["capture-has-usage-log", "release-has-event"],
        ),
        (
            "update event_outbox set event_type = 'CreditsHeld' where event_type = 'HoldReleased'".to_owned(),
            "update event_outbox set event_type = 'HoldReleased' where workspace_seq = 4".to_owned(),
            &["release-has-event"],
        ),
        (
            "update event_outbox set event_type = 'LowCreditWarning' where event_type = 'CreditsHeld'".to_owned(),
            "update event_outbox set event_type = 'CreditsHeld' where event_type = 'LowCreditWarning'".to_owned(),
            &["holding-has-hold-and-event"],
        ),
    ] {
        db.tamper(&fault).await;
        let mut found: Vec<_> = db.store().audit(10).await.unwrap().iter().map(|finding| finding.invariant).collect();
        found.dedup();
        assert_eq!(found, expected, "{fault}");
        db.tamper(&repair).await;
        assert_eq!(db.store().audit(10).await.unwrap(), [], "{repair}");
    }
}
