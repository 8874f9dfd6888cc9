//! Answers to commands. An answer is rendered once, stored with its command, and replayed byte for byte.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};

use super::problem::{Code, PROBLEM_JSON, Problem, RETRY_AFTER_S};
use crate::domain::explanation::Explanation;
use crate::domain::receipt::Receipt;
use crate::domain::rejection::Rejection;
use crate::engine::{Render, Rendered, Reply};

/// `true` on a replayed answer.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Renders decisions as the API's JSON.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonRender;

impl Render for JsonRender {
    fn receipt(&self, receipt: &Receipt) -> Rendered {
        let status = match receipt {
            Receipt::Provisioned(_) | Receipt::Granted(_) | Receipt::Held(_) => StatusCode::CREATED,
            Receipt::Deducted(_)
            | Receipt::Purchased(_)
            | Receipt::Voided(_)
            | Receipt::Refunded(_)
            | Receipt::Reversed(_)
            | Receipt::HoldChanged(_)
            | Receipt::Captured(_)
            | Receipt::Reset(_)
            | Receipt::Subscription(_)
            | Receipt::Internal(_) => StatusCode::OK,
        };
        let body = serde_json::to_string(receipt).expect("a receipt of texts and numbers is always JSON");
        Rendered { status: status.as_u16(), body }
    }

    fn rejection(&self, rejection: &Rejection, explanation: Option<&Explanation>) -> Rendered {
        let problem = explanation.map_or_else(|| rejection.into(), |why| Problem::explained(rejection, why));
        Rendered { status: problem.code.status(), body: problem.to_json() }
    }
}

/// Where the idempotency key of a command comes from: the caller, or the workspace id when provisioning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    FromCaller,
    Natural,
}

impl KeyKind {
    /// The key was used with another body.
    pub(super) fn reused(self) -> Problem {
        Problem::plain(match self {
            Self::FromCaller => Code::IdempotencyKeyReused,
            Self::Natural => Code::WorkspaceExists,
        })
    }
}

/// Converts the reply of the engine into a response.
pub fn response(reply: Reply, key: KeyKind) -> Result<HttpResponse, Problem> {
    match reply {
        Reply::Decided { answer, rejection } => {
            let retry_after_s = rejection.as_ref().and_then(|rejection| Problem::from(rejection).retry_after_s());
            Ok(send(answer, retry_after_s, false))
        }
        Reply::Replayed(answer) => Ok(send(answer, None, true)),
        Reply::KeyReused => Err(key.reused()),
        Reply::Nothing => {
            tracing::error!("a command of a caller was answered like an internal one");
            Err(Problem::plain(Code::InternalError))
        }
    }
}

/// A refusal that the engine has answered to a part of what a caller wanted.
#[must_use]
pub fn refused(answer: Rendered) -> HttpResponse {
    let retry_after_s = (answer.status == 429).then_some(RETRY_AFTER_S);
    send(answer, retry_after_s, false)
}

fn send(answer: Rendered, retry_after_s: Option<u32>, replayed: bool) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let media_type = if status.is_success() { "application/json" } else { PROBLEM_JSON };
    let mut response = HttpResponse::build(status);
    response.insert_header((CONTENT_TYPE, HeaderValue::from_static(media_type)));
    if replayed {
        response.insert_header((IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true")));
    }
    if let Some(seconds) = retry_after_s {
        response.insert_header((RETRY_AFTER, HeaderValue::from(seconds)));
    }
    response.body(answer.body)
}
