//! Keeps a publisher from hammering a stream that is down: a circuit breaker, and backoff between attempts.

use std::future::Future;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use recloser::{AsyncRecloser, Recloser};

/// The number of calls that the failure rate is computed from. It is small, because each call may take a second
/// when the stream hangs. All partitions call at once, so the breaker opens in the first or second round.
const WINDOW_CALLS: usize = 8;
/// The number of trial calls after which an open breaker closes again.
const TRIAL_CALLS: usize = 1;
/// The failure rate at which it opens.
const FAILURE_RATE: f32 = 0.5;
/// How long it stays open: the longest delay of events after the stream is back.
const OPEN_FOR: Duration = Duration::from_secs(1);
/// The first pause after a failure. Each further failure doubles it, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Full jitter alone could draw a pause of zero, and the loop would run hot.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// The last call succeeded, or there was none.
    #[default]
    Closed,
    /// The last call failed; calls are still let through.
    Failing,
    /// Calls are refused without being made.
    Open,
}

impl BreakerState {
    /// The value of the metric: 0, 1 or 2.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Failing => 1,
            Self::Open => 2,
        }
    }
}

/// Why a call has no result.
#[derive(Debug)]
pub(super) enum CallError<E> {
    Open,
    Failed(E),
}

/// The circuit breaker around the stream, for all partitions.
#[derive(Debug)]
pub(super) struct Breaker {
    recloser: AsyncRecloser,
    /// Derived from the calls' results, because the recloser does not reveal its own state.
    state: AtomicU8,
}

impl Breaker {
    pub(super) fn new() -> Self {
        let recloser = Recloser::custom()
            .error_rate(FAILURE_RATE)
            .closed_len(WINDOW_CALLS)
            .half_open_len(TRIAL_CALLS)
            .open_wait(OPEN_FOR)
            .build();
        Self { recloser: recloser.into(), state: AtomicU8::new(0) }
    }

    pub(super) async fn call<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, CallError<E>> {
        let (result, state) = match self.recloser.call(call).await {
            Ok(value) => (Ok(value), BreakerState::Closed),
            Err(recloser::Error::Rejected) => (Err(CallError::Open), BreakerState::Open),
            Err(recloser::Error::Inner(error)) => (Err(CallError::Failed(error)), BreakerState::Failing),
        };
        self.state.store(state.number(), Ordering::Relaxed);
        result
    }

    pub(super) fn state(&self) -> BreakerState {
        match self.state.load(Ordering::Relaxed) {
            0 => BreakerState::Closed,
            1 => BreakerState::Failing,
            _ => BreakerState::Open,
        }
    }
}

/// Exponential backoff with full jitter: each pause is drawn evenly between zero and a growing bound, so that
/// publishers do not retry in lockstep.
pub(super) struct Backoff {
    bounds: ExponentialBackoff,
    /// Draws from one to two times the bound. Minus the bound, that is full jitter.
    jittered: ExponentialBackoff,
}

impl Backoff {
    pub(super) fn new() -> Self {
        let bounds = ExponentialBuilder::new()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_factor(2.0)
            .without_max_times();
        Self { bounds: bounds.build(), jittered: bounds.with_jitter().build() }
    }

    pub(super) fn next_pause(&mut self) -> Duration {
        let bound = self.bounds.next().unwrap_or(LONGEST_PAUSE);
        self.jittered.next().unwrap_or(bound).saturating_sub(bound).max(SHORTEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_bounded_and_drawn_from_a_growing_range() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..200).map(|_| backoff.next_pause()).collect();
        assert!(pauses[0] <= FIRST_PAUSE);
        assert!(pauses.iter().all(|pause| (SHORTEST_PAUSE..=LONGEST_PAUSE).contains(pause)));
        assert!(pauses[20..].iter().any(|pause| *pause < LONGEST_PAUSE / 4));
        assert!(pauses[20..].iter().any(|pause| *pause > LONGEST_PAUSE / 2));
    }

    #[tokio::test]
    async fn the_breaker_opens_after_failures_and_closes_after_successes() {
        let breaker = Breaker::new();
        let call = async |answer: Result<(), &'static str>| breaker.call(async { answer }).await;
        assert!(call(Ok(())).await.is_ok());
        for _ in 0..WINDOW_CALLS {
            assert!(matches!(call(Err("down")).await, Err(CallError::Failed("down"))));
            assert_eq!(breaker.state(), BreakerState::Failing);
        }
        assert!(matches!(call(Ok(())).await, Err(CallError::Open)));
        assert_eq!(breaker.state(), BreakerState::Open);
        tokio::time::sleep(OPEN_FOR + Duration::from_millis(50)).await;
        for _ in 0..=TRIAL_CALLS {
            assert!(call(Ok(())).await.is_ok());
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }
}
