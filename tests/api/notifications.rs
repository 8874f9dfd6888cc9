//! Notifications over HTTP, on both databases.

use serde_json::{Value, json};

use crate::databases::Database;
use crate::harness::{FOREIGN, NOW, OWN, TestServer, deduct_path, instant, path, provisioned};

async fn post(server: &TestServer, path: &str, body: Value) -> Value {
    let answer = server.user(OWN).post(path, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn refuse(server: &TestServer) {
    let answer = server.user(OWN).post(&deduct_path(), &json!({"feature_code": "render", "credits": "5000"})).await;
    assert_eq!(answer.status, 402, "{}", answer.text);
}

/// A month in which credits run out, are bought and run out again; the next one, and the end of the subscription.
async fn with_history(database: Database) -> TestServer {
    let server = provisioned(database).await;
    post(&server, &deduct_path(), json!({"feature_code": "render", "credits": "910"})).await;
    refuse(&server).await;
    refuse(&server).await;
    let bought = json!({"credits": "100", "amount_minor": 1000, "currency": "EUR", "payment_reference": "pay-1"});
    post(&server, &path(OWN, "/credits/purchase"), bought).await;
    refuse(&server).await;
    server.clock.set(instant(NOW).plus(chrono::TimeDelta::days(40)));
    post(&server, &path(OWN, "/credits/reset"), json!({})).await;
    post(&server, &path(OWN, "/subscription/cancel"), json!({"effective": "immediate"})).await;
    server
}

/// The parameter that waits for all events.
async fn after_all(server: &TestServer) -> String {
    let events = server.user(OWN).get("/v1/events?limit=200").await.json();
    let last = events["items"].as_array().unwrap().last().unwrap()["workspaceseq"].as_str().unwrap().to_owned();
    format!("?after_seq={last}")
}

async fn list(server: &TestServer, query: &str) -> Value {
    let answer = server.user(OWN).get(&path(OWN, &format!("/notifications{query}"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

fn column(page: &Value, name: &str) -> Vec<Value> {
    page["items"].as_array().unwrap().iter().map(|item| item[name].clone()).collect()
}

#[tokio::test]
async fn what_people_should_be_told_is_listed_once_with_its_figures() {
    for database in Database::ALL {
        let server = with_history(database).await;
        let found = list(&server, &after_all(&server).await).await;
        assert_eq!((&found["as_of"]["lag_seconds"], &found["as_of"]["incomplete"]), (&json!(0), &json!(false)));
        // Both of one event are in the order of their ids, which is not told.
        let mut kinds = column(&found, "kind");
        kinds[1..3].sort_by_key(Value::to_string);
        let expected = [
            // The end of the subscription has taken the allowance.
            "low_credit",
            "plan_changed",
            "statement_closed",
            "statement_closed",
            "credits_exhausted",
            "credits_exhausted",
            "low_credit",
        ];
        assert_eq!(kinds, expected);
        let items = found["items"].as_array().unwrap();
        assert_eq!(
            items[6]["data"],
            json!({"threshold_credits": "100", "available_credits": "90", "current_credits": "90"})
        );
        assert_eq!((&items[6]["subject"], &items[6]["workspaceseq"]), (&json!("100"), &json!("0000000000000000003")));
        assert_eq!(
            (&items[5]["subject"], &items[4]["subject"]),
            (&json!("0000000000000000001"), &json!("0000000000000000006"))
        );
        let refused = json!({
            "feature_code": "render", "requested_credits": "5000", "available_credits": "190", "current_credits": "190"
        });
        assert_eq!(items[4]["data"], refused);
        let events = server.user(OWN).get("/v1/events?limit=200").await.json();
        for item in items {
            let seq = item["workspaceseq"].as_str().unwrap().parse::<usize>().unwrap();
            let event = &events["items"][seq - 1];
            assert_eq!((&item["event_id"], &item["created_at"]), (&event["id"], &event["time"]));
        }
        let statements = server.user(OWN).get(&path(OWN, &format!("/statements{}", after_all(&server).await))).await;
        let told = list(&server, "?kind=statement_closed").await;
        let closed = |name: &str| {
            let all = statements.json()["items"].as_array().unwrap().clone();
            all.into_iter().filter(|one| one["state"] == "closed").map(|one| one[name].clone()).collect::<Vec<_>>()
        };
        assert_eq!(column(&told, "period_start"), closed("period_start"));
        assert_eq!(column(&told, "workspaceseq"), closed("last_seq"));
        let data: Vec<_> = column(&told, "data").iter().map(|data| data["closing_credits"].clone()).collect();
        assert_eq!(data, closed("closing"));
    }
}

#[tokio::test]
async fn notifications_are_listed_by_kind_and_by_pages() {
    for database in Database::ALL {
        let server = with_history(database).await;
        list(&server, &after_all(&server).await).await;
        for kind in ["", "&kind=credits_exhausted", "&kind=plan_changed", "&kind=credits_expiring"] {
            let whole = list(&server, &format!("?limit=200{kind}")).await;
            let expected = column(&whole, "notification_id");
            assert!(
                kind.is_empty() || column(&whole, "kind").iter().all(|found| kind.ends_with(found.as_str().unwrap()))
            );
            let (mut found, mut query) = (Vec::new(), format!("?limit=1{kind}"));
            loop {
                let page = list(&server, &query).await;
                found.extend(column(&page, "notification_id"));
                let Some(next) = page["next"].as_str() else { break };
                assert_eq!(page["has_more"], true);
                query = format!("?limit=1&cursor={next}{kind}");
            }
            assert_eq!(found, expected, "{kind}");
        }
        let next = list(&server, "?limit=1").await["next"].as_str().unwrap().to_owned();
        let other = server.user(OWN).get(&path(OWN, &format!("/notifications?kind=low_credit&cursor={next}"))).await;
        other.is_problem(422, "invalid-cursor");
    }
}

#[tokio::test]
async fn parameters_of_the_list_are_checked() {
    let server = provisioned(Database::Sqlite).await;
    let user = server.user(OWN);
    for (query, code) in [
        ("?kind=other", "invalid-field"),
        ("?kind=", "invalid-field"),
        ("?after_seq=x", "invalid-field"),
        ("?limit=201", "invalid-field"),
        ("?cursor=abc", "invalid-cursor"),
        ("?order=asc", "unknown-field"),
    ] {
        user.get(&path(OWN, &format!("/notifications{query}"))).await.is_problem(422, code);
    }
    server.user(FOREIGN).get(&path(FOREIGN, "/notifications")).await.is_problem(404, "workspace-not-found");
    assert_eq!(list(&server, "?after_seq=1").await["items"], json!([]), "a new workspace need not be told anything");
}
