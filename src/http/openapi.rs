//! The OpenAPI document, made from the routes that the server serves.
//!
//! A route declares its types, its examples, its scope (`x-scope`) and its own problems (`x-problems`). This module
//! adds what routes share: headers, and the problems that follow from a token, a workspace, a body or an idempotency
//! key. The example of every problem is made by the code that answers it.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::App;
use serde_json::{Value, json};
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{HttpMethod, Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    ComponentsBuilder, ContactBuilder, ContentBuilder, Header, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder,
    Ref, RefOr, Required, ServerBuilder, Tag,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_actix_web::AppExt as _;

use super::auth::Scope;
use super::problem::{Code, PROBLEM_JSON, Problem, ProblemBody};
use super::routes;
use crate::domain::event::LimitScope;
use crate::domain::rejection::Rejection;
use crate::domain::text::IdempotencyKey;

/// Extensions of a route that this module reads and removes.
const X_PROBLEMS: &str = "x-problems";
const X_SCOPE: &str = "x-scope";

/// The document of this server.
#[must_use]
pub fn openapi_document() -> OpenApi {
    let (_, mut document) = App::new().into_utoipa_app().openapi(base()).configure(routes::configure).split_for_parts();
    if let Some(components) = &mut document.components {
        let mut schemas = Vec::new();
        <ProblemBody<'_> as ToSchema>::schemas(&mut schemas);
        components.schemas.extend(schemas);
        components.schemas.insert("Problem".to_owned(), ProblemBody::schema());
    }
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations_mut(item) {
            add_shared_parts(path, &method, operation);
        }
    }
    document
}

/// The document as it is served.
#[must_use]
pub fn to_compact_json(document: &OpenApi) -> String {
    document.to_json().expect("the document is plain data")
}

/// The document as it is stored in `openapi/openapi.json`.
#[must_use]
pub fn to_json(document: &OpenApi) -> String {
    let mut text = document.to_pretty_json().expect("the document is plain data");
    text.push('\n');
    text
}

/// The `Allow` header of every path.
#[must_use]
pub fn methods(document: &OpenApi) -> BTreeMap<String, String> {
    let of = |item: &PathItem| {
        let methods = [("GET, HEAD", &item.get), ("POST", &item.post), ("PUT", &item.put)];
        let taken = methods.iter().filter(|(_, operation)| operation.is_some()).map(|(name, _)| *name);
        taken.collect::<Vec<_>>().join(", ")
    };
    document.paths.paths.iter().map(|(path, item)| (path.clone(), of(item))).collect()
}

fn operations_mut(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    let get = item.get.as_mut().map(|operation| (HttpMethod::Get, operation));
    let post = item.post.as_mut().map(|operation| (HttpMethod::Post, operation));
    let put = item.put.as_mut().map(|operation| (HttpMethod::Put, operation));
    get.into_iter().chain(post).chain(put)
}

fn base() -> OpenApi {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some("A JWT with `exp`, `iss`, `aud`, `sub`, `scope` and `workspace_id`."))
        .build();
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("VisionScope Billing")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(description()))
                .contact(Some(ContactBuilder::new().name(Some("VisionScope Billing")).build()))
                .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
                .build(),
        )
        .servers(Some([ServerBuilder::new().url("/").description(Some("This server")).build()]))
        .tags(Some(tags()))
        .components(Some(ComponentsBuilder::new().security_scheme("bearer", SecurityScheme::Http(bearer)).build()))
        .build()
}

fn tags() -> Vec<Tag> {
    [
        ("workspaces", "The paying tenants."),
        ("credits", "Spending, buying and resetting credits, and the balance."),
        ("subscription", "The plan of a workspace: changing, canceling and resuming it."),
        ("usage", "Usage logs, and the terms of features."),
        ("ledger", "All movements of credits."),
        ("events", "Events, in order and without gaps."),
        ("plans", "The plans that a workspace can subscribe to."),
        ("service", "Probes, metrics and this document. No token is needed."),
    ]
    .map(|(name, description)| TagBuilder::new().name(name).description(Some(description)).build())
    .into()
}

/// The description of the whole API.
fn description() -> String {
    let row = |scope: &Scope| format!("| `{}` | {} |", scope.as_str(), scope_description(*scope));
    let scopes = Scope::ALL.iter().map(row).collect::<Vec<_>>().join("\n");
    format!(
        "Usage credits for workspaces: real-time deductions, purchases, plans, and an event for every change.\n\n\
         **Amounts** are decimal strings with at most six places; requests may also send integers. \
         **Times** are RFC 3339; answers are UTC with microseconds.\n\n\
         **Commands** (POST) need an `Idempotency-Key`. The same key with the same body gets the same answer, byte \
         for byte, with `Idempotency-Replayed: true`. The same key with another body is refused. If you get no answer, \
         a 408 or a 5xx, retry with the same key: the command runs at most once.\n\n\
         **Errors** are `application/problem+json` (RFC 9457); match on `code`. 429 and 503 carry `Retry-After`. \
         Bodies have at most 64 KiB, 16 levels and no unknown fields. Three errors are answered without a body, and the \
         connection is closed: a malformed HTTP request (400), more than 96 headers or 128 KiB of headers (431), and a \
         head that arrives too slowly (408).\n\n\
         **Tokens** are JWTs sent as `Authorization: Bearer`. `workspace_id` is the workspace that a token is \
         for, or `*` for all; other workspaces are answered as if they did not exist. `scope` lists what a token allows:\n\n\
         | scope | allows |\n|---|---|\n{scopes}"
    )
}

const fn scope_description(scope: Scope) -> &'static str {
    match scope {
        Scope::CreditsWrite => "deducting credits",
        Scope::CreditsPurchase => "booking purchases",
        Scope::CreditsReset => "starting billing periods that are due",
        Scope::CreditsRead => "reading the balance, the grants and the ledger",
        Scope::SubscriptionWrite => "changing, canceling and resuming the subscription",
        Scope::SubscriptionRead => "reading the subscription",
        Scope::UsageRead => "reading usage logs and the terms of features",
        Scope::EventsRead => "reading events",
        Scope::PlansRead => "reading plans",
        Scope::WorkspacesWrite => "provisioning workspaces",
        Scope::WorkspacesRead => "reading workspaces",
    }
}

/// Adds the parameters and responses that an operation shares with others.
fn add_shared_parts(path: &str, method: &HttpMethod, operation: &mut Operation) {
    let mut extensions = operation.extensions.take().unwrap_or_default();
    let own = extensions.remove(X_PROBLEMS).unwrap_or_default();
    let scope = extensions.remove(X_SCOPE);
    let mut codes: BTreeSet<Code> = own.as_array().into_iter().flatten().filter_map(parse_code).collect();
    codes.insert(Code::HeadersTooLarge);
    let has_token = scope.is_some();
    let has_body = operation.request_body.is_some();
    let needs_key = *method == HttpMethod::Post;
    if has_token {
        codes.extend([Code::InvalidToken, Code::MissingScope, Code::NotAcceptable, Code::UnknownField]);
        codes.extend([Code::InternalError, Code::Unavailable]);
    }
    if path.contains("{workspace_id}") || path == "/v1/events" {
        codes.extend([Code::WorkspaceNotFound, Code::TooManyRequests]);
    }
    if operation.parameters.iter().flatten().any(is_query) {
        codes.extend([Code::InvalidField, Code::InvalidText]);
    }
    if has_body {
        codes.extend([Code::MalformedJson, Code::RequestTimeout, Code::BodyTooLarge, Code::UnsupportedMediaType]);
        codes.extend([Code::UnsupportedContentEncoding, Code::InvalidField, Code::AmountOutOfRange, Code::InvalidText]);
        codes.extend([Code::ObjectRequired, Code::Overloaded, Code::ShuttingDown]);
    }
    if needs_key {
        codes.extend([Code::IdempotencyKeyRequired, Code::IdempotencyKeyReused]);
    }
    if let Some(Value::String(scope)) = scope {
        let description = operation.description.take().unwrap_or_default();
        operation.description = Some(format!("{description}\n\nScope: `{scope}`."));
        let parameters = operation.parameters.get_or_insert_default();
        parameters.extend(needs_key.then(idempotency_key_parameter).map(RefOr::T));
        parameters.extend(trace_parameters().map(RefOr::T));
    }
    add_responses(operation, &codes, has_body);
}

fn is_query(parameter: &RefOr<Parameter>) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query)
}

fn parse_code(word: &Value) -> Option<Code> {
    let code = Code::ALL.iter().find(|code| Some(code.as_str()) == word.as_str());
    debug_assert!(code.is_some(), "{word} is not a code");
    code.copied()
}

fn add_responses(operation: &mut Operation, codes: &BTreeSet<Code>, is_command: bool) {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status()).or_default().push(*code);
    }
    for (status, codes) in by_status {
        operation.responses.responses.insert(status.to_string(), RefOr::T(problem_response(status, &codes)));
    }
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        let is_stored = is_command && matches!(status.as_bytes().first(), Some(b'2')) || is_stored_refusal(status);
        if is_command && is_stored {
            let description = "`true` on a replayed answer.";
            response.headers.insert("Idempotency-Replayed".to_owned(), RefOr::T(header(Type::Boolean, description)));
        }
        let description = "The correlation id of the request, or a new one.";
        response.headers.insert("X-Correlation-Id".to_owned(), RefOr::T(header(Type::String, description)));
    }
}

/// The statuses of refusals that are stored and replayed.
fn is_stored_refusal(status: &str) -> bool {
    matches!(status, "402" | "403" | "409" | "412" | "422")
}

fn problem_response(status: u16, codes: &[Code]) -> Response {
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
    response.build()
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
            used: credits("499"),
            requested: credits("2.5"),
            resets_at: Some(at("2026-02-28T09:00:00Z")),
            window_s: None,
        }),
        Code::RateExceeded => {
            Problem::from(&Rejection::RateExceeded { limit: credits("100"), window_s: 60, retry_after_s: 12 })
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

fn idempotency_key_parameter() -> Parameter {
    let description = "Makes a retry of this command safe: unique per workspace and command, and the same on every retry. \
                 Bare, or in double quotes.";
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(idempotency_key_schema()))
        .example(Some(json!("order-1042")))
        .build()
}

/// A key as it is sent. The length does not count the quotes.
fn idempotency_key_schema() -> Schema {
    ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::String))
        .min_length(Some(1))
        .max_length(Some(IdempotencyKey::MAX_LEN + 2))
        .pattern(Some(r#"^([!#-\[\]-~]{1,255}|"[!#-\[\]-~]{1,255}")$"#))
        .into()
}

fn trace_parameters() -> [Parameter; 2] {
    let text = || ObjectBuilder::new().schema_type(SchemaType::new(Type::String));
    let correlation_description = "Connects requests and events; the answer has it too. 1 to 128 visible ASCII \
                             characters, once; anything else is ignored, and the server generates an id.";
    let trace_description = "W3C Trace Context, version 00; the events carry it too. Any other form is ignored.";
    let optional = |name: &str, description: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(description))
    };
    [
        optional("X-Correlation-Id", correlation_description)
            .schema(Some(text()))
            .example(Some(json!("checkout-17")))
            .build(),
        optional("traceparent", trace_description)
            .schema(Some(text()))
            .example(Some(json!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")))
            .build(),
    ]
}
