//! Exports of lists over HTTP, on both databases: each form, each filter, and the same rows as in the pages.

use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Method;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _};
use visionscope_billing::domain::time::Day;
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{Answer, FOREIGN, NOW, OWN, TestServer, User, deduct_path, instant, path, provisioned, send};

const CSV: &str = "text/csv";
const ANALYTICS: &str = "/analytics/usage";
const NDJSON: &str = "application/x-ndjson";
const LISTS: [&str; 2] = ["/usage", "/ledger"];
/// Rows of the large export.
const MANY: usize = 25_000;

async fn get(user: &User<'_>, list: &str, accept: &str) -> Answer {
    send(user.request(Method::GET, list).header("accept", accept)).await
}

async fn export(user: &User<'_>, list: &str, accept: &str) -> String {
    let answer = get(user, list, accept).await;
    assert_eq!(answer.status, 200, "{list}: {}", answer.text);
    assert!(answer.header("content-type").starts_with(accept), "{list}");
    answer.text
}

/// The cells of a CSV, read as RFC 4180 says.
fn parse_csv(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut chars, mut is_quoted) = (text.chars().peekable(), false);
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.next_if_eq(&'"').is_some() => cell.push('"'),
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => row.push(std::mem::take(&mut cell)),
            '\r' if !is_quoted => {
                assert_eq!(chars.next(), Some('\n'), "lines end with CRLF");
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            c => cell.push(c),
        }
    }
    assert!(row.is_empty() && cell.is_empty() && !is_quoted, "the last line has an end");
    rows
}

/// The cell that a value of the JSON becomes.
fn cell_of(value: &Value, is_callers: bool) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if is_callers && text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text }
}

/// A page whose items are as they were sent.
#[derive(serde::Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
    next: Option<String>,
}

/// The texts of the items of all pages, byte for byte.
async fn items_of_pages(user: &User<'_>, list: &str) -> Vec<String> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let text = get(user, &format!("{list}&limit=200{cursor}"), "application/json").await.text;
        let page: Page<'_> = serde_json::from_str(&text).unwrap();
        items.extend(page.items.iter().map(|item| item.get().to_owned()));
        match page.next {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

/// Asserts that both forms have these rows.
async fn assert_exports(user: &User<'_>, list: &str, items: &[String]) {
    let lines: Vec<String> = export(user, list, NDJSON).await.lines().map(str::to_owned).collect();
    assert_eq!(lines, items, "{list}");
    assert_is_csv_of(&export(user, list, CSV).await, items, list);
}

fn assert_is_csv_of(csv: &str, items: &[String], list: &str) {
    let mut rows = parse_csv(csv).into_iter();
    let header = rows.next().unwrap();
    let rows: Vec<Vec<String>> = rows.collect();
    assert_eq!(rows.len(), items.len(), "{list}");
    for (row, item) in rows.iter().zip(items) {
        let item: Value = serde_json::from_str(item).unwrap();
        let expected = header.iter().map(|name| cell_of(&item[name], name == "user_id"));
        assert_eq!(*row, expected.collect::<Vec<_>>(), "{list}");
        let fields: Vec<&String> = item.as_object().unwrap().keys().collect();
        assert!(fields.iter().all(|field| header.contains(field)), "{list}: {header:?} has not all of {fields:?}");
    }
}

/// Deductions with texts that are awkward in a CSV; one of them is given back in part.
async fn with_awkward_texts(database: Database) -> TestServer {
    let server = provisioned(database).await;
    let user = server.user(OWN);
    for (n, user_id) in [
        "=HYPERLINK(\"http://evil.test\",\"click\")",
        "+1",
        "-2+3",
        "@SUM(A1)",
        "user,7",
        "user;=7",
        "say \"hi\"",
        "名前 🚀",
        "'quoted'",
        "a=b",
    ]
    .iter()
    .enumerate()
    {
        let metadata = json!({"note": user_id, "=key": "-1", "n": n.to_string()});
        let body = json!({"feature_code": "render", "quantity": "1.5", "user_id": user_id, "metadata": metadata});
        let answer = user.post(&path(OWN, "/credits/deduct"), &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let body = json!({"feature_code": "render", "credits": "2.5"});
    assert_eq!(user.post(&path(OWN, "/credits/deduct"), &body).await.status, 200);
    let newest = user.get(&path(OWN, "/usage?limit=1")).await.json();
    let refund = path(OWN, &format!("/usage/{}/refund", newest["items"][0]["usage_id"].as_str().unwrap()));
    assert_eq!(user.post(&refund, &json!({"credits": 1})).await.status, 200);
    server
}

#[tokio::test]
async fn an_export_has_the_rows_of_all_pages_in_every_form_and_with_every_filter() {
    for database in Database::ALL {
        let server = with_awkward_texts(database).await;
        let user = server.user(OWN);
        let middle = user.get(&path(OWN, "/usage?limit=1&order=asc")).await.json();
        let middle = middle["items"][0]["recorded_at"].as_str().unwrap().to_owned();
        let grant = user.get(&path(OWN, "/ledger?limit=1")).await.json();
        let grant = grant["items"][0]["grant_id"].as_str().unwrap().to_owned();
        for filters in [
            "?order=asc".to_owned(),
            "?order=desc".to_owned(),
            format!("?from={middle}"),
            format!("?to={middle}"),
            format!("?order=asc&from={middle}&to=2027-01-01T00:00:00Z"),
            format!("?order=asc&to={middle}"),
            "?from=2027-01-01T00:00:00Z".to_owned(),
        ] {
            for list in LISTS {
                let list = path(OWN, &format!("{list}{filters}"));
                assert_exports(&user, &list, &items_of_pages(&user, &list).await).await;
            }
        }
        for list in [
            "/usage?feature_code=render",
            "/usage?feature_code=unused&order=asc",
            &format!("/ledger?grant_id={grant}&order=asc"),
        ] {
            let list = path(OWN, list);
            let items = items_of_pages(&user, &list).await;
            assert_eq!(items.is_empty(), list.contains("unused"), "{list}");
            assert_exports(&user, &list, &items).await;
        }
    }
}

#[tokio::test]
async fn an_export_begins_where_its_cursor_says() {
    for database in Database::ALL {
        let server = with_awkward_texts(database).await;
        let user = server.user(OWN);
        for list in LISTS {
            for order in ["asc", "desc"] {
                let list = path(OWN, &format!("{list}?order={order}"));
                let all = items_of_pages(&user, &list).await;
                let page = user.get(&format!("{list}&limit=4")).await.json();
                let from = format!("{list}&cursor={}", page["next"].as_str().unwrap());
                assert_exports(&user, &from, &all[4..]).await;
                let other = from.replace(order, if order == "asc" { "desc" } else { "asc" });
                get(&user, &other, CSV).await.is_problem(422, "invalid-cursor");
            }
        }
    }
}

#[tokio::test]
async fn the_accept_header_chooses_the_form() {
    let server = with_awkward_texts(Database::Sqlite).await;
    let user = server.user(OWN);
    for list in LISTS {
        let list = path(OWN, list);
        for (accept, media_type) in [
            ("*/*", "application/json"),
            ("application/json", "application/json"),
            ("text/csv;q=0.5, application/json;q=0.4", CSV),
            ("application/x-ndjson, */*;q=0.1", NDJSON),
            ("text/*", CSV),
        ] {
            let answer = get(&user, &list, accept).await;
            assert_eq!(answer.status, 200);
            assert!(answer.header("content-type").starts_with(media_type), "{list} {accept}: {:?}", answer.headers);
            let vary: Vec<_> = answer.headers.get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
            let vary = vary.join(", ").to_lowercase();
            let named: Vec<_> = vary.split(", ").collect();
            assert!(named.contains(&"accept") && named.contains(&"accept-encoding"), "{vary}");
        }
        for bad in ["text/html", "application/json;q=0", "text/csv;q=0"] {
            get(&user, &list, bad).await.is_problem(406, "not-acceptable");
        }
        let answer = get(&user, &list, CSV).await;
        assert_eq!(answer.header("content-type"), "text/csv; charset=utf-8; header=present");
        let name = list.rsplit('/').next().unwrap();
        assert_eq!(answer.header("content-disposition"), format!("attachment; filename=\"{name}-{OWN}.csv\""));
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    for other in ["/grants", "/purchases", "/holds"] {
        get(&user, &path(OWN, other), CSV).await.is_problem(406, "not-acceptable");
    }
}

#[tokio::test]
async fn an_export_takes_no_limit_and_needs_a_workspace() {
    let server = provisioned(Database::Sqlite).await;
    let user = server.user_of(Tenancy::All, Scope::ALL);
    for list in LISTS {
        let answer = get(&user, &path(OWN, &format!("{list}?limit=10")), CSV).await;
        answer.is_problem(422, "invalid-field");
        assert_eq!(answer.json()["errors"][0]["parameter"], "limit");
        get(&user, &path(FOREIGN, list), NDJSON).await.is_problem(404, "workspace-not-found");
    }
    assert_eq!(export(&user, &path(OWN, "/usage"), NDJSON).await, "");
    assert_eq!(parse_csv(&export(&user, &path(OWN, "/usage"), CSV).await).len(), 1);
}

/// The header of the CSV is that of the document's example, and has every field.
#[tokio::test]
async fn the_csv_has_the_columns_that_the_document_says() {
    let server = provisioned(Database::Sqlite).await;
    let document = server.anyone().get("/openapi.json").await.json();
    for (list, schema) in [("/usage", "UsageLog"), ("/ledger", "LedgerEntry"), ("/analytics/usage", "UsageFigureView")]
    {
        let operation = &document["paths"][format!("/v1/workspaces/{{workspace_id}}{list}")]["get"];
        let content = &operation["responses"]["200"]["content"];
        let example = parse_csv(content[CSV]["example"].as_str().unwrap());
        let sent = parse_csv(&export(&server.user(OWN), &path(OWN, list), CSV).await);
        assert_eq!(sent[0], example[0], "{list}");
        let mut columns = sent[0].clone();
        columns.sort();
        let fields: Vec<_> =
            document["components"]["schemas"][schema]["properties"].as_object().unwrap().keys().collect();
        assert_eq!(columns.iter().collect::<Vec<_>>(), fields, "{list}");
        let item = &content["application/json"]["example"]["items"][0];
        let line: Value = serde_json::from_str(content[NDJSON]["example"].as_str().unwrap()).unwrap();
        assert_eq!(line, *item, "{list}");
        assert_is_csv_of(content[CSV]["example"].as_str().unwrap(), &[item.to_string()], list);
    }
}

/// The only row, again and again: each a microsecond before the next, with texts that tell them apart.
const FILL: &str = "
insert into usage_logs
    (workspace_id, seq, command_id, feature_code, user_id, credits, quantity, occurred_at, recorded_at, metadata)
select workspace_id, n, command_id, feature_code, user_id || n, credits, quantity, occurred_at, {recorded_at}, metadata
from usage_logs cross join {numbers}";

/// Gives the workspace that many usage logs, older than its own.
async fn fill(database: Database, server: &TestServer, count: usize) {
    let statement = |recorded_at: &str, numbers: &str| {
        AssertSqlSafe(FILL.replace("{recorded_at}", recorded_at).replace("{numbers}", numbers))
    };
    let test_database = server.database();
    let rows = match database {
        Database::Sqlite => {
            let numbers = format!(
                "(with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < {count})
                select n from numbers) numbers"
            );
            let file = SqliteConnectOptions::new().filename(test_database.sqlite_file());
            let mut connection = file.connect().await.unwrap();
            let filled = statement(&format!("recorded_at + n - {count} - 1"), &numbers);
            connection.execute(filled).await.unwrap().rows_affected()
        }
        Database::Postgres => {
            let recorded_at = format!("recorded_at + (n - {count} - 1) * interval '1 microsecond'");
            let mut connection = test_database.postgres_options().connect().await.unwrap();
            let filled = statement(&recorded_at, &format!("generate_series(1, {count}) numbers(n)"));
            connection.execute(filled).await.unwrap().rows_affected()
        }
    };
    assert_eq!(usize::try_from(rows).unwrap(), count);
}

async fn deduct(user: &User<'_>) {
    let body = json!({"feature_code": "render", "credits": "0.01", "user_id": "user-7"});
    let answer = user.post(&deduct_path(), &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn a_large_export_is_the_same_as_the_pages_while_deductions_go_on() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        deduct(&user).await;
        fill(database, &server, MANY).await;
        let is_over = AtomicBool::new(false);
        let export_all = async {
            let mut exports = Vec::new();
            for order in ["asc", "desc"] {
                let list = path(OWN, &format!("/usage?order={order}"));
                exports.push((order, export(&user, &list, NDJSON).await, export(&user, &list, CSV).await));
            }
            is_over.store(true, Ordering::Relaxed);
            exports
        };
        let deduct_all = async {
            let mut deductions = 1;
            while !is_over.load(Ordering::Relaxed) {
                deduct(&user).await;
                deductions += 1;
            }
            deductions
        };
        let (exports, deductions) = tokio::join!(export_all, deduct_all);
        assert!(deductions > 10, "{deductions} deductions went on meanwhile");
        let items = items_of_pages(&user, &path(OWN, "/usage?order=asc")).await;
        assert_eq!(items.len(), MANY + deductions);
        for (order, ndjson, csv) in exports {
            let mut lines: Vec<String> = ndjson.lines().map(str::to_owned).collect();
            let rows = parse_csv(&csv).len() - 1;
            if order == "desc" {
                lines.reverse();
            }
            assert!((MANY + 1..=items.len()).contains(&lines.len()), "{order}: {}", lines.len());
            assert!(lines == items[..lines.len()], "{order}: the rows differ from the pages");
            // The CSV came after it.
            assert!((lines.len()..=items.len()).contains(&rows), "{order}: {rows}");
            let mut expected = items[..rows].to_vec();
            if order == "desc" {
                expected.reverse();
            }
            assert_is_csv_of(&csv, &expected, order);
        }
    }
}

/// Usage of three features on every second day of so many days before NOW. No plan has such codes.
const FILL_FIGURES: &str = "
insert into usage_days (version, workspace_id, day, feature_code, partition_id, credits, refunded, quantity, deductions, refused)
select 1, {workspace}, {day}, code, 0, n, 1, 2, 3, 4 from {numbers} cross join
    (select '=1+1' as code union all select '@sum' union all select 'render') codes
where n % 2 = 0";

async fn fill_figures(database: Database, server: &TestServer, days: i64) {
    let midnight = Day::of(instant(NOW)).start();
    let numbers = format!(
        "(with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < {days})
        select n from numbers) numbers"
    );
    let statement = |workspace: String, day: String| {
        let text = FILL_FIGURES.replace("{workspace}", &workspace).replace("{day}", &day);
        AssertSqlSafe(text.replace("{numbers}", &numbers))
    };
    let test_database = server.database();
    match database {
        Database::Sqlite => {
            let day = format!("{} - n * {}", midnight.micros(), 86_400_000_000_i64);
            let file = SqliteConnectOptions::new().filename(test_database.sqlite_file());
            let mut connection = file.connect().await.unwrap();
            connection.execute(statement(format!("x'{}'", OWN.0.simple()), day)).await.unwrap();
        }
        Database::Postgres => {
            let day = format!("timestamptz '{midnight}' - n * interval '24 hours'");
            let mut connection = test_database.postgres_options().connect().await.unwrap();
            connection.execute(statement(format!("'{OWN}'"), day)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn usage_by_day_and_feature_is_exported_from_the_first_day_on() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        fill_figures(database, &server, 1200).await;
        let list = |query: String| path(OWN, &format!("{ANALYTICS}{query}"));
        // Pages are about 400 days at most.
        let mut all = Vec::new();
        for group in ["day,feature", "day"] {
            let mut items = Vec::new();
            for part in 0..4 {
                let [from, to] = [part, part + 1].map(|part| Day::of(instant(NOW)).plus(part * 400 - 1599));
                let pages = list(format!("?from={from}&to={to}&group={group}"));
                items.extend(items_of_pages(&user, &pages).await);
            }
            assert_export_of_figures(&user, &list(format!("?group={group}")), &items).await;
            all = items;
        }
        assert_eq!(all.len(), 600, "every second day");
        let some = list(format!("?from={}&to={}&group=feature", "2025-08-01", "2026-02-01"));
        let items = items_of_pages(&user, &some).await;
        assert_eq!(items.len(), 3);
        assert_export_of_figures(&user, &some, &items).await;
        let until = export(&user, &list("?group=day&to=2024-01-01".into()), NDJSON).await;
        assert!(until.lines().eq(all.iter().take(until.lines().count())) && !until.is_empty());
        let total = export(&user, &list("?group=none".into()), NDJSON).await;
        let total: Value = serde_json::from_str(&total).unwrap();
        assert_eq!((&total["deductions"], &total["refused"]), (&json!(3 * 3 * 600), &json!(3 * 4 * 600)));

        let pages = list("?group=day,feature&from=2026-01-01&to=2026-06-01".into());
        let items = items_of_pages(&user, &pages).await;
        let first = user.get(&format!("{pages}&limit=4")).await.json();
        let rest = format!("{pages}&cursor={}", first["next"].as_str().unwrap());
        assert_export_of_figures(&user, &rest, &items[4..]).await;
    }
}

async fn assert_export_of_figures(user: &User<'_>, list: &str, items: &[String]) {
    let lines: Vec<String> = export(user, list, NDJSON).await.lines().map(str::to_owned).collect();
    assert_eq!(lines, items, "{list}");
    let csv = export(user, list, CSV).await;
    assert!(!csv.contains(",=") && !csv.contains(",@"), "{list}: a formula");
    let mut rows = parse_csv(&csv).into_iter();
    let header = rows.next().unwrap();
    assert_eq!(rows.len(), items.len(), "{list}");
    for (row, item) in rows.zip(items) {
        let item: Value = serde_json::from_str(item).unwrap();
        let expected = header.iter().map(|name| cell_of(&item[name], name == "feature_code"));
        assert_eq!(row, expected.collect::<Vec<_>>(), "{list}");
    }
}

#[tokio::test]
async fn an_export_of_figures_takes_no_limit_and_needs_a_workspace() {
    let server = provisioned(Database::Sqlite).await;
    let user = server.user_of(Tenancy::All, Scope::ALL);
    let list = |query: &str| path(OWN, &format!("{ANALYTICS}{query}"));
    get(&user, &list("?limit=10"), CSV).await.is_problem(422, "invalid-field");
    get(&user, &list("?from=2026-02-01&to=2026-02-01"), CSV).await.is_problem(422, "invalid-field");
    get(&user, &list("?cursor=abc"), CSV).await.is_problem(422, "invalid-cursor");
    get(&user, &list(""), "text/html").await.is_problem(406, "not-acceptable");
    get(&user, &path(FOREIGN, ANALYTICS), NDJSON).await.is_problem(404, "workspace-not-found");
    let empty = get(&user, &list("?after_seq=1"), CSV).await;
    assert_eq!(parse_csv(&empty.text).len(), 1);
    let name = format!("attachment; filename=\"usage-analytics-{OWN}.csv\"");
    assert_eq!(empty.header("content-disposition"), name);
    let page = user.get(&list("?after_seq=1")).await.json();
    let as_of: Value = serde_json::from_str(empty.header("x-as-of")).unwrap();
    assert_eq!(as_of, page["as_of"]);
}
