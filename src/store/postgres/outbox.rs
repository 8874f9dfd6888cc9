//! The publisher's view of the outbox. Leases are timed by the database's clock.
//!
//! Taking a lease and recording batches both lock rows of `stream_leases`. Recording checks under the
//! lock that the epochs are in force, so two publishers can never both record.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Postgres, Transaction};

use super::connection::BEGIN;
use super::database::PostgresStore;
use super::error::store_error;
use crate::domain::cloud_event::EventRecord;
use crate::domain::ids::Partition;
use crate::store::Outbox;
use crate::store::columns::Fields;
use crate::store::dialect::{Dialect, each};
use crate::store::error::{StoreError, with_answer_timeout};
use crate::store::queries::{
    BATCHES_PER_RAISE, EventPosition, Lease, MIN_EVENTS_IN_STREAM, PartitionStatus, Publication, Recorded, micros_of,
};
use crate::store::reads::Database;

pub(super) const STATEMENTS: &[&str] = &[
    TAKE_LEASES,
    RELEASE_LEASES,
    HEADS,
    LOCK_LEASES,
    INSERT_BATCHES,
    MARK_DIVERGED,
    KEY_ORDER,
    RAISE_FLOOR,
    DELETE_BATCHES,
    START_GENERATION,
    STATUS,
];

/// It waits for locks on its own leases and skips locked leases of others, so a publisher that is
/// recording does not lose its lease to a statement that waited for it.
const TAKE_LEASES: &str = "
with own as (
    select partition_id from stream_leases where owner = $1 order by partition_id for update
), free as (
    select partition_id from stream_leases
    where owner is distinct from $1 and (owner is null or leased_until <= clock_timestamp())
    order by partition_id
    for update skip locked
), taken as (
    update stream_leases l
    set epoch = case when l.owner = $1 and l.leased_until > clock_timestamp() then l.epoch else l.epoch + 1 end,
        owner = $1,
        leased_until = clock_timestamp() + $2::bigint * interval '1 microsecond'
    from (select partition_id from own union all select partition_id from free) m
    where l.partition_id = m.partition_id
    returning l.partition_id, l.owner, l.epoch, l.generation, l.diverged_seq, l.floor_seq
)
select t.*, coalesce((
    select b.seq_to from stream_batches b
    where b.partition_id = t.partition_id and b.generation = t.generation
    order by b.seq_to desc limit 1
), t.floor_seq - 1) as published_seq
from taken t
order by t.partition_id";

const RELEASE_LEASES: &str = "
update stream_leases set owner = null, leased_until = '-infinity' where owner = $1";

const HEADS: &str = "
select partition_id, seq from outbox_partitions order by partition_id";

/// A separate statement, because waiting for a lock does not refresh the snapshot of the statement that
/// waits. The next statement must see what an earlier call recorded, even if its answer was lost.
const LOCK_LEASES: &str = "
select l.partition_id
from stream_leases l
join unnest($1::smallint[], $2::text[], $3::bigint[], $4::integer[]) as n (partition_id, owner, epoch, generation)
    using (partition_id, owner, epoch, generation)
order by l.partition_id
for update of l";

const INSERT_BATCHES: &str = "
insert into stream_batches (partition_id, generation, seq_from, seq_to, published_at)
select n.partition_id, n.generation, last.seq + 1, n.seq_to, clock_timestamp()
from unnest($1::smallint[], $2::integer[], $3::bigint[]) as n (partition_id, generation, seq_to)
join stream_leases l on l.partition_id = n.partition_id
cross join lateral (
    select coalesce(max(b.seq_to), l.floor_seq - 1) as seq from stream_batches b
    where b.partition_id = n.partition_id and b.generation = n.generation
) last
where last.seq < n.seq_to";

const MARK_DIVERGED: &str = "
update stream_leases set diverged_seq = $5
where partition_id = $1 and owner = $2 and epoch = $3 and generation = $4";

/// For statements that read the first rows of many. Where statistics are missing, the planner would collect all of them
/// by a bitmap and sort them.
const KEY_ORDER: &str = "
select set_config('enable_bitmapscan', 'off', true)";

/// The batches after the floor are found by the primary key, the oldest first; an index on the time would cost every
/// batch, and save reading some thousands of them a minute. A statement that waits for the lease's row keeps its snapshot of
/// the batches, so the floor may be lower than it could be, never higher.
const RAISE_FLOOR: &str = "
update stream_leases l set floor_seq = greatest(l.floor_seq, least(
    (
        select coalesce(max(b.seq_to), 0) + 1
        from (
            select s.seq_to, s.published_at from stream_batches s
            where s.partition_id = $1 and s.generation = $4 and s.seq_to >= l.floor_seq
            order by s.seq_to limit $7
        ) b
        where b.published_at < clock_timestamp() - $5::bigint * interval '1 microsecond'
    ),
    (
        select coalesce(max(s.seq_to), 0) - $6 from stream_batches s
        where s.partition_id = $1 and s.generation = $4
    )
))
where l.partition_id = $1 and l.owner = $2 and l.epoch = $3 and l.generation = $4
returning l.floor_seq";

/// The primary key gives a partition's batches in the order of time: earlier generations come first. So it looks only
/// at the oldest, and needs no index on the time. A trigger keeps the batches from the floor on, too.
const DELETE_BATCHES: &str = "
delete from stream_batches b
using (
    select s.generation, s.seq_to from stream_batches s
    where s.partition_id = $1
    order by s.generation, s.seq_to limit $3
) oldest, stream_leases l
where b.partition_id = $1 and b.generation = oldest.generation and b.seq_to = oldest.seq_to
    and b.published_at < clock_timestamp() - $2::bigint * interval '1 microsecond'
    and l.partition_id = $1 and (b.generation < l.generation or b.seq_to < l.floor_seq)";

const START_GENERATION: &str = "
update stream_leases set generation = generation + 1, diverged_seq = null where partition_id = $1 returning generation";

const STATUS: &str = "
select l.partition_id, l.generation, p.seq, b.seq_to as published_seq, l.floor_seq, l.diverged_seq, l.owner, l.epoch,
    case when l.owner is not null and l.leased_until > clock_timestamp() then l.leased_until end as leased_until,
    (select o.recorded_at from event_outbox o where o.partition_id = l.partition_id and o.seq > b.seq_to order by o.seq limit 1)
        as oldest_waiting_at
from stream_leases l
join outbox_partitions p on p.partition_id = l.partition_id
cross join lateral (
    select coalesce(max(s.seq_to), l.floor_seq - 1) as seq_to from stream_batches s
    where s.partition_id = l.partition_id and s.generation = l.generation
) b
order by l.partition_id";

#[async_trait]
impl Outbox for PostgresStore {
    async fn lease(&self, owner: &str, ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        let ttl_us = micros_of(ttl);
        let rows = with_answer_timeout(async {
            sqlx::query(TAKE_LEASES).bind(owner).bind(ttl_us).fetch_all(&self.reads).await.map_err(store_error)
        })
        .await?;
        each(&rows, Lease::read)
    }

    async fn release(&self, owner: &str) -> Result<(), StoreError> {
        with_answer_timeout(async {
            sqlx::query(RELEASE_LEASES).bind(owner).execute(&self.reads).await.map_err(store_error)?;
            Ok(())
        })
        .await
    }

    async fn heads(&self) -> Result<Vec<EventPosition>, StoreError> {
        let rows =
            with_answer_timeout(async { sqlx::query(HEADS).fetch_all(&self.reads).await.map_err(store_error) }).await?;
        each(&rows, EventPosition::read)
    }

    async fn read_each(&self, after: &[EventPosition], limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        with_answer_timeout(async { self.reader().await?.events_after(after, limit).await }).await
    }

    async fn record(&self, publications: &[Publication]) -> Result<Vec<Recorded>, StoreError> {
        with_answer_timeout(async {
            let mut tx = self.begin_on_reader(BEGIN).await?;
            let held = lock_leases(&mut tx, publications).await?;
            insert_batches(&mut tx, publications, &held).await?;
            tx.commit().await.map_err(store_error)?;
            Ok(Recorded::of_each(publications, &held))
        })
        .await
    }

    async fn mark_diverged(&self, lease: &Lease, seq: i64) -> Result<Recorded, StoreError> {
        let statement = sqlx::query(MARK_DIVERGED)
            .bind(lease.partition.stored())
            .bind(&lease.owner)
            .bind(lease.epoch)
            .bind(lease.generation)
            .bind(seq);
        let marked = with_answer_timeout(async { statement.execute(&self.reads).await.map_err(store_error) }).await?;
        Ok(if marked.rows_affected() == 1 { Recorded::Done } else { Recorded::LeaseLost })
    }

    async fn raise_floor(&self, lease: &Lease, retain: Duration) -> Result<Option<i64>, StoreError> {
        let statement = sqlx::query(RAISE_FLOOR)
            .bind(lease.partition.stored())
            .bind(&lease.owner)
            .bind(lease.epoch)
            .bind(lease.generation)
            .bind(micros_of(retain))
            .bind(MIN_EVENTS_IN_STREAM)
            .bind(i64::from(BATCHES_PER_RAISE));
        with_answer_timeout(async {
            let mut tx = self.begin_in_key_order().await?;
            let row = statement.fetch_optional(&mut *tx).await.map_err(store_error)?;
            tx.commit().await.map_err(store_error)?;
            row.map(|row| Fields::of(&row).next()).transpose()
        })
        .await
    }

    async fn delete_batches(&self, partition: Partition, retain: Duration, limit: u32) -> Result<u64, StoreError> {
        let statement =
            sqlx::query(DELETE_BATCHES).bind(partition.stored()).bind(micros_of(retain)).bind(i64::from(limit));
        with_answer_timeout(async {
            let mut tx = self.begin_in_key_order().await?;
            let deleted = statement.execute(&mut *tx).await.map_err(store_error)?;
            tx.commit().await.map_err(store_error)?;
            Ok(deleted.rows_affected())
        })
        .await
    }

    async fn start_generation(&self, partition: Partition) -> Result<i32, StoreError> {
        let statement = sqlx::query(START_GENERATION).bind(partition.stored());
        let row = with_answer_timeout(async { statement.fetch_one(&self.reads).await.map_err(store_error) }).await?;
        Fields::of(&row).next()
    }

    async fn status(&self) -> Result<Vec<PartitionStatus>, StoreError> {
        let rows = with_answer_timeout(async { sqlx::query(STATUS).fetch_all(&self.reads).await.map_err(store_error) })
            .await?;
        each(&rows, PartitionStatus::read)
    }
}

impl PostgresStore {
    async fn begin_in_key_order(&self) -> Result<Transaction<'_, Postgres>, StoreError> {
        let mut tx = self.begin_on_reader(BEGIN).await?;
        sqlx::query(KEY_ORDER).execute(&mut *tx).await.map_err(store_error)?;
        Ok(tx)
    }
}

/// The partitions whose leases are in force, locked.
async fn lock_leases(
    tx: &mut Transaction<'_, Postgres>,
    publications: &[Publication],
) -> Result<BTreeSet<Partition>, StoreError> {
    let leases = || publications.iter().map(|publication| &publication.lease);
    let rows = sqlx::query(LOCK_LEASES)
        .bind(leases().map(|lease| lease.partition.stored()).collect::<Vec<_>>())
        .bind(leases().map(|lease| lease.owner.as_str()).collect::<Vec<_>>())
        .bind(leases().map(|lease| lease.epoch).collect::<Vec<_>>())
        .bind(leases().map(|lease| lease.generation).collect::<Vec<_>>())
        .fetch_all(&mut **tx)
        .await
        .map_err(store_error)?;
    rows.iter().map(|row| Fields::of(row).next()).collect()
}

async fn insert_batches(
    tx: &mut Transaction<'_, Postgres>,
    publications: &[Publication],
    held: &BTreeSet<Partition>,
) -> Result<(), StoreError> {
    let recorded = || publications.iter().filter(|publication| held.contains(&publication.lease.partition));
    sqlx::query(INSERT_BATCHES)
        .bind(recorded().map(|publication| publication.lease.partition.stored()).collect::<Vec<_>>())
        .bind(recorded().map(|publication| publication.lease.generation).collect::<Vec<_>>())
        .bind(recorded().map(|publication| publication.seq_to).collect::<Vec<_>>())
        .execute(&mut **tx)
        .await
        .map_err(store_error)?;
    Ok(())
}
