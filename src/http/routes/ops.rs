//! For operators: the consumers of this server.

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::reads::{self, read};
use crate::domain::cloud_event::Sequence;
use crate::domain::consumers::{Build, Consumer, ConsumerState};
use crate::domain::ids::Partition;
use crate::domain::operator_act::OperatorAct;
use crate::domain::text::Label;
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::body;
use crate::http::extract::{OperatorCaller, no_query};
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::consumers::Registered;
use crate::store::operations::{ConsumerPosition, ConsumerStatus};

/// A consumer of this server, and how far it is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ConsumerStatus)]
pub struct ConsumerView {
    consumer: Consumer,
    state: ConsumerState,
    /// Why it was stopped or started.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Who has changed it last: the `sub` of a token, or `server`.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_by: Option<String>,
    changed_at: Timestamp,
    /// The build whose figures are read. Each rebuild has the next number.
    version: i32,
    /// The build that is made beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    building: Option<BuildView>,
    /// Stored events that it has not taken.
    lag_events: i64,
    /// How long the oldest of them has waited.
    lag_seconds: u64,
    /// Workspaces that it leaves out, because it could not take one of their events.
    parked_workspaces: i64,
    partitions: Vec<ConsumerPartition>,
}

/// A build of figures that is not read yet.
#[derive(Debug, Serialize, ToSchema)]
pub struct BuildView {
    version: i32,
    /// The figures are read when this is less than 1,000 in every partition.
    lag_events: i64,
}

/// How far a consumer is in a partition.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConsumerPartition {
    partition: Partition,
    /// The last event that it has taken.
    sequence: Sequence,
    /// The last event of the partition.
    head: Sequence,
    /// The server that has leased the partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// The type and the version of the schema that the next event has, if no running server knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<String>,
}

impl ConsumerView {
    fn new(status: ConsumerStatus, now: Timestamp) -> Self {
        let ConsumerStatus { registered, positions, parked } = status;
        let Registered { consumer, version, state, reason, changed_by, changed_at, .. } = registered;
        let of = |version: i32| {
            let build = Build { consumer, version };
            positions.iter().filter(move |position| position.cursor.build == build)
        };
        let lag = |version: i32| of(version).map(ConsumerPosition::lag).fold(0, i64::saturating_add);
        let waiting_since = of(version).filter_map(|position| position.waiting_since).min();
        let lag_seconds = waiting_since.map_or(0, |oldest| now.since(oldest).as_secs());
        let partition = |position: &ConsumerPosition| ConsumerPartition {
            partition: position.partition(),
            sequence: Sequence(position.cursor.seq),
            head: Sequence(position.head),
            owner: position.owner.clone().filter(|_| position.leased_until > now),
            waiting_for: position.cursor.waiting_for.clone(),
        };
        Self {
            consumer,
            state,
            reason,
            changed_by,
            changed_at,
            version,
            building: registered.building_version.map(|version| BuildView { version, lag_events: lag(version) }),
            lag_events: lag(version),
            lag_seconds,
            parked_workspaces: parked,
            partitions: of(version).map(partition).collect(),
        }
    }
}

/// All consumers, by name.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConsumerList {
    items: Vec<ConsumerView>,
    /// Always false: the list is complete.
    has_more: bool,
}

/// Why an operator acts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReasonRequest {
    /// For people to read. It is kept with what was done.
    #[schema(example = "The figures of July are checked first")]
    pub(super) reason: Label,
}

/// What an operator does: the action and its target, and both states.
pub(super) fn act(
    state: &AppState,
    caller: &OperatorCaller<scope::OpsWrite>,
    [action, target]: [&str; 2],
    reason: Label,
    [before, after]: [Option<String>; 2],
) -> OperatorAct {
    OperatorAct {
        audit_id: state.clock.new_id(),
        at: state.clock.now(),
        actor: caller.principal.subject.clone(),
        action: action.to_owned(),
        target: target.to_owned(),
        reason,
        before,
        after,
    }
}

/// List the consumers
///
/// What makes figures of the events inside this server, whether it runs, and how far it is in each partition.
#[utoipa::path(
    tag = "operations",
    responses((status = 200, description = "The consumers.", body = ConsumerList, example = json!({
        "items": [{
            "consumer": "analytics", "state": "running", "changed_at": "2026-01-31T09:00:00.000000Z", "version": 1,
            "lag_events": 3, "lag_seconds": 0, "parked_workspaces": 0,
            "partitions": [{"partition": 0, "sequence": "0000000000000000039", "head": "0000000000000000042"}]
        }],
        "has_more": false
    }))),
    extensions(("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/consumers")]
pub async fn list_consumers(_: OperatorCaller<scope::OpsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let state = AppState::of(&request);
    let statuses = read(state.operations.consumer_statuses()).await?;
    let now = state.clock.now();
    let items = statuses.into_iter().map(|status| ConsumerView::new(status, now)).collect();
    private_json(&request, &ConsumerList { items, has_more: false })
}

/// What an operator does to a consumer.
#[derive(Clone, Copy)]
enum Change {
    Pause,
    Resume,
    Rebuild,
}

impl Change {
    const fn action(self) -> &'static str {
        match self {
            Self::Pause => "consumer.pause",
            Self::Resume => "consumer.resume",
            Self::Rebuild => "consumer.rebuild",
        }
    }

    /// The consumer after it. `used` is the highest version of a build so far.
    fn apply(self, before: &Registered, used: i32) -> Result<Registered, Problem> {
        match self {
            Self::Pause => Ok(Registered { state: ConsumerState::Paused, ..before.clone() }),
            Self::Resume => Ok(Registered { state: ConsumerState::Running, ..before.clone() }),
            Self::Rebuild if before.building_version.is_some() => Err(Problem::plain(Code::ConsumerIsBuilding)),
            Self::Rebuild => Ok(before.rebuilding(used)),
        }
    }
}

async fn change(
    caller: &OperatorCaller<scope::OpsWrite>,
    request: &HttpRequest,
    mut payload: web::Payload,
    change: Change,
) -> Result<HttpResponse, Problem> {
    no_query(request)?;
    let state = AppState::of(request);
    let name = request.match_info().get("consumer").unwrap_or_default();
    let consumer = Consumer::from_stored(name).ok_or_else(|| Problem::plain(Code::ConsumerNotFound))?;
    let reason = body::read::<ReasonRequest>(request, &mut payload, change.action(), false).await?.value.reason;
    let statuses = read(state.operations.consumer_statuses()).await?;
    let status = statuses.into_iter().find(|status| status.registered.consumer == consumer);
    let status = status.ok_or_else(|| Problem::plain(Code::ConsumerNotFound))?;
    let before = status.registered;
    let used = read(state.operations.newest_build(consumer)).await?;
    let now = state.clock.now().max(before.changed_at.next());
    let after = Registered {
        reason: Some(reason.as_str().to_owned()),
        changed_by: Some(caller.principal.subject.clone()),
        changed_at: now,
        ..change.apply(&before, used)?
    };
    let both = [Some(before.told()), Some(after.told())];
    let act = OperatorAct { at: now, ..act(state, caller, [change.action(), consumer.as_str()], reason, both) };
    reads::change(Code::ConsumerChanged, state.operations.change_consumer(&before, &after, &act)).await?;
    let statuses = read(state.operations.consumer_statuses()).await?;
    let changed = statuses.into_iter().find(|status| status.registered.consumer == consumer);
    let changed = changed.ok_or_else(|| Problem::plain(Code::ConsumerNotFound))?;
    private_json(request, &ConsumerView::new(changed, state.clock.now()))
}

/// Pause a consumer
///
/// It takes no events until it is resumed. Its figures stay as they are, and `as_of` says how old they are.
#[utoipa::path(
    tag = "operations",
    params(("consumer" = Consumer, Path, description = "The consumer.")),
    request_body(content = ReasonRequest, example = json!({"reason": "The figures of July are checked first"})),
    responses((status = 200, description = "It is paused.", body = ConsumerView, example = json!({
        "consumer": "analytics", "state": "paused", "reason": "The figures of July are checked first",
        "changed_by": "operator-1", "changed_at": "2026-01-31T09:00:00.000000Z", "version": 1, "lag_events": 0,
        "lag_seconds": 0, "parked_workspaces": 0, "partitions": []
    }))),
    extensions(("x-problems" = json!(["consumer-not-found", "consumer-changed"])), ("x-scope" = json!("ops:write"))),
    security(("bearer" = []))
)]
#[post("/v1/ops/consumers/{consumer}/pause")]
pub async fn pause_consumer(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    change(&caller, &request, payload, Change::Pause).await
}

/// Resume a consumer
///
/// It goes on after the last event that it has taken, also if it has stopped itself. Workspaces that it leaves out stay so.
#[utoipa::path(
    tag = "operations",
    params(("consumer" = Consumer, Path, description = "The consumer.")),
    request_body(content = ReasonRequest, example = json!({"reason": "Checked"})),
    responses((status = 200, description = "It runs.", body = ConsumerView, example = json!({
        "consumer": "analytics", "state": "running", "reason": "Checked", "changed_by": "operator-1",
        "changed_at": "2026-01-31T09:00:00.000000Z", "version": 1, "lag_events": 12, "lag_seconds": 60,
        "parked_workspaces": 0, "partitions": []
    }))),
    extensions(("x-problems" = json!(["consumer-not-found", "consumer-changed"])), ("x-scope" = json!("ops:write"))),
    security(("bearer" = []))
)]
#[post("/v1/ops/consumers/{consumer}/resume")]
pub async fn resume_consumer(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    change(&caller, &request, payload, Change::Resume).await
}

/// Rebuild the figures of a consumer
///
/// Makes all of them again from the first event on, beside the old ones. The old ones are read until the new ones have caught
/// up. Commands go on meanwhile.
#[utoipa::path(
    tag = "operations",
    params(("consumer" = Consumer, Path, description = "The consumer.")),
    request_body(content = ReasonRequest, example = json!({"reason": "After the restore"})),
    responses((status = 200, description = "The new figures are being made.", body = ConsumerView, example = json!({
        "consumer": "analytics", "state": "running", "reason": "After the restore", "changed_by": "operator-1",
        "changed_at": "2026-01-31T09:00:00.000000Z", "version": 1, "building": {"version": 2, "lag_events": 4200},
        "lag_events": 0, "lag_seconds": 0, "parked_workspaces": 0, "partitions": []
    }))),
    extensions(
        ("x-problems" = json!(["consumer-not-found", "consumer-changed", "consumer-is-building"])),
        ("x-scope" = json!("ops:write"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/ops/consumers/{consumer}/rebuild")]
pub async fn rebuild_consumer(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    change(&caller, &request, payload, Change::Rebuild).await
}
