//! Reading the figures, with the statements that both databases share.

use async_trait::async_trait;
use uuid::Uuid;

use super::dialect::{Dialect, Parameters, rows};
use super::error::{StoreError, with_answer_timeout};
use super::figures::{
    AsOf, Figures, KpiPage, KpiQuery, NotificationQuery, ServerAsOf, UsageFigure, UsageFigures, UsageGroup,
};
use super::kpi_reads::kpis;
use super::kpi_statements::KPI_STATEMENTS;
use super::queries::Page;
use super::reads::{Database, list, list_each};
use crate::domain::consumers::{Consumer, Notification, Statement as PeriodStatement, StatementLine};
use crate::domain::ids::{NotificationId, Partition, WorkspaceId};
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;

#[async_trait]
impl<D: Database> Figures for D {
    async fn as_of(&self, consumer: Consumer, workspace_id: WorkspaceId) -> Result<AsOf, StoreError> {
        let partition = Partition::of(workspace_id);
        let parameters = Parameters::of(&consumer).and(&partition).and(&workspace_id);
        let found = list_each(self, &D::Connection::consumer_statements().as_of, parameters, |mut row| {
            Ok(AsOf {
                version: row.next()?,
                seq: row.next()?,
                waiting_since: row.next()?,
                is_parked: row.next()?,
                has_discarded: row.next()?,
            })
        });
        let missing = || StoreError::Corrupt(format!("the cursor of {} is missing", consumer.as_str()));
        found.await?.pop().ok_or_else(missing)
    }

    async fn event_seq(&self, workspace_id: WorkspaceId, workspace_seq: i64) -> Result<Option<i64>, StoreError> {
        let parameters = Parameters::of(&workspace_id).and(&workspace_seq);
        Ok(list_each(self, &D::Connection::consumer_statements().event_seq, parameters, |mut row| row.next())
            .await?
            .pop())
    }

    async fn usage_figures(&self, version: i32, query: &UsageFigures) -> Result<Page<UsageFigure>, StoreError> {
        let statements = D::Connection::consumer_statements();
        let one_more = i64::from(query.limit) + 1;
        let before_all = (Timestamp::MIN, FeatureCode::from_stored(""));
        let (day, feature_code) = query.start_at.as_ref().unwrap_or(&before_all);
        let all = Parameters::of(&version).and(&query.workspace_id).and(&query.from).and(&query.to).and(&one_more);
        let (statement, parameters) = match query.group {
            UsageGroup::DayAndFeature => (&statements.usage_by_day_and_feature, all.and(day).and(feature_code)),
            UsageGroup::Day => (&statements.usage_by_day, all.and(day)),
            UsageGroup::Feature => (&statements.usage_by_feature, all.and(feature_code)),
            UsageGroup::Nothing => (&statements.usage_in_total, all),
        };
        Ok(Page::of(list_each(self, statement, parameters, UsageFigure::read).await?, query.limit))
    }

    async fn server_as_of(&self, consumer: Consumer) -> Result<ServerAsOf, StoreError> {
        let statement = &KPI_STATEMENTS.server_as_of;
        let found = list_each(self, statement, Parameters::of(&consumer), |mut row| {
            Ok(ServerAsOf {
                version: row.next()?,
                seqs: vec![(row.next()?, row.next()?)],
                waiting_since: row.next()?,
                has_parked: row.next()?,
            })
        });
        let all = found.await?.into_iter().reduce(|mut all, one| {
            all.seqs.extend(one.seqs);
            all.waiting_since = all.waiting_since.into_iter().chain(one.waiting_since).min();
            all
        });
        all.ok_or_else(|| StoreError::Corrupt(format!("the cursors of {} are missing", consumer.as_str())))
    }

    async fn kpis(&self, version: i32, query: &KpiQuery) -> Result<KpiPage, StoreError> {
        kpis(self, version, query).await
    }

    async fn statements(
        &self,
        version: i32,
        workspace_id: WorkspaceId,
        start_at: Option<Timestamp>,
        limit: u32,
    ) -> Result<Page<PeriodStatement>, StoreError> {
        let (newest, one_more) = (start_at.unwrap_or(Timestamp::MAX), i64::from(limit) + 1);
        let parameters = Parameters::of(&version).and(&workspace_id).and(&newest).and(&one_more);
        let statement = &D::Connection::consumer_statements().statement_page;
        Ok(Page::of(list(self, statement, parameters).await?, limit))
    }

    async fn statement(
        &self,
        version: i32,
        workspace_id: WorkspaceId,
        period_start: Timestamp,
    ) -> Result<Option<(PeriodStatement, Vec<StatementLine>)>, StoreError> {
        let statements = D::Connection::consumer_statements();
        let key = || Parameters::of(&version).and(&workspace_id).and(&period_start);
        with_answer_timeout(async {
            // One view, so that the lines are those of the statement.
            let mut view = self.view().await?;
            let mut found: Vec<PeriodStatement> = rows(&view.list(&statements.statement.text, key()).await?)?;
            let Some(statement) = found.pop() else { return Ok(None) };
            Ok(Some((statement, rows(&view.list(&statements.statement_lines.text, key()).await?)?)))
        })
        .await
    }

    async fn notifications(&self, version: i32, query: &NotificationQuery) -> Result<Page<Notification>, StoreError> {
        let statements = D::Connection::consumer_statements();
        let one_more = i64::from(query.limit) + 1;
        let (seq, id) = query.start_at.unwrap_or((i64::MAX, NotificationId(Uuid::max())));
        let all = Parameters::of(&version).and(&query.workspace_id).and(&seq).and(&id).and(&one_more);
        let (statement, parameters) = match &query.kind {
            Some(kind) => (&statements.notification_page_of_kind, all.and(kind)),
            None => (&statements.notification_page, all),
        };
        Ok(Page::of(list(self, statement, parameters).await?, query.limit))
    }
}
