//! Events over HTTP, for consumers without the Redis streams.
//!
//! `next` is always present, so a caller can poll with it. A token for one workspace reads the events of that workspace
//! in the order of `workspace_seq`. A token for all workspaces reads every partition in the order of `seq`; a page takes
//! events from all partitions in turn, so that no partition starves another.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::reads::read;
use crate::domain::event::{EventEnvelope, EventRecord};
use crate::domain::ids::{EventId, PARTITIONS, WorkspaceId};
use crate::domain::text::{FieldCode, FieldError};
use crate::http::auth::{Tenancy, scope};
use crate::http::body::refuse;
use crate::http::extract::{Caller, event_id, no_query, query, require_workspace, workspace_not_found};
use crate::http::ids::hyphenated;
use crate::http::pages::{Cursor, Limit, positions};
use crate::http::problem::{Code, Problem};
use crate::http::state::AppState;
use crate::store::queries::EventQuery;

/// Which events, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventParams {
    /// `next` of the previous page. Without it, the list starts with the first event.
    #[param(required = false)]
    after: Option<Cursor>,
    /// Maximum number of events of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Only the events of this workspace. A token for one workspace implies it.
    #[serde(default, deserialize_with = "hyphenated_workspace_id")]
    workspace_id: Option<WorkspaceId>,
}

/// Parses a hyphenated workspace id.
fn hyphenated_workspace_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WorkspaceId>, D::Error> {
    let id = hyphenated(&String::deserialize(deserializer)?).map(WorkspaceId);
    id.map(Some).ok_or_else(|| refuse(FieldError::new(FieldCode::Invalid, "must be a hyphenated UUID")))
}

/// A page of events, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventPage {
    items: Vec<EventEnvelope>,
    /// Send it as `after` to get the next page, now or later.
    next: Cursor,
    /// Whether there are more events now.
    has_more: bool,
}

/// List the events
///
/// Events of one workspace in the order of their `workspace_seq`, or, with a token for all
/// workspaces and no `workspace_id`, of all of them in the order of each partition's `seq`. Keep
/// `next` and poll with it: no event is ever skipped.
#[utoipa::path(
    tag = "events",
    params(EventParams),
    responses((status = 200, description = "A page of events.", body = EventPage, example = json!({
        "items": [{
            "event_id": "019a0000-0000-7000-8000-000000000006", "event_type": "CreditConsumed", "schema_version": 1,
            "service_name": "visionscope-billing", "partition": 7, "seq": 41,
            "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "workspace_seq": 2,
            "occurred_at": "2026-01-31T09:00:00.000000Z", "correlation_id": "checkout-17",
            "causation_id": "019a0000-0000-7000-8000-000000000001",
            "data": {
                "feature_code": "video.render", "credits": "2.5",
                "grants": [{
                    "grant_id": "019a0000-0000-7000-8000-000000000003", "source": "allowance", "credits": "2.5"
                }],
                "current_credits": "997.5", "used_this_month": "2.5", "occurred_at": "2026-01-31T09:00:00.000000Z"
            }
        }],
        "next": "dwAAAAAAAAAC", "has_more": false
    }))),
    extensions(("x-problems" = json!(["workspace-not-found"])), ("x-scope" = json!("events:read"))),
    security(("bearer" = []))
)]
#[get("/v1/events")]
pub async fn list_events(caller: Caller<scope::EventsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let EventParams { after, limit, workspace_id } = query(&request)?;
    let state = AppState::of(&request);
    if let Some(workspace_id) = workspace_id {
        require_workspace(&caller.principal, workspace_id)?;
    }
    let page = match (workspace_id, caller.principal.tenancy) {
        (Some(workspace_id), _) | (None, Tenancy::One(workspace_id)) => {
            state.limits.check_rate(workspace_id)?;
            workspace_page(state, workspace_id, after, limit).await?
        }
        (None, Tenancy::All) => all_workspaces_page(state, after, limit).await?,
    };
    Ok(HttpResponse::Ok().json(page))
}

fn wrong_cursor() -> Problem {
    Problem::parameter(Code::InvalidField, "after", "is not a cursor of this list")
}

async fn workspace_page(
    state: &AppState,
    workspace_id: WorkspaceId,
    after: Option<Cursor>,
    limit: Limit,
) -> Result<EventPage, Problem> {
    let after = match after {
        None => 0,
        Some(Cursor::EventsOfWorkspace { after }) => after,
        Some(_) => return Err(wrong_cursor()),
    };
    let wanted = EventQuery::OfWorkspace { workspace_id, after, limit: limit.plus_one() };
    let mut rows = read(state.store.events(&wanted)).await?;
    // Provisioning writes the first event of a workspace: without events there is no workspace.
    if rows.is_empty() {
        let first = EventQuery::OfWorkspace { workspace_id, after: 0, limit: 1 };
        if after == 0 || read(state.store.events(&first)).await?.is_empty() {
            return Err(workspace_not_found());
        }
    }
    let has_more = limit.truncate(&mut rows);
    let after = rows.last().map_or(after, |event| event.workspace_seq);
    Ok(EventPage { items: envelopes(&rows)?, next: Cursor::EventsOfWorkspace { after }, has_more })
}

async fn all_workspaces_page(state: &AppState, after: Option<Cursor>, limit: Limit) -> Result<EventPage, Problem> {
    let mut after = match after {
        None => [0; PARTITIONS as usize],
        Some(Cursor::EventsOfAll { after }) => after,
        Some(_) => return Err(wrong_cursor()),
    };
    // More than an even share per partition, so that a few busy partitions can fill a page.
    let per_partition = (limit.get() / 4).max(1) + 1;
    let wanted = EventQuery::OfAll { after: positions(&after), limit: per_partition };
    let rows = read(state.store.events(&wanted)).await?;
    let found = rows.len();
    let page = interleave(rows, &after, limit);
    let has_more = found > page.len();
    for event in &page {
        after[usize::from(event.partition.number())] = event.seq;
    }
    Ok(EventPage { items: envelopes(&page)?, next: Cursor::EventsOfAll { after }, has_more })
}

/// Fills a page with events of the partitions in turn, in the order of each partition. Each page starts with another
/// partition, so that short pages do not starve one.
fn interleave(mut rows: Vec<EventRecord>, after: &[i64; PARTITIONS as usize], limit: Limit) -> Vec<EventRecord> {
    let partitions = i64::from(PARTITIONS);
    let first = after.iter().fold(0_i64, |sum, seq| sum.wrapping_add(*seq)).rem_euclid(partitions);
    rows.sort_by_key(|event| {
        let partition = event.partition.number();
        let turn = (i64::from(partition) - first).rem_euclid(partitions);
        (event.seq - after[usize::from(partition)], turn)
    });
    rows.truncate(usize::try_from(limit.get()).unwrap_or(usize::MAX));
    rows
}

fn envelopes(rows: &[EventRecord]) -> Result<Vec<EventEnvelope>, Problem> {
    rows.iter().map(envelope).collect()
}

fn envelope(event: &EventRecord) -> Result<EventEnvelope, Problem> {
    event.to_envelope().map_err(|error| {
        tracing::error!(%error, event_id = %event.event_id, "a stored event is not JSON");
        Problem::plain(Code::InternalError)
    })
}

/// Read an event
///
/// One event, if the token may see its workspace.
#[utoipa::path(
    tag = "events",
    params(("event_id" = EventId, Path, description = "The event's id.")),
    responses((status = 200, description = "The event.", body = EventEnvelope, example = json!({
        "event_id": "019a0000-0000-7000-8000-000000000007", "event_type": "LowCreditWarning", "schema_version": 1,
        "service_name": "visionscope-billing", "partition": 7, "seq": 42,
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "workspace_seq": 3,
        "occurred_at": "2026-01-31T09:00:00.000000Z", "correlation_id": "checkout-17",
        "causation_id": "019a0000-0000-7000-8000-000000000001",
        "data": {"threshold_credits": "100", "available_credits": "99.5"}
    }))),
    extensions(("x-problems" = json!(["event-not-found"])), ("x-scope" = json!("events:read"))),
    security(("bearer" = []))
)]
#[get("/v1/events/{event_id}")]
pub async fn get_event(caller: Caller<scope::EventsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let event_id = event_id(&request)?;
    no_query(&request)?;
    let workspace_id = match caller.principal.tenancy {
        Tenancy::One(workspace_id) => Some(workspace_id),
        Tenancy::All => None,
    };
    let found = read(AppState::of(&request).store.event(event_id, workspace_id)).await?;
    let event = found.ok_or_else(|| Problem::plain(Code::EventNotFound))?;
    Ok(HttpResponse::Ok().json(envelope(&event)?))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::event::EventType;
    use crate::domain::ids::Partition;
    use crate::domain::time::Timestamp;

    fn event(partition: u8, seq: i64) -> EventRecord {
        EventRecord {
            event_id: EventId(Uuid::from_u128(1)),
            event_type: EventType::CreditConsumed,
            schema_version: 1,
            partition: Partition::new(partition).unwrap(),
            seq,
            workspace_id: WorkspaceId(Uuid::nil()),
            workspace_seq: 1,
            recorded_at: Timestamp::from_micros(0),
            correlation_id: String::new(),
            causation_id: Uuid::nil(),
            traceparent: None,
            metadata: None,
            data: "{}".into(),
        }
    }

    #[test]
    fn no_partition_is_skipped_or_starved_when_pages_are_short() {
        let all: Vec<_> = (0..16).flat_map(|partition| (1..=20).map(move |seq| event(partition, seq))).collect();
        let limit: Limit = serde_json::from_str("\"3\"").unwrap();
        let mut after = [0; PARTITIONS as usize];
        let mut seen = Vec::new();
        for _ in 0..200 {
            let rows = all.iter().filter(|row| row.seq > after[usize::from(row.partition.number())]).cloned().collect();
            for row in interleave(rows, &after, limit) {
                let number = usize::from(row.partition.number());
                assert_eq!(row.seq, after[number] + 1, "in order and without a gap");
                after[number] = row.seq;
                seen.push(row.partition.number());
            }
        }
        assert_eq!(seen.len(), all.len());
        let early: std::collections::HashSet<_> = seen.iter().take(96).collect();
        assert_eq!(early.len(), 16, "every partition had its turn early on");
    }
}
