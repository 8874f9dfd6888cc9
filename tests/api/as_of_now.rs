//! Reads show what is due as done, whether the scheduler was there or not. These servers have none.

use serde_json::{Value, json};

use crate::databases::Database;
use crate::harness::{OWN, TestServer, instant, path, provisioned};

async fn get(server: &TestServer, rest: &str) -> Value {
    let answer = server.user(OWN).get(&path(OWN, rest)).await;
    assert_eq!(answer.status, 200, "{rest}: {}", answer.text);
    answer.json()
}

async fn post(server: &TestServer, rest: &str, body: Value) -> Value {
    let answer = server.user(OWN).post(&path(OWN, rest), &body).await;
    assert_eq!(answer.status, 200, "{rest}: {}", answer.text);
    answer.json()
}

async fn buy(server: &TestServer, credits: u32, expires_at: &str) {
    let body = json!({
        "credits": credits, "amount_minor": 100, "currency": "EUR", "payment_reference": format!("pay-{credits}"),
        "expires_at": expires_at
    });
    post(server, "/credits/purchase", body).await;
}

#[tokio::test]
async fn what_a_read_shows_after_the_period_and_an_expiry_is_what_the_next_command_finds() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        post(&server, "/credits/deduct", json!({"feature_code": "render", "credits": 700})).await;
        buy(&server, 50, "2026-07-03T12:00:00Z").await;
        server.clock.set(instant("2026-07-04T12:00:00Z"));

        let shown = get(&server, "/credits").await;
        assert_eq!(shown["period"]["start"], "2026-07-01T12:00:00.000000Z");
        assert_eq!((&shown["current_credits"], &shown["used_this_month"]), (&json!("1200"), &json!("0")), "{shown}");
        assert_eq!(shown["available_credits"], "1200", "{shown}");
        assert_eq!(get(&server, "/subscription").await["period"], shown["period"]);
        assert_eq!(get(&server, "").await["subscription"]["period"], shown["period"]);
        assert_eq!(get(&server, "/features").await["items"][1]["used_this_month"], "0");
        let ledger = get(&server, "/ledger").await["items"].as_array().unwrap().len();
        assert_eq!(get(&server, "/credits").await, shown, "a read changes nothing");

        let deducted = post(&server, "/credits/deduct", json!({"feature_code": "render", "credits": 1})).await;
        assert_eq!(deducted["current_credits"], "1199");
        let ids = |credits: &Value| {
            let grants = credits["grants"].as_array().unwrap();
            grants.iter().map(|grant| grant["grant_id"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&get(&server, "/credits").await), ids(&shown), "the ids of the new grants were shown before");
        assert!(get(&server, "/ledger").await["items"].as_array().unwrap().len() > ledger, "now it is recorded");
        assert_eq!(server.store().audit(10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_cancellation_that_is_due_is_shown_as_in_effect() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        post(&server, "/subscription/cancel", json!({"effective": "period_end"})).await;
        server.clock.set(instant("2026-07-04T12:00:00Z"));
        let subscription = get(&server, "/subscription").await;
        assert_eq!((&subscription["status"], subscription.get("pending")), (&json!("canceled"), None));
        assert_eq!(get(&server, "/credits").await["available_credits"], "0");
        let reset = server.user(OWN).post(&path(OWN, "/credits/reset"), &json!({})).await;
        assert_eq!(reset.status, 200, "{}", reset.text);
        assert_eq!(get(&server, "/subscription").await["status"], "canceled");
    }
}
