//! A real store that fails at random towards the consumers.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::consumers::{Build, Consumer, ConsumerKeys, ConsumerRows};
use visionscope_billing::domain::dead_letter::{DeadLetter, ParkedWorkspace};
use visionscope_billing::domain::ids::{EventId, Partition};
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::store::consumers::{Advance, ConsumerCursor, Registered};
use visionscope_billing::store::queries::{EventPosition, Lease, PartitionStatus, Publication, Recorded};
use visionscope_billing::store::{Consumption, Outbox, StoreError};

/// How long an operation hangs before the store gives it up.
const HANG: Duration = Duration::from_millis(50);

pub struct FaultyConsumption {
    inner: Arc<dyn Consumption>,
    random: AtomicU64,
    /// How many operations will still fail without effect.
    faults: AtomicU32,
    /// How many commits will still take effect and be answered with an error.
    lost_answers: AtomicU32,
}

impl FaultyConsumption {
    pub fn new(inner: Arc<dyn Consumption>, faults: u32, lost_answers: u32) -> Self {
        let (faults, lost_answers) = (AtomicU32::new(faults), AtomicU32::new(lost_answers));
        Self { inner, random: AtomicU64::new(7), faults, lost_answers }
    }

    /// Whether faults are left.
    pub fn is_failing(&self) -> bool {
        [&self.faults, &self.lost_answers].into_iter().any(|left| left.load(Ordering::SeqCst) > 0)
    }

    /// Uses one of these faults up in every tenth operation, at random. So pauses after failures stay short.
    fn is_faulty(&self, faults: &AtomicU32) -> bool {
        let step = |n: u64| Some(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
        let number = self.random.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step).unwrap() >> 33;
        number.is_multiple_of(10)
            && faults.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    /// Fails at once, or after it has hung.
    async fn pass(&self) -> Result<(), StoreError> {
        if !self.is_faulty(&self.faults) {
            return Ok(());
        }
        if self.faults.load(Ordering::SeqCst).is_multiple_of(2) {
            tokio::time::sleep(HANG).await;
        }
        Err(unavailable())
    }
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("an injected fault".into())
}

#[async_trait]
impl Consumption for FaultyConsumption {
    async fn lease_consumers(&self, owner: &str, ttl: Duration) -> Result<Vec<Partition>, StoreError> {
        self.pass().await?;
        self.inner.lease_consumers(owner, ttl).await
    }

    async fn release_consumer_leases(&self, owner: &str) -> Result<(), StoreError> {
        self.inner.release_consumer_leases(owner).await
    }

    async fn consumers(&self) -> Result<Vec<Registered>, StoreError> {
        self.inner.consumers().await
    }

    async fn consumer_cursors(&self) -> Result<Vec<ConsumerCursor>, StoreError> {
        self.inner.consumer_cursors().await
    }

    async fn parked_workspaces(&self) -> Result<Vec<ParkedWorkspace>, StoreError> {
        self.inner.parked_workspaces().await
    }

    async fn discarded_events(&self) -> Result<HashSet<(Consumer, EventId)>, StoreError> {
        self.inner.discarded_events().await
    }

    async fn waiting_since(&self) -> Result<BTreeMap<Consumer, Timestamp>, StoreError> {
        self.inner.waiting_since().await
    }

    async fn dead_letter(&self, dead_letter_id: Uuid) -> Result<Option<DeadLetter>, StoreError> {
        self.pass().await?;
        self.inner.dead_letter(dead_letter_id).await
    }

    async fn events_left_out(&self, parked: &ParkedWorkspace, limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        self.pass().await?;
        self.inner.events_left_out(parked, limit).await
    }

    async fn consumer_rows(&self, keys: &ConsumerKeys) -> Result<ConsumerRows, StoreError> {
        self.pass().await?;
        self.inner.consumer_rows(keys).await
    }

    /// Fails before the commit, or after it: then the caller cannot know.
    async fn advance_consumers(&self, advances: &[Advance]) -> Result<(), StoreError> {
        self.pass().await?;
        self.inner.advance_consumers(advances).await?;
        if self.is_faulty(&self.lost_answers) {
            return Err(unavailable());
        }
        Ok(())
    }

    async fn start_rebuild(&self, before: &Registered, audit_id: Uuid, now: Timestamp) -> Result<(), StoreError> {
        self.inner.start_rebuild(before, audit_id, now).await
    }

    async fn switch_consumer(&self, build: Build) -> Result<(), StoreError> {
        self.inner.switch_consumer(build).await
    }

    async fn trip_consumer(&self, consumer: Consumer, reason: &str, now: Timestamp) -> Result<(), StoreError> {
        self.inner.trip_consumer(consumer, reason, now).await
    }
}

#[async_trait]
impl Outbox for FaultyConsumption {
    async fn lease(&self, owner: &str, ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        self.inner.lease(owner, ttl).await
    }

    async fn release(&self, owner: &str) -> Result<(), StoreError> {
        self.inner.release(owner).await
    }

    async fn heads(&self) -> Result<Vec<EventPosition>, StoreError> {
        self.pass().await?;
        self.inner.heads().await
    }

    async fn read_each(&self, after: &[EventPosition], limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        self.pass().await?;
        self.inner.read_each(after, limit).await
    }

    async fn record(&self, publications: &[Publication]) -> Result<Vec<Recorded>, StoreError> {
        self.inner.record(publications).await
    }

    async fn mark_diverged(&self, lease: &Lease, seq: i64) -> Result<Recorded, StoreError> {
        self.inner.mark_diverged(lease, seq).await
    }

    async fn raise_floor(&self, lease: &Lease, retain: Duration) -> Result<Option<i64>, StoreError> {
        self.inner.raise_floor(lease, retain).await
    }

    async fn delete_batches(&self, partition: Partition, retain: Duration, limit: u32) -> Result<u64, StoreError> {
        self.inner.delete_batches(partition, retain, limit).await
    }

    async fn start_generation(&self, partition: Partition) -> Result<i32, StoreError> {
        self.inner.start_generation(partition).await
    }

    async fn status(&self) -> Result<Vec<PartitionStatus>, StoreError> {
        self.inner.status().await
    }
}
