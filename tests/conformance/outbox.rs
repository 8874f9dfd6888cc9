//! The outbox: leases, batches, generations and the status.

use std::time::Duration;

use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::ids::{PARTITIONS, Partition};
use visionscope_billing::store::queries::{Lease, PartitionStatus, Publication, Recorded};

use crate::database::TestDatabase;
use crate::fixtures::{at, workspace, world_of};

const LONG: Duration = Duration::from_mins(10);
const SHORT: Duration = Duration::from_millis(1);
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
        assert_eq!((lease.published_seq, lease.diverged_seq), (0, None));
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
    assert!(status(db).await.is_leased);
    db.store().release("one").await.unwrap();
    let freed = status(db).await;
    assert_eq!((freed.is_leased, freed.owner), (false, None));
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
    assert_eq!((waiting.owner.as_deref(), waiting.is_leased), (Some("one"), true));
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
    db.store().start_generation(partition()).await.unwrap();
    assert!(db.integers(VIEW).await.iter().all(|row| row[1..] == [0, 1]));
}
