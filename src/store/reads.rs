//! The reads of the API and the scheduler, with the statements that both databases share.

use std::collections::HashMap;
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::columns::{Fields, Stored};
use super::dialect::{Dialect, Keys, Parameters, each};
use super::error::{StoreError, with_answer_timeout, with_timeout};
use super::load::{held_shares, peek, states, versions};
use super::plan_cache::{PlanCache, PlanKey};
use super::queries::{
    AuditFinding, DueWork, DueWorkspace, EventQuery, GrantFilter, HistoryPosition, HistoryQuery, ListedHold,
    ListedUsage, Order, Page, Purchase,
};
use super::statements::Statement;
use super::tables::Table;
use super::{EXPIRIES_PER_WORKSPACE, Reads};
use crate::domain::cloud_event::EventRecord;
use crate::domain::credits::Credits;
use crate::domain::grant::{Grant, GrantSource};
use crate::domain::hold::{Hold, HoldState};
use crate::domain::ids::{EventId, GrantId, HoldId, WorkspaceId};
use crate::domain::ledger::LedgerEntry;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::{KeySet, Snapshot, WorkspaceState};
use crate::domain::text::{FeatureCode, PaymentReference};
use crate::domain::time::Timestamp;
use crate::domain::usage::{UsageId, UsageLog};

/// An audit reads the whole history, so its timeout is the longest.
const AUDIT_TIMEOUT: Duration = Duration::from_mins(30);

/// A database that can be read. [`Reads`] is implemented for every one.
pub(super) trait Database: Send + Sync {
    type Connection: Dialect;
    type Guard: DerefMut<Target = Self::Connection> + Send;

    /// A connection for reading.
    fn reader(&self) -> impl Future<Output = Result<Self::Guard, StoreError>> + Send;

    /// A connection in a transaction, whose reads all see the same snapshot.
    fn view(&self) -> impl Future<Output = Result<impl DerefMut<Target = Self::Connection> + Send, StoreError>> + Send;

    fn plan_cache(&self) -> &PlanCache;

    /// Checks that the database answers, on a connection that commands use.
    fn answer(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// The rows of a list.
pub(super) async fn list<D: Database, T: Table + Send>(
    database: &D,
    statement: &'static Statement,
    parameters: Parameters<'_>,
) -> Result<Vec<T>, StoreError> {
    list_each(database, statement, parameters, |mut row| T::take(&mut row)).await
}

/// The rows of a list, each read with the function.
pub(super) async fn list_each<D: Database, T>(
    database: &D,
    statement: &'static Statement,
    parameters: Parameters<'_>,
    read: impl Fn(Fields<'_>) -> Result<T, StoreError> + Send,
) -> Result<Vec<T>, StoreError> {
    with_answer_timeout(async { each(&database.reader().await?.list(&statement.text, parameters).await?, read) }).await
}

async fn page<D: Database, T: Table + Send, F: Stored + Sync>(
    database: &D,
    [ascending, descending]: [&'static Statement; 2],
    query: &HistoryQuery,
    filter: Option<&F>,
) -> Result<Page<T>, StoreError> {
    let statement = match query.order {
        Order::Ascending => ascending,
        Order::Descending => descending,
    };
    let (from, to) = query.bounds();
    let one_more = i64::from(query.limit) + 1;
    let mut parameters = Parameters::of(&query.workspace_id).and(&from.recorded_at).and(&from.seq);
    parameters = parameters.and(&to.recorded_at).and(&to.seq).and(&one_more);
    if let Some(filter) = filter {
        parameters = parameters.and(filter);
    }
    Ok(Page::of(list(database, statement, parameters).await?, query.limit))
}

/// Rows by their keys, from one statement. None is sent if there are no keys.
async fn look_up<D: Database, T>(
    database: &D,
    statement: &'static Statement,
    keys: Keys<'_>,
    read: impl Fn(Fields<'_>) -> Result<T, StoreError> + Send,
) -> Result<Vec<T>, StoreError> {
    if keys.0.is_empty() {
        return Ok(Vec::new());
    }
    with_answer_timeout(async { each(&database.reader().await?.look_up(statement, &keys).await?, read) }).await
}

/// Reads what was refunded of the usage logs.
async fn with_refunds<D: Database>(database: &D, logs: Vec<UsageLog>) -> Result<Vec<ListedUsage>, StoreError> {
    let keys: Vec<_> = logs.iter().map(|log| (log.workspace_id, log.id())).collect();
    let refunded = |mut row: Fields<'_>| Ok((UsageLog::take(&mut row)?.id(), row.next()?));
    let found = look_up(database, &D::Connection::statements().usages, Keys::usages(&keys), refunded).await?;
    let refunds: HashMap<UsageId, Credits> = found.into_iter().collect();
    let with_refund =
        |log: UsageLog| ListedUsage { refunded: refunds.get(&log.id()).copied().unwrap_or_default(), log };
    Ok(logs.into_iter().map(with_refund).collect())
}

/// Reads the bonuses that came with bought grants, and what was reversed.
async fn as_purchases<D: Database>(database: &D, bought: Vec<Grant>) -> Result<Vec<Purchase>, StoreError> {
    let statements = D::Connection::statements();
    let bonus_key = |grant: &Grant| Some((grant.workspace_id, grant.bonus_grant_id?));
    let bonuses: Vec<_> = bought.iter().filter_map(bonus_key).collect();
    let bonuses = look_up(database, &statements.grants, Keys::pairs(&bonuses), |mut row| Grant::take(&mut row)).await?;
    let mut bonuses: HashMap<_, _> = bonuses.into_iter().map(|bonus| (bonus.grant_id, bonus)).collect();
    let keys: Vec<_> = bought.iter().map(|grant| (grant.workspace_id, grant.grant_id)).collect();
    let reversed = |mut row: Fields<'_>| {
        let (_, grant_id): (WorkspaceId, GrantId) = (row.next()?, row.next()?);
        let (_, _): (GrantSource, Option<GrantId>) = (row.next()?, row.next()?);
        Ok((grant_id, (row.next()?, row.next()?)))
    };
    let reversed = look_up(database, &statements.reversible_purchases, Keys::pairs(&keys), reversed).await?;
    let reversed: HashMap<GrantId, (Credits, i64)> = reversed.into_iter().collect();
    let purchase = |grant: Grant| {
        let (reversed, reversed_minor) = reversed.get(&grant.grant_id).copied().unwrap_or_default();
        let bonus = grant.bonus_grant_id.and_then(|grant_id| bonuses.remove(&grant_id));
        Purchase { grant, bonus, reversed, reversed_minor }
    };
    Ok(bought.into_iter().map(purchase).collect())
}

/// Reads what the holds reserve of grants.
async fn with_shares<D: Database>(database: &D, holds: Vec<Hold>) -> Result<Vec<ListedHold>, StoreError> {
    if holds.is_empty() {
        return Ok(Vec::new());
    }
    let found = with_answer_timeout(async { held_shares(&mut *database.reader().await?, &holds).await });
    let mut shares: HashMap<_, Vec<_>> = HashMap::new();
    for share in found.await? {
        shares.entry(share.hold_id).or_default().push(share);
    }
    let with_shares = |hold: Hold| {
        let mut shares = shares.remove(&hold.hold_id).unwrap_or_default();
        shares.sort_by_key(|share| share.position);
        ListedHold { hold, shares }
    };
    Ok(holds.into_iter().map(with_shares).collect())
}

/// Workspaces with rows that are due, for work that names no more than the workspace.
async fn due_rows<D: Database>(
    database: &D,
    statement: &'static Statement,
    now: Timestamp,
    limit: u32,
    work: DueWork,
) -> Result<Vec<DueWorkspace>, StoreError> {
    let (rows, limit) = (i64::from(limit.saturating_mul(EXPIRIES_PER_WORKSPACE)), i64::from(limit));
    let parameters = Parameters::of(&now).and(&rows).and(&limit);
    list_each(database, statement, parameters, |mut row| Ok(DueWorkspace { workspace_id: row.next()?, work })).await
}

#[async_trait]
impl<D: Database> Reads for D {
    async fn workspace(&self, workspace_id: WorkspaceId) -> Result<Option<WorkspaceState>, StoreError> {
        with_answer_timeout(async {
            let mut view = self.view().await?;
            let mut found = states(&mut *view, self.plan_cache(), &[workspace_id]).await?;
            Ok(found.remove(&workspace_id).map(|state| *state))
        })
        .await
    }

    async fn snapshot(&self, keys: &KeySet) -> Result<Snapshot, StoreError> {
        with_answer_timeout(async {
            let mut view = self.view().await?;
            peek(&mut *view, self.plan_cache(), keys).await
        })
        .await
    }

    async fn last_entry(&self, workspace_id: WorkspaceId, at: Timestamp) -> Result<Option<LedgerEntry>, StoreError> {
        let parameters = Parameters::of(&workspace_id).and(&at);
        Ok(list(self, &D::Connection::statements().last_entry, parameters).await?.pop())
    }

    async fn usage(
        &self,
        query: &HistoryQuery,
        feature_code: Option<&FeatureCode>,
    ) -> Result<Page<ListedUsage>, StoreError> {
        let statements = D::Connection::statements();
        let orders = match feature_code {
            None => [&statements.usage_asc, &statements.usage_desc],
            Some(_) => [&statements.usage_of_feature_asc, &statements.usage_of_feature_desc],
        };
        let Page { rows, has_more } = page(self, orders, query, feature_code).await?;
        Ok(Page { rows: with_refunds(self, rows).await?, has_more })
    }

    async fn usage_log(&self, workspace_id: WorkspaceId, id: UsageId) -> Result<Option<ListedUsage>, StoreError> {
        let parameters = Parameters::of(&workspace_id).and(&id.recorded_at).and(&id.seq);
        let found = list(self, &D::Connection::statements().usage_log, parameters).await?;
        Ok(with_refunds(self, found).await?.pop())
    }

    async fn ledger(&self, query: &HistoryQuery, grant_id: Option<GrantId>) -> Result<Page<LedgerEntry>, StoreError> {
        let statements = D::Connection::statements();
        let orders = match grant_id {
            None => [&statements.ledger_asc, &statements.ledger_desc],
            Some(_) => [&statements.ledger_of_grant_asc, &statements.ledger_of_grant_desc],
        };
        page(self, orders, query, grant_id.as_ref()).await
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<EventRecord>, StoreError> {
        match query {
            EventQuery::OfWorkspace { workspace_id, after, limit } => {
                let limit = i64::from(*limit);
                let parameters = Parameters::of(workspace_id).and(after).and(&limit);
                list(self, &D::Connection::statements().events_of_workspace, parameters).await
            }
            EventQuery::OfAll { after, limit } => {
                with_answer_timeout(async { self.reader().await?.events_after(after, *limit).await }).await
            }
        }
    }

    async fn event(&self, id: EventId, workspace_id: Option<WorkspaceId>) -> Result<Option<EventRecord>, StoreError> {
        Ok(list(self, &D::Connection::statements().event, Parameters::of(&id).and(&workspace_id)).await?.pop())
    }

    async fn plans(&self) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
        with_answer_timeout(async {
            let mut reader = self.reader().await?;
            let found = reader.list(&D::Connection::statements().offered_plans.text, Parameters::default()).await?;
            let keys: Vec<PlanKey> = each(&found, |mut row| Ok((row.next()?, row.next()?)))?;
            let plans = versions(&mut *reader, self.plan_cache(), &keys.into_iter().collect()).await?;
            let mut plans: Vec<_> = plans.into_values().collect();
            plans.sort_by(|one, other| one.plan_code.cmp(&other.plan_code));
            Ok(plans)
        })
        .await
    }

    async fn due_boundaries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        let limit = i64::from(limit);
        list_each(self, &D::Connection::statements().due_boundaries, Parameters::of(&now).and(&limit), |mut row| {
            let workspace_id = row.next()?;
            let work = DueWork::Boundary { subscription_id: row.next()?, period_end: row.next()? };
            Ok(DueWorkspace { workspace_id, work })
        })
        .await
    }

    async fn due_holds(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        due_rows(self, &D::Connection::statements().due_holds, now, limit, DueWork::HoldExpiry).await
    }

    async fn due_expiries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        due_rows(self, &D::Connection::statements().due_expiries, now, limit, DueWork::Expiry).await
    }

    async fn due_warnings(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        due_rows(self, &D::Connection::statements().due_warnings, now, limit, DueWork::ExpiryWarning).await
    }

    async fn purchases(&self, query: &HistoryQuery) -> Result<Page<Purchase>, StoreError> {
        let statements = D::Connection::statements();
        let orders = [&statements.purchases_asc, &statements.purchases_desc];
        let Page { rows, has_more } = page(self, orders, query, None::<&GrantId>).await?;
        Ok(Page { rows: as_purchases(self, rows).await?, has_more })
    }

    async fn purchase(
        &self,
        workspace_id: WorkspaceId,
        payment_reference: &PaymentReference,
    ) -> Result<Option<Purchase>, StoreError> {
        let parameters = Parameters::of(&workspace_id).and(payment_reference);
        let found = list(self, &D::Connection::statements().purchase, parameters).await?;
        Ok(as_purchases(self, found).await?.pop())
    }

    async fn grants(&self, query: &HistoryQuery, filter: GrantFilter) -> Result<Page<Grant>, StoreError> {
        let statements = D::Connection::statements();
        let all = [&statements.grants_asc, &statements.grants_desc];
        let (orders, now) = match filter {
            GrantFilter::All => return page(self, all, query, None::<&Timestamp>).await,
            GrantFilter::Open(now) => ([&statements.open_grants_asc, &statements.open_grants_desc], now),
            GrantFilter::Closed(now) => ([&statements.closed_grants_asc, &statements.closed_grants_desc], now),
        };
        let mut found: Page<Grant> = page(self, orders, query, Some(&now)).await?;
        let is_first = |grant: &Grant| query.start_at == Some(HistoryPosition::of_grant(grant));
        if query.start_at.is_some() && !found.rows.first().is_some_and(is_first) {
            let first = HistoryQuery { limit: 1, ..query.clone() };
            let first: Page<Grant> = page(self, all, &first, None::<&Timestamp>).await?;
            found.insert_first(first.rows.into_iter().find(is_first), query.limit);
        }
        Ok(found)
    }

    async fn grant(&self, workspace_id: WorkspaceId, grant_id: GrantId) -> Result<Option<Grant>, StoreError> {
        let (statement, key) = (&D::Connection::statements().grants, [(workspace_id, grant_id)]);
        Ok(look_up(self, statement, Keys::pairs(&key), |mut row| Grant::take(&mut row)).await?.pop())
    }

    async fn holds(&self, query: &HistoryQuery, state: Option<HoldState>) -> Result<Page<ListedHold>, StoreError> {
        let statements = D::Connection::statements();
        let orders = match state {
            None => [&statements.holds_asc, &statements.holds_desc],
            Some(_) => [&statements.holds_by_state_asc, &statements.holds_by_state_desc],
        };
        let Page { rows, has_more } = page(self, orders, query, state.as_ref()).await?;
        Ok(Page { rows: with_shares(self, rows).await?, has_more })
    }

    async fn hold(&self, workspace_id: WorkspaceId, hold_id: HoldId) -> Result<Option<ListedHold>, StoreError> {
        let (statement, key) = (&D::Connection::statements().holds, [(workspace_id, hold_id)]);
        let found = look_up(self, statement, Keys::pairs(&key), |mut row| Hold::take(&mut row)).await?;
        Ok(with_shares(self, found).await?.pop())
    }

    async fn audit(&self, limit: u32) -> Result<Vec<AuditFinding>, StoreError> {
        let limit = i64::from(limit);
        with_timeout(AUDIT_TIMEOUT, async {
            let mut view = self.view().await?;
            view.begin_audit(AUDIT_TIMEOUT).await?;
            let mut findings = Vec::new();
            for (invariant, statement) in D::Connection::invariants() {
                let found = view.list(statement, Parameters::of(&limit)).await?;
                findings.extend(each(&found, |row| AuditFinding::read(invariant, row))?);
            }
            Ok(findings)
        })
        .await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        with_answer_timeout(self.answer()).await
    }
}
