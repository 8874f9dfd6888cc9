//! The publisher's view of the outbox. Leases are timed by the clock that SQLite reads within the
//! statement, which is the same for every process on the machine.
//!
//! Taking a lease and recording batches are write transactions, so they are serial. Recording checks
//! that the epochs are in force, so two publishers can never both record.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;

use super::connection::Transaction;
use super::database::SqliteStore;
use super::error::store_error;
use super::rows::json_of;
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
    LEASES_IN_FORCE,
    INSERT_BATCHES,
    MARK_DIVERGED,
    RAISE_FLOOR,
    DELETE_BATCHES,
    START_GENERATION,
    STATUS,
];

/// The database's time in microseconds since 1970, with a resolution of a millisecond.
macro_rules! now {
    () => {
        "(cast(round(unixepoch('subsec') * 1000) as integer) * 1000)"
    };
}

const TAKE_LEASES: &str = concat!(
    "
update stream_leases
set epoch = case when owner = ?1 and leased_until > ",
    now!(),
    " then epoch else epoch + 1 end, owner = ?1, leased_until = ",
    now!(),
    " + ?2
where owner is null or owner = ?1 or leased_until <= ",
    now!(),
    "
returning partition_id, owner, epoch, generation, diverged_seq, floor_seq, coalesce((
    select max(b.seq_to) from stream_batches b
    where b.partition_id = stream_leases.partition_id and b.generation = stream_leases.generation
), stream_leases.floor_seq - 1) as published_seq"
);

const RELEASE_LEASES: &str = "
update stream_leases set owner = null, leased_until = 0 where owner = ?1";

const HEADS: &str = "
select partition_id, seq from outbox_partitions order by partition_id";

const LEASES_IN_FORCE: &str = "
select l.partition_id
from jsonb_each(?1) n
join stream_leases l on l.partition_id = n.value ->> 0 and l.owner = n.value ->> 1 and l.epoch = n.value ->> 2
    and l.generation = n.value ->> 3";

const INSERT_BATCHES: &str = concat!(
    "
insert into stream_batches (partition_id, generation, seq_from, seq_to, published_at)
select n.partition_id, n.generation, n.last_seq + 1, n.seq_to, ",
    now!(),
    "
from (
    select n.value ->> 0 as partition_id, n.value ->> 1 as generation, n.value ->> 2 as seq_to, coalesce((
        select max(b.seq_to) from stream_batches b
        where b.partition_id = l.partition_id and b.generation = n.value ->> 1
    ), l.floor_seq - 1) as last_seq
    from jsonb_each(?1) n
    join stream_leases l on l.partition_id = n.value ->> 0
) n
where n.last_seq < n.seq_to"
);

const MARK_DIVERGED: &str = "
update stream_leases set diverged_seq = ?5
where partition_id = ?1 and owner = ?2 and epoch = ?3 and generation = ?4";

/// The batches after the floor are found by the primary key, the oldest first; an index on the time would cost every
/// batch, and save reading some thousands of them a minute.
const RAISE_FLOOR: &str = concat!(
    "
update stream_leases set floor_seq = max(floor_seq, min(
    (
        select coalesce(max(b.seq_to), 0) + 1
        from (
            select s.seq_to, s.published_at from stream_batches s
            where s.partition_id = ?1 and s.generation = ?4 and s.seq_to >= stream_leases.floor_seq
            order by s.seq_to limit ?7
        ) b
        where b.published_at < ",
    now!(),
    " - ?5
    ),
    (
        select coalesce(max(s.seq_to), 0) - ?6 from stream_batches s
        where s.partition_id = ?1 and s.generation = ?4
    )
))
where partition_id = ?1 and owner = ?2 and epoch = ?3 and generation = ?4
returning floor_seq"
);

/// The primary key gives a partition's batches in the order of time: earlier generations come first. So it looks only
/// at the oldest, and needs no index on the time. A trigger keeps the batches from the floor on, too.
const DELETE_BATCHES: &str = concat!(
    "
delete from stream_batches
where partition_id = ?1 and (generation, seq_to) in (
    select oldest.generation, oldest.seq_to
    from (
        select s.generation, s.seq_to, s.published_at from stream_batches s
        where s.partition_id = ?1
        order by s.generation, s.seq_to limit ?3
    ) oldest
    join stream_leases l on l.partition_id = ?1
    where oldest.published_at < ",
    now!(),
    " - ?2 and (oldest.generation < l.generation or oldest.seq_to < l.floor_seq)
)"
);

const START_GENERATION: &str = "
update stream_leases set generation = generation + 1, diverged_seq = null where partition_id = ?1 returning generation";

const STATUS: &str = concat!(
    "
select l.partition_id, l.generation, l.seq, l.published_seq, l.floor_seq, l.diverged_seq, l.owner, l.epoch,
    case when l.owner is not null and l.leased_until > ",
    now!(),
    " then l.leased_until end as leased_until,
    (select o.recorded_at from event_outbox o
        where o.partition_id = l.partition_id and o.seq > l.published_seq order by o.seq limit 1) as oldest_waiting_at
from (
    select l.*, p.seq, coalesce((
        select max(b.seq_to) from stream_batches b where b.partition_id = l.partition_id and b.generation = l.generation
    ), l.floor_seq - 1) as published_seq
    from stream_leases l
    join outbox_partitions p on p.partition_id = l.partition_id
) l
order by l.partition_id"
);

#[async_trait]
impl Outbox for SqliteStore {
    async fn lease(&self, owner: &str, ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        let ttl_us = micros_of(ttl);
        with_answer_timeout(async {
            let mut tx = self.writer.begin().await?;
            let statement = sqlx::query(TAKE_LEASES).bind(owner).bind(ttl_us);
            let rows = statement.fetch_all(tx.connection()).await.map_err(store_error)?;
            let mut leases = each(&rows, Lease::read)?;
            tx.commit().await?;
            leases.sort_by_key(|lease| lease.partition);
            Ok(leases)
        })
        .await
    }

    async fn release(&self, owner: &str) -> Result<(), StoreError> {
        with_answer_timeout(async {
            let mut tx = self.writer.begin().await?;
            sqlx::query(RELEASE_LEASES).bind(owner).execute(tx.connection()).await.map_err(store_error)?;
            tx.commit().await
        })
        .await
    }

    async fn heads(&self) -> Result<Vec<EventPosition>, StoreError> {
        let rows =
            with_answer_timeout(async { sqlx::query(HEADS).fetch_all(&self.readers).await.map_err(store_error) })
                .await?;
        each(&rows, EventPosition::read)
    }

    async fn read_each(&self, after: &[EventPosition], limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        with_answer_timeout(async { self.reader().await?.events_after(after, limit).await }).await
    }

    async fn record(&self, publications: &[Publication]) -> Result<Vec<Recorded>, StoreError> {
        with_answer_timeout(async {
            let mut tx = self.writer.begin().await?;
            let held = leases_in_force(&mut tx, publications).await?;
            insert_batches(&mut tx, publications, &held).await?;
            tx.commit().await?;
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
        with_answer_timeout(async {
            let mut tx = self.writer.begin().await?;
            let marked = statement.execute(tx.connection()).await.map_err(store_error)?;
            tx.commit().await?;
            Ok(if marked.rows_affected() == 1 { Recorded::Done } else { Recorded::LeaseLost })
        })
        .await
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
            let mut tx = self.writer.begin().await?;
            let row = statement.fetch_optional(tx.connection()).await.map_err(store_error)?;
            let floor_seq = row.map(|row| Fields::of(&row).next()).transpose()?;
            tx.commit().await?;
            Ok(floor_seq)
        })
        .await
    }

    async fn delete_batches(&self, partition: Partition, retain: Duration, limit: u32) -> Result<u64, StoreError> {
        let statement =
            sqlx::query(DELETE_BATCHES).bind(partition.stored()).bind(micros_of(retain)).bind(i64::from(limit));
        with_answer_timeout(async {
            let mut tx = self.writer.begin().await?;
            let deleted = statement.execute(tx.connection()).await.map_err(store_error)?;
            tx.commit().await?;
            Ok(deleted.rows_affected())
        })
        .await
    }

    async fn start_generation(&self, partition: Partition) -> Result<i32, StoreError> {
        with_answer_timeout(async {
            let mut tx = self.writer.begin().await?;
            let statement = sqlx::query(START_GENERATION).bind(partition.stored());
            let row = statement.fetch_one(tx.connection()).await.map_err(store_error)?;
            let generation = Fields::of(&row).next()?;
            tx.commit().await?;
            Ok(generation)
        })
        .await
    }

    async fn status(&self) -> Result<Vec<PartitionStatus>, StoreError> {
        let rows =
            with_answer_timeout(async { sqlx::query(STATUS).fetch_all(&self.readers).await.map_err(store_error) })
                .await?;
        each(&rows, PartitionStatus::read)
    }
}

async fn leases_in_force(
    tx: &mut Transaction,
    publications: &[Publication],
) -> Result<BTreeSet<Partition>, StoreError> {
    let leases = json_of(publications, |row, Publication { lease, .. }| {
        row.add(&lease.partition).add(&lease.owner).add(&lease.epoch).add(&lease.generation);
    });
    let rows = sqlx::query(LEASES_IN_FORCE).bind(leases).fetch_all(tx.connection()).await.map_err(store_error)?;
    rows.iter().map(|row| Fields::of(row).next()).collect()
}

async fn insert_batches(
    tx: &mut Transaction,
    publications: &[Publication],
    held: &BTreeSet<Partition>,
) -> Result<(), StoreError> {
    let recorded = publications.iter().filter(|publication| held.contains(&publication.lease.partition));
    let batches = json_of(recorded, |row, Publication { lease, seq_to }| {
        row.add(&lease.partition).add(&lease.generation).add(seq_to);
    });
    sqlx::query(INSERT_BATCHES).bind(batches).execute(tx.connection()).await.map_err(store_error)?;
    Ok(())
}
