//! The outbox as the publisher sees it. Leases are told by the database's clock: SQLite has none but
//! the machine's, so it is asked within the statement, and every process on the file sees the same.
//!
//! Taking a lease and recording batches are write transactions, so they are serial: who records has
//! shown that its epochs are still in force, and two publishers can never both record.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;

use super::connection::Transaction;
use super::error::store_error;
use super::rows::{self, get};
use super::{SqliteStore, in_time, json};
use crate::domain::event::EventRecord;
use crate::domain::ids::Partition;
use crate::store::views::{EventPosition, Lease, PartitionStatus, Publication, Recorded};
use crate::store::{Outbox, StoreError};

pub(super) const STATEMENTS: &[&str] = &[
    TAKE_LEASES,
    RELEASE_LEASES,
    HEADS,
    EVENTS_OF_PARTITION,
    LEASES_IN_FORCE,
    INSERT_BATCHES,
    MARK_DIVERGED,
    START_GENERATION,
    STATUS,
];

/// The database's clock, in microseconds since 1970. It has a resolution of a millisecond.
macro_rules! now {
    () => {
        "(cast(round(unixepoch('subsec') * 1000) as integer) * 1000)"
    };
}

const TAKE_LEASES: &str = concat!(
    "
update stream_lease
set epoch = case when owner = ?1 and leased_until > ",
    now!(),
    " then epoch else epoch + 1 end, owner = ?1, leased_until = ",
    now!(),
    " + ?2
where owner is null or owner = ?1 or leased_until <= ",
    now!(),
    "
returning partition, owner, epoch, generation, diverged_seq, coalesce((
    select max(b.seq_to) from stream_batch b
    where b.partition = stream_lease.partition and b.generation = stream_lease.generation
), 0) as published_seq"
);

const RELEASE_LEASES: &str = "
update stream_lease set owner = null, leased_until = 0 where owner = ?1";

const HEADS: &str = "
select partition, seq from stream_partition order by partition";

const EVENTS_OF_PARTITION: &str = "
select * from event_outbox where partition = ?1 and seq > ?2 order by seq limit ?3";

const LEASES_IN_FORCE: &str = "
select l.partition
from jsonb_each(?1) n
join stream_lease l on l.partition = n.value ->> 0 and l.owner = n.value ->> 1 and l.epoch = n.value ->> 2
    and l.generation = n.value ->> 3";

const INSERT_BATCHES: &str = concat!(
    "
insert into stream_batch (partition, generation, seq_from, seq_to, published_at)
select n.partition, n.generation, n.last_seq + 1, n.seq_to, ",
    now!(),
    "
from (
    select n.value ->> 0 as partition, n.value ->> 1 as generation, n.value ->> 2 as seq_to, coalesce((
        select max(b.seq_to) from stream_batch b
        where b.partition = n.value ->> 0 and b.generation = n.value ->> 1
    ), 0) as last_seq
    from jsonb_each(?1) n
) n
where n.last_seq < n.seq_to"
);

const MARK_DIVERGED: &str = "
update stream_lease set diverged_seq = ?5
where partition = ?1 and owner = ?2 and epoch = ?3 and generation = ?4";

const START_GENERATION: &str = "
update stream_lease set generation = generation + 1, diverged_seq = null where partition = ?1 returning generation";

const STATUS: &str = concat!(
    "
select l.partition, l.generation, l.seq, l.published_seq, l.diverged_seq, l.owner, l.epoch,
    l.owner is not null and l.leased_until > ",
    now!(),
    " as is_leased,
    (select o.occurred_at from event_outbox o
        where o.partition = l.partition and o.seq > l.published_seq order by o.seq limit 1) as oldest_waiting_at
from (
    select l.*, p.seq, coalesce((
        select max(b.seq_to) from stream_batch b where b.partition = l.partition and b.generation = l.generation
    ), 0) as published_seq
    from stream_lease l
    join stream_partition p on p.partition = l.partition
) l
order by l.partition"
);

#[async_trait]
impl Outbox for SqliteStore {
    async fn lease(&self, owner: &str, ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        let ttl_us = i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX);
        in_time(async {
            let mut tx = self.writer.begin().await?;
            let statement = sqlx::query(TAKE_LEASES).bind(owner).bind(ttl_us);
            let rows = statement.fetch_all(tx.connection()).await.map_err(store_error)?;
            let mut leases = rows.iter().map(lease).collect::<Result<Vec<_>, _>>()?;
            tx.commit().await?;
            leases.sort_by_key(|lease| lease.partition);
            Ok(leases)
        })
        .await
    }

    async fn release(&self, owner: &str) -> Result<(), StoreError> {
        in_time(async {
            let mut tx = self.writer.begin().await?;
            sqlx::query(RELEASE_LEASES).bind(owner).execute(tx.connection()).await.map_err(store_error)?;
            tx.commit().await
        })
        .await
    }

    async fn heads(&self) -> Result<Vec<EventPosition>, StoreError> {
        let rows = in_time(async { sqlx::query(HEADS).fetch_all(&self.readers).await.map_err(store_error) }).await?;
        rows.iter().map(|row| Ok(EventPosition { partition: rows::partition(row)?, seq: get(row, "seq")? })).collect()
    }

    /// Here a statement costs no way to a server.
    async fn read_each(&self, after: &[EventPosition], limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        let mut events = Vec::new();
        in_time(async {
            let mut connection = self.readers.acquire().await.map_err(store_error)?;
            for EventPosition { partition, seq } in after {
                let statement =
                    sqlx::query(EVENTS_OF_PARTITION).bind(partition.stored()).bind(*seq).bind(i64::from(limit));
                for row in statement.fetch_all(&mut *connection).await.map_err(store_error)? {
                    events.push(rows::event(&row)?);
                }
            }
            Ok(())
        })
        .await?;
        Ok(events)
    }

    async fn record(&self, publications: &[Publication]) -> Result<Vec<Recorded>, StoreError> {
        in_time(async {
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
        in_time(async {
            let mut tx = self.writer.begin().await?;
            let marked = statement.execute(tx.connection()).await.map_err(store_error)?;
            tx.commit().await?;
            Ok(if marked.rows_affected() == 1 { Recorded::Done } else { Recorded::LeaseLost })
        })
        .await
    }

    async fn start_generation(&self, partition: Partition) -> Result<i32, StoreError> {
        in_time(async {
            let mut tx = self.writer.begin().await?;
            let statement = sqlx::query(START_GENERATION).bind(partition.stored());
            let row = statement.fetch_one(tx.connection()).await.map_err(store_error)?;
            let generation = get(&row, "generation")?;
            tx.commit().await?;
            Ok(generation)
        })
        .await
    }

    async fn status(&self) -> Result<Vec<PartitionStatus>, StoreError> {
        let rows = in_time(async { sqlx::query(STATUS).fetch_all(&self.readers).await.map_err(store_error) }).await?;
        rows.iter().map(status).collect()
    }
}

async fn leases_in_force(
    tx: &mut Transaction,
    publications: &[Publication],
) -> Result<BTreeSet<Partition>, StoreError> {
    let leases = json::rows(publications, |row, Publication { lease, .. }| {
        row.int(lease.partition.stored()).text(&lease.owner).int(lease.epoch).int(lease.generation);
    });
    let rows = sqlx::query(LEASES_IN_FORCE).bind(leases).fetch_all(tx.connection()).await.map_err(store_error)?;
    rows.iter().map(rows::partition).collect()
}

async fn insert_batches(
    tx: &mut Transaction,
    publications: &[Publication],
    held: &BTreeSet<Partition>,
) -> Result<(), StoreError> {
    let recorded = publications.iter().filter(|publication| held.contains(&publication.lease.partition));
    let batches = json::rows(recorded, |row, Publication { lease, seq_to }| {
        row.int(lease.partition.stored()).int(lease.generation).int(*seq_to);
    });
    sqlx::query(INSERT_BATCHES).bind(batches).execute(tx.connection()).await.map_err(store_error)?;
    Ok(())
}

fn lease(row: &SqliteRow) -> Result<Lease, StoreError> {
    Ok(Lease {
        partition: rows::partition(row)?,
        owner: get(row, "owner")?,
        epoch: get(row, "epoch")?,
        generation: get(row, "generation")?,
        published_seq: get(row, "published_seq")?,
        diverged_seq: get(row, "diverged_seq")?,
    })
}

fn status(row: &SqliteRow) -> Result<PartitionStatus, StoreError> {
    Ok(PartitionStatus {
        partition: rows::partition(row)?,
        generation: get(row, "generation")?,
        seq: get(row, "seq")?,
        published_seq: get(row, "published_seq")?,
        diverged_seq: get(row, "diverged_seq")?,
        owner: get(row, "owner")?,
        epoch: get(row, "epoch")?,
        is_leased: get(row, "is_leased")?,
        oldest_waiting_at: rows::maybe_at(row, "oldest_waiting_at")?,
    })
}
