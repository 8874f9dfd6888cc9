//! The OpenAPI document, made from the routes that the server serves.
//!
//! A route declares its types, its examples, its scope (`x-scope`) and its own problems (`x-problems`). This module
//! adds what routes share: headers, and the problems that follow from a token, a workspace, a body or an idempotency
//! key. The example of every problem is made by the code that answers it.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::App;
use serde_json::{Value, json};
use utoipa::openapi::path::{HttpMethod, Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    ComponentsBuilder, ContactBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required,
    ServerBuilder, Tag,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_actix_web::AppExt as _;

use self::dry_run::add_dry_run;
use self::problems::SharedProblems;
use super::auth::Scope;
use super::dry_run::DryRunView;
use super::problem::{Code, ProblemBody};
use super::routes;
use crate::contract;
use crate::domain::text::IdempotencyKey;

mod dry_run;
mod problems;

/// Extensions of a route that this module reads and removes.
const X_PROBLEMS: &str = "x-problems";
const X_SCOPE: &str = "x-scope";
/// How an operation differs from a command.
const X_KEY: &str = "x-key";
const NO_KEY: &str = "none";
const NO_DRY_RUN: &str = "no dry run";
/// Requests with exactly one of several fields: for each field, the schema of the requests that have it.
const EXACTLY_ONE_OF: [(&str, &[(&str, &str)]); 3] = [
    ("DeductCreditsRequest", &[("credits", "DeductByCredits"), ("quantity", "DeductByQuantity")]),
    ("JobHoldRequest", &[("credits", "JobHoldByCredits"), ("quantity", "JobHoldByQuantity")]),
    ("PlaceHoldRequest", &[("credits", "HoldByCredits"), ("quantity", "HoldByQuantity")]),
];

/// The document of this server.
#[must_use]
pub fn openapi_document() -> OpenApi {
    let (_, mut document) = App::new().into_utoipa_app().openapi(base()).configure(routes::configure).split_for_parts();
    let mut problems = SharedProblems::default();
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations_mut(item) {
            let codes = add_shared_parts(path, &method, operation);
            problems.add(operation, &codes);
        }
    }
    let operations = document.paths.paths.values_mut().flat_map(operations_mut).map(|(_, operation)| operation);
    let responses = problems.share(operations);
    let components = document.components.get_or_insert_default();
    components.responses = responses;
    let mut schemas = contract::components();
    <ProblemBody<'_> as ToSchema>::schemas(&mut schemas);
    <DryRunView as ToSchema>::schemas(&mut schemas);
    schemas.push(("DryRun".to_owned(), DryRunView::schema()));
    schemas.push(("Problem".to_owned(), ProblemBody::schema()));
    components.schemas.extend(schemas);
    let sent = components.schemas.iter_mut().filter(|(name, _)| !name.ends_with("Request"));
    sent.for_each(|(_, schema)| contract::never_null(schema));
    for (name, variants) in EXACTLY_ONE_OF {
        split_by_fields(&mut components.schemas, name, variants);
    }
    document
}

/// Splits a schema into variants, each of which has one of the fields and needs it.
fn split_by_fields(schemas: &mut BTreeMap<String, RefOr<Schema>>, name: &str, variants: &[(&str, &str)]) {
    let Some(RefOr::T(Schema::Object(whole))) = schemas.remove(name) else {
        unreachable!("{name} is a struct");
    };
    let mut one_of = OneOfBuilder::new().description(whole.description.clone());
    for (field, variant) in variants {
        let mut object = whole.clone();
        for (other, _) in variants.iter().filter(|(other, _)| other != field) {
            object.properties.shift_remove(*other);
        }
        object.required.push((*field).to_owned());
        one_of = one_of.item(Ref::from_schema_name(*variant));
        schemas.insert((*variant).to_owned(), Schema::Object(object).into());
    }
    schemas.insert(name.to_owned(), one_of.into());
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
        let methods = [("GET, HEAD", &item.get), ("POST", &item.post), ("PUT", &item.put), ("PATCH", &item.patch)];
        let taken = methods.iter().filter(|(_, operation)| operation.is_some()).map(|(name, _)| *name);
        taken.collect::<Vec<_>>().join(", ")
    };
    document.paths.paths.iter().map(|(path, item)| (path.clone(), of(item))).collect()
}

fn operations_mut(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    let get = item.get.as_mut().map(|operation| (HttpMethod::Get, operation));
    let post = item.post.as_mut().map(|operation| (HttpMethod::Post, operation));
    let put = item.put.as_mut().map(|operation| (HttpMethod::Put, operation));
    let patch = item.patch.as_mut().map(|operation| (HttpMethod::Patch, operation));
    get.into_iter().chain(post).chain(put).chain(patch)
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
        ("holds", "Reserving credits for a use whose cost is not known yet, and charging what it has cost."),
        ("credits", "Spending, buying, granting and resetting credits, and the balance."),
        ("subscription", "The plan of a workspace: changing, canceling and resuming it."),
        ("usage", "Usage logs, and the terms of features."),
        ("ledger", "All movements of credits."),
        ("jobs", "Work that waits in a queue for a worker, and is charged when it is done."),
        ("workers", "For the processes that run jobs, with a token for all workspaces."),
        ("analytics", "Figures that the server makes of the events."),
        ("events", "Events, in order and without gaps."),
        ("operations", "For operators, with a token for all workspaces."),
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
         a 408 or a 5xx, retry with the same key: the command runs at most once. With `?dry_run=true` a command does \
         nothing and answers what it would do.\n\n\
         **Lists** are answered by pages. Some can also be exported: with `Accept: text/csv` or `application/x-ndjson` the \
         answer is the whole list in one download, with the same order and filters, up to the row that is the newest \
         when it begins. NDJSON has an item of the list in each line. CSV (RFC 4180) has a column for each field, and \
         a `'` before a caller's text that a spreadsheet would take for a formula. If an export fails after it began, \
         the connection is closed without the end of the body: your client must treat that as an error.\n\n\
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
        Scope::CreditsWrite => "deducting credits; placing, capturing, releasing and extending holds",
        Scope::CreditsPurchase => "booking and reversing purchases",
        Scope::CreditsGrant => "granting credits, voiding grants and refunding usage",
        Scope::CreditsReset => "starting billing periods that are due",
        Scope::CreditsRead => "reading the balance, the grants, the holds and the ledger",
        Scope::SubscriptionWrite => "changing, canceling and resuming the subscription",
        Scope::SubscriptionRead => "reading the subscription",
        Scope::UsageRead => "reading usage logs and the terms of features",
        Scope::AnalyticsRead => "reading the figures that are made of the events",
        Scope::EventsRead => "reading events",
        Scope::JobsRead => "reading jobs",
        Scope::JobsWrite => "submitting and canceling jobs",
        Scope::Workers => "running jobs; with a token for all workspaces",
        Scope::OpsRead => {
            "looking at consumers, queues, workers, dead letters and what operators did; with a token for all workspaces"
        }
        Scope::OpsWrite => {
            "changing consumers, queues, workers and schedules; replaying and discarding dead letters; with a token for all workspaces"
        }
        Scope::PlansRead => "reading plans",
        Scope::WorkspacesWrite => "provisioning workspaces",
        Scope::WorkspacesRead => "reading workspaces",
    }
}

/// Adds the parameters that an operation shares with others. Returns the codes of its problems.
fn add_shared_parts(path: &str, method: &HttpMethod, operation: &mut Operation) -> BTreeSet<Code> {
    let mut extensions = operation.extensions.take().unwrap_or_default();
    let own = extensions.remove(X_PROBLEMS).unwrap_or_default();
    let scope = extensions.remove(X_SCOPE);
    let key = extensions.remove(X_KEY);
    let mut codes: BTreeSet<Code> = own.as_array().into_iter().flatten().filter_map(parse_code).collect();
    codes.insert(Code::HeadersTooLarge);
    let has_token = scope.is_some();
    let has_body = operation.request_body.is_some();
    // What an operator does is no command: doing it twice changes nothing.
    let is_operation = path.starts_with("/v1/ops/");
    let needs_key = *method == HttpMethod::Post && !is_operation && key != Some(json!(NO_KEY));
    let has_dry_run = needs_key && key != Some(json!(NO_DRY_RUN));
    if has_token {
        codes.extend([Code::InvalidToken, Code::MissingScope, Code::NotAcceptable, Code::UnknownField]);
        codes.extend([Code::InternalError, Code::Unavailable]);
    }
    if is_operation || ["/v1/workers", "/v1/jobs"].iter().any(|own| path.starts_with(own)) {
        codes.insert(Code::AllWorkspacesRequired);
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
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter {
            add_example(parameter);
        }
    }
    if let Some(Value::String(scope)) = scope {
        let description = operation.description.take().unwrap_or_default();
        operation.description = Some(format!("{description}\n\nScope: `{scope}`."));
        match method {
            HttpMethod::Post if has_dry_run => add_dry_run(operation, Code::WorkspaceNotFound),
            HttpMethod::Put => add_dry_run(operation, Code::PlanNotFound),
            _ => {}
        }
        let parameters = operation.parameters.get_or_insert_default();
        parameters.extend(needs_key.then(idempotency_key_parameter).map(RefOr::T));
        parameters.extend(trace_parameters().map(RefOr::T));
    }
    codes
}

/// The ids in the examples of answers.
fn add_example(parameter: &mut Parameter) {
    let example = match parameter.name.as_str() {
        "workspace_id" if parameter.parameter_in == ParameterIn::Path => "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "grant_id" if parameter.parameter_in == ParameterIn::Path => "019a0000-0000-7000-8000-000000000006",
        "purchase_id" if parameter.parameter_in == ParameterIn::Path => "019a0000-0000-7000-8000-000000000004",
        "hold_id" if parameter.parameter_in == ParameterIn::Path => "019a0000-0000-7000-8000-000000000008",
        "job_id" => "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c",
        "worker_id" => "019a0000-0000-7000-8000-00000000000e",
        "event_id" => "019a0000-0000-7000-8000-000000000007",
        "usage_id" => "AAZJq1CORAAAAAAAAAAAAQ",
        "period_start" => "2026-01-31T09:00:00.000000Z",
        _ => return,
    };
    *parameter = ParameterBuilder::from(parameter.clone()).example(Some(json!(example))).build();
}

fn is_query(parameter: &RefOr<Parameter>) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query)
}

fn parse_code(word: &Value) -> Option<Code> {
    let code = Code::ALL.iter().find(|code| Some(code.as_str()) == word.as_str());
    debug_assert!(code.is_some(), "{word} is not a code");
    code.copied()
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
