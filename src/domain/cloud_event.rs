//! The published form of an event: a CloudEvent 1.0 in JSON, the same in streams and over HTTP.
//!
//! Its text depends on nothing but the stored row and the source, which never changes for a database. So an entry of
//! a stream can be compared with the outbox byte for byte.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use super::event::EventType;
use super::ids::{EventId, Partition, WorkspaceId};
use super::time::Timestamp;

/// The version of the CloudEvents specification.
const SPEC_VERSION: &str = "1.0";
const JSON: &str = "application/json";

/// Where events come from: a URI, the same for all events of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSource(String);

impl EventSource {
    const MAX_LEN: usize = 256;

    /// None if it is not a URI of 1 to 256 visible ASCII characters.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(':')?;
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let is_rest = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte);
        (is_scheme && !rest.is_empty() && rest.bytes().all(is_rest) && text.len() <= Self::MAX_LEN)
            .then(|| Self(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for EventSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).ok_or_else(|| de::Error::custom("must be a URI of at most 256 characters"))
    }
}

/// The type of a stored or published event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyEventType {
    Known(EventType),
    /// Only a newer version of the server knows this type.
    Newer(String),
}

impl AnyEventType {
    #[must_use]
    pub fn from_stored(name: &str) -> Self {
        let known = EventType::ALL.iter().copied().find(|event_type| event_type.as_str() == name);
        known.map_or_else(|| Self::Newer(name.to_owned()), Self::Known)
    }

    #[must_use]
    pub const fn known(&self) -> Option<EventType> {
        match self {
            Self::Known(event_type) => Some(*event_type),
            Self::Newer(_) => None,
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(event_type) => event_type.as_str(),
            Self::Newer(name) => name,
        }
    }
}

impl From<EventType> for AnyEventType {
    fn from(event_type: EventType) -> Self {
        Self::Known(event_type)
    }
}

impl PartialEq<EventType> for AnyEventType {
    fn eq(&self, other: &EventType) -> bool {
        self.known() == Some(*other)
    }
}

impl Serialize for AnyEventType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for AnyEventType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_stored(&String::deserialize(deserializer)?))
    }
}

/// An event as it is stored, with its numbers in the partition and in the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    pub event_id: EventId,
    pub event_type: AnyEventType,
    pub schema_version: i16,
    pub partition: Partition,
    pub seq: i64,
    pub workspace_id: WorkspaceId,
    pub workspace_seq: i64,
    pub recorded_at: Timestamp,
    pub correlation_id: String,
    pub causation_id: Uuid,
    pub traceparent: Option<String>,
    /// JSON of the event's data, with the metadata of its command.
    pub data: String,
}

/// A number of an event. In CloudEvents an integer has 32 bits, so it is a text of 19 digits, whose order as text is
/// the order of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(pub i64);

impl Sequence {
    const DIGITS: usize = 19;
}

impl Serialize for Sequence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:0width$}", self.0, width = Self::DIGITS))
    }
}

impl<'de> Deserialize<'de> for Sequence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_digits = text.len() == Self::DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = is_digits.then(|| text.parse().ok()).flatten();
        number.map(Self).ok_or_else(|| de::Error::custom("must be a number of 19 digits"))
    }
}

impl PartialSchema for Sequence {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .pattern(Some("^[0-9]{19}$"))
            .description(Some("A number of 19 digits, so that its order as text is its order as a number."))
            .examples([serde_json::json!("0000000000000000042")])
            .into()
    }
}

impl ToSchema for Sequence {}

/// An event as consumers get it: a CloudEvent 1.0. The attributes after `dataschema` are extensions.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Event)]
pub struct CloudEvent {
    /// The version of CloudEvents: `1.0`.
    pub specversion: String,
    /// The id of the event. A consumer that has seen it must ignore the event.
    pub id: EventId,
    /// Where events come from: `events.source` of the configuration, the same for all events of a database.
    pub source: String,
    #[schema(value_type = EventType)]
    pub r#type: AnyEventType,
    /// The workspace.
    pub subject: WorkspaceId,
    /// When the event was recorded. When credits were used is `data.occurred_at`.
    pub time: Timestamp,
    pub datacontenttype: String,
    /// Names the schema of `data`: `urn:visionscope:event:<type>:<version>`.
    pub dataschema: String,
    pub partition: Partition,
    /// Gap-free within the partition, from 1.
    pub sequence: Sequence,
    /// The same as `subject`.
    pub workspaceid: WorkspaceId,
    /// Gap-free within the workspace, from 1: a consumer that misses a number missed an event.
    pub workspaceseq: Sequence,
    /// The `X-Correlation-Id` of the request that caused it.
    pub correlationid: String,
    /// The id of the command that caused it.
    pub causationid: Uuid,
    /// W3C Trace Context of the request that caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The version of the schema of `data`.
    pub schemaversion: i16,
    /// By the type of the event.
    #[schema(value_type = Object)]
    pub data: Box<RawValue>,
}

/// The name of the schema of an event's data.
#[must_use]
pub fn data_schema(event_type: &str, version: i16) -> String {
    format!("urn:visionscope:event:{event_type}:{version}")
}

impl EventRecord {
    /// The published form. An error if the data is not JSON.
    pub fn to_cloud_event(&self, source: &EventSource) -> serde_json::Result<CloudEvent> {
        Ok(CloudEvent {
            specversion: SPEC_VERSION.to_owned(),
            id: self.event_id,
            source: source.as_str().to_owned(),
            r#type: self.event_type.clone(),
            subject: self.workspace_id,
            time: self.recorded_at,
            datacontenttype: JSON.to_owned(),
            dataschema: data_schema(self.event_type.as_str(), self.schema_version),
            partition: self.partition,
            sequence: Sequence(self.seq),
            workspaceid: self.workspace_id,
            workspaceseq: Sequence(self.workspace_seq),
            correlationid: self.correlation_id.clone(),
            causationid: self.causation_id,
            traceparent: self.traceparent.clone(),
            schemaversion: self.schema_version,
            data: RawValue::from_string(self.data.clone())?,
        })
    }

    /// The text of the published form.
    pub fn to_cloud_event_json(&self, source: &EventSource) -> serde_json::Result<String> {
        serde_json::to_string(&self.to_cloud_event(source)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_uri() {
        for good in
            ["urn:visionscope:billing", "https://billing.example.com/eu", "a:b", &format!("a:{}", "b".repeat(254))]
        {
            assert_eq!(EventSource::new(good).unwrap().as_str(), good);
        }
        for bad in
            ["", "billing", ":a", "a:", "1a:b", "a b:c", "a:b c", "a:\"", "a:\u{e9}", &format!("a:{}", "b".repeat(255))]
        {
            assert_eq!(EventSource::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_sequence_is_a_text_whose_order_is_that_of_the_numbers() {
        let text = |number| serde_json::to_string(&Sequence(number)).unwrap();
        assert_eq!(text(42), "\"0000000000000000042\"");
        assert_eq!(text(i64::MAX), format!("\"{}\"", i64::MAX));
        assert!(text(9) < text(10));
        assert_eq!(serde_json::from_str::<Sequence>(&text(42)).unwrap(), Sequence(42));
        for bad in ["\"42\"", "42", "\"+000000000000000042\"", "\"9999999999999999999\""] {
            assert!(serde_json::from_str::<Sequence>(bad).is_err(), "{bad}");
        }
    }
}
