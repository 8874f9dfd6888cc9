//! All wrong fields of a body.
//!
//! Serde stops at the first wrong field. So what was found wrong is left out, and the rest is read again. This costs a
//! refused request some time, and an accepted one nothing.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::de::value::MapDeserializer;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::PartialSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use super::pairs::Pairs;
use crate::domain::text::FieldCode;
use crate::http::problem::{Code, FieldProblem, Problem};

/// The most that are told.
const MAX_ERRORS: usize = 20;

/// The fields of an object that are wrong as a `T`, at least one: in the order of the body (those within one field by
/// name), and then those that are missing.
pub(super) fn all<T: DeserializeOwned + PartialSchema>(body: &RawValue) -> Result<Vec<FieldProblem>, Problem> {
    let Pairs(pairs) = serde_json::from_str(body.get()).map_err(|_| Problem::plain(Code::MalformedJson))?;
    let names: Vec<String> = pairs.iter().map(|(name, _)| name.clone().into_owned()).collect();
    let mut rest = Rest::default();
    let mut errors: Vec<(Vec<Step>, SerdeFieldError)> = Vec::new();
    for (name, value) in pairs {
        match serde_json::from_str(value.get()) {
            Ok(value) => rest.members.push((name.into_owned(), value)),
            // A number that is too large even for a float.
            Err(_) => errors
                .push((vec![Step::Name(name.into_owned())], SerdeFieldError::invalid("has the wrong type or form"))),
        }
    }
    while errors.len() < MAX_ERRORS
        && let Err(error) = rest.read::<T>()
    {
        let field_error = SerdeFieldError::parse(&error.inner().to_string());
        let place = steps(error.path());
        let mut path = rest.path_in_body(&place);
        path.extend(field_error.field.clone().map(Step::Name));
        // The fields of an object are read before it is found that others are missing.
        if place.is_empty() {
            break;
        }
        if !errors.iter().any(|(known, _)| *known == path) {
            errors.push((path, field_error));
        }
        rest.leave_out(place);
    }
    let missing = required::<T>().into_iter().filter(|name| !names.contains(name));
    errors.sort_by_key(|(path, _)| names.iter().position(|name| path.first() == Some(&Step::Name(name.clone()))));
    errors.extend(missing.map(|name| (vec![Step::Name(name)], SerdeFieldError::invalid("is required"))));
    errors.truncate(MAX_ERRORS);
    if errors.is_empty() {
        errors.push((Vec::new(), SerdeFieldError::invalid("has the wrong type or form")));
    }
    Ok(errors
        .into_iter()
        .map(|(path, error)| FieldProblem::of_body(error.code, pointer(&path), error.detail))
        .collect())
}

/// A step from a value to one of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(usize),
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    path.iter()
        .filter_map(|segment| match segment {
            serde_path_to_error::Segment::Map { key } => Some(Step::Name(key.clone())),
            serde_path_to_error::Segment::Seq { index } => Some(Step::Index(*index)),
            serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => None,
        })
        .collect()
}

/// A JSON pointer (RFC 6901).
fn pointer(path: &[Step]) -> String {
    path.iter()
        .map(|step| match step {
            Step::Name(name) => format!("/{}", name.replace('~', "~0").replace('/', "~1")),
            Step::Index(index) => format!("/{index}"),
        })
        .collect()
}

/// The names of the fields that a `T` needs.
fn required<T: PartialSchema>() -> Vec<String> {
    match T::schema() {
        RefOr::T(Schema::Object(object)) => object.required,
        _ => Vec::new(),
    }
}

/// What is left of a body.
#[derive(Default)]
struct Rest {
    /// In the order of the body.
    members: Vec<(String, Value)>,
    /// How many elements were left out at the start of an array, by its pointer in the body.
    left_out: BTreeMap<String, usize>,
}

impl Rest {
    fn read<T: DeserializeOwned>(&self) -> Result<T, serde_path_to_error::Error<serde_json::Error>> {
        let members = self.members.iter().map(|(name, value)| (name.as_str(), value.clone()));
        serde_path_to_error::deserialize(MapDeserializer::new(members))
    }

    /// The path in the whole body of a place in what is left.
    fn path_in_body(&self, place: &[Step]) -> Vec<Step> {
        let mut path = Vec::with_capacity(place.len());
        for step in place {
            path.push(match step {
                Step::Index(index) => {
                    Step::Index(index + self.left_out.get(&pointer(&path)).copied().unwrap_or_default())
                }
                Step::Name(_) => step.clone(),
            });
        }
        path
    }

    /// Leaves out what is at that place: of an array, all elements up to it, because those before it are right.
    fn leave_out(&mut self, mut place: Vec<Step>) {
        let path = self.path_in_body(&place);
        let (Some(last), [Step::Name(first), inner @ ..]) = (place.pop(), path.as_slice()) else { return };
        let Some(index) = self.members.iter().position(|(name, _)| name == first) else { return };
        if inner.is_empty() {
            self.members.remove(index);
            return;
        }
        let found = place.iter().skip(1).try_fold(&mut self.members[index].1, |value, step| match step {
            Step::Name(name) => value.get_mut(name),
            Step::Index(index) => value.get_mut(index),
        });
        match (found, last) {
            (Some(Value::Object(members)), Step::Name(name)) => drop(members.remove(&name)),
            (Some(Value::Array(elements)), Step::Index(index)) => {
                elements.drain(..=index.min(elements.len().saturating_sub(1)));
                let array = pointer(&path[..path.len() - 1]);
                *self.left_out.entry(array).or_default() += index + 1;
            }
            // Nothing is at that place, so nothing would change: read no further.
            _ => self.members.clear(),
        }
    }
}

/// A field error, parsed from the message of a serde error. Serde errors carry text only: those of domain types are
/// `code: detail`, the others have serde's own wording.
#[derive(Debug, PartialEq, Eq)]
pub struct SerdeFieldError {
    pub code: Code,
    pub detail: String,
    /// The missing or duplicate field, which the path of the error does not include.
    pub field: Option<String>,
}

impl SerdeFieldError {
    fn invalid(detail: &str) -> Self {
        Self { code: Code::InvalidField, detail: detail.to_owned(), field: None }
    }

    #[must_use]
    pub fn parse(message: &str) -> Self {
        let message = without_position(message);
        for code in FieldCode::ALL {
            if let Some(detail) = message.strip_prefix(code.as_str()).and_then(|rest| rest.strip_prefix(": ")) {
                return Self { code: code.into(), detail: detail.to_owned(), field: None };
            }
        }
        let of_field = |detail: &str, rest: &str| Self {
            field: Some(rest.trim_end_matches('`').to_owned()),
            ..Self::invalid(detail)
        };
        // The name of an unknown field comes from the request, so it is taken from the path and not from this message.
        if message.starts_with("unknown field `") {
            return Self { code: Code::UnknownField, detail: "this field does not exist".to_owned(), field: None };
        }
        if let Some(rest) = message.strip_prefix("missing field `") {
            return of_field("is required", rest);
        }
        if let Some(rest) = message.strip_prefix("duplicate field `") {
            return of_field("occurs twice", rest);
        }
        // serde_html_form's words for it.
        if message == "unsupported value" {
            return Self::invalid("occurs twice");
        }
        // The first part of the message may quote the request. The expected type comes last and does not.
        match message.rsplit_once(", expected ") {
            Some((_, expected)) => Self::invalid(&format!("must be {}", json_type_name(expected))),
            None => Self::invalid("has the wrong type or form"),
        }
    }
}

/// Translates serde's name of the expected type into JSON terms.
fn json_type_name(expected: &str) -> &str {
    match expected {
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        "a map" => "an object",
        "a sequence" => "an array",
        "a borrowed string" | "a character" | "string or map" | "variant identifier" => "a string",
        "unit" => "null",
        expected if expected.starts_with("struct ") => "an object",
        expected if expected.starts_with("enum ") => "a string",
        expected => expected,
    }
}

pub(super) fn without_position(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(message, _)| message)
}

/// The innermost key of the path at which serde failed.
#[must_use]
pub fn last_key(path: &serde_path_to_error::Path) -> Option<&str> {
    let mut keys = path.iter().filter_map(|segment| match segment {
        serde_path_to_error::Segment::Map { key } => Some(key.as_str()),
        _ => None,
    });
    keys.next_back()
}
