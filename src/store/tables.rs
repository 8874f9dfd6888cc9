//! The tables that are written in batches. A descriptor names the columns of each, once.
//!
//! A field is one column of the same name, or the columns in brackets behind it. Their order is that of the migrations,
//! which a test compares (`tests/conformance/migrations.rs`). The lists of columns, the inserts and updates of both
//! databases and the decoding of rows are made from the descriptors.

use super::columns::{Columns, Fields, Kind, WriteValue};
use super::error::StoreError;
use super::plan_rows::{PlanFeatureRow, PlanVersionRow};
use crate::domain::change_set::SubscriptionPeriod;
use crate::domain::cloud_event::EventRecord;
use crate::domain::command_record::CommandRecord;
use crate::domain::consumers::{
    Notification, NotifiedWorkspace, PurchaseRevenue, RevenueDay, Statement, StatementLine, UsageDay, UsageHour,
    WorkspaceActivity,
};
use crate::domain::counter::UsageCounter;
use crate::domain::dead_letter::{DeadLetter, ParkedWorkspace};
use crate::domain::grant::Grant;
use crate::domain::hold::{HeldShare, Hold};
use crate::domain::ids::Partition;
use crate::domain::jobs::{FinishedJob, Job, JobAttempt, JobLease, Queue, Schedule, Worker};
use crate::domain::ledger::LedgerEntry;
use crate::domain::operator_act::OperatorAct;
use crate::domain::partition_head::PartitionHead;
use crate::domain::refund::UsageRefund;
use crate::domain::reversal::PurchaseReversal;
use crate::domain::subscription::Subscription;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::{FeatureOverride, Workspace, WorkspaceCredits};

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

/// A table by the type of its rows.
pub(super) trait Table: Sized {
    const NAME: &'static str;
    /// The type of PostgreSQL that has the same columns.
    const ROW_TYPE: &'static str;
    /// The primary key, by which a row is updated.
    const KEY: &'static [&'static str];
    /// Columns that never change: an update does not write them.
    const FIXED: &'static [&'static str];

    fn columns() -> Vec<Column>;

    /// Writes all columns in order.
    fn put(&self, row: &mut impl WriteValue);

    /// Reads all columns in order.
    fn take(row: &mut Fields<'_>) -> Result<Self, StoreError>;

    /// The names of all columns in order, for a `select`, each behind this alias.
    fn select(alias: &str) -> String {
        list(&Self::columns(), |_, column| format!("{alias}.{}", column.name))
    }
}

/// Does something with every table.
pub(super) trait Visitor {
    fn visit<T: Table>(&mut self);
}

/// A list of columns, each formatted by the function from its place and itself.
pub(super) fn list(columns: &[Column], write: impl Fn(usize, &Column) -> String) -> String {
    columns.iter().enumerate().map(|(place, column)| write(place, column)).collect::<Vec<_>>().join(", ")
}

/// What an insert does where the key is taken: it sets each column that can change.
pub(super) fn on_conflict<T: Table>(set: impl Fn(&str) -> String) -> String {
    let mut columns = T::columns();
    columns.retain(|column| !T::KEY.contains(&column.name) && !T::FIXED.contains(&column.name));
    format!("on conflict ({}) do update set {}", T::KEY.join(", "), list(&columns, |_, column| set(column.name)))
}

/// What an insert does where the key is taken and the row never changes: nothing.
pub(super) fn on_conflict_do_nothing<T: Table>() -> String {
    format!("on conflict ({}) do nothing", T::KEY.join(", "))
}

fn kinds_of<Row, Field: Columns>(_: fn(&Row) -> &Field) -> &'static [Kind] {
    Field::KINDS
}

fn columns_of<Row, Embedded: Table>(_: fn(&Row) -> &Embedded) -> Vec<Column> {
    Embedded::columns()
}

fn add(columns: &mut Vec<Column>, names: &[&'static str], kinds: &[Kind]) {
    debug_assert_eq!(names.len(), kinds.len(), "{names:?}");
    columns.extend(names.iter().zip(kinds).map(|(name, kind)| Column { name, kind: *kind }));
}

macro_rules! names {
    ($field:ident) => {
        [stringify!($field)]
    };
    ($field:ident [$($column:ident),+]) => {
        [$(stringify!($column)),+]
    };
}

/// A field in braces is a row of another table, whose columns come first. A column behind `+` is derived from the row: it is
/// written but not read.
macro_rules! tables {
    ($($table:ident($($key:ident),+) $(fixed($($fixed:ident),+))?: $row:ty {
        $({$embedded:ident})? $($field:ident $([$($column:ident),+])?),+
        $(; $(+ $derived:ident: $kind:ty = $derive:expr),+)?
    })+) => {
        $(impl Table for $row {
            const NAME: &'static str = stringify!($table);
            const ROW_TYPE: &'static str = concat!(stringify!($table), "_row");
            const KEY: &'static [&'static str] = &[$(stringify!($key)),+];
            const FIXED: &'static [&'static str] = &[$($(stringify!($fixed)),+)?];

            fn columns() -> Vec<Column> {
                let mut columns = Vec::new();
                $(columns.extend(columns_of(|row: &Self| &row.$embedded));)?
                $(add(&mut columns, &names!($field $([$($column),+])?), kinds_of(|row: &Self| &row.$field));)+
                $($(add(&mut columns, &[stringify!($derived)], <$kind as Columns>::KINDS);)+)?
                columns
            }

            fn put(&self, row: &mut impl WriteValue) {
                $(Table::put(&self.$embedded, row);)?
                $(self.$field.put(row);)+
                $($(let derive: fn(&Self) -> $kind = $derive; derive(self).put(row);)+)?
            }

            fn take(row: &mut Fields<'_>) -> Result<Self, StoreError> {
                let read = Self { $($embedded: Table::take(row)?,)? $($field: row.next()?),+ };
                $($(row.skip(<$kind as Columns>::KINDS.len());)+)?
                Ok(read)
            }
        })+

        /// Visits each table.
        pub(super) fn visit_all(visitor: &mut impl Visitor) {
            $(visitor.visit::<$row>();)+
        }

        /// The name and the columns of each table.
        pub(super) fn all() -> Vec<(&'static str, Vec<&'static str>)> {
            let names = |columns: Vec<Column>| columns.iter().map(|column| column.name).collect();
            vec![$((stringify!($table), names(<$row>::columns()))),+]
        }
    };
}

tables! {
    plan_versions(plan_code, version): PlanVersionRow {
        plan_code, version, terms, created_at
    }

    plan_features(plan_code, version, feature_code): PlanFeatureRow {
        plan_code, version, feature_code, is_enabled, unit_price, limit [limit_credits, limit_mode]
    }

    workspaces(workspace_id): Workspace {
        workspace_id, name, time_zone, monthly_limit_override, overdraft_limit_override, metadata, created_at;
        + partition_id: Partition = Workspace::partition
    }

    workspace_feature_overrides(workspace_id, feature_code): FeatureOverride {
        workspace_id, feature_code, terms [is_enabled, unit_price, limit_credits]
    }

    subscriptions(subscription_id): Subscription {
        subscription_id, workspace_id, plan_code, plan_version, status, billing_anchor, period [period_start, period_end],
        version, pending_change, canceled_at, updated_at
    }

    subscription_periods(subscription_id, period_start): SubscriptionPeriod {
        workspace_id, subscription_id, period [period_start, period_end], usage_seq, command_id
    }

    workspace_credits(workspace_id): WorkspaceCredits {
        workspace_id, current_credits, held_credits, debt_credits, overdraft_limit, used_this_month, uncollected_credits,
        reported_limit, rate_window_start, rate_window_used, low_credit_alerts, open_holds, version, ledger_seq, usage_seq,
        event_seq, updated_at
    }

    usage_counters(workspace_id, scope, subject): UsageCounter {
        workspace_id, subject [scope, subject], window_start, used_credits, reported_limit
    }

    credit_grants(workspace_id, grant_id) fixed(
        source, amount, priority, effective_at, feature_scope, payment_reference, amount_minor, currency, reason,
        metadata, bonus_grant_id, created_at, issued_seq
    ): Grant {
        workspace_id, grant_id, source, amount, remaining, held, priority, effective_at, expires_at, feature_scope,
        payment_reference, cost_basis [amount_minor, currency], reason, metadata, bonus_grant_id, expiry_warning_at,
        created_at, issued_seq
    }

    credit_holds(workspace_id, hold_id) fixed(
        feature_code, user_id, amount, overdraft, unit_price, metadata, command_id, created_at
    ): Hold {
        workspace_id, hold_id, feature_code, user_id, amount, overdraft, unit_price, metadata, command_id, state,
        expires_at, created_at, closed_at, captured, usage_id [usage_recorded_at, usage_seq]
    }

    credit_hold_grants(workspace_id, hold_id, position): HeldShare {
        workspace_id, hold_id, position, grant_id, amount
    }

    commands(workspace_id, idempotency_key): CommandRecord {
        workspace_id, idempotency_key, command_id, seq, command_type, fingerprint, outcome, status, body, actor,
        correlation_id, traceparent, metadata, received_at, recorded_at
    }

    ledger_entries(workspace_id, recorded_at, seq): LedgerEntry {
        workspace_id, seq, command_id, accounts [debit_account, credit_account, grant_id], amount, balance_after,
        recorded_at, effective_at
    }

    usage_logs(workspace_id, recorded_at, seq): UsageLog {
        workspace_id, seq, command_id, feature_code, user_id, credits, quantity, occurred_at, recorded_at, metadata
    }

    usage_refunds(workspace_id, usage_recorded_at, usage_seq, refund_id): UsageRefund {
        workspace_id, usage_id [usage_recorded_at, usage_seq], refund_id, credits, is_counted, reason, command_id, recorded_at
    }

    purchase_reversals(workspace_id, grant_id, reversal_id): PurchaseReversal {
        workspace_id, grant_id, reversal_id, credits, bonus_credits, bonus_owed, owed, written_off, amount_minor, reason,
        command_id, recorded_at
    }

    event_outbox(partition_id, seq): EventRecord {
        partition [partition_id], seq, event_id, workspace_id, workspace_seq, event_type, schema_version, recorded_at, correlation_id,
        causation_id, traceparent, data
    }

    dead_letters(dead_letter_id) fixed(first_failed_at): DeadLetter {
        dead_letter_id, work [source, name, version, workspace_id, partition_id, seq, workspace_seq, event_id, job_id], kind,
        fingerprint, error_class, error, attempts, first_failed_at, last_failed_at, state, replay_id, resolved_at
    }

    parked_workspaces(consumer, version, workspace_id): ParkedWorkspace {
        consumer, version, workspace_id, partition [partition_id], workspace_seq, dead_letter_id, since, replay_at
    }

    usage_days(version, workspace_id, day, feature_code) fixed(partition_id): UsageDay {
        version, workspace_id, day, feature_code, partition [partition_id], credits, refunded, quantity, deductions, refused
    }

    usage_hours(version, hour, plan_code, feature_code, partition_id): UsageHour {
        version, partition [partition_id], hour, plan_code, feature_code, credits, deductions, refused
    }

    revenue_days(version, day, currency, plan_code, partition_id): RevenueDay {
        version, partition [partition_id], day, plan_code, currency, purchases, credits_sold, paid_minor, returned_minor,
        recognised_minor, active_workspaces, new_workspaces, canceled_workspaces
    }

    analytics_workspaces(version, workspace_id) fixed(partition_id): WorkspaceActivity {
        version, workspace_id, partition [partition_id], plan_code, active_day, incomplete
    }

    purchase_revenue(version, workspace_id, grant_id) fixed(partition_id, currency): PurchaseRevenue {
        version, workspace_id, grant_id, partition [partition_id], currency, amount_minor, credits, used, recognised_minor
    }

    ops_audit(audit_id): OperatorAct {
        audit_id, at, actor, action, target, reason, before, after
    }

    statements(version, workspace_id, period_start) fixed(partition_id, opening, first_seq): Statement {
        version, workspace_id, period_start, partition [partition_id], period_end, plan_code, plan_version, opening, granted,
        purchased, bonus, refunded, consumed, expired, removed, reversed, voided, unexplained, closing, debt_repaid,
        rolled_over, first_seq, last_seq, closed_at, sha256
    }

    statement_lines(version, workspace_id, period_start, feature_code) fixed(partition_id): StatementLine {
        version, workspace_id, period_start, feature_code, partition [partition_id], credits, refunded, quantity,
        deductions, refused
    }

    notified_workspaces(version, workspace_id) fixed(partition_id): NotifiedWorkspace {
        version, workspace_id, partition [partition_id], period_start, added_seq, is_exhausted
    }

    notifications(version, workspace_id, kind, subject, period_start): Notification {
        version, workspace_id, data [kind, data], subject, period_start, partition [partition_id], notification_id, event_id,
        workspace_seq, created_at
    }

    queues(queue): Queue {
        queue, settings [
            weight, is_paused, max_running, max_running_per_workspace, lease_s, timeout_s, max_attempts, retry_delays_s,
            keep_done_h
        ], changed_by, changed_at
    }

    jobs(job_id) fixed(
        queue, kind, runner, workspace_id, priority, max_attempts, args, unique_key, fingerprint, hold, dead_letter_id,
        replay_id, actor, correlation_id, causation_id, traceparent, created_at
    ): Job {
        job_id, queue, kind, runner, workspace_id, state, priority, rank, run_at, attempt, max_attempts, args, unique_key,
        fingerprint, hold, hold_id, held_credits, unit_price, hold_expires_at, outcome, result, actual, ended_by,
        cancel_requested_at, error [error_class, error], replays [dead_letter_id, replay_id], actor, correlation_id,
        causation_id, traceparent, created_at, changed_at
    }

    job_leases(job_id) fixed(lease_id, worker_id, queue, workspace_id, started_at, deadline): JobLease {
        job_id, lease_id, worker_id, queue, workspace_id, started_at, leased_until, deadline, progress
    }

    workers(worker_id) fixed(subject, runner, started_at): Worker {
        worker_id, name, subject, runner, queues, slots, labels, version, state, started_at, seen_at
    }

    schedules(kind): Schedule {
        kind, next_at, is_paused, fired_at, job_id, changed_by, changed_at
    }

    job_attempts(job_id, attempt): JobAttempt {
        job_id, attempt, worker_id, started_at, ended_at, outcome, error [error_class, error]
    }

    jobs_done(job_id): FinishedJob {
        {job} finished_at, keep_until, captured [captured_credits]
    }

    outbox_partitions(partition_id): PartitionHead {
        partition [partition_id], seq, last_event_id, version
    }
}
