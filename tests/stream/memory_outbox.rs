//! An outbox in memory, with injected faults. It behaves like the real ones, which the conformance suite tests.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use uuid::Uuid;
use visionscope_billing::clock::{Clock as _, SystemClock};
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::ids::{EventId, Partition};
use visionscope_billing::store::queries::{
    EventPosition, Lease, MIN_EVENTS_IN_STREAM, PartitionStatus, Publication, Recorded,
};
use visionscope_billing::store::{Outbox, StoreError};

use crate::events::event;

#[derive(Clone)]
struct PartitionRows {
    events: Vec<EventRecord>,
    owner: Option<String>,
    until: Instant,
    epoch: i64,
    generation: i32,
    published_seq: i64,
    /// The last event of each batch of this generation, and when it was recorded.
    batches: Vec<(i64, Instant)>,
    floor_seq: i64,
    diverged_seq: Option<i64>,
}

impl PartitionRows {
    /// As in the real stores, an expired lease that nobody took over is still in force.
    fn is_in_force(&self, lease: &Lease) -> bool {
        (self.owner.as_deref(), self.epoch, self.generation)
            == (Some(lease.owner.as_str()), lease.epoch, lease.generation)
    }
}

/// What a database held at some time.
pub struct Backup(Vec<PartitionRows>);

pub struct MemoryOutbox {
    partitions: Mutex<Vec<PartitionRows>>,
    /// How often a backup was restored. Events that are committed afterwards differ from those that had their numbers.
    restores: AtomicU32,
    /// This many calls of `record` fail and record nothing.
    pub failing_records: AtomicU32,
    /// Reads, counted per partition.
    pub reads: AtomicU32,
    pub statements: AtomicU32,
    pub records: AtomicU32,
    pub is_down: AtomicBool,
    /// Reading this partition fails.
    pub unreadable: Mutex<Option<Partition>>,
    /// This many calls of `raise_floor` fail: every other one before it takes effect, the others afterwards.
    pub failing_raises: AtomicU32,
    /// As the real one, unless a test sets a lower number.
    pub min_events_in_stream: AtomicI64,
    /// Leases are given to everybody, even while another owner holds them.
    pub ignores_leases: AtomicBool,
}

impl MemoryOutbox {
    pub fn new() -> Self {
        let empty = || PartitionRows {
            events: Vec::new(),
            owner: None,
            until: Instant::now(),
            epoch: 0,
            generation: 1,
            published_seq: 0,
            batches: Vec::new(),
            floor_seq: 1,
            diverged_seq: None,
        };
        Self {
            partitions: Mutex::new(Partition::all().map(|_| empty()).collect()),
            failing_records: AtomicU32::new(0),
            reads: AtomicU32::new(0),
            statements: AtomicU32::new(0),
            unreadable: Mutex::new(None),
            records: AtomicU32::new(0),
            is_down: AtomicBool::new(false),
            restores: AtomicU32::new(0),
            failing_raises: AtomicU32::new(0),
            min_events_in_stream: AtomicI64::new(MIN_EVENTS_IN_STREAM),
            ignores_leases: AtomicBool::new(false),
        }
    }

    /// Commits this many events and returns them.
    pub fn commit(&self, partition: Partition, count: i64) -> Vec<EventRecord> {
        let mut partitions = self.partitions.lock().unwrap();
        let events = &mut partitions[usize::from(partition.number())].events;
        let last = i64::try_from(events.len()).unwrap();
        let restores = u128::from(self.restores.load(Ordering::SeqCst));
        events.extend((last + 1..=last + count).map(|seq| {
            let event = event(partition, seq);
            EventRecord { event_id: EventId(Uuid::from_u128(event.event_id.0.as_u128() | restores << 40)), ..event }
        }));
        events[usize::try_from(last).unwrap()..].to_vec()
    }

    pub fn all(&self, partition: Partition) -> Vec<EventRecord> {
        self.partitions.lock().unwrap()[usize::from(partition.number())].events.clone()
    }

    pub fn backup(&self) -> Backup {
        Backup(self.partitions.lock().unwrap().clone())
    }

    pub fn restore(&self, backup: Backup) {
        *self.partitions.lock().unwrap() = backup.0;
        self.restores.fetch_add(1, Ordering::SeqCst);
    }

    pub fn generation(&self, partition: Partition) -> i32 {
        self.partitions.lock().unwrap()[usize::from(partition.number())].generation
    }

    /// Lets all leases expire.
    pub fn expire_leases(&self) {
        self.partitions.lock().unwrap().iter_mut().for_each(|rows| rows.until = Instant::now());
    }

    /// Another publisher takes over the partition.
    pub fn take_over(&self, partition: Partition) {
        let taken = &mut self.partitions.lock().unwrap()[usize::from(partition.number())];
        (taken.owner, taken.until) = (Some("another".into()), Instant::now() + Duration::from_mins(10));
        taken.epoch += 1;
    }

    pub fn published_seq(&self, partition: Partition) -> i64 {
        self.partitions.lock().unwrap()[usize::from(partition.number())].published_seq
    }

    /// The last event of the oldest batch whose record is kept.
    pub fn first_batch(&self, partition: Partition) -> Option<i64> {
        self.partitions.lock().unwrap()[usize::from(partition.number())].batches.first().map(|batch| batch.0)
    }

    pub fn floor_seq(&self, partition: Partition) -> i64 {
        self.partitions.lock().unwrap()[usize::from(partition.number())].floor_seq
    }

    pub fn diverged_seq(&self, partition: Partition) -> Option<i64> {
        self.partitions.lock().unwrap()[usize::from(partition.number())].diverged_seq
    }

    pub fn leases_of_anyone(&self) -> usize {
        self.partitions.lock().unwrap().iter().filter(|rows| rows.owner.is_some()).count()
    }

    fn access<T>(&self, partition: Partition, act: impl FnOnce(&mut PartitionRows) -> T) -> Result<T, StoreError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("an injected fault".into()));
        }
        Ok(act(&mut self.partitions.lock().unwrap()[usize::from(partition.number())]))
    }
}

#[async_trait]
impl Outbox for MemoryOutbox {
    async fn lease(&self, owner: &str, ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        let mut leases = Vec::new();
        for partition in Partition::all() {
            let ignored = self.ignores_leases.load(Ordering::SeqCst);
            let lease = self.access(partition, |rows| {
                let is_mine = rows.owner.as_deref() == Some(owner);
                if rows.owner.is_some() && !is_mine && rows.until > Instant::now() && !ignored {
                    return None;
                }
                if !is_mine {
                    rows.epoch += 1;
                    rows.owner = Some(owner.to_owned());
                }
                rows.until = Instant::now() + ttl;
                Some(Lease {
                    partition,
                    owner: owner.to_owned(),
                    epoch: rows.epoch,
                    generation: rows.generation,
                    published_seq: rows.published_seq,
                    floor_seq: rows.floor_seq,
                    diverged_seq: rows.diverged_seq,
                })
            })?;
            leases.extend(lease);
        }
        Ok(leases)
    }

    async fn release(&self, owner: &str) -> Result<(), StoreError> {
        for partition in Partition::all() {
            self.access(partition, |rows| rows.owner.take_if(|by| by == owner))?;
        }
        Ok(())
    }

    async fn heads(&self) -> Result<Vec<EventPosition>, StoreError> {
        let head = |partition| {
            let seq = self.access(partition, |rows| i64::try_from(rows.events.len()).unwrap())?;
            Ok(EventPosition { partition, seq })
        };
        Partition::all().map(head).collect()
    }

    async fn read_each(&self, after: &[EventPosition], limit: u32) -> Result<Vec<EventRecord>, StoreError> {
        self.statements.fetch_add(1, Ordering::SeqCst);
        let unreadable = *self.unreadable.lock().unwrap();
        let mut events = Vec::new();
        for EventPosition { partition, seq } in after {
            self.reads.fetch_add(1, Ordering::SeqCst);
            if unreadable == Some(*partition) {
                return Err(StoreError::Corrupt("an injected fault".into()));
            }
            let (after, limit) = (usize::try_from(*seq).unwrap(), usize::try_from(limit).unwrap());
            events.extend(
                self.access(*partition, |rows| {
                    rows.events.iter().skip(after).take(limit).cloned().collect::<Vec<_>>()
                })?,
            );
        }
        Ok(events)
    }

    async fn record(&self, publications: &[Publication]) -> Result<Vec<Recorded>, StoreError> {
        self.records.fetch_add(1, Ordering::SeqCst);
        let fails = |left: u32| left.checked_sub(1);
        if self.failing_records.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
            return Err(StoreError::Unavailable("an injected fault".into()));
        }
        let record = |Publication { lease, seq_to }: &Publication| {
            self.access(lease.partition, |rows| {
                if !rows.is_in_force(lease) {
                    return Recorded::LeaseLost;
                }
                if rows.published_seq < *seq_to {
                    rows.published_seq = *seq_to;
                    rows.batches.push((*seq_to, Instant::now()));
                }
                Recorded::Done
            })
        };
        publications.iter().map(record).collect()
    }

    async fn mark_diverged(&self, lease: &Lease, seq: i64) -> Result<Recorded, StoreError> {
        self.access(lease.partition, |rows| {
            if !rows.is_in_force(lease) {
                return Recorded::LeaseLost;
            }
            rows.diverged_seq = Some(seq);
            Recorded::Done
        })
    }

    async fn raise_floor(&self, lease: &Lease, retain: Duration) -> Result<Option<i64>, StoreError> {
        let failing = self.failing_raises.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        let fault = || Err(StoreError::Unavailable("an injected fault".into()));
        if failing.is_ok_and(|left| left % 2 == 0) {
            return fault();
        }
        let raised = self.access(lease.partition, |rows| {
            if !rows.is_in_force(lease) {
                return None;
            }
            let is_old = |batch: &&(i64, Instant)| batch.1.elapsed() > retain;
            let old = rows.batches.iter().filter(is_old).map(|batch| batch.0).max().unwrap_or(0);
            let kept = self.min_events_in_stream.load(Ordering::SeqCst);
            rows.floor_seq = rows.floor_seq.max((old + 1).min(rows.published_seq - kept));
            Some(rows.floor_seq)
        });
        if failing.is_ok() { fault() } else { raised }
    }

    async fn delete_batches(&self, partition: Partition, retain: Duration, limit: u32) -> Result<u64, StoreError> {
        self.access(partition, |rows| {
            let floor_seq = rows.floor_seq;
            let is_old = |(seq_to, at): &(i64, Instant)| *seq_to < floor_seq && at.elapsed() > retain;
            let oldest = rows.batches.len().min(usize::try_from(limit).unwrap());
            u64::try_from(rows.batches.extract_if(..oldest, |batch| is_old(batch)).count()).unwrap()
        })
    }

    async fn start_generation(&self, partition: Partition) -> Result<i32, StoreError> {
        self.access(partition, |rows| {
            (rows.published_seq, rows.diverged_seq) = (rows.floor_seq - 1, None);
            rows.batches.clear();
            rows.generation += 1;
            rows.generation
        })
    }

    async fn status(&self) -> Result<Vec<PartitionStatus>, StoreError> {
        let status = |partition| {
            self.access(partition, |rows| PartitionStatus {
                partition,
                generation: rows.generation,
                seq: i64::try_from(rows.events.len()).unwrap(),
                published_seq: rows.published_seq,
                floor_seq: rows.floor_seq,
                diverged_seq: rows.diverged_seq,
                owner: rows.owner.clone(),
                epoch: rows.epoch,
                leased_until: (rows.owner.is_some() && rows.until > Instant::now()).then(|| SystemClock.now()),
                oldest_waiting_at: rows
                    .events
                    .get(usize::try_from(rows.published_seq).unwrap())
                    .map(|event| event.recorded_at),
            })
        };
        Partition::all().map(status).collect()
    }
}
