//! What the API and the scheduler read. Pages go by the number of the last row seen, never by offset.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};

use super::error::store_error;
use super::load::workspaces;
use super::plans::{all_latest_versions, versions};
use super::rows::{self, get};
use super::write::{Columns, at};
use super::{PostgresStore, audit, in_time};
use crate::domain::entry::Entry;
use crate::domain::event::EventRecord;
use crate::domain::ids::{EventId, Partition, SubscriptionId, WorkspaceId};
use crate::domain::plan::PlanVersion;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageLog;
use crate::store::views::{
    AuditFinding, CommandRange, DueWork, DueWorkspace, EventQuery, Gathered, HistoryQuery, PAGE_SCAN_COMMANDS, Page,
};
use crate::store::within;
use crate::store::{EXPIRIES_PER_WORKSPACE, Reads, StoreError};

pub(super) const STATEMENTS: &[&str] = &[
    BEGIN_READING,
    USAGE_RANGE,
    LEDGER_RANGE,
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

/// The commands that a page may come from, of the workspace $1: with rows numbered below $2, recorded at or
/// after $3 and before $4, and of those the last $5. The numbers and instants of a workspace's commands
/// only rise, and their `seq` has no gap, so each end is found by halving: some twenty looks by index in a
/// million commands.
macro_rules! command_range {
    ($counter:literal) => {
        concat!(
            "
with recursive head (last) as (
    select coalesce((select seq from commands where workspace_id = $1 order by seq desc limit 1), 0)
), search (bound, low, high) as (
    select b.bound, 1::bigint, h.last + 1
    from (
        select 'number' as bound where $2::bigint is not null
        union all select 'from' where $3::timestamptz is not null
        union all select 'to' where $4::timestamptz is not null
    ) b
    cross join head h
    union all
    select s.bound,
        case when case s.bound
            when 'number' then c.",
            $counter,
            " < $2 - 1
            when 'from' then c.recorded_at < $3
            else c.recorded_at < $4
        end then c.seq + 1 else s.low end,
        case when case s.bound
            when 'number' then c.",
            $counter,
            " < $2 - 1
            when 'from' then c.recorded_at < $3
            else c.recorded_at < $4
        end then s.high else c.seq end
    from search s
    join commands c on c.workspace_id = $1 and c.seq = (s.low + s.high) / 2
    where s.low < s.high
), found (first, last) as (
    select coalesce((select low from search where bound = 'from' and low = high), 1),
        least(h.last,
            coalesce((select low from search where bound = 'number' and low = high), h.last),
            coalesce((select low - 1 from search where bound = 'to' and low = high), h.last))
    from head h
), looked_at (first, last, from_start) as (
    select greatest(first, last - $5 + 1), last, first from found
)
select l.first, l.last, (
    select c.",
            $counter,
            " + 1 from commands c
    where c.workspace_id = $1 and c.seq = l.first - 1 and l.first > l.from_start and c.",
            $counter,
            " > 0
) as next_before_seq
from looked_at l"
        )
    };
}

const USAGE_RANGE: &str = command_range!("usage_seq");

const LEDGER_RANGE: &str = command_range!("entry_seq");

const USAGE_PAGE: &str = "
select u.*
from commands c
join usage_logs u on u.command_id = c.command_id
where c.workspace_id = $1 and c.seq >= $2 and c.seq <= $3
    and u.workspace_id = c.workspace_id and ($4::bigint is null or u.seq < $4)
    and ($5::text is null or u.feature_code = $5)
order by c.seq desc
limit $6";

const LEDGER_PAGE: &str = "
select e.*
from commands c
join credit_entries e on e.command_id = c.command_id
where c.workspace_id = $1 and c.seq >= $2 and c.seq <= $3
    and e.workspace_id = c.workspace_id and ($4::bigint is null or e.seq < $4)
    and ($5::text is null or e.to_account = 'consumed:' || $5)
order by c.seq desc, e.seq desc
limit $6";

/// The first command with an event after $2 is found by halving. From there on $5 commands are looked at,
/// so there is an event at least if there is any; which is the workspace's last one is told with each.
const EVENTS_OF_WORKSPACE: &str = "
with recursive head (last, last_event) as (
    select seq, event_seq from commands where workspace_id = $1 order by seq desc limit 1
), search (low, high) as (
    select 1::bigint, h.last + 1 from head h
    union all
    select case when c.event_seq <= $2 then c.seq + 1 else s.low end,
        case when c.event_seq <= $2 then s.high else c.seq end
    from search s
    join commands c on c.workspace_id = $1 and c.seq = (s.low + s.high) / 2
    where s.low < s.high
)
select o.*, h.last_event
from head h
cross join (select low from search where low = high) f
cross join commands c
cross join lateral generate_series(c.outbox_seq - c.event_count + 1, c.outbox_seq) as n (seq)
join event_outbox o on o.partition = $3 and o.seq = n.seq
where c.workspace_id = $1 and c.seq >= f.low and c.seq < f.low + $5 and c.event_count > 0
    and o.workspace_id = c.workspace_id and o.workspace_seq > $2
order by c.seq, o.seq
limit $4";

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
    /// A page of history: the commands that it may come from, and then its rows.
    async fn history<T>(
        &self,
        query: &HistoryQuery,
        [range_of, page_of]: [&'static str; 2],
        row: impl Fn(&PgRow) -> Result<T, StoreError> + Send,
        seq: impl Fn(&T) -> i64,
    ) -> Result<Page<T>, StoreError> {
        let (range, rows) = in_time(async {
            let mut connection = self.reads.acquire().await.map_err(store_error)?;
            let range = range(&mut connection, range_of, query).await?;
            let statement = sqlx::query(page_of)
                .bind(query.workspace_id.0)
                .bind(range.first)
                .bind(range.last)
                .bind(query.before_seq)
                .bind(query.feature_code.as_ref().map(crate::domain::text::FeatureCode::as_str))
                .bind(i64::from(query.limit) + 1);
            Ok((range, statement.fetch_all(&mut *connection).await.map_err(store_error)?))
        })
        .await?;
        let rows = rows.iter().map(row).collect::<Result<_, _>>()?;
        Ok(Page::of(rows, query.limit, range, seq))
    }

    /// Over stretches of commands without events as well, each of a bounded look.
    async fn events_of_workspace(
        &self,
        workspace_id: WorkspaceId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<EventRecord>, StoreError> {
        let mut gathered = Gathered::new(after, limit);
        loop {
            let (after, wanted) = gathered.wanted();
            let rows = sqlx::query(EVENTS_OF_WORKSPACE)
                .bind(workspace_id.0)
                .bind(after)
                .bind(Partition::of(workspace_id).stored())
                .bind(wanted)
                .bind(PAGE_SCAN_COMMANDS)
                .fetch_all(&self.reads)
                .await
                .map_err(store_error)?;
            let last = rows.last().map(|row| get(row, "last_event")).transpose()?;
            match gathered.add(rows.iter().map(rows::event).collect::<Result<_, _>>()?, last) {
                Ok(events) => return Ok(events),
                Err(unfinished) => gathered = unfinished,
            }
        }
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
        self.history(query, [USAGE_RANGE, USAGE_PAGE], rows::usage_log, |row| row.seq).await
    }

    async fn ledger(&self, query: &HistoryQuery) -> Result<Page<Entry>, StoreError> {
        self.history(query, [LEDGER_RANGE, LEDGER_PAGE], rows::entry, |row| row.seq).await
    }

    async fn events(&self, query: &EventQuery) -> Result<Vec<EventRecord>, StoreError> {
        match query {
            EventQuery::OfWorkspace { workspace_id, after, limit } => {
                in_time(self.events_of_workspace(*workspace_id, *after, *limit)).await
            }
            EventQuery::OfAll { after, limit } => {
                let statement = sqlx::query(EVENTS_OF_ALL)
                    .column(after, |position| position.partition.stored())
                    .column(after, |position| position.seq)
                    .bind(i64::from(*limit));
                let rows = in_time(async { statement.fetch_all(&self.reads).await.map_err(store_error) }).await?;
                rows.iter().map(rows::event).collect()
            }
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

/// Which commands the page may come from: with rows below `before_seq`, recorded at or after the first
/// instant and before the second.
async fn range(
    connection: &mut PgConnection,
    statement: &'static str,
    query: &HistoryQuery,
) -> Result<CommandRange, StoreError> {
    let statement = sqlx::query(statement)
        .bind(query.workspace_id.0)
        .bind(query.before_seq)
        .bind(query.from.map(at))
        .bind(query.to.map(at))
        .bind(PAGE_SCAN_COMMANDS);
    let row = statement.fetch_one(connection).await.map_err(store_error)?;
    Ok(CommandRange {
        first: get(&row, "first")?,
        last: get(&row, "last")?,
        next_before_seq: get(&row, "next_before_seq")?,
    })
}
