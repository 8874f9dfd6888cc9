//! The balance as it was recorded at an instant.

use serde_json::json;
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{FOREIGN, NOW, OWN, deduct_path, deduction, instant, path, provisioned};

#[tokio::test]
async fn the_balance_of_an_instant_is_the_one_that_was_recorded_then() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        for hour in [13, 14] {
            server.clock.set(instant(&format!("2026-06-01T{hour}:00:00Z")));
            assert_eq!(server.user(OWN).post(&deduct_path(), &deduction()).await.status, 200);
        }
        let at = async |at: &str| {
            let answer = server.user(OWN).get(&path(OWN, &format!("/credits?at={at}"))).await;
            assert_eq!(answer.status, 200, "{at}: {}", answer.text);
            answer.json()
        };
        for (asked, credits, recorded_at) in [
            ("2026-06-01T12:00:00Z", "1000", "2026-06-01T12:00:00.000000Z"),
            ("2026-06-01T12:59:59.999999Z", "1000", "2026-06-01T12:00:00.000000Z"),
            ("2026-06-01T13:00:00Z", "997.5", "2026-06-01T13:00:00.000000Z"),
            ("2026-06-01T15:30:00%2B02:00", "997.5", "2026-06-01T13:00:00.000000Z"),
            ("2026-06-01T14:00:00Z", "995", "2026-06-01T14:00:00.000000Z"),
        ] {
            let balance = at(asked).await;
            assert_eq!((&balance["current_credits"], &balance["recorded_at"]), (&json!(credits), &json!(recorded_at)));
        }
        let before = json!({"workspace_id": OWN, "at": "2026-06-01T11:59:59.999999Z", "current_credits": "0"});
        assert_eq!(at("2026-06-01T11:59:59.999999Z").await, before);
        // What is due is not recorded yet.
        server.clock.set(instant("2026-07-02T00:00:00Z"));
        assert_eq!(at("2026-07-02T00:00:00Z").await["current_credits"], "995");
        assert_eq!(server.user(OWN).get(&path(OWN, "/credits")).await.json()["current_credits"], "1200");
    }
}

#[tokio::test]
async fn an_instant_that_is_in_the_future_or_malformed_is_refused() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        for bad in ["2026-06-01T12:00:10.000001Z", "9999-12-31T23:59:59Z", "yesterday", "2026-06-01", "1", ""] {
            let answer = user.get(&path(OWN, &format!("/credits?at={bad}"))).await;
            assert_eq!(answer.is_problem(422, "invalid-field").json()["errors"][0]["parameter"], "at", "{bad}");
        }
        // The clock of a caller may be a little ahead.
        for good in [NOW, "2026-06-01T12:00:10Z"] {
            let answer = user.get(&path(OWN, &format!("/credits?at={good}"))).await;
            assert_eq!(answer.json()["current_credits"], "1000", "{}", answer.text);
        }
        user.get(&path(OWN, "/credits?ad=2026-06-01T12:00:00Z")).await.is_problem(422, "unknown-field");
    }
}

#[tokio::test]
async fn an_unknown_workspace_has_no_balance() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let all = server.user_of(Tenancy::All, Scope::ALL);
        let unknown = all.get(&path(FOREIGN, &format!("/credits?at={NOW}"))).await;
        unknown.is_problem(404, "workspace-not-found");
    }
}
