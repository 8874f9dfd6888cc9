//! Identifiers, and how a command's other ids are derived from its own.
//!
//! The domain has no randomness. The only random id of a command is its `message_id`, which its sender creates.
//! The ids of its grants, events and internal commands are derived from it, so deciding twice gives the same
//! rows.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use super::text::IdempotencyKey;
use super::time::Timestamp;

macro_rules! uuid_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_type!(
    /// The paying tenant.
    WorkspaceId
);
uuid_type!(
    /// A command's own id: the `message_id` of its envelope.
    CommandId
);
uuid_type!(
    /// One lot of credits.
    GrantId
);
uuid_type!(
    /// Credits that are reserved.
    HoldId
);
uuid_type!(
    /// What a refund gave back.
    RefundId
);
uuid_type!(
    /// What a reversal took back of a purchase.
    ReversalId
);
uuid_type!(
    /// One event, and the key by which a consumer knows it again.
    EventId
);
uuid_type!(
    /// One notification, and the key by which whoever sends it knows it again.
    NotificationId
);
uuid_type!(
    /// Work that waits in a queue.
    JobId
);
uuid_type!(
    /// The right to end a job. It is drawn at random: who does not have the lease does not know it.
    LeaseId
);
uuid_type!(
    /// A process that runs jobs.
    WorkerId
);
uuid_type!(
    /// What ties a workspace to a plan.
    SubscriptionId
);

impl CommandId {
    /// The id of an internal command that this command causes. The ids derived from both must not collide, so the
    /// random bits are mixed instead of taken from the same sequence.
    #[must_use]
    pub fn of_internal_command(self) -> Self {
        Self(with_random_bits(self.0, mix(low_bits(self.0))))
    }
}

impl GrantId {
    /// The id of a grant that is issued when a period begins: `number` counts the grants of that period. It depends on
    /// nothing else, so a read can show the grants of a period that has begun and is not recorded yet.
    #[must_use]
    pub fn of_period(subscription_id: SubscriptionId, period_start: Timestamp, number: u8) -> Self {
        const VERSION_7: u128 = 7 << 76;
        let micros = u64::try_from(period_start.micros()).unwrap_or_default();
        let time = (u128::from(micros / 1000) << 80) | VERSION_7 | (u128::from(micros % 1000) << 64);
        let seed = mix(low_bits(subscription_id.0)).wrapping_add(micros);
        Self(with_random_bits(Uuid::from_u128(time), mix(mix(seed).wrapping_add(u64::from(number)))))
    }
}

impl JobId {
    /// The id of the job that a workspace sends with this key: the same key is the same job. It is a version 8 UUID (RFC 9562).
    #[must_use]
    pub fn of_key(workspace_id: WorkspaceId, key: &IdempotencyKey) -> Self {
        let hash = Sha256::new().chain_update(workspace_id.0).chain_update(key.as_str()).finalize();
        Self(uuid::Builder::from_custom_bytes(std::array::from_fn(|n| hash[n])).into_uuid())
    }
}

impl NotificationId {
    /// The id of a notification that is made of an event: `number` tells the kinds that one event makes from each other.
    /// It depends on nothing else, so it is the same when the notification is made again.
    #[must_use]
    pub fn of_event(event_id: EventId, number: u8) -> Self {
        let seed = mix(low_bits(event_id.0)).wrapping_add(u64::from(number));
        Self(with_random_bits(event_id.0, mix(seed)))
    }
}

/// The half of an id with its variant and its 62 random bits.
fn low_bits(id: Uuid) -> u64 {
    u64::try_from(id.as_u128() & u128::from(u64::MAX)).unwrap_or_default()
}

/// The same id with other random bits.
fn with_random_bits(id: Uuid, bits: u64) -> Uuid {
    let variant = (bits & (u64::MAX >> 2)) | (0b10 << 62);
    Uuid::from_u128((id.as_u128() & !u128::from(u64::MAX)) | u128::from(variant))
}

/// The finalizer of SplitMix64: a bijection that lets no two similar numbers stay similar.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The number of partitions. It can never change for an existing database, because the hash below and the
/// sequence numbers of every stream depend on it.
pub const PARTITIONS: u8 = 16;

/// A shard: every workspace belongs to exactly one, and each has one strictly serial sequence of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Partition(u8);

impl Partition {
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < PARTITIONS { Some(Self(number)) } else { None }
    }

    /// The partition of a workspace: FNV-1a over the sixteen bytes of its id, folded. It must never
    /// change: rows on disk depend on it.
    #[must_use]
    pub fn of(workspace_id: WorkspaceId) -> Self {
        let hash = workspace_id
            .0
            .as_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        let folded = hash ^ (hash >> 32);
        let [low, ..] = (folded % u64::from(PARTITIONS)).to_le_bytes();
        Self(low)
    }

    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The number as the stores keep it.
    #[must_use]
    pub fn stored(self) -> i16 {
        i16::from(self.0)
    }

    pub fn all() -> impl Iterator<Item = Self> {
        (0..PARTITIONS).map(Self)
    }
}

/// Derives ids from a base id. They keep the time part of the base, so that they sort beside it. Their other bits
/// are the base's random bits, changed by a counter through a bijection, so that no two ids are equal.
#[derive(Debug)]
pub struct IdSequence {
    base: Uuid,
    next: u64,
}

impl IdSequence {
    #[must_use]
    pub fn new(base: CommandId) -> Self {
        Self { base: base.0, next: 0 }
    }

    /// The next id: a version 7 UUID (RFC 9562) when the base is one.
    pub fn draw(&mut self) -> Uuid {
        self.next += 1;
        // An odd multiplier permutes the 62 random bits; the counter makes each step another one.
        with_random_bits(self.base, low_bits(self.base).wrapping_add(self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn derived_ids_differ_from_each_other_and_sort_by_the_time_of_their_base() {
        let base = CommandId(Uuid::parse_str("019a0000-0000-7000-8000-000000000001").unwrap());
        let later = Uuid::parse_str("019a0000-0001-7000-8000-000000000000").unwrap();
        let mut sequence = IdSequence::new(base);
        let ids: Vec<_> = (0..10_000).map(|_| sequence.draw()).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        assert!(ids.iter().all(|id| *id < later && id.get_version_num() == 7 && *id != base.0));
    }

    #[test]
    fn the_ids_of_an_internal_command_never_collide_with_those_of_its_cause() {
        let base = CommandId(Uuid::parse_str("019a0000-0000-7000-8000-000000000001").unwrap());
        let draw = |base: CommandId| {
            let mut sequence = IdSequence::new(base);
            (0..1000).map(|_| sequence.draw()).collect::<HashSet<_>>()
        };
        let internal = base.of_internal_command();
        assert_eq!(internal.0.get_version_num(), 7);
        assert!(draw(base).is_disjoint(&draw(internal)));
    }

    #[test]
    fn the_grants_of_a_period_have_ids_of_their_own_with_the_time_of_its_start() {
        let of = |subscription: u128, micros: i64, number: u8| {
            GrantId::of_period(SubscriptionId(Uuid::from_u128(subscription)), Timestamp::from_micros(micros), number).0
        };
        let start = 1_767_225_600_123_456;
        assert_eq!(of(1, start, 0), of(1, start, 0));
        let ids = [of(1, start, 0), of(1, start, 1), of(2, start, 0), of(1, start + 1, 0), of(1, start + 1000, 0)];
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
        assert!(ids.iter().all(|id| id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122));
        assert!(ids.is_sorted_by_key(|id| id.as_u128() >> 64));
        assert_eq!(of(1, start, 0).get_timestamp().unwrap().to_unix(), (1_767_225_600, 123_000_000));
    }

    #[test]
    fn the_notifications_of_events_have_ids_of_their_own_with_the_time_of_the_event() {
        let mut sequence = IdSequence::new(CommandId(Uuid::parse_str("019a0000-0000-7000-8000-000000000001").unwrap()));
        let events: Vec<_> = (0..1000).map(|_| EventId(sequence.draw())).collect();
        let of = |number| events.iter().map(move |event_id| NotificationId::of_event(*event_id, number).0);
        let ids: HashSet<_> = (1..=6).flat_map(of).chain(events.iter().map(|event_id| event_id.0)).collect();
        assert_eq!(ids.len(), 7000);
        assert!(ids.iter().all(|id| id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122));
        assert!(ids.iter().all(|id| id.as_u128() >> 80 == 0x019a_0000_0000));
    }

    #[test]
    fn deriving_twice_gives_the_same_ids() {
        let base = CommandId(Uuid::from_u128(7));
        assert_eq!(IdSequence::new(base).draw(), IdSequence::new(base).draw());
    }

    #[test]
    fn the_partition_of_a_workspace_never_changes_and_all_are_used() {
        let of = |n: u128| Partition::of(WorkspaceId(Uuid::from_u128(n))).number();
        assert_eq!([of(0), of(1), of(u128::MAX)], PINNED);
        let used: HashSet<_> = (0..1000).map(of).collect();
        assert_eq!(used.len(), usize::from(PARTITIONS));
    }

    /// What the hash gave when it was introduced.
    const PINNED: [u8; 3] = [12, 11, 13];
}
