//! Usage logs: what was consumed, by whom, for how much.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use super::credits::{Credits, Quantity};
use super::ids::{CommandId, WorkspaceId};
use super::metadata::Metadata;
use super::text::{FeatureCode, FieldCode, FieldError, UserId};
use super::time::Timestamp;

/// One accepted deduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageLog {
    pub workspace_id: WorkspaceId,
    /// Gap-free within the workspace, from 1.
    pub seq: i64,
    pub command_id: CommandId,
    pub feature_code: FeatureCode,
    pub user_id: Option<UserId>,
    pub credits: Credits,
    pub quantity: Option<Quantity>,
    pub occurred_at: Timestamp,
    pub recorded_at: Timestamp,
    pub metadata: Option<Metadata>,
}

impl UsageLog {
    #[must_use]
    pub const fn id(&self) -> UsageId {
        UsageId { recorded_at: self.recorded_at, seq: self.seq }
    }
}

/// Identifies a usage log of a workspace. Its text is opaque to callers. It is the base64url form of the log's key,
/// so the row is found without another index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UsageId {
    pub recorded_at: Timestamp,
    pub seq: i64,
}

impl UsageId {
    /// The length of its text.
    const TEXT_LEN: usize = 22;
}

impl fmt::Display for UsageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [self.recorded_at.micros().to_be_bytes(), self.seq.to_be_bytes()].concat();
        f.write_str(&URL_SAFE_NO_PAD.encode(key))
    }
}

impl FromStr for UsageId {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let decode = || {
            let key = (text.len() == Self::TEXT_LEN).then(|| URL_SAFE_NO_PAD.decode(text).ok())??;
            let ([at, seq], []) = key.as_chunks::<8>() else { return None };
            let id =
                Self { recorded_at: Timestamp::from_micros(i64::from_be_bytes(*at)), seq: i64::from_be_bytes(*seq) };
            // One id has one text.
            (id.seq >= 1 && id.to_string() == text).then_some(id)
        };
        decode().ok_or_else(|| FieldError::new(FieldCode::Invalid, "is not the id of a usage log"))
    }
}

impl Serialize for UsageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UsageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl PartialSchema for UsageId {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .description(Some("Identifies a usage log of its workspace. Opaque: send it back as you received it."))
            .min_length(Some(Self::TEXT_LEN))
            .max_length(Some(Self::TEXT_LEN))
            .pattern(Some("^[A-Za-z0-9_-]+$"))
            .into()
    }
}

impl ToSchema for UsageId {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_and_has_exactly_one_text() {
        for (micros, seq) in [(0, 1), (1_800_000_000_000_001, 7), (i64::MAX, i64::MAX), (i64::MIN, 1)] {
            let id = UsageId { recorded_at: Timestamp::from_micros(micros), seq };
            assert_eq!(id.to_string().parse::<UsageId>().unwrap(), id);
        }
        let zero = URL_SAFE_NO_PAD.encode([0; 16]);
        let beyond = URL_SAFE_NO_PAD.encode([i64::MAX.to_be_bytes(), 1_i64.to_be_bytes()].concat());
        let other_end = format!("{}B", &"AAAAAAAAAAAAAAAAAAAAAQ"[..21]);
        for text in ["", "1", "AAAAAAAAAAAAAAAAAAAAA", &zero, &beyond, &other_end, "!AAAAAAAAAAAAAAAAAAAAQ"] {
            assert!(text.parse::<UsageId>().is_err(), "{text}");
        }
    }
}
