//! Problems: every error the API answers, as `application/problem+json` (RFC 9457).
//!
//! [`Code`] is the closed table of what can go wrong: the stable word that callers match on, the
//! HTTP status and the title. It is the only place where an error gets a status. A body holds no
//! request-specific member (no time, no id), because bodies of refused commands are stored and
//! replayed byte for byte. What a 5xx knows beyond its code goes to the log and not to the caller.

use std::borrow::Cow;
use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::credits::Credits;
use crate::domain::event::LimitScope;
use crate::domain::rejection::Rejection;
use crate::domain::text::{FieldCode, FieldError};
use crate::domain::time::Timestamp;
use crate::engine::EngineError;
use crate::store::StoreError;

/// The media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// What `type` begins with; the code follows.
pub const TYPE_PREFIX: &str = "urn:visionscope:problem:";
/// How soon a request that met a full or unavailable server may be sent again.
const RETRY_AFTER_S: u32 = 1;
/// The most characters of a detail: parser messages may quote what was sent.
const MAX_DETAIL_CHARS: usize = 240;
/// The most characters of a pointer or a parameter's name: an unknown one is the caller's text.
const MAX_NAME_CHARS: usize = 128;

macro_rules! codes {
    ($($name:ident $status:literal $word:literal $title:literal),+ $(,)?) => {
        /// Everything that can go wrong, as the API names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($name),+ }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The stable word that callers match on.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status),+ }
            }

            /// A sentence for people, the same for every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title),+ }
            }

            const fn type_uri(self) -> &'static str {
                match self { $(Self::$name => concat!("urn:visionscope:problem:", $word)),+ }
            }
        }
    };
}

codes! {
    MalformedRequest 400 "malformed-request" "The request could not be understood.",
    MalformedJson 400 "malformed-json" "The body is not well-formed JSON.",
    IdempotencyKeyRequired 400 "idempotency-key-required" "One well-formed Idempotency-Key header is required.",
    InvalidToken 401 "invalid-token" "A valid bearer token is required.",
    InsufficientCredits 402 "insufficient-credits" "There are too few credits.",
    MissingScope 403 "missing-scope" "The token does not have the scope for this operation.",
    FeatureDisabled 403 "feature-disabled" "The feature is not available to this workspace.",
    LimitExceeded 403 "limit-exceeded" "A limit of this billing period would be exceeded.",
    OriginNotAllowed 403 "origin-not-allowed" "Pages of this origin may not call the API.",
    NotFound 404 "not-found" "There is nothing at this path.",
    WorkspaceNotFound 404 "workspace-not-found" "There is no such workspace.",
    EventNotFound 404 "event-not-found" "There is no such event.",
    UsageLogNotFound 404 "usage-log-not-found" "There is no such usage log.",
    MethodNotAllowed 405 "method-not-allowed" "This path does not take this method.",
    NotAcceptable 406 "not-acceptable" "The answer is JSON, which the Accept header excludes.",
    RequestTimeout 408 "request-timeout" "The body did not arrive in time.",
    WorkspaceExists 409 "workspace-exists" "The workspace exists with another definition.",
    SubscriptionCanceled 409 "subscription-canceled" "The subscription is canceled.",
    PlanUnchanged 409 "plan-unchanged" "The workspace already has this version of the plan.",
    RestartRequired 409 "restart-required" "The plans have periods of different length.",
    NothingScheduled 409 "nothing-scheduled" "Nothing is scheduled that could be withdrawn.",
    ResetNotDue 409 "reset-not-due" "The billing period has not ended.",
    PeriodMismatch 409 "period-mismatch" "Another billing period is the next to begin.",
    PaymentReferenceUsed 409 "payment-reference-used" "The payment reference was already used.",
    TooManyGrants 409 "too-many-grants" "The workspace has as many open grants as it may have.",
    VersionMismatch 412 "version-mismatch" "The subscription is at another version.",
    BodyTooLarge 413 "body-too-large" "The body is larger than 64 KiB.",
    UnsupportedMediaType 415 "unsupported-media-type" "The body must be application/json.",
    UnsupportedContentEncoding 415 "unsupported-content-encoding" "The body must not be compressed.",
    InvalidField 422 "invalid-field" "A field has the wrong type or form.",
    AmountOutOfRange 422 "amount-out-of-range" "An amount is zero, negative or too large.",
    InvalidText 422 "invalid-text" "A text is too long or has characters that are not allowed.",
    UnknownField 422 "unknown-field" "There is no such field or parameter.",
    ObjectRequired 422 "object-required" "The body must be a JSON object.",
    IdempotencyKeyReused 422 "idempotency-key-reused" "The Idempotency-Key was used with another request.",
    PlanNotFound 422 "plan-not-found" "There is no such plan.",
    PlanNotOffered 422 "plan-not-offered" "The plan is not offered any more.",
    FeatureNotPriced 422 "feature-not-priced" "The feature has no unit price.",
    RateExceeded 429 "rate-exceeded" "The rate of the plan would be exceeded.",
    TooManyRequests 429 "too-many-requests" "There are too many requests for this workspace.",
    HeadersTooLarge 431 "headers-too-large" "The headers are too many or too large.",
    InternalError 500 "internal-error" "The server failed; sending the request again with its key is safe.",
    Overloaded 503 "overloaded" "The server is busy; nothing was done.",
    Unavailable 503 "unavailable" "The database is unavailable; sending the request again with its key is safe.",
    ShuttingDown 503 "shutting-down" "The server is shutting down; nothing was done.",
}

impl Code {
    /// The code of a business refusal.
    #[must_use]
    pub const fn of(rejection: &Rejection) -> Self {
        match rejection {
            Rejection::WorkspaceNotFound => Self::WorkspaceNotFound,
            Rejection::WorkspaceExists => Self::WorkspaceExists,
            Rejection::TimeOutOfRange { .. } => Self::InvalidField,
            Rejection::PlanNotFound(_) => Self::PlanNotFound,
            Rejection::PlanNotOffered(_) => Self::PlanNotOffered,
            Rejection::VersionMismatch { .. } => Self::VersionMismatch,
            Rejection::SubscriptionCanceled => Self::SubscriptionCanceled,
            Rejection::PlanUnchanged(_) => Self::PlanUnchanged,
            Rejection::RestartRequired => Self::RestartRequired,
            Rejection::NothingScheduled => Self::NothingScheduled,
            Rejection::ResetNotDue { .. } => Self::ResetNotDue,
            Rejection::PeriodMismatch { .. } => Self::PeriodMismatch,
            Rejection::PaymentReferenceUsed(_) => Self::PaymentReferenceUsed,
            Rejection::TooManyGrants(_) => Self::TooManyGrants,
            Rejection::FeatureDisabled(_) => Self::FeatureDisabled,
            Rejection::FeatureNotPriced(_) => Self::FeatureNotPriced,
            Rejection::LimitExceeded { .. } => Self::LimitExceeded,
            Rejection::RateExceeded { .. } => Self::RateExceeded,
            Rejection::InsufficientCredits { .. } => Self::InsufficientCredits,
            Rejection::BalanceOutOfRange => Self::AmountOutOfRange,
        }
    }

    /// The code for an error that actix answered by itself.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            401 => Self::InvalidToken,
            404 => Self::NotFound,
            405 => Self::MethodNotAllowed,
            406 => Self::NotAcceptable,
            408 => Self::RequestTimeout,
            413 => Self::BodyTooLarge,
            415 => Self::UnsupportedMediaType,
            431 => Self::HeadersTooLarge,
            503 => Self::Unavailable,
            400..=499 => Self::MalformedRequest,
            _ => Self::InternalError,
        }
    }
}

impl From<FieldCode> for Code {
    fn from(code: FieldCode) -> Self {
        match code {
            FieldCode::Invalid => Self::InvalidField,
            FieldCode::AmountOutOfRange => Self::AmountOutOfRange,
            FieldCode::InvalidText => Self::InvalidText,
        }
    }
}

/// Which part of the request was refused. Exactly one of `pointer` and `parameter` is there.
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
    #[schema(value_type = String, example = "amount-out-of-range")]
    pub code: &'static str,
    pub detail: String,
}

/// Problem details (RFC 9457). `code` is the word to match on; the members after it are there where
/// the code gives them a meaning.
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
    /// What is special about this occurrence.
    #[schema(value_type = String)]
    pub detail: &'a str,
    /// Stable; `type` ends with it.
    #[schema(example = "insufficient-credits")]
    pub code: &'static str,
    #[serde(flatten)]
    #[schema(inline)]
    pub members: &'a Members,
}

/// The extension members, each of one type wherever it appears.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Members {
    /// The refused fields or parameters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub errors: Vec<FieldProblem>,
    /// What could have been spent, the overdraft included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_credits: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_credits: Option<Credits>,
    /// What the limit bounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_scope: Option<LimitScope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_credits: Option<Credits>,
    /// Used in this billing period before this request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_credits: Option<Credits>,
    /// When the billing period ends and the limit begins anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Timestamp>,
    /// The length of the rate's window in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_s: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_version: Option<i64>,
    /// The end of the running billing period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_ends_at: Option<Timestamp>,
    /// The start of the next billing period to begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_period_starts_at: Option<Timestamp>,
}

/// An error on its way to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub code: Code,
    pub detail: Cow<'static, str>,
    members: Option<Box<Members>>,
    retry_after_s: Option<u32>,
    /// The value of `Allow` or of `WWW-Authenticate`, by code.
    challenge: Option<Cow<'static, str>>,
}

impl Problem {
    #[must_use]
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after_s = matches!(code.status(), 429 | 503).then_some(RETRY_AFTER_S);
        Self { code, detail: detail.into(), members: None, retry_after_s, challenge: None }
    }

    /// A problem that says no more than its code.
    #[must_use]
    pub fn plain(code: Code) -> Self {
        Self::new(code, code.title())
    }

    /// A refused field of the body.
    #[must_use]
    pub fn field(code: Code, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let error = FieldProblem {
            pointer: Some(clip(pointer.into(), MAX_NAME_CHARS)),
            parameter: None,
            code: code.as_str(),
            detail: clip(detail.into(), MAX_DETAIL_CHARS),
        };
        Self::of_field(code, error)
    }

    /// A refused query parameter.
    #[must_use]
    pub fn parameter(code: Code, name: impl Into<String>, detail: impl Into<String>) -> Self {
        let error = FieldProblem {
            pointer: None,
            parameter: Some(clip(name.into(), MAX_NAME_CHARS)),
            code: code.as_str(),
            detail: clip(detail.into(), MAX_DETAIL_CHARS),
        };
        Self::of_field(code, error)
    }

    /// A field whose value a domain type refused.
    #[must_use]
    pub fn refused_field(pointer: &str, error: FieldError) -> Self {
        Self::field(error.code.into(), pointer, error.detail)
    }

    fn of_field(code: Code, error: FieldProblem) -> Self {
        let place = error.pointer.as_deref().or(error.parameter.as_deref()).unwrap_or_default();
        let detail = if place.is_empty() { error.detail.clone() } else { format!("{place}: {}", error.detail) };
        let members = Members { errors: vec![error], ..Members::default() };
        Self { members: Some(Box::new(members)), ..Self::new(code, clip(detail, MAX_DETAIL_CHARS)) }
    }

    /// No token was sent: the challenge names no error (RFC 6750, section 3.1).
    #[must_use]
    pub fn token_required() -> Self {
        Self { challenge: Some("Bearer".into()), ..Self::plain(Code::InvalidToken) }
    }

    /// The token is not good. Why is in the log only.
    #[must_use]
    pub fn invalid_token() -> Self {
        Self { challenge: Some(r#"Bearer error="invalid_token""#.into()), ..Self::plain(Code::InvalidToken) }
    }

    #[must_use]
    pub fn missing_scope(scope: &'static str) -> Self {
        let challenge = format!(r#"Bearer error="insufficient_scope", scope="{scope}""#);
        let detail = format!("the scope {scope} is required");
        Self { challenge: Some(challenge.into()), ..Self::new(Code::MissingScope, detail) }
    }

    #[must_use]
    pub fn method_not_allowed(allow: String) -> Self {
        Self { challenge: Some(allow.into()), ..Self::plain(Code::MethodNotAllowed) }
    }

    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after_s: Some(seconds.max(1)), ..self }
    }

    #[must_use]
    pub const fn retry_after_s(&self) -> Option<u32> {
        self.retry_after_s
    }

    /// The body as it is sent, and stored.
    #[must_use]
    pub fn to_json(&self) -> String {
        let members = self.members.as_deref();
        let body = ProblemBody {
            r#type: self.code.type_uri(),
            title: self.code.title(),
            status: self.code.status(),
            detail: &self.detail,
            code: self.code.as_str(),
            members: members.unwrap_or(&NO_MEMBERS),
        };
        serde_json::to_string(&body).expect("a body of texts and numbers is always JSON")
    }
}

static NO_MEMBERS: Members = Members {
    errors: Vec::new(),
    available_credits: None,
    requested_credits: None,
    limit_scope: None,
    limit_credits: None,
    used_credits: None,
    resets_at: None,
    window_s: None,
    expected_version: None,
    actual_version: None,
    period_ends_at: None,
    next_period_starts_at: None,
};

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
        let mut members = Members::default();
        let mut retry_after_s = None;
        match rejection {
            Rejection::VersionMismatch { expected, actual } => {
                members.expected_version = Some(*expected);
                members.actual_version = Some(*actual);
            }
            Rejection::ResetNotDue { ends_at } => members.period_ends_at = Some(*ends_at),
            Rejection::PeriodMismatch { next } => members.next_period_starts_at = Some(*next),
            Rejection::LimitExceeded { scope, limit, used, requested, resets_at } => {
                members.limit_scope = Some(*scope);
                members.limit_credits = Some(*limit);
                members.used_credits = Some(*used);
                members.requested_credits = Some(*requested);
                members.resets_at = Some(*resets_at);
            }
            Rejection::RateExceeded { limit, window_s, retry_after_s: seconds } => {
                members.limit_credits = Some(*limit);
                members.window_s = Some(*window_s);
                retry_after_s = Some(*seconds);
            }
            Rejection::InsufficientCredits { requested, available } => {
                members.requested_credits = Some(*requested);
                members.available_credits = Some(*available);
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
            | Rejection::PaymentReferenceUsed(_)
            | Rejection::TooManyGrants(_)
            | Rejection::FeatureDisabled(_)
            | Rejection::FeatureNotPriced(_)
            | Rejection::BalanceOutOfRange => {}
        }
        let problem = Self::new(code, rejection.to_string());
        let members = (members != Members::default()).then(|| Box::new(members));
        Self { members, retry_after_s: retry_after_s.or(problem.retry_after_s), ..problem }
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Self {
        Self::plain(match error {
            EngineError::Overloaded => Code::Overloaded,
            EngineError::Stopping => Code::ShuttingDown,
            EngineError::Unavailable => Code::Unavailable,
            EngineError::Failed => Code::InternalError,
        })
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
        if let Some(value) = self.challenge.as_deref().and_then(|value| HeaderValue::from_str(value).ok()) {
            let name = if self.code == Code::MethodNotAllowed { ALLOW } else { WWW_AUTHENTICATE };
            response.insert_header((name, value));
        }
        response.body(self.to_json())
    }
}

#[cfg(test)]
mod tests;
