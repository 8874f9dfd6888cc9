//! JSON objects of callers that this server keeps and gives back, and never looks into.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::body::refuse;
use crate::domain::text::{FieldCode, FieldError};

/// A JSON object of at most so many bytes.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct JsonObject<const MAX_BYTES: usize>(Box<RawValue>);

impl<const MAX_BYTES: usize> JsonObject<MAX_BYTES> {
    /// One that was stored. None if it is no JSON.
    #[must_use]
    pub fn from_stored(text: String) -> Option<Self> {
        RawValue::from_string(text).ok().map(Self)
    }

    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }

    #[must_use]
    pub fn into_text(self) -> String {
        <Box<str>>::from(self.0).into_string()
    }
}

impl<const MAX_BYTES: usize> Default for JsonObject<MAX_BYTES> {
    fn default() -> Self {
        Self(RawValue::from_string("{}".to_owned()).expect("it is JSON"))
    }
}

impl<'de, const MAX_BYTES: usize> Deserialize<'de> for JsonObject<MAX_BYTES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        if raw.get().starts_with('{') && raw.get().len() <= MAX_BYTES {
            return Ok(Self(raw));
        }
        Err(refuse(FieldError::new(FieldCode::Invalid, format!("must be an object of at most {MAX_BYTES} bytes"))))
    }
}
