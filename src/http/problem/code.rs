//! The codes of all errors, each with its HTTP status and its title. Nowhere else does an error get its status.

use std::borrow::Cow;

use actix_web::http::StatusCode;
use serde::{Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::rejection::Rejection;
use crate::domain::text::FieldCode;

macro_rules! codes {
    ($($name:ident $status:literal $word:literal $title:literal),+ $(,)?) => {
        /// Every error of the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($name),+ }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The stable code that callers match on.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status),+ }
            }

            /// A sentence for people. It is the same for every occurrence of the code.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title),+ }
            }

            pub(super) const fn type_uri(self) -> &'static str {
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
    InsufficientCredits 402 "insufficient-credits" "There are not enough credits.",
    MissingScope 403 "missing-scope" "The token does not have the scope for this operation.",
    AllWorkspacesRequired 403 "all-workspaces-required" "This operation needs a token for all workspaces.",
    FeatureDisabled 403 "feature-disabled" "The feature is not available to this workspace.",
    LimitExceeded 403 "limit-exceeded" "A limit would be exceeded.",
    OriginNotAllowed 403 "origin-not-allowed" "Pages of this origin may not call the API.",
    NotFound 404 "not-found" "This path does not exist.",
    WorkspaceNotFound 404 "workspace-not-found" "There is no such workspace.",
    EventNotFound 404 "event-not-found" "There is no such event.",
    UsageLogNotFound 404 "usage-log-not-found" "There is no such usage log.",
    GrantNotFound 404 "grant-not-found" "There is no such grant.",
    PurchaseNotFound 404 "purchase-not-found" "There is no such purchase.",
    HoldNotFound 404 "hold-not-found" "There is no such hold.",
    ConsumerNotFound 404 "consumer-not-found" "There is no such consumer.",
    QueueNotFound 404 "queue-not-found" "There is no such queue.",
    ScheduleNotFound 404 "schedule-not-found" "There is no such schedule.",
    DeadLetterNotFound 404 "dead-letter-not-found" "There is no such dead letter.",
    ReplayNotFound 404 "replay-not-found" "There is no such replay.",
    StatementNotFound 404 "statement-not-found" "There is no such statement.",
    JobNotFound 404 "job-not-found" "There is no such job.",
    WorkerNotFound 404 "worker-not-found" "There is no such worker of this caller.",
    FeatureNotFound 404 "feature-not-found" "There is no such feature.",
    CursorGone 410 "cursor-gone" "The database no longer holds the row that the cursor names; start again without it.",
    JobOver 410 "job-over" "The Idempotency-Key is that of a job that is over and no longer kept.",
    MethodNotAllowed 405 "method-not-allowed" "This path does not support this method.",
    NotAcceptable 406 "not-acceptable" "The response is JSON, which the Accept header excludes.",
    RequestTimeout 408 "request-timeout" "The request did not arrive in time.",
    WorkspaceExists 409 "workspace-exists" "The workspace already exists with another definition, and PUT does not change it.",
    SubscriptionCanceled 409 "subscription-canceled" "The subscription is canceled.",
    PlanUnchanged 409 "plan-unchanged" "The workspace already has this version of the plan.",
    RestartRequired 409 "restart-required" "The plans have billing periods of different lengths.",
    NothingScheduled 409 "nothing-scheduled" "No change or cancellation is scheduled.",
    ResetNotDue 409 "reset-not-due" "The billing period has not ended.",
    PeriodMismatch 409 "period-mismatch" "The given period is not the next billing period.",
    PaymentReferenceUsed 409 "payment-reference-used" "The payment reference was already used.",
    TooManyGrants 409 "too-many-grants" "The workspace has the maximum number of open grants.",
    GrantNotVoidable 409 "grant-not-voidable" "Grants of this source cannot be voided.",
    GrantClosed 409 "grant-closed" "Nothing is left of the grant.",
    VoidExceedsRemaining 409 "void-exceeds-remaining" "More than what remains of the grant cannot be voided.",
    RefundExceedsUsage 409 "refund-exceeds-usage" "More than what is left of the usage cannot be refunded.",
    ReversalExceedsPurchase 409 "reversal-exceeds-purchase" "More than what is left of the purchase cannot be reversed.",
    HoldOver 409 "hold-over" "The hold was captured or released, or has expired.",
    HoldExpired 409 "hold-expired" "The hold has expired.",
    CaptureExceedsHold 409 "capture-exceeds-hold" "More than what is held cannot be captured with this overrun.",
    LeaseLost 409 "lease-lost" "The worker does not have this job, or does not have it any more.",
    ConsumerChanged 409 "consumer-changed" "The consumer was changed meanwhile; look at it again.",
    ConsumerIsBuilding 409 "consumer-is-building" "New figures of the consumer are being made already.",
    QueueChanged 409 "queue-changed" "The queue was changed meanwhile; look at it again.",
    WorkerChanged 409 "worker-changed" "The worker was changed meanwhile; look at it again.",
    ScheduleChanged 409 "schedule-changed" "The schedule was changed meanwhile; look at it again.",
    DeadLetterChanged 409 "dead-letter-changed" "The dead letter is no longer open; look at it again.",
    DeadLetterNeeded 409 "dead-letter-needed" "Without this event, no later event of the workspace can be taken.",
    TooManyHolds 409 "too-many-holds" "The workspace has the maximum number of open holds.",
    HoldSpansTooManyGrants 409 "hold-spans-too-many-grants" "The credits lie in more grants than one hold can reserve.",
    VersionMismatch 412 "version-mismatch" "The subscription has another version.",
    BodyTooLarge 413 "body-too-large" "The body is larger than 64 KiB.",
    UnsupportedMediaType 415 "unsupported-media-type" "The body must be application/json.",
    UnsupportedContentEncoding 415 "unsupported-content-encoding" "The body must not be compressed.",
    InvalidField 422 "invalid-field" "A field has the wrong type or form.",
    AmountOutOfRange 422 "amount-out-of-range" "An amount is zero, negative or too large.",
    InvalidText 422 "invalid-text" "A text has a wrong length or a character that is not allowed.",
    InvalidCursor 422 "invalid-cursor" "The cursor is not one of this list with these parameters.",
    UnknownField 422 "unknown-field" "The field or parameter does not exist.",
    ObjectRequired 422 "object-required" "The body must be a JSON object.",
    IdempotencyKeyReused 422 "idempotency-key-reused" "The Idempotency-Key was already used with another request.",
    PlanNotFound 422 "plan-not-found" "There is no such plan.",
    PlanNotOffered 422 "plan-not-offered" "The plan is no longer offered.",
    FeatureNotPriced 422 "feature-not-priced" "The feature has no unit price.",
    RateExceeded 429 "rate-exceeded" "The rate limit of the plan would be exceeded.",
    TooManyRequests 429 "too-many-requests" "This workspace has sent too many requests.",
    HeadersTooLarge 431 "headers-too-large" "There are too many headers, or they are too large.",
    InternalError 500 "internal-error" "The server failed; it is safe to retry with the same Idempotency-Key.",
    Overloaded 503 "overloaded" "The server is busy; nothing was done.",
    Unavailable 503 "unavailable" "The database is unavailable; it is safe to retry with the same Idempotency-Key.",
    ShuttingDown 503 "shutting-down" "The server is shutting down; nothing was done.",
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .enum_values(Some(Self::ALL.iter().map(|code| code.as_str())))
            .description(Some("What is wrong. More codes may be added."))
            .into()
    }
}

impl ToSchema for Code {
    fn name() -> Cow<'static, str> {
        "ProblemCode".into()
    }
}

impl Code {
    /// The code of a rejection.
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
            Rejection::PaymentReferenceUsed { .. } => Self::PaymentReferenceUsed,
            Rejection::TooManyGrants(_) => Self::TooManyGrants,
            Rejection::GrantNotFound(_) => Self::GrantNotFound,
            Rejection::GrantNotVoidable(_) => Self::GrantNotVoidable,
            Rejection::GrantClosed => Self::GrantClosed,
            Rejection::VoidExceedsRemaining { .. } => Self::VoidExceedsRemaining,
            Rejection::UsageLogNotFound(_) => Self::UsageLogNotFound,
            Rejection::RefundExceedsUsage { .. } => Self::RefundExceedsUsage,
            Rejection::PurchaseNotFound(_) => Self::PurchaseNotFound,
            Rejection::ReversalExceedsPurchase { .. } => Self::ReversalExceedsPurchase,
            Rejection::FeatureNotFound(_) => Self::FeatureNotFound,
            Rejection::FeatureDisabled(_) => Self::FeatureDisabled,
            Rejection::FeatureNotPriced(_) => Self::FeatureNotPriced,
            Rejection::LimitExceeded { .. } => Self::LimitExceeded,
            Rejection::RateExceeded { .. } => Self::RateExceeded,
            Rejection::InsufficientCredits { .. } => Self::InsufficientCredits,
            Rejection::BalanceOutOfRange => Self::AmountOutOfRange,
            Rejection::HoldNotFound(_) => Self::HoldNotFound,
            Rejection::HoldOver(_) => Self::HoldOver,
            Rejection::HoldExpired(_) => Self::HoldExpired,
            Rejection::CaptureExceedsHold { .. } => Self::CaptureExceedsHold,
            Rejection::TooManyHolds(_) => Self::TooManyHolds,
            Rejection::HoldSpansTooManyGrants(_) => Self::HoldSpansTooManyGrants,
        }
    }

    /// The code for an error response that actix made.
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
