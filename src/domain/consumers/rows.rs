//! The rows of consumers. All begin with the version of their build.

use std::collections::BTreeSet;

use super::notification::{Notification, NotifiedWorkspace};
use super::statement::{Statement, StatementLine};
use crate::domain::grant::Currency;
use crate::domain::ids::{GrantId, Partition, WorkspaceId};
use crate::domain::text::{FeatureCode, PlanCode};
use crate::domain::time::Timestamp;

/// What a fold must know of some events: the keys of rows, which may not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsumerKeys {
    pub activities: BTreeSet<(i32, WorkspaceId)>,
    pub revenues: BTreeSet<(i32, WorkspaceId, GrantId)>,
    /// The open statements of these workspaces.
    pub statements: BTreeSet<(i32, WorkspaceId)>,
    /// All lines of the open statements of these workspaces.
    pub statement_lines: BTreeSet<(i32, WorkspaceId)>,
    pub notified_workspaces: BTreeSet<(i32, WorkspaceId)>,
}

/// Rows of consumers, as they are loaded and as they are written. Amounts of credits are in micro-credits: sums may be
/// larger than an amount of credits can be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsumerRows {
    // Replaced as a whole.
    pub activities: Vec<WorkspaceActivity>,
    pub revenues: Vec<PurchaseRevenue>,
    pub statements: Vec<Statement>,
    pub notified_workspaces: Vec<NotifiedWorkspace>,
    // Added to what is stored.
    pub usage_days: Vec<UsageDay>,
    pub usage_hours: Vec<UsageHour>,
    pub revenue_days: Vec<RevenueDay>,
    pub statement_lines: Vec<StatementLine>,
    // Left as they are if they are stored already.
    pub notifications: Vec<Notification>,
}

impl ConsumerRows {
    /// Adds the rows of another fold. Both must not have the same row.
    pub fn add(&mut self, other: Self) {
        let Self {
            activities,
            revenues,
            statements,
            notified_workspaces,
            usage_days,
            usage_hours,
            revenue_days,
            statement_lines,
            notifications,
        } = other;
        self.activities.extend(activities);
        self.revenues.extend(revenues);
        self.statements.extend(statements);
        self.notified_workspaces.extend(notified_workspaces);
        self.usage_days.extend(usage_days);
        self.usage_hours.extend(usage_hours);
        self.revenue_days.extend(revenue_days);
        self.statement_lines.extend(statement_lines);
        self.notifications.extend(notifications);
    }
}

/// What `analytics` must know of a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceActivity {
    pub version: i32,
    pub workspace_id: WorkspaceId,
    pub partition: Partition,
    /// The plan in force.
    pub plan_code: PlanCode,
    /// The last day on which it used credits.
    pub active_day: Option<Timestamp>,
    /// An operator has discarded one of its events, so it may use purchases that no event has told of.
    pub incomplete: bool,
}

/// What was earned of a purchase so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PurchaseRevenue {
    pub version: i32,
    pub workspace_id: WorkspaceId,
    pub grant_id: GrantId,
    pub partition: Partition,
    pub currency: Currency,
    /// What was paid and not given back.
    pub amount_minor: i64,
    /// What was bought and not reversed.
    pub credits: i64,
    /// What was spent, has expired or has repaid debt.
    pub used: i64,
    /// The part of the amount that the used credits have earned.
    pub recognised_minor: i64,
}

/// The usage of a feature by a workspace on one day, in UTC. To be added to what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageDay {
    pub version: i32,
    pub workspace_id: WorkspaceId,
    pub day: Timestamp,
    pub feature_code: FeatureCode,
    pub partition: Partition,
    /// What was charged. Refunds are not taken off.
    pub credits: i64,
    /// What was given back on this day, whenever it had been charged.
    pub refunded: i64,
    /// In millionths.
    pub quantity: i64,
    /// Deductions and captures.
    pub deductions: i64,
    /// Deductions and holds that were refused for want of credits or at a limit.
    pub refused: i64,
}

/// The usage of a feature by all workspaces of a partition on one plan in one hour. To be added to what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageHour {
    pub version: i32,
    pub partition: Partition,
    pub hour: Timestamp,
    pub plan_code: PlanCode,
    pub feature_code: FeatureCode,
    pub credits: i64,
    pub deductions: i64,
    pub refused: i64,
}

/// What the workspaces of a partition on one plan paid on one day, and how many there were. To be added to what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevenueDay {
    pub version: i32,
    pub partition: Partition,
    pub day: Timestamp,
    pub plan_code: PlanCode,
    /// ISO 4217. Empty in the row that counts workspaces.
    pub currency: String,
    pub purchases: i64,
    pub credits_sold: i64,
    pub paid_minor: i64,
    /// What was given back of what had been paid.
    pub returned_minor: i64,
    /// What was earned. Negative where more was refunded than used.
    pub recognised_minor: i64,
    /// Workspaces that used credits on this day.
    pub active_workspaces: i64,
    pub new_workspaces: i64,
    /// Workspaces whose subscription ended.
    pub canceled_workspaces: i64,
}
