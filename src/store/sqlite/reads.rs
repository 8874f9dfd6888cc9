//! What the API and the scheduler read. Pages go by the key of the last row seen, never by offset.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use sqlx::sqlite::SqlitePool;

use super::audit;
use super::connection::in_time;
use super::database::{BEGIN_READING, SqliteStore};
use super::error::store_error;
use super::load::states;
use super::plans::{offered_plans, versions};
use super::rows::{Statement, row, rows};
use crate::domain::event::EventRecord;
use crate::domain::ids::{EventId, GrantId, WorkspaceId};
use crate::domain::ledger::LedgerEntry;
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;
use crate::domain::usage::{UsageId, UsageLog};
use crate::store::columns::Fields;
use crate::store::error::{StoreError, within};
use crate::store::queries::{
    AuditFinding, DueWork, DueWorkspace, EventPosition, EventQuery, HistoryQuery, Order, Page,
};
use crate::store::tables::Table;
use crate::store::{EXPIRIES_PER_WORKSPACE, Reads};

pub(super) const OTHERS: &[&str] = &[PING];

/// Each list and look-up with the index that finds its rows.
pub(super) fn indexes() -> Vec<(&'static str, &'static str)> {
    let pages = [
        (&USAGE, "USING PRIMARY KEY"),
        (&USAGE_OF_FEATURE, "USING INDEX usage_logs_by_feature"),
        (&LEDGER, "USING PRIMARY KEY"),
        (&LEDGER_OF_GRANT, "USING INDEX ledger_entries_by_grant"),
    ];
    let pages = pages.into_iter().flat_map(|(pages, index)| pages.iter().map(move |page| (page.as_str(), index)));
    let others = [
        (USAGE_LOG.as_str(), "USING PRIMARY KEY"),
        (EVENTS_OF_WORKSPACE.as_str(), "USING INDEX event_outbox_workspace"),
        (EVENTS_OF_PARTITION.as_str(), "USING INDEX sqlite_autoindex_event_outbox_1"),
        (EVENT_BY_ID.as_str(), "USING INDEX event_outbox_id"),
        (DUE_BOUNDARIES, "subscriptions_due"),
        (DUE_EXPIRIES, "credit_grants_expiring"),
    ];
    pages.chain(others).collect()
}

/// A page of a table in either order.
type Pages = LazyLock<[String; 2]>;

static USAGE: Pages = LazyLock::new(|| pages::<UsageLog>("", ""));
static USAGE_OF_FEATURE: Pages =
    LazyLock::new(|| pages::<UsageLog>("indexed by usage_logs_by_feature", "and t.feature_code = ?7"));
static LEDGER: Pages = LazyLock::new(|| pages::<LedgerEntry>("", ""));
static LEDGER_OF_GRANT: Pages =
    LazyLock::new(|| pages::<LedgerEntry>("indexed by ledger_entries_by_grant", "and t.grant_id = ?7"));

/// A page of the workspace ?1, behind the position (?2, ?3), before (?4, ?5), of at most ?6 rows: one range of the
/// index that begins with what is filtered by.
fn pages<T: Table>(index: &str, filter: &str) -> [String; 2] {
    ["asc", "desc"].map(|order| {
        format!(
            "select {} from {} t {index}
where t.workspace_id = ?1 and (t.recorded_at, t.seq) > (?2, ?3) and (t.recorded_at, t.seq) < (?4, ?5) {filter}
order by t.recorded_at {order}, t.seq {order} limit ?6",
            T::select("t"),
            T::NAME
        )
    })
}

fn page(pages: &'static Pages, query: &HistoryQuery) -> Statement<'static> {
    let [ascending, descending] = &**pages;
    let text = match query.order {
        Order::Ascending => ascending,
        Order::Descending => descending,
    };
    let (from, to) = query.bounds();
    sqlx::query(text.as_str())
        .bind(query.workspace_id.0)
        .bind(from.recorded_at.micros())
        .bind(from.seq)
        .bind(to.recorded_at.micros())
        .bind(to.seq)
        .bind(i64::from(query.limit) + 1)
}

static USAGE_LOG: LazyLock<String> = LazyLock::new(|| {
    let columns = UsageLog::select("t");
    format!("select {columns} from usage_logs t where t.workspace_id = ?1 and t.recorded_at = ?2 and t.seq = ?3")
});

static EVENTS_OF_WORKSPACE: LazyLock<String> = LazyLock::new(|| {
    let columns = EventRecord::select("o");
    format!(
        "select {columns} from event_outbox o where o.workspace_id = ?1 and o.workspace_seq > ?2
order by o.workspace_seq limit ?3"
    )
});

static EVENTS_OF_PARTITION: LazyLock<String> = LazyLock::new(|| {
    let columns = EventRecord::select("o");
    format!("select {columns} from event_outbox o where o.partition_id = ?1 and o.seq > ?2 order by o.seq limit ?3")
});

static EVENT_BY_ID: LazyLock<String> = LazyLock::new(|| {
    let columns = EventRecord::select("o");
    format!("select {columns} from event_outbox o where o.event_id = ?1 and (?2 is null or o.workspace_id = ?2)")
});

/// Through the index on the ends of active periods.
const DUE_BOUNDARIES: &str = "
select workspace_id, subscription_id, period_end from subscriptions
where status = 'active' and period_end <= ?1
order by period_end
limit ?2";

/// Through the index on the ends of open grants: the inner limit bounds what is read, the outer one
/// what is returned.
const DUE_EXPIRIES: &str = "
select workspace_id from (
    select workspace_id, expires_at from credit_grants
    where is_open and expires_at is not null and expires_at <= ?1 and source not in ('allowance', 'rollover')
        and remaining > 0
    order by expires_at
    limit ?2
) expired
group by workspace_id
order by min(expires_at)
limit ?3";

const PING: &str = "select 1";

async fn fetch<T: Table>(readers: &SqlitePool, statement: Statement<'_>) -> Result<Vec<T>, StoreError> {
    rows(&in_time(async { statement.fetch_all(readers).await.map_err(store_error) }).await?)
}

async fn fetch_one<T: Table>(readers: &SqlitePool, statement: Statement<'_>) -> Result<Option<T>, StoreError> {
    let found = in_time(async { statement.fetch_optional(readers).await.map_err(store_error) }).await?;
    found.as_ref().map(row).transpose()
}

/// Of each row what the function reads.
async fn fetch_each<T>(
    readers: &SqlitePool,
    statement: Statement<'_>,
    read: impl Fn(Fields<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let found = in_time(async { statement.fetch_all(readers).await.map_err(store_error) }).await?;
    found.iter().map(|row| read(Fields::of(row))).collect()
}

/// Of each partition the events after that number, at most so many. Here a statement costs no way to a server.
pub(super) async fn events_after(
    readers: &SqlitePool,
    after: &[EventPosition],
    limit: u32,
) -> Result<Vec<EventRecord>, StoreError> {
    in_time(async {
        let mut connection = readers.acquire().await.map_err(store_error)?;
        let mut events = Vec::new();
        let after: BTreeMap<_, _> = after.iter().map(|position| (position.partition, position.seq)).collect();
        for (partition, seq) in after {
            let statement = sqlx::query(EVENTS_OF_PARTITION.as_str()).bind(partition.stored()).bind(seq);
            let found = statement.bind(i64::from(limit)).fetch_all(&mut *connection).await.map_err(store_error)?;
            events.extend(rows(&found)?);
        }
        Ok(events)
    })
    .await
}

#[async_trait]
impl Reads for SqliteStore {
    async fn workspace(&self, workspace_id: WorkspaceId) -> Result<Option<WorkspaceState>, StoreError> {
        in_time(async {
            let mut tx = self.readers.begin_with(BEGIN_READING).await.map_err(store_error)?;
            let mut found = states(&mut tx, &self.plans, &[workspace_id]).await?;
            tx.commit().await.map_err(store_error)?;
            Ok(found.remove(&workspace_id).map(|state| *state))
        })
        .await
    }

    async fn usage(
        &self,
        query: &HistoryQuery,
        feature_code: Option<&FeatureCode>,
    ) -> Result<Page<UsageLog>, StoreError> {
        let statement = match feature_code {
            None => page(&USAGE, query),
            Some(code) => page(&USAGE_OF_FEATURE, query).bind(code.as_str()),
        };
        Ok(Page::of(fetch(&self.readers, statement).await?, query.limit))
    }

    async fn usage_log(&self, workspace_id: WorkspaceId, usage_id: UsageId) -> Result<Option<UsageLog>, StoreError> {
        let at = usage_id.recorded_at.micros();
        let statement = sqlx::query(USAGE_LOG.as_str()).bind(workspace_id.0).bind(at).bind(usage_id.seq);
        fetch_one(&self.readers, statement).await
    }

    async fn ledger(&self, query: &HistoryQuery, grant_id: Option<GrantId>) -> Result<Page<LedgerEntry>, StoreError> {
        let statement = match grant_id {
            None => page(&LEDGER, query),
            Some(id) => page(&LEDGER_OF_GRANT, query).bind(id.0),
        };
        Ok(Page::of(fetch(&self.readers, statement).await?, query.limit))
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<EventRecord>, StoreError> {
        match query {
            EventQuery::OfWorkspace { workspace_id, after, limit } => {
                let statement = sqlx::query(EVENTS_OF_WORKSPACE.as_str());
                let statement = statement.bind(workspace_id.0).bind(after).bind(i64::from(*limit));
                fetch(&self.readers, statement).await
            }
            EventQuery::OfAll { after, limit } => events_after(&self.readers, after, *limit).await,
        }
    }

    async fn event(
        &self,
        event_id: EventId,
        workspace_id: Option<WorkspaceId>,
    ) -> Result<Option<EventRecord>, StoreError> {
        let statement = sqlx::query(EVENT_BY_ID.as_str()).bind(event_id.0).bind(workspace_id.map(|id| id.0));
        fetch_one(&self.readers, statement).await
    }

    async fn plans(&self) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
        in_time(async {
            let mut connection = self.readers.acquire().await.map_err(store_error)?;
            let keys = offered_plans(&mut connection).await?;
            let plans = versions(&mut connection, &self.plans, &keys).await?;
            Ok(keys.iter().filter_map(|key| plans.get(key).cloned()).collect())
        })
        .await
    }

    async fn due_boundaries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        let statement = sqlx::query(DUE_BOUNDARIES).bind(now.micros()).bind(i64::from(limit));
        fetch_each(&self.readers, statement, |mut fields| {
            let workspace_id = fields.next()?;
            let work = DueWork::Boundary { subscription_id: fields.next()?, period_end: fields.next()? };
            Ok(DueWorkspace { workspace_id, work })
        })
        .await
    }

    async fn due_expiries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        let grants = i64::from(limit.saturating_mul(EXPIRIES_PER_WORKSPACE));
        let statement = sqlx::query(DUE_EXPIRIES).bind(now.micros()).bind(grants).bind(i64::from(limit));
        fetch_each(&self.readers, statement, |mut fields| {
            Ok(DueWorkspace { workspace_id: fields.next()?, work: DueWork::Expiry })
        })
        .await
    }

    async fn audit(&self, limit: u32) -> Result<Vec<AuditFinding>, StoreError> {
        within(audit::TIMEOUT, audit::run(&self.readers, limit)).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        in_time(async {
            sqlx::query(PING).execute(&self.readers).await.map_err(store_error)?;
            Ok(())
        })
        .await
    }
}
