//! The audit: a correct database has no findings, and every fault that a test introduces is found.

use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::ids::PARTITIONS;
use visionscope_billing::store::queries::AuditFinding;

use crate::database::TestDatabase;
use crate::fixtures::{World, at, workspace, world_of};
use crate::outbox::record;

const MANY: u32 = 100;

async fn sound(db: &impl TestDatabase) -> World {
    let mut world = world_of(db.store(), 2).await;
    for n in 1..4 {
        world.deduct(workspace(0), Credits::whole(n), at(n)).refuse(workspace(1), at(n));
    }
    world.store(db.store()).await;
    let leases = db.store().lease("one", std::time::Duration::from_mins(1)).await.unwrap();
    assert_eq!(leases.len(), usize::from(PARTITIONS));
    record(db, &leases[3], 2).await;
    record(db, &leases[3], 3).await;
    world
}

pub async fn audit(db: &impl TestDatabase) -> Vec<AuditFinding> {
    db.store().audit(MANY).await.unwrap()
}

async fn found_after(db: &impl TestDatabase, fault: &str) -> Vec<&'static str> {
    sound(db).await;
    found_after_more(db, fault).await
}

pub async fn found_after_more(db: &impl TestDatabase, fault: &str) -> Vec<&'static str> {
    db.tamper(fault).await;
    let findings = audit(db).await;
    assert!(findings.iter().all(|finding| !finding.detail.is_empty()));
    let mut names: Vec<_> = findings.iter().map(|finding| finding.invariant).collect();
    names.dedup();
    names
}

pub async fn a_correct_database_has_no_findings(db: &impl TestDatabase) {
    assert_eq!(audit(db).await, []);
    sound(db).await;
    assert_eq!(audit(db).await, []);
}

pub async fn a_changed_balance_is_found(db: &impl TestDatabase) {
    sound(db).await;
    db.tamper("update workspace_credits set current_credits = current_credits + 1 where usage_seq = 3").await;
    let findings = audit(db).await;
    let names: Vec<_> = findings.iter().map(|finding| finding.invariant).collect();
    assert_eq!(names, ["balance-is-sum-of-entries", "balance-is-sum-of-grants"]);
    assert!(findings.iter().all(|finding| finding.workspace_id == Some(workspace(0))));
}

pub async fn a_missing_usage_log_is_found(db: &impl TestDatabase) {
    let found = found_after(db, "delete from usage_logs where seq = 2").await;
    assert_eq!(
        found,
        [
            "used-is-sum-of-usage-logs",
            "counter-is-sum-of-usage-logs",
            "deduction-has-one-usage-log",
            "usage-seq-has-no-gap"
        ]
    );
}

pub async fn a_gap_in_the_ledger_is_found(db: &impl TestDatabase) {
    let found = found_after(db, "delete from ledger_entries where seq = 3").await;
    for expected in [
        "balance-is-sum-of-entries",
        "balance-after-chains",
        "grant-is-sum-of-entries",
        "usage-log-is-sum-of-entries",
        "ledger-seq-has-no-gap",
    ] {
        assert!(found.contains(&expected), "{expected} is not among {found:?}");
    }
}

pub async fn a_missing_event_is_found(db: &impl TestDatabase) {
    let fault = "delete from event_outbox where event_type = 'CreditConsumed' and workspace_seq = 2";
    let found = found_after(db, fault).await;
    assert_eq!(found, ["deduction-has-event", "workspace-seq-has-no-gap", "partition-seq-has-no-gap"]);
}

pub async fn a_changed_grant_is_found(db: &impl TestDatabase) {
    let fault = "update credit_grants set remaining = remaining - 2, held = held + 1";
    let found = found_after(db, fault).await;
    assert_eq!(found, ["balance-is-sum-of-grants", "grant-held-is-sum-of-open-holds", "grant-is-sum-of-entries"]);
}

pub async fn a_grant_or_a_void_without_its_entry_or_event_is_found(db: &impl TestDatabase) {
    let mut world = sound(db).await;
    let grant = world.grant(workspace(0), Credits::whole(9), at(5));
    world.store(db.store()).await;
    world.void(&grant, Credits::whole(4), at(6)).store(db.store()).await;
    assert_eq!(audit(db).await, []);
    for (fault, repair) in [
        (
            "update commands set command_type = 'VoidGrant' where command_type = 'GrantCredits'",
            "update commands set command_type = 'GrantCredits' where recorded_at =
                (select min(recorded_at) from commands where command_type = 'VoidGrant')",
        ),
        (
            "update ledger_entries set debit_account = 'issued:purchase' where debit_account = 'issued:promotion'",
            "update ledger_entries set debit_account = 'issued:promotion' where debit_account = 'issued:purchase'",
        ),
        (
            "update event_outbox set event_type = 'LowCreditWarning' where event_type = 'GrantVoided'",
            "update event_outbox set event_type = 'GrantVoided' where event_type = 'LowCreditWarning'",
        ),
    ] {
        assert_eq!(found_after_more(db, fault).await, ["granting-has-entry-and-event"], "{fault}");
        db.tamper(repair).await;
        assert_eq!(audit(db).await, [], "{repair}");
    }
}

pub async fn a_refused_command_with_an_entry_is_found(db: &impl TestDatabase) {
    let fault = "update commands set outcome = 'insufficient-credits' where outcome = 'accepted' and command_type = 'DeductCredits'";
    let found = found_after(db, fault).await;
    assert_eq!(found, ["usage-log-has-deduction", "refusal-has-no-entry", "refusal-has-event"]);
}

pub async fn a_refusal_without_its_event_is_found(db: &impl TestDatabase) {
    let found = found_after(
        db,
        "update event_outbox set event_type = 'UsageLimitExceeded' where event_type = 'CreditLimitExceeded'",
    )
    .await;
    assert_eq!(found, ["refusal-has-event"]);
}

pub async fn a_second_event_of_one_deduction_is_found(db: &impl TestDatabase) {
    let fault = "update event_outbox set causation_id = (
            select o.causation_id from event_outbox o where o.event_type = 'CreditConsumed' and o.workspace_seq = 2
        ) where event_type = 'CreditConsumed' and workspace_seq = 3";
    let found = found_after(db, fault).await;
    assert_eq!(found, ["deduction-has-event", "row-has-command"]);
}

pub async fn an_entry_that_names_a_foreign_grant_is_found(db: &impl TestDatabase) {
    let fault = "update ledger_entries set grant_id = (
            select g.grant_id from credit_grants g where g.workspace_id <> ledger_entries.workspace_id limit 1
        ) where seq = 2";
    let found = found_after(db, fault).await;
    assert!(found.contains(&"entry-names-grant-of-its-workspace"), "{found:?}");
}

pub async fn a_command_of_no_workspace_is_found(db: &impl TestDatabase) {
    let found = found_after(db, "update commands set workspace_id = command_id where seq = 2").await;
    assert!(found.contains(&"command-is-of-a-workspace") && found.contains(&"command-seq-has-no-gap"), "{found:?}");
}

pub async fn a_changed_counter_is_found(db: &impl TestDatabase) {
    let found = found_after(db, "update usage_counters set used_credits = used_credits + 1").await;
    assert_eq!(found, ["counter-is-sum-of-usage-logs"]);
}

pub async fn usage_without_a_counter_is_found(db: &impl TestDatabase) {
    let found = found_after(db, "delete from usage_counters where used_credits > 0").await;
    assert_eq!(found, ["usage-has-counter"]);
}

pub async fn a_doubled_number_is_found(db: &impl TestDatabase) {
    let found = found_after(db, "update usage_logs set seq = 3 where seq = 2").await;
    assert!(found.contains(&"usage-seq-has-no-gap"), "{found:?}");
}

pub async fn a_number_given_twice_is_found_even_without_a_gap(db: &impl TestDatabase) {
    sound(db).await;
    db.tamper("update commands set seq = 3 where seq = 4").await;
    let found = found_after_more(db, "update workspace_credits set version = 3").await;
    assert_eq!(found, ["command-seq-has-no-gap"]);
}

pub async fn an_event_of_no_command_is_found(db: &impl TestDatabase) {
    let fault = "update event_outbox set causation_id = event_id where event_type = 'WorkspaceProvisioned'";
    assert_eq!(found_after(db, fault).await, ["row-has-command"]);
}

pub async fn history_that_is_not_in_order_is_found(db: &impl TestDatabase) {
    sound(db).await;
    for table in ["usage_logs", "ledger_entries"] {
        let recorded_at = |of: &str| {
            let from = "select c.recorded_at from commands c where c.workspace_id = was.workspace_id";
            format!("update {table} as was set recorded_at = ({from} and {of}) where seq = 3")
        };
        let found = found_after_more(db, &recorded_at("c.seq = 1")).await;
        assert_eq!(found, ["row-has-command", "history-is-in-order"], "{table}");
        db.tamper(&recorded_at("c.command_id = was.command_id")).await;
        assert_eq!(audit(db).await, []);
    }
}

pub async fn rows_that_were_recorded_at_another_instant_than_their_command_are_found(db: &impl TestDatabase) {
    let later = "recorded_at = (select max(period_end) from subscriptions)";
    let fault = format!("update commands set {later} where command_type = 'DeductCredits' and seq = 4");
    assert_eq!(found_after(db, &fault).await, ["row-has-command"]);
}

/// The streams would have them in the other order.
pub async fn events_out_of_order_are_found(db: &impl TestDatabase) {
    sound(db).await;
    let seq =
        |n: i64| format!("select seq from event_outbox where event_type = 'CreditConsumed' and workspace_seq = {n}");
    let rows = "event_type = 'CreditConsumed' and workspace_seq";
    db.tamper(&format!("create table kept as {}", seq(2))).await;
    db.tamper(&format!("update event_outbox set seq = 1000 where {rows} = 2")).await;
    db.tamper(&format!("create table kept_too as {}", seq(3))).await;
    db.tamper(&format!("update event_outbox set seq = (select seq from kept) where {rows} = 3")).await;
    let swapped = format!("update event_outbox set seq = (select seq from kept_too) where {rows} = 2");
    assert_eq!(found_after_more(db, &swapped).await, ["history-is-in-order"]);
}

pub async fn findings_are_limited_per_invariant(db: &impl TestDatabase) {
    sound(db).await;
    db.tamper("update workspace_credits set current_credits = current_credits + 1").await;
    assert_eq!(audit(db).await.len(), 4);
    assert_eq!(db.store().audit(1).await.unwrap().len(), 2);
}
