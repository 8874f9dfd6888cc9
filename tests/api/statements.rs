//! Statements over HTTP, on both databases.

use std::io::Write as _;
use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use visionscope_billing::domain::time::Timestamp;

use crate::databases::Database;
use crate::harness::{FOREIGN, NOW, OWN, TestServer, deduct_path, instant, path, provisioned, send};

async fn post(server: &TestServer, path: &str, body: Value) -> Value {
    let answer = server.user(OWN).post(path, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// The parameter that waits for all events.
async fn after_all(server: &TestServer) -> String {
    let events = server.user(OWN).get("/v1/events?limit=200").await.json();
    let last = events["items"].as_array().unwrap().last().unwrap()["workspaceseq"].as_str().unwrap().to_owned();
    format!("?after_seq={last}")
}

async fn list(server: &TestServer, query: &str) -> Value {
    let answer = server.user(OWN).get(&path(OWN, &format!("/statements{query}"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

fn statement_path(statement: &Value) -> String {
    path(OWN, &format!("/statements/{}", statement["period_start"].as_str().unwrap()))
}

/// A month with everything, then two months that nobody came for.
async fn with_history(database: Database) -> TestServer {
    let server = provisioned(database).await;
    post(&server, &deduct_path(), json!({"feature_code": "render", "credits": "2.5"})).await;
    let used = post(&server, &deduct_path(), json!({"feature_code": "render", "quantity": "3"})).await;
    let refused = server.user(OWN).post(&deduct_path(), &json!({"feature_code": "render", "credits": "100000"})).await;
    assert_eq!(refused.status, 402);
    let refund = format!("/usage/{}/refund", used["usage_id"].as_str().unwrap());
    post(&server, &path(OWN, &refund), json!({"credits": 1})).await;
    let bought = json!({
        "credits": "100", "bonus_credits": "10", "amount_minor": 1000, "currency": "EUR", "payment_reference": "pay-1"
    });
    post(&server, &path(OWN, "/credits/purchase"), bought).await;
    server.clock.set(later());
    post(&server, &path(OWN, "/credits/reset"), json!({})).await;
    post(&server, &deduct_path(), json!({"feature_code": "render", "credits": "7"})).await;
    server
}

/// In the fourth period.
fn later() -> Timestamp {
    instant(NOW).plus(chrono::TimeDelta::days(100))
}

/// Canonical JSON, written here again and of nothing but the text of the answer.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by(|one, other| one.0.cmp(other.0));
            let fields = fields.iter().map(|(name, value)| format!("\"{name}\":{}", canonical(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Value::String(text) => format!("\"{text}\""),
        value => value.to_string(),
    }
}

fn sha256_of(answer: &str) -> String {
    let mut statement: Value = serde_json::from_str(answer).unwrap();
    let fields = statement.as_object_mut().unwrap();
    assert!(fields.remove("sha256").is_some() && fields.remove("as_of").is_some());
    let bytes = Sha256::digest(canonical(&statement));
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

#[test]
fn the_documented_statement_has_the_documented_hash() {
    let document: Value = serde_json::from_str(include_str!("../../openapi/openapi.json")).unwrap();
    let answer =
        &document["paths"]["/v1/workspaces/{workspace_id}/statements/{period_start}"]["get"]["responses"]["200"];
    let example = &answer["content"]["application/json"]["example"];
    assert_eq!(example["state"], "closed");
    assert_eq!(example["sha256"], sha256_of(&example.to_string()));
    assert_eq!(example["sha256"], sha256_of_the_page(&example.to_string()));
    assert!(include_str!("../../docs/FIGURES.md").contains(example["sha256"].as_str().unwrap()));
}

/// What the program in docs/FIGURES.md says.
fn sha256_of_the_page(answer: &str) -> String {
    let page = include_str!("../../docs/FIGURES.md");
    let program = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let mut python =
        Command::new("python3").args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    String::from_utf8(python.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn every_period_has_a_statement_and_a_stranger_can_compute_its_hash() {
    for database in Database::ALL {
        let server = with_history(database).await;
        let found = list(&server, &after_all(&server).await).await;
        assert_eq!((&found["as_of"]["lag_seconds"], &found["as_of"]["incomplete"]), (&json!(0), &json!(false)));
        let items = found["items"].as_array().unwrap();
        let column = |name: &str| items.iter().map(|item| item[name].clone()).collect::<Vec<_>>();
        assert_eq!(column("state"), ["open", "closed", "closed", "closed"]);
        assert_eq!(column("granted"), ["1000", "1000", "1000", "1000"]);
        // Of an allowance 200 credits roll over, once.
        assert_eq!(column("rolled_over"), ["0", "200", "200", "200"]);
        assert_eq!(column("expired"), ["0", "1000", "1000", "797"]);
        assert_eq!(column("closing"), ["1303", "310", "310", "310"]);
        for pair in items.windows(2) {
            assert_eq!((&pair[0]["opening"], &pair[0]["period_start"]), (&pair[1]["closing"], &pair[1]["period_end"]));
        }
        for item in items {
            let answer = server.user(OWN).get(&statement_path(item)).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let statement = answer.json();
            let mut figures = statement.clone();
            let fields = figures.as_object_mut().unwrap();
            assert!(fields.remove("lines").is_some() && fields.remove("as_of").is_some());
            assert_eq!(figures, *item);
            if item["state"] == "closed" {
                assert_eq!(item["sha256"], sha256_of(&answer.text));
                assert_eq!(item["sha256"], sha256_of_the_page(&answer.text));
            } else {
                assert_eq!((&item["sha256"], &item["closed_at"]), (&Value::Null, &Value::Null));
            }
        }
        let first = server.user(OWN).get(&statement_path(&items[3])).await.json();
        let line = json!({
            "feature_code": "render", "credits": "4", "refunded": "1", "quantity": "3", "deductions": 2, "refused": 1
        });
        assert_eq!(first["lines"], json!([line]));
        assert_eq!(
            (&first["purchased"], &first["bonus"], &first["consumed"]),
            (&json!("100"), &json!("10"), &json!("4"))
        );
        assert_eq!(server.user(OWN).get(&statement_path(&items[2])).await.json()["lines"], json!([]));
        assert_eq!(server.store().audit(10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn statements_are_listed_by_pages() {
    for database in Database::ALL {
        let server = with_history(database).await;
        let all = list(&server, &after_all(&server).await).await["items"].as_array().unwrap().clone();
        let (mut found, mut query) = (Vec::new(), "?limit=1".to_owned());
        loop {
            let page = list(&server, &query).await;
            found.extend(page["items"].as_array().unwrap().clone());
            let Some(next) = page["next"].as_str() else { break };
            assert_eq!(page["has_more"], true);
            query = format!("?limit=1&cursor={next}");
        }
        assert_eq!(found, all);
    }
}

#[tokio::test]
async fn a_statement_is_a_table_with_a_row_for_each_line() {
    for database in Database::ALL {
        let server = with_history(database).await;
        let items = list(&server, &after_all(&server).await).await["items"].as_array().unwrap().clone();
        let user = server.user(OWN);
        for (item, line) in [(&items[3], "render,4,1,3,2,1"), (&items[2], ",,,,,")] {
            let answer = send(user.request(Method::GET, &statement_path(item)).header("accept", "text/csv")).await;
            assert_eq!((answer.status.as_u16(), answer.header("content-type").starts_with("text/csv")), (200, true));
            let as_of: Value = serde_json::from_str(answer.header("x-as-of")).unwrap();
            assert_eq!((&as_of["lag_seconds"], &as_of["incomplete"]), (&json!(0), &json!(false)));
            let lines: Vec<_> = answer.text.split_terminator("\r\n").collect();
            assert_eq!(lines.len(), 2, "{}", answer.text);
            let names: Vec<_> = lines[0].split(',').collect();
            let own = &names[..names.len() - 6];
            let figures: Vec<_> = own
                .iter()
                .map(|name| item[*name].as_str().map_or_else(|| item[*name].to_string(), str::to_owned))
                .collect();
            assert_eq!(own.len(), item.as_object().unwrap().len(), "every figure has a column");
            assert_eq!(lines[1], format!("{},{line}", figures.join(",")));
        }
    }
}

#[tokio::test]
async fn statements_that_are_not_there_are_not_found() {
    let server = provisioned(Database::Sqlite).await;
    let user = server.user(OWN);
    for start in ["2020-01-01T00:00:00Z", "2020-01-01", "x", "2026-02-30T00:00:00Z"] {
        user.get(&path(OWN, &format!("/statements/{start}"))).await.is_problem(404, "statement-not-found");
    }
    server.user(FOREIGN).get(&path(FOREIGN, "/statements")).await.is_problem(404, "workspace-not-found");
    user.get(&path(OWN, "/statements?after_seq=x")).await.is_problem(422, "invalid-field");
    user.get(&path(OWN, "/statements?cursor=abc")).await.is_problem(422, "invalid-cursor");
    user.get(&path(OWN, "/statements?order=asc")).await.is_problem(422, "unknown-field");
}
