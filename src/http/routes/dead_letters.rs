//! Dead letters: the events that a consumer of this server could not take.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use uuid::Uuid;

use super::reads::read;
use crate::domain::cloud_event::Sequence;
use crate::domain::consumers::{Consumer, DeadLetter, LetterState};
use crate::domain::ids::{EventId, Partition, WorkspaceId};
use crate::domain::text::{FieldCode, FieldError};
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
    /// Only letters of this consumer.
    #[param(required = false, inline)]
    consumer: Option<Consumer>,
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
        LetterFilter { consumer: self.consumer, fingerprint, workspace_id: self.workspace_id }
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

/// An event that a consumer could not take.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub struct DeadLetterView {
    dead_letter_id: Uuid,
    consumer: Consumer,
    /// The build of the consumer.
    version: i32,
    workspace_id: WorkspaceId,
    partition: Partition,
    /// The number of the event in its partition, and in its workspace.
    sequence: Sequence,
    workspaceseq: Sequence,
    event_id: EventId,
    event_type: String,
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
    consumer: Consumer,
    event_type: String,
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
        Self {
            dead_letter_id: letter.dead_letter_id,
            consumer: letter.consumer,
            version: letter.version,
            workspace_id: letter.workspace_id,
            partition: letter.partition,
            sequence: Sequence(letter.seq),
            workspaceseq: Sequence(letter.workspace_seq),
            event_id: letter.event_id,
            event_type: letter.event_type,
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
            consumer: group.consumer,
            event_type: group.event_type,
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
/// Events that a consumer could not take, the one that failed last first, and how many have one cause. The workspace of a
/// letter that is open waits: the consumer leaves its later events out.
#[utoipa::path(
    tag = "operations",
    params(DeadLetterParams),
    responses((status = 200, description = "A page of dead letters.", body = DeadLetterPage, example = json!({
        "items": [{
            "dead_letter_id": "019a0000-0000-7000-8000-00000000000b", "consumer": "analytics", "version": 1,
            "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "partition": 7, "sequence": "0000000000000000042",
            "workspaceseq": "0000000000000000003", "event_id": "019a0000-0000-7000-8000-000000000007",
            "event_type": "CreditConsumed", "fingerprint": "9c3a1f0e5b7d2468", "error_class": "contradiction",
            "error": "the purchase 019a0000-0000-7000-8000-000000000004 is unknown", "attempts": 1,
            "first_failed_at": "2026-01-31T09:00:00.000000Z", "last_failed_at": "2026-01-31T09:00:00.000000Z",
            "state": "open"
        }],
        "has_more": false,
        "groups": [{
            "fingerprint": "9c3a1f0e5b7d2468", "consumer": "analytics", "event_type": "CreditConsumed",
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
    let key = ListKey::new("dead-letters", &(letter_state, params.consumer, &params.fingerprint, params.workspace_id));
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
