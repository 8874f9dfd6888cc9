//! Identifiers, and how a command's other ids are derived from its own.
//!
//! The domain has no randomness. The only random id of a command is its `message_id`, which its sender creates.
//! The ids of its grants, events and internal commands are derived from it, so deciding twice gives the same
//! rows.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

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
    /// One event, and the key by which a consumer knows it again.
    EventId
);
uuid_type!(
    /// What ties a workspace to a plan.
    SubscriptionId
);

impl CommandId {
    /// The id of an internal command that this command causes. The ids derived from both must not collide, so the
    /// random bits are mixed (with the finalizer of SplitMix64, which is a bijection) instead of taken from the
    /// same sequence.
    #[must_use]
    pub fn of_internal_command(self) -> Self {
        let bits = self.0.as_u128();
        let mut low = u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
        low = (low ^ (low >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        low = (low ^ (low >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low ^= low >> 31;
        let variant = (low & (u64::MAX >> 2)) | (0b10 << 62);
        Self(Uuid::from_u128((bits & !u128::from(u64::MAX)) | u128::from(variant)))
    }
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
    base: u128,
    next: u64,
}

impl IdSequence {
    #[must_use]
    pub fn new(base: CommandId) -> Self {
        Self { base: base.0.as_u128(), next: 0 }
    }

    /// The next id: a version 7 UUID (RFC 9562) when the base is one.
    pub fn draw(&mut self) -> Uuid {
        const VARIANT_AND_RANDOM: u128 = (1 << 64) - 1;
        self.next += 1;
        let low = u64::try_from(self.base & VARIANT_AND_RANDOM).unwrap_or_default();
        // An odd multiplier permutes the 62 random bits; the counter makes each step another one.
        let moved =
            (low & (u64::MAX >> 2)).wrapping_add(self.next.wrapping_mul(0x9e37_79b9_7f4a_7c15)) & (u64::MAX >> 2);
        let variant = 0b10_u64 << 62;
        Uuid::from_u128((self.base & !VARIANT_AND_RANDOM) | u128::from(variant | moved))
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
