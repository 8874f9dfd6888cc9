//! Keeps a publisher from hammering a stream that is down: a circuit breaker, and the pauses between
//! attempts.

use std::future::Future;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use recloser::{AsyncRecloser, Recloser};

/// Calls that the failure rate is taken from. Few, because each may take a second when the stream
/// hangs, and because partitions are appended to at once: the breaker opens in the first or second round.
const WINDOW_CALLS: usize = 8;
/// Calls that decide whether a breaker that was open closes again.
const TRIAL_CALLS: usize = 1;
/// The share of failures at which it opens.
const FAILURE_RATE: f32 = 0.5;
/// How long it stays open: the time by which events are late at most once the stream is back.
const OPEN_FOR: Duration = Duration::from_secs(1);
/// The first pause after a failure, doubled with each further one, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The least pause: full jitter alone could give none at all, and the loop would run hot.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// What the breaker last saw.
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
    /// As the metric tells it: 0, 1 or 2.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Failing => 1,
            Self::Open => 2,
        }
    }
}

/// A refused or a failed call.
#[derive(Debug)]
pub(super) enum Broken<E> {
    Open,
    Failed(E),
}

/// The circuit breaker around the stream, for all partitions.
#[derive(Debug)]
pub(super) struct Breaker {
    recloser: AsyncRecloser,
    /// The recloser does not tell its state, so it is kept from what came of the calls.
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

    pub(super) async fn call<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, Broken<E>> {
        let (result, state) = match self.recloser.call(call).await {
            Ok(value) => (Ok(value), BreakerState::Closed),
            Err(recloser::Error::Rejected) => (Err(Broken::Open), BreakerState::Open),
            Err(recloser::Error::Inner(error)) => (Err(Broken::Failed(error)), BreakerState::Failing),
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

/// Growing pauses with full jitter: each is drawn evenly between nothing and the current bound, so
/// that many publishers do not come back in step.
pub(super) struct Backoff {
    bounds: ExponentialBackoff,
    /// Draws from one to two times the bound; the difference is the jitter wanted.
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

    pub(super) fn pause(&mut self) -> Duration {
        let bound = self.bounds.next().unwrap_or(LONGEST_PAUSE);
        self.jittered.next().unwrap_or(bound).saturating_sub(bound).max(LEAST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_bounded_and_drawn_from_a_growing_range() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..200).map(|_| backoff.pause()).collect();
        assert!(pauses[0] <= FIRST_PAUSE);
        assert!(pauses.iter().all(|pause| (LEAST_PAUSE..=LONGEST_PAUSE).contains(pause)));
        assert!(pauses[20..].iter().any(|pause| *pause < LONGEST_PAUSE / 4));
        assert!(pauses[20..].iter().any(|pause| *pause > LONGEST_PAUSE / 2));
    }

    #[tokio::test]
    async fn the_breaker_opens_after_failures_and_closes_after_successes() {
        let breaker = Breaker::new();
        let call = async |answer: Result<(), &'static str>| breaker.call(async { answer }).await;
        assert!(call(Ok(())).await.is_ok());
        for _ in 0..WINDOW_CALLS {
            assert!(matches!(call(Err("down")).await, Err(Broken::Failed("down"))));
            assert_eq!(breaker.state(), BreakerState::Failing);
        }
        assert!(matches!(call(Ok(())).await, Err(Broken::Open)));
        assert_eq!(breaker.state(), BreakerState::Open);
        tokio::time::sleep(OPEN_FOR + Duration::from_millis(50)).await;
        for _ in 0..=TRIAL_CALLS {
            assert!(call(Ok(())).await.is_ok());
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }
}
