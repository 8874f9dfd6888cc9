//! Reading the key figures of the whole server.
//!
//! They are stored by partition and, of usage, by hour, and summed up when they are read. A page is read in spans of time:
//! the first is one step, and each is twice as long as the one before, until there are enough rows. So a page reads little
//! more than it answers, however long the history is, and whole steps: their rows are put in order here, because the
//! databases order texts differently. A page that has read much ends early, so that no question takes longer than its
//! timeout.

use chrono::TimeDelta;

use super::columns::Fields;
use super::dialect::{Dialect, Parameters, each};
use super::error::{StoreError, with_answer_timeout};
use super::figures::{KpiPage, KpiQuery};
use super::kpi_statements::KPI_STATEMENTS;
use super::queries::Page;
use super::reads::Database;
use super::statements::Statement;
use crate::domain::kpis::{Deferred, Kpi, KpiGroup, KpiKey, KpiOverflow, KpiRevenue, KpiUsage, KpiWorkspaces, sum_up};
use crate::domain::time::Timestamp;

/// The longest span. A statement about it stays far below the timeout of a statement.
const MAX_SPAN_HOURS: i64 = 8 * 24;
/// How many rows a span of several steps may have. One with more is read again in shorter spans.
const MAX_SPAN_ROWS: usize = 10_000;

/// A page of the figures of the build of that version.
pub(super) async fn kpis<D: Database>(database: &D, version: i32, query: &KpiQuery) -> Result<KpiPage, StoreError> {
    with_answer_timeout(async {
        // One view, so that what is deferred is that of the rows.
        let mut view = database.view().await?;
        let mut source = Source { connection: &mut *view, version, query };
        let begin = query.start_at.as_ref().map_or(query.from, |key| query.step.start_of(key.start).max(query.from));
        let (mut deferred, mut deferred_before) = (Deferred::new(), None);
        if query.group.has_deferred() {
            source.add_deferred(Timestamp::MIN, query.from, &mut deferred).await?;
            deferred_before = Some(deferred.clone());
            source.add_deferred(query.from, begin, &mut deferred).await?;
        }
        let wanted = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let (mut rows, mut stored) = (Vec::new(), 0_i64);
        let (mut at, mut hours) = (begin, query.step.hours());
        // The first row may be the one that the caller has seen.
        while rows.len() <= wanted && at < query.to && (rows.len() < 2 || stored < query.max_stored) {
            let is_step = hours == query.step.hours();
            let until = at.plus(TimeDelta::hours(hours)).min(query.to);
            let limit = if is_step { usize::MAX } else { MAX_SPAN_ROWS };
            let parts = source.parts(at, until, limit).await?;
            if parts.len() > limit {
                hours /= 2;
                continue;
            }
            stored = parts.iter().fold(stored, |stored, (_, rows)| stored.saturating_add(*rows));
            let parts = parts.into_iter().map(|(part, _)| part);
            let found = sum_up(query.step, query.group, parts, &mut deferred).map_err(too_large)?;
            let is_wanted = |row: &Kpi| query.start_at.as_ref().is_none_or(|first| row.key >= *first);
            rows.extend(found.into_iter().filter(is_wanted));
            (at, hours) = (until, (hours * 2).min(MAX_SPAN_HOURS));
        }
        let mut page = Page::of(rows, query.limit);
        page.has_more |= at < query.to;
        Ok(KpiPage { page, deferred_before })
    })
    .await
}

/// The stored figures.
struct Source<'a, C> {
    connection: &'a mut C,
    version: i32,
    query: &'a KpiQuery,
}

impl<C: Dialect> Source<'_, C> {
    /// What is stored of these hours, summed over the partitions, and of how many stored rows each sum is. If these are more
    /// than `limit` sums, some may be missing.
    async fn parts(&mut self, from: Timestamp, to: Timestamp, limit: usize) -> Result<Vec<(Kpi, i64)>, StoreError> {
        let statements = &*KPI_STATEMENTS;
        let KpiQuery { step, group, .. } = *self.query;
        let mut parts = Vec::new();
        if group.by_currency() {
            let statement = if group.by_plan() { &statements.revenue_by_plan } else { &statements.revenue };
            parts.extend(self.read(statement, from, to, limit, revenue).await?);
        } else {
            let statement = match group {
                KpiGroup::Plan => &statements.usage_by_plan,
                KpiGroup::Feature => &statements.usage_by_feature,
                KpiGroup::PlanAndFeature => &statements.usage_by_plan_and_feature,
                KpiGroup::Nothing | KpiGroup::Currency | KpiGroup::PlanAndCurrency => &statements.usage,
            };
            parts.extend(self.read(statement, from, to, limit, usage).await?);
        }
        if group.has_workspaces(step) {
            let statement = if group.by_plan() { &statements.workspaces_by_plan } else { &statements.workspaces };
            parts.extend(self.read(statement, from, to, limit, workspaces).await?);
        }
        Ok(parts)
    }

    /// At most one row more than `limit`.
    async fn read(
        &mut self,
        statement: &'static Statement,
        from: Timestamp,
        to: Timestamp,
        limit: usize,
        read: fn(&mut Fields<'_>) -> Result<Kpi, StoreError>,
    ) -> Result<Vec<(Kpi, i64)>, StoreError> {
        let one_more = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let parameters = Parameters::of(&self.version).and(&from).and(&to).and(&one_more);
        each(&self.connection.list(&statement.text, parameters).await?, |mut row| Ok((read(&mut row)?, row.next()?)))
    }

    /// Adds what these days have left to earn.
    async fn add_deferred(
        &mut self,
        from: Timestamp,
        to: Timestamp,
        deferred: &mut Deferred,
    ) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let parameters = Parameters::of(&self.version).and(&from).and(&to);
        let statement = &KPI_STATEMENTS.deferred_revenue;
        let found = each(&self.connection.list(&statement.text, parameters).await?, |mut row| {
            Ok((row.next()?, row.next::<i64>()?))
        })?;
        for (currency, added) in found {
            let balance = deferred.entry(currency).or_default();
            *balance = balance.checked_add(added).ok_or_else(|| too_large(KpiOverflow))?;
        }
        Ok(())
    }
}

fn too_large(error: KpiOverflow) -> StoreError {
    StoreError::Corrupt(error.to_string())
}

fn usage(row: &mut Fields<'_>) -> Result<Kpi, StoreError> {
    let (start, plan_code, feature_code) = (row.next()?, row.next()?, row.next()?);
    let usage = KpiUsage { credits: row.next()?, deductions: row.next()?, refused: row.next()? };
    let key = KpiKey { start, plan_code, feature_code, currency: None };
    Ok(Kpi { key, usage: Some(usage), workspaces: None, revenue: None })
}

fn workspaces(row: &mut Fields<'_>) -> Result<Kpi, StoreError> {
    let (start, plan_code) = (row.next()?, row.next()?);
    let workspaces = KpiWorkspaces { active: row.next()?, new: row.next()?, canceled: row.next()? };
    let key = KpiKey { start, plan_code, feature_code: None, currency: None };
    Ok(Kpi { key, usage: None, workspaces: Some(workspaces), revenue: None })
}

fn revenue(row: &mut Fields<'_>) -> Result<Kpi, StoreError> {
    let (start, plan_code, currency) = (row.next()?, row.next()?, row.next()?);
    let revenue = KpiRevenue {
        purchases: row.next()?,
        credits_sold: row.next()?,
        paid_minor: row.next()?,
        returned_minor: row.next()?,
        recognised_minor: row.next()?,
        deferred_minor: None,
    };
    let key = KpiKey { start, plan_code, feature_code: None, currency: Some(currency) };
    Ok(Kpi { key, usage: None, workspaces: None, revenue: Some(revenue) })
}
