//! The OpenAPI document that is kept in the repository is the one the routes give.
//!
//! `UPDATE_OPENAPI=1 cargo test --test openapi` writes it anew.

#![allow(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use visionscope_billing::http::auth::Scope;
use visionscope_billing::http::openapi::{openapi_document, to_json};
use visionscope_billing::http::problem::Code;

fn document() -> Value {
    serde_json::from_str(&to_json(&openapi_document())).unwrap()
}

/// Every operation with its path and method.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            all.push((path.clone(), method.clone(), operation.clone()));
        }
    }
    all
}

#[test]
fn the_kept_document_is_the_one_the_routes_give() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    let current = to_json(&openapi_document());
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == current, "openapi/openapi.json is not current: run UPDATE_OPENAPI=1 cargo test --test openapi");
}

/// A handler that is not registered compiles without a warning.
#[test]
fn every_handler_is_served() {
    let document = document();
    let served: BTreeSet<String> = operations(&document)
        .into_iter()
        .map(|(.., operation)| operation["operationId"].as_str().unwrap().to_owned())
        .collect();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/http/routes");
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let routes =
            ["\n#[get(", "\n#[post(", "\n#[put(", "\n#[patch("].iter().flat_map(|start| text.split(start).skip(1));
        for route in routes {
            let (_, declared) = route.split_once("pub async fn ").unwrap();
            let name = declared.split('(').next().unwrap();
            assert!(served.contains(name), "{name} is not registered in src/http/routes/mod.rs");
        }
    }
}

/// What a reference refers to, or the value itself.
fn resolve<'d>(document: &'d Value, value: &'d Value) -> &'d Value {
    let pointer = value.get("$ref").map(|reference| reference.as_str().unwrap().trim_start_matches('#'));
    pointer.map_or(value, |pointer| document.pointer(pointer).unwrap())
}

#[test]
fn every_operation_is_told_completely() {
    let document = document();
    let tags: BTreeSet<_> =
        document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].clone().to_string()).collect();
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let name = format!("{method} {path}");
        let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
        assert!(ids.insert(id.clone()) && id.contains('_'), "{name}: operationId {id:?}");
        assert!(!operation["summary"].as_str().unwrap_or_default().is_empty(), "{name}: summary");
        assert!(!operation["description"].as_str().unwrap_or_default().is_empty(), "{name}: description");
        let named = operation["tags"].as_array().unwrap();
        assert!(named.len() == 1 && tags.contains(&named[0].to_string()), "{name}: tags {named:?}");
        assert!(operation["security"].is_array(), "{name}: security");
        for (status, response) in operation["responses"].as_object().unwrap() {
            let response = resolve(&document, response);
            let content = response["content"].as_object().unwrap();
            let media_type = if status.starts_with('2') { None } else { Some("application/problem+json") };
            for (found, body) in content {
                assert!(media_type.is_none_or(|wanted| wanted == found), "{name} {status}: {found}");
                assert!(body.get("example").or(body.get("examples")).is_some(), "{name} {status}: example");
            }
        }
        if let Some(body) = operation.get("requestBody") {
            let json = &body["content"]["application/json"];
            assert!(json.get("example").or(json.get("examples")).is_some(), "{name}: request example");
        }
    }
    assert_eq!(ids.len(), 76);
}

/// What the server sends has no nulls: an optional field is absent.
#[test]
fn only_requests_may_have_nulls() {
    let document = document();
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let is_request =
            ["DeductBy", "HoldBy", "JobHoldBy"].iter().any(|by| name.starts_with(by)) || name.ends_with("Request");
        assert!(is_request || !schema.to_string().contains("\"null\""), "{name}: {schema}");
    }
    for (path, method, operation) in operations(&document) {
        let responses = operation["responses"].to_string();
        assert!(!responses.contains("\"null\"") && !responses.contains(":null"), "{method} {path}");
    }
}

#[test]
fn no_internal_note_is_left_in_the_document() {
    let text = document().to_string();
    assert!(!text.contains("x-problems") && !text.contains("x-scope"));
    for scope in Scope::ALL {
        assert!(text.contains(&format!("Scope: `{}`.", scope.as_str())), "{} is required nowhere", scope.as_str());
    }
}

#[test]
fn every_code_but_those_of_the_outermost_layer_is_documented_with_its_operations() {
    let text = document().to_string();
    // These answer requests that belong to no operation.
    let of_no_operation = [Code::MalformedRequest, Code::OriginNotAllowed, Code::MethodNotAllowed];
    for code in Code::ALL {
        let is_told = text.contains(&format!("urn:visionscope:problem:{}\"", code.as_str()));
        assert_eq!(is_told, !of_no_operation.contains(code), "{}", code.as_str());
    }
}
