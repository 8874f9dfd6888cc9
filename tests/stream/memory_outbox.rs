//! An outbox in memory, with faults on demand. The real ones are held to the same behaviour by the
//! conformance suite.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use visionscope_billing::domain::event::EventRecord;
use visionscope_billing::domain::ids::Partition;
use visionscope_billing::store::queries::{EventPosition, Lease, PartitionStatus, Publication, Recorded};
use visionscope_billing::store::{Outbox, StoreError};

use crate::events::event;

struct Shelf {
    events: Vec<EventRecord>,
    owner: Option<String>,
    until: Instant,
    epoch: i64,
    generation: i32,
    published_seq: i64,
    diverged_seq: Option<i64>,
}

impl Shelf {
    /// As in the real stores, an expired lease that nobody took over is still in force.
    fn is_in_force(&self, lease: &Lease) -> bool {
        (self.owner.as_deref(), self.epoch, self.generation)
            == (Some(lease.owner.as_str()), lease.epoch, lease.generation)
    }
}

pub struct MemoryOutbox {
    shelves: Mutex<Vec<Shelf>>,
    /// So many calls of `record` fail without having recorded anything.
    pub failing_records: AtomicU32,
    /// How often a partition of it was read, in how many statements, and how often it was recorded.
    pub reads: AtomicU32,
    pub statements: AtomicU32,
    pub records: AtomicU32,
    pub is_down: AtomicBool,
    /// The events of this partition cannot be read.
    pub unreadable: Mutex<Option<Partition>>,
    /// Answers nobody is given a lease for.
    pub is_lease_ignored: AtomicBool,
}

impl MemoryOutbox {
    pub fn new() -> Self {
        let shelf = || Shelf {
            events: Vec::new(),
            owner: None,
            until: Instant::now(),
            epoch: 0,
            generation: 1,
            published_seq: 0,
            diverged_seq: None,
        };
        Self {
            shelves: Mutex::new(Partition::all().map(|_| shelf()).collect()),
            failing_records: AtomicU32::new(0),
            reads: AtomicU32::new(0),
            statements: AtomicU32::new(0),
            unreadable: Mutex::new(None),
            records: AtomicU32::new(0),
            is_down: AtomicBool::new(false),
            is_lease_ignored: AtomicBool::new(false),
        }
    }

    /// Commits so many more events and returns them.
    pub fn commit(&self, partition: Partition, count: i64) -> Vec<EventRecord> {
        let mut shelves = self.shelves.lock().unwrap();
        let events = &mut shelves[usize::from(partition.number())].events;
        let last = i64::try_from(events.len()).unwrap();
        events.extend((last + 1..=last + count).map(|seq| event(partition, seq)));
        events[usize::try_from(last).unwrap()..].to_vec()
    }

    pub fn all(&self, partition: Partition) -> Vec<EventRecord> {
        self.shelves.lock().unwrap()[usize::from(partition.number())].events.clone()
    }

    /// Lets all leases expire.
    pub fn expire_leases(&self) {
        self.shelves.lock().unwrap().iter_mut().for_each(|shelf| shelf.until = Instant::now());
    }

    /// Another publisher takes the partition over.
    pub fn give_to_another(&self, partition: Partition) {
        let taken = &mut self.shelves.lock().unwrap()[usize::from(partition.number())];
        (taken.owner, taken.until) = (Some("another".into()), Instant::now() + Duration::from_mins(10));
        taken.epoch += 1;
    }

    pub fn published_seq(&self, partition: Partition) -> i64 {
        self.shelves.lock().unwrap()[usize::from(partition.number())].published_seq
    }

    pub fn diverged_seq(&self, partition: Partition) -> Option<i64> {
        self.shelves.lock().unwrap()[usize::from(partition.number())].diverged_seq
    }

    pub fn leases_of_anyone(&self) -> usize {
        self.shelves.lock().unwrap().iter().filter(|shelf| shelf.owner.is_some()).count()
    }

    fn with<T>(&self, partition: Partition, act: impl FnOnce(&mut Shelf) -> T) -> Result<T, StoreError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("down".into()));
        }
        Ok(act(&mut self.shelves.lock().unwrap()[usize::from(partition.number())]))
    }
}

#[async_trait]
impl Outbox for MemoryOutbox {
    async fn lease(&self, owner: &str, ttl: Duration) -> Result<Vec<Lease>, StoreError> {
        let mut leases = Vec::new();
        for partition in Partition::all() {
            let ignored = self.is_lease_ignored.load(Ordering::SeqCst);
            let lease = self.with(partition, |shelf| {
                let is_mine = shelf.owner.as_deref() == Some(owner);
                if shelf.owner.is_some() && !is_mine && shelf.until > Instant::now() && !ignored {
                    return None;
                }
                if !is_mine {
                    shelf.epoch += 1;
                    shelf.owner = Some(owner.to_owned());
                }
                shelf.until = Instant::now() + ttl;
                Some(Lease {
                    partition,
                    owner: owner.to_owned(),
                    epoch: shelf.epoch,
                    generation: shelf.generation,
                    published_seq: shelf.published_seq,
                    diverged_seq: shelf.diverged_seq,
                })
            })?;
            leases.extend(lease);
        }
        Ok(leases)
    }

    async fn release(&self, owner: &str) -> Result<(), StoreError> {
        for partition in Partition::all() {
            self.with(partition, |shelf| shelf.owner.take_if(|by| by == owner))?;
        }
        Ok(())
    }

    async fn heads(&self) -> Result<Vec<EventPosition>, StoreError> {
        let head = |partition| {
            let seq = self.with(partition, |shelf| i64::try_from(shelf.events.len()).unwrap())?;
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
                return Err(StoreError::Corrupt("an event that nobody can read".into()));
            }
            let (after, limit) = (usize::try_from(*seq).unwrap(), usize::try_from(limit).unwrap());
            events.extend(
                self.with(*partition, |shelf| {
                    shelf.events.iter().skip(after).take(limit).cloned().collect::<Vec<_>>()
                })?,
            );
        }
        Ok(events)
    }

    async fn record(&self, publications: &[Publication]) -> Result<Vec<Recorded>, StoreError> {
        self.records.fetch_add(1, Ordering::SeqCst);
        let fails = |left: u32| left.checked_sub(1);
        if self.failing_records.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
            return Err(StoreError::Unavailable("as ordered".into()));
        }
        let record = |Publication { lease, seq_to }: &Publication| {
            self.with(lease.partition, |shelf| {
                if !shelf.is_in_force(lease) {
                    return Recorded::LeaseLost;
                }
                shelf.published_seq = shelf.published_seq.max(*seq_to);
                Recorded::Done
            })
        };
        publications.iter().map(record).collect()
    }

    async fn mark_diverged(&self, lease: &Lease, seq: i64) -> Result<Recorded, StoreError> {
        self.with(lease.partition, |shelf| {
            if !shelf.is_in_force(lease) {
                return Recorded::LeaseLost;
            }
            shelf.diverged_seq = Some(seq);
            Recorded::Done
        })
    }

    async fn start_generation(&self, partition: Partition) -> Result<i32, StoreError> {
        self.with(partition, |shelf| {
            (shelf.published_seq, shelf.diverged_seq) = (0, None);
            shelf.generation += 1;
            shelf.generation
        })
    }

    async fn status(&self) -> Result<Vec<PartitionStatus>, StoreError> {
        let status = |partition| {
            self.with(partition, |shelf| PartitionStatus {
                partition,
                generation: shelf.generation,
                seq: i64::try_from(shelf.events.len()).unwrap(),
                published_seq: shelf.published_seq,
                diverged_seq: shelf.diverged_seq,
                owner: shelf.owner.clone(),
                epoch: shelf.epoch,
                is_leased: shelf.owner.is_some() && shelf.until > Instant::now(),
                oldest_waiting_at: shelf
                    .events
                    .get(usize::try_from(shelf.published_seq).unwrap())
                    .map(|event| event.recorded_at),
            })
        };
        Partition::all().map(status).collect()
    }
}
