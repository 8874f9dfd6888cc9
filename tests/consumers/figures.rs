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

/// The first refusal after each addition of credits: what the ledger has given to grants or taken off the debt, and what
/// only events tell, because it moves no credits.
const EXHAUSTED: &str = "
select workspace_id, min(workspace_seq) from (
    select r.workspace_id, r.workspace_seq, (
        select count(*) from (
            select l.workspace_id, l.recorded_at from ledger_entries l where l.credit_account in ('grant', 'debt')
            union all
            select e.workspace_id, e.recorded_at from event_outbox e
            where e.event_type = 'HoldReleased' or (e.event_type = 'SubscriptionChanged'
                and (e.data like '%\"change\":\"changed\"%' or e.data like '%\"change\":\"reactivated\"%'))
        ) a where a.workspace_id = r.workspace_id and a.recorded_at < r.recorded_at
    ) as additions
    from event_outbox r where r.event_type = 'CreditLimitExceeded'
) refusals group by workspace_id, additions";

/// The first event of a type in each statement. An event that opens a statement is of no such type, and behind the last
/// event of an open statement there may be some that change no statement.
fn first_of_period(event_type: &str, version: i32) -> String {
    format!(
        "select e.workspace_id, min(e.workspace_seq) from event_outbox e
        join statements s on s.version = {version} and s.workspace_id = e.workspace_id
            and e.workspace_seq >= s.first_seq and (s.closed_at is null or e.workspace_seq <= s.last_seq)
        where e.event_type = '{event_type}' group by e.workspace_id, s.period_start"
    )
}

fn every(event_type: &str) -> String {
    format!("select workspace_id, workspace_seq from event_outbox where event_type = '{event_type}'")
}

fn closed_statements(version: i32) -> String {
    format!("select workspace_id, last_seq from statements where version = {version} and closed_at is not null")
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
        self.assert_notifications(version).await;
    }

    /// Checks which events made a notification of each kind, and of which period.
    async fn assert_notifications(&self, version: i32) {
        for (kind, expected) in [
            ("credits_exhausted", EXHAUSTED.to_owned()),
            ("low_credit", first_of_period("LowCreditWarning", version)),
            ("limit_reached", first_of_period("UsageLimitExceeded", version)),
            ("credits_expiring", every("CreditsExpiring")),
            ("plan_changed", every("SubscriptionChanged")),
            ("statement_closed", closed_statements(version)),
        ] {
            let actual = format!(
                "select workspace_id, workspace_seq from notifications where version = {version} and kind = '{kind}'"
            );
            self.assert_same(&expected, &actual, kind).await;
        }
        let of_statements = format!(
            "select n.workspace_id, n.workspace_seq, n.period_start from notifications n
            where n.version = {version} and n.kind = 'statement_closed'"
        );
        let closed = format!(
            "select workspace_id, last_seq, period_start from statements
            where version = {version} and closed_at is not null"
        );
        self.assert_same(&closed, &of_statements, "the periods of closed statements").await;
        let of_events = format!(
            "select n.workspace_id, n.workspace_seq, n.event_id, n.created_at from notifications n
            where n.version = {version}"
        );
        let events = format!(
            "select e.workspace_id, e.workspace_seq, e.event_id, e.recorded_at from event_outbox e
            join notifications n on n.workspace_id = e.workspace_id and n.workspace_seq = e.workspace_seq
                and n.version = {version}"
        );
        self.assert_same(&events, &of_events, "the events of notifications").await;
        let ids = "select cast(count(distinct notification_id) as bigint), cast(count(*) as bigint) from notifications
            where version = ";
        self.assert_pairs(&format!("{ids}{version}"), "ids of notifications").await;
    }

    /// Checks that both queries find the same rows.
    async fn assert_same(&self, expected: &str, actual: &str, what: &str) {
        for (one, other, why) in [(expected, actual, "missing"), (actual, expected, "too many")] {
            let count = format!(
                "select cast(count(*) as bigint) from (select * from ({one}) a except select * from ({other}) b) c"
            );
            assert_eq!(self.integers(&count).await, [[0]], "{what}: {why}");
        }
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
        self.assert_same(&expected, &actual, "usage").await;
    }

    async fn assert_pairs(&self, sql: &str, what: &str) {
        let row = self.integers(sql).await.remove(0);
        assert_eq!(row[0], row[1], "{what}");
    }
}
