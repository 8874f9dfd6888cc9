//! Rows are read exactly as they were written.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use visionscope_billing::domain::change_set::ChangeSet;
use visionscope_billing::domain::credits::{Credits, Quantity};
use visionscope_billing::domain::event::EventType;
use visionscope_billing::domain::grant::{CostBasis, Currency, Grant, GrantSource};
use visionscope_billing::domain::ids::{GrantId, Partition, WorkspaceId};
use visionscope_billing::domain::ledger::LedgerEntry;
use visionscope_billing::domain::metadata::Metadata;
use visionscope_billing::domain::partition_head::PartitionHead;
use visionscope_billing::domain::period::Period;
use visionscope_billing::domain::snapshot::KeySet;
use visionscope_billing::domain::subscription::{PendingChange, SubscriptionStatus};
use visionscope_billing::domain::text::{IdempotencyKey, Label, PaymentReference, PlanCode, UserId};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::usage::UsageLog;
use visionscope_billing::domain::workspace::{FeatureOverride, OverrideTerms};
use visionscope_billing::store::queries::{EventQuery, HistoryQuery};

use crate::database::TestDatabase;
use crate::fixtures::{World, at, commit, feature, keys_of, load, new_grant, plan, workspace, workspace_in, world_of};

/// One workspace with a row of every kind.
fn every_row(id: WorkspaceId) -> ChangeSet {
    let mut world = World::new();
    world.provision(id).deduct(id, Credits::whole(3), at(1)).refuse(id, at(2));
    world.take()
}

/// Commits the rows and compares each with what is read.
async fn assert_survives(db: &impl TestDatabase, changes: ChangeSet) {
    db.store().put_plans(&[plan("pro", 1), plan("basic", 7)], at(0)).await.unwrap();
    commit(db.store(), changes.clone()).await.unwrap();
    let id = changes.workspaces[0].workspace_id;
    let commands: BTreeSet<_> = changes.commands.iter().map(|row| (id, row.idempotency_key.clone())).collect();
    let snapshot = load(db.store(), &KeySet { commands, ..keys_of([id]) }).await;
    let state = db.store().workspace(id).await.unwrap().unwrap();
    assert_eq!(*snapshot.workspaces[&id], state);
    assert_eq!(snapshot.heads[&changes.heads[0].partition], changes.heads[0]);
    assert_eq!(state.workspace, changes.workspaces[0]);
    assert_eq!(state.credits, changes.credits.inserted[0]);
    assert_eq!(state.subscription, changes.subscriptions.inserted[0]);
    assert_eq!((state.plan.plan_code.as_str(), state.plan.version), ("pro", 1));
    let overrides = state.feature_overrides.iter().map(|(code, terms)| FeatureOverride {
        workspace_id: id,
        feature_code: code.clone(),
        terms: *terms,
    });
    assert_eq!(overrides.collect::<Vec<_>>(), changes.feature_overrides);
    assert_eq!(state.counters, changes.counters.inserted);
    assert_eq!(state.grants, changes.grants.inserted);
    assert_eq!(snapshot.commands.len(), changes.commands.len());
    for command in changes.commands {
        assert_eq!(snapshot.commands[&(id, command.idempotency_key.clone())], command);
    }
    assert_history_survives(db, id, changes.ledger_entries, changes.usage_logs).await;
    let query = EventQuery::OfWorkspace { workspace_id: id, after: 0, limit: 100 };
    assert_eq!(db.store().events(&query).await.unwrap(), changes.events);
    let period =
        "select p.usage_seq from subscription_periods p join subscriptions s on s.workspace_id = p.workspace_id
        and s.subscription_id = p.subscription_id and s.period_start = p.period_start and s.period_end = p.period_end";
    assert_eq!(db.integers(period).await, [[changes.periods[0].usage_seq]]);
}

async fn assert_history_survives(
    db: &impl TestDatabase,
    workspace_id: WorkspaceId,
    mut entries: Vec<LedgerEntry>,
    mut usage_logs: Vec<UsageLog>,
) {
    entries.reverse();
    usage_logs.reverse();
    let query = HistoryQuery::newest(workspace_id, 100);
    assert_eq!(db.store().ledger(&query, None).await.unwrap().rows, entries);
    let listed = db.store().usage(&query, None).await.unwrap().rows;
    assert_eq!(listed.into_iter().map(|usage| usage.log).collect::<Vec<_>>(), usage_logs);
}

fn metadata() -> Metadata {
    Metadata::new([("job".to_owned(), "Zoë \"名前\" \\ {},".to_owned())].into()).unwrap()
}

pub async fn a_row_of_every_kind_with_every_field_set_is_read_as_it_was_written(db: &impl TestDatabase) {
    let mut changes = every_row(workspace(0));
    let own = &mut changes.workspaces[0];
    own.name = Label::new("Zoë's 名前, \"{NULL}\" \\").unwrap();
    own.time_zone = chrono_tz::Europe::Berlin;
    own.monthly_limit_override = Some(Credits::whole(5));
    own.overdraft_limit_override = Some(Credits::ZERO);
    let credits = &mut changes.credits.inserted[0];
    (credits.low_credit_alerts, credits.reported_limit) = (0b1010_1010, Some(Credits::whole(7)));
    (credits.held_credits, credits.rate_window_used) = (Credits::whole(1), Credits::whole(2));
    credits.uncollected_credits = Credits::whole(3);
    let subscription = &mut changes.subscriptions.inserted[0];
    subscription.status = SubscriptionStatus::Canceled;
    subscription.canceled_at = Some(at(9));
    subscription.pending_change =
        Some(PendingChange::Change { plan_code: PlanCode::new("basic").unwrap(), plan_version: 7 });
    let terms = OverrideTerms { enabled: Some(false), unit_price: Some(Credits::ZERO), limit: Some(Credits::whole(3)) };
    changes.feature_overrides = vec![
        FeatureOverride { workspace_id: workspace(0), feature_code: feature("render"), terms },
        FeatureOverride {
            workspace_id: workspace(0),
            feature_code: feature("upscale"),
            terms: OverrideTerms::default(),
        },
    ];
    changes.counters.inserted[0].reported_limit = Some(Credits::whole(4));
    changes.periods[0].usage_seq = 3;
    fill_grant(&mut changes.grants.inserted[0]);
    for command in &mut changes.commands {
        command.fingerprint = std::array::from_fn(|n| u8::try_from(255 - n).unwrap());
        command.body = String::from("{\"text\": \"a\\\"b\", \"empty\": null}");
        command.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
        command.metadata = Some(metadata());
    }
    let log = &mut changes.usage_logs[0];
    (log.user_id, log.metadata) = (Some(UserId::new("Zoë").unwrap()), Some(metadata()));
    for event in &mut changes.events {
        event.traceparent = Some("00-1".to_owned());
        event.data = String::from("{\"a\": [1, null, \"{}\"]}");
    }
    assert_survives(db, changes).await;
    let state = db.store().workspace(workspace(0)).await.unwrap().unwrap();
    assert_eq!(state.pending_plan.as_deref(), Some(&plan("basic", 7)));
}

fn fill_grant(grant: &mut Grant) {
    grant.source = GrantSource::Purchase;
    (grant.remaining, grant.held) = (grant.remaining.minus(Credits::whole(1)).unwrap(), Credits::whole(1));
    (grant.priority, grant.expires_at) = (100, Some(at(100)));
    grant.feature_scope = Some(feature("render"));
    grant.payment_reference = Some(PaymentReference::new("pay,1 \"x\"").unwrap());
    grant.reason = Some(Label::new("Zoë’s credits").unwrap());
    grant.cost_basis = Some(CostBasis { amount_minor: 4_999, currency: Currency::new("EUR").unwrap() });
}

pub async fn a_row_of_every_kind_with_every_optional_field_unset_is_read_as_it_was_written(db: &impl TestDatabase) {
    let mut changes = every_row(workspace(0));
    changes.usage_logs[0].quantity = None;
    changes.subscriptions.inserted[0].pending_change = Some(PendingChange::Cancel { reason: None });
    assert_survives(db, changes).await;
}

pub async fn amounts_at_both_bounds_survive(db: &impl TestDatabase) {
    let lowest = Credits::from_micro(-Credits::MAX.micro()).unwrap();
    let id = workspace(0);
    let mut changes = every_row(id);
    let credits = &mut changes.credits.inserted[0];
    (credits.current_credits, credits.debt_credits, credits.overdraft_limit) = (lowest, Credits::MAX, Credits::MAX);
    (credits.used_this_month, credits.held_credits, credits.rate_window_used) =
        (Credits::MAX, Credits::MAX, Credits::MAX);
    credits.version = i64::MAX;
    changes.counters.inserted[0].used_credits = Credits::MAX;
    let grant = &mut changes.grants.inserted[0];
    (grant.amount, grant.remaining) = (Credits::MAX, Credits::from_micro(1).unwrap());
    grant.cost_basis = Some(CostBasis { amount_minor: i64::MAX, currency: Currency::new("JPY").unwrap() });
    changes.ledger_entries[0].amount = Credits::MAX;
    (changes.ledger_entries[0].balance_after, changes.ledger_entries[1].balance_after) = (Credits::MAX, lowest);
    changes.ledger_entries[1].amount = Credits::from_micro(1).unwrap();
    let log = &mut changes.usage_logs[0];
    (log.credits, log.quantity) = (Credits::ZERO, Some(Quantity::from_micro(Credits::MAX.micro()).unwrap()));
    assert_survives(db, changes).await;
}

pub async fn microseconds_survive_in_the_first_and_the_last_year(db: &impl TestDatabase) {
    let [first, last] = [i64::MIN, i64::MAX].map(Timestamp::from_micros);
    let odd = Timestamp::from_micros(-1);
    let mut changes = every_row(workspace(0));
    changes.workspaces[0].created_at = first;
    let credits = &mut changes.credits.inserted[0];
    (credits.rate_window_start, credits.updated_at) = (first, last);
    let subscription = &mut changes.subscriptions.inserted[0];
    (subscription.billing_anchor, subscription.updated_at) = (odd, odd);
    subscription.period = Period { start: first, end: last };
    changes.periods[0].period = subscription.period;
    let grant = &mut changes.grants.inserted[0];
    (grant.effective_at, grant.expires_at) = (first, Some(last));
    (changes.commands[0].received_at, changes.commands[0].recorded_at) = (odd, last);
    (changes.ledger_entries[0].recorded_at, changes.ledger_entries[0].effective_at) = (first, odd);
    (changes.usage_logs[0].occurred_at, changes.usage_logs[0].recorded_at) = (odd, last);
    changes.events[0].recorded_at = first;
    assert_survives(db, changes).await;
}

pub async fn an_updated_row_is_read_with_its_new_values(db: &impl TestDatabase) {
    let id = workspace(0);
    let mut world = world_of(db.store(), 2).await;
    let before = db.store().workspace(id).await.unwrap().unwrap();
    let untouched = db.store().workspace(workspace(1)).await.unwrap();
    world.command(id, "ProcessSubscriptionChange", "accepted", at(5));
    let mut changes = world.take();
    let mut after = before.clone();
    after.credits.low_credit_alerts = 3;
    after.credits.event_seq += 1;
    after.subscription.version = 2;
    after.subscription.pending_change = Some(PendingChange::Cancel { reason: Some(Label::new("too dear").unwrap()) });
    after.subscription.period.end = at(77);
    let counter = &mut after.counters[0];
    (counter.window_start, counter.used_credits) = (at(3), Credits::whole(9));
    counter.reported_limit = Some(Credits::ZERO);
    (after.grants[0].remaining, after.grants[0].held) = (Credits::whole(2), Credits::whole(1));
    after.grants[0].expires_at = Some(at(88));
    changes.credits.updated = vec![after.credits.clone()];
    changes.subscriptions.updated = vec![after.subscription.clone()];
    changes.counters.updated.clone_from(&after.counters);
    changes.grants.updated.clone_from(&after.grants);
    commit(db.store(), changes).await.unwrap();
    assert_eq!(db.store().workspace(id).await.unwrap().unwrap(), after);
    assert_eq!(db.store().workspace(workspace(1)).await.unwrap(), untouched);
}

pub async fn open_grants_are_loaded_in_burn_order_and_closed_ones_are_not(db: &impl TestDatabase) {
    let id = workspace(0);
    let mut world = world_of(db.store(), 1).await;
    let grant = |n: u128| new_grant(id, GrantId(Uuid::from_u128(n)), Credits::whole(1));
    let closed = Grant { remaining: Credits::ZERO, priority: 0, ..grant(1) };
    let held = Grant { remaining: Credits::ZERO, held: Credits::whole(1), priority: 3, ..grant(2) };
    let scoped = Grant { feature_scope: Some(feature("render")), priority: 90, ..grant(3) };
    let soon = Grant { expires_at: Some(at(50)), ..grant(4) };
    let promotion = Grant { expires_at: Some(at(50)), source: GrantSource::Promotion, ..grant(5) };
    world.command(id, "PurchaseCredits", "accepted", at(1));
    let mut changes = world.take();
    changes.grants.inserted = vec![soon.clone(), closed, promotion.clone(), held.clone(), scoped.clone()];
    commit(db.store(), changes).await.unwrap();
    let loaded = load(db.store(), &keys_of([id])).await.workspaces.remove(&id).unwrap().grants;
    assert_eq!(loaded[..4], [scoped, held, promotion, soon]);
    assert_eq!(loaded.len(), 5);
}

pub async fn unknown_keys_load_nothing(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    let known = world.command(workspace(0), "DeductCredits", "accepted", at(1));
    let mut keys = keys_of([workspace(1), workspace(2)]);
    let key = IdempotencyKey::new(&known.to_string()).unwrap();
    keys.commands = [(workspace(0), key.clone()), (workspace(1), key)].into();
    keys.payments = [(workspace(0), PaymentReference::new("none").unwrap())].into();
    keys.plans = [PlanCode::new("none").unwrap()].into();
    let snapshot = load(db.store(), &keys).await;
    assert!(snapshot.workspaces.is_empty() && snapshot.commands.is_empty());
    assert!(snapshot.payments.is_empty() && snapshot.plans.is_empty());
    assert_eq!(snapshot.heads.len(), 1);
    let empty = Partition::new(9).unwrap();
    let nothing = load(db.store(), &keys_of([workspace_in(empty, 0)])).await;
    assert_eq!(nothing.heads[&empty], PartitionHead::empty(empty));
}

pub async fn used_payment_references_and_newest_plans_are_loaded_when_asked_for(db: &impl TestDatabase) {
    let id = workspace(0);
    let mut world = world_of(db.store(), 2).await;
    let [used, free, bonus] = ["used", "free", "bonus"].map(|text| PaymentReference::new(text).unwrap());
    let paid = |n: u128, reference: &PaymentReference| Grant {
        source: GrantSource::Purchase,
        payment_reference: Some(reference.clone()),
        remaining: Credits::ZERO,
        ..new_grant(id, GrantId(Uuid::from_u128(n)), Credits::whole(1))
    };
    let command_id = world.command(id, "PurchaseCredits", "accepted", at(1));
    world.event(id, command_id, EventType::CreditsPurchased, at(1));
    let mut changes = world.take();
    changes.grants.inserted = vec![paid(1, &used), Grant { source: GrantSource::Promotion, ..paid(2, &bonus) }];
    commit(db.store(), changes).await.unwrap();
    db.store().put_plans(&[plan("pro", 3), plan("pro", 2)], at(0)).await.unwrap();

    let mut keys = keys_of([id]);
    keys.payments = [used.clone(), free, bonus].into_iter().map(|reference| (id, reference)).collect();
    keys.payments.insert((workspace(1), used.clone()));
    keys.plans = ["pro", "none"].map(|code| PlanCode::new(code).unwrap()).into();
    keys.features = ["render", "rendr"].map(feature).into();
    for _ in 0..2 {
        assert_eq!(load(db.store(), &keys).await.features, [feature("render")].into(), "also when it is remembered");
    }
    let snapshot = load(db.store(), &keys).await;
    assert_eq!(snapshot.payments, [((id, used), GrantId(Uuid::from_u128(1)))].into());
    assert_eq!(snapshot.plans.len(), 1);
    assert_eq!(*snapshot.plans["pro"].newest, plan("pro", 3));
    assert_eq!(snapshot.workspaces[&id].plan.version, 1);
}

pub async fn the_sources_of_grants_are_loaded_when_asked_for(db: &impl TestDatabase) {
    let id = workspace(0);
    let mut world = world_of(db.store(), 2).await;
    world.command(id, "GrantCredits", "accepted", at(1));
    let grant = |n: u128| new_grant(id, GrantId(Uuid::from_u128(n)), Credits::whole(1));
    let closed = Grant { source: GrantSource::Promotion, remaining: Credits::ZERO, ..grant(1) };
    let mut changes = world.take();
    changes.grants.inserted = vec![closed, grant(2)];
    commit(db.store(), changes).await.unwrap();
    let mut keys = keys_of([id, workspace(1)]);
    let named = [(id, 1), (id, 2), (id, 3), (workspace(1), 1)];
    keys.grants = named.map(|(id, n)| (id, GrantId(Uuid::from_u128(n)))).into();
    let key = |n| (id, GrantId(Uuid::from_u128(n)));
    let expected = [(key(1), GrantSource::Promotion), (key(2), GrantSource::Allowance)];
    let closed_grants = load(db.store(), &keys).await.closed_grants.into_iter();
    let sources: HashMap<_, _> = closed_grants.map(|(key, grant)| (key, grant.source)).collect();
    assert_eq!(sources, expected.into());
}
