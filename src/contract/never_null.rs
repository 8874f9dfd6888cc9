//! Optional fields of what the server sends: absent, and never null.
//!
//! utoipa describes an optional field as one that may be null, because a request may send it so. What the server sends
//! has no nulls, and a generated client should not have to expect them.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Schema, SchemaType, Type};

/// Takes null out of the fields of a schema, and of the schemas within.
pub fn never_null(schema: &mut RefOr<Schema>) {
    let RefOr::T(schema) = schema else { return };
    match schema {
        Schema::Object(object) => {
            for (_, field) in &mut object.properties {
                take_null_out(field);
                never_null(field);
            }
        }
        Schema::OneOf(one_of) => one_of.items.iter_mut().for_each(never_null),
        Schema::AllOf(all_of) => all_of.items.iter_mut().for_each(never_null),
        Schema::AnyOf(any_of) => any_of.items.iter_mut().for_each(never_null),
        _ => {}
    }
}

fn without_null(schema_type: &mut SchemaType) {
    if let SchemaType::Array(types) = schema_type {
        types.retain(|kind| *kind != Type::Null);
        if let [only] = types.as_slice() {
            *schema_type = SchemaType::Type(only.clone());
        }
    }
}

fn take_null_out(field: &mut RefOr<Schema>) {
    let other = match field {
        RefOr::T(Schema::Object(object)) => {
            without_null(&mut object.schema_type);
            None
        }
        RefOr::T(Schema::Array(array)) => {
            without_null(&mut array.schema_type);
            None
        }
        RefOr::T(Schema::OneOf(one_of)) => {
            one_of.items.retain(|item| !is_null(item));
            match one_of.items.as_slice() {
                [RefOr::Ref(reference)] => {
                    let mut reference = reference.clone();
                    reference.description = one_of.description.take().unwrap_or(reference.description);
                    Some(RefOr::Ref(reference))
                }
                [only] => Some(only.clone()),
                _ => None,
            }
        }
        RefOr::T(_) | RefOr::Ref(_) => None,
    };
    if let Some(other) = other {
        *field = other;
    }
}

fn is_null(schema: &RefOr<Schema>) -> bool {
    matches!(schema, RefOr::T(Schema::Object(object)) if object.schema_type == SchemaType::Type(Type::Null))
}
