//! Dead letters: what failed for good and waits for an operator, and the workspaces that wait behind it.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use super::cloud_event::EventRecord;
use super::consumers::{Build, Consumer, Fault};
use super::ids::{EventId, JobId, Partition, WorkspaceId};
use super::text::QueueName;
use super::time::Timestamp;

/// The longest text of an error that is kept.
const MAX_ERROR_BYTES: usize = 2048;

/// What a dead letter is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LetterSource {
    /// An event that a consumer could not take.
    Consumer,
    /// A job that has failed for the last time.
    Job,
}

impl LetterSource {
    pub const ALL: [Self; 2] = [Self::Consumer, Self::Job];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Job => "job",
        }
    }

    #[must_use]
    pub fn from_stored(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == text)
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

/// An event that a build of a consumer could not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedEvent {
    pub build: Build,
    pub workspace_id: WorkspaceId,
    pub partition: Partition,
    pub seq: i64,
    pub workspace_seq: i64,
    pub event_id: EventId,
}

impl FailedEvent {
    #[must_use]
    pub const fn new(build: Build, event: &EventRecord) -> Self {
        Self {
            build,
            workspace_id: event.workspace_id,
            partition: event.partition,
            seq: event.seq,
            workspace_seq: event.workspace_seq,
            event_id: event.event_id,
        }
    }
}

/// A job that has failed for the last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedJob {
    pub queue: QueueName,
    pub workspace_id: Option<WorkspaceId>,
    pub job_id: JobId,
}

/// What could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailedWork {
    Event(FailedEvent),
    Job(FailedJob),
}

impl FailedWork {
    #[must_use]
    pub const fn source(&self) -> LetterSource {
        match self {
            Self::Event(_) => LetterSource::Consumer,
            Self::Job(_) => LetterSource::Job,
        }
    }

    /// The consumer or the queue.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Event(event) => event.build.consumer.as_str(),
            Self::Job(job) => job.queue.as_str(),
        }
    }

    #[must_use]
    pub const fn workspace_id(&self) -> Option<WorkspaceId> {
        match self {
            Self::Event(event) => Some(event.workspace_id),
            Self::Job(job) => job.workspace_id,
        }
    }
}

/// Work that has failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub dead_letter_id: Uuid,
    pub work: FailedWork,
    /// The type of the event, or the kind of the job.
    pub kind: String,
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
    /// The letter of an event that a build cannot take.
    #[must_use]
    pub fn of_event(build: Build, event: &EventRecord, fault: &Fault, now: Timestamp) -> Self {
        let (id, work) = (letter_id(build, event.event_id), FailedWork::Event(FailedEvent::new(build, event)));
        Self::new(id, work, event.event_type.as_str(), [fault.class, &fault.text], now)
    }

    pub(super) fn new(dead_letter_id: Uuid, work: FailedWork, kind: &str, error: [&str; 2], now: Timestamp) -> Self {
        let [error_class, error] = error;
        Self {
            dead_letter_id,
            fingerprint: fingerprint(&work, kind, error_class, error),
            work,
            kind: kind.to_owned(),
            error_class: error_class.to_owned(),
            error: bounded(error),
            attempts: 1,
            first_failed_at: now,
            last_failed_at: now,
            state: LetterState::Open,
            replay_id: None,
            resolved_at: None,
        }
    }

    /// The event that could not be taken, if it is about one.
    #[must_use]
    pub const fn event(&self) -> Option<&FailedEvent> {
        match &self.work {
            FailedWork::Event(event) => Some(event),
            FailedWork::Job(_) => None,
        }
    }

    /// The job that has failed, if it is about one.
    #[must_use]
    pub const fn job(&self) -> Option<&FailedJob> {
        match &self.work {
            FailedWork::Job(job) => Some(job),
            FailedWork::Event(_) => None,
        }
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
    /// None if the letter is about no event.
    #[must_use]
    pub fn behind(letter: &DeadLetter) -> Option<Self> {
        let FailedEvent { build, workspace_id, partition, workspace_seq, .. } = *letter.event()?;
        Some(Self {
            consumer: build.consumer,
            version: build.version,
            workspace_id,
            partition,
            workspace_seq,
            dead_letter_id: letter.dead_letter_id,
            since: letter.last_failed_at,
            replay_at: None,
        })
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
fn fingerprint(work: &FailedWork, kind: &str, error_class: &str, error: &str) -> String {
    let parts = [work.source().as_str(), work.name(), kind, error_class];
    let hash = parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part).chain_update([0]));
    let hash = hash.chain_update(without_ids(error)).finalize();
    let first: [u8; 8] = std::array::from_fn(|n| hash[n]);
    format!("{:016x}", u64::from_be_bytes(first))
}

/// The text with every word that has a digit replaced by a `#`.
fn without_ids(text: &str) -> String {
    let word = |word: &str| if word.bytes().any(|byte| byte.is_ascii_digit()) { "#" } else { word }.to_owned();
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_ERROR_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_with_one_cause_have_one_fingerprint_whatever_their_ids_and_numbers() {
        let queue = QueueName::new("billing").unwrap();
        let job = |id| FailedWork::Job(FailedJob { queue: queue.clone(), workspace_id: None, job_id: JobId(id) });
        let event = FailedWork::Event(FailedEvent {
            build: Build { consumer: Consumer::Billing, version: 1 },
            workspace_id: WorkspaceId(Uuid::nil()),
            partition: Partition::of(WorkspaceId(Uuid::nil())),
            seq: 1,
            workspace_seq: 1,
            event_id: EventId(Uuid::nil()),
        });
        let of = |text: &str| fingerprint(&job(Uuid::nil()), "CreditConsumed", "contradiction", text);
        let unknown = "the purchase 0198-ab is unknown";
        assert_eq!(of(unknown), of("the purchase 0277-cd is unknown"));
        assert_eq!(of(unknown), fingerprint(&job(Uuid::max()), "CreditConsumed", "contradiction", unknown));
        assert_ne!(of(unknown), of("the workspace 0198-ab is unknown"));
        assert_ne!(of(unknown), fingerprint(&job(Uuid::nil()), "CreditConsumed", "too_large", unknown));
        assert_ne!(of(unknown), fingerprint(&job(Uuid::nil()), "CreditsHeld", "contradiction", unknown));
        assert_ne!(of(unknown), fingerprint(&event, "CreditConsumed", "contradiction", unknown));
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
