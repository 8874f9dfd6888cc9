//! Dead letters: events that a consumer cannot take, and the workspaces that wait behind them.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use super::consumer::{Build, Consumer};
use crate::domain::cloud_event::EventRecord;
use crate::domain::ids::{EventId, Partition, WorkspaceId};
use crate::domain::time::Timestamp;

/// The longest text of an error that is kept.
const MAX_ERROR_BYTES: usize = 2048;

/// Why an event cannot be taken. It is the event's fault or the consumer's, and a retry does not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault it is.
    pub class: &'static str,
    pub text: String,
}

impl Fault {
    /// The data does not have the form that its schema says.
    pub(super) const UNREADABLE: &'static str = "unreadable";
    /// The event does not fit what the events before it have told.
    pub(super) const CONTRADICTION: &'static str = "contradiction";
    /// A figure is larger than can be stored.
    pub(super) const TOO_LARGE: &'static str = "too_large";
    /// The consumer's code failed.
    pub const PANIC: &'static str = "panic";
    /// The database refused the rows.
    pub const REFUSED: &'static str = "refused_by_database";

    pub(super) fn contradiction(text: impl Into<String>) -> Self {
        Self { class: Self::CONTRADICTION, text: text.into() }
    }

    pub(super) fn too_large(what: &str) -> Self {
        Self { class: Self::TOO_LARGE, text: format!("{what} is too large") }
    }
}

/// What became of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LetterState {
    /// It waits for an operator.
    Open,
    /// It is being tried again.
    Replaying,
    /// It was taken at last.
    Resolved,
    /// It was given up: what it tells is in no figure.
    Discarded,
}

impl LetterState {
    pub const ALL: [Self; 4] = [Self::Open, Self::Replaying, Self::Resolved, Self::Discarded];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replaying => "replaying",
            Self::Resolved => "resolved",
            Self::Discarded => "discarded",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// An event that a consumer could not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub dead_letter_id: Uuid,
    pub consumer: Consumer,
    pub version: i32,
    pub workspace_id: WorkspaceId,
    pub partition: Partition,
    pub seq: i64,
    pub workspace_seq: i64,
    pub event_id: EventId,
    pub event_type: String,
    /// The same for letters with the same cause.
    pub fingerprint: String,
    pub error_class: String,
    pub error: String,
    pub attempts: i32,
    pub first_failed_at: Timestamp,
    pub last_failed_at: Timestamp,
    pub state: LetterState,
    /// The act of an operator that tried it again last.
    pub replay_id: Option<Uuid>,
    /// Since when it is neither open nor being tried.
    pub resolved_at: Option<Timestamp>,
}

impl DeadLetter {
    #[must_use]
    pub fn new(build: Build, event: &EventRecord, fault: &Fault, now: Timestamp) -> Self {
        let Build { consumer, version } = build;
        let event_type = event.event_type.as_str();
        Self {
            dead_letter_id: letter_id(build, event.event_id),
            consumer,
            version,
            workspace_id: event.workspace_id,
            partition: event.partition,
            seq: event.seq,
            workspace_seq: event.workspace_seq,
            event_id: event.event_id,
            event_type: event_type.to_owned(),
            fingerprint: fingerprint(consumer, event_type, fault),
            error_class: fault.class.to_owned(),
            error: bounded(&fault.text),
            attempts: 1,
            first_failed_at: now,
            last_failed_at: now,
            state: LetterState::Open,
            replay_id: None,
            resolved_at: None,
        }
    }

    #[must_use]
    pub const fn build(&self) -> Build {
        Build { consumer: self.consumer, version: self.version }
    }

    /// The letter after it was tried again and has failed.
    #[must_use]
    pub fn failed_again(&self, failed: &Self) -> Self {
        Self {
            attempts: self.attempts.saturating_add(1),
            first_failed_at: self.first_failed_at,
            replay_id: self.replay_id,
            ..failed.clone()
        }
    }

    /// The letter when nobody waits for it any more.
    #[must_use]
    pub fn closed(self, state: LetterState, now: Timestamp) -> Self {
        Self { state, resolved_at: Some(now), ..self }
    }
}

/// A workspace whose events a consumer leaves out, from the one that it could not take on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkedWorkspace {
    pub consumer: Consumer,
    pub version: i32,
    pub workspace_id: WorkspaceId,
    pub partition: Partition,
    /// Of the next event to take: the one that it could not take, unless later ones are being taken.
    pub workspace_seq: i64,
    pub dead_letter_id: Uuid,
    pub since: Timestamp,
    /// From when on its events are taken again. None while it waits for an operator.
    pub replay_at: Option<Timestamp>,
}

impl ParkedWorkspace {
    #[must_use]
    pub fn behind(letter: &DeadLetter) -> Self {
        Self {
            consumer: letter.consumer,
            version: letter.version,
            workspace_id: letter.workspace_id,
            partition: letter.partition,
            workspace_seq: letter.workspace_seq,
            dead_letter_id: letter.dead_letter_id,
            since: letter.last_failed_at,
            replay_at: None,
        }
    }
}

/// One letter for an event and a build, however often it fails.
fn letter_id(build: Build, event_id: EventId) -> Uuid {
    let hash = Sha256::new()
        .chain_update(build.consumer.as_str())
        .chain_update(build.version.to_be_bytes())
        .chain_update(event_id.0.as_bytes())
        .finalize();
    let mut bytes = *event_id.0.as_bytes();
    // The time of the event stays, so that letters lie in its order.
    bytes[8..].copy_from_slice(&hash[..8]);
    uuid::Builder::from_bytes(bytes).with_variant(uuid::Variant::RFC4122).into_uuid()
}

/// A hash of what letters with one cause have in common: ids and numbers in the error do not count.
fn fingerprint(consumer: Consumer, event_type: &str, fault: &Fault) -> String {
    let hash = Sha256::new()
        .chain_update(consumer.as_str())
        .chain_update([0])
        .chain_update(event_type)
        .chain_update([0])
        .chain_update(fault.class)
        .chain_update([0])
        .chain_update(without_ids(&fault.text))
        .finalize();
    let first: [u8; 8] = std::array::from_fn(|n| hash[n]);
    format!("{:016x}", u64::from_be_bytes(first))
}

/// The text with every word that has a digit replaced by a `#`.
fn without_ids(text: &str) -> String {
    let word = |word: &str| if word.bytes().any(|byte| byte.is_ascii_digit()) { "#" } else { word }.to_owned();
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn bounded(text: &str) -> String {
    let mut end = text.len().min(MAX_ERROR_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_with_one_cause_have_one_fingerprint_whatever_their_ids_and_numbers() {
        let of = |text: &str| fingerprint(Consumer::Analytics, "CreditConsumed", &Fault::contradiction(text));
        assert_eq!(of("the purchase 0198-ab is unknown"), of("the purchase 0277-cd is unknown"));
        assert_ne!(of("the purchase 0198-ab is unknown"), of("the workspace 0198-ab is unknown"));
        let other = Fault { class: Fault::TOO_LARGE, text: "the purchase 1 is unknown".into() };
        assert_ne!(of("the purchase 1 is unknown"), fingerprint(Consumer::Analytics, "CreditConsumed", &other));
        assert_eq!(of("").len(), 16);
    }

    #[test]
    fn an_error_is_cut_at_a_character() {
        let long = "é".repeat(MAX_ERROR_BYTES);
        assert_eq!(bounded(&long).len(), MAX_ERROR_BYTES);
        assert_eq!(bounded(&format!("x{long}")).len(), MAX_ERROR_BYTES - 1);
        assert_eq!(bounded("short"), "short");
    }
}
