//! What operators do about dead letters: try them again, or discard them.

use std::collections::HashMap;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use chrono::TimeDelta;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::dead_letters::{DeadLetterView, Fingerprint};
use super::job_views::JobObject;
use super::jobs::require_scope;
use super::ops::{ReasonRequest, act};
use super::reads::{change, read};
use crate::domain::consumers::{Fault, Folded, Treatment, fold};
use crate::domain::dead_letter::{DeadLetter, FailedEvent, LetterSource, LetterState};
use crate::domain::event::EventType;
use crate::domain::ids::{JobId, WorkspaceId};
use crate::domain::jobs::{Job, ReplayedLetter};
use crate::domain::operator_act::OperatorAct;
use crate::domain::text::{FieldCode, FieldError, Label, QueueName};
use crate::domain::time::Timestamp;
use crate::http::auth::{Principal, scope};
use crate::http::body::{self, refuse, whole};
use crate::http::extract::{OperatorCaller, dead_letter_id, no_query, replay_id};
use crate::http::job_commands::CommandKind;
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::operations::{DeadLetterQuery, LetterChange, LetterFilter};
use crate::store::queries::Page;

/// How many letters one replay has.
const MAX_LETTERS: u32 = 1000;
/// How many letters a dry run tries.
const MAX_TRIALS: usize = 100;
const REPLAY: &str = "dead_letters.replay";
const DISCARD: &str = "dead_letter.discard";

/// Which open letters to try again: those with the given ids, or all that match the other fields. At most 1,000.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Ids of letters. Send no other filter with them.
    #[serde(default, deserialize_with = "letter_ids")]
    #[schema(value_type = Vec<Uuid>, required = false, max_items = 1000)]
    dead_letter_ids: Vec<Uuid>,
    source: Option<LetterSource>,
    /// The consumer or the queue.
    name: Option<QueueName>,
    fingerprint: Option<Fingerprint>,
    workspace_id: Option<WorkspaceId>,
    /// `true`: nothing is changed. The first 100 letters are tried, and the answer says which would fail again.
    #[serde(default)]
    #[schema(required = false)]
    dry_run: bool,
    /// How many letters are tried in a second.
    #[serde(default = "default_rate", deserialize_with = "rate")]
    #[schema(required = false, minimum = 1, maximum = 100)]
    per_second: u32,
    /// Of exactly one letter, of a job: other arguments for it, as if you had sent it. An object of at most 16 KiB. It is kept with
    /// what was done. For a job that is a command, the token needs the scope of that command.
    #[schema(value_type = Option<Object>)]
    args: Option<JobObject>,
    /// For people to read. It is kept with what was done.
    #[schema(example = "The server was upgraded")]
    reason: Label,
}

const fn default_rate() -> u32 {
    10
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    whole(deserializer, &(1..=100))
}

fn letter_ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Uuid>, D::Error> {
    let ids = Vec::deserialize(deserializer)?;
    let is_allowed = (1..=1000).contains(&ids.len());
    let refused = || refuse(FieldError::new(FieldCode::Invalid, "must have from 1 to 1000 ids"));
    is_allowed.then_some(ids).ok_or_else(refused)
}

/// Letters that are tried again, and how far that is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Replay)]
pub struct ReplayView {
    replay_id: Uuid,
    at: Timestamp,
    /// The `sub` of the token.
    actor: String,
    reason: Label,
    /// Letters that it tries.
    matched: usize,
    /// Whether more letters match than one replay may have.
    has_more: bool,
    /// Letters that were not tried yet.
    waiting: i64,
    /// Letters whose event was taken, or whose new job was completed.
    resolved: i64,
    /// Letters that have failed again, and are open.
    failed: i64,
    /// Letters that have failed again and were discarded.
    discarded: i64,
}

/// What a replay would do.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplayTrial {
    /// Letters that would be tried.
    matched: usize,
    /// Whether more letters match than one replay may have.
    has_more: bool,
    /// Letters that were tried now: the first 100 of consumers. Those of jobs are not tried.
    tried: usize,
    /// Those of them that would fail again.
    failing: Vec<FailedTrial>,
}

/// A letter that would fail again.
#[derive(Debug, Serialize, ToSchema)]
pub struct FailedTrial {
    dead_letter_id: Uuid,
    error_class: String,
    error: String,
}

/// What the audit keeps of a replay.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    matched: usize,
    has_more: bool,
    per_second: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<JobObject>,
}

/// Replay dead letters
///
/// Tries open letters again, one after the other. If the event of a letter is taken now, the letter is resolved, and the later
/// events of its workspace follow. If it fails again, it is open again, with one more attempt. A consumer that does not run tries
/// its letters when it is resumed. The letter of a job gets a new job, with the same arguments or others, a hold of its own and all
/// attempts; the letter is resolved when that job is completed. With a filter, jobs that have failed and whose hold is not released
/// yet are left out.
#[utoipa::path(
    tag = "operations",
    request_body(content = ReplayRequest, example = json!({
        "fingerprint": "9c3a1f0e5b7d2468", "per_second": 10, "reason": "The server was upgraded"
    })),
    responses(
        (status = 202, description = "The letters are being tried.", body = ReplayView, example = json!({
            "replay_id": "019a0000-0000-7000-8000-00000000000d", "at": "2026-01-31T09:00:00.000000Z",
            "actor": "operator-1", "reason": "The server was upgraded", "matched": 37, "has_more": false, "waiting": 37,
            "resolved": 0, "failed": 0, "discarded": 0
        })),
        (status = 200, description = "What a replay would do.", body = ReplayTrial, example = json!({
            "matched": 37, "has_more": false, "tried": 37, "failing": [{
                "dead_letter_id": "019a0000-0000-7000-8000-00000000000b", "error_class": "contradiction",
                "error": "the purchase 019a0000-0000-7000-8000-000000000004 is unknown"
            }]
        }))
    ),
    extensions(
        ("x-problems" = json!(["dead-letter-changed"])),
        ("x-scope" = json!("ops:write"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/ops/dead-letters/replay")]
pub async fn replay_dead_letters(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let wanted = body::read::<ReplayRequest>(&request, &mut payload, REPLAY, false).await?.value;
    let state = AppState::of(&request);
    let Page { rows: letters, has_more } = matching(state, &wanted).await?;
    let (replay_id, now) = (state.clock.new_id(), state.clock.now());
    let (target, per_second) = (wanted.target(), wanted.per_second);
    let ReplayRequest { args, reason, dead_letter_ids, dry_run, .. } = wanted;
    let has_filter = dead_letter_ids.is_empty();
    let is_one_job = matches!(&letters[..], [only] if only.event().is_none());
    if args.is_some() && !is_one_job {
        return Err(Problem::field(Code::InvalidField, "/args", "needs the letter of exactly one job"));
    }
    let pause = TimeDelta::microseconds(1_000_000 / i64::from(per_second));
    let mut changes = again(state, letters, has_filter, (now, pause), replay_id).await?;
    if let (Some(args), [LetterChange { job: Some(job), .. }]) = (&args, &mut changes[..]) {
        edit(job, args, &caller.principal)?;
    }
    if dry_run {
        let letters: Vec<_> = changes.into_iter().map(|change| change.letter).collect();
        return private_json(&request, &trial(state, &letters, has_more).await?);
    }
    let replay = Told { matched: changes.len(), has_more, per_second, args };
    let states = [Some(told(LetterState::Open)), serde_json::to_string(&replay).ok()];
    let act = OperatorAct { audit_id: replay_id, at: now, ..act(state, &caller, [REPLAY, &target], reason, states) };
    change(Code::DeadLetterChanged, state.operations.change_letters(&changes, &act)).await?;
    let jobs = changes.iter().filter_map(|change| change.job.clone()).collect();
    state.within(state.decision_timeout, state.queues.begin(jobs)).await;
    let waiting = i64::try_from(changes.len()).unwrap_or(i64::MAX);
    let view = ReplayView::new(act, &replay, &[(LetterState::Replaying, waiting)]);
    let mut answer = private_json(&request, &view)?;
    *answer.status_mut() = StatusCode::ACCEPTED;
    Ok(answer)
}

/// What is to be written for letters, each to be tried a pause after the one before. The letter of a job gets a new job. One whose
/// job is not over yet is refused, or left out if a filter has found it.
async fn again(
    state: &AppState,
    letters: Vec<DeadLetter>,
    has_filter: bool,
    (now, pause): (Timestamp, TimeDelta),
    replay_id: Uuid,
) -> Result<Vec<LetterChange>, Problem> {
    let ids: Vec<JobId> = letters.iter().filter_map(|letter| letter.job().map(|job| job.job_id)).collect();
    let failed = read(state.jobs.finished_jobs(&ids)).await?;
    let mut failed: HashMap<_, _> = failed.into_iter().map(|failed| (failed.job.job_id, failed)).collect();
    let queues = state.queues.settings();
    let (mut changes, mut replay_at) = (Vec::with_capacity(letters.len()), now);
    for letter in letters {
        let mut new = None;
        if let Some(job) = letter.job() {
            let Some(failed) = failed.remove(&job.job_id) else {
                if has_filter {
                    continue;
                }
                return Err(Problem::plain(Code::DeadLetterChanged));
            };
            let replays = ReplayedLetter { dead_letter_id: letter.dead_letter_id, replay_id };
            let queue = state.queues.routes().of(failed.job.kind.as_str()).queue.clone();
            let settings = queues.get(&queue).ok_or_else(|| Problem::plain(Code::InternalError))?;
            let sent = failed.again(JobId(state.clock.new_id()), queue, replays, replay_at);
            new = Some(sent.into_job(settings, &mut HashMap::new(), now));
        }
        let letter = DeadLetter { state: LetterState::Replaying, replay_id: Some(replay_id), ..letter };
        changes.push(LetterChange { letter, replay_at, job: new });
        replay_at = replay_at.plus(pause);
    }
    Ok(changes)
}

/// Gives a job other arguments, as if the operator had sent it.
fn edit(job: &mut Job, args: &JobObject, operator: &Principal) -> Result<(), Problem> {
    if let Some(command) = CommandKind::of(&job.kind) {
        require_scope(operator, command.scope)?;
        command.check(args.text())?;
    }
    args.text().clone_into(&mut job.args);
    job.actor.clone_from(&operator.subject);
    Ok(())
}

/// What the audit says of letters in this state.
fn told(state: LetterState) -> String {
    serde_json::json!({"state": state}).to_string()
}

/// The open letters that are asked for.
async fn matching(state: &AppState, wanted: &ReplayRequest) -> Result<Page<DeadLetter>, Problem> {
    let ReplayRequest { dead_letter_ids, source, name, fingerprint, workspace_id, .. } = wanted;
    let filter = LetterFilter {
        source: *source,
        name: name.as_ref().map(|name| name.as_str().to_owned()),
        fingerprint: fingerprint.as_ref().map(|fingerprint| fingerprint.0.clone()),
        workspace_id: *workspace_id,
    };
    let has_filter = filter != LetterFilter::default();
    if has_filter != dead_letter_ids.is_empty() {
        let detail = "must be there, or a filter: source, name, fingerprint or workspace_id, but not both";
        return Err(Problem::field(Code::InvalidField, "/dead_letter_ids", detail));
    }
    if has_filter {
        let query = DeadLetterQuery { state: LetterState::Open, filter, start_at: None, limit: MAX_LETTERS };
        return read(state.operations.dead_letters(&query)).await;
    }
    let mut rows = read(state.operations.dead_letters_by_id(dead_letter_ids)).await?;
    rows.retain(|letter| letter.state == LetterState::Open);
    rows.sort_by_key(|letter| letter.dead_letter_id);
    rows.dedup_by_key(|letter| letter.dead_letter_id);
    Ok(Page { rows, has_more: false })
}

/// Tries the first letters, and writes nothing.
async fn trial(state: &AppState, letters: &[DeadLetter], has_more: bool) -> Result<ReplayTrial, Problem> {
    let (mut tried, mut failing) = (0, Vec::new());
    // Nobody knows what a job does before it runs.
    for (letter, event) in letters.iter().filter_map(|letter| Some((letter, letter.event()?))).take(MAX_TRIALS) {
        tried += 1;
        let fault = fault_now(state, event).await?;
        failing.extend(fault.map(|fault| FailedTrial {
            dead_letter_id: letter.dead_letter_id,
            error_class: fault.class.to_owned(),
            error: fault.text,
        }));
    }
    Ok(ReplayTrial { matched: letters.len(), has_more, tried, failing })
}

/// Why the event could not be taken now, if so.
async fn fault_now(state: &AppState, event: &FailedEvent) -> Result<Option<Fault>, Problem> {
    let Some((fact, rows)) = read(state.operations.event_trial(event)).await? else {
        return Ok(Some(Fault { class: "event_not_found", text: "the event is no longer stored".into() }));
    };
    Ok(match fold(event.build, &[fact], rows, |_| Treatment::Take) {
        Folded::Rows(_) => None,
        Folded::Faulted { fault, .. } => Some(fault),
    })
}

impl ReplayRequest {
    /// What the audit calls these letters.
    fn target(&self) -> String {
        let source = self.source.map(|source| format!("source {}", source.as_str()));
        let name = self.name.as_ref().map(|name| format!("name {name}"));
        let fingerprint = self.fingerprint.as_ref().map(|fingerprint| format!("fingerprint {}", fingerprint.0));
        let workspace = self.workspace_id.map(|workspace_id| format!("workspace {workspace_id}"));
        let ids = match &self.dead_letter_ids[..] {
            [] => None,
            [only] => Some(only.to_string()),
            ids => Some(format!("{} dead letters", ids.len())),
        };
        [ids, source, name, fingerprint, workspace].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl ReplayView {
    fn new(act: OperatorAct, told: &Told, progress: &[(LetterState, i64)]) -> Self {
        let count = |wanted| progress.iter().filter(|(state, _)| *state == wanted).map(|(_, count)| count).sum();
        Self {
            replay_id: act.audit_id,
            at: act.at,
            actor: act.actor,
            reason: act.reason,
            matched: told.matched,
            has_more: told.has_more,
            waiting: count(LetterState::Replaying),
            resolved: count(LetterState::Resolved),
            failed: count(LetterState::Open),
            discarded: count(LetterState::Discarded),
        }
    }
}

/// Get a replay
///
/// How far a replay of dead letters is. A letter that is tried again by a later replay is counted there.
#[utoipa::path(
    tag = "operations",
    params(("replay_id" = Uuid, Path, description = "The replay.")),
    responses((status = 200, description = "The replay.", body = ReplayView, example = json!({
        "replay_id": "019a0000-0000-7000-8000-00000000000d", "at": "2026-01-31T09:00:00.000000Z",
        "actor": "operator-1", "reason": "The server was upgraded", "matched": 37, "has_more": false, "waiting": 5,
        "resolved": 31, "failed": 1, "discarded": 0
    }))),
    extensions(("x-problems" = json!(["replay-not-found"])), ("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/replays/{replay_id}")]
pub async fn get_replay(_: OperatorCaller<scope::OpsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let (state, id) = (AppState::of(&request), replay_id(&request)?);
    let act = read(state.operations.operator_act(id)).await?.filter(|act| act.action == REPLAY);
    let found = act.and_then(|act| {
        let told = serde_json::from_str::<Told>(act.after.as_deref()?).ok()?;
        Some((act, told))
    });
    let (act, told) = found.ok_or_else(|| Problem::plain(Code::ReplayNotFound))?;
    let progress = read(state.operations.replay_progress(id)).await?;
    private_json(&request, &ReplayView::new(act, &told, &progress))
}

/// Discard a dead letter
///
/// Gives an open letter up. If it is one of a consumer, what its event tells is in no figure of that consumer, and the later events of its workspace
/// follow. From then on, `as_of` calls the figures of the workspace incomplete. If the event can be taken by now, it is taken
/// all the same. The event that tells of a new workspace cannot be discarded: no later one could be taken without it.
#[utoipa::path(
    tag = "operations",
    params(("dead_letter_id" = Uuid, Path, description = "The letter.")),
    request_body(content = ReasonRequest, example = json!({"reason": "The purchase was a test"})),
    responses((status = 200, description = "It is discarded.", body = DeadLetterView, example = json!({
        "dead_letter_id": "019a0000-0000-7000-8000-00000000000b", "source": "consumer", "name": "analytics",
        "kind": "CreditConsumed", "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "version": 1,
        "partition": 7, "sequence": "0000000000000000042", "workspaceseq": "0000000000000000003",
        "event_id": "019a0000-0000-7000-8000-000000000007", "fingerprint": "9c3a1f0e5b7d2468", "error_class": "contradiction",
        "error": "the purchase 019a0000-0000-7000-8000-000000000004 is unknown", "attempts": 1,
        "first_failed_at": "2026-01-31T09:00:00.000000Z", "last_failed_at": "2026-01-31T09:00:00.000000Z",
        "state": "discarded", "resolved_at": "2026-01-31T10:00:00.000000Z"
    }))),
    extensions(
        ("x-problems" = json!(["dead-letter-not-found", "dead-letter-changed", "dead-letter-needed"])),
        ("x-scope" = json!("ops:write"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/ops/dead-letters/{dead_letter_id}/discard")]
pub async fn discard_dead_letter(
    caller: OperatorCaller<scope::OpsWrite>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let (state, id) = (AppState::of(&request), dead_letter_id(&request)?);
    let reason = body::read::<ReasonRequest>(&request, &mut payload, DISCARD, false).await?.value.reason;
    let found = read(state.operations.dead_letters_by_id(&[id])).await?.pop();
    let letter = found.ok_or_else(|| Problem::plain(Code::DeadLetterNotFound))?;
    if letter.state != LetterState::Open {
        return Err(Problem::plain(Code::DeadLetterChanged));
    }
    if letter.kind == EventType::WorkspaceProvisioned.as_str() {
        return Err(Problem::plain(Code::DeadLetterNeeded));
    }
    let now = state.clock.now();
    let discarded = letter.closed(LetterState::Discarded, now);
    let states = [LetterState::Open, LetterState::Discarded].map(|state| Some(told(state)));
    let act = OperatorAct { at: now, ..act(state, &caller, [DISCARD, &id.to_string()], reason, states) };
    let discard = [LetterChange { letter: discarded.clone(), replay_at: now, job: None }];
    change(Code::DeadLetterChanged, state.operations.change_letters(&discard, &act)).await?;
    private_json(&request, &DeadLetterView::from(discarded))
}
