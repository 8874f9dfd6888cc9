//! A clock that is ahead once, and steps back: what it has recorded stays in order, and nobody is locked out.

use serde_json::json;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::plan::RateLimit;

use crate::databases::Database;
use crate::harness::{OWN, User, instant, path, pro, provisioned, start_on};

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
async fn a_rate_is_limited_by_the_time_of_the_request() {
    for database in Database::ALL {
        let mut plan = pro();
        plan.rate_limit = Some(RateLimit { credits: Credits::whole(10), window_s: 60 });
        let server = start_on(database, &[plan]).await;
        let user = server.user(OWN);
        assert_eq!(user.put(&path(OWN, ""), &json!({"plan_code": "pro", "name": "Acme"})).await.status, 201);
        let body = json!({"feature_code": "render", "credits": 10});
        let deduct = async || user.post(&path(OWN, "/credits/deduct"), &body).await;
        // Two minutes ahead once, and then right.
        server.clock.set(instant("2026-06-01T12:02:00Z"));
        assert_eq!(deduct().await.status, 200);
        server.clock.set(instant("2026-06-01T12:00:20Z"));
        assert_eq!(deduct().await.status, 200);
        let refused = deduct().await;
        refused.is_problem(429, "rate-exceeded");
        let seconds: i64 = refused.header("retry-after").parse().unwrap();
        assert_eq!(seconds, 41, "the window ends at 12:01:00");
        server.clock.set(instant("2026-06-01T12:01:01Z"));
        assert_eq!(deduct().await.status, 200, "after that time it passes");
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
