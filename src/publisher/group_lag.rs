//! The lag of the consumer groups, for the metrics.
//!
//! It is computed from ids, because an id is an event's number. The `lag` of Redis itself is wrong after a trim on
//! Redis 7.0, and unknown after others.

use std::collections::BTreeMap;

use crate::store::queries::PartitionStatus;
use crate::stream::{EventStream, GroupPosition, StreamError};

/// The most groups with a time series of their own. It never falls: a series that was shown once is shown until the
/// process ends.
const MAX_NAMES: usize = 100;
/// A longer name has no series of its own.
const MAX_NAME_BYTES: usize = 100;
/// The series of all groups without one of their own.
const OTHERS: &str = "_others";

/// The positions of all groups, each with the status of its partition.
pub(super) async fn read_groups(
    stream: &dyn EventStream,
    partitions: &[PartitionStatus],
) -> Result<Vec<(GroupPosition, i64)>, StreamError> {
    let mut groups = Vec::new();
    for status in partitions {
        let found = stream.groups(status.partition, status.generation).await?;
        groups.extend(found.into_iter().map(|group| (group, status.seq)));
    }
    Ok(groups)
}

/// The lag of each group: the events of all partitions where it has read after its last one.
#[derive(Default)]
pub(super) struct GroupLags(BTreeMap<String, i64>);

impl GroupLags {
    /// Takes the groups and the last event of each one's partition. A group that is gone has no lag.
    pub(super) fn update(&mut self, groups: Vec<(GroupPosition, i64)>) -> &BTreeMap<String, i64> {
        self.0.values_mut().for_each(|lag| *lag = 0);
        for (group, head) in groups {
            let lag = head.saturating_sub(group.delivered_seq()).max(0);
            let has_series =
                self.0.contains_key(&group.name) || (self.0.len() < MAX_NAMES && group.name.len() <= MAX_NAME_BYTES);
            let name = if has_series { group.name } else { OTHERS.to_owned() };
            *self.0.entry(name).or_default() += lag;
        }
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::EntryId;

    fn at(name: &str, seq: i64) -> GroupPosition {
        GroupPosition { name: name.to_owned(), last_delivered: EntryId::of(seq) }
    }

    #[test]
    fn the_lag_of_a_group_is_the_sum_over_its_partitions_and_zero_when_it_is_gone() {
        let mut lags = GroupLags::default();
        let groups = vec![(at("mail", 3), 10), (at("mail", 20), 20), (at("ahead", 99), 20)];
        assert_eq!(*lags.update(groups), BTreeMap::from([("ahead".to_owned(), 0), ("mail".to_owned(), 7)]));
        assert_eq!(lags.update(vec![(at("ahead", 5), 6)])["mail"], 0);
    }

    #[test]
    fn the_number_and_the_length_of_names_are_bounded() {
        let mut lags = GroupLags::default();
        let many = (0..150).map(|n| (at(&format!("g{n:03}"), 0), 1)).collect();
        let found = lags.update(many);
        assert_eq!((found.len(), found[OTHERS]), (MAX_NAMES + 1, 50));
        assert_eq!(lags.update(vec![(at(&"x".repeat(101), 0), 4)])[OTHERS], 4);
    }
}
