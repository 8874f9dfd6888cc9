//! Many rows in one parameter: the JSON text that `jsonb_each` takes apart again (it gives each row
//! in SQLite's parsed form, so that its columns are found without parsing it anew; since SQLite 3.51,
//! which sqlx bundles).
//!
//! Every statement costs a hop to the connection's thread, so a table's rows go in one statement,
//! as an array of arrays in the order of the statement's columns. It is written directly: no tree
//! of values is built. Ids and bytes are hexadecimal (`unhex` in SQL), booleans are 0 or 1.

use serde::Serialize;
use uuid::Uuid;

use crate::domain::credits::Credits;
use crate::domain::time::Timestamp;

/// A guess at the text of one row, so that few batches grow their buffer.
const ROW_BYTES: usize = 256;

/// The JSON text of the rows.
pub(super) fn rows<T>(items: impl IntoIterator<Item = T>, write: impl Fn(&mut JsonRow<'_>, T)) -> String {
    let items = items.into_iter();
    let mut text = Vec::with_capacity(2 + items.size_hint().0 * ROW_BYTES);
    text.push(b'[');
    for item in items {
        if text.len() > 1 {
            text.push(b',');
        }
        text.push(b'[');
        let first = text.len();
        write(&mut JsonRow { text: &mut text, first }, item);
        text.push(b']');
    }
    text.push(b']');
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// The JSON text of a list of ids.
pub(super) fn ids(ids: impl IntoIterator<Item = Uuid>) -> String {
    rows(ids, |row, id| {
        row.id(id);
    })
}

/// One row: values in the order of the statement's columns.
pub(super) struct JsonRow<'a> {
    text: &'a mut Vec<u8>,
    first: usize,
}

impl JsonRow<'_> {
    pub(super) fn id(&mut self, id: Uuid) -> &mut Self {
        let mut buffer = [0; uuid::fmt::Simple::LENGTH];
        self.value(id.simple().encode_lower(&mut buffer))
    }

    pub(super) fn maybe_id(&mut self, id: Option<Uuid>) -> &mut Self {
        match id {
            Some(id) => self.id(id),
            None => self.value(&()),
        }
    }

    pub(super) fn int(&mut self, number: impl Into<i64>) -> &mut Self {
        self.value(&number.into())
    }

    pub(super) fn maybe_int(&mut self, number: Option<impl Into<i64>>) -> &mut Self {
        self.value(&number.map(Into::into))
    }

    pub(super) fn credits(&mut self, credits: Credits) -> &mut Self {
        self.int(credits.micro())
    }

    pub(super) fn maybe_credits(&mut self, credits: Option<Credits>) -> &mut Self {
        self.maybe_int(credits.map(Credits::micro))
    }

    pub(super) fn at(&mut self, at: Timestamp) -> &mut Self {
        self.int(at.micros())
    }

    pub(super) fn maybe_at(&mut self, at: Option<Timestamp>) -> &mut Self {
        self.maybe_int(at.map(Timestamp::micros))
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.value(text)
    }

    pub(super) fn maybe_text(&mut self, text: Option<&str>) -> &mut Self {
        self.value(&text)
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        let hex: String = digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect();
        self.value(&hex)
    }

    fn value(&mut self, value: &(impl Serialize + ?Sized)) -> &mut Self {
        if self.text.len() > self.first {
            self.text.push(b',');
        }
        serde_json::to_writer(&mut *self.text, value).expect("a buffer takes every text and number");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_an_array_of_arrays_with_every_character_escaped() {
        let text = rows([(1_i64, Some("a\"\\\u{0}\u{2028}é")), (-2, None)], |row, (number, text)| {
            row.int(number).maybe_text(text).bytes(&[0x0f, 0xa0]).maybe_id(None);
        });
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed, serde_json::json!([[1, "a\"\\\u{0}\u{2028}é", "0fa0", null], [-2, null, "0fa0", null]]));
        assert_eq!(rows([] as [i64; 0], |_, _| {}), "[]");
        assert_eq!(ids([Uuid::nil()]), "[[\"00000000000000000000000000000000\"]]");
    }
}
