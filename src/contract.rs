//! The contract of events: a JSON Schema for the data of each event type, and one for the attributes around it.
//!
//! They are generated from the types in [`crate::domain::event`] and [`crate::domain::cloud_event`], stored in
//! `openapi/events/`, served at `/schemas/events/`, and part of the OpenAPI document; a test checks that the files are
//! current. Every event is checked against the same schemas when it is written, so a consumer that validates events
//! never refuses one.
//!
//! The schemas allow additional properties, so a field can be added without a new version. Amounts are decimal
//! strings with a pattern, never JSON numbers.

use std::path::Path;

use jsonschema::Validator;
use serde_json::{Map, Value, json};
use utoipa::openapi::schema::{Discriminator, ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

pub use self::never_null::never_null;
use crate::domain::cloud_event::{CloudEvent, data_schema};
use crate::domain::event::EventType;
use crate::domain::metadata::Metadata;

mod never_null;

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Where OpenAPI stores shared schemas. In a standalone JSON Schema they are under `$defs`.
const COMPONENTS: &str = "#/components/schemas/";
/// Formats that OpenAPI adds to JSON Schema. Strict validators refuse unknown formats.
const OPENAPI_FORMATS: [&str; 2] = ["int32", "int64"];

/// A generated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Below `openapi/events/`.
    pub file_name: String,
    pub text: String,
}

/// Event data that violates its schema: a defect of the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} violates its schema at {pointer:?}: {detail}", event_type.as_str())]
pub struct ContractViolation {
    pub event_type: EventType,
    /// A JSON pointer into the data (RFC 6901).
    pub pointer: String,
    /// What is wrong, without the value.
    pub detail: String,
}

/// The compiled schemas of all event types.
pub struct Contract {
    /// In the order of [`EventType::ALL`].
    validators: Vec<(EventType, Validator)>,
}

impl Contract {
    /// Compiles the schemas. It takes some milliseconds, so call it once per process.
    #[must_use]
    pub fn new() -> Self {
        let compile = |event_type: EventType| {
            let validator = jsonschema::options().should_validate_formats(true).build(&event_schema(event_type));
            (event_type, validator.expect("generated schemas are valid: the tests compile them all"))
        };
        Self { validators: EventType::ALL.iter().copied().map(compile).collect() }
    }

    /// Checks the JSON of an event's data.
    pub fn check(&self, event_type: EventType, data: &str) -> Result<(), ContractViolation> {
        let value: Value = serde_json::from_str(data).map_err(|error| violation(event_type, "", error.to_string()))?;
        let found = self.validators.iter().find(|(of, _)| *of == event_type);
        let Some((_, validator)) = found else {
            return Err(violation(event_type, "", "there is no schema for it".into()));
        };
        if validator.is_valid(&value) {
            return Ok(());
        }
        match validator.validate(&value) {
            Ok(()) => Ok(()),
            Err(error) => Err(violation(event_type, error.instance_path().as_str(), error.masked().to_string())),
        }
    }
}

impl Default for Contract {
    fn default() -> Self {
        Self::new()
    }
}

fn violation(event_type: EventType, pointer: &str, detail: String) -> ContractViolation {
    ContractViolation { event_type, pointer: pointer.to_owned(), detail }
}

/// The schema of one event type's data, as a standalone document.
#[must_use]
pub fn event_schema(event_type: EventType) -> Value {
    let id = data_schema(event_type.as_str(), event_type.schema_version());
    let (schema, parts) = schema_of_data(event_type);
    document(&id, event_type.as_str(), schema, parts)
}

/// The schema of the attributes of all events.
#[must_use]
pub fn attributes_schema() -> Value {
    let mut parts = Vec::new();
    CloudEvent::schemas(&mut parts);
    let mut schema = CloudEvent::schema();
    never_null(&mut schema);
    document("urn:visionscope:event", "Event", schema, parts)
}

/// The schemas of the OpenAPI document: of the data of each event, of each event, and `Event`, which is one of them by
/// its `type`.
#[must_use]
pub fn components() -> Vec<(String, RefOr<Schema>)> {
    let mut components = Vec::new();
    CloudEvent::schemas(&mut components);
    let (mut any, mut discriminator) = (OneOfBuilder::new(), Discriminator::new("type"));
    for event_type in EventType::ALL.iter().copied() {
        let (name, event_name) = (event_type.as_str(), format!("{}Event", event_type.as_str()));
        let (data, parts) = schema_of_data(event_type);
        components.extend(parts);
        components.push((name.to_owned(), data));
        components.push((event_name.clone(), typed_event(event_type).into()));
        any = any.item(Ref::from_schema_name(&event_name));
        discriminator.mapping.insert(name.to_owned(), format!("{COMPONENTS}{event_name}"));
    }
    let any = any.description(Some("An event, by its `type`.")).discriminator(Some(discriminator));
    components.push(("Event".to_owned(), any.into()));
    components
}

/// The schema of an event's data, with the metadata that every event may have, and of what it refers to.
fn schema_of_data(event_type: EventType) -> (RefOr<Schema>, Vec<(String, RefOr<Schema>)>) {
    let (mut schema, mut parts) = event_type.schema();
    if let RefOr::T(Schema::Object(object)) = &mut schema {
        object.properties.insert("metadata".to_owned(), Ref::from_schema_name("Metadata").into());
    }
    parts.push(("Metadata".to_owned(), Metadata::schema()));
    never_null(&mut schema);
    for (_, part) in &mut parts {
        never_null(part);
    }
    (schema, parts)
}

/// The attributes of all events, with the values that one type of event has.
fn typed_event(event_type: EventType) -> Schema {
    let mut schema = CloudEvent::schema();
    never_null(&mut schema);
    let RefOr::T(Schema::Object(mut event)) = schema else {
        unreachable!("a struct has the schema of an object");
    };
    let constant = |value: Value| {
        let kind = if value.is_string() { Type::String } else { Type::Integer };
        ObjectBuilder::new().schema_type(SchemaType::new(kind)).enum_values(Some([value]))
    };
    let version = event_type.schema_version();
    let name = event_type.as_str();
    event.properties.insert("type".to_owned(), constant(name.into()).into());
    event.properties.insert("dataschema".to_owned(), constant(data_schema(event_type.as_str(), version).into()).into());
    event.properties.insert("schemaversion".to_owned(), constant(version.into()).into());
    event.properties.insert("data".to_owned(), Ref::from_schema_name(name).into());
    Schema::Object(event)
}

/// All generated files.
#[must_use]
pub fn documents() -> Vec<Document> {
    let of_event = |event_type: &EventType| Document {
        file_name: format!("{}.v{}.json", event_type.as_str(), event_type.schema_version()),
        text: text(&event_schema(*event_type)),
    };
    let attributes = Document { file_name: "event.json".into(), text: text(&attributes_schema()) };
    EventType::ALL.iter().map(of_event).chain([attributes]).collect()
}

/// Writes all generated files into a folder.
pub fn write_all(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    documents().into_iter().try_for_each(|document| std::fs::write(folder.join(document.file_name), document.text))
}

fn text(schema: &Value) -> String {
    format!("{schema:#}\n")
}

fn document(id: &str, title: &str, schema: RefOr<Schema>, parts: Vec<(String, RefOr<Schema>)>) -> Value {
    let as_json = |schema: RefOr<Schema>| {
        let mut value = serde_json::to_value(schema).expect("a schema serializes to JSON");
        to_json_schema(&mut value);
        value
    };
    let mut root = Map::new();
    root.insert("$schema".into(), DRAFT.into());
    root.insert("$id".into(), id.into());
    root.insert("title".into(), title.into());
    if let Value::Object(members) = as_json(schema) {
        root.extend(members);
    }
    let defs: std::collections::BTreeMap<_, _> =
        parts.into_iter().map(|(name, schema)| (name, as_json(schema))).collect();
    root.insert("$defs".into(), json!(defs));
    Value::Object(root)
}

/// Converts OpenAPI's references, examples and formats to plain JSON Schema.
fn to_json_schema(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get_mut("$ref")
                && let Some(name) = reference.strip_prefix(COMPONENTS)
            {
                *reference = format!("#/$defs/{name}");
            }
            if members.get("format").and_then(Value::as_str).is_some_and(|format| OPENAPI_FORMATS.contains(&format)) {
                members.remove("format");
            }
            if members.contains_key("type")
                && let Some(example) = members.remove("example")
            {
                members.insert("examples".into(), json!([example]));
            }
            members.values_mut().for_each(to_json_schema);
        }
        Value::Array(items) => items.iter_mut().for_each(to_json_schema),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
