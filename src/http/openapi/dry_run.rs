//! What the operations of all commands have in common with each other: a dry run.
//!
//! The answer to a dry run is a documented answer: a client can check what it gets, and a generated client can read it. An
//! operation that answers 200 has one of two answers, and the member `dry_run` tells them apart.

use serde_json::{Value, json};
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Required};

use crate::http::problem::{Code, Problem};

const JSON: &str = "application/json";
const DESCRIPTION: &str = "With `dry_run=true`: what the command would do.";

/// Adds the parameter, and the answer to a dry run. The example is that of a command that would be refused with this
/// code.
pub(super) fn add_dry_run(operation: &mut Operation, refusal: Code) {
    operation.parameters.get_or_insert_default().push(RefOr::T(parameter()));
    let schema = Ref::from_schema_name("DryRun");
    let example = ExampleBuilder::new().summary("A dry run").value(Some(example(refusal))).build();
    let responses = &mut operation.responses.responses;
    let Some(done) = responses.get_mut("200").and_then(written_here) else {
        let content = ContentBuilder::new().schema(Some(schema)).examples_from_iter([("dry_run", example)]).build();
        let response = ResponseBuilder::new().description(DESCRIPTION).content(JSON, content).build();
        responses.insert("200".to_owned(), RefOr::T(response));
        return;
    };
    done.description = format!("{}\n\n{DESCRIPTION}", done.description);
    let Some(content) = done.content.get_mut(JSON).and_then(written_here) else { return };
    let receipt = ExampleBuilder::new().summary("The command was done").value(content.example.take()).build();
    content.examples.insert("done".to_owned(), RefOr::T(receipt));
    content.examples.insert("dry_run".to_owned(), RefOr::T(example));
    let receipt = content.schema.take();
    content.schema = Some(receipt.into_iter().fold(OneOfBuilder::new(), OneOfBuilder::item).item(schema).into());
}

/// What is no reference.
fn written_here<T>(part: &mut RefOr<T>) -> Option<&mut T> {
    match part {
        RefOr::T(part) => Some(part),
        RefOr::Ref(_) => None,
    }
}

fn parameter() -> Parameter {
    let description = "`true`: do nothing, and answer what the command would do, with 200 whatever it is (see `DryRun`). \
                       The `Idempotency-Key` is then not needed, and ignored.";
    ParameterBuilder::new()
        .name("dry_run")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(SchemaType::new(Type::Boolean)).default(Some(json!(false)))))
        .build()
}

fn example(refusal: Code) -> Value {
    let answer: Value = serde_json::from_str(&Problem::plain(refusal).to_json()).expect("a problem is JSON");
    json!({"dry_run": true, "status": refusal.status(), "answer": answer, "events": []})
}
