//! Metadata: a small map of texts that a caller attaches to a command, and that its events carry.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use super::text::{FieldCode, FieldError, check_text};

/// A bounded map of texts: at most 16 entries, keys of at most 64 and values of at most 256
/// characters. The server stores it and gives it back; it never reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Metadata(BTreeMap<String, String>);

impl Metadata {
    pub const MAX_ENTRIES: usize = 16;
    const MAX_KEY_LEN: usize = 64;
    const MAX_VALUE_LEN: usize = 256;

    pub fn new(entries: BTreeMap<String, String>) -> Result<Self, FieldError> {
        if entries.len() > Self::MAX_ENTRIES {
            return Err(FieldError::new(
                FieldCode::Invalid,
                format!("must have at most {} entries", Self::MAX_ENTRIES),
            ));
        }
        for (key, value) in &entries {
            check_text(key, Self::MAX_KEY_LEN)?;
            if !value.is_empty() {
                check_text(value, Self::MAX_VALUE_LEN)?;
            }
        }
        Ok(Self(entries))
    }

    /// A map from a store. It was checked before it was written.
    #[must_use]
    pub fn from_stored(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok().map(Self)
    }

    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_else(|_| "{}".into())
    }

    /// The approximate size in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(key, value)| 2 * size_of::<String>() + key.len() + value.len()).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(BTreeMap::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl PartialSchema for Metadata {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(SchemaType::new(Type::String));
        let key: Schema = text().min_length(Some(1)).max_length(Some(Self::MAX_KEY_LEN)).into();
        let value: Schema = text().max_length(Some(Self::MAX_VALUE_LEN)).into();
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Object))
            .description(Some(
                "A bounded map of texts: at most 16 entries, keys of 1 to 64 and values of at most 256 characters. \
                 The server stores it and gives it back; it never reads it.",
            ))
            .property_names(Some(key))
            .additional_properties(Some(value))
            .max_properties(Some(Self::MAX_ENTRIES))
            .examples([serde_json::json!({"job": "render-881"})])
            .into()
    }
}

impl ToSchema for Metadata {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_bounded_in_entries_and_texts() {
        let map = |n: usize, key: &str, value: &str| (0..n).map(|i| (format!("{key}{i}"), value.to_owned())).collect();
        assert!(Metadata::new(map(16, "k", &"v".repeat(256))).is_ok());
        assert!(Metadata::new(map(1, "k", "")).is_ok());
        assert!(Metadata::new(map(17, "k", "v")).is_err());
        assert!(Metadata::new(map(1, &"k".repeat(64), "v")).is_err());
        assert!(Metadata::new(map(1, "k", &"v".repeat(257))).is_err());
        assert!(Metadata::new(map(1, "k", "a\u{0}")).is_err());
    }
}
