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
    /// Checks all figures of a build against the history.
    pub async fn assert_figures(&self, version: i32) {
        self.assert_usage(version, &[]).await;
        let refused = format!(
            "select cast((select coalesce(sum(refused), 0) from usage_days where version = {version}) as bigint),
            cast((select count(*) from event_outbox where event_type = 'CreditLimitExceeded') as bigint)"
        );
        self.assert_pairs(&refused, "refused deductions").await;
        self.assert_kpis(version).await;
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
}
