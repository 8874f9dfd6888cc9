//! The metrics of the consumers.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::positions::Positions;
use crate::domain::consumers::{Build, Consumer, ConsumerState};
use crate::domain::dead_letter::{DeadLetter, FailedEvent, LetterState};
use crate::domain::ids::Partition;
use crate::domain::time::Timestamp;
use crate::store::consumers::Advance;
use crate::telemetry::metric;

/// How far each consumer is behind, how many workspaces it leaves out, where it waits, and whether it runs.
pub(super) fn report(
    positions: &Positions,
    heads: &BTreeMap<Partition, i64>,
    waiting_since: &BTreeMap<Consumer, Timestamp>,
    now: Timestamp,
) {
    for registered in positions.consumers.values() {
        let build = Build { consumer: registered.consumer, version: registered.version };
        let (mut lag, mut parked, mut waiting) = (0_i64, 0_usize, 0_u32);
        for (partition, head) in heads {
            let Some(position) = positions.of_builds.get(&(*partition, build)) else { continue };
            lag += head.saturating_sub(position.seq).max(0);
            parked += position.parked.len();
            waiting += u32::from(position.waiting_for.is_some());
        }
        let (consumer, runs) = (build.consumer.as_str(), registered.state == ConsumerState::Running);
        #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 events are out of reach")]
        gauge!(metric::CONSUMER_LAG_EVENTS, "consumer" => consumer).set(lag as f64);
        let lag = waiting_since.get(&build.consumer).map_or(Duration::ZERO, |oldest| now.since(*oldest));
        gauge!(metric::CONSUMER_LAG_SECONDS, "consumer" => consumer).set(lag.as_secs_f64());
        let parked = u32::try_from(parked).unwrap_or(u32::MAX);
        gauge!(metric::CONSUMER_PARKED_WORKSPACES, "consumer" => consumer).set(f64::from(parked));
        gauge!(metric::CONSUMER_WAITING_PARTITIONS, "consumer" => consumer).set(f64::from(waiting));
        gauge!(metric::CONSUMER_RUNS, "consumer" => consumer).set(f64::from(u8::from(runs)));
    }
}

pub(super) fn beat(took: Duration) {
    histogram!(metric::CONSUMER_BEAT_SECONDS).record(took.as_secs_f64());
}

pub(super) fn count(advances: &[Advance]) {
    for advance in advances {
        let consumer = advance.build.consumer.as_str();
        let events = u64::try_from(advance.to.saturating_sub(advance.from)).unwrap_or_default();
        counter!(metric::CONSUMER_EVENTS, "consumer" => consumer).increment(events);
        let letters = advance.letters.iter().filter(|letter| letter.state == LetterState::Open).count();
        let letters = u64::try_from(letters).unwrap_or(u64::MAX);
        counter!(metric::CONSUMER_DEAD_LETTERS, "consumer" => consumer).increment(letters);
    }
}

/// Logs what became of a letter.
pub(super) fn tell(letter: &DeadLetter) {
    let DeadLetter { error_class, error, .. } = letter;
    let Some(FailedEvent { build, workspace_id, event_id, .. }) = letter.event() else { return };
    let consumer = build.consumer.as_str();
    match letter.state {
        LetterState::Open => tracing::error!(
            consumer, %event_id, %workspace_id, error_class, error,
            "an event cannot be taken; later events of its workspace wait"
        ),
        LetterState::Discarded => tracing::info!(consumer, %event_id, %workspace_id, "a discarded event is left out"),
        LetterState::Resolved | LetterState::Replaying => {
            tracing::info!(consumer, %event_id, %workspace_id, "an event is taken that could not be taken before");
        }
    }
}
