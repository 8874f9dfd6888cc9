//! Dead letters: what failed for good, events that a consumer of this server could not take and jobs.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use uuid::Uuid;

use super::reads::read;
use crate::domain::cloud_event::Sequence;
use crate::domain::dead_letter::{DeadLetter, LetterSource, LetterState};
use crate::domain::ids::{EventId, JobId, Partition, WorkspaceId};
use crate::domain::text::{FieldCode, FieldError, QueueName};
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::extract::{OperatorCaller, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListKey, id_of, place_of};
use crate::http::problem::Problem;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::operations::{DeadLetterGroup, DeadLetterQuery, LetterFilter};
use crate::store::queries::Page;

/// How many groups of dead letters are shown.
const MAX_GROUPS: u32 = 100;

/// Which dead letters. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeadLetterParams {
    /// `next` of the previous page. Send the same filters with it.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of letters of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Only letters in this state. `open` by default.
    #[serde(default)]
    #[param(required = false, inline)]
    state: StateFilter,
    /// Only letters of consumers, or of jobs.
    #[param(required = false, inline)]
    source: Option<LetterSource>,
    /// Only letters of this consumer or queue.
    #[param(required = false, inline)]
    name: Option<QueueName>,
    /// Only letters with this cause.
    #[param(required = false, inline)]
    fingerprint: Option<Fingerprint>,
    /// Only letters of this workspace.
    #[param(required = false, inline)]
    workspace_id: Option<WorkspaceId>,
}

impl DeadLetterParams {
    fn filter(&self) -> LetterFilter {
        let fingerprint = self.fingerprint.as_ref().map(|fingerprint| fingerprint.0.clone());
        let name = self.name.as_ref().map(|name| name.as_str().to_owned());
        LetterFilter { source: self.source, name, fingerprint, workspace_id: self.workspace_id }
    }
}

/// What letters with one cause have in common.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Fingerprint(pub(super) String);

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_one = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let refuse = || de::Error::custom(FieldError::new(FieldCode::Invalid, "must be 16 digits from 0 to f"));
        is_one.then_some(Self(text)).ok_or_else(refuse)
    }
}

impl PartialSchema for Fingerprint {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).pattern(Some("^[0-9a-f]{16}$")).into()
    }
}

impl ToSchema for Fingerprint {}

/// The state that is asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct StateFilter(LetterState);

impl Default for StateFilter {
    fn default() -> Self {
        Self(LetterState::Open)
    }
}

/// An event that a consumer could not take, or a job that has failed for the last time.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub struct DeadLetterView {
    dead_letter_id: Uuid,
    source: LetterSource,
    /// The consumer or the queue.
    name: String,
    /// The type of the event, or the kind of the job.
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_id: Option<WorkspaceId>,
    /// The build of the consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<Partition>,
    /// The number of the event in its partition, and in its workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<Sequence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspaceseq: Option<Sequence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<JobId>,
    /// The same for letters with one cause.
    fingerprint: String,
    error_class: String,
    error: String,
    attempts: i32,
    first_failed_at: Timestamp,
    last_failed_at: Timestamp,
    state: LetterState,
    /// The replay that has tried it last.
    #[serde(skip_serializing_if = "Option::is_none")]
    replay_id: Option<Uuid>,
    /// When it was resolved or discarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    resolved_at: Option<Timestamp>,
}

/// Dead letters with one cause.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLetterGroup)]
pub struct DeadLetterGroupView {
    fingerprint: String,
    source: LetterSource,
    /// The consumer or the queue.
    name: String,
    /// The type of the events, or the kind of the jobs.
    kind: String,
    error_class: String,
    /// One of their errors.
    sample: String,
    count: i64,
    first_failed_at: Timestamp,
    last_failed_at: Timestamp,
}

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLetterPage {
    items: Vec<DeadLetterView>,
    /// Whether there are more letters after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
    /// All letters in this state by their cause, the most first, at most 100 groups.
    groups: Vec<DeadLetterGroupView>,
}

impl From<DeadLetter> for DeadLetterView {
    fn from(letter: DeadLetter) -> Self {
        let event = letter.event().copied();
        let job_id = letter.job().map(|job| job.job_id);
        Self {
            dead_letter_id: letter.dead_letter_id,
            source: letter.work.source(),
            name: letter.work.name().to_owned(),
            kind: letter.kind,
            workspace_id: letter.work.workspace_id(),
            version: event.map(|event| event.build.version),
            partition: event.map(|event| event.partition),
            sequence: event.map(|event| Sequence(event.seq)),
            workspaceseq: event.map(|event| Sequence(event.workspace_seq)),
            event_id: event.map(|event| event.event_id),
            job_id,
            fingerprint: letter.fingerprint,
            error_class: letter.error_class,
            error: letter.error,
            attempts: letter.attempts,
            first_failed_at: letter.first_failed_at,
            last_failed_at: letter.last_failed_at,
            state: letter.state,
            replay_id: letter.replay_id,
            resolved_at: letter.resolved_at,
        }
    }
}

impl From<DeadLetterGroup> for DeadLetterGroupView {
    fn from(group: DeadLetterGroup) -> Self {
        Self {
            fingerprint: group.fingerprint,
            source: group.source,
            name: group.name,
            kind: group.kind,
            error_class: group.error_class,
            sample: group.error,
            count: group.count,
            first_failed_at: group.first_failed_at,
            last_failed_at: group.last_failed_at,
        }
    }
}

/// List the dead letters
///
/// What failed for good, the letter that failed last first, and how many have one cause. A letter of a consumer is about an
/// event that it could not take: while it is open, its workspace waits, and the consumer leaves its later events out. A letter
/// of a job is about its last attempt.
#[utoipa::path(
    tag = "operations",
    params(DeadLetterParams),
    responses((status = 200, description = "A page of dead letters.", body = DeadLetterPage, example = json!({
        "items": [{
            "dead_letter_id": "019a0000-0000-7000-8000-00000000000b", "source": "consumer", "name": "analytics",
            "kind": "CreditConsumed", "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "version": 1,
            "partition": 7, "sequence": "0000000000000000042", "workspaceseq": "0000000000000000003",
            "event_id": "019a0000-0000-7000-8000-000000000007", "fingerprint": "9c3a1f0e5b7d2468", "error_class": "contradiction",
            "error": "the purchase 019a0000-0000-7000-8000-000000000004 is unknown", "attempts": 1,
            "first_failed_at": "2026-01-31T09:00:00.000000Z", "last_failed_at": "2026-01-31T09:00:00.000000Z",
            "state": "open"
        }],
        "has_more": false,
        "groups": [{
            "fingerprint": "9c3a1f0e5b7d2468", "source": "consumer", "name": "analytics", "kind": "CreditConsumed",
            "error_class": "contradiction", "sample": "the purchase 019a0000-0000-7000-8000-000000000004 is unknown",
            "count": 1, "first_failed_at": "2026-01-31T09:00:00.000000Z",
            "last_failed_at": "2026-01-31T09:00:00.000000Z"
        }]
    }))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/dead-letters")]
pub async fn list_dead_letters(
    _: OperatorCaller<scope::OpsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let params: DeadLetterParams = query(&request)?;
    let DeadLetterParams { cursor, limit, state: StateFilter(letter_state), .. } = &params;
    let (letter_state, filter) = (*letter_state, params.filter());
    let operations = &AppState::of(&request).operations;
    let key = ListKey::new(
        "dead-letters",
        &(letter_state, params.source, &params.name, &params.fingerprint, params.workspace_id),
    );
    let seen = cursor.as_ref().map(|cursor| key.parse::<3>(cursor)).transpose()?;
    let start_at = seen.map(|seen| {
        let [at, high, low] = seen.place;
        (Timestamp::from_micros(at), id_of([high, low]))
    });
    let limit = limit.get() + u32::from(seen.is_some());
    let wanted = DeadLetterQuery { state: letter_state, filter, start_at, limit };
    let Page { mut rows, has_more } = read(operations.dead_letters(&wanted)).await?;
    let place = |letter: &DeadLetter| {
        let [high, low] = place_of(letter.dead_letter_id);
        ([letter.last_failed_at.micros(), high, low], letter.dead_letter_id)
    };
    if let Some(seen) = seen {
        seen.take_from(&mut rows, place)?;
    }
    let next = rows.last().filter(|_| has_more).map(place).map(|(place, id)| key.cursor(place, &id));
    let groups = read(operations.dead_letter_groups(letter_state, MAX_GROUPS)).await?;
    let page = DeadLetterPage {
        items: rows.into_iter().map(DeadLetterView::from).collect(),
        has_more,
        next,
        groups: groups.into_iter().map(DeadLetterGroupView::from).collect(),
    };
    private_json(&request, &page)
}
