//! Exports: a whole list as CSV or as one JSON object per line (NDJSON), for callers whose `Accept` asks for it.
//!
//! A list has an export if its handler takes a [`ListCaller`](super::extract::ListCaller), its rows are [`Exported`], and
//! it gives [`export`] its pages. These rules hold for every export:
//!
//! - It is read and sent a page at a time. The next page is read when the caller has taken the one before, so an export
//!   costs one page of memory, and between pages it holds neither a connection nor a transaction of the database.
//! - It counts as a read of its workspace until its last byte. It ends after [`MAX_DURATION`] at the latest, and when the
//!   server stops; the connection ends it if the caller does not read.
//! - A failure before the first byte is a problem. After it, the connection is closed without the end that HTTP/1.1 gives
//!   a body in chunks, so a caller never takes a part for the whole. HTTP/1.0 has no such end and is refused.
//! - The token is checked at the start only, as for every request.

use std::borrow::Cow;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::time::Duration;

use actix_web::http::Version;
use actix_web::http::header::{CONTENT_DISPOSITION, CONTENT_ENCODING, ContentEncoding, HeaderValue, VARY};
use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::connection::Exchange;
use super::problem::{Code, Problem};
use super::representation::{accepts_gzip, private_json};
use super::state::AppState;

/// How long an export may take. A token can be used for this long after it has expired.
const MAX_DURATION: Duration = Duration::from_hours(1);
/// The CORS middleware keeps one value of `Vary`, so both are in it.
const VARIES_BY: &str = "accept, accept-encoding";
/// A text that begins with one of these can be a formula to a spreadsheet (OWASP, "CSV Injection").
const FORMULA_STARTS: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];
/// A cell that contains one of these is put in quotes (RFC 4180). The semicolon separates cells in some countries.
const QUOTED: [char; 5] = [',', ';', '"', '\r', '\n'];

/// The form of the answer of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListForm {
    /// A page, in JSON.
    Page,
    /// The whole list.
    Export(ExportForm),
}

/// The form of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportForm {
    Csv,
    Ndjson,
}

impl ListForm {
    /// What a caller can ask for. Without preference it gets the first.
    pub const MEDIA_TYPES: [(&str, Self); 3] = [
        ("application/json", Self::Page),
        ("text/csv", Self::Export(ExportForm::Csv)),
        ("application/x-ndjson", Self::Export(ExportForm::Ndjson)),
    ];
}

impl ExportForm {
    const fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    const fn file_extension(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
        }
    }
}

/// A row of a list that is exported. A line of NDJSON is the row as it is in a page.
pub trait Exported: Serialize {
    /// The columns of the CSV: the fields of the row, in their order.
    const COLUMNS: &'static [Column];
}

/// A column of the CSV. Its cells are the values of a field as they are in the JSON: a text without its quotes, an object
/// as JSON, and nothing where the field is absent.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    name: &'static str,
    is_callers: bool,
}

impl Column {
    /// A field that this server makes: an amount, a number, an id, an instant. Spreadsheets may calculate with it.
    #[must_use]
    pub const fn own(name: &'static str) -> Self {
        Self { name, is_callers: false }
    }

    /// A field with text of callers. What could be a formula gets a `'` before it.
    #[must_use]
    pub const fn of_callers(name: &'static str) -> Self {
        Self { name, is_callers: true }
    }
}

/// Answers with a page of a list that is also exported.
pub fn page(request: &HttpRequest, page: &impl Serialize) -> Result<HttpResponse, Problem> {
    let mut response = private_json(request, page)?;
    response.headers_mut().insert(VARY, HeaderValue::from_static(VARIES_BY));
    Ok(response)
}

/// The answer to an export with a `limit`.
#[must_use]
pub fn limit_refused() -> Problem {
    Problem::parameter(Code::InvalidField, "limit", "an export is the whole list and takes no limit")
}

/// Answers with all pages of a list. `caller` is kept until the last byte was sent: it counts as a read in flight.
pub async fn export<T: Exported + 'static, C: 'static>(
    request: &HttpRequest,
    caller: C,
    form: ExportForm,
    name: &str,
    pages: impl Stream<Item = Result<Vec<T>, Problem>> + 'static,
) -> Result<HttpResponse, Problem> {
    if request.version() < Version::HTTP_11 {
        return Err(Problem::new(
            Code::NotAcceptable,
            "an export needs HTTP/1.1: HTTP/1.0 cannot tell that it is whole",
        ));
    }
    let mut pages = Box::pin(pages);
    let first = pages.try_next().await?;
    let is_gzip = accepts_gzip(request);
    let body = Body {
        pages: Box::pin(stream::iter(first.map(Ok)).chain(pages)),
        writer: Some(Writer::new(form, T::COLUMNS, is_gzip)),
        state: AppState::of(request).clone(),
        exchange: Exchange::of(request).cloned(),
        ends_at: Instant::now() + MAX_DURATION,
        _caller: caller,
    };
    let mut response = HttpResponse::Ok();
    response.content_type(form.content_type());
    let file_name = format!("attachment; filename=\"{name}.{}\"", form.file_extension());
    response.insert_header((CONTENT_DISPOSITION, file_name));
    response.insert_header((VARY, VARIES_BY));
    if is_gzip {
        response.insert_header((CONTENT_ENCODING, ContentEncoding::Gzip));
    }
    Ok(response.streaming(stream::try_unfold(body, Body::next)))
}

/// The rest of an export.
struct Body<P, C> {
    pages: Pin<Box<P>>,
    /// None after the end.
    writer: Option<Writer>,
    state: web::Data<AppState>,
    exchange: Option<Exchange>,
    ends_at: Instant,
    _caller: C,
}

impl<T: Exported, P: Stream<Item = Result<Vec<T>, Problem>>, C> Body<P, C> {
    /// The next piece. An error ends the connection.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Problem> {
        let Some(mut writer) = self.writer.take() else { return Ok(None) };
        if let Some(exchange) = &self.exchange {
            exchange.restart_deadline();
        }
        let left = self.ends_at.saturating_duration_since(Instant::now());
        let Some(page) = self.state.within(left, self.pages.next()).await else {
            tracing::warn!("an export was cut off: it took too long, or the server stops");
            return Err(Problem::plain(Code::Unavailable));
        };
        let piece = match page.transpose()? {
            Some(rows) => {
                let piece = writer.write(&rows);
                self.writer = Some(writer);
                piece
            }
            None => writer.finish(),
        };
        let piece = piece.map_err(|error| {
            tracing::error!(%error, "an export cannot be written");
            Problem::plain(Code::InternalError)
        })?;
        Ok(Some((piece, self)))
    }
}

/// Writes rows in the form of the export.
struct Writer {
    form: ExportForm,
    columns: &'static [Column],
    /// What was not given out yet.
    text: Vec<u8>,
    gzip: Option<GzEncoder<Vec<u8>>>,
}

impl Writer {
    fn new(form: ExportForm, columns: &'static [Column], is_gzip: bool) -> Self {
        let names: Vec<_> = columns.iter().map(|column| column.name).collect();
        let text = match form {
            ExportForm::Csv => format!("{}\r\n", names.join(",")).into_bytes(),
            ExportForm::Ndjson => Vec::new(),
        };
        let gzip = is_gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
        Self { form, columns, text, gzip }
    }

    fn write(&mut self, rows: &[impl Serialize]) -> io::Result<Bytes> {
        for row in rows {
            match self.form {
                ExportForm::Csv => csv_line(&mut self.text, self.columns, &serde_json::to_value(row)?),
                ExportForm::Ndjson => {
                    serde_json::to_writer(&mut self.text, row)?;
                    self.text.push(b'\n');
                }
            }
        }
        let text = std::mem::take(&mut self.text);
        let Some(gzip) = &mut self.gzip else { return Ok(text.into()) };
        gzip.write_all(&text)?;
        gzip.flush()?;
        Ok(std::mem::take(gzip.get_mut()).into())
    }

    /// The end of the body.
    fn finish(mut self) -> io::Result<Bytes> {
        match self.gzip.take() {
            Some(mut gzip) => {
                gzip.write_all(&self.text)?;
                Ok(gzip.finish()?.into())
            }
            None => Ok(self.text.into()),
        }
    }
}

fn csv_line(text: &mut Vec<u8>, columns: &[Column], row: &Value) {
    for (n, column) in columns.iter().enumerate() {
        if n > 0 {
            text.push(b',');
        }
        let value = match &row[column.name] {
            Value::Null => Cow::Borrowed(""),
            Value::String(value) => Cow::Borrowed(value.as_str()),
            value => Cow::Owned(value.to_string()),
        };
        let is_formula = column.is_callers && value.starts_with(FORMULA_STARTS);
        csv_cell(text, &value, is_formula);
    }
    text.extend_from_slice(b"\r\n");
}

fn csv_cell(text: &mut Vec<u8>, value: &str, is_formula: bool) {
    if !is_formula && !value.contains(QUOTED) {
        text.extend_from_slice(value.as_bytes());
        return;
    }
    text.push(b'"');
    if is_formula {
        text.push(b'\'');
    }
    text.extend_from_slice(value.replace('"', "\"\"").as_bytes());
    text.push(b'"');
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use serde_json::json;

    use super::*;

    const COLUMNS: &[Column] = &[Column::own("amount"), Column::of_callers("name"), Column::of_callers("metadata")];

    fn csv_of(rows: &[Value]) -> String {
        let mut writer = Writer::new(ExportForm::Csv, COLUMNS, false);
        let text = [writer.write(rows).unwrap(), writer.finish().unwrap()].concat();
        String::from_utf8(text).unwrap()
    }

    /// The second cell of the only row, as it is in the file.
    fn cell_of(name: &str) -> String {
        let text = csv_of(&[json!({"amount": "1", "name": name})]);
        let row = text.strip_prefix("amount,name,metadata\r\n1,").unwrap();
        row.strip_suffix(",\r\n").unwrap().to_owned()
    }

    #[test]
    fn a_text_that_could_be_a_formula_is_protected() {
        for (name, cell) in [
            ("=HYPERLINK(\"http://evil.test\")", "\"'=HYPERLINK(\"\"http://evil.test\"\")\""),
            ("+1", "\"'+1\""),
            ("-2+3", "\"'-2+3\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("\t=1", "\"'\t=1\""),
            ("\r=1", "\"'\r=1\""),
            ("\n=1", "\"'\n=1\""),
            ("＝1", "\"'＝1\""),
        ] {
            assert_eq!(cell_of(name), cell);
        }
    }

    #[test]
    fn other_texts_are_as_they_were_sent() {
        for (name, cell) in [
            ("user-7", "user-7"),
            ("a=b", "a=b"),
            ("", ""),
            ("Acme, Inc.", "\"Acme, Inc.\""),
            ("a;=b", "\"a;=b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("two\r\nlines", "\"two\r\nlines\""),
            ("🚀 名前", "🚀 名前"),
        ] {
            assert_eq!(cell_of(name), cell);
        }
    }

    #[test]
    fn values_of_the_server_stay_numbers_and_what_is_absent_is_empty() {
        let rows = [
            json!({"amount": "-5", "name": "a", "metadata": {"job": "=1", "note": "say \"hi\""}}),
            json!({"amount": -7}),
            json!({"amount": "+1", "name": null}),
        ];
        let expected = "amount,name,metadata\r\n\
            -5,a,\"{\"\"job\"\":\"\"=1\"\",\"\"note\"\":\"\"say \\\"\"hi\\\"\"\"\"}\"\r\n\
            -7,,\r\n\
            +1,,\r\n";
        assert_eq!(csv_of(&rows), expected);
    }

    #[test]
    fn an_empty_list_is_the_header_alone() {
        assert_eq!(csv_of(&[]), "amount,name,metadata\r\n");
        let untouched = Writer::new(ExportForm::Csv, COLUMNS, false).finish().unwrap();
        assert_eq!(untouched, "amount,name,metadata\r\n");
        assert_eq!(Writer::new(ExportForm::Ndjson, COLUMNS, false).finish().unwrap(), "");
    }

    #[test]
    fn a_compressed_export_gives_out_each_page_before_the_next() {
        let rows = [json!({"amount": "1", "name": "a"})];
        for form in [ExportForm::Csv, ExportForm::Ndjson] {
            let (mut plain, mut packed) = (Writer::new(form, COLUMNS, false), Writer::new(form, COLUMNS, true));
            let (mut text, mut compressed) = (Vec::new(), Vec::new());
            for _ in 0..3 {
                text.extend(plain.write(&rows).unwrap());
                compressed.extend(packed.write(&rows).unwrap());
                let mut so_far = vec![0; text.len()];
                GzDecoder::new(compressed.as_slice()).read_exact(&mut so_far).unwrap();
                assert_eq!(so_far, text);
            }
            text.extend(plain.finish().unwrap());
            compressed.extend(packed.finish().unwrap());
            let mut whole = Vec::new();
            GzDecoder::new(compressed.as_slice()).read_to_end(&mut whole).unwrap();
            assert_eq!(whole, text);
        }
    }
}
