//! Lists: limits, orders and cursors.
//!
//! A cursor names the last row of a page, and the list that the page is of: its workspace, its order and its filters. It
//! is opaque to callers, and gives no access: a caller must be allowed to read the list anyway. A cursor of another list
//! is refused (422). The next page is read from that row on, and the row is left out of it. If the row is not there with
//! the same id, the caller has seen what the database no longer holds, and must start again (410): a backup was restored,
//! or old history was removed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, de};
use sha2::{Digest as _, Sha256};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use super::problem::{Code, Problem};
use crate::domain::text::{FieldCode, FieldError};
use crate::store::queries::Order;

/// Maximum number of rows of a page.
pub const MAX_LIMIT: u32 = 200;
/// Number of rows of a page by default.
pub const DEFAULT_LIMIT: u32 = 50;
/// The longest cursor: two digests and a place, in numbers of eight bytes each, in base64.
const MAX_CURSOR_LEN: usize = 203;
/// The most numbers that a place has: an instant and two codes. One for each partition is less.
const MAX_PLACE: usize = 1 + 2 * CODE_WORDS;
/// How many numbers a code of 64 bytes fills.
pub const CODE_WORDS: usize = 8;

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

    /// The limit as a number of rows in memory.
    #[must_use]
    pub fn rows(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// The first eight bytes of a SHA-256.
type Digest = [u8; 8];

fn digest(value: &impl Serialize) -> Digest {
    let text = serde_json::to_vec(value).expect("ids, texts and numbers are JSON");
    let hash = Sha256::digest(text);
    std::array::from_fn(|n| hash[n])
}

/// A list: its name, its workspace, its order and its filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListKey(Digest);

impl ListKey {
    /// `filters` are all other parameters that decide which rows the list has, and their order.
    pub fn new(name: &str, filters: &impl Serialize) -> Self {
        Self(digest(&(name, filters)))
    }

    /// The cursor of a row: its place in the list, and its id.
    pub fn cursor(self, place: impl Into<Vec<i64>>, row_id: &impl Serialize) -> Cursor {
        Cursor { list: self, place: place.into(), row: digest(row_id) }
    }

    /// Reads a cursor that a caller has sent. It must be of this list.
    pub fn parse<const N: usize>(self, text: &CursorText) -> Result<SeenRow<N>, Problem> {
        let cursor = Cursor::decode(&text.0).filter(|cursor| cursor.list == self);
        let seen = cursor.and_then(|Cursor { place, row, .. }| Some(SeenRow { place: place.try_into().ok()?, row }));
        seen.ok_or_else(|| Problem::parameter(Code::InvalidCursor, "cursor", "is not a cursor of this list"))
    }
}

/// The last row of the page before, which the caller has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenRow<const N: usize> {
    pub place: [i64; N],
    row: Digest,
}

impl<const N: usize> SeenRow<N> {
    pub fn new(place: [i64; N], row_id: &impl Serialize) -> Self {
        Self { place, row: digest(row_id) }
    }

    /// Fails unless the row at this place is the one that the caller has seen.
    pub fn require(&self, place: [i64; N], row_id: &impl Serialize) -> Result<(), Problem> {
        if place == self.place && digest(row_id) == self.row { Ok(()) } else { Err(Problem::plain(Code::CursorGone)) }
    }

    /// Takes the row, which comes first, out of those that were read from it on.
    pub fn take_from<T, I: Serialize>(
        &self,
        rows: &mut Vec<T>,
        place_and_id: impl Fn(&T) -> ([i64; N], I),
    ) -> Result<T, Problem> {
        let (place, id) = rows.first().map(place_and_id).ok_or_else(|| Problem::plain(Code::CursorGone))?;
        self.require(place, &id)?;
        Ok(rows.remove(0))
    }
}

/// The row after which the next page starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    list: ListKey,
    row: Digest,
    place: Vec<i64>,
}

impl Cursor {
    fn encode(&self) -> String {
        let mut bytes = [self.list.0, self.row].concat();
        bytes.extend(self.place.iter().flat_map(|number| number.to_be_bytes()));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn decode(text: &str) -> Option<Self> {
        if text.len() > MAX_CURSOR_LEN {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let ([list, row, place @ ..], []) = bytes.as_chunks::<8>() else { return None };
        let place: Vec<i64> = place.iter().map(|bytes| i64::from_be_bytes(*bytes)).collect();
        (1..=MAX_PLACE).contains(&place.len()).then_some(Self { list: ListKey(*list), row: *row, place })
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.encode())
    }
}

fn cursor_schema(description: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::String))
        .description(Some(description))
        .max_length(Some(MAX_CURSOR_LEN))
        .pattern(Some("^[A-Za-z0-9_-]+$"))
        .into()
}

impl PartialSchema for Cursor {
    fn schema() -> RefOr<Schema> {
        cursor_schema("An opaque position in a list. It is valid for this list only, with the same filters and order.")
    }
}

impl ToSchema for Cursor {}

/// A cursor as a caller sends it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct CursorText(String);

impl CursorText {
    /// Asks for the end of the list instead of a position that the caller has seen.
    #[must_use]
    pub fn is_latest(&self) -> bool {
        self.0 == "latest"
    }
}

impl PartialSchema for CursorText {
    fn schema() -> RefOr<Schema> {
        cursor_schema("`next` of an earlier page.")
    }
}

impl ToSchema for CursorText {}

/// An id as two numbers of a cursor's place.
#[must_use]
pub fn place_of(id: Uuid) -> [i64; 2] {
    let (high, low) = id.as_u64_pair();
    [high, low].map(|half| i64::from_be_bytes(half.to_be_bytes()))
}

#[must_use]
pub fn id_of(place: [i64; 2]) -> Uuid {
    let [high, low] = place.map(|half| u64::from_be_bytes(half.to_be_bytes()));
    Uuid::from_u64_pair(high, low)
}

/// A code as numbers of a place. Without a code they are 0.
#[must_use]
pub fn code_words(code: &str) -> [i64; CODE_WORDS] {
    let byte = |n: usize| code.as_bytes().get(n).copied().unwrap_or_default();
    std::array::from_fn(|word| i64::from_be_bytes(std::array::from_fn(|n| byte(word * 8 + n))))
}

/// The code that these numbers say.
#[must_use]
pub fn code_of(words: &[i64]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_be_bytes()).take_while(|byte| *byte != 0);
    bytes.map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_from_its_numbers() {
        for code in ["", "a", "video.render", "12345678", "123456789", &"z".repeat(64)] {
            assert_eq!(code_of(&code_words(code)), code);
        }
    }

    fn text_of(cursor: &Cursor) -> CursorText {
        CursorText(cursor.encode())
    }

    #[test]
    fn a_cursor_is_valid_for_its_own_list_only() {
        let list = ListKey::new("usage", &("workspace", "desc"));
        let others = [ListKey::new("ledger", &("workspace", "desc")), ListKey::new("usage", &("workspace", "asc"))];
        let text = text_of(&list.cursor([i64::MIN, 1], &"id"));
        assert_eq!(list.parse::<2>(&text).unwrap().place, [i64::MIN, 1]);
        for wrong in others
            .map(|other| other.parse::<2>(&text))
            .into_iter()
            .chain([list.parse::<2>(&text_of(&list.cursor([1], &"id")))])
        {
            assert_eq!(wrong.unwrap_err().code, Code::InvalidCursor);
        }
    }

    #[test]
    fn a_seen_row_must_still_be_there_with_its_id() {
        let list = ListKey::new("events", &());
        let seen = list.parse::<16>(&text_of(&list.cursor([i64::MAX; 16], &"id"))).unwrap();
        assert!(seen.require([i64::MAX; 16], &"id").is_ok());
        for (place, id) in [([i64::MAX; 16], "other"), ([0; 16], "id")] {
            assert_eq!(seen.require(place, &id).unwrap_err().code, Code::CursorGone);
        }
        let taken = |mut rows: Vec<_>| seen.take_from(&mut rows, |id| ([i64::MAX; 16], *id)).map(|first| (first, rows));
        assert_eq!(taken(vec!["id", "next"]).unwrap(), ("id", vec!["next"]));
        for changed in [vec!["next"], vec![]] {
            assert_eq!(taken(changed).unwrap_err().code, Code::CursorGone);
        }
    }

    #[test]
    fn text_that_is_no_cursor_is_refused() {
        let list = ListKey::new("usage", &());
        let longest = list.cursor([0; MAX_PLACE], &"id").encode();
        assert_eq!(longest.len(), MAX_CURSOR_LEN);
        let (short, long) = (URL_SAFE_NO_PAD.encode([0; 16]), URL_SAFE_NO_PAD.encode([0; 8 * (MAX_PLACE + 3)]));
        for text in ["", "u", "!!!", "dQ", "latest", &short, &long, &longest[1..]] {
            assert_eq!(Cursor::decode(text), None, "{text}");
        }
    }
}
