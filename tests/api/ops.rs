//! What operators look at and do, over HTTP and on both databases.

use serde_json::{Value, json};
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{Answer, OWN, TestServer, deduct_path, deduction, path, provisioned};

async fn get(server: &TestServer, path: &str) -> Answer {
    server.user_of(Tenancy::All, Scope::ALL).get(&format!("/v1/ops{path}")).await
}

async fn act(server: &TestServer, what: &str, reason: &str) -> Answer {
    let path = format!("/v1/ops/consumers/analytics/{what}");
    server.user_of(Tenancy::All, Scope::ALL).post_raw(&path, json!({"reason": reason}).to_string()).await
}

async fn usage(server: &TestServer, after_seq: &str) -> Value {
    server.user(OWN).get(&path(OWN, &format!("/analytics/usage?after_seq={after_seq}&group=none"))).await.json()
}

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !condition().await {
        assert!(begun.elapsed().as_secs() < 30, "not in time");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_consumer_is_paused_resumed_and_rebuilt_with_a_reason() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        server.user(OWN).post(&deduct_path(), &deduction()).await;
        assert_eq!(usage(&server, "2").await["items"][0]["credits"], "2.5");
        let paused = act(&server, "pause", "A check").await;
        assert_eq!((paused.status.as_u16(), &paused.json()["state"]), (200, &json!("paused")), "{}", paused.text);
        // The beat that runs while it is paused may still end.
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        server.user(OWN).post(&deduct_path(), &deduction()).await;
        let old = usage(&server, "3").await;
        assert_eq!(old["items"][0]["credits"], "2.5", "the figures stay as they are");
        let consumers = get(&server, "/consumers").await.json();
        let analytics = &consumers["items"][0];
        assert_eq!((&analytics["lag_events"], &analytics["reason"]), (&json!(1), &json!("A check")));
        assert_eq!(analytics["partitions"].as_array().unwrap().len(), 16);

        assert_eq!(act(&server, "resume", "Checked").await.json()["state"], "running");
        until(async || usage(&server, "3").await["items"][0]["credits"] == "5").await;
        let building = act(&server, "rebuild", "A restore").await.json();
        assert_eq!(building["building"]["version"], 2);
        act(&server, "rebuild", "Again").await.is_problem(409, "consumer-is-building");
        until(async || get(&server, "/consumers").await.json()["items"][0]["version"] == 2).await;
        assert_eq!(usage(&server, "3").await["items"][0]["credits"], "5", "the same figures");
        server.user(OWN).post(&deduct_path(), &deduction()).await;
        until(async || usage(&server, "4").await["items"][0]["credits"] == "7.5").await;

        let audit = get(&server, "/audit").await.json();
        let acts: Vec<_> =
            audit["items"].as_array().unwrap().iter().map(|act| act["action"].as_str().unwrap()).collect();
        assert_eq!(acts, ["consumer.rebuild", "consumer.resume", "consumer.pause"]);
        let first = &audit["items"][2];
        assert_eq!((&first["reason"], &first["before"]["state"]), (&json!("A check"), &json!("running")));
        assert_eq!((&first["after"]["state"], &first["target"]), (&json!("paused"), &json!("analytics")));
        let page = get(&server, "/audit?limit=2").await.json();
        let next = page["next"].as_str().unwrap();
        let rest = get(&server, &format!("/audit?limit=2&cursor={next}")).await.json();
        assert_eq!((&rest["items"][0], &rest["has_more"]), (first, &json!(false)));
        let letters = get(&server, "/dead-letters").await.json();
        assert_eq!((&letters["items"], &letters["groups"]), (&json!([]), &json!([])));
    }
}

#[tokio::test]
async fn what_operators_send_is_checked() {
    let server = provisioned(Database::Sqlite).await;
    let operator = server.user_of(Tenancy::All, Scope::ALL);
    for (path, body, status, code) in [
        ("consumers/other/pause", json!({"reason": "x"}), 404, "consumer-not-found"),
        ("consumers/analytics/pause", json!({}), 422, "invalid-field"),
        ("consumers/analytics/pause", json!({"reason": ""}), 422, "invalid-text"),
        ("consumers/analytics/pause", json!({"reason": "x", "by": "me"}), 422, "unknown-field"),
    ] {
        operator.post_raw(&format!("/v1/ops/{path}"), body.to_string()).await.is_problem(status, code);
    }
    for (path, code) in [
        ("audit?cursor=x", "invalid-cursor"),
        ("dead-letters?state=none", "invalid-field"),
        ("audit?by=me", "unknown-field"),
    ] {
        get(&server, &format!("/{path}")).await.is_problem(422, code);
    }
}
