//! Which grant and which feature of a workspace are kept in its own row, and which rows that saves.
//!
//! See [`Current`] in [`super::workspace`]. What a batch changed goes to the row of its own, but for one
//! grant and one feature, and what was current and is not any more gets its own row back.

use std::collections::BTreeMap;

use super::credits::Credits;
use super::grant::Grant;
use super::ids::GrantId;
use super::snapshot::WorkspaceState;
use super::text::FeatureCode;
use super::workspace::{Current, CurrentFeature, CurrentGrant, WorkspaceCredits, WorkspaceFeature};

/// What a batch did to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// Only the figures that deductions move.
    Moved,
    /// Anything else of it too.
    Altered,
    /// It was made in this batch.
    Inserted,
}

/// The changed grants and features of one workspace.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub grants: BTreeMap<GrantId, Change>,
    pub features: BTreeMap<FeatureCode, Change>,
}

impl Changed {
    pub(super) fn grant(&mut self, id: GrantId, change: Change) {
        note(&mut self.grants, id, change);
    }

    pub(super) fn feature(&mut self, code: FeatureCode, change: Change) {
        note(&mut self.features, code, change);
    }

    /// Whether no row is to be written beside the workspace's own.
    pub(super) fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.features.is_empty()
    }

    /// Says what is current from now on. Its row needs no writing, and leaves the changes; that of
    /// what was current before joins them.
    pub(super) fn settle(&mut self, state: &mut WorkspaceState) {
        let before = std::mem::take(&mut state.credits.current);
        let remaining = state.grants.iter().filter(|grant| grant.remaining > Credits::ZERO);
        let (id, ids) = (before.grant.map(|grant| grant.grant_id), remaining.map(|grant| &grant.grant_id));
        let id = hand_over(&mut self.grants, id, &ids);
        let code = before.feature.map(|feature| feature.feature_code);
        let code = hand_over(&mut self.features, code, &state.features.codes());
        let grant = id.and_then(|id| state.grants.iter().find(|grant| grant.grant_id == id));
        let feature = code.and_then(|code| state.features.get(&code));
        state.credits.current =
            Current { grant: grant.map(CurrentGrant::of), feature: feature.map(CurrentFeature::of) };
    }
}

impl WorkspaceState {
    /// Goes on to the workspace's row as somebody else has left it, which also says what became of the
    /// current grant and feature. False if more than the row was written since, or it is older: then all of
    /// the state is to be read.
    pub fn catch_up(&mut self, credits: WorkspaceCredits) -> bool {
        let is_later = credits.command_seq >= self.credits.command_seq;
        if !is_later || credits.rest_seq > self.credits.command_seq {
            return false;
        }
        if let Some(current) = credits.current.grant {
            let Some(grant) = self.grants.iter_mut().find(|grant| grant.grant_id == current.grant_id) else {
                return false;
            };
            (grant.remaining, grant.held) = (current.remaining, current.held);
        }
        if let Some(current) = &credits.current.feature {
            let Some(feature) = self.features.get_mut(&current.feature_code) else { return false };
            (feature.used_this_month, feature.limit_fired) = (current.used_this_month, current.limit_fired);
        }
        self.credits = credits;
        true
    }
}

fn note<K: Ord>(changes: &mut BTreeMap<K, Change>, key: K, change: Change) {
    let known = changes.entry(key).or_insert(change);
    *known = change.max(*known);
}

/// From what was current before to what is from now on: the same one as long as it may stay and moved, or
/// nothing else did; or else the first of the keys that moved.
fn hand_over<'k, K: Ord + Clone + 'k>(
    changes: &mut BTreeMap<K, Change>,
    before: Option<K>,
    keys: &(impl Iterator<Item = &'k K> + Clone),
) -> Option<K> {
    let change = |key: &K| changes.get(key).copied();
    let moved = keys.clone().find(|key| change(key) == Some(Change::Moved));
    let may_stay =
        |key: &&K| keys.clone().any(|other| other == *key) && change(key).is_none_or(|change| change == Change::Moved);
    let stays = before.as_ref().filter(may_stay).filter(|key| moved.is_none() || change(key).is_some());
    let next = stays.or(moved).cloned();
    if let Some(next) = &next {
        changes.remove(next);
    }
    if let Some(left) = before.filter(|left| next.as_ref() != Some(left)) {
        note(changes, left, Change::Moved);
    }
    next
}

impl CurrentGrant {
    const fn of(grant: &Grant) -> Self {
        Self { grant_id: grant.grant_id, remaining: grant.remaining, held: grant.held }
    }
}

impl CurrentFeature {
    fn of(feature: &WorkspaceFeature) -> Self {
        Self {
            feature_code: feature.feature_code.clone(),
            used_this_month: feature.used_this_month,
            limit_fired: feature.limit_fired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::plan::tests::pro;
    use crate::domain::tests::World;

    fn code(text: &str) -> FeatureCode {
        FeatureCode::new(text).unwrap()
    }

    /// With three grants and the features a and b; nothing is current.
    fn state() -> WorkspaceState {
        let mut world = World::on(pro());
        world.purchase("5", "one");
        world.purchase("6", "two");
        let mut state = world.state().clone();
        let any = state.features.iter().next().cloned().unwrap();
        for text in ["a", "b"] {
            state.features.put(WorkspaceFeature { feature_code: code(text), ..any.clone() });
        }
        assert_eq!((state.grants.len(), &state.credits.current), (3, &Current::default()));
        state
    }

    /// What becomes of the current grant and feature, and which rows are written.
    fn settled(
        state: &mut WorkspaceState,
        grants: &[(usize, Change)],
        features: &[(&str, Change)],
    ) -> [Vec<String>; 2] {
        let mut changed = Changed::default();
        for (place, change) in grants {
            changed.grant(state.grants[*place].grant_id, *change);
        }
        for (text, change) in features {
            changed.feature(code(text), *change);
        }
        changed.settle(state);
        let place = |id: &GrantId| state.grants.iter().position(|grant| grant.grant_id == *id);
        let current = &state.credits.current;
        let grant = current.grant.and_then(|current| place(&current.grant_id));
        let kept = [grant.map(|place| place.to_string()), current.feature.as_ref().map(|f| f.feature_code.to_string())];
        let rows = changed.grants.keys().filter_map(place).map(|place| place.to_string());
        [kept.into_iter().flatten().collect(), rows.chain(changed.features.keys().map(ToString::to_string)).collect()]
    }

    #[test]
    fn what_moves_first_becomes_current_and_stays_while_nothing_else_moves() {
        let mut state = state();
        assert_eq!(settled(&mut state, &[], &[]), [vec![], Vec::<String>::new()]);
        let moved = |place| [(place, Change::Moved)];
        assert_eq!(settled(&mut state, &moved(1), &[("a", Change::Moved)]), [vec!["1", "a"], vec![]]);
        assert_eq!(settled(&mut state, &[], &[]), [vec!["1", "a"], vec![]]);
        assert_eq!(settled(&mut state, &moved(1), &[("a", Change::Moved)]), [vec!["1", "a"], vec![]]);
        // Another one takes its place, and it gets its own row back.
        assert_eq!(settled(&mut state, &moved(2), &[("b", Change::Moved)]), [vec!["2", "b"], vec!["1", "a"]]);
        // Of two that move, the current one stays.
        let both = [(0, Change::Moved), (2, Change::Moved)];
        assert_eq!(
            settled(&mut state, &both, &[("a", Change::Moved), ("b", Change::Moved)]),
            [vec!["2", "b"], vec!["0", "a"]]
        );
    }

    #[test]
    fn what_is_altered_new_or_spent_is_not_current() {
        let mut state = state();
        settled(&mut state, &[(1, Change::Moved)], &[("a", Change::Moved)]);
        let altered = settled(&mut state, &[(1, Change::Altered)], &[("a", Change::Altered)]);
        assert_eq!(altered, [vec![], vec!["1".to_owned(), "a".to_owned()]]);
        let new = settled(&mut state, &[(2, Change::Inserted)], &[("b", Change::Inserted)]);
        assert_eq!(new[0], Vec::<String>::new());
        settled(&mut state, &[(1, Change::Moved)], &[]);
        state.grants[1].remaining = Credits::ZERO;
        assert_eq!(settled(&mut state, &[(1, Change::Moved)], &[]), [vec![], vec!["1".to_owned()]]);
    }

    #[test]
    fn a_current_grant_that_was_closed_gives_way() {
        let mut state = state();
        settled(&mut state, &[(0, Change::Moved)], &[]);
        let closed = state.grants.remove(0).grant_id;
        let mut changed = Changed::default();
        changed.grant(closed, Change::Moved);
        changed.grant(state.grants[0].grant_id, Change::Moved);
        changed.settle(&mut state);
        assert_eq!(state.credits.current.grant.map(|current| current.grant_id), Some(state.grants[0].grant_id));
        assert_eq!(changed.grants.keys().collect::<Vec<_>>(), [&closed], "whoever gathers the closed ones writes it");
    }
}
