//! Purchases can be found again, with what was paid, what remains and what the caller attached.

use serde_json::{Value, json};
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{FOREIGN, OWN, TestServer, path, provisioned};

fn purchase(reference: &str) -> Value {
    json!({
        "credits": "500", "bonus_credits": "50", "amount_minor": 4900, "currency": "EUR",
        "payment_reference": reference, "expires_at": "2026-12-01T00:00:00Z", "metadata": {"order": reference}
    })
}

async fn buy(server: &TestServer, reference: &str) -> Value {
    let answer = server.user(OWN).post(&path(OWN, "/credits/purchase"), &purchase(reference)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

#[tokio::test]
async fn a_purchase_is_found_by_its_payment_and_in_the_list() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        let bought = [buy(&server, "pay-1").await, buy(&server, "pay-2").await];
        // The bonus of the first is spent first.
        user.post(&path(OWN, "/credits/deduct"), &json!({"feature_code": "render", "credits": 1020})).await;

        let found = user.get(&path(OWN, "/purchases?payment_reference=pay-1")).await.json();
        let item = &found["items"][0];
        for (field, value) in [
            ("grant_id", bought[0]["grant_id"].clone()),
            ("bonus_grant_id", bought[0]["bonus_grant_id"].clone()),
            ("recorded_at", bought[0]["recorded_at"].clone()),
            ("credits", json!("500")),
            ("remaining_credits", json!("500")),
            ("bonus_credits", json!("50")),
            ("remaining_bonus_credits", json!("30")),
            ("amount_minor", json!(4900)),
            ("currency", json!("EUR")),
            ("payment_reference", json!("pay-1")),
            ("expires_at", json!("2026-12-01T00:00:00.000000Z")),
            ("metadata", json!({"order": "pay-1"})),
        ] {
            assert_eq!(item[field], value, "{field}");
        }
        assert_eq!(user.get(&path(OWN, "/purchases?payment_reference=pay-3")).await.json()["items"], json!([]));

        let first = user.get(&path(OWN, "/purchases?limit=1")).await.json();
        assert_eq!((&first["items"][0]["payment_reference"], &first["has_more"]), (&json!("pay-2"), &json!(true)));
        let next = first["next"].as_str().unwrap();
        let second = user.get(&path(OWN, &format!("/purchases?limit=1&cursor={next}"))).await.json();
        assert_eq!((&second["items"][0], &second["has_more"]), (item, &json!(false)));
        let oldest = user.get(&path(OWN, "/purchases?order=asc")).await.json();
        assert_eq!(oldest["items"], json!([item, first["items"][0]]));

        let foreign = server.user(FOREIGN);
        foreign.get(&path(FOREIGN, "/purchases")).await.is_problem(404, "workspace-not-found");
        foreign.get(&path(FOREIGN, "/purchases?payment_reference=pay-1")).await.is_problem(404, "workspace-not-found");
    }
}

#[tokio::test]
async fn a_payment_that_was_booked_names_its_grant() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let bought = buy(&server, "pay-1").await;
        let again = server.user(OWN).post(&path(OWN, "/credits/purchase"), &purchase("pay-1")).await;
        again.is_problem(409, "payment-reference-used");
        assert_eq!(again.json()["grant_id"], bought["grant_id"]);
    }
}

#[tokio::test]
async fn metadata_is_given_back() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user_of(Tenancy::All, Scope::ALL);
        let id = uuid::Uuid::from_u128(77);
        let body = json!({"name": "Acme", "plan_code": "pro", "monthly_limit": "700", "metadata": {"crm": "A-1"}});
        let created = user.put(&format!("/v1/workspaces/{id}"), &body).await;
        assert_eq!(created.status, 201, "{}", created.text);
        let workspace = user.get(&format!("/v1/workspaces/{id}")).await.json();
        assert_eq!((&workspace["metadata"], &workspace["monthly_limit"]), (&json!({"crm": "A-1"}), &json!("700")));

        let bought = buy(&server, "pay-1").await;
        let credits = server.user(OWN).get(&path(OWN, "/credits")).await.json();
        let grants = credits["grants"].as_array().unwrap();
        for (id, metadata) in [("grant_id", "pay-1"), ("bonus_grant_id", "pay-1")] {
            let grant = grants.iter().find(|grant| grant["grant_id"] == bought[id]).unwrap();
            assert_eq!(grant["metadata"], json!({"order": metadata}));
        }
        let allowance = grants.iter().find(|grant| grant["source"] == "allowance").unwrap();
        assert_eq!(allowance.get("metadata"), None);
    }
}

#[tokio::test]
async fn what_waits_is_told_where_a_subscription_changes() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        let post = async |rest: &str, body: Value| user.post(&path(OWN, rest), &body).await.json();
        buy(&server, "pay-1").await;
        post("/subscription/cancel", json!({"effective": "period_end", "reason": "too large"})).await;
        let restart = json!({"plan_code": "pro", "effective": "immediate", "credit_policy": "restart"});
        let changed = post("/subscription/change", restart).await;
        assert_eq!(changed["subscription"]["pending"]["kind"], "cancel", "{changed}");
        let events = user.get("/v1/events?type=SubscriptionChanged").await.json();
        let data = &events["items"][1]["data"];
        assert_eq!(data["pending"], changed["subscription"]["pending"], "{data}");
        assert_eq!(data["expiring"], changed["expiring"]);
        let expiring: Vec<_> =
            data["expiring"].as_array().unwrap().iter().map(|grant| grant["credits"].clone()).collect();
        assert_eq!(expiring.len(), 2);
        assert_eq!(data["expiring"][0]["expires_at"], "2026-12-01T00:00:00.000000Z");
    }
}
