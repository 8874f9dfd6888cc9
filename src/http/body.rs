//! Reads a request body with bounds on size, time and depth. The result is a JSON object of known fields, or a
//! problem that names the error.
//!
//! A body is parsed twice. The first pass needs no types. It refuses malformed JSON, nesting that is too deep and
//! duplicate keys, and it hashes the canonical form with SHA-256: no white space, sorted keys, strings escaped in one
//! way. The second pass deserializes into the wire type. An error in it concerns a field, and is answered with 422 and
//! the JSON pointers of all wrong fields ([`field_errors`]).

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;

use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use actix_web::{HttpRequest, web};
use futures::StreamExt as _;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, IntoDeserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use utoipa::PartialSchema;

use self::field_errors::without_position;
use self::pairs::{Pairs, Text};
use super::connection::Exchange;
use super::problem::{Code, Problem};
use super::state::AppState;
use crate::domain::text::{FieldCode, FieldError};

pub(super) mod field_errors;
mod pairs;

/// The largest body. The largest useful one, a workspace with 200 feature overrides, has 30 KiB.
pub const MAX_BODY_LEN: usize = 64 * 1024;
/// The maximum nesting of arrays and objects. The deepest wire type has three levels.
pub const MAX_DEPTH: usize = 16;

/// A parsed body.
#[derive(Debug)]
pub struct Body<T> {
    pub value: T,
    /// SHA-256 over the command's name, a zero byte and the canonical body.
    pub fingerprint: [u8; 32],
}

/// Reads the body, which must be a JSON object. If `may_be_empty`, an empty body means `{}`, with or without a
/// content type.
pub async fn read<T: DeserializeOwned + PartialSchema>(
    request: &HttpRequest,
    payload: &mut web::Payload,
    command_name: &str,
    may_be_empty: bool,
) -> Result<Body<T>, Problem> {
    let has_no_content_type = may_be_empty && !request.headers().contains_key(CONTENT_TYPE);
    if !has_no_content_type {
        check_headers(request)?;
    }
    // actix has no timeout for a body.
    let state = AppState::of(request);
    let bytes = state.within(state.body_timeout, collect(payload)).await;
    let bytes = bytes.ok_or_else(|| Problem::plain(Code::RequestTimeout))??;
    if let Some(exchange) = Exchange::of(request) {
        exchange.body_was_read();
    }
    if may_be_empty && bytes.is_empty() {
        return parse(b"{}", command_name);
    }
    if has_no_content_type {
        check_headers(request)?;
    }
    parse(&bytes, command_name)
}

fn check_headers(request: &HttpRequest) -> Result<(), Problem> {
    let headers = request.headers();
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Problem::plain(Code::UnsupportedContentEncoding));
    }
    let mut media_types = headers.get_all(CONTENT_TYPE);
    let is_plain_json = media_types.next().and_then(|value| value.to_str().ok()).is_some_and(is_json);
    if !is_plain_json || media_types.next().is_some() {
        return Err(Problem::plain(Code::UnsupportedMediaType));
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > MAX_BODY_LEN) {
        return Err(Problem::plain(Code::BodyTooLarge));
    }
    Ok(())
}

/// Whether it is `application/json` without parameters, except for a charset of UTF-8.
fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    media_type.eq_ignore_ascii_case("application/json")
        && parts.all(|parameter| {
            parameter.split_once('=').is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
            })
        })
}

async fn collect(payload: &mut web::Payload) -> Result<web::Bytes, Problem> {
    let mut first = web::Bytes::new();
    let mut all: Vec<u8> = Vec::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| Problem::new(Code::MalformedRequest, "the body is incomplete"))?;
        if first.len() + all.len() + chunk.len() > MAX_BODY_LEN {
            return Err(Problem::plain(Code::BodyTooLarge));
        }
        // Nearly every body arrives in one chunk, which is not copied.
        if first.is_empty() && all.is_empty() {
            first = chunk;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&chunk);
        }
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

/// Reads a whole number of a range.
pub fn whole<'de, D: Deserializer<'de>, T: TryFrom<i64>>(
    deserializer: D,
    range: &RangeInclusive<i64>,
) -> Result<T, D::Error> {
    let sent = Some(i64::deserialize(deserializer)?).filter(|sent| range.contains(sent));
    let refused = || {
        let detail = format!("must be a whole number from {} to {}", range.start(), range.end());
        refuse(FieldError::new(FieldCode::Invalid, detail))
    };
    sent.and_then(|sent| T::try_from(sent).ok()).ok_or_else(refused)
}

/// Reads an enum whose values are strings. Without it, serde also accepts the form of a variant with data,
/// `{"period_end": null}`.
pub fn string_enum<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

/// Reads a struct from an object only. Without it, serde also accepts an array of its fields in order.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct ObjectVisitor<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_map(ObjectVisitor(PhantomData))
}

/// Parses a whole body.
pub fn parse<T: DeserializeOwned + PartialSchema>(bytes: &[u8], command_name: &str) -> Result<Body<T>, Problem> {
    let malformed = |detail: String| Problem::new(Code::MalformedJson, detail);
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("the body is not UTF-8".to_owned()))?;
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| malformed(bounded(&error.to_string())))?;
    let mut canonical = Vec::with_capacity(text.len());
    canonicalize(raw.get(), MAX_DEPTH, &mut canonical).map_err(malformed)?;
    if !raw.get().starts_with('{') {
        return Err(Problem::field(Code::ObjectRequired, "", "must be a JSON object"));
    }
    let mut hash = Sha256::new();
    hash.update(command_name.as_bytes());
    hash.update([0]);
    hash.update(&canonical);
    match serde_json::from_str(text) {
        Ok(value) => Ok(Body { value, fingerprint: hash.finalize().into() }),
        Err(_) => Err(Problem::fields(field_errors::all::<T>(raw)?)),
    }
}

/// Writes the canonical form of a value that is known to be JSON.
fn canonicalize(raw: &str, depth: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let first = raw.as_bytes().first().copied().unwrap_or_default();
    if matches!(first, b'{' | b'[') && depth == 0 {
        return Err(format!("arrays and objects are nested deeper than {MAX_DEPTH}"));
    }
    // The position would be relative to this value and not to the body.
    let fail = |error: serde_json::Error| bounded(without_position(&error.to_string()));
    match first {
        b'{' => {
            let Pairs(mut pairs) = serde_json::from_str(raw).map_err(fail)?;
            pairs.sort_by(|one, other| one.0.cmp(&other.0));
            if let Some(duplicate) = pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(bounded(&format!("the key {:?} occurs twice", duplicate[0].0)));
            }
            out.push(b'{');
            for (index, (key, value)) in pairs.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_text(key, out).map_err(fail)?;
                out.push(b':');
                canonicalize(value.get(), depth - 1, out)?;
            }
            out.push(b'}');
        }
        b'[' => {
            let values: Vec<&RawValue> = serde_json::from_str(raw).map_err(fail)?;
            out.push(b'[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                canonicalize(value.get(), depth - 1, out)?;
            }
            out.push(b']');
        }
        b'"' => {
            let Text(text) = serde_json::from_str(raw).map_err(fail)?;
            write_text(&text, out).map_err(fail)?;
        }
        _ => out.extend_from_slice(raw.as_bytes()),
    }
    Ok(())
}

fn write_text(text: &str, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    serde_json::to_writer(out, text)
}

/// Shortens a parser message, which may quote the request.
fn bounded(message: &str) -> String {
    message.chars().take(200).collect()
}

/// Converts the error of a domain type into a serde error, for fields of wire types.
pub fn refuse<E: de::Error>(error: impl fmt::Display) -> E {
    E::custom(error)
}

#[cfg(test)]
mod tests {
    use utoipa::ToSchema;

    use super::*;
    use crate::domain::credits::PositiveCredits;
    use crate::domain::metadata::Metadata;
    use crate::domain::text::FeatureCode;

    #[derive(Debug, Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    #[schema(no_recursion)]
    struct Sample {
        feature_code: FeatureCode,
        credits: Option<PositiveCredits>,
        metadata: Option<Metadata>,
        items: Option<Vec<Sample>>,
    }

    fn problem(body: &str) -> (Code, serde_json::Value) {
        let problem = parse::<Sample>(body.as_bytes(), "Sample").unwrap_err();
        (problem.code, serde_json::from_str(&problem.to_json()).unwrap())
    }

    #[test]
    fn malformed_json_is_refused() {
        let deep = format!(r#"{{"feature_code":{}1{}}}"#, "[".repeat(16), "]".repeat(16));
        let very_deep = format!(r#"{{"feature_code":{}"#, "[".repeat(60_000));
        let cases = [
            "",
            " ",
            "{",
            r#"{"feature_code":"a""#,
            r#"{"feature_code":"a"} x"#,
            r#"{"feature_code":"a","feature_code":"b"}"#,
            r#"{"feature_code":"a","\u0066eature_code":"b"}"#,
            r#"{"metadata":{"a":"1","a":"2"}}"#,
            r#"{"feature_code":"\ud800"}"#,
            "{'feature_code':1}",
            "{\"feature_code\":NaN}",
            "\u{feff}{}",
            deep.as_str(),
            very_deep.as_str(),
        ];
        for body in cases {
            assert_eq!(problem(body).0, Code::MalformedJson, "{}", bounded(body));
        }
        assert_eq!(parse::<Sample>(b"{\"feature_code\":\"\xff\"}", "Sample").unwrap_err().code, Code::MalformedJson);
        let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(parse::<Sample>(&utf16, "Sample").unwrap_err().code, Code::MalformedJson);
    }

    #[test]
    fn sixteen_levels_of_nesting_are_allowed() {
        let body = format!(r#"{{"feature_code":{}1{}}}"#, "[".repeat(15), "]".repeat(15));
        assert_eq!(problem(&body).0, Code::InvalidField);
    }

    #[test]
    fn a_body_that_is_not_an_object_is_refused() {
        for body in ["[]", "1", "\"a\"", "null", "true", " [1] "] {
            let (code, json) = problem(body);
            assert_eq!(code, Code::ObjectRequired, "{body}");
            assert_eq!(json["errors"][0]["pointer"], "");
        }
    }

    #[test]
    fn an_invalid_field_is_named_by_a_json_pointer() {
        let cases = [
            (r#"{"feature_code":1}"#, Code::InvalidField, "/feature_code"),
            (r#"{"feature_code":"A"}"#, Code::InvalidText, "/feature_code"),
            (r#"{"feature_code":"a","credits":0}"#, Code::AmountOutOfRange, "/credits"),
            (r#"{"feature_code":"a","credits":"-1"}"#, Code::AmountOutOfRange, "/credits"),
            (r#"{"feature_code":"a","credits":"1.0000001"}"#, Code::InvalidField, "/credits"),
            (r#"{"feature_code":"a","credits":1.5}"#, Code::InvalidField, "/credits"),
            (r#"{"feature_code":"a","credits":1e3}"#, Code::InvalidField, "/credits"),
            (r#"{"feature_code":"a","credits":1e999}"#, Code::InvalidField, "/credits"),
            (r#"{"feature_code":"a","credits":"1e3"}"#, Code::InvalidField, "/credits"),
            (r#"{"feature_code":"a","credits":true}"#, Code::InvalidField, "/credits"),
            (r#"{"feature_code":"a","credits":1000000000001}"#, Code::AmountOutOfRange, "/credits"),
            (r#"{"feature_code":"a","credits":99999999999999999999999}"#, Code::AmountOutOfRange, "/credits"),
            (r#"{"feature_code":"a","metadata":{"k":"\u0000"}}"#, Code::InvalidText, "/metadata"),
            (r#"{"feature_code":"a","metadata":{"k":1}}"#, Code::InvalidField, "/metadata/k"),
            (r#"{"feature_code":"a","credits":-0}"#, Code::AmountOutOfRange, "/credits"),
            (r#"{"feature_code":"a","x`, expected `y":1}"#, Code::UnknownField, "/x`, expected `y"),
            (r#"{"feature_code":"a","x/~y":1}"#, Code::UnknownField, "/x~1~0y"),
            (r#"{"feature_code":"a","items":[{"feature_code":"b","z":1}]}"#, Code::UnknownField, "/items/0/z"),
            (r#"{"feature_code":"a","items":[{}]}"#, Code::InvalidField, "/items/0/feature_code"),
            (r"{}", Code::InvalidField, "/feature_code"),
        ];
        for (body, code, pointer) in cases {
            let (found, json) = problem(body);
            assert_eq!((found, json["errors"][0]["pointer"].as_str().unwrap()), (code, pointer), "{body}: {json}");
        }
    }

    #[test]
    fn all_wrong_fields_are_named_in_the_order_of_the_body() {
        let pointers = |body: &str| {
            let (_, json) = problem(body);
            let errors = json["errors"].as_array().unwrap().clone();
            errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let cases: [(&str, &[&str]); 6] = [
            (
                r#"{"z":1,"credits":0,"metadata":{"k":1,"l":2},"items":5}"#,
                &["/z", "/credits", "/metadata/k", "/metadata/l", "/items", "/feature_code"],
            ),
            (
                r#"{"items":[{"feature_code":"A","x":1},{},{"credits":0},7,{"feature_code":"a","y":1}]}"#,
                &[
                    "/items/0/feature_code",
                    "/items/0/x",
                    "/items/1/feature_code",
                    "/items/2/credits",
                    "/items/2/feature_code",
                    "/items/3",
                    "/items/4/y",
                    "/feature_code",
                ],
            ),
            (r#"{"credits":1e999,"feature_code":1}"#, &["/credits", "/feature_code"]),
            (r#"{"feature_code":1,"credits":1e999}"#, &["/feature_code", "/credits"]),
            (r#"{"feature_code":"a","a/b":1,"c~":2}"#, &["/a~1b", "/c~0"]),
            (
                r#"{"feature_code":"a","items":[{"feature_code":"a","items":[{"q":1},{"r":2}]}]}"#,
                &[
                    "/items/0/items/0/q",
                    "/items/0/items/0/feature_code",
                    "/items/0/items/1/r",
                    "/items/0/items/1/feature_code",
                ],
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(pointers(body), expected, "{body}");
        }
        let (code, json) = problem(r#"{"feature_code":"A","credits":0,"x":1}"#);
        assert_eq!(
            (code, json["code"].as_str(), json["errors"].as_array().unwrap().len()),
            (Code::InvalidText, Some("invalid-text"), 3)
        );
        let many: Vec<_> = (0..40).map(|n| format!("\"x{n}\":{n}")).collect();
        assert_eq!(pointers(&format!("{{{}}}", many.join(","))).len(), 20);
    }

    #[test]
    fn a_wrong_type_is_described_in_json_terms() {
        let cases = [
            (r#"{"feature_code":{}}"#, "must be a string"),
            (r#"{"feature_code":"a","metadata":[]}"#, "must be an object"),
            (r#"{"feature_code":"a","items":{}}"#, "must be an array"),
            (r#"{"feature_code":"a","items":["x, expected i64"]}"#, "must be an object"),
            (r#"{"feature_code":"a","credits":{}}"#, "must be a decimal string or an integer"),
        ];
        for (body, detail) in cases {
            assert_eq!(problem(body).1["errors"][0]["detail"], detail, "{body}");
        }
    }

    #[test]
    fn the_fingerprint_depends_only_on_the_canonical_body_and_the_command() {
        let of = |body: &str, name: &str| parse::<Sample>(body.as_bytes(), name).unwrap().fingerprint;
        let one = of(r#"{"feature_code":"a","credits":"1"}"#, "X");
        assert_eq!(one, of(" { \"credits\" : \"\\u0031\",\n\"feature_code\":\"a\" } ", "X"));
        assert_ne!(one, of(r#"{"feature_code":"a","credits":"1"}"#, "Y"));
        assert_ne!(one, of(r#"{"feature_code":"a","credits":"2"}"#, "X"));
        assert_ne!(one, of(r#"{"feature_code":"a"}"#, "X"));
    }

    #[test]
    fn only_plain_json_media_types_are_accepted() {
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=\"UTF-8\""] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["", "text/json", "application/json5", "application/json; charset=latin1", "application/json; x=y"] {
            assert!(!is_json(bad), "{bad}");
        }
    }

    #[test]
    fn a_detail_never_quotes_a_whole_body() {
        let (_, json) = problem(&format!(r#"{{"feature_code":"a","credits":["{}"]}}"#, "x".repeat(10_000)));
        assert!(json["detail"].as_str().unwrap().len() < 1000);
        let (_, json) = problem(&format!(r#"{{"feature_code":"a","{}":1}}"#, "x".repeat(10_000)));
        assert_eq!(json["code"], "unknown-field");
    }
}
