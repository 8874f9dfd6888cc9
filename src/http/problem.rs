//! Every error response of the API: `application/problem+json` (RFC 9457).
//!
//! [`Code`] lists all errors, each with the stable code that callers match on, the HTTP status and the title. A body
//! has no member that identifies the request (no time, no id), because bodies of refused commands are stored and replayed byte for byte. The cause of a 5xx is logged and not sent.

mod code;

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

pub use self::code::Code;
use super::refusal::Refusal;
use crate::domain::credits::Credits;
use crate::domain::event::LimitScope;
use crate::domain::explanation::Explanation;
use crate::domain::hold::HoldState;
use crate::domain::ids::GrantId;
use crate::domain::rejection::Rejection;
use crate::domain::text::FieldError;
use crate::domain::time::Timestamp;
use crate::engine::EngineError;
use crate::queues::QueueError;
use crate::store::StoreError;

/// The media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The prefix of `type`; the code follows.
pub const TYPE_PREFIX: &str = "urn:visionscope:problem:";
/// When to retry if the server is overloaded or unavailable.
pub(super) const RETRY_AFTER_S: u32 = 1;
/// Maximum length of a detail: parser messages may quote the request.
const MAX_DETAIL_CHARS: usize = 240;
/// Maximum length of a pointer or a parameter name: an unknown name is copied from the request.
const MAX_NAME_CHARS: usize = 128;

/// The part of the request that is invalid. Exactly one of `pointer` and `parameter` is present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldProblem {
    /// A JSON pointer (RFC 6901) into the body; empty for the body itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "/credits")]
    pub pointer: Option<String>,
    /// The name of a query parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "limit")]
    pub parameter: Option<String>,
    pub code: Code,
    pub detail: String,
}

impl FieldProblem {
    /// An invalid field of the body.
    pub(super) fn of_body(code: Code, pointer: String, detail: String) -> Self {
        Self {
            pointer: Some(clip(pointer, MAX_NAME_CHARS)),
            parameter: None,
            code,
            detail: clip(detail, MAX_DETAIL_CHARS),
        }
    }
}

/// Problem details (RFC 9457). Match on `code`. The members after it are present only for some codes.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    #[schema(format = "uri", example = "urn:visionscope:problem:insufficient-credits")]
    pub r#type: &'static str,
    /// The same for every occurrence of a code.
    pub title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// Explains this occurrence.
    #[schema(value_type = String)]
    pub detail: &'a str,
    /// Stable. `type` ends with it.
    pub code: Code,
    #[serde(flatten)]
    #[schema(inline)]
    pub members: &'a Members,
}

/// The extension members. Each has one type, whatever the code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Members {
    /// The invalid fields or parameters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub errors: Vec<FieldProblem>,
    /// The credits that could be spent, including the overdraft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_credits: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_credits: Option<Credits>,
    /// What remains of the grant, or what is left to refund or to reverse.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_credits: Option<Credits>,
    /// What is left to reverse of the amount paid, in minor units of the currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_minor: Option<i64>,
    /// The grant that the payment paid for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<GrantId>,
    /// What the limit applies to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_scope: Option<LimitScope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_credits: Option<Credits>,
    /// Credits used in this billing period before this request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_credits: Option<Credits>,
    /// What open holds reserve, which counts as used; or what the hold to capture reserves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_credits: Option<Credits>,
    /// When the billing period ends and usage counts from zero again. Absent if the request is larger than the whole
    /// limit: it never passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Timestamp>,
    /// The length of the rate window in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_s: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_version: Option<i64>,
    /// What became of the hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_state: Option<HoldState>,
    /// When the hold expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired_at: Option<Timestamp>,
    /// Of a deduction or a hold: what it was checked against, and what would help.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Explanation>)]
    pub decision: Option<Box<Explanation>>,
    /// The end of the current billing period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_ends_at: Option<Timestamp>,
    /// The start of the next billing period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_period_starts_at: Option<Timestamp>,
}

/// An error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub code: Code,
    pub detail: Cow<'static, str>,
    members: Option<Box<Members>>,
    retry_after_s: Option<u32>,
    /// Present if the request was refused to protect the server.
    pub(super) refusal: Option<Refusal>,
    /// The value of the `Allow` header for `method-not-allowed`, else of `WWW-Authenticate`.
    header_value: Option<Cow<'static, str>>,
}

impl Problem {
    #[must_use]
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after_s = matches!(code.status(), 429 | 503).then_some(RETRY_AFTER_S);
        Self { code, detail: detail.into(), members: None, retry_after_s, refusal: None, header_value: None }
    }

    /// A problem whose detail is the title of its code.
    #[must_use]
    pub fn plain(code: Code) -> Self {
        Self::new(code, code.title())
    }

    /// An invalid field of the body.
    #[must_use]
    pub fn field(code: Code, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::of_field(FieldProblem::of_body(code, pointer.into(), detail.into()))
    }

    /// Invalid fields of the body, the first of which decides the code.
    #[must_use]
    pub fn fields(errors: Vec<FieldProblem>) -> Self {
        let mut errors = errors.into_iter();
        let Some(first) = errors.next() else { return Self::plain(Code::InvalidField) };
        let mut problem = Self::of_field(first);
        if let Some(members) = &mut problem.members {
            members.errors.extend(errors);
        }
        problem
    }

    /// An invalid query parameter.
    #[must_use]
    pub fn parameter(code: Code, name: impl Into<String>, detail: impl Into<String>) -> Self {
        let error = FieldProblem {
            pointer: None,
            parameter: Some(clip(name.into(), MAX_NAME_CHARS)),
            code,
            detail: clip(detail.into(), MAX_DETAIL_CHARS),
        };
        Self::of_field(error)
    }

    /// A field whose value a domain type rejected.
    #[must_use]
    pub fn from_field_error(pointer: &str, error: FieldError) -> Self {
        Self::field(error.code.into(), pointer, error.detail)
    }

    fn of_field(error: FieldProblem) -> Self {
        let code = error.code;
        let location = error.pointer.as_deref().or(error.parameter.as_deref()).unwrap_or_default();
        let detail = if location.is_empty() { error.detail.clone() } else { format!("{location}: {}", error.detail) };
        let members = Members { errors: vec![error], ..Members::default() };
        Self { members: Some(Box::new(members)), ..Self::new(code, clip(detail, MAX_DETAIL_CHARS)) }
    }

    /// No token was sent. `WWW-Authenticate` then names no error (RFC 6750, section 3.1).
    #[must_use]
    pub fn token_required() -> Self {
        Self { header_value: Some("Bearer".into()), ..Self::plain(Code::InvalidToken) }
    }

    /// The token is invalid. The reason is only logged.
    #[must_use]
    pub fn invalid_token() -> Self {
        Self { header_value: Some(r#"Bearer error="invalid_token""#.into()), ..Self::plain(Code::InvalidToken) }
    }

    #[must_use]
    pub fn missing_scope(scope: &'static str) -> Self {
        let header_value = format!(r#"Bearer error="insufficient_scope", scope="{scope}""#);
        let detail = format!("the scope {scope} is required");
        Self { header_value: Some(header_value.into()), ..Self::new(Code::MissingScope, detail) }
    }

    #[must_use]
    pub fn method_not_allowed(allow: String) -> Self {
        Self { header_value: Some(allow.into()), ..Self::plain(Code::MethodNotAllowed) }
    }

    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds.max(1)), ..self }
    }

    #[must_use]
    pub const fn retry_after_s(&self) -> Option<u32> {
        self.retry_after_s
    }

    /// The body as it is sent and stored.
    #[must_use]
    pub fn to_json(&self) -> String {
        let members = self.members.as_deref();
        let body = ProblemBody {
            r#type: self.code.type_uri(),
            title: self.code.title(),
            status: self.code.status(),
            detail: &self.detail,
            code: self.code,
            members: members.unwrap_or(&NO_MEMBERS),
        };
        serde_json::to_string(&body).expect("a body of texts and numbers is always JSON")
    }
}

static NO_MEMBERS: LazyLock<Members> = LazyLock::new(Members::default);

fn clip(text: String, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.as_str())
    }
}

impl std::error::Error for Problem {}

impl From<&Rejection> for Problem {
    fn from(rejection: &Rejection) -> Self {
        let code = Code::of(rejection);
        if let Rejection::TimeOutOfRange { pointer, detail } = rejection {
            return Self::field(code, *pointer, *detail);
        }
        let problem = Self::new(code, rejection.to_string());
        let members = Members::of(rejection);
        let retry_after_s = if let Rejection::RateExceeded { retry_after_s, .. } = rejection {
            Some(*retry_after_s)
        } else {
            problem.retry_after_s
        };
        let members = (members != Members::default()).then(|| Box::new(members));
        Self { members, retry_after_s, ..problem }
    }
}

impl Members {
    /// What a caller needs to know of a refusal besides its code.
    fn of(rejection: &Rejection) -> Self {
        let mut members = Self::default();
        match rejection {
            Rejection::VersionMismatch { expected, actual } => {
                members.expected_version = Some(*expected);
                members.actual_version = Some(*actual);
            }
            Rejection::ResetNotDue { ends_at } => members.period_ends_at = Some(*ends_at),
            Rejection::PeriodMismatch { next } => members.next_period_starts_at = Some(*next),
            Rejection::LimitExceeded { scope, limit, used, held, requested, resets_at, window_s } => {
                members.limit_scope = Some(*scope);
                members.limit_credits = Some(*limit);
                members.used_credits = Some(*used);
                members.held_credits = Some(*held);
                members.requested_credits = Some(*requested);
                members.resets_at = *resets_at;
                members.window_s = *window_s;
            }
            Rejection::RateExceeded { limit, window_s, .. } => {
                members.limit_credits = Some(*limit);
                members.window_s = Some(*window_s);
            }
            Rejection::PaymentReferenceUsed { grant_id, .. } => members.grant_id = Some(*grant_id),
            Rejection::InsufficientCredits { requested, available } => {
                members.requested_credits = Some(*requested);
                members.available_credits = Some(*available);
            }
            Rejection::VoidExceedsRemaining { requested, remaining } => {
                members.requested_credits = Some(*requested);
                members.remaining_credits = Some(*remaining);
            }
            Rejection::RefundExceedsUsage { requested, left } => {
                members.requested_credits = Some(*requested);
                members.remaining_credits = Some(*left);
            }
            Rejection::ReversalExceedsPurchase { left, left_minor } => {
                members.remaining_credits = Some(*left);
                members.remaining_minor = Some(*left_minor);
            }
            Rejection::HoldOver(state) => members.hold_state = Some(*state),
            Rejection::HoldExpired(at) => members.expired_at = Some(*at),
            Rejection::CaptureExceedsHold { requested, held } => {
                members.requested_credits = Some(*requested);
                members.held_credits = Some(*held);
            }
            Rejection::WorkspaceNotFound
            | Rejection::WorkspaceExists
            | Rejection::TimeOutOfRange { .. }
            | Rejection::PlanNotFound(_)
            | Rejection::PlanNotOffered(_)
            | Rejection::SubscriptionCanceled
            | Rejection::PlanUnchanged(_)
            | Rejection::RestartRequired
            | Rejection::NothingScheduled
            | Rejection::TooManyGrants(_)
            | Rejection::GrantNotFound(_)
            | Rejection::GrantNotVoidable(_)
            | Rejection::GrantClosed
            | Rejection::UsageLogNotFound(_)
            | Rejection::PurchaseNotFound(_)
            | Rejection::FeatureNotFound(_)
            | Rejection::FeatureDisabled(_)
            | Rejection::FeatureNotPriced(_)
            | Rejection::HoldNotFound(_)
            | Rejection::TooManyHolds(_)
            | Rejection::HoldSpansTooManyGrants(_)
            | Rejection::BalanceOutOfRange => {}
        }
        members
    }
}

impl Problem {
    /// The same, of a body that is a part of the request's.
    #[must_use]
    pub fn inside(mut self, pointer: &str) -> Self {
        for error in self.members.iter_mut().flat_map(|members| &mut members.errors) {
            error.pointer = error.pointer.as_ref().map(|inner| format!("{pointer}{inner}"));
        }
        let separator = if self.detail.starts_with('/') { "" } else { ": " };
        Self { detail: format!("{pointer}{separator}{}", self.detail).into(), ..self }
    }

    /// The refusal of a deduction or a hold.
    #[must_use]
    pub fn explained(rejection: &Rejection, explanation: &Explanation) -> Self {
        let problem = Self::from(rejection);
        let members = problem.members.map(|members| *members).unwrap_or_default();
        let members = Members { decision: Some(Box::new(explanation.clone())), ..members };
        Self { members: Some(Box::new(members)), ..problem }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let problem = match refusal {
            Refusal::Rate => Self::new(Code::TooManyRequests, "the request rate of this workspace is too high"),
            Refusal::InFlight => Self::new(Code::TooManyRequests, "this workspace has too many requests in flight"),
            Refusal::OverShare => Self::new(Code::TooManyRequests, "this workspace has too many commands waiting"),
            Refusal::Overloaded | Refusal::WaitedTooLong => Self::plain(Code::Overloaded),
        };
        Self { refusal: Some(refusal), ..problem }
    }
}

impl From<QueueError> for Problem {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Overloaded => Refusal::Overloaded.into(),
            QueueError::Unavailable => Self::plain(Code::Unavailable),
            QueueError::Failed => Self::plain(Code::InternalError),
        }
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Overloaded => Refusal::Overloaded.into(),
            EngineError::WaitedTooLong => Refusal::WaitedTooLong.into(),
            EngineError::OverShare => Refusal::OverShare.into(),
            EngineError::Stopping => Self::plain(Code::ShuttingDown),
            EngineError::Unavailable => Self::plain(Code::Unavailable),
            EngineError::Failed => Self::plain(Code::InternalError),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Conflict(_) | StoreError::Unavailable(_) => {
                tracing::warn!(%error, "a read failed");
                Self::plain(Code::Unavailable)
            }
            StoreError::Corrupt(_) => {
                tracing::error!(%error, "a read failed");
                Self::plain(Code::InternalError)
            }
        }
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status()).expect("the table holds valid statuses")
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        response.insert_header((CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON)));
        if let Some(seconds) = self.retry_after_s {
            response.insert_header((RETRY_AFTER, HeaderValue::from(seconds)));
        }
        if let Some(value) = self.header_value.as_deref().and_then(|value| HeaderValue::from_str(value).ok()) {
            let name = if self.code == Code::MethodNotAllowed { ALLOW } else { WWW_AUTHENTICATE };
            response.insert_header((name, value));
        }
        response.body(self.to_json())
    }
}

#[cfg(test)]
mod tests;
