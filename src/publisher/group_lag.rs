//! The lag of the consumer groups, for the metrics.
//!
//! It is computed from ids, because an id is an event's number. The `lag` of Redis itself is wrong after a trim on
//! Redis 7.0, and unknown after others.

use std::collections::BTreeMap;

use crate::domain::ids::Partition;
use crate::store::queries::PartitionStatus;
use crate::stream::{EventStream, GroupPosition, StreamError};

/// The most groups with a time series of their own.
const MAX_NAMES: usize = 100;
/// A longer name has no series of its own.
const MAX_NAME_BYTES: usize = 100;
/// The series of all groups without one of their own.
const OTHERS: &str = "_others";

/// The positions of all groups.
pub(super) async fn read_groups(
    stream: &dyn EventStream,
    partitions: &[PartitionStatus],
) -> Result<Vec<(Partition, GroupPosition)>, StreamError> {
    let mut groups = Vec::new();
    for status in partitions {
        let found = stream.groups(status.partition, status.generation).await?;
        groups.extend(found.into_iter().map(|group| (status.partition, group)));
    }
    Ok(groups)
}

/// The lag of each group: the events of all partitions where it has read after its last one.
///
/// A group that is gone keeps its last position, and its lag grows. It is lost with its stream, or its consumer has
/// not come to a new generation yet; either way somebody waits for events. Which group was destroyed on purpose cannot
/// be known.
#[derive(Default)]
pub(super) struct GroupLags {
    delivered: BTreeMap<String, BTreeMap<Partition, i64>>,
    lags: BTreeMap<String, i64>,
}

impl GroupLags {
    pub(super) fn update(
        &mut self,
        groups: Vec<(Partition, GroupPosition)>,
        partitions: &[PartitionStatus],
    ) -> &BTreeMap<String, i64> {
        let head =
            |partition| partitions.iter().find(|status| status.partition == partition).map_or(0, |found| found.seq);
        let lag = |partition, delivered: i64| head(partition).saturating_sub(delivered).max(0);
        let mut others = None;
        for (partition, group) in groups {
            let has_series = self.delivered.contains_key(&group.name)
                || (self.delivered.len() < MAX_NAMES && group.name.len() <= MAX_NAME_BYTES);
            let delivered = group.delivered_seq();
            if has_series {
                self.delivered.entry(group.name).or_default().insert(partition, delivered);
            } else {
                *others.get_or_insert(0) += lag(partition, delivered);
            }
        }
        let sum = |of: &BTreeMap<Partition, i64>| of.iter().map(|(partition, seq)| lag(*partition, *seq)).sum();
        let named = self.delivered.iter().map(|(name, delivered)| (name.clone(), sum(delivered)));
        // A series that was shown once is shown until the process ends.
        let had_others = self.lags.contains_key(OTHERS).then_some(0);
        self.lags = named.chain(others.or(had_others).map(|lag| (OTHERS.to_owned(), lag))).collect();
        &self.lags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::EntryId;

    fn partition(number: u8) -> Partition {
        Partition::new(number).unwrap()
    }

    fn at(number: u8, name: &str, seq: i64) -> (Partition, GroupPosition) {
        (partition(number), GroupPosition { name: name.to_owned(), last_delivered: EntryId::of(seq) })
    }

    fn heads(heads: &[i64]) -> Vec<PartitionStatus> {
        let status = |(number, seq): (u8, &i64)| PartitionStatus {
            partition: partition(number),
            generation: 1,
            seq: *seq,
            published_seq: *seq,
            floor_seq: 1,
            diverged_seq: None,
            owner: None,
            epoch: 0,
            leased_until: None,
            oldest_waiting_at: None,
        };
        (0..).zip(heads).map(status).collect()
    }

    #[test]
    fn the_lag_of_a_group_is_the_sum_over_its_partitions() {
        let groups = vec![at(0, "mail", 3), at(1, "mail", 20), at(1, "ahead", 99)];
        let mut lags = GroupLags::default();
        let found = lags.update(groups, &heads(&[10, 20]));
        assert_eq!(*found, BTreeMap::from([("ahead".to_owned(), 0), ("mail".to_owned(), 7)]));
    }

    #[test]
    fn a_group_that_is_lost_with_its_stream_falls_behind() {
        let mut lags = GroupLags::default();
        assert_eq!(lags.update(vec![at(0, "mail", 10), at(1, "mail", 5)], &heads(&[10, 5]))["mail"], 0);
        assert_eq!(lags.update(vec![at(1, "mail", 6)], &heads(&[14, 6]))["mail"], 4);
        assert_eq!(lags.update(vec![at(0, "mail", 14), at(1, "mail", 6)], &heads(&[14, 6]))["mail"], 0, "it is back");
    }

    #[test]
    fn the_number_and_the_length_of_names_are_bounded() {
        let mut lags = GroupLags::default();
        let many = (0..150).map(|n| at(0, &format!("g{n:03}"), 0)).collect();
        let found = lags.update(many, &heads(&[1]));
        assert_eq!((found.len(), found[OTHERS]), (MAX_NAMES + 1, 50));
        assert_eq!(lags.update(vec![at(0, &"x".repeat(101), 0)], &heads(&[4]))[OTHERS], 4);
        assert_eq!(lags.update(Vec::new(), &heads(&[4]))[OTHERS], 0);
    }
}
