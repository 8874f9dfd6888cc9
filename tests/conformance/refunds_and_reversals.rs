//! Refunds and reversals: written, summed up for a batch, and audited.

use uuid::Uuid;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::grant::{CostBasis, Currency, Grant, GrantSource};
use visionscope_billing::domain::ids::GrantId;
use visionscope_billing::domain::ledger::Account;
use visionscope_billing::domain::refund::{RefundableUsage, UsageRefund, UsageShare};
use visionscope_billing::domain::reversal::{PurchaseReversal, ReversalReason, ReversiblePurchase};
use visionscope_billing::domain::text::Label;
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::domain::usage::UsageLog;
use visionscope_billing::store::queries::{HistoryQuery, ListedUsage};

use crate::audits::{audit, found_after_more};
use crate::database::TestDatabase;
use crate::fixtures::{World, at, keys_of, load, new_grant, workspace, world_of};

/// A deduction and a purchase with its bonus, both pending.
fn used_and_bought(world: &mut World, now: Timestamp) -> (UsageLog, Grant) {
    let id = workspace(0);
    world.deduct(id, Credits::whole(5), now);
    let log = world.pending().usage_logs[0].clone();
    let bonus_grant_id = GrantId(Uuid::from_u128(51));
    let grant = |n: u128, source| Grant { source, ..new_grant(id, GrantId(Uuid::from_u128(n)), Credits::whole(8)) };
    let purchase = Grant {
        cost_basis: Some(CostBasis { amount_minor: 100, currency: Currency::new("EUR").unwrap() }),
        bonus_grant_id: Some(bonus_grant_id),
        expires_at: Some(at(3)),
        ..grant(50, GrantSource::Purchase)
    };
    world.pending().grants.inserted.extend([purchase.clone(), grant(51, GrantSource::Promotion)]);
    (log, purchase)
}

pub async fn refunds_and_reversals_are_summed_up_when_asked_for(db: &impl TestDatabase) {
    let [id, other] = [0, 1].map(workspace);
    let mut world = world_of(db.store(), 2).await;
    let (log, purchase) = used_and_bought(&mut world, at(1));
    world.store(db.store()).await;
    let one = world.refund(&log, Credits::whole(1), at(4));
    let full = UsageRefund { is_counted: false, reason: Some(Label::new("Zoë").unwrap()), ..one };
    world.pending().refunds[0] = full;
    world.refund(&log, Credits::from_micro(1).unwrap(), at(5));
    let part = world.reverse(&purchase, Credits::whole(2), at(6));
    let (owed, written_off) = (Credits::whole(1), Credits::from_micro(1).unwrap());
    let reason = ReversalReason::Chargeback;
    world.pending().reversals[0] =
        PurchaseReversal { bonus_credits: owed, bonus_owed: owed, owed, written_off, reason, ..part.clone() };
    world.reverse(&purchase, Credits::whole(3), at(7));
    world.pending().grants.updated.truncate(1);
    let command_id = part.command_id;
    world.entry(id, command_id, Account::Grant(purchase.grant_id), Account::Expired, Credits::whole(1), at(7));
    world.store(db.store()).await;

    let mut keys = keys_of([id, other]);
    keys.usages = [id, other].map(|workspace_id| (workspace_id, log.id())).into();
    let grant_ids = [50, 51, 52].map(|n| GrantId(Uuid::from_u128(n)));
    keys.purchases = grant_ids.iter().flat_map(|grant_id| [(id, *grant_id), (other, *grant_id)]).collect();
    let snapshot = load(db.store(), &keys).await;
    let allowance = snapshot.workspaces[&id].grants.iter().find(|grant| grant.source == GrantSource::Allowance);
    let share = UsageShare { grant_id: allowance.map(|grant| grant.grant_id), credits: log.credits };
    let refunded = Credits::from_micro(1_000_001).unwrap();
    let usage = RefundableUsage { log: log.clone(), shares: vec![share], refunded, is_of_current_period: true };
    assert_eq!(snapshot.usages, [((id, log.id()), usage)].into());
    let expected = ReversiblePurchase { reversed: Credits::whole(5), amount_minor: 14, expired: Credits::whole(1) };
    assert_eq!(snapshot.purchases, [((id, purchase.grant_id), expected)].into());
    for grant_id in grant_ids[..2].iter().copied().chain(share.grant_id) {
        assert!(snapshot.closed_grants.contains_key(&(id, grant_id)), "{grant_id}");
    }
    assert_eq!(snapshot.closed_grants.len(), 3);
    let listed = db.store().usage_log(id, log.id()).await.unwrap();
    assert_eq!(listed, Some(ListedUsage { log, refunded }));
    let listed = db.store().purchases(&HistoryQuery::newest(id, 10)).await.unwrap().rows;
    let reversed: Vec<_> = listed.iter().map(|bought| (bought.reversed, bought.reversed_minor)).collect();
    assert_eq!(reversed, [(Credits::whole(5), 14)]);
    let reasons = "select cast(count(*) as bigint) from usage_refunds where reason = 'Zoë' and not is_counted";
    assert_eq!(db.integers(reasons).await, [[1]]);
}

pub async fn a_refund_or_a_reversal_that_does_not_match_is_found(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    let id = workspace(0);
    world.deduct(id, Credits::whole(5), at(1));
    let log = world.pending().usage_logs[0].clone();
    let command_id = world.command(id, "PurchaseCredits", "accepted", at(2));
    let source = GrantSource::Purchase;
    let cost_basis = Some(CostBasis { amount_minor: 10, currency: Currency::new("EUR").unwrap() });
    let purchase = Grant { source, cost_basis, ..new_grant(id, GrantId(Uuid::from_u128(50)), Credits::whole(8)) };
    world.entry(id, command_id, Account::Issued(source), Account::Grant(purchase.grant_id), Credits::whole(8), at(2));
    world.pending().grants.inserted.push(purchase.clone());
    world.store(db.store()).await;
    world.refund(&log, Credits::whole(2), at(3));
    world.reverse(&purchase, Credits::whole(3), at(4));
    world.store(db.store()).await;
    assert_eq!(audit(db).await, []);
    let of_refund = ["used-is-sum-of-usage-logs", "counter-is-sum-of-usage-logs", "refund-has-entries-and-event"];
    let over = ["usage-is-not-over-refunded", "refund-has-entries-and-event"];
    let uncounted = &of_refund[..2];
    let of_reversal = ["reversal-has-entries-and-event"];
    let over_reversed = ["purchase-is-not-over-reversed", "reversal-has-entries-and-event"];
    for (fault, repair, found) in [
        (
            "update usage_refunds set credits = credits + 1",
            "update usage_refunds set credits = credits - 1",
            &of_refund[..],
        ),
        (
            "update usage_refunds set credits = credits * 3, is_counted = (1 = 0)",
            "update usage_refunds set credits = credits / 3, is_counted = (1 = 1)",
            &[uncounted, &over].concat(),
        ),
        (
            "update event_outbox set event_type = 'CreditReset' where event_type = 'CreditsRefunded'",
            "update event_outbox set event_type = 'CreditsRefunded' where event_type = 'CreditReset'",
            &of_refund[2..],
        ),
        (
            "update purchase_reversals set owed = owed + 1",
            "update purchase_reversals set owed = owed - 1",
            &of_reversal,
        ),
        (
            "update purchase_reversals set credits = credits * 3",
            "update purchase_reversals set credits = credits / 3",
            &over_reversed,
        ),
        (
            "update purchase_reversals set amount_minor = 11",
            "update purchase_reversals set amount_minor = 7",
            &over_reversed[..1],
        ),
    ] {
        assert_eq!(found_after_more(db, fault).await, found, "{fault}");
        db.tamper(repair).await;
        assert_eq!(audit(db).await, [], "{repair}");
    }
}
