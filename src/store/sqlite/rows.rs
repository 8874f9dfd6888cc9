//! Rows of SQLite: values in and out, and the statements that every table has.
//!
//! Every statement is a visit to the connection's thread, so a batch's rows of a table are one parameter: an array of
//! arrays as JSON, which `jsonb_each` splits. Ids and bytes are hexadecimal (`unhex` in SQL), booleans are 0 or 1, and
//! instants are microseconds.

use serde::Serialize;
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Column as _, Row as _, Type};

use super::error::store_error;
use crate::domain::time::Timestamp;
use crate::store::columns::{Columns, Kind, ReadValue, Value, WriteValue};
use crate::store::dialect::Keys;
use crate::store::error::StoreError;
use crate::store::statements::KeyColumn;
use crate::store::tables::{Column, Table, list, on_conflict, on_conflict_do_nothing};

/// An estimate of the text of one row, so that few batches grow their buffer.
const ROW_BYTES: usize = 256;

/// A query with its arguments so far.
pub(super) type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

/// The statement that inserts the rows of a JSON array.
pub(super) fn insert<T: Table>(rows: &str) -> String {
    let columns = T::columns();
    let (names, values) = (list(&columns, |_, column| column.name.into()), list(&columns, element));
    format!("insert into {} ({names}) select {values} from jsonb_each({rows}) where true", T::NAME)
}

/// The statement that inserts the rows of a JSON array, or replaces what is stored.
pub(super) fn put<T: Table>(rows: &str) -> String {
    format!("{} {}", insert::<T>(rows), on_conflict::<T>(|name| format!("{name} = excluded.{name}")))
}

/// The statement that inserts the rows of a JSON array, or adds their figures to what is stored.
pub(super) fn add<T: Table>(rows: &str) -> String {
    let sum = |name: &str| format!("{name} = {}.{name} + excluded.{name}", T::NAME);
    format!("{} {}", insert::<T>(rows), on_conflict::<T>(sum))
}

/// The statement that inserts those rows of a JSON array whose keys are not stored yet.
pub(super) fn insert_missing<T: Table>(rows: &str) -> String {
    format!("{} {}", insert::<T>(rows), on_conflict_do_nothing::<T>())
}

/// The statement that updates rows by their keys from a JSON array.
pub(super) fn update<T: Table>(rows: &str) -> String {
    let columns = T::columns();
    let is_key = |column: &Column| T::KEY.contains(&column.name);
    let (mut values, mut key) = (Vec::new(), Vec::new());
    for (place, column) in columns.iter().enumerate() {
        let (name, element) = (column.name, element(place, column));
        if is_key(column) {
            key.push(format!("{}.{name} = {element}", T::NAME));
        } else if !T::FIXED.contains(&name) {
            values.push(format!("{name} = {element}"));
        }
    }
    format!("update {} set {} from jsonb_each({rows}) where {}", T::NAME, values.join(", "), key.join(" and "))
}

/// The element of a row at that place, as a value of the column.
pub(super) fn element(place: usize, column: &Column) -> String {
    match column.kind {
        Kind::Uuid | Kind::Bytea => format!("unhex(value ->> {place})"),
        _ => format!("value ->> {place}"),
    }
}

/// Runs one of these statements, if there are rows. Each row must be written.
pub(super) async fn write_rows<T: Table>(
    connection: &mut SqliteConnection,
    statement: String,
    rows: &[T],
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let written = run_with_rows(connection, statement, rows).await?;
    if u64::try_from(rows.len()) == Ok(written) {
        return Ok(());
    }
    Err(StoreError::Corrupt(format!("{written} of {} rows of {} were written", rows.len(), T::NAME)))
}

/// Runs [`insert_missing`], if there are rows.
pub(super) async fn write_missing_rows<T: Table>(
    connection: &mut SqliteConnection,
    rows: &[T],
) -> Result<(), StoreError> {
    if !rows.is_empty() {
        run_with_rows(connection, insert_missing::<T>("?1"), rows).await?;
    }
    Ok(())
}

/// Runs a statement on rows. Returns how many it has written.
async fn run_with_rows<T: Table>(
    connection: &mut SqliteConnection,
    statement: String,
    rows: &[T],
) -> Result<u64, StoreError> {
    // The text is made of this crate's names only.
    let statement = sqlx::query(AssertSqlSafe(statement)).bind(json(rows));
    Ok(statement.execute(connection).await.map_err(store_error)?.rows_affected())
}

/// Binds one value.
pub(super) fn bind<'q>(statement: Statement<'q>, (_, value): (Kind, Value<'q>)) -> Statement<'q> {
    match value {
        Value::Null => statement.bind(None::<i64>),
        Value::Uuid(id) => statement.bind(id),
        Value::Smallint(number) => statement.bind(number),
        Value::Integer(number) => statement.bind(number),
        Value::Bigint(number) => statement.bind(number),
        Value::Boolean(flag) => statement.bind(flag),
        Value::Text(text) | Value::Jsonb(text) => statement.bind(text.into_owned()),
        Value::Bytea(bytes) => statement.bind(bytes.into_owned()),
        Value::Timestamptz(at) => statement.bind(at.micros()),
    }
}

/// A list of keys as a JSON array.
pub(super) fn keys_json(key: &[KeyColumn], keys: &Keys<'_>) -> String {
    json_of(&keys.0, |row, values| {
        for ((_, kind), value) in key.iter().zip(values) {
            row.value(*kind, value.clone());
        }
    })
}

impl ReadValue for SqliteRow {
    fn value(&self, place: usize, kind: Kind) -> Result<Value<'_>, StoreError> {
        fn get<'r, T>(row: &'r SqliteRow, place: usize, into: impl Fn(T) -> Value<'r>) -> Result<Value<'r>, StoreError>
        where
            T: sqlx::Decode<'r, Sqlite> + Type<Sqlite>,
        {
            row.try_get::<Option<T>, _>(place).map(|found| found.map_or(Value::Null, into)).map_err(store_error)
        }
        match kind {
            Kind::Uuid => get(self, place, Value::Uuid),
            Kind::Smallint => get(self, place, Value::Smallint),
            Kind::Integer => get(self, place, Value::Integer),
            Kind::Bigint => get(self, place, Value::Bigint),
            Kind::Boolean => get(self, place, Value::Boolean),
            Kind::Text => get(self, place, |text: &str| Value::Text(text.into())),
            Kind::Bytea => get(self, place, |bytes: &[u8]| Value::Bytea(bytes.into())),
            Kind::Timestamptz => get(self, place, |micros| Value::Timestamptz(Timestamp::from_micros(micros))),
            Kind::Jsonb => get(self, place, |text: &str| Value::Jsonb(text.into())),
        }
    }

    fn name(&self, place: usize) -> &str {
        self.columns().get(place).map_or("column", |column| column.name())
    }
}

/// Rows of a table as a JSON array.
pub(super) fn json<T: Table>(items: &[T]) -> String {
    json_of(items, |row, item: &T| item.put(row))
}

/// Rows as a JSON array, each written by the function.
pub(super) fn json_of<T>(items: impl IntoIterator<Item = T>, write: impl Fn(&mut JsonRow<'_>, T)) -> String {
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

/// One row: values in the order of the statement's columns.
pub(super) struct JsonRow<'a> {
    text: &'a mut Vec<u8>,
    first: usize,
}

impl JsonRow<'_> {
    /// Adds the columns of a field.
    pub(super) fn add(&mut self, field: &impl Columns) -> &mut Self {
        field.put(self);
        self
    }

    fn json(&mut self, value: &(impl Serialize + ?Sized)) {
        serde_json::to_writer(&mut *self.text, value).expect("a buffer takes every text and number");
    }
}

impl WriteValue for JsonRow<'_> {
    fn value(&mut self, _: Kind, value: Value<'_>) {
        if self.text.len() > self.first {
            self.text.push(b',');
        }
        match value {
            Value::Null => self.json(&()),
            Value::Uuid(id) => self.json(&*id.simple().encode_lower(&mut [0; uuid::fmt::Simple::LENGTH])),
            Value::Smallint(number) => self.json(&number),
            Value::Integer(number) => self.json(&number),
            Value::Bigint(number) => self.json(&number),
            Value::Boolean(flag) => self.json(&i32::from(flag)),
            Value::Text(text) | Value::Jsonb(text) => self.json(&*text),
            Value::Bytea(bytes) => self.json(&hexadecimal(&bytes)),
            Value::Timestamptz(at) => self.json(&at.micros()),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::CommandId;

    #[test]
    fn rows_become_an_array_of_arrays_with_every_character_escaped() {
        let text = json_of([(1_i64, Some("a\"\\\u{0}\u{2028}é")), (-2, None)], |row, (number, text)| {
            row.add(&number).add(&text.map(str::to_owned)).add(&[0xa0_u8; 32]).add(&true).add(&None::<CommandId>);
        });
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        let bytes = "a0".repeat(32);
        assert_eq!(parsed, serde_json::json!([[1, "a\"\\\u{0}\u{2028}é", bytes, 1, null], [-2, null, bytes, 1, null]]));
        assert_eq!(json_of([] as [i64; 0], |_, _| {}), "[]");
        let ids = json_of([Uuid::nil()], |row, id| {
            row.add(&id);
        });
        assert_eq!(ids, "[[\"00000000000000000000000000000000\"]]");
    }
}
