//! A connection that is kept for as long as it works, for any number of commands at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Hands out clones of one connection.
pub(super) struct Shared<C>(Mutex<Kept<C>>);

struct Kept<C> {
    connection: Option<C>,
    /// Counts the connections, so that none is forgotten for the failure of the one before it.
    number: u64,
}

impl<C: Clone> Shared<C> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Kept { connection: None, number: 0 }))
    }

    /// The connection and its number, if there is one.
    pub(super) fn get(&self) -> Option<(C, u64)> {
        let kept = self.lock();
        Some((kept.connection.clone()?, kept.number))
    }

    /// Keeps a new connection, unless somebody else was faster; returns the one that is kept.
    pub(super) fn keep(&self, connection: C) -> (C, u64) {
        let mut kept = self.lock();
        if let Some(other) = &kept.connection {
            return (other.clone(), kept.number);
        }
        kept.number += 1;
        kept.connection = Some(connection.clone());
        (connection, kept.number)
    }

    /// The connection of that number is of no use any more.
    pub(super) fn forget(&self, number: u64) {
        let mut kept = self.lock();
        if kept.number == number {
            kept.connection = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept<C>> {
        // Nothing is done under the lock that could leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_connection_is_kept_and_only_its_own_failure_lets_it_go() {
        let shared = Shared::new();
        assert_eq!(shared.get(), None);
        assert_eq!(shared.keep("first"), ("first", 1));
        assert_eq!(shared.keep("a moment later"), ("first", 1));
        shared.forget(1);
        assert_eq!(shared.keep("second"), ("second", 2));
        shared.forget(1);
        assert_eq!(shared.get(), Some(("second", 2)));
    }
}
