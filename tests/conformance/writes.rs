//! Writes are atomic and serial, and keep the invariants.

use std::sync::atomic::{AtomicI64, Ordering};

use uuid::Uuid;
use visionscope_billing::domain::change_set::{ChangeSet, SubscriptionPeriod};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::event::EventType;
use visionscope_billing::domain::grant::{Grant, GrantSource};
use visionscope_billing::domain::ids::{GrantId, Partition};
use visionscope_billing::domain::snapshot::KeySet;
use visionscope_billing::domain::subscription::Subscription;
use visionscope_billing::domain::text::{IdempotencyKey, PaymentReference};
use visionscope_billing::store::{StoreError, WriteTx};

use crate::database::TestDatabase;
use crate::fixtures::{World, at, commit, keys_of, load, new_grant, plan, workspace, workspace_in, world_of};
use crate::outbox::record;

const ROWS: &str = "select (select cast(count(*) as bigint) from commands),
    (select cast(count(*) as bigint) from ledger_entries), (select cast(count(*) as bigint) from usage_logs),
    (select cast(count(*) as bigint) from event_outbox), (select cast(count(*) as bigint) from credit_grants),
    (select cast(sum(current_credits) as bigint) from workspace_credits),
    (select cast(sum(seq * 1000 + version) as bigint) from outbox_partitions)";

/// Commits a change set that must fail, and checks that nothing was written.
async fn refused(db: &impl TestDatabase, changes: ChangeSet) -> StoreError {
    let before = db.integers(ROWS).await;
    let error = commit(db.store(), changes.clone()).await.unwrap_err();
    assert_eq!(db.integers(ROWS).await, before, "{error:?}");
    // An optimistic write is refused for the same reason.
    let unseen = db.store().write(&changes).await.unwrap_err();
    assert_eq!(std::mem::discriminant(&unseen), std::mem::discriminant(&error), "{unseen:?} and {error:?}");
    assert_eq!(db.integers(ROWS).await, before, "{unseen:?}");
    error
}

async fn assert_conflict(db: &impl TestDatabase, changes: ChangeSet) {
    let error = refused(db, changes).await;
    assert!(matches!(error, StoreError::Conflict(_)), "{error:?}");
}

async fn assert_corrupt(db: &impl TestDatabase, changes: ChangeSet) {
    let error = refused(db, changes).await;
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
}

/// A valid deduction of workspace 0, for a test to alter.
async fn deduction(db: &impl TestDatabase) -> ChangeSet {
    let mut world = world_of(db.store(), 2).await;
    world.deduct(workspace(0), Credits::whole(1), at(1)).take()
}

pub async fn a_dropped_transaction_leaves_nothing(db: &impl TestDatabase) {
    let changes = deduction(db).await;
    let mut tx = db.store().begin().await.unwrap();
    tx.load(&keys_of([workspace(0)])).await.unwrap();
    drop(tx);
    // Its lock is released too.
    commit(db.store(), changes).await.unwrap();
    assert_eq!(db.store().workspace(workspace(0)).await.unwrap().unwrap().credits.usage_seq, 1);
}

pub async fn a_workspace_with_another_version_is_a_conflict(db: &impl TestDatabase) {
    let changes = deduction(db).await;
    for by in [-1, 1] {
        let mut bent = changes.clone();
        bent.commands[0].seq += by;
        assert_conflict(db, bent).await;
    }
    commit(db.store(), changes).await.unwrap();
}

pub async fn stale_workspaces_are_found_by_their_version(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    let version_of = async |n| db.store().workspace(workspace(n)).await.unwrap().unwrap().credits.version;
    let known = [(workspace(0), version_of(0).await), (workspace(1), version_of(1).await), (workspace(7), 1)];
    assert_eq!(db.store().stale_workspaces(&known).await.unwrap(), []);
    world.deduct(workspace(1), Credits::whole(1), at(1)).store(db.store()).await;
    assert_eq!(db.store().stale_workspaces(&known).await.unwrap(), [workspace(1)]);
    assert_eq!(db.store().stale_workspaces(&[]).await.unwrap(), []);
}

pub async fn an_optimistic_write_matches_a_locked_one(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    let first = world.deduct(workspace(0), Credits::whole(1), at(1)).take();
    let second = world.deduct(workspace(0), Credits::whole(2), at(2)).deduct(workspace(1), Credits::whole(4), at(3));
    let second = second.take();
    let refused = |written| matches!(written, Err(StoreError::Conflict(_)));
    assert!(refused(db.store().write(&second).await), "out of its turn");
    db.store().write(&first).await.unwrap();
    assert!(refused(db.store().write(&first).await), "twice");
    db.store().write(&second).await.unwrap();
    let loaded = load(db.store(), &keys_of([workspace(0), workspace(1)])).await;
    assert_eq!(loaded.heads.values().copied().collect::<Vec<_>>(), second.heads);
    for credits in &second.credits.updated {
        assert_eq!(loaded.workspaces[&credits.workspace_id].credits, *credits);
    }
    let events = db.store().read(second.heads[0].partition, 0, 100).await.unwrap();
    assert_eq!(events[events.len() - second.events.len()..], second.events);
}

/// With rows that a deduction does not write: holds, refunds and reversals.
pub async fn an_optimistic_write_of_other_rows_matches_too(db: &impl TestDatabase) {
    let id = workspace(0);
    let mut world = world_of(db.store(), 1).await;
    let open = world.hold(id, Credits::whole(2), at(1));
    let placed = world.take();
    let released = world.release(&open, at(2));
    let used = world.deduct(id, Credits::whole(3), at(3)).pending().usage_logs[0].clone();
    let refund = world.refund(&used, Credits::whole(1), at(4));
    let ended = world.take();
    let refused = |written| matches!(written, Err(StoreError::Conflict(_)));
    assert!(db.store().write(&ended).await.is_err(), "out of its turn: there is no such hold");
    db.store().write(&placed).await.unwrap();
    assert_eq!(load(db.store(), &keys_of([id])).await.workspaces[&id].holds, [open]);
    assert!(refused(db.store().write(&placed).await), "twice");
    db.store().write(&ended).await.unwrap();
    let keys = KeySet { holds: [(id, released.hold_id)].into(), usages: [(id, used.id())].into(), ..keys_of([id]) };
    let loaded = load(db.store(), &keys).await;
    assert_eq!(loaded.holds[&(id, released.hold_id)], released);
    assert_eq!(loaded.usages[&(id, used.id())].refunded, refund.credits);
    assert!(loaded.workspaces[&id].holds.is_empty());
}

pub async fn a_used_idempotency_key_is_a_conflict_and_nothing_is_written(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    let first = world.deduct(workspace(0), Credits::whole(1), at(1)).take();
    let key = first.commands[0].idempotency_key.clone();
    commit(db.store(), first).await.unwrap();
    let mut again = world.deduct(workspace(0), Credits::whole(1), at(2)).take();
    again.commands[0].idempotency_key = key.clone();
    assert_conflict(db, again).await;
    // Another workspace can use the same key.
    let mut other = World::after(1000);
    let mut elsewhere = other.provision(workspace_in(Partition::new(5).unwrap(), 0)).take();
    elsewhere.commands[0].idempotency_key = key;
    commit(db.store(), elsewhere).await.unwrap();
}

fn paid_grant(n: u128, source: GrantSource) -> Grant {
    let payment_reference = Some(PaymentReference::new("pay-1").unwrap());
    let grant = new_grant(workspace(0), GrantId(Uuid::from_u128(n)), Credits::whole(1));
    Grant { source, payment_reference, ..grant }
}

pub async fn a_used_payment_reference_is_a_conflict_and_nothing_is_written(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    world.pending().grants.inserted.push(paid_grant(1, GrantSource::Purchase));
    world.command(workspace(0), "PurchaseCredits", "accepted", at(1));
    world.store(db.store()).await;
    world.deduct(workspace(0), Credits::whole(1), at(2));
    world.pending().grants.inserted.push(paid_grant(2, GrantSource::Purchase));
    assert_conflict(db, world.take()).await;
}

pub async fn a_promotion_may_share_the_payment_reference_of_its_purchase(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    let pair = [paid_grant(1, GrantSource::Purchase), paid_grant(2, GrantSource::Promotion)];
    world.pending().grants.inserted.extend(pair);
    world.command(workspace(0), "PurchaseCredits", "accepted", at(1));
    world.store(db.store()).await;
}

pub async fn a_debt_beyond_the_overdraft_is_corrupt_and_nothing_is_written(db: &impl TestDatabase) {
    let changes = deduction(db).await;
    let mut in_debt = changes.clone();
    in_debt.credits.updated[0].debt_credits = Credits::from_micro(1).unwrap();
    assert_corrupt(db, in_debt).await;
    let mut below_zero = changes.clone();
    below_zero.credits.updated[0].current_credits = Credits::from_micro(-1).unwrap();
    assert_corrupt(db, below_zero).await;
    let mut overspent = changes;
    overspent.grants.updated[0].remaining = Credits::whole(-1);
    assert_corrupt(db, overspent).await;
}

pub async fn an_update_of_a_row_that_does_not_exist_is_refused(db: &impl TestDatabase) {
    let changes = deduction(db).await;
    let mut credits = changes.clone();
    credits.credits.updated[0].workspace_id = workspace(7);
    assert_conflict(db, credits).await;
    let mut counters = changes.clone();
    counters.counters.updated[0].workspace_id = workspace(7);
    assert_corrupt(db, counters).await;
    let mut grants = changes.clone();
    grants.grants.updated[0].workspace_id = workspace(1);
    assert_corrupt(db, grants).await;
    let mut subscriptions = changes;
    let mut foreign = db.store().workspace(workspace(0)).await.unwrap().unwrap().subscription;
    foreign.subscription_id.0 = Uuid::from_u128(7);
    subscriptions.subscriptions.updated.push(foreign);
    assert_corrupt(db, subscriptions).await;
}

pub async fn rows_that_history_refers_to_cannot_be_deleted(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    world.deduct(workspace(0), Credits::whole(1), at(1)).hold(workspace(0), Credits::whole(1), at(2));
    world.store(db.store()).await;
    let before = db.integers(ROWS).await;
    for statement in [
        "delete from credit_grants",
        "delete from credit_holds",
        "delete from workspaces",
        "update workspaces set workspace_id = (select grant_id from credit_grants)",
    ] {
        assert!(db.execute(statement).await.is_err(), "{statement}");
    }
    assert_eq!(db.integers(ROWS).await, before);
}

pub async fn a_second_reset_of_a_period_is_a_conflict(db: &impl TestDatabase) {
    let id = workspace(0);
    let mut world = world_of(db.store(), 2).await;
    let Subscription { subscription_id, period, .. } = db.store().workspace(id).await.unwrap().unwrap().subscription;
    let command_id = world.command(id, "ResetMonthlyCredits", "accepted", at(1));
    world.event(id, command_id, EventType::CreditReset, at(1));
    let again = SubscriptionPeriod { workspace_id: id, subscription_id, period, usage_seq: 0, command_id };
    world.pending().periods.push(again);
    assert_conflict(db, world.take()).await;
}

pub async fn history_can_be_neither_updated_nor_deleted(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    world.deduct(workspace(0), Credits::whole(1), at(1)).hold(workspace(0), Credits::whole(1), at(2));
    let log = world.pending().usage_logs[0].clone();
    world.refund(&log, Credits::whole(1), at(3));
    let purchase = paid_grant(1, GrantSource::Purchase);
    world.reverse(&purchase, Credits::from_micro(1).unwrap(), at(4));
    world.pending().grants.updated.retain(|grant| grant.grant_id != purchase.grant_id);
    world.store(db.store()).await;
    let lease = db.store().lease("one", std::time::Duration::from_mins(1)).await.unwrap().remove(3);
    record(db, &lease, 1).await;
    for (table, column) in [
        ("plan_versions", "version"),
        ("plan_features", "is_enabled"),
        ("commands", "status"),
        ("ledger_entries", "balance_after"),
        ("usage_logs", "credits"),
        ("credit_hold_grants", "amount"),
        ("usage_refunds", "credits"),
        ("purchase_reversals", "owed"),
        ("subscription_periods", "period_end"),
        ("event_outbox", "data"),
        ("stream_batches", "seq_to"),
    ] {
        let rows = format!("select cast(count(*) as bigint) from {table}");
        let before = db.integers(&rows).await;
        assert!(before[0][0] > 0, "{table} has no row to protect");
        let update = db.execute(&format!("update {table} set {column} = {column}")).await.unwrap_err();
        let delete = db.execute(&format!("delete from {table}")).await.unwrap_err();
        assert!(update.contains("immutable") && delete.contains("immutable"), "{table}: {update}; {delete}");
        assert_eq!(db.integers(&rows).await, before);
    }
}

pub async fn write_transactions_on_one_partition_are_serial(db: &impl TestDatabase) {
    const WRITERS: i64 = 4;
    let id = workspace(0);
    drop(world_of(db.store(), 1).await);
    let inside = AtomicI64::new(0);
    let write = async |n: i64| {
        let mut tx = db.store().begin().await.unwrap();
        let snapshot = tx.load(&keys_of([id])).await.unwrap();
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two writers hold the partition");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let mut world = World::new();
        world.provision(id);
        world.take();
        world.refuse(id, at(n));
        let mut changes = world.take();
        let mut head = snapshot.heads[&Partition::of(id)];
        let mut credits = snapshot.workspaces[&id].credits.clone();
        (head.seq, head.version, credits.event_seq) = (head.seq + 1, head.version + 1, credits.event_seq + 1);
        credits.version += 1;
        changes.commands[0].seq = credits.version;
        let event = &mut changes.events[0];
        event.event_id.0 = Uuid::from_u128(u128::from(n.unsigned_abs()) + 1);
        (event.seq, event.workspace_seq, head.last_event_id) = (head.seq, credits.event_seq, Some(event.event_id));
        changes.commands[0].idempotency_key = IdempotencyKey::new(&format!("writer-{n}")).unwrap();
        (changes.heads, changes.credits.updated) = (vec![head], vec![credits]);
        inside.fetch_sub(1, Ordering::SeqCst);
        finish(tx, changes).await;
    };
    futures::future::join_all((0..WRITERS).map(write)).await;
    let credits = db.store().workspace(id).await.unwrap().unwrap().credits;
    assert_eq!(credits.event_seq, 1 + WRITERS);
    let head = load(db.store(), &keys_of([id])).await.heads[&Partition::of(id)];
    assert_eq!((head.seq, head.version), (1 + WRITERS, 1 + WRITERS));
}

async fn finish(tx: Box<dyn WriteTx>, changes: ChangeSet) {
    tx.commit(&changes).await.unwrap();
}

pub async fn a_batch_of_many_workspaces_is_one_change_set(db: &impl TestDatabase) {
    db.store().put_plans(&[plan("pro", 1)], at(0)).await.unwrap();
    let ids: Vec<_> =
        Partition::all().flat_map(|partition| (0..8).map(move |nth| workspace_in(partition, nth))).collect();
    let mut world = World::new();
    for id in &ids {
        world.provision(*id);
    }
    world.store(db.store()).await;
    for round in 1..4 {
        for id in &ids {
            world.deduct(*id, Credits::whole(round), at(2 * round)).refuse(*id, at(2 * round + 1));
        }
        world.store(db.store()).await;
    }
    let snapshot = load(db.store(), &keys_of(ids.iter().copied())).await;
    assert_eq!(snapshot.workspaces.len(), ids.len());
    assert!(snapshot.workspaces.values().all(|state| state.credits.used_this_month == Credits::whole(6)));
    assert_eq!(db.store().audit(10).await.unwrap(), []);
}
