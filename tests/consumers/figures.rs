//! What the figures must be, from the history that the commands have written and not from events.

use visionscope_billing::domain::ids::WorkspaceId;

use crate::databases::Database;
use crate::world::World;

/// The id as the database writes it in a statement.
pub fn id(database: Database, workspace_id: WorkspaceId) -> String {
    match database {
        Database::Sqlite => format!("x'{}'", workspace_id.0.simple()),
        Database::Postgres => format!("'{workspace_id}'"),
    }
}

/// The number of the day since 1970.
fn day(database: Database, column: &str) -> String {
    match database {
        Database::Sqlite => format!("({column} / 86400000000)"),
        Database::Postgres => format!("floor(extract(epoch from {column}) / 86400)"),
    }
}

impl World {
    /// Checks usage and revenue of a build against the history.
    pub async fn assert_figures(&self, version: i32) {
        self.assert_usage(version, &[]).await;
        let refused = format!(
            "select cast((select coalesce(sum(refused), 0) from usage_days where version = {version}) as bigint),
            cast((select count(*) from event_outbox where event_type = 'CreditLimitExceeded') as bigint)"
        );
        self.assert_pairs(&refused, "refused deductions").await;
        let hours = format!(
            "select cast(sum(h.credits) as bigint), cast((select sum(credits) from usage_days where version = {version}) as bigint)
            from usage_hours h where h.version = {version}"
        );
        self.assert_pairs(&hours, "credits by hour and by day").await;
        let workspaces = format!(
            "select cast(sum(new_workspaces) as bigint), cast((select count(*) from workspaces) as bigint)
            from revenue_days where version = {version}"
        );
        self.assert_pairs(&workspaces, "new workspaces").await;
        self.assert_revenue(version).await;
    }

    /// Checks usage by workspace, day and feature, but for these workspaces.
    pub async fn assert_usage(&self, version: i32, left_out: &[WorkspaceId]) {
        let of = |column| day(self.kind, column);
        let ids: Vec<_> = left_out.iter().map(|workspace_id| id(self.kind, *workspace_id)).collect();
        let rest = if ids.is_empty() { String::new() } else { format!("and workspace_id not in ({})", ids.join(", ")) };
        let (expected, actual) = (
            format!(
                "select workspace_id, on_day, feature_code, sum(credits), sum(refunded), sum(deductions) from (
                    select workspace_id, {} as on_day, feature_code, credits, 0 as refunded, 1 as deductions from usage_logs
                    union all
                    select r.workspace_id, {}, l.feature_code, 0, r.credits, 0 from usage_refunds r
                    join usage_logs l on l.workspace_id = r.workspace_id and l.recorded_at = r.usage_recorded_at
                        and l.seq = r.usage_seq
                ) u where deductions >= 0 {rest} group by workspace_id, on_day, feature_code",
                of("recorded_at"),
                of("r.recorded_at"),
            ),
            format!(
                "select workspace_id, {} as on_day, feature_code, credits, refunded, deductions from usage_days
                where version = {version} and credits + refunded + deductions > 0 {rest}",
                of("day"),
            ),
        );
        for (one, other) in [(&expected, &actual), (&actual, &expected)] {
            let count = format!(
                "select cast(count(*) as bigint) from (select * from ({one}) a except select * from ({other}) b) c"
            );
            assert_eq!(self.integers(&count).await, [[0]], "usage differs: {one}");
        }
    }

    async fn assert_pairs(&self, sql: &str, what: &str) {
        let row = self.integers(sql).await.remove(0);
        assert_eq!(row[0], row[1], "{what}");
    }

    /// Checks what was paid, returned and recognised.
    async fn assert_revenue(&self, version: i32) {
        let sums = format!(
            "select cast(coalesce(sum(purchases), 0) as bigint), cast(coalesce(sum(paid_minor), 0) as bigint),
                cast(coalesce(sum(returned_minor), 0) as bigint), cast(coalesce(sum(recognised_minor), 0) as bigint)
            from revenue_days where version = {version}"
        );
        // What was paid and bought of each purchase and not reversed, and what was used, has expired or repaid debt.
        let purchases = "select g.amount_minor, g.amount,
            cast(coalesce((select sum(r.amount_minor) from purchase_reversals r
                where r.workspace_id = g.workspace_id and r.grant_id = g.grant_id), 0) as bigint),
            cast(coalesce((select sum(r.credits) from purchase_reversals r
                where r.workspace_id = g.workspace_id and r.grant_id = g.grant_id), 0) as bigint),
            cast(coalesce((select sum(case when e.debit_account like 'consumed:%' then -e.amount else e.amount end)
                from ledger_entries e
                where e.workspace_id = g.workspace_id and e.grant_id = g.grant_id
                    and (e.debit_account like 'consumed:%' or e.credit_account like 'consumed:%'
                        or e.credit_account in ('expired', 'debt'))), 0) as bigint)
            from credit_grants g where g.source = 'purchase'";
        let mut expected = vec![0; 4];
        for row in self.integers(purchases).await {
            let [paid, bought, returned, reversed, used] = row[..] else { panic!("{row:?}") };
            let (amount, credits) = (i128::from(paid - returned), i128::from(bought - reversed));
            let earned = if credits == 0 { amount } else { amount * i128::from(used).clamp(0, credits) / credits };
            expected[0] += 1;
            expected[1] += paid;
            expected[2] += returned;
            expected[3] += i64::try_from(earned).unwrap();
        }
        assert_eq!(self.integers(&sums).await, [expected], "purchases, paid, returned and recognised");
    }
}
