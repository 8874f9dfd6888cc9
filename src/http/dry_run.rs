//! Dry runs over HTTP: the query parameter that all commands have, and the answer.
//!
//! What is wrong with a request before a command can be decided (its token, its scope, its body) is answered like that
//! of the command itself. The rest is answered with 200, also where the command would be refused.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::body::refuse;
use super::extract::query;
use super::problem::{Code, Problem};
use super::render::KeyKind;
use super::state::AppState;
use crate::domain::cloud_event::AnyEventType;
use crate::domain::commands::Envelope;
use crate::domain::event::EventType;
use crate::domain::plan_preview::PlanPreview;
use crate::domain::text::{FieldCode, FieldError};
use crate::engine::{DryRunEvent, Rendered, Reply};

/// Maximum duration of a dry run, as of a read. After it the answer is 503.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The query parameters of a command.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandParams {
    #[serde(default, deserialize_with = "flag")]
    dry_run: bool,
}

fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| refuse(FieldError::new(FieldCode::Invalid, "must be true or false")))
}

/// Whether the caller only wants to know what the command would do. Another query parameter is refused.
pub fn is_dry_run(request: &HttpRequest) -> Result<bool, Problem> {
    if request.query_string().is_empty() { Ok(false) } else { Ok(query::<CommandParams>(request)?.dry_run) }
}

/// The answer to a dry run: what the command would do now. Nothing of it was done.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DryRun)]
pub struct DryRunView {
    /// Always `true`. No other answer has this member.
    #[schema(value_type = bool, example = true)]
    dry_run: bool,
    /// The HTTP status that the command would be answered with.
    #[schema(minimum = 200, maximum = 599)]
    status: u16,
    /// What the command would be answered: its receipt, or a problem. Ids, instants and sequence numbers will be others.
    #[schema(value_type = BTreeMap<String, serde_json::Value>)]
    answer: Box<RawValue>,
    /// The events that it would raise, in order.
    events: Vec<DryRunEventView>,
    /// Of a change of plan that would be accepted: credits, limits and prices before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    preview: Option<PlanPreview>,
}

/// An event that a command would raise.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DryRunEvent)]
pub struct DryRunEventView {
    #[schema(value_type = EventType)]
    r#type: AnyEventType,
    /// As in the event of this type.
    #[schema(value_type = BTreeMap<String, serde_json::Value>)]
    data: Box<RawValue>,
    /// Whether it tells of work that is due before the command, such as the end of a period, and not of the command itself.
    due_work: bool,
}

impl DryRunEventView {
    fn new(event: DryRunEvent) -> serde_json::Result<Self> {
        let data = RawValue::from_string(event.data)?;
        Ok(Self { r#type: event.event_type, data, due_work: event.is_due_work })
    }
}

/// Decides the command, and answers with what it would do.
pub async fn dry_run(state: &AppState, envelope: &Envelope, key: KeyKind) -> Result<HttpResponse, Problem> {
    let done = state.within(TIMEOUT, state.engine.dry_run(envelope)).await;
    let done = done.ok_or_else(|| Problem::plain(Code::Unavailable))??;
    let Rendered { status, body } = answer(done.reply, key)?;
    let not_json = |error: serde_json::Error| {
        tracing::error!(%error, "the answer to a dry run cannot be written as JSON");
        Problem::plain(Code::InternalError)
    };
    let view = DryRunView {
        dry_run: true,
        status,
        answer: RawValue::from_string(body).map_err(not_json)?,
        events: done.events.into_iter().map(DryRunEventView::new).collect::<Result<_, _>>().map_err(not_json)?,
        preview: done.plan_preview,
    };
    Ok(HttpResponse::Ok().json(view))
}

/// What the command would be answered.
fn answer(reply: Reply, key: KeyKind) -> Result<Rendered, Problem> {
    match reply {
        Reply::Decided { answer, .. } | Reply::Replayed(answer) => Ok(answer),
        Reply::KeyReused => {
            let problem = key.reused();
            Ok(Rendered { status: problem.code.status(), body: problem.to_json() })
        }
        Reply::Nothing => {
            tracing::error!("a command of a caller was answered like an internal one");
            Err(Problem::plain(Code::InternalError))
        }
    }
}
