//! Pages, filters, and what is due.

use std::collections::BTreeMap;

use uuid::Uuid;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::grant::{Grant, GrantSource};
use visionscope_billing::domain::ids::{EventId, GrantId, Partition, WorkspaceId};
use visionscope_billing::domain::ledger::Account;
use visionscope_billing::domain::snapshot::Snapshot;
use visionscope_billing::domain::subscription::SubscriptionStatus;
use visionscope_billing::domain::text::{PaymentReference, PlanCode};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::usage::UsageId;
use visionscope_billing::store::queries::{
    DueWork, DueWorkspace, EventPosition, EventQuery, GrantFilter, HistoryPosition, HistoryQuery, Order, Purchase,
};

use crate::database::TestDatabase;
use crate::fixtures::{World, at, feature, keys_of, load, new_grant, plan, workspace, workspace_in, world_of};

/// Seven deductions, one per second. Those of odd seconds are of another feature.
async fn seven_deductions(db: &impl TestDatabase) -> World {
    let mut world = world_of(db.store(), 2).await;
    for n in 1..=7 {
        world.deduct(workspace(0), Credits::whole(n), at(n)).deduct(workspace(1), Credits::whole(n), at(n));
    }
    for log in world.pending().usage_logs.iter_mut().filter(|log| log.seq % 2 == 1) {
        log.feature_code = feature("upscale");
    }
    for entry in world.pending().ledger_entries.iter_mut().filter(|entry| entry.seq % 2 == 0) {
        entry.accounts.credit = Account::Consumed(feature("upscale"));
    }
    world.store(db.store()).await;
    world
}

fn newest(limit: u32) -> HistoryQuery {
    HistoryQuery::newest(workspace(0), limit)
}

async fn usage(db: &impl TestDatabase, query: &HistoryQuery) -> Vec<i64> {
    usage_of(db, query, None).await
}

async fn usage_of(db: &impl TestDatabase, query: &HistoryQuery, code: Option<&str>) -> Vec<i64> {
    let logs = db.store().usage(query, code.map(feature).as_ref()).await.unwrap().rows;
    assert!(logs.iter().all(|usage| usage.log.workspace_id == query.workspace_id));
    logs.iter().map(|usage| usage.log.seq).collect()
}

async fn ledger(db: &impl TestDatabase, query: &HistoryQuery, grant_id: Option<GrantId>) -> Vec<i64> {
    let entries = db.store().ledger(query, grant_id).await.unwrap().rows;
    assert!(entries.iter().all(|entry| entry.workspace_id == query.workspace_id));
    entries.iter().map(|entry| entry.seq).collect()
}

pub async fn an_unknown_workspace_is_none(db: &impl TestDatabase) {
    assert_eq!(db.store().workspace(workspace(0)).await.unwrap(), None);
    world_of(db.store(), 1).await;
    assert!(db.store().workspace(workspace(0)).await.unwrap().is_some());
    assert_eq!(db.store().workspace(workspace(1)).await.unwrap(), None);
}

pub async fn a_snapshot_without_locks_has_the_rows_that_are_loaded_with_locks(db: &impl TestDatabase) {
    let mut world = seven_deductions(db).await;
    let id = workspace(0);
    let grant_id = db.store().workspace(id).await.unwrap().unwrap().grants[0].grant_id;
    let mut keys = keys_of([id, workspace(9)]);
    keys.grants = [(id, grant_id), (id, GrantId(Uuid::from_u128(9)))].into();
    keys.payments = [(id, PaymentReference::new("unused").unwrap())].into();
    keys.plans = ["pro", "none"].map(|code| PlanCode::new(code).unwrap()).into();
    keys.features = ["render", "rendr"].map(feature).into();
    let loaded = load(db.store(), &keys).await;
    assert_eq!((loaded.workspaces.len(), loaded.closed_grants.len(), loaded.features.len()), (1, 1, 1));
    let expected = Snapshot { heads: BTreeMap::new(), database_now: None, ..loaded };
    let without_clock = |snapshot: Snapshot| Snapshot { database_now: None, ..snapshot };
    assert_eq!(without_clock(db.store().snapshot(&keys).await.unwrap()), expected);
    // It does not wait for who holds the locks, and does not see what is not committed.
    world.deduct(id, Credits::whole(1), at(20));
    let mut tx = db.store().begin().await.unwrap();
    tx.load(&keys_of([id])).await.unwrap();
    assert_eq!(without_clock(db.store().snapshot(&keys).await.unwrap()), expected);
    tx.commit(&world.take()).await.unwrap();
    let left = |snapshot: &Snapshot| snapshot.workspaces[&id].credits.current_credits;
    let after = db.store().snapshot(&keys).await.unwrap();
    assert_eq!(left(&expected).minus(Credits::whole(1)).unwrap(), left(&after));
}

pub async fn the_last_entry_until_an_instant_is_found_in_its_own_workspace(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    world.deduct(workspace(0), Credits::whole(1), at(2));
    // A command with more than one entry: they share its instant.
    let command_id = world.command(workspace(0), "PurchaseCredits", "accepted", at(3));
    for _ in 0..3 {
        let (debit, credit) = (Account::Issued(GrantSource::Purchase), Account::Expired);
        world.entry(workspace(0), command_id, debit, credit, Credits::whole(1), at(3));
    }
    world.deduct(workspace(1), Credits::whole(7), at(4)).store(db.store()).await;
    let last = async |nth, until| db.store().last_entry(workspace(nth), until).await.unwrap();
    let just_before = |seconds| Timestamp::from_micros(at(seconds).micros() - 1);
    let table = [
        (0, just_before(0), None),
        (0, at(0), Some(1)),
        (0, just_before(2), Some(1)),
        (0, at(2), Some(2)),
        (0, just_before(3), Some(2)),
        (0, at(3), Some(5)),
        (0, at(100), Some(5)),
        (1, at(3), Some(1)),
        (1, at(4), Some(2)),
        (9, at(100), None),
    ];
    for (nth, until, seq) in table {
        let found = last(nth, until).await;
        assert_eq!(found.as_ref().map(|entry| entry.seq), seq, "{nth} {until}");
        assert!(found.is_none_or(|entry| entry.workspace_id == workspace(nth)));
    }
}

pub async fn usage_pages_have_no_gap_and_no_repetition_in_either_order(db: &impl TestDatabase) {
    seven_deductions(db).await;
    for (order, expected) in [
        (Order::Descending, [vec![7, 6, 5], vec![5, 4, 3], vec![3, 2, 1], vec![1]]),
        (Order::Ascending, [vec![1, 2, 3], vec![3, 4, 5], vec![5, 6, 7], vec![7]]),
    ] {
        let mut query = HistoryQuery { order, ..newest(3) };
        for seqs in expected {
            assert_eq!(usage(db, &query).await, seqs);
            let last = *seqs.last().unwrap();
            query.start_at = Some(HistoryPosition { recorded_at: at(last), seq: last });
        }
        query.start_at = Some(HistoryPosition { recorded_at: at(4), seq: 5 });
        let next = if order == Order::Ascending { [5, 6, 7] } else { [4, 3, 2] };
        assert_eq!(usage(db, &query).await, next, "no row has this position");
    }
    assert!(usage(db, &HistoryQuery::newest(workspace(9), 3)).await.is_empty());
}

pub async fn usage_is_filtered_by_feature_and_time(db: &impl TestDatabase) {
    seven_deductions(db).await;
    assert_eq!(usage_of(db, &newest(100), Some("upscale")).await, [7, 5, 3, 1]);
    let ascending = HistoryQuery { order: Order::Ascending, ..newest(3) };
    assert_eq!(usage_of(db, &ascending, Some("upscale")).await, [1, 3, 5]);
    let between = HistoryQuery { from: Some(at(3)), to: Some(at(6)), ..newest(100) };
    assert_eq!(usage(db, &between).await, [5, 4, 3]);
    let start_at = Some(HistoryPosition { recorded_at: at(7), seq: 7 });
    let all = HistoryQuery { start_at, from: Some(at(2)), to: Some(at(100)), ..newest(2) };
    assert_eq!(usage_of(db, &all, Some("upscale")).await, [7, 5]);
    assert!(usage_of(db, &newest(3), Some("unused")).await.is_empty());
}

pub async fn the_ledger_is_paged_and_filtered_by_grant_and_time(db: &impl TestDatabase) {
    let mut world = seven_deductions(db).await;
    assert_eq!(ledger(db, &newest(100), None).await, [8, 7, 6, 5, 4, 3, 2, 1]);
    let start_at = Some(HistoryPosition { recorded_at: at(3), seq: 4 });
    assert_eq!(ledger(db, &HistoryQuery { start_at, ..newest(2) }, None).await, [4, 3]);
    assert_eq!(ledger(db, &HistoryQuery { from: Some(at(1)), to: Some(at(3)), ..newest(100) }, None).await, [3, 2]);
    let grant = GrantId(world.fresh_id());
    let command_id = world.command(workspace(0), "PurchaseCredits", "accepted", at(20));
    let (issued, one) = (Account::Issued(GrantSource::Purchase), Credits::whole(1));
    world.entry(workspace(0), command_id, issued, Account::Grant(grant), one, at(20));
    world.store(db.store()).await;
    assert_eq!(ledger(db, &newest(100), Some(grant)).await, [9]);
    let allowance = db.store().workspace(workspace(0)).await.unwrap().unwrap().grants[0].grant_id;
    let ascending = HistoryQuery { order: Order::Ascending, ..newest(3) };
    assert_eq!(ledger(db, &ascending, Some(allowance)).await, [1, 2, 3]);
    assert!(ledger(db, &newest(3), Some(GrantId(Uuid::from_u128(9)))).await.is_empty());
}

pub async fn a_page_says_whether_there_is_more(db: &impl TestDatabase) {
    seven_deductions(db).await;
    let has_more = async |query| db.store().usage(&query, None).await.unwrap().has_more;
    assert!(has_more(newest(3)).await);
    assert!(!has_more(newest(7)).await);
    let start_at = Some(HistoryPosition { recorded_at: at(4), seq: 4 });
    assert!(!has_more(HistoryQuery { start_at, ..newest(4) }).await);
    assert!(has_more(HistoryQuery { start_at, ..newest(3) }).await);
    assert!(!has_more(HistoryQuery { from: Some(at(5)), ..newest(3) }).await);
    assert!(has_more(HistoryQuery { from: Some(at(4)), ..newest(3) }).await);
    let upscale = feature("upscale");
    assert!(!db.store().usage(&newest(4), Some(&upscale)).await.unwrap().has_more);
    assert!(db.store().usage(&newest(3), Some(&upscale)).await.unwrap().has_more);
}

pub async fn time_ranges_are_exact_at_their_bounds(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    for n in [2, 4, 6] {
        world.deduct(workspace(0), Credits::whole(1), at(n));
        // A command with more than one entry: they share its instant.
        let command_id = world.command(workspace(0), "PurchaseCredits", "accepted", at(n + 1));
        for _ in 0..3 {
            let (debit, credit) = (Account::Issued(GrantSource::Purchase), Account::Expired);
            world.entry(workspace(0), command_id, debit, credit, Credits::whole(1), at(n + 1));
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
            for start_at in [None, Some(HistoryPosition { recorded_at: at(5), seq: 8 })] {
                let query = HistoryQuery { from: *from, to: *to, start_at, ..newest(100) };
                let found = db.store().ledger(&query, None).await.unwrap();
                let is_in =
                    |instant: &Timestamp| from.is_none_or(|from| *instant >= from) && to.is_none_or(|to| *instant < to);
                let expected: Vec<i64> = (1..)
                    .zip(&instants)
                    .filter(|(seq, instant)| is_in(instant) && start_at.is_none_or(|first| *seq <= first.seq))
                    .map(|(seq, _)| seq)
                    .collect();
                let seqs: Vec<i64> = found.rows.iter().rev().map(|entry| entry.seq).collect();
                assert_eq!((seqs, found.has_more), (expected, false), "{query:?}");
            }
        }
    }
}

pub async fn entries_of_one_instant_are_paged_by_their_numbers(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    world.deduct(workspace(0), Credits::whole(1), at(1));
    let command_id = world.command(workspace(0), "PurchaseCredits", "accepted", at(5));
    let grant = Account::Grant(GrantId(world.fresh_id()));
    for _ in 0..70 {
        let issued = Account::Issued(GrantSource::Purchase);
        world.entry(workspace(0), command_id, issued, grant.clone(), Credits::whole(1), at(5));
    }
    world.deduct(workspace(0), Credits::whole(1), at(9));
    world.store(db.store()).await;
    for (to, last) in [(5, 2), (6, 72), (9, 72), (10, 73)] {
        let query = HistoryQuery { to: Some(at(to)), ..newest(200) };
        assert_eq!(ledger(db, &query, None).await, (1..=last).rev().collect::<Vec<_>>(), "{to}");
    }
    for seq in 3..=72 {
        let start_at = Some(HistoryPosition { recorded_at: at(5), seq });
        let descending = HistoryQuery { start_at, ..newest(2) };
        assert_eq!(ledger(db, &descending, None).await, (1..=seq).rev().take(2).collect::<Vec<_>>());
        let ascending = HistoryQuery { order: Order::Ascending, ..descending };
        assert_eq!(ledger(db, &ascending, None).await, (seq..=73).take(2).collect::<Vec<_>>());
    }
}

pub async fn a_usage_log_is_found_by_its_id_in_its_own_workspace(db: &impl TestDatabase) {
    seven_deductions(db).await;
    let log = db.store().usage(&newest(1), None).await.unwrap().rows.remove(0).log;
    let found = async |id, usage_id| db.store().usage_log(id, usage_id).await.unwrap().map(|usage| usage.log);
    assert_eq!(found(workspace(0), log.id()).await, Some(log.clone()));
    assert_ne!(found(workspace(1), log.id()).await, Some(log.clone()), "the other one has its own");
    assert_eq!(found(workspace(9), log.id()).await, None);
    assert_eq!(found(workspace(0), UsageId { seq: 6, ..log.id() }).await, None);
    assert_eq!(found(workspace(0), UsageId { recorded_at: at(6), ..log.id() }).await, None);
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
    db.store().put_plans(&[plan("pro", 1)], at(0)).await.unwrap();
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
    db.store().put_plans(&[plan("pro", 1)], at(0)).await.unwrap();
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

pub async fn many_expired_grants_of_one_workspace_do_not_slow_the_query(db: &impl TestDatabase) {
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

pub async fn an_expiry_warning_is_due_until_it_was_given_or_is_too_late(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 4).await;
    let warned_at = |nth, at_micros: Option<i64>, remaining| Grant {
        source: GrantSource::Purchase,
        expires_at: Some(at(100)),
        expiry_warning_at: at_micros.map(at),
        remaining,
        ..new_grant(workspace(nth), GrantId(Uuid::from_u128(1)), Credits::whole(1))
    };
    let all = Credits::whole(1);
    let grants = [
        warned_at(0, Some(20), all),
        warned_at(1, Some(10), all),
        warned_at(2, None, all),
        warned_at(3, Some(10), Credits::ZERO),
    ];
    world.pending().grants.inserted.extend(grants);
    world.command(workspace(0), "PurchaseCredits", "accepted", at(1));
    world.store(db.store()).await;
    let due = async |now, limit| db.store().due_warnings(at(now), limit).await.unwrap();
    let warning = |nth| DueWorkspace { workspace_id: workspace(nth), work: DueWork::ExpiryWarning };
    assert_eq!(due(9, 10).await, []);
    assert_eq!(due(10, 10).await, [warning(1)]);
    assert_eq!(due(99, 10).await, [warning(1), warning(0)]);
    assert_eq!(due(99, 1).await, [warning(1)]);
    assert_eq!(due(100, 10).await, []);
}

pub async fn purchases_are_paged_with_their_bonuses_and_found_by_their_payments(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    let id = workspace(0);
    let bought = |n: u8| Grant {
        source: GrantSource::Purchase,
        payment_reference: PaymentReference::new(&format!("pay-{n}")).ok(),
        created_at: at(i64::from(n)),
        issued_seq: i64::from(n),
        ..new_grant(id, GrantId(Uuid::from_u128(u128::from(n))), Credits::whole(i64::from(n)))
    };
    let bonus_id = GrantId(Uuid::from_u128(50));
    let with_bonus = Grant { bonus_grant_id: Some(bonus_id), ..bought(2) };
    let bonus = Grant { source: GrantSource::Promotion, ..new_grant(id, bonus_id, Credits::whole(7)) };
    let all = [bought(1), with_bonus.clone(), bought(3)];
    world.pending().grants.inserted.extend(all.iter().cloned().chain([bonus.clone()]));
    world.command(id, "PurchaseCredits", "accepted", at(1));
    world.store(db.store()).await;
    let query = HistoryQuery::newest(id, 2);
    let page = db.store().purchases(&query).await.unwrap();
    let plain =
        |grant: &Grant| Purchase { grant: grant.clone(), bonus: None, reversed: Credits::ZERO, reversed_minor: 0 };
    let second = Purchase { grant: with_bonus.clone(), bonus: Some(bonus), ..plain(&with_bonus) };
    assert_eq!((page.rows, page.has_more), (vec![plain(&all[2]), second.clone()], true));
    let start_at = Some(HistoryPosition { recorded_at: at(2), seq: 2 });
    let page =
        db.store().purchases(&HistoryQuery { start_at, order: Order::Ascending, ..query.clone() }).await.unwrap();
    assert_eq!((page.rows, page.has_more), (vec![second.clone(), plain(&all[2])], false));
    let others = db.store().purchases(&HistoryQuery { workspace_id: workspace(1), ..query }).await.unwrap();
    assert_eq!(others.rows, []);
    let find = async |workspace_id, text| {
        db.store().purchase(workspace_id, &PaymentReference::new(text).unwrap()).await.unwrap()
    };
    assert_eq!(find(id, "pay-2").await, Some(second));
    assert_eq!((find(id, "pay-4").await, find(workspace(1), "pay-2").await), (None, None));
}

pub async fn grants_are_paged_by_their_state_and_found_by_their_ids(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    let id = workspace(0);
    let allowance = db.store().workspace(id).await.unwrap().unwrap().grants.remove(0);
    let granted = |n: u8| Grant {
        created_at: at(i64::from(n)),
        issued_seq: i64::from(n),
        ..new_grant(id, GrantId(Uuid::from_u128(u128::from(n))), Credits::whole(1))
    };
    let spent = Grant { remaining: Credits::ZERO, ..granted(2) };
    let expired = Grant { expires_at: Some(at(10)), ..granted(3) };
    let held = Grant { remaining: Credits::ZERO, held: Credits::whole(1), ..expired.clone() };
    let held = Grant { grant_id: GrantId(Uuid::from_u128(4)), created_at: at(4), issued_seq: 4, ..held };
    let lasting = Grant { expires_at: Some(at(11)), ..granted(5) };
    let all = [allowance, spent, expired, held, lasting];
    world.pending().grants.inserted.extend_from_slice(&all[1..]);
    world.command(id, "GrantCredits", "accepted", at(1));
    world.store(db.store()).await;
    let (open, closed) = (GrantFilter::Open(at(10)), GrantFilter::Closed(at(10)));
    let ascending = HistoryQuery { order: Order::Ascending, ..HistoryQuery::newest(id, 2) };
    let pages = |filter, query: HistoryQuery| {
        let all = &all;
        async move {
            let page = db.store().grants(&query, filter).await.unwrap();
            let place = |grant: &Grant| all.iter().position(|one| one == grant).unwrap();
            (page.rows.iter().map(place).collect::<Vec<_>>(), page.has_more)
        }
    };
    let newest = HistoryQuery::newest(id, 2);
    for (filter, first, oldest_first) in [
        (GrantFilter::All, (vec![4, 3], true), (vec![0, 1], true)),
        (open, (vec![4, 3], true), (vec![0, 3], true)),
        (closed, (vec![2, 1], false), (vec![1, 2], false)),
    ] {
        assert_eq!(pages(filter, newest.clone()).await, first, "{filter:?}");
        assert_eq!(pages(filter, ascending.clone()).await, oldest_first, "{filter:?}");
    }
    // A page starts with the row that was seen, also if it has closed or opened since, or with the next one.
    let from = |query: &HistoryQuery, n: i64| {
        let start_at = Some(HistoryPosition { recorded_at: at(n), seq: n });
        HistoryQuery { start_at, ..query.clone() }
    };
    for (filter, query, expected) in [
        (GrantFilter::All, from(&newest, 3), (vec![2, 1], true)),
        (open, from(&newest, 3), (vec![2, 0], false)),
        (open, from(&ascending, 2), (vec![1, 3], true)),
        (open, from(&newest, 4), (vec![3, 0], false)),
        (closed, from(&newest, 5), (vec![4, 2], true)),
        (closed, from(&newest, 9), (vec![2, 1], false)),
    ] {
        assert_eq!(pages(filter, query.clone()).await, expected, "{filter:?} {query:?}");
    }
    let other = HistoryQuery { workspace_id: workspace(1), ..newest };
    assert_eq!(db.store().grants(&other, GrantFilter::All).await.unwrap().rows.len(), 1);
    let find = async |workspace_id, grant: &Grant| db.store().grant(workspace_id, grant.grant_id).await.unwrap();
    assert_eq!(find(id, &all[1]).await.as_ref(), Some(&all[1]));
    assert_eq!(find(workspace(1), &all[1]).await, None);
}

pub async fn a_live_store_answers_a_ping(db: &impl TestDatabase) {
    db.store().ping().await.unwrap();
}
