//! For operators: the queues, their load, and their routes.

use actix_web::{HttpRequest, HttpResponse, get, patch, web};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::ops::act;
use super::reads::{change, read};
use crate::domain::jobs::{Queue, QueueSettings, RetryDelays, Route, Runner};
use crate::domain::text::{FieldCode, FieldError, JobKind, Label, QueueName};
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::body::{self, refuse};
use crate::http::extract::{OperatorCaller, no_query, query};
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::jobs::QueueLoad;

const CHANGE: &str = "queue.change";

/// A queue with its settings and its load.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Queue)]
pub struct QueueView {
    queue: QueueName,
    settings: QueueSettings,
    /// Jobs that workers have.
    running: i64,
    /// Jobs that are ready: up to 10,000 of those for workers, of commands, and of those of schedules each.
    due: i64,
    /// How long the job has waited that is taken next, in seconds. 0 if there is none.
    oldest_due_s: u64,
    /// Who has changed it last: the `sub` of a token. Absent if nobody has.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_by: Option<String>,
    changed_at: Timestamp,
}

/// All queues, by name.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueList {
    items: Vec<QueueView>,
    /// Always false: the list is complete.
    has_more: bool,
}

/// What to change. What is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeQueueRequest {
    /// Whoever takes jobs of several queues takes them in the proportion of the weights: 1 to 100.
    weight: Option<i32>,
    /// `true`: no job is taken. Those that run go on, and new ones wait.
    is_paused: Option<bool>,
    /// How many of its jobs may run at once, 1 to 100000; null for as many as there are workers.
    #[serde(default)]
    #[schema(value_type = Option<i32>, required = false)]
    max_running: CapChange,
    /// How many jobs of one workspace may run at once, 1 to 100000; null for no such cap.
    #[serde(default)]
    #[schema(value_type = Option<i32>, required = false)]
    max_running_per_workspace: CapChange,
    /// How long a worker has a job without a heartbeat, in seconds: 15 to 3600.
    lease_s: Option<i32>,
    /// How long an attempt may take, in seconds: 1 to 86400.
    timeout_s: Option<i32>,
    /// After so many attempts a job fails: 1 to 100. Jobs that were sent before keep theirs.
    max_attempts: Option<i32>,
    /// Seconds between attempts; the last one repeats.
    retry_delays_s: Option<RetryDelays>,
    /// How many hours a job is kept after its end, 1 to 8760.
    keep_done_h: Option<i32>,
    /// For people to read. It is kept with what was done.
    #[schema(example = "The model is being replaced")]
    reason: Label,
}

/// What becomes of a cap.
#[derive(Clone, Copy, Debug, Default)]
enum CapChange {
    #[default]
    Keep,
    Set(Option<i32>),
}

impl<'de> Deserialize<'de> for CapChange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(Self::Set)
    }
}

impl CapChange {
    fn apply(self, before: Option<i32>) -> Option<i32> {
        match self {
            Self::Keep => before,
            Self::Set(after) => after,
        }
    }
}

impl ChangeQueueRequest {
    fn apply(self, before: &QueueSettings) -> QueueSettings {
        QueueSettings {
            weight: self.weight.unwrap_or(before.weight),
            is_paused: self.is_paused.unwrap_or(before.is_paused),
            max_running: self.max_running.apply(before.max_running),
            max_running_per_workspace: self.max_running_per_workspace.apply(before.max_running_per_workspace),
            lease_s: self.lease_s.unwrap_or(before.lease_s),
            timeout_s: self.timeout_s.unwrap_or(before.timeout_s),
            max_attempts: self.max_attempts.unwrap_or(before.max_attempts),
            retry_delays_s: self.retry_delays_s.unwrap_or_else(|| before.retry_delays_s.clone()),
            keep_done_h: self.keep_done_h.unwrap_or(before.keep_done_h),
        }
    }
}

impl QueueView {
    fn new(Queue { queue, settings, changed_by, changed_at }: Queue, loads: &[QueueLoad], now: Timestamp) -> Self {
        let loads = || loads.iter().filter(|load| load.queue == queue);
        let oldest = loads().filter_map(|load| load.oldest).min();
        Self {
            running: loads().map(|load| load.running).sum(),
            due: loads().map(|load| load.due).sum(),
            oldest_due_s: oldest.map_or(0, |oldest| now.since(oldest).as_secs()),
            queue,
            settings,
            changed_by,
            changed_at,
        }
    }
}

/// The queue in the path. A malformed name gets the same answer as an unknown one.
async fn queue_named(request: &HttpRequest) -> Result<Queue, Problem> {
    let name = request.match_info().get("queue").unwrap_or_default();
    let queues = read(AppState::of(request).jobs.queues()).await?;
    queues.into_iter().find(|queue| queue.queue.as_str() == name).ok_or_else(|| Problem::plain(Code::QueueNotFound))
}

/// List the queues
///
/// How the jobs of each queue are run, and what there is to do.
#[utoipa::path(
    tag = "operations",
    responses((status = 200, description = "The queues.", body = QueueList, example = json!({
        "items": [{
            "queue": "video_processing", "settings": {
                "weight": 4, "is_paused": false, "max_running_per_workspace": 10, "lease_s": 60,
                "timeout_s": 7200, "max_attempts": 5, "retry_delays_s": [30, 120, 480, 1800], "keep_done_h": 168
            },
            "running": 12, "due": 340, "oldest_due_s": 95, "changed_by": "operator-1",
            "changed_at": "2026-01-31T09:00:00.000000Z"
        }],
        "has_more": false
    }))),
    extensions(("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/queues")]
pub async fn list_queues(_: OperatorCaller<scope::OpsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let state = AppState::of(&request);
    let (queues, loads) =
        (read(state.jobs.queues()).await?, read(state.jobs.queue_loads(QueueLoad::MAX_COUNTED)).await?);
    let now = state.clock.now();
    let items = queues.into_iter().map(|queue| QueueView::new(queue, &loads, now)).collect();
    private_json(&request, &QueueList { items, has_more: false })
}

/// Change a queue
///
/// Changes how the jobs of a queue are run: on every replica within a second. What runs goes on as it began.
#[utoipa::path(
    tag = "operations",
    params(("queue" = QueueName, Path, description = "The queue.")),
    request_body(content = ChangeQueueRequest, example = json!({
        "is_paused": true, "reason": "The model is being replaced"
    })),
    responses((status = 200, description = "It is changed.", body = QueueView, example = json!({
        "queue": "video_processing", "settings": {
            "weight": 4, "is_paused": true, "max_running_per_workspace": 10, "lease_s": 60,
            "timeout_s": 7200, "max_attempts": 5, "retry_delays_s": [30, 120, 480, 1800], "keep_done_h": 168
        },
        "running": 12, "due": 340, "oldest_due_s": 95, "changed_by": "operator-1",
        "changed_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(("x-problems" = json!(["queue-not-found", "queue-changed"])), ("x-scope" = json!("ops:write"))),
    security(("bearer" = []))
)]
#[patch("/v1/ops/queues/{queue}")]
pub async fn change_queue(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let state = AppState::of(&request);
    let sent = body::read::<ChangeQueueRequest>(&request, &mut payload, CHANGE, false).await?.value;
    let before = queue_named(&request).await?;
    let (reason, settings) = (sent.reason.clone(), sent.apply(&before.settings));
    if let Some((field, problem)) = settings.problem() {
        return Err(Problem::field(Code::InvalidField, format!("/{field}"), problem));
    }
    let told = |settings: &QueueSettings| serde_json::to_string(settings).ok();
    let states = [told(&before.settings), told(&settings)];
    let act = act(state, &caller, [CHANGE, before.queue.as_str()], reason, states);
    let after = Queue {
        settings,
        changed_by: Some(act.actor.clone()),
        changed_at: act.at.max(before.changed_at.next()),
        ..before.clone()
    };
    change(Code::QueueChanged, state.jobs.change_queue(&before, &after, &act)).await?;
    read(state.queues.refresh()).await?;
    let loads = read(state.jobs.queue_loads(QueueLoad::MAX_COUNTED)).await?;
    private_json(&request, &QueueView::new(after, &loads, state.clock.now()))
}

/// How many jobs one worker runs at once. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ScaleParams {
    /// How many jobs one worker runs at once: 1 to 256.
    #[serde(default = "one_slot", deserialize_with = "slots")]
    #[param(required = false, minimum = 1, maximum = 256)]
    slots_per_worker: i64,
}

const fn one_slot() -> i64 {
    1
}

fn slots<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = String::deserialize(deserializer)?;
    // The parser alone would accept a sign and leading zeros.
    let is_plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    let slots = text.parse().ok().filter(|slots| is_plain && (1..=256).contains(slots));
    slots.ok_or_else(|| refuse(FieldError::new(FieldCode::Invalid, "must be a whole number from 1 to 256")))
}

/// How many workers a queue needs.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueScale {
    /// So many workers would run all that runs and is due.
    value: i64,
    due: i64,
    running: i64,
    /// How long the job has waited that is taken next, in seconds.
    oldest_s: u64,
}

/// Get the scale of a queue
///
/// How many workers a queue needs, in the form that KEDA's `metrics-api` reads: `valueLocation: value`, `targetValue: "1"`. The
/// server's own jobs need none. A paused queue needs as many as run jobs, and one with a cap as many as may run.
#[utoipa::path(
    tag = "operations",
    params(("queue" = QueueName, Path, description = "The queue."), ScaleParams),
    responses((status = 200, description = "The scale.", body = QueueScale, example = json!({
        "value": 88, "due": 340, "running": 12, "oldest_s": 95
    }))),
    extensions(("x-problems" = json!(["queue-not-found"])), ("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/queues/{queue}/scale")]
pub async fn get_queue_scale(_: OperatorCaller<scope::OpsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let ScaleParams { slots_per_worker } = query(&request)?;
    let state = AppState::of(&request);
    let queue = queue_named(&request).await?;
    let QueueSettings { is_paused, max_running, .. } = queue.settings;
    let mut loads = read(state.jobs.queue_loads(QueueLoad::MAX_COUNTED)).await?;
    loads.retain(|load| load.runner == Runner::Worker);
    let QueueView { due, running, oldest_due_s, .. } = QueueView::new(queue, &loads, state.clock.now());
    let most = if is_paused { running } else { max_running.map_or(i64::MAX, i64::from).max(running) };
    let jobs = (running + due).min(most);
    let value = jobs / slots_per_worker + i64::from(jobs % slots_per_worker > 0);
    private_json(&request, &QueueScale { value, due, running, oldest_s: oldest_due_s })
}

/// Which kind is asked about. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RouteParams {
    /// Which queue do jobs of this kind go to, and why?
    #[param(required = false, inline)]
    kind: Option<JobKind>,
}

/// The kinds that fit a pattern go to a queue.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Route)]
pub struct RouteView {
    /// `*` stands for any text, and `?` for one character.
    pattern: String,
    queue: QueueName,
    /// Whether the kind that was asked about fits it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<bool>,
}

/// The routes, the most specific first: the first one that fits decides.
#[derive(Debug, Serialize, ToSchema)]
pub struct RouteList {
    items: Vec<RouteView>,
    /// Always false: the list is complete.
    has_more: bool,
    /// The queue of the kind that was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<QueueName>,
}

/// Explain the routes
///
/// Which queue the jobs of each kind go to. The routes are in the configuration of this server; those that are equally specific
/// and fit one kind were refused when it started.
#[utoipa::path(
    tag = "operations",
    params(RouteParams),
    responses((status = 200, description = "The routes.", body = RouteList, example = json!({
        "items": [
            {"pattern": "video_processing.*", "queue": "video_processing", "fits": true},
            {"pattern": "*", "queue": "default", "fits": true}
        ],
        "has_more": false, "queue": "video_processing"
    }))),
    extensions(("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/routes")]
pub async fn explain_routes(_: OperatorCaller<scope::OpsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let RouteParams { kind } = query(&request)?;
    let routes = AppState::of(&request).queues.routes();
    let view = |(route, fits): (&Route, Option<bool>)| RouteView {
        pattern: route.pattern.clone(),
        queue: route.queue.clone(),
        fits,
    };
    let items = routes.explained(kind.as_ref().map(JobKind::as_str)).map(view).collect();
    let queue = kind.map(|kind| routes.of(kind.as_str()).queue.clone());
    private_json(&request, &RouteList { items, has_more: false, queue })
}
