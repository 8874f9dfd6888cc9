//! What the API and the scheduler read. Pages go by the number of the last row seen, never by offset.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::PgRow;

use super::error::store_error;
use super::load::workspaces;
use super::plans::{all_latest_versions, versions};
use super::rows::{self, get};
use super::write::{Columns, at};
use super::{PostgresStore, audit, in_time};
use crate::domain::entry::Entry;
use crate::domain::event::EventRecord;
use crate::domain::ids::{EventId, SubscriptionId, WorkspaceId};
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::text::FeatureCode;
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageLog;
use crate::store::views::{
    AuditFinding, DueWork, DueWorkspace, EventPosition, EventQuery, HistoryQuery, PAGE_WALK, Page, Step, without_gap,
};
use crate::store::within;
use crate::store::{EXPIRIES_PER_WORKSPACE, Reads, StoreError};

pub(super) const STATEMENTS: &[&str] = &[
    BEGIN_READING,
    USAGE_PAGE,
    LEDGER_PAGE,
    EVENTS_OF_WORKSPACE,
    EVENTS_OF_ALL,
    EVENT_BY_ID,
    DUE_BOUNDARIES,
    DUE_EXPIRIES,
    PING,
];

/// Several statements that must see one state of the database.
pub(super) const BEGIN_READING: &str = "begin isolation level repeatable read, read only";

/// A page of rows of the workspace $1, newest first: numbered below $2, recorded at or after $3 and before $4, at
/// most $6 of those that are wanted. Each row names the one before it, and every 32nd is marked, so the walk
/// begins at the mark above the newest row of the page, or at the workspace's last row. Instants only rise with
/// the numbers, which have no gap: the mark above an instant is found by halving. At most $7 rows are walked over; the
/// last of them comes along whatever it is, to go on from there.
macro_rules! history_page {
    (of: $table:literal, last: $last:literal, seq: $counter:literal, is_wanted: $is_wanted:literal) => {
        concat!(
            "
with recursive head (last, command_id) as (
    select ",
            $counter,
            ", ",
            $last,
            " from workspace_credits where workspace_id = $1
), search (low, high) as (
    select 1::bigint, h.last / 32 + 1 from head h where $4::timestamptz is not null
    union all
    select case when m.recorded_at < $4 then m.seq / 32 + 1 else s.low end,
        case when m.recorded_at < $4 then s.high else m.seq / 32 end
    from search s
    join ",
            $table,
            " m on m.workspace_id = $1 and m.seq = (s.low + s.high) / 2 * 32 and m.seq % 32 = 0
    where s.low < s.high
), newest (mark) as (
    select (least(h.last, $2::bigint - 1, (select low * 32 from search where low = high)) + 31) / 32 * 32 from head h
), walk (command_id, seq, previous_command_id, walked, found_before, is_found) as (
    select null::uuid, least(n.mark, h.last) + 1,
        case when n.mark > h.last then h.command_id else (
            select m.command_id from ",
            $table,
            " m where m.workspace_id = $1 and m.seq = n.mark and m.seq % 32 = 0
        ) end,
        0::bigint, 0, false
    from head h
    cross join newest n
    union all
    select t.command_id, t.seq, t.previous_command_id, w.walked + 1, w.found_before + w.is_found::integer,
        ($2::bigint is null or t.seq < $2) and ($4::timestamptz is null or t.recorded_at < $4)
            and ($5::text is null or ",
            $is_wanted,
            ")
    from walk w
    join ",
            $table,
            " t on t.command_id = w.previous_command_id and t.seq = w.seq - 1
    where t.workspace_id = $1 and ($3::timestamptz is null or t.recorded_at >= $3)
        and w.found_before + w.is_found::integer < $6 and w.walked < $7
)
select t.*, w.is_found, w.walked
from walk w
join ",
            $table,
            " t on t.command_id = w.command_id and t.seq = w.seq
where w.is_found or w.walked = (select max(walked) from walk)
order by t.seq desc"
        )
    };
}

const USAGE_PAGE: &str = history_page!(
    of: "usage_logs", last: "last_usage_command_id", seq: "usage_seq", is_wanted: "t.feature_code = $5"
);

const LEDGER_PAGE: &str = history_page!(
    of: "credit_entries", last: "last_entry_command_id", seq: "entry_seq", is_wanted: "t.to_account = 'consumed:' || $5"
);

/// The events of the workspace $1 after the number $2 and up to $3, walked to as a page of history is.
const EVENTS_OF_WORKSPACE: &str = "
with recursive head (last, event_id) as (
    select event_seq, last_event_id from workspace_credits where workspace_id = $1 and event_seq > $2
), newest (mark) as (
    select (least(h.last, $3) + 31) / 32 * 32 from head h
), walk (event_id, workspace_seq, previous_event_id) as (
    select null::uuid, least(n.mark, h.last) + 1,
        case when n.mark > h.last then h.event_id else (
            select m.event_id from event_outbox m
            where m.workspace_id = $1 and m.workspace_seq = n.mark and m.workspace_seq % 32 = 0
        ) end
    from head h
    cross join newest n
    union all
    select o.event_id, o.workspace_seq, o.previous_event_id
    from walk w
    join event_outbox o on o.event_id = w.previous_event_id
    where o.workspace_id = $1 and o.workspace_seq = w.workspace_seq - 1 and o.workspace_seq > $2
)
select o.*
from walk w
join event_outbox o on o.event_id = w.event_id
where o.workspace_seq <= $3
order by o.workspace_seq";

const EVENTS_OF_ALL: &str = "
select e.*
from unnest($1::smallint[], $2::bigint[]) as a (partition, after)
cross join lateral (
    select * from event_outbox o where o.partition = a.partition and o.seq > a.after order by o.seq limit $3
) e
order by e.partition, e.seq";

const EVENT_BY_ID: &str = "
select * from event_outbox where event_id = $1 and ($2::uuid is null or workspace_id = $2)";

/// Through the index on the ends of active periods.
const DUE_BOUNDARIES: &str = "
select workspace_id, subscription_id, period_end from subscriptions
where status = 'active' and period_end <= $1
order by period_end
limit $2";

/// Through the index on the ends of open grants: the inner limit bounds what is read, the outer one
/// what is returned.
const DUE_EXPIRIES: &str = "
select workspace_id from (
    select workspace_id, expires_at from credit_grants_now
    where is_open and expires_at is not null and expires_at <= $1 and source not in ('allowance', 'rollover')
        and remaining > 0
    order by expires_at
    limit $2
) expired
group by workspace_id
order by min(expires_at)
limit $3";

const PING: &str = "select 1";

impl PostgresStore {
    async fn history<T>(
        &self,
        query: &HistoryQuery,
        page: &'static str,
        decode: impl Fn(&PgRow) -> Result<T, StoreError> + Send,
    ) -> Result<Page<T>, StoreError> {
        let statement = sqlx::query(page)
            .bind(query.workspace_id.0)
            .bind(query.before_seq)
            .bind(query.from.map(at))
            .bind(query.to.map(at))
            .bind(query.feature_code.as_ref().map(FeatureCode::as_str))
            .bind(i64::from(query.limit) + 1)
            .bind(PAGE_WALK);
        let rows = in_time(async { statement.fetch_all(&self.reads).await.map_err(store_error) }).await?;
        let steps = rows.iter().map(|row| {
            let found = get::<bool>(row, "is_found")?.then(|| decode(row)).transpose()?;
            Ok(Step { walked: get(row, "walked")?, seq: get(row, "seq")?, found })
        });
        Page::of(query, steps)
    }

    /// Of each partition the events after that number, at most so many.
    pub(super) async fn events_after(
        &self,
        after: &[EventPosition],
        limit: u32,
    ) -> Result<Vec<EventRecord>, StoreError> {
        let statement = sqlx::query(EVENTS_OF_ALL)
            .column(after, |position| position.partition.stored())
            .column(after, |position| position.seq)
            .bind(i64::from(limit));
        let rows = in_time(async { statement.fetch_all(&self.reads).await.map_err(store_error) }).await?;
        rows.iter().map(rows::event).collect()
    }
}

#[async_trait]
impl Reads for PostgresStore {
    async fn workspace(&self, workspace_id: WorkspaceId) -> Result<Option<WorkspaceState>, StoreError> {
        in_time(async {
            let mut tx = self.reads.begin_with(BEGIN_READING).await.map_err(store_error)?;
            let mut found = workspaces(&mut tx, &self.plans, &[workspace_id.0]).await?;
            tx.commit().await.map_err(store_error)?;
            Ok(found.remove(&workspace_id).map(|state| *state))
        })
        .await
    }

    async fn usage(&self, query: &HistoryQuery) -> Result<Page<UsageLog>, StoreError> {
        self.history(query, USAGE_PAGE, rows::usage_log).await
    }

    async fn ledger(&self, query: &HistoryQuery) -> Result<Page<Entry>, StoreError> {
        self.history(query, LEDGER_PAGE, rows::entry).await
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<EventRecord>, StoreError> {
        match query {
            EventQuery::OfWorkspace { workspace_id, after, limit } => {
                let statement = sqlx::query(EVENTS_OF_WORKSPACE)
                    .bind(workspace_id.0)
                    .bind(after)
                    .bind(after.saturating_add(i64::from(*limit)));
                let rows = in_time(async { statement.fetch_all(&self.reads).await.map_err(store_error) }).await?;
                without_gap(*after, rows.iter().map(rows::event).collect::<Result<_, _>>()?)
            }
            EventQuery::OfAll { after, limit } => self.events_after(after, *limit).await,
        }
    }

    async fn event(
        &self,
        event_id: EventId,
        workspace_id: Option<WorkspaceId>,
    ) -> Result<Option<EventRecord>, StoreError> {
        let statement = sqlx::query(EVENT_BY_ID).bind(event_id.0).bind(workspace_id.map(|id| id.0));
        let row = in_time(async { statement.fetch_optional(&self.reads).await.map_err(store_error) }).await?;
        row.as_ref().map(rows::event).transpose()
    }

    async fn plans(&self) -> Result<Vec<Arc<PlanVersion>>, StoreError> {
        in_time(async {
            let mut connection = self.reads.acquire().await.map_err(store_error)?;
            let keys = all_latest_versions(&mut connection).await?;
            let plans = versions(&mut connection, &self.plans, &keys).await?;
            Ok(keys.iter().filter_map(|key| plans.get(key).cloned()).collect())
        })
        .await
    }

    async fn due_boundaries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        let statement = sqlx::query(DUE_BOUNDARIES).bind(at(now)).bind(i64::from(limit));
        let rows = in_time(async { statement.fetch_all(&self.reads).await.map_err(store_error) }).await?;
        rows.iter()
            .map(|row| {
                let subscription_id = SubscriptionId(get(row, "subscription_id")?);
                let work = DueWork::Boundary { subscription_id, period_end: rows::at(row, "period_end")? };
                Ok(DueWorkspace { workspace_id: rows::workspace_id(row)?, work })
            })
            .collect()
    }

    async fn due_expiries(&self, now: Timestamp, limit: u32) -> Result<Vec<DueWorkspace>, StoreError> {
        let grants = limit.saturating_mul(EXPIRIES_PER_WORKSPACE);
        let statement = sqlx::query(DUE_EXPIRIES).bind(at(now)).bind(i64::from(grants)).bind(i64::from(limit));
        let rows = in_time(async { statement.fetch_all(&self.reads).await.map_err(store_error) }).await?;
        let due = |row| Ok(DueWorkspace { workspace_id: rows::workspace_id(row)?, work: DueWork::Expiry });
        rows.iter().map(due).collect()
    }

    async fn audit(&self, limit: u32) -> Result<Vec<AuditFinding>, StoreError> {
        within(audit::TIMEOUT, audit::run(&self.reads, limit)).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        in_time(async {
            let mut held = self.writes.take().await?;
            sqlx::query(PING).execute(held.connection()).await.map_err(store_error)?;
            held.put_back();
            Ok(())
        })
        .await
    }
}
