//! All or nothing, one after the other, and never what an invariant forbids.

use std::sync::atomic::{AtomicI64, Ordering};

use uuid::Uuid;
use visionscope_billing::domain::change_set::{ChangeSet, ResetRecord};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::event::EventType;
use visionscope_billing::domain::grant::{Grant, GrantSource};
use visionscope_billing::domain::ids::{GrantId, Partition};
use visionscope_billing::domain::text::{IdempotencyKey, PaymentReference};
use visionscope_billing::domain::workspace::{Current, CurrentFeature, CurrentGrant};
use visionscope_billing::store::views::EventQuery;
use visionscope_billing::store::{StoreError, WriteTx};

use crate::database::TestDatabase;
use crate::fixtures::{World, at, commit, keys_of, load, new_grant, plan, workspace, workspace_in, world_of};
use crate::outbox::record;

const ROWS: &str = "select (select cast(count(*) as bigint) from commands),
    (select cast(count(*) as bigint) from credit_entries), (select cast(count(*) as bigint) from usage_logs),
    (select cast(count(*) as bigint) from event_outbox), (select cast(count(*) as bigint) from credit_grants),
    (select cast(sum(current_credits) as bigint) from workspace_credits),
    (select cast(sum(seq * 1000 + version) as bigint) from stream_partition)";

/// Commits what must fail, and checks that it left nothing.
async fn refused(db: &impl TestDatabase, changes: ChangeSet) -> StoreError {
    let before = db.integers(ROWS).await;
    let error = commit(db.store(), changes.clone()).await.unwrap_err();
    assert_eq!(db.integers(ROWS).await, before, "{error:?}");
    // Without a look before, it is refused for the same reason.
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

/// A sound deduction of workspace 0, to be bent.
async fn deduction(db: &impl TestDatabase) -> ChangeSet {
    let mut world = world_of(db.store(), 2).await;
    world.deduct(workspace(0), Credits::whole(1), at(1)).take()
}

pub async fn a_dropped_transaction_leaves_nothing(db: &impl TestDatabase) {
    let changes = deduction(db).await;
    let mut tx = db.store().begin().await.unwrap();
    tx.load(&keys_of([workspace(0)])).await.unwrap();
    drop(tx);
    // Its lock is gone too.
    commit(db.store(), changes).await.unwrap();
    assert_eq!(db.store().workspace(workspace(0)).await.unwrap().unwrap().credits.usage_seq, 1);
}

pub async fn a_workspace_with_another_last_command_is_a_conflict(db: &impl TestDatabase) {
    let changes = deduction(db).await;
    for by in [-1, 1] {
        let mut bent = changes.clone();
        bent.commands[0].seq += by;
        assert_conflict(db, bent).await;
    }
    commit(db.store(), changes).await.unwrap();
}

/// As two replicas would write that decided on the same head.
pub async fn events_follow_those_that_others_wrote_meanwhile(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    let mut other = world.beside();
    let mut one =
        world.deduct(workspace(0), Credits::whole(1), at(1)).deduct(workspace(0), Credits::whole(1), at(2)).take();
    let mut two = other.deduct(workspace(1), Credits::whole(2), at(1)).take();
    assert_eq!(one.heads[0].version, two.heads[0].version);
    let heads = db.store().write(&one).await.unwrap();
    assert_eq!(heads, one.heads, "nobody came before it");
    let heads = db.store().write(&two).await.unwrap();
    assert_eq!((heads[0].seq, heads[0].version), (one.heads[0].seq + 1, one.heads[0].version + 1));
    one.follow(&one.heads.clone());
    two.follow(&heads);
    let written: Vec<_> = one.events.iter().chain(&two.events).cloned().collect();
    let events = db.store().read(heads[0].partition, 0, 100).await.unwrap();
    assert_eq!(events[events.len() - written.len()..], written);
    let loaded = load(db.store(), &keys_of([workspace(0), workspace(1)])).await;
    assert_eq!(loaded.heads.values().copied().collect::<Vec<_>>(), heads);
    let query = EventQuery::OfWorkspace { workspace_id: workspace(1), after: 0, limit: 10 };
    assert_eq!(db.store().events(&query).await.unwrap().last(), two.events.last(), "its command knows where it is");
    assert_eq!(db.store().audit(10).await.unwrap(), []);
}

pub async fn what_moved_on_is_told_by_its_last_command(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    let seq_of = async |n| db.store().workspace(workspace(n)).await.unwrap().unwrap().credits.command_seq;
    let known = [(workspace(0), seq_of(0).await), (workspace(1), seq_of(1).await), (workspace(7), 1)];
    assert_eq!(db.store().credits_since(&known).await.unwrap(), []);
    world.deduct(workspace(1), Credits::whole(1), at(1)).store(db.store()).await;
    let changed = db.store().workspace(workspace(1)).await.unwrap().unwrap().credits;
    assert_eq!(db.store().credits_since(&known).await.unwrap(), [changed]);
    assert_eq!(db.store().credits_since(&[]).await.unwrap(), []);
}

pub async fn what_is_written_without_a_look_is_what_a_transaction_would_have_written(db: &impl TestDatabase) {
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

pub async fn a_used_idempotency_key_is_a_conflict_and_nothing_is_written(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 2).await;
    let first = world.deduct(workspace(0), Credits::whole(1), at(1)).take();
    let key = first.commands[0].idempotency_key.clone();
    commit(db.store(), first).await.unwrap();
    let mut again = world.deduct(workspace(0), Credits::whole(1), at(2)).take();
    again.commands[0].idempotency_key = key.clone();
    assert_conflict(db, again).await;
    // In another workspace it is another key.
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
    let mut features = changes.clone();
    features.features.updated[0].0 = workspace(7);
    assert_corrupt(db, features).await;
    let mut grants = changes.clone();
    grants.grants.updated[0].workspace_id = workspace(1);
    assert_corrupt(db, grants).await;
    let mut subscriptions = changes;
    let mut foreign = db.store().workspace(workspace(0)).await.unwrap().unwrap().subscription;
    foreign.workspace_id = workspace(7);
    subscriptions.subscriptions.updated.push(foreign);
    assert_corrupt(db, subscriptions).await;
}

pub async fn what_is_current_stands_before_the_rows_of_its_own(db: &impl TestDatabase) {
    let mut changes = deduction(db).await;
    let grant = changes.grants.updated.remove(0);
    let (_, feature) = changes.features.updated.remove(0);
    let current = Current {
        grant: Some(CurrentGrant { grant_id: grant.grant_id, remaining: grant.remaining, held: grant.held }),
        feature: Some(CurrentFeature {
            feature_code: feature.feature_code.clone(),
            used_this_month: feature.used_this_month,
            limit_fired: true,
        }),
    };
    changes.credits.updated[0].current = current.clone();
    commit(db.store(), changes).await.unwrap();
    let loaded = load(db.store(), &keys_of([workspace(0)])).await.workspaces.remove(&workspace(0)).unwrap();
    assert_eq!(loaded.credits.current, current);
    assert_eq!(loaded.grants, std::slice::from_ref(&grant));
    let seen = loaded.features.get(&feature.feature_code).unwrap();
    assert_eq!((seen.used_this_month, seen.limit_fired), (feature.used_this_month, true));
    assert_eq!(db.store().workspace(workspace(0)).await.unwrap(), Some(*loaded));
    assert_eq!(db.store().audit(10).await.unwrap(), []);
    let none = "update workspace_credits set current_grant_remaining = 0 where current_grant_id is not null";
    assert!(db.execute(none).await.is_err(), "a grant with nothing remaining is not current");
}

pub async fn what_history_names_is_neither_deleted_nor_given_another_key(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    world.deduct(workspace(0), Credits::whole(1), at(1)).store(db.store()).await;
    let before = db.integers(ROWS).await;
    for statement in [
        "delete from credit_grants",
        "delete from workspaces",
        "update credit_grants set grant_id = workspace_id",
        "update workspaces set workspace_id = (select grant_id from credit_grants)",
    ] {
        assert!(db.execute(statement).await.is_err(), "{statement}");
    }
    assert_eq!(db.integers(ROWS).await, before);
}

pub async fn a_second_reset_of_a_period_is_a_conflict(db: &impl TestDatabase) {
    let id = workspace(0);
    let mut world = world_of(db.store(), 2).await;
    let subscription = db.store().workspace(id).await.unwrap().unwrap().subscription;
    for attempt in 0..2 {
        let command_id = world.command(id, "ResetMonthlyCredits", "accepted", at(1));
        world.event(id, command_id, EventType::CreditReset, at(1));
        world.pending().resets.push(ResetRecord {
            workspace_id: id,
            subscription_id: subscription.subscription_id,
            period: subscription.period,
            usage_seq: 0,
            command_id,
            recorded_at: at(1),
        });
        if attempt == 0 {
            world.store(db.store()).await;
        }
    }
    assert_conflict(db, world.take()).await;
}

pub async fn history_can_be_neither_updated_nor_deleted(db: &impl TestDatabase) {
    let id = workspace(0);
    let mut world = world_of(db.store(), 1).await;
    let subscription = db.store().workspace(id).await.unwrap().unwrap().subscription;
    world.deduct(id, Credits::whole(1), at(1));
    let reset = ResetRecord {
        workspace_id: id,
        subscription_id: subscription.subscription_id,
        period: subscription.period,
        usage_seq: 0,
        command_id: world.command(id, "ResetMonthlyCredits", "accepted", at(1)),
        recorded_at: at(1),
    };
    world.pending().resets.push(reset);
    world.store(db.store()).await;
    let lease = db.store().lease("one", std::time::Duration::from_mins(1)).await.unwrap().remove(3);
    record(db, &lease, 1).await;
    for (table, column) in [
        ("plan_versions", "version"),
        ("plan_features", "enabled"),
        ("commands", "status"),
        ("credit_entries", "balance_after"),
        ("usage_logs", "credits"),
        ("credit_resets", "period_end"),
        ("event_outbox", "data"),
        ("stream_batch", "seq_to"),
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
        credits.command_seq += 1;
        changes.commands[0].seq = credits.command_seq;
        let event = &mut changes.events[0];
        event.event_id.0 = Uuid::from_u128(u128::from(n.unsigned_abs()) + 1);
        (event.seq, event.workspace_seq, head.last_event_id) = (head.seq, credits.event_seq, Some(event.event_id));
        event.previous = credits.last.event.replace(event.event_id);
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
    db.store().put_plans(&[plan("pro", 1)]).await.unwrap();
    let ids: Vec<_> =
        Partition::all().flat_map(|partition| (0..8).map(move |nth| workspace_in(partition, nth))).collect();
    let mut world = World::new();
    for id in &ids {
        world.provision(*id);
    }
    world.store(db.store()).await;
    for round in 1..4 {
        for id in &ids {
            world.deduct(*id, Credits::whole(round), at(round)).refuse(*id, at(round));
        }
        world.store(db.store()).await;
    }
    let snapshot = load(db.store(), &keys_of(ids.iter().copied())).await;
    assert_eq!(snapshot.workspaces.len(), ids.len());
    assert!(snapshot.workspaces.values().all(|state| state.credits.used_this_month == Credits::whole(6)));
    assert_eq!(db.store().audit(10).await.unwrap(), []);
}
