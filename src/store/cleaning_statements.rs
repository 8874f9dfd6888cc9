//! The statements that delete rows that nobody needs any more, which both databases share.

use super::cleaning::Leftover;
use super::statements::{Statement, list, statements};
use super::tables::Table;
use crate::domain::consumers::{
    Consumer, Notification, NotifiedWorkspace, PurchaseRevenue, RevenueDay, Statement as PeriodStatement,
    StatementLine, UsageDay, UsageHour, WorkspaceActivity,
};
use crate::domain::dead_letter::{DeadLetter, ParkedWorkspace};
use crate::domain::jobs::{FinishedJob, Worker};

statements! {
    /// What deletes leftovers, as one database writes it.
    CleaningStatements:
    old_cursors, old_parked, old_letters, old_usage_days, old_usage_hours, old_revenue_days, old_activities, old_revenues,
    old_statement_lines, old_statements, old_notified_workspaces, old_notifications, past_usage_hours, resolved_letters,
    discarded_letters_of_jobs, past_notifications, attempts_of_finished_jobs, finished_jobs, gone_workers
}

/// Without its cursor, nobody can write rows of a build any more. So it goes first.
const OLD_CURSORS: &str = "
delete from consumer_cursors where (consumer, version, partition_id) in (
    select t.consumer, t.version, t.partition_id from consumer_cursors t
    join consumers c on c.consumer = t.consumer and c.version > t.version
    order by 1, 2, 3 limit $1
)
returning 1";

/// The consumer has a newer build in use.
const OF_OLD_BUILD: &str = "exists (select 1 from consumers c where c.consumer = t.consumer and c.version > t.version)";

/// `consumers` has few rows and is read whole.
const OLD_LETTERS: &str = "
delete from dead_letters where dead_letter_id in (
    select t.dead_letter_id from consumers c cross join dead_letters t
    where t.source = 'consumer' and t.name = c.consumer and t.version < c.version and {free}
    limit $1
)
returning 1";

/// No workspace waits behind the letter.
const FREE: &str = "not exists (select 1 from parked_workspaces p where p.dead_letter_id = t.dead_letter_id)";

/// The job need not be kept, and nobody can want to try it again.
const NOT_KEPT: &str = "t.keep_until < $2 and not exists (
        select 1 from dead_letters d where d.job_id = t.job_id and d.job_id is not null and d.state in ('open', 'replaying')
    )";

/// Attempts go before their jobs.
const ATTEMPTS_OF_FINISHED_JOBS: &str = "
delete from job_attempts where (job_id, attempt) in (
    select a.job_id, a.attempt from jobs_done t cross join job_attempts a
    where a.job_id = t.job_id and {not_kept} order by t.keep_until, t.job_id limit $1
)
returning 1";

impl CleaningStatements {
    pub(super) fn new() -> Self {
        Self {
            old_cursors: list("", OLD_CURSORS),
            old_parked: deletion::<ParkedWorkspace>("", OF_OLD_BUILD, "t.consumer, t.version, t.workspace_id"),
            old_letters: list("", &OLD_LETTERS.replace("{free}", FREE)),
            old_usage_days: of_old_builds::<UsageDay>(Consumer::Analytics, "usage_days_pkey"),
            old_usage_hours: of_old_builds::<UsageHour>(Consumer::Analytics, "usage_hours_pkey"),
            old_revenue_days: of_old_builds::<RevenueDay>(Consumer::Analytics, "revenue_days_pkey"),
            old_activities: of_old_builds::<WorkspaceActivity>(Consumer::Analytics, "analytics_workspaces_pkey"),
            old_revenues: of_old_builds::<PurchaseRevenue>(Consumer::Analytics, "purchase_revenue_pkey"),
            old_statement_lines: of_old_builds::<StatementLine>(Consumer::Billing, "statement_lines_pkey"),
            old_statements: of_old_builds::<PeriodStatement>(Consumer::Billing, "statements_pkey"),
            old_notified_workspaces: of_old_builds::<NotifiedWorkspace>(
                Consumer::Notifications,
                "notified_workspaces_pkey",
            ),
            old_notifications: of_old_builds::<Notification>(Consumer::Notifications, "notifications_pkey"),
            past_usage_hours: deletion::<UsageHour>(
                "usage_hours_pkey",
                &format!("t.version = {} and t.hour < $2", version_in_use(Consumer::Analytics)),
                &UsageHour::KEY.join(", "),
            ),
            resolved_letters: deletion::<DeadLetter>(
                "dead_letters_by_state",
                &format!("t.state = 'resolved' and t.last_failed_at < $2 and t.resolved_at < $2 and {FREE}"),
                "t.last_failed_at, t.dead_letter_id",
            ),
            discarded_letters_of_jobs: deletion::<DeadLetter>(
                "dead_letters_by_state",
                "t.state = 'discarded' and t.source = 'job' and t.last_failed_at < $2 and t.resolved_at < $2",
                "t.last_failed_at, t.dead_letter_id",
            ),
            attempts_of_finished_jobs: list(
                "jobs_done_kept",
                &ATTEMPTS_OF_FINISHED_JOBS.replace("{not_kept}", NOT_KEPT),
            ),
            gone_workers: deletion::<Worker>("", "t.state = 'gone' and t.seen_at < $2", "t.worker_id"),
            finished_jobs: deletion::<FinishedJob>(
                "jobs_done_kept",
                &format!("{NOT_KEPT} and not exists (select 1 from job_attempts a where a.job_id = t.job_id)"),
                "t.keep_until, t.job_id",
            ),
            past_notifications: deletion::<Notification>("notifications_by_time", "t.created_at < $2", "t.created_at"),
        }
    }

    /// In an order in which no row is deleted before those that refer to it.
    pub(super) fn of(&self, leftover: Leftover) -> Vec<&Statement> {
        match leftover {
            Leftover::OldBuilds => vec![
                &self.old_cursors,
                &self.old_parked,
                &self.old_letters,
                &self.old_usage_days,
                &self.old_usage_hours,
                &self.old_revenue_days,
                &self.old_activities,
                &self.old_revenues,
                &self.old_statement_lines,
                &self.old_statements,
                &self.old_notified_workspaces,
                &self.old_notifications,
            ],
            Leftover::UsageHours(_) => vec![&self.past_usage_hours],
            Leftover::ResolvedLetters(_) => vec![&self.resolved_letters, &self.discarded_letters_of_jobs],
            Leftover::Notifications(_) => vec![&self.past_notifications],
            Leftover::GoneWorkers(_) => vec![&self.gone_workers],
            Leftover::FinishedJobs(_) => vec![&self.attempts_of_finished_jobs, &self.finished_jobs],
        }
    }
}

fn version_in_use(consumer: Consumer) -> String {
    format!("(select c.version from consumers c where c.consumer = '{}')", consumer.as_str())
}

/// A build's rows lie together, and the oldest build comes first.
fn of_old_builds<T: Table>(consumer: Consumer, index: &'static str) -> Statement {
    deletion::<T>(index, &format!("t.version < {}", version_in_use(consumer)), &T::KEY.join(", "))
}

/// Deletes the first $1 rows `t`, in this order.
fn deletion<T: Table>(index: &'static str, filter: &str, order: &str) -> Statement {
    let (table, key) = (T::NAME, T::KEY.join(", "));
    let text = format!(
        "delete from {table} where ({key}) in (
    select {key} from {table} t where {filter} order by {order} limit $1
)
returning 1"
    );
    list(index, &text)
}
