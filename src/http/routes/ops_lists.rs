//! What operators look through: dead letters, and what was done by hand.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::reads::read;
use crate::domain::cloud_event::Sequence;
use crate::domain::consumers::{Consumer, DeadLetter, LetterState};
use crate::domain::ids::{EventId, Partition, WorkspaceId};
use crate::domain::operator_act::OperatorAct;
use crate::domain::text::Label;
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::extract::{OperatorCaller, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListKey};
use crate::http::problem::Problem;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::operations::{DeadLetterGroup, DeadLetterQuery};
use crate::store::queries::Page;

/// How many groups of dead letters are shown.
const MAX_GROUPS: u32 = 100;

/// Which dead letters. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeadLetterParams {
    /// `next` of the previous page. Send the same state with it.
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
}

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
    let DeadLetterParams { cursor, limit, state: StateFilter(letter_state) } = query(&request)?;
    let operations = &AppState::of(&request).operations;
    let key = ListKey::new("dead-letters", &letter_state);
    let seen = cursor.map(|cursor| key.parse::<3>(&cursor)).transpose()?;
    let start_at = seen.map(|seen| {
        let [at, high, low] = seen.place;
        (Timestamp::from_micros(at), id_of([high, low]))
    });
    let limit = limit.get() + u32::from(seen.is_some());
    let wanted = DeadLetterQuery { state: letter_state, start_at, limit };
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

/// Which acts. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditParams {
    /// `next` of the previous page.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of acts of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
}

/// What an operator did by hand.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OperatorAct)]
pub struct OperatorActView {
    audit_id: Uuid,
    at: Timestamp,
    /// The `sub` of the token.
    actor: String,
    action: String,
    target: String,
    reason: Label,
    /// What was changed, before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    before: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    after: Option<Box<RawValue>>,
}

/// A page of acts.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditPage {
    items: Vec<OperatorActView>,
    /// Whether there are more acts after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
}

impl From<OperatorAct> for OperatorActView {
    fn from(act: OperatorAct) -> Self {
        let json = |text: Option<String>| text.and_then(|text| RawValue::from_string(text).ok());
        Self {
            audit_id: act.audit_id,
            at: act.at,
            actor: act.actor,
            action: act.action,
            target: act.target,
            reason: act.reason,
            before: json(act.before),
            after: json(act.after),
        }
    }
}

/// List what operators did
///
/// Every change that was made by hand, with who made it and why, the newest first.
#[utoipa::path(
    tag = "operations",
    params(AuditParams),
    responses((status = 200, description = "A page of acts.", body = AuditPage, example = json!({
        "items": [{
            "audit_id": "019a0000-0000-7000-8000-00000000000c", "at": "2026-01-31T09:00:00.000000Z",
            "actor": "operator-1", "action": "consumer.pause", "target": "analytics",
            "reason": "The figures of July are checked first",
            "before": {"state": "running", "version": 1},
            "after": {"state": "paused", "version": 1}
        }],
        "has_more": false
    }))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/audit")]
pub async fn list_operator_acts(
    _: OperatorCaller<scope::OpsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let AuditParams { cursor, limit } = query(&request)?;
    let key = ListKey::new("audit", &());
    let seen = cursor.map(|cursor| key.parse::<2>(&cursor)).transpose()?;
    let start_at = seen.map(|seen| id_of(seen.place));
    let limit = limit.get() + u32::from(seen.is_some());
    let page = read(AppState::of(&request).operations.operator_acts(start_at, limit)).await?;
    let Page { mut rows, has_more } = page;
    let place = |act: &OperatorAct| (place_of(act.audit_id), act.audit_id);
    if let Some(seen) = seen {
        seen.take_from(&mut rows, place)?;
    }
    let next = rows.last().filter(|_| has_more).map(place).map(|(place, id)| key.cursor(place, &id));
    private_json(&request, &AuditPage { items: rows.into_iter().map(OperatorActView::from).collect(), has_more, next })
}

/// An id as two numbers of a cursor's place.
pub(super) fn place_of(id: Uuid) -> [i64; 2] {
    let (high, low) = id.as_u64_pair();
    [high, low].map(|half| i64::from_be_bytes(half.to_be_bytes()))
}

pub(super) fn id_of(place: [i64; 2]) -> Uuid {
    let [high, low] = place.map(|half| u64::from_be_bytes(half.to_be_bytes()));
    Uuid::from_u64_pair(high, low)
}
