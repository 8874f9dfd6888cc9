//! `visionscope verify` and the figures: it finds each that is wrong, and none that is only on its way.

use std::time::Duration;

use crate::databases::Database;
use crate::world::{Random, World};

const LEASE: Duration = Duration::from_secs(10);
const USAGE: &str = "usage-days-are-sum-of-usage-logs";
const PURCHASES: &str = "purchase-revenue-is-what-was-paid-and-used";
const REVENUE: &str = "revenue-days-are-sum-of-purchases";

impl World {
    /// The names of the invariants that do not hold.
    async fn broken(&self) -> Vec<&'static str> {
        let findings = self.database.store.audit(5).await.unwrap();
        let mut names: Vec<_> = findings.iter().map(|finding| finding.invariant).collect();
        names.dedup();
        names
    }
}

/// Changes of one row or of several, and the invariants that they break.
fn faults() -> Vec<(&'static str, &'static str, &'static str, Vec<&'static str>)> {
    let one_day = "credits > 0 and (workspace_id, day) in (
        select workspace_id, day from usage_days where credits > 0 order by workspace_id, day limit 1)";
    let one_refund = "refunded > 0 and (workspace_id, day) in (
        select workspace_id, day from usage_days where refunded > 0 order by workspace_id, day limit 1)";
    let one_purchase = "grant_id = (select grant_id from purchase_reversals order by grant_id limit 1)";
    let used_in_part = "grant_id = (
        select grant_id from purchase_revenue where used > 0 and used < credits and amount_minor > 9
        order by grant_id limit 1)";
    let one_revenue_day = "currency = 'EUR' and (partition_id, day) in (
        select partition_id, day from revenue_days where currency = 'EUR' and paid_minor > 0
        order by partition_id, day limit 1)";
    vec![
        ("usage_days", "credits = credits + 1", one_day, vec![USAGE]),
        ("usage_days", "deductions = deductions + 1", one_day, vec![USAGE]),
        ("usage_days", "refunded = refunded + 1", one_refund, vec![USAGE]),
        ("purchase_revenue", "amount_minor = amount_minor + 1", one_purchase, vec![PURCHASES, REVENUE]),
        ("purchase_revenue", "credits = credits + 1", one_purchase, vec![PURCHASES]),
        ("purchase_revenue", "used = used + 1", one_purchase, vec![PURCHASES]),
        ("purchase_revenue", "recognised_minor = recognised_minor + 3", used_in_part, vec![PURCHASES, REVENUE]),
        ("revenue_days", "paid_minor = paid_minor + 1", one_revenue_day, vec![REVENUE]),
        ("revenue_days", "returned_minor = returned_minor + 1", one_revenue_day, vec![REVENUE]),
        ("revenue_days", "recognised_minor = recognised_minor + 1", one_revenue_day, vec![REVENUE]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_figure_that_was_changed_by_hand_is_found() {
    for kind in Database::ALL {
        let world = World::on(kind, 6).await;
        let runner = world.consume(LEASE);
        world.random_commands(&mut Random(21), 300).await;
        world.wait_until_taken(1).await;
        runner.stop().await;
        assert_eq!(world.broken().await, [""; 0]);
        for (table, change, of, expected) in faults() {
            world.execute(&[&format!("create table kept as select * from {table}")]).await;
            world.execute(&[&format!("update {table} set {change} where {of}")]).await;
            assert_eq!(world.broken().await, expected, "{table}: {change}");
            world
                .execute(&[
                    &format!("delete from {table}"),
                    &format!("insert into {table} select * from kept"),
                    "drop table kept",
                ])
                .await;
            assert_eq!(world.broken().await, [""; 0], "{table}: {change}");
        }
        world.execute(&["delete from usage_days", "delete from purchase_revenue", "delete from revenue_days"]).await;
        assert_eq!(world.broken().await, [USAGE, PURCHASES], "rows are missing");
        world.execute(&["update consumer_cursors set seq = 0 where consumer = 'analytics'"]).await;
        assert_eq!(world.broken().await, [""; 0], "no event is taken");
        world.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_that_are_on_their_way_are_not_found() {
    // Events that only one of the builds has taken.
    let between = "select cast(count(*) as bigint) from consumer_cursors one
        join consumer_cursors other on other.consumer = one.consumer and other.partition_id = one.partition_id
            and other.seq > one.seq";
    for kind in Database::ALL {
        let world = World::on(kind, 6).await;
        let mut random = Random(22);
        world.random_commands(&mut random, 200).await;
        let runner = world.consume(LEASE);
        world.wait_until_taken(1).await;
        world.begin_second_build().await;
        let mut seen = 0;
        let audits = async {
            loop {
                seen += world.integers(between).await[0][0];
                assert_eq!(world.broken().await, [""; 0]);
            }
        };
        tokio::select! {
            () = world.random_commands(&mut random, 300) => {}
            () = audits => {}
        }
        assert!(seen > 0, "the builds were never apart");
        runner.stop().await;
        world.close().await;
    }
}
