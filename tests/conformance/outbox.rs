//! The outbox: leases, batches, generations and the status.

use std::time::Duration;

use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::ids::{PARTITIONS, Partition};
use visionscope_billing::store::queries::{Lease, MIN_EVENTS_IN_STREAM, PartitionStatus, Publication, Recorded};

use crate::database::TestDatabase;
use crate::fixtures::{at, workspace, world_of};

const LONG: Duration = Duration::from_mins(10);
const SHORT: Duration = Duration::from_millis(1);
/// How long events stay in the stream.
const RETAIN: Duration = Duration::from_secs(1);
/// Long enough for a short lease to expire.
const AFTER_SHORT: Duration = Duration::from_millis(60);

fn partition() -> Partition {
    Partition::of(workspace(0))
}

async fn lease(db: &impl TestDatabase, owner: &str, ttl: Duration) -> Option<Lease> {
    let leases = db.store().lease(owner, ttl).await.unwrap();
    leases.into_iter().find(|lease| lease.partition == partition())
}

async fn status(db: &impl TestDatabase) -> PartitionStatus {
    let all = db.store().status().await.unwrap();
    assert_eq!(all.len(), usize::from(PARTITIONS));
    all.into_iter().find(|status| status.partition == partition()).unwrap()
}

pub async fn record(db: &impl TestDatabase, lease: &Lease, seq_to: i64) -> Recorded {
    let recorded = db.store().record(&[Publication { lease: lease.clone(), seq_to }]).await.unwrap();
    assert_eq!(recorded.len(), 1);
    recorded[0]
}

/// Five events: one of the provisioning, four of deductions.
async fn five_events(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    for n in 1..5 {
        world.deduct(workspace(0), Credits::whole(1), at(n));
    }
    world.store(db.store()).await;
}

pub async fn a_first_lease_takes_every_partition(db: &impl TestDatabase) {
    let leases = db.store().lease("one", LONG).await.unwrap();
    assert_eq!(leases.iter().map(|lease| lease.partition).collect::<Vec<_>>(), Partition::all().collect::<Vec<_>>());
    for lease in leases {
        assert_eq!((lease.owner.as_str(), lease.epoch, lease.generation), ("one", 1, 1));
        assert_eq!((lease.published_seq, lease.floor_seq, lease.diverged_seq), (0, 1, None));
    }
}

pub async fn a_lease_in_force_is_left_to_its_owner(db: &impl TestDatabase) {
    db.store().lease("one", LONG).await.unwrap();
    assert!(db.store().lease("two", LONG).await.unwrap().is_empty());
    assert_eq!(db.store().lease("one", LONG).await.unwrap().len(), usize::from(PARTITIONS));
}

pub async fn renewing_keeps_the_epoch_and_taking_over_raises_it(db: &impl TestDatabase) {
    assert_eq!(lease(db, "one", LONG).await.unwrap().epoch, 1);
    assert_eq!(lease(db, "one", SHORT).await.unwrap().epoch, 1);
    tokio::time::sleep(AFTER_SHORT).await;
    assert_eq!(lease(db, "two", SHORT).await.unwrap().epoch, 2);
    tokio::time::sleep(AFTER_SHORT).await;
    // The same owner after its lease expired: another one could have had it in between.
    assert_eq!(lease(db, "two", LONG).await.unwrap().epoch, 3);
}

pub async fn a_released_lease_is_free_at_once(db: &impl TestDatabase) {
    db.store().lease("one", LONG).await.unwrap();
    db.store().release("two").await.unwrap();
    assert!(status(db).await.leased_until.is_some());
    db.store().release("one").await.unwrap();
    let freed = status(db).await;
    assert_eq!((freed.leased_until, freed.owner), (None, None));
    assert_eq!(lease(db, "two", LONG).await.unwrap().epoch, 2);
}

pub async fn heads_and_reads_follow_the_outbox(db: &impl TestDatabase) {
    five_events(db).await;
    let heads = db.store().heads().await.unwrap();
    assert_eq!(heads.iter().map(|head| head.partition).collect::<Vec<_>>(), Partition::all().collect::<Vec<_>>());
    assert!(heads.iter().all(|head| head.seq == if head.partition == partition() { 5 } else { 0 }));
    let seqs = async |after, limit| {
        let events = db.store().read(partition(), after, limit).await.unwrap();
        events.iter().map(|event| event.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(0, 100).await, [1, 2, 3, 4, 5]);
    assert_eq!(seqs(2, 2).await, [3, 4]);
    assert!(seqs(5, 2).await.is_empty());
}

pub async fn a_recorded_batch_continues_where_the_last_one_ended(db: &impl TestDatabase) {
    five_events(db).await;
    let own = lease(db, "one", LONG).await.unwrap();
    for (seq_to, published) in [(2, 2), (2, 2), (1, 2), (5, 5)] {
        assert_eq!(record(db, &own, seq_to).await, Recorded::Done);
        assert_eq!(status(db).await.published_seq, published);
    }
    let batches = "select cast(seq_from as bigint), cast(seq_to as bigint) from stream_batches order by seq_to";
    assert_eq!(db.integers(batches).await, [[1, 2], [3, 5]]);
    assert_eq!(lease(db, "one", LONG).await.unwrap().published_seq, 5);
}

pub async fn a_lost_lease_records_nothing(db: &impl TestDatabase) {
    five_events(db).await;
    let lost = lease(db, "one", SHORT).await.unwrap();
    tokio::time::sleep(AFTER_SHORT).await;
    let own = lease(db, "two", LONG).await.unwrap();
    assert_eq!(record(db, &lost, 3).await, Recorded::LeaseLost);
    let forged = Lease { epoch: own.epoch, ..lost.clone() };
    assert_eq!(record(db, &forged, 3).await, Recorded::LeaseLost);
    for other in [&lost, &forged] {
        assert_eq!(db.store().mark_diverged(other, 3).await.unwrap(), Recorded::LeaseLost);
    }
    assert_eq!(status(db).await.diverged_seq, None);
    assert_eq!(status(db).await.published_seq, 0);
    assert_eq!(record(db, &own, 3).await, Recorded::Done);
    db.store().release("two").await.unwrap();
    assert_eq!(record(db, &own, 4).await, Recorded::LeaseLost);
}

pub async fn partitions_are_recorded_together_but_for_one_whose_lease_is_lost(db: &impl TestDatabase) {
    let leases = db.store().lease("one", LONG).await.unwrap();
    let mut publications: Vec<_> =
        leases.into_iter().zip(3..).map(|(lease, seq_to)| Publication { lease, seq_to }).collect();
    publications.reverse();
    publications[4].lease.owner = "two".into();
    publications[5].lease.epoch += 1;
    publications[6].lease.generation += 1;
    let recorded = db.store().record(&publications).await.unwrap();
    let is_lost = |index: usize| (4..7).contains(&index);
    let expected = |index| if is_lost(index) { Recorded::LeaseLost } else { Recorded::Done };
    assert_eq!(recorded, (0..publications.len()).map(expected).collect::<Vec<_>>());
    let all = db.store().status().await.unwrap();
    for (index, publication) in publications.iter().enumerate() {
        let status = all.iter().find(|status| status.partition == publication.lease.partition).unwrap();
        assert_eq!(status.published_seq, if is_lost(index) { 0 } else { publication.seq_to });
    }
    assert_eq!(db.store().record(&[]).await.unwrap(), []);
}

pub async fn a_new_generation_starts_empty_and_clears_a_divergence(db: &impl TestDatabase) {
    five_events(db).await;
    let old = lease(db, "one", LONG).await.unwrap();
    record(db, &old, 4).await;
    assert_eq!(db.store().mark_diverged(&old, 3).await.unwrap(), Recorded::Done);
    assert_eq!(lease(db, "one", LONG).await.unwrap().diverged_seq, Some(3));
    assert_eq!(status(db).await.diverged_seq, Some(3));

    assert_eq!(db.store().start_generation(partition()).await.unwrap(), 2);
    let new = lease(db, "one", LONG).await.unwrap();
    assert_eq!((new.generation, new.published_seq, new.diverged_seq), (2, 0, None));
    assert_eq!(record(db, &old, 5).await, Recorded::LeaseLost);
    assert_eq!(db.store().mark_diverged(&old, 5).await.unwrap(), Recorded::LeaseLost);
    assert_eq!(status(db).await.diverged_seq, None);
    assert_eq!(record(db, &new, 5).await, Recorded::Done);
    let batches = "select cast(generation as bigint), cast(seq_from as bigint), cast(seq_to as bigint)
        from stream_batches order by generation";
    assert_eq!(db.integers(batches).await, [[1, 1, 4], [2, 1, 5]]);
}

pub async fn the_status_shows_unpublished_events(db: &impl TestDatabase) {
    assert_eq!(status(db).await.oldest_waiting_at, None);
    five_events(db).await;
    let own = lease(db, "one", LONG).await.unwrap();
    record(db, &own, 2).await;
    let waiting = status(db).await;
    assert_eq!((waiting.seq, waiting.published_seq, waiting.generation, waiting.epoch), (5, 2, 1, 1));
    assert_eq!((waiting.owner.as_deref(), waiting.leased_until.is_some()), (Some("one"), true));
    assert_eq!(waiting.oldest_waiting_at, Some(at(2)));
    record(db, &own, 5).await;
    assert_eq!(status(db).await.oldest_waiting_at, None);
}

pub async fn the_view_shows_which_events_are_published(db: &impl TestDatabase) {
    const VIEW: &str = "select cast(seq as bigint), cast(cast(published as integer) as bigint),
        cast(cast(published_at is null as integer) as bigint) from event_outbox_published order by seq";
    five_events(db).await;
    let own = lease(db, "one", LONG).await.unwrap();
    record(db, &own, 1).await;
    record(db, &own, 3).await;
    assert_eq!(db.integers(VIEW).await, [[1, 1, 0], [2, 1, 0], [3, 1, 0], [4, 0, 1], [5, 0, 1]]);
    // The row of the second batch is no longer kept.
    set_floor(db, 3).await;
    assert_eq!(db.store().delete_batches(partition(), Duration::ZERO, 10).await.unwrap(), 1);
    assert_eq!(db.integers(VIEW).await, [[1, 1, 1], [2, 1, 0], [3, 1, 0], [4, 0, 1], [5, 0, 1]]);
    db.store().start_generation(partition()).await.unwrap();
    assert_eq!(db.integers(VIEW).await, [[1, 1, 1], [2, 1, 1], [3, 0, 1], [4, 0, 1], [5, 0, 1]]);
}

async fn set_floor(db: &impl TestDatabase, floor_seq: i64) {
    let raise =
        format!("update stream_leases set floor_seq = {floor_seq} where partition_id = {}", partition().number());
    db.execute(&raise).await.unwrap();
}

pub async fn the_floor_follows_the_time_of_publication_and_never_falls(db: &impl TestDatabase) {
    let raise = async |lease: &Lease, retain| db.store().raise_floor(lease, retain).await.unwrap();
    let own = lease(db, "one", LONG).await.unwrap();
    assert_eq!((own.floor_seq, raise(&own, Duration::ZERO).await), (1, Some(1)), "nothing is published");
    record(db, &own, MIN_EVENTS_IN_STREAM).await;
    record(db, &own, 2_000).await;
    tokio::time::sleep(RETAIN + AFTER_SHORT).await;
    record(db, &own, 5_000).await;
    assert_eq!(raise(&own, LONG).await, Some(1));
    assert_eq!(raise(&own, RETAIN).await, Some(2_001), "the first event that was published within the time");
    assert_eq!(raise(&own, LONG).await, Some(2_001));
    tokio::time::sleep(AFTER_SHORT).await;
    assert_eq!(raise(&own, SHORT).await, Some(5_000 - MIN_EVENTS_IN_STREAM), "the newest events stay");
    assert_eq!((status(db).await.floor_seq, status(db).await.published_seq), (4_000, 5_000));
    assert_eq!(lease(db, "one", LONG).await.unwrap().floor_seq, 4_000);
}

pub async fn a_lost_lease_does_not_raise_the_floor(db: &impl TestDatabase) {
    let lost = lease(db, "one", SHORT).await.unwrap();
    record(db, &lost, 3_000).await;
    tokio::time::sleep(AFTER_SHORT).await;
    let own = lease(db, "two", LONG).await.unwrap();
    let forged = Lease { epoch: own.epoch, ..lost.clone() };
    let other = Lease { generation: 2, ..own.clone() };
    for lease in [&lost, &forged, &other] {
        assert_eq!(db.store().raise_floor(lease, SHORT).await.unwrap(), None);
    }
    assert_eq!(status(db).await.floor_seq, 1);
    assert_eq!(db.store().raise_floor(&own, SHORT).await.unwrap(), Some(2_000));
}

pub async fn a_new_generation_begins_at_the_floor(db: &impl TestDatabase) {
    let own = lease(db, "one", LONG).await.unwrap();
    record(db, &own, 3_000).await;
    tokio::time::sleep(AFTER_SHORT).await;
    assert_eq!(db.store().raise_floor(&own, SHORT).await.unwrap(), Some(2_000));
    db.store().start_generation(partition()).await.unwrap();
    let new = lease(db, "one", LONG).await.unwrap();
    assert_eq!((new.generation, new.floor_seq, new.published_seq), (2, 2_000, 1_999));
    assert_eq!(status(db).await.published_seq, 1_999);
    assert_eq!(db.store().raise_floor(&new, SHORT).await.unwrap(), Some(2_000));
    record(db, &new, 2_500).await;
    let batches = "select cast(seq_from as bigint), cast(seq_to as bigint) from stream_batches where generation = 2";
    assert_eq!(db.integers(batches).await, [[2_000, 2_500]]);
    assert_eq!(db.store().raise_floor(&new, SHORT).await.unwrap(), Some(2_000));
}

pub async fn old_batches_are_deleted_in_bounded_steps_and_those_from_the_floor_on_are_kept(db: &impl TestDatabase) {
    let delete = async |retain, limit| db.store().delete_batches(partition(), retain, limit).await.unwrap();
    let kept = async || {
        let batches = "select cast(generation as bigint), cast(seq_to as bigint) from stream_batches
            order by generation, seq_to";
        db.integers(batches).await
    };
    let own = lease(db, "one", LONG).await.unwrap();
    for seq_to in 1..=6 {
        record(db, &own, seq_to).await;
    }
    tokio::time::sleep(AFTER_SHORT).await;
    assert_eq!(delete(SHORT, 10).await, 0, "the stream must hold all events");
    assert!(db.execute("delete from stream_batches").await.unwrap_err().contains("immutable"));
    set_floor(db, 5).await;
    assert_eq!((delete(LONG, 10).await, delete(SHORT, 3).await, delete(SHORT, 3).await), (0, 3, 1));
    assert_eq!((delete(SHORT, 3).await, kept().await), (0, vec![vec![1, 5], vec![1, 6]]));
    assert_eq!(status(db).await.published_seq, 6);
    assert_eq!(db.store().audit(10).await.unwrap(), []);
    // Nobody reads the batches of an earlier generation but people.
    db.store().start_generation(partition()).await.unwrap();
    let new = lease(db, "one", LONG).await.unwrap();
    record(db, &new, 7).await;
    assert_eq!((delete(LONG, 10).await, delete(SHORT, 10).await), (0, 2));
    assert_eq!(kept().await, [[2, 7]]);
}
