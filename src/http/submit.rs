//! Turns a request into a command. Envelopes are built only here.

use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, HttpResponse, web};
use opentelemetry::trace::TraceContextExt as _;
use serde::de::DeserializeOwned;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use utoipa::PartialSchema;

use super::auth::RequiredScope;
use super::body::{self, Body};
use super::dry_run::{dry_run, is_dry_run};
use super::extract::{RequestContext, WorkspaceCaller, idempotency_key};
use super::problem::{Code, Problem};
use super::render::{KeyKind, response};
use super::state::AppState;
use crate::domain::commands::{Command, Envelope, ProvisionWorkspace};
use crate::domain::metadata::Metadata;
use crate::domain::text::IdempotencyKey;
use crate::engine::{EngineError, Reply};

/// The wire type of a command.
pub trait CommandRequest: DeserializeOwned + PartialSchema {
    /// The name of the command, which is part of the fingerprint.
    const NAME: &'static str;

    /// Whether an empty body means `{}`.
    const MAY_BE_EMPTY: bool = false;

    /// The command and the metadata of the caller.
    fn into_command(self) -> Result<(Command, Option<Metadata>), Problem>;
}

/// Parses the body as a command, submits it to the engine, and answers.
pub async fn submit<R: CommandRequest, S: RequiredScope>(
    caller: WorkspaceCaller<S>,
    key_kind: KeyKind,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    submit_as(caller, key_kind, request, payload, (R::NAME, R::MAY_BE_EMPTY), R::into_command).await
}

/// Like [`submit`], for a command that needs more of the path than the workspace. The name is part of the fingerprint: it
/// must hold what the path says, or the same body for another path would be the same request.
pub async fn submit_as<R: DeserializeOwned + PartialSchema, S: RequiredScope>(
    caller: WorkspaceCaller<S>,
    key_kind: KeyKind,
    request: HttpRequest,
    mut payload: web::Payload,
    (name, may_be_empty): (&str, bool),
    into_command: impl FnOnce(R) -> Result<(Command, Option<Metadata>), Problem>,
) -> Result<HttpResponse, Problem> {
    let is_dry_run = is_dry_run(&request)?;
    let state = AppState::of(&request);
    let message_id = state.clock.new_command_id();
    let idempotency_key = match key_kind {
        // A key that no caller can send, so no stored command has it.
        KeyKind::FromCaller if is_dry_run => IdempotencyKey::system(format_args!("dry run {message_id}")),
        KeyKind::FromCaller => idempotency_key(request.headers())?,
        KeyKind::Natural => ProvisionWorkspace::idempotency_key(),
    };
    // A dry run uses the connections of reads.
    let in_flight = if is_dry_run { &state.limits.reads } else { &state.limits.commands };
    let _permit = in_flight.acquire(caller.workspace_id)?;
    let Body { value, fingerprint } = body::read::<R>(&request, &mut payload, name, may_be_empty).await?;
    let (command, metadata) = into_command(value)?;
    let command = if is_dry_run { command.explained() } else { command };
    let envelope = Envelope {
        message_id,
        idempotency_key,
        workspace_id: caller.workspace_id,
        actor: caller.principal.subject.clone(),
        correlation_id: RequestContext::correlation_id_of(&request),
        causation_id: None,
        traceparent: traceparent(request.headers()),
        received_at: state.clock.now(),
        metadata,
        fingerprint,
        command,
    };
    if is_dry_run { dry_run(state, &envelope, key_kind).await } else { decide(state, envelope, key_kind).await }
}

async fn decide(state: &AppState, envelope: Envelope, key_kind: KeyKind) -> Result<HttpResponse, Problem> {
    let decided = state.within(state.decision_timeout, state.engine.decide(envelope)).await;
    let decided = decided.ok_or_else(|| Problem::plain(Code::Unavailable))?;
    match &decided {
        Ok(Reply::Decided { .. }) => state.health.record_write_result(false, state.clock.now()),
        Err(EngineError::Unavailable) => state.health.record_write_result(true, state.clock.now()),
        // These do not tell whether the database accepts writes.
        Ok(Reply::Replayed(_) | Reply::KeyReused | Reply::Nothing)
        | Err(
            EngineError::Overloaded
            | EngineError::OverShare
            | EngineError::WaitedTooLong
            | EngineError::Stopping
            | EngineError::Failed,
        ) => {}
    }
    response(decided?, key_kind)
}

/// The trace context of the caller, or else of this server's span if tracing is on.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<String> {
    let sent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    if let Some(sent) = sent.filter(|value| is_traceparent(value)) {
        return Some(sent.to_owned());
    }
    let context = tracing::Span::current().context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8()))
}

/// W3C Trace Context, version 00: four fields of lower-case hex, neither id all zero.
fn is_traceparent(value: &str) -> bool {
    let is_hex = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let is_id = |part: &str, len: usize| is_hex(part, len) && part.bytes().any(|byte| byte != b'0');
    let mut parts = value.split('-');
    let mut next = || parts.next().unwrap_or_default();
    let (version, trace_id, parent_id, flags) = (next(), next(), next(), next());
    version == "00" && is_id(trace_id, 32) && is_id(parent_id, 16) && is_hex(flags, 2) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_traceparent_is_accepted() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good));
        let zero_trace = good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        let zero_parent = good.replace("00f067aa0ba902b7", &"0".repeat(16));
        let upper = good.to_uppercase();
        let (longer, other) = (format!("{good}-x"), good.replacen("00-", "ff-", 1));
        for bad in ["", "00", &zero_trace, &zero_parent, &upper, &longer, &other] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }
}
