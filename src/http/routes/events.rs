//! Events over HTTP, for consumers without the Redis streams.
//!
//! `next` is always present, so a caller can poll with it. A token for one workspace reads the events of that workspace
//! in the order of `workspace_seq`. A token for all workspaces reads one partition in the order of `seq`, or every one; then
//! a page takes events from all partitions in turn, so that no partition starves another.

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
    /// Only the events of this partition, in the order of their `sequence`. Needs a token for all workspaces.
    #[param(required = false, inline, minimum = 0, maximum = 15)]
    partition: Option<u8>,
    /// Where the list of a `partition` begins without a `cursor`: after the event with this `sequence`, which must
    /// exist, or 0 for the first. This is how a consumer of a stream reads what it has missed.
    #[serde(default, deserialize_with = "sequence")]
    #[param(value_type = String, required = false, pattern = "^[0-9]{1,19}$")]
    after_sequence: Option<i64>,
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

/// Parses a `sequence`, with or without its leading zeros.
fn sequence<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_digits = text.len() <= 19 && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = is_digits.then(|| text.parse().ok()).flatten();
    number.map(Some).ok_or_else(|| refuse(FieldError::new(FieldCode::Invalid, "must be a number of 1 to 19 digits")))
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
/// workspaces and no `workspace_id`, of all of them in the order of each partition's `sequence`, or of one partition. Keep
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
    let params: EventParams = query(&request)?;
    let state = AppState::of(&request);
    let list = params.list(&caller)?;
    let EventParams { cursor, limit, order: OldestFirst::Ascending, after_sequence, r#type: types, .. } = params;
    // In one order and once each: the same filter, however it is sent.
    let types = EventType::ALL.iter().copied().filter(|known| types.contains(known)).collect();
    let wanted = Wanted { cursor, limit, types };
    let reader = if let List::Workspace(workspace_id) = list { workspace_id } else { ALL_WORKSPACES };
    let _read = state.limits.reads.acquire(reader)?;
    let page = match list {
        List::Workspace(workspace_id) => {
            state.limits.check_rate(workspace_id)?;
            workspace_page(state, workspace_id, wanted).await?
        }
        List::Partition(partition) => partition_page(state, partition, after_sequence.unwrap_or(0), wanted).await?,
        List::All => all_workspaces_page(state, wanted).await?,
    };
    private_json(&request, &page)
}

/// Who reads the events of all workspaces, for the limit of reads.
const ALL_WORKSPACES: WorkspaceId = WorkspaceId(Uuid::nil());

/// Whose events are listed.
enum List {
    Workspace(WorkspaceId),
    Partition(Partition),
    All,
}

impl EventParams {
    fn list(&self, caller: &Caller<scope::EventsRead>) -> Result<List, Problem> {
        let refuse =
            |name: &'static str, detail: &'static str| Err(Problem::parameter(Code::InvalidField, name, detail));
        if self.after_sequence.is_some() && self.partition.is_none() {
            return refuse("after_sequence", "needs partition");
        }
        if let Some(workspace_id) = self.workspace_id {
            require_workspace(&caller.principal, workspace_id)?;
        }
        let workspace_id = match caller.principal.tenancy {
            Tenancy::One(own) => Some(own),
            Tenancy::All => self.workspace_id,
        };
        match (workspace_id, self.partition) {
            (Some(_), Some(_)) => refuse("partition", "needs a token for all workspaces, and no workspace_id"),
            (Some(workspace_id), None) => Ok(List::Workspace(workspace_id)),
            (None, Some(number)) => match Partition::new(number) {
                Some(partition) => Ok(List::Partition(partition)),
                None => refuse("partition", "must be 0 to 15"),
            },
            (None, None) => Ok(List::All),
        }
    }
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
        self.types.is_empty() || event.event_type.known().is_some_and(|known| self.types.contains(&known))
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
    let newest = async || Ok(recorded_state(state, workspace_id).await?.credits.event_seq);
    let page = page_of_one(state, key, wanted, 0, |event| event.workspace_seq, events, newest).await?;
    // Provisioning writes the first event of a workspace: without events there is no workspace.
    page.ok_or_else(workspace_not_found)
}

async fn partition_page(
    state: &AppState,
    partition: Partition,
    after_sequence: i64,
    wanted: Wanted,
) -> Result<EventPage, Problem> {
    let key = ListKey::new("events of a partition", &(partition, &wanted.types));
    let events = async |after: i64, limit: u32| {
        let after = vec![EventPosition { partition, seq: after }];
        read(state.store.events(&EventQuery::OfAll { after, limit })).await
    };
    let newest = async || {
        let heads = read(state.store.heads()).await?;
        Ok(heads.iter().find(|head| head.partition == partition).map_or(0, |head| head.seq))
    };
    let page = page_of_one(state, key, wanted, after_sequence, |event| event.seq, events, newest).await?;
    Ok(page.unwrap_or_else(|| EventPage { items: Vec::new(), has_more: false, next: key.cursor([0], &NO_EVENT) }))
}

/// The id in a cursor before the first event.
const NO_EVENT: EventId = EventId(Uuid::nil());

/// A page of a list whose events have one number each, without gaps. None if there are no events.
async fn page_of_one(
    state: &AppState,
    key: ListKey,
    wanted: Wanted,
    start: i64,
    number: impl Fn(&EventRecord) -> i64,
    events: impl AsyncFn(i64, u32) -> Result<Vec<EventRecord>, Problem>,
    newest: impl AsyncFn() -> Result<i64, Problem>,
) -> Result<Option<EventPage>, Problem> {
    let (after, seen, look_at) = match &wanted.cursor {
        None => (start, None, wanted.look_at()),
        Some(cursor) if cursor.is_latest() => (newest().await?, None, 0),
        Some(cursor) => {
            let seen = key.parse::<1>(cursor)?;
            (seen.place[0], Some(seen), wanted.look_at())
        }
    };
    // The last event before the page too, and one more to find out whether there are more.
    let mut rows = events(after.saturating_sub(1), look_at + 1 + u32::from(after > 0)).await?;
    let mut last = None;
    if after > 0 {
        if rows.first().is_none_or(|event| number(event) != after) {
            let detail = "the database has no event with this number; start again without it";
            return Err(Problem::new(Code::CursorGone, detail));
        }
        let before = rows.remove(0);
        if let Some(seen) = seen {
            seen.require([after], &before.event_id)?;
        }
        last = Some(before);
    }
    let found = rows.len();
    rows.truncate(usize::try_from(look_at).unwrap_or(usize::MAX));
    let (items, passed) = wanted.select(&rows, &state.event_source)?;
    let last = rows.into_iter().take(passed).next_back().or(last);
    let has_more = found > passed;
    Ok(last.map(|last| EventPage { items, has_more, next: key.cursor([number(&last)], &last.event_id) }))
}

/// The last event of each partition that a caller has passed, by its number and its id; 0 and nil before the first.
#[derive(Clone, Debug)]
struct Passed {
    seqs: [i64; PARTITIONS as usize],
    ids: [EventId; PARTITIONS as usize],
}

impl Passed {
    const NOTHING: Self = Self { seqs: [0; PARTITIONS as usize], ids: [NO_EVENT; PARTITIONS as usize] };

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
    let _read = state.limits.reads.acquire(workspace_id.unwrap_or(ALL_WORKSPACES))?;
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
            event_type: EventType::CreditConsumed.into(),
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
