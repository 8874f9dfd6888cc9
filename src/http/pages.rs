//! Pages: cursors and limits.
//!
//! A cursor is opaque to callers: base64url of a kind and the numbers of a position. It contains no workspace and no
//! filter, so it gives no access: a caller must be allowed to read the list anyway.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::ids::{PARTITIONS, Partition};
use crate::domain::text::{FieldCode, FieldError};
use crate::domain::time::Timestamp;
use crate::store::queries::{EventPosition, HistoryPosition, Order};

/// Maximum number of rows of a page.
pub const MAX_LIMIT: u32 = 200;
/// Number of rows of a page by default.
pub const DEFAULT_LIMIT: u32 = 50;
/// The longest cursor: a kind and sixteen numbers of eight bytes, in base64.
const MAX_CURSOR_LEN: usize = 172;

/// Maximum number of rows of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(u32);

impl Default for Limit {
    fn default() -> Self {
        Self(DEFAULT_LIMIT)
    }
}

impl Limit {
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// One row more than the page, to find out whether there are more.
    #[must_use]
    pub const fn plus_one(self) -> u32 {
        self.0 + 1
    }

    /// Removes the extra row; returns whether there was one.
    pub fn truncate<T>(self, rows: &mut Vec<T>) -> bool {
        let limit = usize::try_from(self.0).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        has_more
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The parser alone would accept a sign and leading zeros.
        let is_plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
        let limit = text.parse().ok().filter(|_| is_plain).filter(|limit| (1..=MAX_LIMIT).contains(limit));
        limit.map(Self).ok_or_else(|| {
            let detail = format!("must be a whole number from 1 to {MAX_LIMIT}");
            de::Error::custom(FieldError::new(FieldCode::Invalid, detail))
        })
    }
}

impl PartialSchema for Limit {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Integer))
            .minimum(Some(1))
            .maximum(Some(MAX_LIMIT))
            .default(Some(serde_json::json!(DEFAULT_LIMIT)))
            .into()
    }
}

impl ToSchema for Limit {}

/// The order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub enum ListOrder {
    /// The oldest first.
    #[serde(rename = "asc")]
    Ascending,
    /// The newest first.
    #[default]
    #[serde(rename = "desc")]
    Descending,
}

impl From<ListOrder> for Order {
    fn from(order: ListOrder) -> Self {
        match order {
            ListOrder::Ascending => Self::Ascending,
            ListOrder::Descending => Self::Descending,
        }
    }
}

/// The position after which the next page starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// After this usage log, in the order of the list.
    Usage {
        after: HistoryPosition,
    },
    /// After this ledger entry, in the order of the list.
    Ledger {
        after: HistoryPosition,
    },
    EventsOfWorkspace {
        after: i64,
    },
    /// The last `seq` of each partition, in the order of partitions.
    EventsOfAll {
        after: [i64; PARTITIONS as usize],
    },
}

impl Cursor {
    const fn kind(&self) -> u8 {
        match self {
            Self::Usage { .. } => b'u',
            Self::Ledger { .. } => b'l',
            Self::EventsOfWorkspace { .. } => b'w',
            Self::EventsOfAll { .. } => b'a',
        }
    }

    fn encode(&self) -> String {
        let mut bytes = vec![self.kind()];
        match self {
            Self::Usage { after } | Self::Ledger { after } => {
                bytes.extend(after.recorded_at.micros().to_be_bytes());
                bytes.extend(after.seq.to_be_bytes());
            }
            Self::EventsOfWorkspace { after: seq } => bytes.extend(seq.to_be_bytes()),
            Self::EventsOfAll { after } => bytes.extend(after.iter().flat_map(|seq| seq.to_be_bytes())),
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn decode(text: &str) -> Option<Self> {
        if text.len() > MAX_CURSOR_LEN {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (kind, rest) = bytes.split_first()?;
        let (numbers, []) = rest.as_chunks::<8>() else { return None };
        let numbers: Vec<i64> = numbers.iter().map(|bytes| i64::from_be_bytes(*bytes)).collect();
        let cursor = match (kind, numbers.as_slice()) {
            (b'u', [at, seq]) => Self::Usage { after: position(*at, *seq) },
            (b'l', [at, seq]) => Self::Ledger { after: position(*at, *seq) },
            (b'w', [seq]) if *seq >= 0 => Self::EventsOfWorkspace { after: *seq },
            (b'a', all) if all.iter().all(|seq| *seq >= 0) => Self::EventsOfAll { after: all.try_into().ok()? },
            _ => return None,
        };
        // Each position has exactly one text form.
        (cursor.encode() == text).then_some(cursor)
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.encode())
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::decode(&text)
            .ok_or_else(|| de::Error::custom(FieldError::new(FieldCode::Invalid, "is not a cursor of this list")))
    }
}

impl PartialSchema for Cursor {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .description(Some("An opaque position in a list, from an earlier page."))
            .max_length(Some(MAX_CURSOR_LEN))
            .pattern(Some("^[A-Za-z0-9_-]+$"))
            .into()
    }
}

impl ToSchema for Cursor {}

const fn position(micros: i64, seq: i64) -> HistoryPosition {
    HistoryPosition { recorded_at: Timestamp::from_micros(micros), seq }
}

/// The position in each partition of a cursor over all workspaces.
#[must_use]
pub fn positions(after: &[i64; PARTITIONS as usize]) -> Vec<EventPosition> {
    Partition::all().zip(after).map(|(partition, seq)| EventPosition { partition, seq: *seq }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cursor_decodes_to_itself() {
        let mut all = [0; PARTITIONS as usize];
        all[15] = i64::MAX;
        for cursor in [
            Cursor::Usage { after: position(i64::MIN, 1) },
            Cursor::Ledger { after: position(1_800_000_000_000_001, i64::MAX) },
            Cursor::EventsOfWorkspace { after: 0 },
            Cursor::EventsOfAll { after: all },
        ] {
            let text = cursor.encode();
            assert!(text.len() <= MAX_CURSOR_LEN, "{}", text.len());
            assert_eq!(Cursor::decode(&text), Some(cursor));
        }
    }

    #[test]
    fn an_invalid_cursor_is_refused() {
        let negative = URL_SAFE_NO_PAD.encode([&b"w"[..], &(-1_i64).to_be_bytes()].concat());
        let short = URL_SAFE_NO_PAD.encode([&b"a"[..], &[0; 8 * 15]].concat());
        let long = "A".repeat(MAX_CURSOR_LEN + 1);
        for text in ["", "u", "!!!", "dQ", "1", negative.as_str(), short.as_str(), long.as_str()] {
            assert_eq!(Cursor::decode(text), None, "{text}");
        }
    }

    #[test]
    fn a_page_is_truncated_at_its_limit_and_reports_whether_there_are_more_rows() {
        let limit = Limit(2);
        let mut rows = vec![1, 2, 3];
        assert!(limit.truncate(&mut rows));
        assert_eq!(rows, [1, 2]);
        assert!(!limit.truncate(&mut rows));
    }
}
