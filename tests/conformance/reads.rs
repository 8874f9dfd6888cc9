//! Pages, filters, and what is due.

use uuid::Uuid;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::entry::Account;
use visionscope_billing::domain::grant::{Grant, GrantSource};
use visionscope_billing::domain::ids::{EventId, GrantId, Partition, WorkspaceId};
use visionscope_billing::domain::subscription::SubscriptionStatus;
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::store::StoreError;
use visionscope_billing::store::views::{DueWork, DueWorkspace, EventPosition, EventQuery, HistoryQuery, PAGE_WALK};

use crate::database::TestDatabase;
use crate::fixtures::{World, at, feature, new_grant, plan, workspace, workspace_in, world_of};

/// Seven deductions, one a second, those of odd seconds of another feature.
async fn seven_deductions(db: &impl TestDatabase) -> World {
    let mut world = world_of(db.store(), 2).await;
    for n in 1..=7 {
        world.deduct(workspace(0), Credits::whole(n), at(n)).deduct(workspace(1), Credits::whole(n), at(n));
    }
    for log in world.pending().usage_logs.iter_mut().filter(|log| log.seq % 2 == 1) {
        log.feature_code = feature("upscale");
    }
    for entry in world.pending().entries.iter_mut().filter(|entry| entry.seq % 2 == 0) {
        entry.to = Account::Consumed(feature("upscale"));
    }
    world.store(db.store()).await;
    world
}

fn usage_query(limit: u32) -> HistoryQuery {
    HistoryQuery { workspace_id: workspace(0), before_seq: None, feature_code: None, from: None, to: None, limit }
}

async fn usage(db: &impl TestDatabase, query: HistoryQuery) -> Vec<i64> {
    let logs = db.store().usage(&query).await.unwrap().rows;
    assert!(logs.iter().all(|log| log.workspace_id == query.workspace_id));
    logs.iter().map(|log| log.seq).collect()
}

pub async fn an_unknown_workspace_is_none(db: &impl TestDatabase) {
    assert_eq!(db.store().workspace(workspace(0)).await.unwrap(), None);
    world_of(db.store(), 1).await;
    assert!(db.store().workspace(workspace(0)).await.unwrap().is_some());
    assert_eq!(db.store().workspace(workspace(1)).await.unwrap(), None);
}

pub async fn usage_pages_go_backwards_without_a_gap_or_a_repetition(db: &impl TestDatabase) {
    seven_deductions(db).await;
    let page = |before_seq| usage(db, HistoryQuery { before_seq, ..usage_query(3) });
    assert_eq!(page(None).await, [7, 6, 5]);
    assert_eq!(page(Some(5)).await, [4, 3, 2]);
    assert_eq!(page(Some(2)).await, [1]);
    assert!(page(Some(1)).await.is_empty());
    let unknown = HistoryQuery { workspace_id: workspace(9), ..usage_query(3) };
    assert!(usage(db, unknown).await.is_empty());
}

pub async fn usage_is_filtered_by_feature_and_time(db: &impl TestDatabase) {
    seven_deductions(db).await;
    let of_feature = HistoryQuery { feature_code: Some(feature("upscale")), ..usage_query(100) };
    assert_eq!(usage(db, of_feature.clone()).await, [7, 5, 3, 1]);
    let between = HistoryQuery { from: Some(at(3)), to: Some(at(6)), ..usage_query(100) };
    assert_eq!(usage(db, between).await, [5, 4, 3]);
    let all = HistoryQuery { before_seq: Some(7), from: Some(at(2)), to: Some(at(100)), limit: 1, ..of_feature };
    assert_eq!(usage(db, all).await, [5]);
}

pub async fn the_ledger_is_paged_and_filtered_like_usage(db: &impl TestDatabase) {
    seven_deductions(db).await;
    let ledger = async |query: HistoryQuery| {
        let entries = db.store().ledger(&query).await.unwrap().rows;
        assert!(entries.iter().all(|entry| entry.workspace_id == workspace(0)));
        entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    let all = HistoryQuery {
        workspace_id: workspace(0),
        before_seq: None,
        feature_code: None,
        from: None,
        to: None,
        limit: 100,
    };
    assert_eq!(ledger(all.clone()).await, [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(ledger(HistoryQuery { before_seq: Some(4), limit: 2, ..all.clone() }).await, [3, 2]);
    let of_feature = HistoryQuery { feature_code: Some(feature("upscale")), ..all.clone() };
    assert_eq!(ledger(of_feature).await, [8, 6, 4, 2]);
    assert_eq!(ledger(HistoryQuery { from: Some(at(1)), to: Some(at(3)), ..all }).await, [3, 2]);
}

pub async fn a_page_names_the_next_one_only_when_there_is_more(db: &impl TestDatabase) {
    seven_deductions(db).await;
    let next = async |query| db.store().usage(&query).await.unwrap().next_before_seq;
    assert_eq!(next(usage_query(3)).await, Some(5));
    assert_eq!(next(usage_query(7)).await, None);
    assert_eq!(next(HistoryQuery { before_seq: Some(4), ..usage_query(3) }).await, None);
    assert_eq!(next(HistoryQuery { from: Some(at(5)), ..usage_query(3) }).await, None);
    assert_eq!(next(HistoryQuery { from: Some(at(4)), ..usage_query(3) }).await, Some(5));
    assert_eq!(next(HistoryQuery { feature_code: Some(feature("upscale")), ..usage_query(4) }).await, None);
    assert_eq!(next(HistoryQuery { workspace_id: workspace(9), ..usage_query(3) }).await, None);
}

pub async fn time_ranges_are_exact_at_their_bounds(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    for n in [2, 4, 6] {
        world.deduct(workspace(0), Credits::whole(1), at(n));
        // A command with more than one entry: they share its instant.
        let command_id = world.command(workspace(0), "PurchaseCredits", "accepted", at(n + 1));
        for _ in 0..3 {
            let (from, to) = (Account::Issued(GrantSource::Purchase), Account::Expired);
            world.entry(workspace(0), command_id, from, to, Credits::whole(1), at(n + 1));
        }
    }
    world.store(db.store()).await;
    // Entry 1 at 0, 2 at 2, 3 to 5 at 3, 6 at 4, 7 to 9 at 5, 10 at 6, 11 to 13 at 7.
    let instants = [0, 2, 3, 3, 3, 4, 5, 5, 5, 6, 7, 7, 7].map(at);
    let just = |instant: Timestamp, offset| Timestamp::from_micros(instant.micros() + offset);
    let bounds: Vec<_> =
        (-1..=8).flat_map(|n| [-1, 0, 1].map(|offset| Some(just(at(n), offset)))).chain([None]).collect();
    for from in &bounds {
        for to in &bounds {
            for before_seq in [None, Some(8)] {
                let query = HistoryQuery {
                    workspace_id: workspace(0),
                    before_seq,
                    feature_code: None,
                    from: *from,
                    to: *to,
                    limit: 100,
                };
                let found = db.store().ledger(&query).await.unwrap();
                let is_in =
                    |instant: &Timestamp| from.is_none_or(|from| *instant >= from) && to.is_none_or(|to| *instant < to);
                let expected: Vec<i64> = (1..)
                    .zip(&instants)
                    .filter(|(seq, instant)| is_in(instant) && before_seq.is_none_or(|before| *seq < before))
                    .map(|(seq, _)| seq)
                    .collect();
                let seqs: Vec<i64> = found.rows.iter().rev().map(|entry| entry.seq).collect();
                assert_eq!((seqs, found.next_before_seq), (expected, None), "{query:?}");
            }
        }
    }
}

pub async fn a_rare_feature_in_a_long_history_is_found_over_several_pages(db: &impl TestDatabase) {
    const MORE: i64 = 2 * PAGE_WALK + 5;
    let mut world = seven_deductions(db).await;
    for chunk in (1..=MORE).collect::<Vec<_>>().chunks(200) {
        for n in chunk {
            world.deduct(workspace(0), Credits::from_micro(1).unwrap(), at(7 + n));
        }
        world.store(db.store()).await;
    }
    let workspace_id = workspace(0);
    let upscale = Some(feature("upscale"));
    let (mut before_seq, mut pages, mut found) = (None, 0, Vec::new());
    loop {
        let query = HistoryQuery { workspace_id, before_seq, feature_code: upscale.clone(), ..usage_query(3) };
        let page = db.store().usage(&query).await.unwrap();
        found.extend(page.rows.iter().map(|log| log.seq));
        pages += 1;
        before_seq = page.next_before_seq;
        if before_seq.is_none() {
            break;
        }
    }
    assert_eq!((found, pages), (vec![7, 5, 3, 1], 4));

    let (mut before_seq, mut found) = (None, Vec::new());
    loop {
        let (from, to) = (None, None);
        let query = HistoryQuery { workspace_id, before_seq, feature_code: upscale.clone(), from, to, limit: 100 };
        let page = db.store().ledger(&query).await.unwrap();
        found.extend(page.rows.iter().map(|entry| entry.seq));
        before_seq = page.next_before_seq;
        if before_seq.is_none() {
            break;
        }
    }
    assert_eq!(found, [8, 6, 4, 2]);
    // A range in time does not look at what lies outside of it.
    let early = HistoryQuery { workspace_id, feature_code: upscale, to: Some(at(7)), ..usage_query(100) };
    let page = db.store().usage(&early).await.unwrap();
    assert_eq!(page.rows.iter().map(|log| log.seq).collect::<Vec<_>>(), [5, 3, 1]);
    assert_eq!(page.next_before_seq, None);
}

/// Marks are 32 apart.
pub async fn a_page_begins_anywhere_in_a_long_history(db: &impl TestDatabase) {
    const ROWS: i64 = 100;
    let mut world = world_of(db.store(), 2).await;
    for n in 1..=ROWS {
        world.deduct(workspace(0), Credits::from_micro(n).unwrap(), at(10 * n));
        world.deduct(workspace(1), Credits::from_micro(n).unwrap(), at(10 * n));
    }
    world.store(db.store()).await;
    for place in 1..=ROWS + 1 {
        let wanted: Vec<i64> = (1..place).rev().take(3).collect();
        let more = wanted.last().copied().filter(|seq| *seq > 1);
        let before = HistoryQuery { before_seq: Some(place), ..usage_query(3) };
        let to = HistoryQuery { to: Some(at(10 * place)), ..usage_query(3) };
        for query in [before, to] {
            let page = db.store().usage(&query).await.unwrap();
            let seqs: Vec<_> = page.rows.iter().map(|log| log.seq).collect();
            assert_eq!((seqs, page.next_before_seq), (wanted.clone(), more), "{query:?}");
            // The allowance is the first entry.
            let query = HistoryQuery { before_seq: query.before_seq.map(|seq| seq + 1), ..query };
            let page = db.store().ledger(&query).await.unwrap();
            let seqs: Vec<_> = page.rows.iter().map(|entry| entry.seq - 1).collect();
            assert_eq!(seqs, (0..place).rev().take(3).collect::<Vec<_>>(), "{query:?}");
        }
        let from = HistoryQuery { from: Some(at(10 * place)), ..usage_query(200) };
        let page = db.store().usage(&from).await.unwrap();
        let seqs: Vec<_> = page.rows.iter().map(|log| log.seq).collect();
        assert_eq!((seqs, page.next_before_seq), ((place..=ROWS).rev().collect(), None), "{from:?}");
        let of_workspace = EventQuery::OfWorkspace { workspace_id: workspace(0), after: place, limit: 3 };
        let events = db.store().events(&of_workspace).await.unwrap();
        let seqs: Vec<_> = events.iter().map(|event| event.workspace_seq).collect();
        assert_eq!(seqs, (place + 1..=ROWS + 1).take(3).collect::<Vec<_>>());
    }
    let beyond = HistoryQuery { before_seq: Some(i64::MAX), ..usage_query(1) };
    assert_eq!(db.store().usage(&beyond).await.unwrap().rows[0].seq, ROWS);
    let before_all = HistoryQuery { to: Some(at(0)), ..usage_query(1) };
    assert_eq!(db.store().usage(&before_all).await.unwrap().next_before_seq, None);
    let behind_all = EventQuery::OfWorkspace { workspace_id: workspace(0), after: i64::MAX, limit: 3 };
    assert!(db.store().events(&behind_all).await.unwrap().is_empty());
}

/// Of one command, all of one instant.
pub async fn many_entries_of_one_command_lie_across_marks(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    world.deduct(workspace(0), Credits::whole(1), at(1));
    let command_id = world.command(workspace(0), "PurchaseCredits", "accepted", at(5));
    let grant = Account::Grant(GrantId(world.fresh_id()));
    for _ in 0..70 {
        world.entry(
            workspace(0),
            command_id,
            Account::Issued(GrantSource::Purchase),
            grant.clone(),
            Credits::whole(1),
            at(5),
        );
    }
    world.deduct(workspace(0), Credits::whole(1), at(9));
    world.store(db.store()).await;
    let seqs = async |query: HistoryQuery| {
        let page = db.store().ledger(&query).await.unwrap();
        page.rows.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    for (to, newest) in [(5, 2), (6, 72), (9, 72), (10, 73)] {
        let query = HistoryQuery { to: Some(at(to)), ..usage_query(200) };
        assert_eq!(seqs(query).await, (1..=newest).rev().collect::<Vec<_>>(), "{to}");
    }
    for before in 2..=73 {
        let query = HistoryQuery { before_seq: Some(before), ..usage_query(2) };
        assert_eq!(seqs(query).await, (1..before).rev().take(2).collect::<Vec<_>>());
    }
}

/// What is reached from a mark does not miss what is broken before it, and what is broken is no end.
pub async fn a_broken_history_is_told(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    for n in 1..=100 {
        world.deduct(workspace(0), Credits::from_micro(n).unwrap(), at(10 * n));
    }
    world.store(db.store()).await;
    db.tamper("update usage_logs set previous_command_id = null where seq = 80").await;
    db.tamper("update credit_entries set previous_command_id = null where seq = 80").await;
    db.tamper("update event_outbox set previous_event_id = null where workspace_seq = 80").await;
    let whole = usage_query(3);
    let before = HistoryQuery { before_seq: Some(60), ..usage_query(3) };
    let to = HistoryQuery { to: Some(at(10 * 60)), ..usage_query(3) };
    for query in [whole, before, to] {
        assert_eq!(db.store().usage(&query).await.unwrap().rows.len(), 3, "{query:?}");
        assert_eq!(db.store().ledger(&query).await.unwrap().rows.len(), 3, "{query:?}");
    }
    let is_told = |error: &StoreError| matches!(error, StoreError::Corrupt(reason) if reason.contains("before 80"));
    let rare = HistoryQuery { feature_code: Some(feature("upscale")), ..usage_query(3) };
    for query in [usage_query(50), rare] {
        assert!(db.store().usage(&query).await.is_err_and(|error| is_told(&error)), "{query:?}");
        assert!(db.store().ledger(&query).await.is_err_and(|error| is_told(&error)), "{query:?}");
    }
    let events = async |after| {
        let query = EventQuery::OfWorkspace { workspace_id: workspace(0), after, limit: 20 };
        db.store().events(&query).await
    };
    assert_eq!(events(40).await.unwrap().len(), 20);
    assert!(events(70).await.is_err_and(|error| is_told(&error)));
}

pub async fn events_of_one_workspace_go_forwards(db: &impl TestDatabase) {
    seven_deductions(db).await;
    let page = async |workspace_id, after, limit| {
        let events = db.store().events(&EventQuery::OfWorkspace { workspace_id, after, limit }).await.unwrap();
        assert!(events.iter().all(|event| event.workspace_id == workspace_id));
        events.iter().map(|event| event.workspace_seq).collect::<Vec<_>>()
    };
    assert_eq!(page(workspace(1), 0, 3).await, [1, 2, 3]);
    assert_eq!(page(workspace(1), 3, 100).await, [4, 5, 6, 7, 8]);
    assert!(page(workspace(1), 8, 100).await.is_empty());
    assert!(page(workspace(5), 0, 100).await.is_empty());
}

pub async fn events_of_all_are_limited_per_partition(db: &impl TestDatabase) {
    db.store().put_plans(&[plan("pro", 1)]).await.unwrap();
    let mut world = World::new();
    let [low, high] = [2, 11].map(|number| Partition::new(number).unwrap());
    for partition in [high, low] {
        for nth in 0..4 {
            world.provision(workspace_in(partition, nth));
        }
    }
    world.store(db.store()).await;
    let positions = async |after: Vec<EventPosition>, limit| {
        let events = db.store().events(&EventQuery::OfAll { after, limit }).await.unwrap();
        events.iter().map(|event| (event.partition, event.seq)).collect::<Vec<_>>()
    };
    let after = |partition, seq| EventPosition { partition, seq };
    let mut from_the_start: Vec<_> = Partition::all().map(|partition| after(partition, 0)).collect();
    from_the_start.reverse();
    assert_eq!(positions(from_the_start, 2).await, [(low, 1), (low, 2), (high, 1), (high, 2)]);
    let later = vec![after(high, 1), after(low, 3)];
    assert_eq!(positions(later, 100).await, [(low, 4), (high, 2), (high, 3), (high, 4)]);
    assert!(positions(vec![], 100).await.is_empty());
}

pub async fn an_event_is_found_only_by_its_own_workspace(db: &impl TestDatabase) {
    seven_deductions(db).await;
    let query = EventQuery::OfWorkspace { workspace_id: workspace(0), after: 4, limit: 1 };
    let event = db.store().events(&query).await.unwrap().remove(0);
    let find = |id, workspace_id| db.store().event(id, workspace_id);
    assert_eq!(find(event.event_id, None).await.unwrap().as_ref(), Some(&event));
    assert_eq!(find(event.event_id, Some(workspace(0))).await.unwrap().as_ref(), Some(&event));
    assert_eq!(find(event.event_id, Some(workspace(1))).await.unwrap(), None);
    assert_eq!(find(EventId(Uuid::from_u128(3)), None).await.unwrap(), None);
}

pub async fn a_period_that_is_over_is_due(db: &impl TestDatabase) {
    let mut world = World::new();
    db.store().put_plans(&[plan("pro", 1)]).await.unwrap();
    for nth in 0..3 {
        world.provision(workspace(nth));
    }
    for (subscription, end) in world.pending().subscriptions.inserted.iter_mut().zip([30, 20, 10]) {
        subscription.period.end = at(end);
    }
    let canceled = &mut world.pending().subscriptions.inserted[2];
    (canceled.status, canceled.canceled_at) = (SubscriptionStatus::Canceled, Some(at(1)));
    let inserted = &world.pending().subscriptions.inserted;
    let due: Vec<_> = inserted
        .iter()
        .map(|row| {
            let work = DueWork::Boundary { subscription_id: row.subscription_id, period_end: row.period.end };
            DueWorkspace { workspace_id: row.workspace_id, work }
        })
        .collect();
    let boundary = |nth: usize| due[nth];
    world.store(db.store()).await;
    let due = async |now, limit| db.store().due_boundaries(at(now), limit).await.unwrap();
    assert_eq!(due(19, 10).await, []);
    assert_eq!(due(20, 10).await, [boundary(1)]);
    assert_eq!(due(30, 10).await, [boundary(1), boundary(0)]);
    assert_eq!(due(30, 1).await, [boundary(1)]);
}

pub async fn a_grant_that_expired_unbooked_is_due_once_per_workspace(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 5).await;
    let expiring = |workspace_id: WorkspaceId, n: u128, source: GrantSource, end: i64| Grant {
        source,
        expires_at: Some(at(end)),
        ..new_grant(workspace_id, GrantId(Uuid::from_u128(n)), Credits::whole(1))
    };
    let grants = [
        expiring(workspace(0), 1, GrantSource::Purchase, 10),
        expiring(workspace(0), 2, GrantSource::Promotion, 11),
        expiring(workspace(1), 3, GrantSource::Adjustment, 20),
        expiring(workspace(2), 4, GrantSource::Allowance, 10),
        expiring(workspace(3), 5, GrantSource::Rollover, 10),
        Grant { remaining: Credits::ZERO, ..expiring(workspace(4), 6, GrantSource::Purchase, 10) },
    ];
    world.pending().grants.inserted.extend(grants);
    world.command(workspace(0), "PurchaseCredits", "accepted", at(1));
    world.store(db.store()).await;
    let due = async |now| db.store().due_expiries(at(now), 10).await.unwrap();
    let expiry = |nth| DueWorkspace { workspace_id: workspace(nth), work: DueWork::Expiry };
    assert_eq!(due(9).await, []);
    assert_eq!(due(15).await, [expiry(0)]);
    assert_eq!(due(20).await, [expiry(0), expiry(1)]);
    assert_eq!(db.store().due_expiries(at(20), 1).await.unwrap(), [expiry(0)]);
    assert_eq!(db.store().due_boundaries(at(20), 10).await.unwrap(), []);
}

pub async fn many_expired_grants_of_one_workspace_do_not_make_the_look_longer(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    let expiring = |workspace_id: WorkspaceId, n: u128, end: i64| Grant {
        source: GrantSource::Purchase,
        expires_at: Some(at(end)),
        ..new_grant(workspace_id, GrantId(Uuid::from_u128(n)), Credits::whole(1))
    };
    let many = (1..=50).map(|n| expiring(workspace(0), n, 10));
    world.pending().grants.inserted.extend(many.chain([expiring(workspace(1), 51, 11)]));
    world.command(workspace(0), "PurchaseCredits", "accepted", at(1));
    world.store(db.store()).await;
    let due = async |limit| db.store().due_expiries(at(20), limit).await.unwrap();
    let expiry = |nth| DueWorkspace { workspace_id: workspace(nth), work: DueWork::Expiry };
    assert_eq!(due(2).await, [expiry(0)]);
    assert_eq!(due(50).await, [expiry(0), expiry(1)]);
}

pub async fn a_live_store_answers_a_ping(db: &impl TestDatabase) {
    db.store().ping().await.unwrap();
}
