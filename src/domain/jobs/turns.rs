//! Turns: queues are served in the proportion of their weights (stride scheduling: Waldspurger and Weihl, 1995).

use std::collections::BTreeMap;

/// What a job moves its queue on, divided by the weight. Every weight divides it without a rest that matters.
const STRIDE: u64 = 1 << 20;

/// How far each queue is. The one that is least far is served next.
#[derive(Clone, Debug)]
pub struct Turns<K> {
    passes: BTreeMap<K, u64>,
    /// How far the queue was that was served last: one that had nothing to do meanwhile goes on from there, and does not catch up.
    floor: u64,
}

impl<K: Ord> Default for Turns<K> {
    fn default() -> Self {
        Self { passes: BTreeMap::new(), floor: 0 }
    }
}

impl<K: Ord + Clone> Turns<K> {
    /// Whose turn it is.
    pub fn next(&self, candidates: impl IntoIterator<Item = K>) -> Option<K> {
        candidates.into_iter().min_by_key(|key| (self.pass_of(key), key.clone()))
    }

    /// So many jobs were taken of the queue.
    pub fn took(&mut self, key: &K, jobs: u64, weight: i32) {
        let (pass, weight) = (self.pass_of(key), u64::try_from(weight.max(1)).unwrap_or(1));
        self.floor = pass;
        self.passes.insert(key.clone(), pass.saturating_add(jobs.saturating_mul(STRIDE) / weight));
    }

    fn pass_of(&self, key: &K) -> u64 {
        self.passes.get(key).copied().unwrap_or_default().max(self.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(
        turns: &mut Turns<&'static str>,
        names: &[&'static str],
        times: u32,
        jobs: u64,
    ) -> BTreeMap<&'static str, u64> {
        let weights = BTreeMap::from([("billing", 8), ("default", 4), ("notifications", 3)]);
        let mut served = BTreeMap::new();
        for _ in 0..times {
            let next = turns.next(names.iter().copied()).unwrap();
            turns.took(&next, jobs, weights[next]);
            *served.entry(next).or_default() += jobs;
        }
        served
    }

    #[test]
    fn queues_are_served_in_the_proportion_of_their_weights() {
        let all = ["billing", "default", "notifications"];
        for jobs in [1, 32] {
            let served = serve(&mut Turns::default(), &all, 1500, jobs);
            assert_eq!(
                served,
                BTreeMap::from([("billing", 800 * jobs), ("default", 400 * jobs), ("notifications", 300 * jobs)])
            );
        }
        assert_eq!(Turns::<u8>::default().next([]), None);
    }

    #[test]
    fn a_queue_that_had_nothing_to_do_does_not_catch_up() {
        let mut turns = Turns::default();
        serve(&mut turns, &["billing", "default"], 1200, 1);
        let served = serve(&mut turns, &["billing", "default", "notifications"], 15, 1);
        assert!(served["notifications"] <= 4, "{served:?}");
    }
}
