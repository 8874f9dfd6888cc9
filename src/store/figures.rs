//! The figures of the consumers, as the API reads them.

use async_trait::async_trait;

use super::columns::Fields;
use super::error::StoreError;
use super::queries::Page;
use crate::domain::consumers::{Consumer, Notification, NotificationKind, Statement, StatementLine};
use crate::domain::ids::{NotificationId, Partition, WorkspaceId};
use crate::domain::kpis::{Deferred, Kpi, KpiGroup, KpiKey, KpiStep};
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;

/// The figures that consumers have made.
#[async_trait]
pub trait Figures: Send + Sync {
    /// How far a consumer's figures of a workspace are.
    async fn as_of(&self, consumer: Consumer, workspace_id: WorkspaceId) -> Result<AsOf, StoreError>;

    /// The number in its partition of a workspace's event, if it is stored.
    async fn event_seq(&self, workspace_id: WorkspaceId, workspace_seq: i64) -> Result<Option<i64>, StoreError>;

    /// The usage of a workspace by the build of that version.
    async fn usage_figures(&self, version: i32, query: &UsageFigures) -> Result<Page<UsageFigure>, StoreError>;

    /// How far a consumer's figures of the whole server are.
    async fn server_as_of(&self, consumer: Consumer) -> Result<ServerAsOf, StoreError>;

    /// The key figures of the whole server by the build of that version.
    async fn kpis(&self, version: i32, query: &KpiQuery) -> Result<KpiPage, StoreError>;

    /// The statements of a workspace by the build of that version, the newest first. The page begins with the one whose
    /// period begins at `start_at`, or with the next one.
    async fn statements(
        &self,
        version: i32,
        workspace_id: WorkspaceId,
        start_at: Option<Timestamp>,
        limit: u32,
    ) -> Result<Page<Statement>, StoreError>;

    /// The statement of one period, with its lines.
    async fn statement(
        &self,
        version: i32,
        workspace_id: WorkspaceId,
        period_start: Timestamp,
    ) -> Result<Option<(Statement, Vec<StatementLine>)>, StoreError>;

    /// The notifications of a workspace by the build of that version, the newest first.
    async fn notifications(&self, version: i32, query: &NotificationQuery) -> Result<Page<Notification>, StoreError>;
}

/// How far the figures of a workspace are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsOf {
    /// The build whose figures are read.
    pub version: i32,
    /// The last event of the workspace's partition that was taken.
    pub seq: i64,
    /// When the first event was recorded that was not taken.
    pub waiting_since: Option<Timestamp>,
    /// Since one of them could not be taken, the workspace's events are left out.
    pub is_parked: bool,
    /// An operator has discarded one of them.
    pub has_discarded: bool,
}

/// How far the figures of the whole server are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAsOf {
    /// The build whose figures are read.
    pub version: i32,
    /// The last event of each partition that was taken.
    pub seqs: Vec<(Partition, i64)>,
    /// When the oldest event was recorded that was not taken.
    pub waiting_since: Option<Timestamp>,
    /// Events of at least one workspace are left out, since one of them could not be taken.
    pub has_parked: bool,
}

/// Key figures of the whole server.
#[derive(Clone, Debug)]
pub struct KpiQuery {
    pub step: KpiStep,
    pub group: KpiGroup,
    /// The first instant of the first step.
    pub from: Timestamp,
    /// The first instant after the last step.
    pub to: Timestamp,
    /// The page begins with this row, or with the next one.
    pub start_at: Option<KpiKey>,
    pub limit: u32,
    /// A page that has read so many stored rows ends early. More may follow then, and `has_more` says so.
    pub max_stored: i64,
}

/// A page of key figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KpiPage {
    pub page: Page<Kpi>,
    /// What was deferred before the first step of the question. Only of groups that have it.
    pub deferred_before: Option<Deferred>,
}

/// What the usage is summed up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageGroup {
    DayAndFeature,
    Day,
    Feature,
    Nothing,
}

/// The usage of a workspace on some days.
#[derive(Clone, Debug)]
pub struct UsageFigures {
    pub workspace_id: WorkspaceId,
    /// The first instant of the first day.
    pub from: Timestamp,
    /// The first instant after the last day.
    pub to: Timestamp,
    pub group: UsageGroup,
    /// The page begins with this row, or with the next one.
    pub start_at: Option<(Timestamp, FeatureCode)>,
    pub limit: u32,
}

/// Some notifications of a workspace.
#[derive(Clone, Copy, Debug)]
pub struct NotificationQuery {
    pub workspace_id: WorkspaceId,
    /// All kinds if there is none.
    pub kind: Option<NotificationKind>,
    /// The page begins with the notification of this event and id, or with the next one.
    pub start_at: Option<(i64, NotificationId)>,
    pub limit: u32,
}

/// The usage of one group. What it is not grouped by is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageFigure {
    pub day: Option<Timestamp>,
    pub feature_code: Option<FeatureCode>,
    /// In micro-credits, as the other amounts.
    pub credits: i64,
    pub refunded: i64,
    /// In millionths.
    pub quantity: i64,
    pub deductions: i64,
    pub refused: i64,
}

impl UsageFigure {
    pub(super) fn read(mut row: Fields<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            day: row.next()?,
            feature_code: row.next()?,
            credits: row.next()?,
            refunded: row.next()?,
            quantity: row.next()?,
            deductions: row.next()?,
            refused: row.next()?,
        })
    }
}
