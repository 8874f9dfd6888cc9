//! The problems that operations answer, as components that they share.
//!
//! Most operations have the same problems. So each answer with the same status and codes is written once, below
//! `components/responses`, and operations refer to it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{ContentBuilder, Header, Ref, RefOr};

use crate::domain::event::LimitScope;
use crate::domain::hold::HoldState;
use crate::domain::ids::GrantId;
use crate::domain::rejection::Rejection;
use crate::domain::text::PaymentReference;
use crate::http::auth::Scope;
use crate::http::problem::{Code, PROBLEM_JSON, Problem};

/// What distinguishes one answer from another: the status, the codes, and whether it may be a replayed one.
type Answer = (u16, Vec<Code>, bool);

/// The answers of all operations, and which operations have each.
#[derive(Default)]
pub(super) struct SharedProblems {
    operations: BTreeMap<Answer, BTreeSet<String>>,
}

impl SharedProblems {
    /// Adds the problems of an operation, and the headers of its other answers.
    pub(super) fn add(&mut self, operation: &mut Operation, codes: &BTreeSet<Code>) {
        let is_command = operation.request_body.is_some();
        for response in operation.responses.responses.values_mut() {
            if let RefOr::T(response) = response {
                add_headers(response, is_command);
            }
        }
        let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
        for code in codes {
            by_status.entry(code.status()).or_default().push(*code);
        }
        for (status, codes) in by_status {
            let answer = (status, codes, is_command && is_stored_refusal(status));
            self.operations.entry(answer).or_default().insert(operation.operation_id.clone().unwrap_or_default());
        }
    }

    /// Refers from each operation to its answers. Returns the answers by their names.
    pub(super) fn share<'o>(
        self,
        operations: impl Iterator<Item = &'o mut Operation>,
    ) -> BTreeMap<String, RefOr<Response>> {
        let names = self.names();
        for operation in operations {
            let id = operation.operation_id.clone().unwrap_or_default();
            for (answer, name) in names.iter().filter(|(answer, _)| self.operations[*answer].contains(&id)) {
                let reference = Ref::from_response_name(name);
                operation.responses.responses.insert(answer.0.to_string(), reference.into());
            }
        }
        names.into_iter().map(|(answer, name)| (name, problem_response(answer).into())).collect()
    }

    /// The answer of a status that most operations have is named after the status, and the others after their first
    /// operation too.
    fn names(&self) -> BTreeMap<&Answer, String> {
        let mut names = BTreeMap::new();
        let statuses: BTreeSet<u16> = self.operations.keys().map(|(status, ..)| *status).collect();
        for status in statuses {
            let of_status = self.operations.iter().filter(|((of, ..), _)| *of == status);
            let most = of_status.clone().map(|(_, operations)| operations.len()).max();
            let mut is_free = true;
            for (answer, operations) in of_status {
                let is_plain = is_free && Some(operations.len()) == most;
                is_free &= !is_plain;
                let first = operations.first().filter(|_| !is_plain).map_or_else(String::new, |id| pascal_case(id));
                names.insert(answer, format!("{}{first}", reason(status)));
            }
        }
        names
    }
}

/// The name of a status in one word.
const fn reason(status: u16) -> &'static str {
    match status {
        400 => "BadRequest",
        401 => "Unauthorized",
        402 => "PaymentRequired",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        406 => "NotAcceptable",
        408 => "RequestTimeout",
        409 => "Conflict",
        410 => "Gone",
        412 => "PreconditionFailed",
        413 => "ContentTooLarge",
        415 => "UnsupportedMediaType",
        422 => "UnprocessableContent",
        429 => "TooManyRequests",
        431 => "HeadersTooLarge",
        503 => "ServiceUnavailable",
        _ => "InternalServerError",
    }
}

/// `deduct_credits` → `DeductCredits`.
fn pascal_case(id: &str) -> String {
    let capitalized = |word: &str| {
        let mut letters = word.chars();
        letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
    };
    id.split('_').map(capitalized).collect()
}

fn add_headers(response: &mut Response, may_be_replayed: bool) {
    if may_be_replayed {
        let description = "`true` on a replayed answer.";
        response.headers.insert("Idempotency-Replayed".to_owned(), RefOr::T(header(Type::Boolean, description)));
    }
    let description = "The correlation id of the request, or a new one.";
    response.headers.insert("X-Correlation-Id".to_owned(), RefOr::T(header(Type::String, description)));
}

/// The statuses of refusals that are stored and replayed.
const fn is_stored_refusal(status: u16) -> bool {
    matches!(status, 402 | 403 | 409 | 412 | 422)
}

fn problem_response((status, codes, may_be_replayed): &Answer) -> Response {
    let description: Vec<_> = codes.iter().map(|code| format!("`{}`: {}", code.as_str(), code.title())).collect();
    let examples = codes.iter().map(|code| {
        let value: Value = serde_json::from_str(&example(*code).to_json()).expect("a problem is JSON");
        let example = ExampleBuilder::new().summary(code.title()).value(Some(value)).build();
        (code.as_str().to_owned(), RefOr::T(example))
    });
    let content =
        ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).examples_from_iter(examples).build();
    let response = ResponseBuilder::new().description(description.join("\n\n")).content(PROBLEM_JSON, content);
    let response = match status {
        401 | 403 => response.header("WWW-Authenticate", header(Type::String, "As in RFC 6750.")),
        429 | 503 => response.header("Retry-After", header(Type::Integer, "Retry after this many seconds.")),
        _ => response,
    };
    let mut response = response.build();
    add_headers(&mut response, *may_be_replayed);
    response
}

/// A problem as it is answered.
fn example(code: Code) -> Problem {
    let credits = |text: &str| text.parse().unwrap_or_default();
    let at = |text: &str| text.parse().expect("a constant in the form of RFC 3339");
    match code {
        Code::InvalidToken => Problem::invalid_token(),
        Code::MissingScope => Problem::missing_scope(Scope::CreditsWrite.as_str()),
        Code::InvalidField => Problem::field(code, "/feature_code", "is required"),
        Code::AmountOutOfRange => {
            Problem::field(code, "/credits", "the amount is zero, negative or too large for this field")
        }
        Code::InvalidText => Problem::field(code, "/user_id", "must have 1 to 128 characters"),
        Code::UnknownField => Problem::field(code, "/credit", "this field does not exist"),
        Code::ObjectRequired => Problem::field(code, "", "must be a JSON object"),
        Code::InsufficientCredits => {
            Problem::from(&Rejection::InsufficientCredits { requested: credits("2.5"), available: credits("1") })
        }
        Code::LimitExceeded => Problem::from(&Rejection::LimitExceeded {
            scope: LimitScope::Feature,
            limit: credits("500"),
            used: credits("479"),
            held: credits("20"),
            requested: credits("2.5"),
            resets_at: Some(at("2026-02-28T09:00:00Z")),
            window_s: None,
        }),
        Code::RateExceeded => {
            Problem::from(&Rejection::RateExceeded { limit: credits("100"), window_s: 60, retry_after_s: 12 })
        }
        Code::PaymentReferenceUsed => Problem::from(&Rejection::PaymentReferenceUsed {
            reference: PaymentReference::from_stored("pay_2f6d"),
            grant_id: GrantId(uuid::uuid!("019a0000-0000-7000-8000-000000000004")),
        }),
        Code::VoidExceedsRemaining => {
            Problem::from(&Rejection::VoidExceedsRemaining { requested: credits("100"), remaining: credits("75") })
        }
        Code::RefundExceedsUsage => {
            Problem::from(&Rejection::RefundExceedsUsage { requested: credits("2.5"), left: credits("1.5") })
        }
        Code::ReversalExceedsPurchase => {
            Problem::from(&Rejection::ReversalExceedsPurchase { left: credits("250"), left_minor: 2450 })
        }
        Code::HoldOver => Problem::from(&Rejection::HoldOver(HoldState::Released)),
        Code::HoldExpired => Problem::from(&Rejection::HoldExpired(at("2026-01-31T09:30:00Z"))),
        Code::CaptureExceedsHold => {
            Problem::from(&Rejection::CaptureExceedsHold { requested: credits("25"), held: credits("20") })
        }
        Code::VersionMismatch => Problem::from(&Rejection::VersionMismatch { expected: 1, actual: 2 }),
        Code::ResetNotDue => Problem::from(&Rejection::ResetNotDue { ends_at: at("2026-02-28T09:00:00Z") }),
        Code::PeriodMismatch => Problem::from(&Rejection::PeriodMismatch { next: at("2026-02-28T09:00:00Z") }),
        code => Problem::plain(code),
    }
}

fn header(kind: Type, description: &str) -> Header {
    let schema = ObjectBuilder::new().schema_type(SchemaType::new(kind)).build();
    HeaderBuilder::new().schema(Some(Schema::from(schema))).description(Some(description)).build()
}
