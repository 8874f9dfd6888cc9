//! The statements of the key figures of the whole server, which both databases share. They differ in nothing.
//!
//! Each sums up the rows of all partitions. What begins a step is first in the primary keys after the build, so a question
//! reads the hours or days that it is about. Only what is deferred reads all days before it.

use std::sync::LazyLock;

use super::statements::{Statement, list, statements};

pub(super) static KPI_STATEMENTS: LazyLock<KpiStatements> = LazyLock::new(KpiStatements::new);

statements! {
    /// The statements of the key figures.
    KpiStatements:
    server_as_of, usage, usage_by_plan, usage_by_feature, usage_by_plan_and_feature, workspaces, workspaces_by_plan,
    revenue, revenue_by_plan, deferred_revenue
}

/// Of a consumer ($1): a row for each partition.
const SERVER_AS_OF: &str = "
select c.version, k.partition_id, k.seq,
    (
        select o.recorded_at from event_outbox o where o.partition_id = k.partition_id and o.seq > k.seq
        order by o.seq limit 1
    ),
    exists (select 1 from parked_workspaces p where p.consumer = $1 and p.version = c.version)
        or exists (
            select 1 from dead_letters d
            where d.source = 'consumer' and d.name = $1 and d.version = c.version and d.state = 'discarded'
        )
from consumers c
join consumer_cursors k on k.consumer = c.consumer and k.version = c.version
where c.consumer = $1
order by k.partition_id";

/// Of a build ($1), on days from $2 to before $3. The row without a currency counts workspaces.
const DEFERRED_REVENUE: &str = "
select r.currency, cast(sum(r.paid_minor - r.returned_minor - r.recognised_minor) as bigint)
from revenue_days r
where r.version = $1 and r.day >= $2 and r.day < $3 and r.currency <> ''
group by r.currency";

impl KpiStatements {
    fn new() -> Self {
        Self {
            server_as_of: list("consumer_cursors_pkey", SERVER_AS_OF),
            usage: usage("u.hour, null, null", "u.hour"),
            usage_by_plan: usage("u.hour, u.plan_code, null", "u.hour, u.plan_code"),
            usage_by_feature: usage("u.hour, null, u.feature_code", "u.hour, u.feature_code"),
            usage_by_plan_and_feature: usage(
                "u.hour, u.plan_code, u.feature_code",
                "u.hour, u.plan_code, u.feature_code",
            ),
            workspaces: workspaces("r.day, null", "r.day"),
            workspaces_by_plan: workspaces("r.day, r.plan_code", "r.day, r.plan_code"),
            revenue: revenue("r.day, null, r.currency", "r.day, r.currency"),
            revenue_by_plan: revenue("r.day, r.plan_code, r.currency", "r.day, r.currency, r.plan_code"),
            deferred_revenue: list("revenue_days_pkey", DEFERRED_REVENUE),
        }
    }
}

/// Of a build ($1), in hours from $2 to before $3: at most $4 rows, in no order.
fn usage(columns: &str, group: &str) -> Statement {
    let sums = sums("u", &["credits", "deductions", "refused"]);
    let text = format!(
        "select {columns}, {sums} from usage_hours u
where u.version = $1 and u.hour >= $2 and u.hour < $3 group by {group} limit $4"
    );
    list("usage_hours_pkey", &text)
}

fn workspaces(columns: &str, group: &str) -> Statement {
    days(columns, &["active_workspaces", "new_workspaces", "canceled_workspaces"], "= ''", group)
}

fn revenue(columns: &str, group: &str) -> Statement {
    let figures = ["purchases", "credits_sold", "paid_minor", "returned_minor", "recognised_minor"];
    days(columns, &figures, "<> ''", group)
}

/// Of a build ($1), on days from $2 to before $3: at most $4 rows, in no order.
fn days(columns: &str, figures: &[&str], currency: &str, group: &str) -> Statement {
    let sums = sums("r", figures);
    let text = format!(
        "select {columns}, {sums} from revenue_days r
where r.version = $1 and r.day >= $2 and r.day < $3 and r.currency {currency} group by {group} limit $4"
    );
    list("revenue_days_pkey", &text)
}

/// The sums of these columns, and of how many rows. PostgreSQL's sum of bigint is a numeric.
fn sums(table: &str, columns: &[&str]) -> String {
    let sum = |column: &&str| format!("cast(sum({table}.{column}) as bigint), ");
    columns.iter().map(sum).collect::<String>() + "count(*)"
}
