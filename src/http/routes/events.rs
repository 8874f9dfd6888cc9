//! Events over HTTP, for consumers without the Redis streams.
//!
//! `next` is always present, so a caller can poll with it. A token for one workspace reads the events of that workspace
//! in the order of `workspace_seq`. A token for all workspaces reads every partition in the order of `seq`; a page takes
//! events from all partitions in turn, so that no partition starves another.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::reads::{read, recorded_state};
use crate::domain::cloud_event::{CloudEvent, EventRecord, EventSource};
use crate::domain::event::EventType;
use crate::domain::ids::{EventId, PARTITIONS, Partition, WorkspaceId};
use crate::domain::text::{FieldCode, FieldError};
use crate::http::auth::{Tenancy, scope};
use crate::http::body::refuse;
use crate::http::extract::{Caller, event_id, no_query, query, require_workspace, workspace_not_found};
use crate::http::ids::hyphenated;
use crate::http::pages::{Cursor, CursorText, Limit, ListKey};
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::queries::{EventPosition, EventQuery};

/// The most events that a page looks at to find those of the wanted types.
const MAX_LOOKED_AT: u32 = 1_000;

/// Which events, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventParams {
    /// `next` of the previous page; send the same filters with it. Without it, the list starts with the first event.
    /// `latest` starts after the newest event: the page is empty, and `next` leads to what comes later.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of events of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Events are always listed oldest first.
    #[serde(default)]
    #[param(required = false, inline)]
    order: OldestFirst,
    /// Only the events of this workspace. A token for one workspace implies it.
    #[serde(default, deserialize_with = "hyphenated_workspace_id")]
    workspace_id: Option<WorkspaceId>,
    /// Only events of these types. May be repeated. A page looks at 1,000 events at most, so it may be short or empty
    /// although `has_more` is true.
    #[serde(default)]
    #[param(required = false, explode = true)]
    r#type: Vec<EventType>,
}

/// The only order of events.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
enum OldestFirst {
    #[default]
    #[serde(rename = "asc")]
    Ascending,
}

/// Parses a hyphenated workspace id.
fn hyphenated_workspace_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WorkspaceId>, D::Error> {
    let id = hyphenated(&String::deserialize(deserializer)?).map(WorkspaceId);
    id.map(Some).ok_or_else(|| refuse(FieldError::new(FieldCode::Invalid, "must be a hyphenated UUID")))
}

/// A page of events, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventPage {
    items: Vec<CloudEvent>,
    /// Whether there are more events now.
    has_more: bool,
    /// The cursor of the next page, now or later.
    next: Cursor,
}

/// List the events
///
/// Events of one workspace in the order of their `workspaceseq`, or, with a token for all
/// workspaces and no `workspace_id`, of all of them in the order of each partition's `sequence`. Keep
/// `next` and poll with it: no event is ever skipped.
#[utoipa::path(
    tag = "events",
    params(EventParams),
    responses((status = 200, description = "A page of events.", body = EventPage, example = json!({
        "items": [{
            "specversion": "1.0", "id": "019a0000-0000-7000-8000-000000000006", "source": "urn:visionscope:billing",
            "type": "CreditConsumed", "subject": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
            "time": "2026-01-31T09:00:00.000000Z", "datacontenttype": "application/json",
            "dataschema": "urn:visionscope:event:CreditConsumed:1", "partition": 7, "sequence": "0000000000000000041",
            "workspaceid": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "workspaceseq": "0000000000000000002",
            "correlationid": "checkout-17", "causationid": "019a0000-0000-7000-8000-000000000001", "schemaversion": 1,
            "data": {
                "feature_code": "video.render", "credits": "2.5",
                "grants": [{
                    "grant_id": "019a0000-0000-7000-8000-000000000003", "source": "allowance", "credits": "2.5"
                }],
                "current_credits": "997.5", "used_this_month": "2.5", "occurred_at": "2026-01-31T09:00:00.000000Z"
            }
        }],
        "has_more": false, "next": "hiQXuefDcgtAIiXbTkv0eAAAAAAAAAAC"
    }))),
    extensions(
        ("x-problems" = json!(["workspace-not-found", "invalid-cursor", "cursor-gone"])),
        ("x-scope" = json!("events:read"))
    ),
    security(("bearer" = []))
)]
#[get("/v1/events")]
pub async fn list_events(caller: Caller<scope::EventsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let EventParams { cursor, limit, order: OldestFirst::Ascending, workspace_id, r#type: types } = query(&request)?;
    let state = AppState::of(&request);
    if let Some(workspace_id) = workspace_id {
        require_workspace(&caller.principal, workspace_id)?;
    }
    // In one order and once each: the same filter, however it is sent.
    let types = EventType::ALL.iter().copied().filter(|known| types.contains(known)).collect();
    let wanted = Wanted { cursor, limit, types };
    let page = match (workspace_id, caller.principal.tenancy) {
        (Some(workspace_id), _) | (None, Tenancy::One(workspace_id)) => {
            state.limits.check_rate(workspace_id)?;
            workspace_page(state, workspace_id, wanted).await?
        }
        (None, Tenancy::All) => all_workspaces_page(state, wanted).await?,
    };
    private_json(&request, &page)
}

struct Wanted {
    cursor: Option<CursorText>,
    limit: Limit,
    /// All if it is empty.
    types: Vec<EventType>,
}

impl Wanted {
    /// How many events to look at.
    fn look_at(&self) -> u32 {
        if self.types.is_empty() { self.limit.get() } else { MAX_LOOKED_AT }
    }

    fn has(&self, event: &EventRecord) -> bool {
        self.types.is_empty() || self.types.contains(&event.event_type)
    }

    /// The events of the page, of those that were looked at in order; and how many of these come before the next page.
    fn select(&self, rows: &[EventRecord], source: &EventSource) -> Result<(Vec<CloudEvent>, usize), Problem> {
        let mut items = Vec::new();
        for (place, event) in rows.iter().enumerate() {
            if !self.has(event) {
                continue;
            }
            if items.len() == self.limit.rows() {
                return Ok((items, place));
            }
            items.push(cloud_event(event, source)?);
        }
        Ok((items, rows.len()))
    }
}

async fn workspace_page(state: &AppState, workspace_id: WorkspaceId, wanted: Wanted) -> Result<EventPage, Problem> {
    let key = ListKey::new("events", &(workspace_id, &wanted.types));
    let events = async |after: i64, limit: u32| {
        read(state.store.events(&EventQuery::OfWorkspace { workspace_id, after, limit })).await
    };
    let seen = match &wanted.cursor {
        None => None,
        Some(cursor) if cursor.is_latest() => {
            let newest = recorded_state(state, workspace_id).await?.credits.event_seq;
            let rows = events(newest - 1, 1).await?;
            let last = rows.first().ok_or_else(workspace_not_found)?;
            let next = key.cursor([last.workspace_seq], &last.event_id);
            return Ok(EventPage { items: Vec::new(), has_more: false, next });
        }
        Some(cursor) => Some(key.parse::<1>(cursor)?),
    };
    let [seen_seq] = seen.map_or([0], |seen| seen.place);
    let look_at = wanted.look_at();
    // The seen event, and one more to find out whether there are more.
    let mut rows = events(seen_seq.saturating_sub(1), look_at + 1 + u32::from(seen.is_some())).await?;
    let mut last = None;
    if let Some(seen) = seen {
        last = Some(seen.take_from(&mut rows, |event| ([event.workspace_seq], event.event_id))?);
    }
    let found = rows.len();
    rows.truncate(usize::try_from(look_at).unwrap_or(usize::MAX));
    let (items, passed) = wanted.select(&rows, &state.event_source)?;
    last = rows.into_iter().take(passed).next_back().or(last);
    // Provisioning writes the first event of a workspace: without events there is no workspace.
    let last = last.ok_or_else(workspace_not_found)?;
    let next = key.cursor([last.workspace_seq], &last.event_id);
    Ok(EventPage { items, has_more: found > passed, next })
}

/// The last event of each partition that a caller has passed, by its number and its id; 0 and nil before the first.
#[derive(Clone, Debug)]
struct Passed {
    seqs: [i64; PARTITIONS as usize],
    ids: [EventId; PARTITIONS as usize],
}

impl Passed {
    const NOTHING: Self = Self { seqs: [0; PARTITIONS as usize], ids: [EventId(Uuid::nil()); PARTITIONS as usize] };

    fn pass(&mut self, event: &EventRecord) {
        let partition = usize::from(event.partition.number());
        (self.seqs[partition], self.ids[partition]) = (event.seq, event.event_id);
    }

    fn seq(&self, partition: Partition) -> i64 {
        self.seqs[usize::from(partition.number())]
    }
}

async fn all_workspaces_page(state: &AppState, wanted: Wanted) -> Result<EventPage, Problem> {
    let key = ListKey::new("events of all", &wanted.types);
    // More than an even share for each partition, so that a few busy partitions can fill a page.
    let share =
        if wanted.types.is_empty() { (wanted.limit.get() / 4).max(1) } else { MAX_LOOKED_AT / u32::from(PARTITIONS) };
    let (seqs, seen, is_latest) = match &wanted.cursor {
        None => (Passed::NOTHING.seqs, None, false),
        Some(cursor) if cursor.is_latest() => {
            let mut seqs = Passed::NOTHING.seqs;
            for head in read(state.store.heads()).await? {
                seqs[usize::from(head.partition.number())] = head.seq;
            }
            (seqs, None, true)
        }
        Some(cursor) => {
            let seen = key.parse::<{ PARTITIONS as usize }>(cursor)?;
            (seen.place, Some(seen), false)
        }
    };
    // The passed events too, and one more to find out whether there are more.
    let after = seqs.map(|seq| seq.saturating_sub(1).max(0));
    let limit = if is_latest { 1 } else { share + 2 };
    let rows = read(state.store.events(&EventQuery::OfAll { after: positions(&after), limit })).await?;
    let mut passed = Passed::NOTHING;
    let (before, rows): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|event| event.seq <= seqs[usize::from(event.partition.number())]);
    for event in &before {
        passed.pass(event);
    }
    if let Some(seen) = seen {
        seen.require(passed.seqs, &passed.ids)?;
    }
    if is_latest {
        return Ok(EventPage { items: Vec::new(), has_more: false, next: key.cursor(passed.seqs, &passed.ids) });
    }
    let found = rows.len();
    let rows = interleave(rows, &passed, share);
    let (items, count) = wanted.select(&rows, &state.event_source)?;
    for event in rows.iter().take(count) {
        passed.pass(event);
    }
    Ok(EventPage { items, has_more: found > count, next: key.cursor(passed.seqs, &passed.ids) })
}

/// Orders events by turns of the partitions, at most `share` of each, in the order of each partition. Each page starts
/// with another partition, so that short pages do not starve one.
fn interleave(mut rows: Vec<EventRecord>, passed: &Passed, share: u32) -> Vec<EventRecord> {
    let partitions = i64::from(PARTITIONS);
    let first = passed.seqs.iter().fold(0_i64, |sum, seq| sum.wrapping_add(*seq)).rem_euclid(partitions);
    let round = |event: &EventRecord| event.seq - passed.seq(event.partition);
    rows.retain(|event| round(event) <= i64::from(share));
    rows.sort_by_key(|event| (round(event), (i64::from(event.partition.number()) - first).rem_euclid(partitions)));
    rows
}

fn positions(after: &[i64; PARTITIONS as usize]) -> Vec<EventPosition> {
    Partition::all().zip(after).map(|(partition, seq)| EventPosition { partition, seq: *seq }).collect()
}

fn cloud_event(event: &EventRecord, source: &EventSource) -> Result<CloudEvent, Problem> {
    event.to_cloud_event(source).map_err(|error| {
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
    responses((status = 200, description = "The event.", body = CloudEvent, example = json!({
        "specversion": "1.0", "id": "019a0000-0000-7000-8000-000000000007", "source": "urn:visionscope:billing",
        "type": "LowCreditWarning", "subject": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "time": "2026-01-31T09:00:00.000000Z", "datacontenttype": "application/json",
        "dataschema": "urn:visionscope:event:LowCreditWarning:1", "partition": 7, "sequence": "0000000000000000042",
        "workspaceid": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "workspaceseq": "0000000000000000003",
        "correlationid": "checkout-17", "causationid": "019a0000-0000-7000-8000-000000000001", "schemaversion": 1,
        "data": {"threshold_credits": "100", "available_credits": "99.5", "current_credits": "99.5"}
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
    let state = AppState::of(&request);
    let found = read(state.store.event(event_id, workspace_id)).await?;
    let event = found.ok_or_else(|| Problem::plain(Code::EventNotFound))?;
    private_json(&request, &cloud_event(&event, &state.event_source)?)
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
            data: "{}".into(),
        }
    }

    #[test]
    fn no_partition_is_skipped_or_starved_when_pages_are_short() {
        let all: Vec<_> = (0..16).flat_map(|partition| (1..=20).map(move |seq| event(partition, seq))).collect();
        let limit: Limit = serde_json::from_str("\"3\"").unwrap();
        let wanted = Wanted { cursor: None, limit, types: Vec::new() };
        let mut passed = Passed::NOTHING;
        let mut seen = Vec::new();
        for _ in 0..200 {
            let rows = all.iter().filter(|row| row.seq > passed.seq(row.partition)).cloned().collect();
            let rows = interleave(rows, &passed, 1);
            let (_, count) = wanted.select(&rows, &EventSource::new("urn:test").unwrap()).unwrap();
            for row in rows.iter().take(count) {
                assert_eq!(row.seq, passed.seq(row.partition) + 1, "in order and without a gap");
                passed.pass(row);
                seen.push(row.partition.number());
            }
        }
        assert_eq!(seen.len(), all.len());
        let early: std::collections::HashSet<_> = seen.iter().take(96).collect();
        assert_eq!(early.len(), 16, "every partition had its turn early on");
    }
}
