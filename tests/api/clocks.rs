//! A clock that is ahead once, and steps back: what it has recorded stays in order, and nobody is locked out.

use serde_json::json;

use crate::databases::Database;
use crate::harness::{OWN, User, instant, path, provisioned};

async fn spend(user: &User<'_>) -> serde_json::Value {
    let answer = user.post(&path(OWN, "/credits/deduct"), &json!({"feature_code": "render", "credits": 1})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

#[tokio::test]
async fn a_clock_that_was_ahead_once_decides_nothing_afterwards() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        server.clock.set(instant("2026-06-01T12:02:00Z"));
        spend(&user).await;
        server.clock.set(instant("2026-06-01T12:00:00Z"));
        assert_eq!(spend(&user).await["recorded_at"], "2026-06-01T12:02:00.000001Z", "history stays in order");
        let bought = json!({
            "credits": 10, "amount_minor": 100, "currency": "EUR", "payment_reference": "pay-1",
            "expires_at": "2026-06-01T12:01:00Z"
        });
        assert_eq!(user.post(&path(OWN, "/credits/purchase"), &bought).await.status, 200);
        let credits = user.get(&path(OWN, "/credits")).await.json();
        assert_eq!(credits["available_credits"], "1008", "they can be spent at once: {credits}");
        server.clock.set(instant("2026-06-01T12:01:00Z"));
        assert_eq!(user.get(&path(OWN, "/credits")).await.json()["available_credits"], "998", "and no longer");
    }
}

#[tokio::test]
async fn a_boundary_that_was_passed_too_early_is_not_passed_again() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        spend(&user).await;
        for (now, used) in [("2026-07-01T12:00:01Z", "1"), ("2026-07-01T11:59:30Z", "2"), ("2026-07-01T12:00:02Z", "3")]
        {
            server.clock.set(instant(now));
            // Tokens are checked by the same clock.
            let user = server.user(OWN);
            assert_eq!(spend(&user).await["used_this_month"], used, "{now}");
            let period = &user.get(&path(OWN, "/credits")).await.json()["period"];
            assert_eq!(period["start"], "2026-07-01T12:00:00.000000Z", "{now}");
        }
        let events = server.user(OWN).get("/v1/events?type=CreditReset").await.json();
        assert_eq!(events["items"].as_array().unwrap().len(), 1);
        assert_eq!(server.store().audit(10).await.unwrap(), []);
    }
}
