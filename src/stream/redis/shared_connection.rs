//! One connection shared by concurrent commands, and replaced when it breaks.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) struct SharedConnection<C>(Mutex<Current<C>>);

struct Current<C> {
    connection: Option<C>,
    /// Counts the connections, so that a late failure of an earlier one does not discard the current one.
    number: u64,
}

impl<C: Clone> SharedConnection<C> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Current { connection: None, number: 0 }))
    }

    /// The current connection and its number.
    pub(super) fn get(&self) -> Option<(C, u64)> {
        let current = self.lock();
        Some((current.connection.clone()?, current.number))
    }

    /// Makes a connection the current one, unless another task was faster. Returns the current one.
    pub(super) fn get_or_set(&self, connection: C) -> (C, u64) {
        let mut current = self.lock();
        if let Some(other) = &current.connection {
            return (other.clone(), current.number);
        }
        current.number += 1;
        current.connection = Some(connection.clone());
        (connection, current.number)
    }

    /// Drops the connection of that number, if it is still the current one.
    pub(super) fn discard(&self, number: u64) {
        let mut current = self.lock();
        if current.number == number {
            current.connection = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current<C>> {
        // No code under the lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_failure_discards_the_current_connection() {
        let shared = SharedConnection::new();
        assert_eq!(shared.get(), None);
        assert_eq!(shared.get_or_set("first"), ("first", 1));
        assert_eq!(shared.get_or_set("a moment later"), ("first", 1));
        shared.discard(1);
        assert_eq!(shared.get_or_set("second"), ("second", 2));
        shared.discard(1);
        assert_eq!(shared.get(), Some(("second", 2)));
    }
}
