//! The usage by day and feature over HTTP, on both databases.

use serde_json::{Value, json};
use uuid::Uuid;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::ids::WorkspaceId;
use visionscope_billing::domain::time::Day;

use crate::databases::Database;
use crate::harness::{NOW, OWN, TestServer, deduct_path, instant, path, provisioned};

async fn deduct(server: &TestServer, body: Value) -> Value {
    let answer = server.user(OWN).post(&deduct_path(), &body).await;
    answer.json()
}

/// The figures once they contain all events.
async fn usage(server: &TestServer, query: &str) -> Value {
    let events = server.user(OWN).get("/v1/events?limit=200").await.json();
    let last = events["items"].as_array().unwrap().last().unwrap()["workspaceseq"].as_str().unwrap().to_owned();
    let answer = server.user(OWN).get(&path(OWN, &format!("/analytics/usage?after_seq={last}{query}"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

fn today() -> String {
    Day::of(instant(NOW)).to_string()
}

#[tokio::test]
async fn usage_is_summed_up_by_day_and_feature_within_moments() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        deduct(&server, json!({"feature_code": "render", "credits": "2.5"})).await;
        let second = deduct(&server, json!({"feature_code": "render", "quantity": "3"})).await;
        deduct(&server, json!({"feature_code": "render", "credits": "100000"})).await;
        let usage_id = second["usage_id"].as_str().unwrap();
        let refund =
            server.user(OWN).post(&path(OWN, &format!("/usage/{usage_id}/refund")), &json!({"credits": 1})).await;
        assert_eq!(refund.status, 200);
        let found = usage(&server, "").await;
        let row = json!({
            "day": today(), "feature_code": "render", "credits": "4", "refunded_credits": "1", "quantity": "3",
            "deductions": 2, "refused": 1
        });
        assert_eq!((&found["items"], &found["has_more"]), (&json!([row]), &json!(false)));
        assert_eq!((&found["as_of"]["lag_seconds"], &found["as_of"]["incomplete"]), (&json!(0), &json!(false)));
        for (group, absent) in [("day", "feature_code"), ("feature", "day")] {
            let found = usage(&server, &format!("&group={group}")).await;
            let mut row = row.clone();
            row.as_object_mut().unwrap().remove(absent);
            assert_eq!(found["items"], json!([row]), "{group}");
        }
        let total = usage(&server, "&group=none").await;
        assert_eq!(total["items"][0]["credits"], "4");
        let before = usage(&server, "&from=2026-01-01&to=2026-02-01").await;
        assert_eq!((&before["items"], &before["from"]), (&json!([]), &json!("2026-01-01")));
        let logs = server.user(OWN).get(&path(OWN, "/usage")).await.json();
        let charged = logs["items"].as_array().unwrap().iter().map(|log| log["credits"].as_str().unwrap());
        let charged = Credits::sum(charged.map(|text| text.parse().unwrap())).unwrap();
        assert_eq!(charged.to_string(), "4");
    }
}

#[tokio::test]
async fn days_groups_and_events_are_checked() {
    let server = provisioned(Database::Sqlite).await;
    for (query, code) in [
        ("?from=2026-02-01&to=2026-02-01", "invalid-field"),
        ("?from=2025-01-01&to=2026-12-31", "invalid-field"),
        ("?from=2026-02-30", "invalid-field"),
        ("?from=2026-2-1", "invalid-field"),
        ("?group=week", "invalid-field"),
        ("?after_seq=-1", "invalid-field"),
        ("?after_seq=99999999999999999999", "invalid-field"),
        ("?cursor=abc", "invalid-cursor"),
    ] {
        let answer = server.user(OWN).get(&path(OWN, &format!("/analytics/usage{query}"))).await;
        assert_eq!(answer.json()["code"], code, "{query}");
        assert_eq!(answer.status, 422, "{query}");
    }
    let later = server.user(OWN).get(&path(OWN, "/analytics/usage?after_seq=0000000000000009999")).await;
    assert_eq!(later.status, 200, "an event that does not come is waited for, but not for ever");
    let other = WorkspaceId(Uuid::from_u128(1));
    server.user(OWN).get(&path(other, "/analytics/usage")).await.is_problem(404, "workspace-not-found");
}
