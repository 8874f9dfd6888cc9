//! Rows of PostgreSQL: values in and out, and the statements that every table has.
//!
//! A batch's rows of a table are one parameter: an array of the table's row type. An array per column took a tenth of a
//! batch's time on the server, to build the rows again.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::PgRecordEncoder;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgBindIterExt, PgConnection, PgHasArrayType, PgRow, PgTypeInfo, Postgres,
};
use sqlx::query::Query;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Column as _, Encode, Row as _, Type};
use uuid::Uuid;

use super::error::store_error;
use crate::domain::time::Timestamp;
use crate::store::columns::{Kind, ReadValue, Value, WriteValue};
use crate::store::dialect::Keys;
use crate::store::error::StoreError;
use crate::store::statements::KeyColumn;
use crate::store::tables::{Table, list, on_conflict, on_conflict_do_nothing};

/// Binds a column of keys as an array of its type.
macro_rules! array_of {
    ($statement:ident, $values:ident, $value:pat => $item:expr) => {
        $statement.bind(
            $values()
                .map(|value| match value {
                    $value => Some($item),
                    _ => None,
                })
                .collect::<Vec<_>>(),
        )
    };
}

/// A query with its arguments so far.
pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// The statement that inserts the rows of an array, given the number of its parameter.
pub(super) fn insert<T: Table>(parameter: usize) -> String {
    let columns = T::columns();
    let (table, row_type) = (T::NAME, T::ROW_TYPE);
    let (names, values) = (list(&columns, |_, column| column.name.into()), T::select("n"));
    format!("insert into {table} ({names}) select {values} from unnest(${parameter}::{row_type}[]) n")
}

/// The statement that inserts the rows of an array, or replaces what is stored.
pub(super) fn put<T: Table>(parameter: usize) -> String {
    format!("{} {}", insert::<T>(parameter), on_conflict::<T>(|name| format!("{name} = excluded.{name}")))
}

/// The statement that inserts the rows of an array, or adds their figures to what is stored.
pub(super) fn add<T: Table>(parameter: usize) -> String {
    let sum = |name: &str| format!("{name} = {}.{name} + excluded.{name}", T::NAME);
    format!("{} {}", insert::<T>(parameter), on_conflict::<T>(sum))
}

/// The statement that inserts those rows of an array whose keys are not stored yet.
pub(super) fn insert_missing<T: Table>(parameter: usize) -> String {
    format!("{} {}", insert::<T>(parameter), on_conflict_do_nothing::<T>())
}

/// The statement that updates rows by their keys from a `from` item.
pub(super) fn update<T: Table>(from: &str) -> String {
    let mut columns = T::columns();
    columns.retain(|column| !T::KEY.contains(&column.name) && !T::FIXED.contains(&column.name));
    let values = list(&columns, |_, column| format!("{0} = n.{0}", column.name));
    let key = T::KEY.iter().map(|name| format!("t.{name} = n.{name}")).collect::<Vec<_>>().join(" and ");
    format!("update {} t set {values} from {from} n where {key}", T::NAME)
}

/// An array of rows as a `from` item, given the number of its parameter.
pub(super) fn array<T: Table>(parameter: usize) -> String {
    format!("unnest(${parameter}::{}[])", T::ROW_TYPE)
}

/// Runs one of these statements, if there are rows. Each row must be written.
pub(super) async fn write_rows<T: Table>(
    connection: &mut PgConnection,
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
pub(super) async fn write_missing_rows<T: Table>(connection: &mut PgConnection, rows: &[T]) -> Result<(), StoreError> {
    if !rows.is_empty() {
        run_with_rows(connection, insert_missing::<T>(1), rows).await?;
    }
    Ok(())
}

/// Runs a statement on rows. Returns how many it has written.
async fn run_with_rows<T: Table>(
    connection: &mut PgConnection,
    statement: String,
    rows: &[T],
) -> Result<u64, StoreError> {
    // The text is made of this crate's names only.
    let statement = sqlx::query(AssertSqlSafe(statement)).rows(rows);
    Ok(statement.execute(connection).await.map_err(store_error)?.rows_affected())
}

/// Binds one value.
pub(super) fn bind<'q>(statement: Statement<'q>, (kind, value): (Kind, Value<'q>)) -> Statement<'q> {
    match value {
        Value::Uuid(id) => statement.bind(id),
        Value::Smallint(number) => statement.bind(number),
        Value::Integer(number) => statement.bind(number),
        Value::Bigint(number) => statement.bind(number),
        Value::Boolean(flag) => statement.bind(flag),
        Value::Text(text) | Value::Jsonb(text) => statement.bind(text.into_owned()),
        Value::Bytea(bytes) => statement.bind(bytes.into_owned()),
        Value::Timestamptz(at) => statement.bind(at.to_datetime()),
        Value::Null if kind == Kind::Uuid => statement.bind(None::<Uuid>),
        Value::Null => statement.bind(None::<String>),
    }
}

/// Binds a list of keys: an array for each column.
pub(super) fn bind_keys<'q>(mut statement: Statement<'q>, key: &[KeyColumn], keys: &Keys<'_>) -> Statement<'q> {
    for (place, (_, kind)) in key.iter().enumerate() {
        let values = || keys.0.iter().filter_map(|values| values.get(place));
        statement = match kind {
            Kind::Uuid => array_of!(statement, values, Value::Uuid(id) => *id),
            Kind::Smallint => array_of!(statement, values, Value::Smallint(number) => *number),
            Kind::Integer => array_of!(statement, values, Value::Integer(number) => *number),
            Kind::Bigint => array_of!(statement, values, Value::Bigint(number) => *number),
            Kind::Timestamptz => array_of!(statement, values, Value::Timestamptz(at) => at.to_datetime()),
            _ => array_of!(statement, values, Value::Text(text) => text.to_string()),
        };
    }
    statement
}

impl ReadValue for PgRow {
    fn value(&self, place: usize, kind: Kind) -> Result<Value<'_>, StoreError> {
        fn get<'r, T>(row: &'r PgRow, place: usize, into: impl Fn(T) -> Value<'r>) -> Result<Value<'r>, StoreError>
        where
            T: sqlx::Decode<'r, Postgres> + Type<Postgres>,
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
            Kind::Timestamptz => get(self, place, |at| Value::Timestamptz(Timestamp::from_datetime(at))),
            Kind::Jsonb => get(self, place, |json: Json<&RawValue>| Value::Jsonb(json.0.get().into())),
        }
    }

    fn name(&self, place: usize) -> &str {
        self.columns().get(place).map_or("column", |column| column.name())
    }
}

/// Binds many rows as one array.
pub(super) trait BindRows: Sized {
    fn rows<T: Table>(self, rows: &[T]) -> Self;
}

impl BindRows for Statement<'_> {
    fn rows<T: Table>(self, rows: &[T]) -> Self {
        self.bind(rows.iter().map(Composite).bind_iter())
    }
}

/// Binds one column of many items as one array.
pub(super) trait BindColumn: Sized {
    fn column<'v, I, V>(self, items: I, value: impl Fn(I::Item) -> V) -> Self
    where
        I: IntoIterator,
        V: Encode<'v, Postgres> + Type<Postgres> + PgHasArrayType;
}

impl BindColumn for Statement<'_> {
    fn column<'v, I, V>(self, items: I, value: impl Fn(I::Item) -> V) -> Self
    where
        I: IntoIterator,
        V: Encode<'v, Postgres> + Type<Postgres> + PgHasArrayType,
    {
        self.bind(items.into_iter().map(value).bind_iter())
    }
}

/// A row as a value of the table's row type.
struct Composite<'r, T>(&'r T);

impl<T: Table> Type<Postgres> for Composite<'_, T> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name(T::ROW_TYPE)
    }
}

impl<T: Table> PgHasArrayType for Composite<'_, T> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of(T::ROW_TYPE)
    }
}

impl<T: Table> Encode<'_, Postgres> for Composite<'_, T> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let mut fields = CompositeFields { record: PgRecordEncoder::new(buffer), outcome: Ok(()) };
        self.0.put(&mut fields);
        fields.outcome?;
        fields.record.finish();
        Ok(IsNull::No)
    }
}

struct CompositeFields<'b> {
    record: PgRecordEncoder<'b>,
    outcome: Result<(), BoxDynError>,
}

impl WriteValue for CompositeFields<'_> {
    fn value(&mut self, kind: Kind, value: Value<'_>) {
        if self.outcome.is_ok() {
            self.outcome = encode(&mut self.record, kind, value);
        }
    }
}

fn encode(record: &mut PgRecordEncoder<'_>, kind: Kind, value: Value<'_>) -> Result<(), BoxDynError> {
    match value {
        Value::Null => return encode_null(record, kind),
        Value::Uuid(id) => record.encode(id)?,
        Value::Smallint(number) => record.encode(number)?,
        Value::Integer(number) => record.encode(number)?,
        Value::Bigint(number) => record.encode(number)?,
        Value::Boolean(flag) => record.encode(flag)?,
        Value::Text(text) => record.encode(&*text)?,
        Value::Bytea(bytes) => record.encode(&*bytes)?,
        Value::Timestamptz(at) => record.encode(at.to_datetime())?,
        Value::Jsonb(text) => record.encode(Json(serde_json::from_str::<&RawValue>(&text)?))?,
    };
    Ok(())
}

/// A null in a row still needs its type.
fn encode_null(record: &mut PgRecordEncoder<'_>, kind: Kind) -> Result<(), BoxDynError> {
    match kind {
        Kind::Uuid => record.encode(None::<Uuid>)?,
        Kind::Smallint => record.encode(None::<i16>)?,
        Kind::Integer => record.encode(None::<i32>)?,
        Kind::Bigint => record.encode(None::<i64>)?,
        Kind::Boolean => record.encode(None::<bool>)?,
        Kind::Text => record.encode(None::<&str>)?,
        Kind::Bytea => record.encode(None::<&[u8]>)?,
        Kind::Timestamptz => record.encode(None::<DateTime<Utc>>)?,
        Kind::Jsonb => record.encode(None::<Json<&RawValue>>)?,
    };
    Ok(())
}
