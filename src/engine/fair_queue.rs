//! A bounded queue in which no workspace waits behind another's backlog.
//!
//! Each workspace has a first-in-first-out queue of its own, and they take turns (round robin). So a command waits
//! for the commands of its own workspace, and for one command of each other workspace per turn.
//!
//! *Places are shared, too.* A workspace may have as many commands waiting as places are free: the dynamic
//! threshold of shared-memory switches (Choudhury and Hahne, 1998). One workspace alone fills half of the queue,
//! and two fill a third each. What they leave free is for others: a workspace without waiting commands is refused
//! only if no place is free at all.
//!
//! Deliberately absent: weights and priorities. Every workspace is worth the same.

use std::collections::{HashMap, VecDeque};

use crate::domain::ids::WorkspaceId;

/// Why a command was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// No place is free.
    Full,
    /// The workspace has all the places that it may have.
    OverShare,
}

#[derive(Debug)]
pub(super) struct FairQueue<T> {
    capacity: usize,
    len: usize,
    /// The waiting commands of each workspace, oldest first. None is empty.
    backlogs: HashMap<WorkspaceId, VecDeque<T>>,
    /// The workspaces with waiting commands, each once, in the order of their turns.
    turns: VecDeque<WorkspaceId>,
}

impl<T> FairQueue<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, len: 0, backlogs: HashMap::new(), turns: VecDeque::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many workspaces have waiting commands.
    pub(super) fn workspaces(&self) -> usize {
        self.turns.len()
    }

    /// Queues a command, unless its workspace has its share of the places or `max_backlog` waiting commands already.
    pub(super) fn push(&mut self, workspace_id: WorkspaceId, command: T, max_backlog: usize) -> Result<(), Refused> {
        let free = self.capacity - self.len;
        if free == 0 {
            return Err(Refused::Full);
        }
        let backlog = self.backlogs.entry(workspace_id).or_default();
        if backlog.is_empty() {
            self.turns.push_back(workspace_id);
        } else if backlog.len() >= free.min(max_backlog) {
            return Err(Refused::OverShare);
        }
        backlog.push_back(command);
        self.len += 1;
        Ok(())
    }

    /// Takes up to `max` commands, at most `max_turns` of each workspace. Where it stops, the next call goes on.
    pub(super) fn take(&mut self, max: usize, max_turns: usize) -> Vec<T> {
        let mut taken = Vec::with_capacity(max.min(self.len));
        for _ in 0..max_turns.min(max) {
            for _ in 0..self.turns.len() {
                if taken.len() == max {
                    return taken;
                }
                taken.extend(self.take_turn());
            }
        }
        taken
    }

    fn take_turn(&mut self) -> Option<T> {
        let workspace_id = self.turns.pop_front()?;
        let backlog = self.backlogs.get_mut(&workspace_id)?;
        let command = backlog.pop_front();
        self.len -= 1;
        if backlog.is_empty() {
            self.backlogs.remove(&workspace_id);
        } else {
            self.turns.push_back(workspace_id);
        }
        command
    }

    /// Removes all commands.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const NO_LIMIT: usize = usize::MAX;

    fn workspace(number: u8) -> WorkspaceId {
        WorkspaceId(Uuid::from_u128(number.into()))
    }

    /// Queues commands of a workspace until one is refused. Returns how many were queued, and why one was refused.
    fn flood(queue: &mut FairQueue<(u8, usize)>, number: u8) -> (usize, Refused) {
        for n in 0.. {
            if let Err(refused) = queue.push(workspace(number), (number, n), NO_LIMIT) {
                return (n, refused);
            }
        }
        unreachable!("the queue has a bound")
    }

    #[test]
    fn floods_share_the_queue_and_leave_a_share_free() {
        for (floods, shares) in [(1, &[512][..]), (2, &[512, 256]), (3, &[512, 256, 128])] {
            let mut queue = FairQueue::new(1024);
            let got: Vec<_> = (0..floods).map(|number| flood(&mut queue, number)).collect();
            let expected: Vec<_> = shares.iter().map(|share| (*share, Refused::OverShare)).collect();
            assert_eq!(got, expected);
            assert_eq!(queue.push(workspace(9), (9, 0), NO_LIMIT), Ok(()), "a newcomer finds a place");
        }
    }

    #[test]
    fn floods_that_go_on_get_equal_shares() {
        let mut queue = FairQueue::new(900);
        for _ in 0..1000 {
            flood(&mut queue, 1);
            flood(&mut queue, 2);
            queue.take(32, 16);
        }
        flood(&mut queue, 1);
        flood(&mut queue, 2);
        let waiting = [1, 2].map(|number| queue.backlogs[&workspace(number)].len());
        assert!(waiting[0].abs_diff(waiting[1]) <= 32, "they differ by a batch at most: {waiting:?}");
    }

    #[test]
    fn a_queue_of_one_place_takes_one_command() {
        let mut queue = FairQueue::new(1);
        assert_eq!(queue.push(workspace(1), 'a', NO_LIMIT), Ok(()));
        assert_eq!(queue.push(workspace(2), 'b', NO_LIMIT), Err(Refused::Full));
        assert_eq!((queue.take(5, 5), queue.len()), (vec!['a'], 0));
    }

    #[test]
    fn a_backlog_has_a_bound_of_its_own_from_its_second_command_on() {
        let mut queue = FairQueue::new(100);
        assert_eq!(queue.push(workspace(1), 0, 0), Ok(()), "a newcomer is always taken");
        assert_eq!(queue.push(workspace(1), 1, 1), Err(Refused::OverShare));
        assert_eq!(queue.push(workspace(1), 2, 2), Ok(()));
    }

    #[test]
    fn workspaces_take_turns() {
        let mut queue = FairQueue::new(100);
        for (number, commands) in [(1, "abcdef"), (2, "gh"), (3, "i")] {
            for command in commands.chars() {
                queue.push(workspace(number), command, NO_LIMIT).unwrap();
            }
        }
        let taken = |queue: &mut FairQueue<char>, max, max_turns| String::from_iter(queue.take(max, max_turns));
        assert_eq!(taken(&mut queue, 4, NO_LIMIT), "agib", "one of each, and again from the first");
        queue.push(workspace(4), 'j', NO_LIMIT).unwrap();
        assert_eq!(taken(&mut queue, 4, 2), "hcjd", "the second goes on; the first has two turns");
        assert_eq!(taken(&mut queue, 4, 1), "e", "the first has one turn");
        assert_eq!(taken(&mut queue, 4, 9), "f");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { workspace: u8, max_backlog: usize },
        Take { max: usize, max_turns: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..5_u8, prop_oneof![Just(NO_LIMIT), 0..6_usize])
                .prop_map(|(workspace, max_backlog)| Step::Push { workspace, max_backlog }),
            1 => (0..12_usize, 0..6_usize).prop_map(|(max, max_turns)| Step::Take { max, max_turns }),
        ]
    }

    proptest! {
        /// The model is one list of all waiting commands in the order of their arrival.
        #[test]
        fn keeps_every_promise_whatever_is_queued_and_taken(capacity in 1..20_usize, steps in vec(step(), 0..200)) {
            let mut queue = FairQueue::new(capacity);
            let mut waiting: Vec<(u8, usize)> = Vec::new();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push { workspace: number, max_backlog } => {
                        let free = capacity - waiting.len();
                        let own = waiting.iter().filter(|(of, _)| *of == number).count();
                        let expected = match own {
                            _ if free == 0 => Err(Refused::Full),
                            0 => Ok(()),
                            own if own < free && own < max_backlog => Ok(()),
                            _ => Err(Refused::OverShare),
                        };
                        prop_assert_eq!(queue.push(workspace(number), (number, n), max_backlog), expected);
                        if expected.is_ok() {
                            waiting.push((number, n));
                        }
                    }
                    Step::Take { max, max_turns } => {
                        let before = waiting.clone();
                        let taken = queue.take(max, max_turns);
                        prop_assert!(taken.len() <= max);
                        for command in &taken {
                            let oldest = waiting.iter().position(|(of, _)| *of == command.0);
                            prop_assert_eq!(oldest.map(|at| waiting.remove(at)), Some(*command), "first in, first out");
                        }
                        let turns = |number| taken.iter().filter(|(of, _)| *of == number).count();
                        let most = (0..5).map(turns).max().unwrap_or(0);
                        prop_assert!(most <= max_turns);
                        for (number, _) in before {
                            let is_left = waiting.iter().any(|(of, _)| *of == number);
                            prop_assert!(!is_left || turns(number) + 1 >= most, "{} had no turn: {:?}", number, taken);
                        }
                        let is_enough = taken.len() == max || waiting.is_empty() || most == max_turns;
                        prop_assert!(is_enough, "nothing is left behind without a reason");
                    }
                }
                prop_assert_eq!(queue.len(), waiting.len());
            }
        }
    }
}
