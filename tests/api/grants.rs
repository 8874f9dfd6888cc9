//! Granting credits, voiding grants and listing them over HTTP, on both databases.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{Answer, FOREIGN, OWN, TestServer, instant, path, provisioned};

fn promotion(credits: &str) -> Value {
    json!({"credits": credits, "source": "promotion", "reason": "Welcome offer"})
}

async fn grant(server: &TestServer, body: &Value) -> Value {
    let answer = server.user(OWN).post(&path(OWN, "/grants"), body).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.json()
}

fn void_path(grant: &Value) -> String {
    path(OWN, &format!("/grants/{}/void", grant["grant_id"].as_str().unwrap()))
}

async fn void(server: &TestServer, grant: &Value, body: Value) -> Answer {
    server.user(OWN).post(&void_path(grant), &body).await
}

async fn get(server: &TestServer, rest: &str) -> Value {
    let answer = server.user(OWN).get(&path(OWN, rest)).await;
    assert_eq!(answer.status, 200, "{rest}: {}", answer.text);
    answer.json()
}

async fn get_grant(server: &TestServer, grant: &Value) -> Value {
    get(server, &format!("/grants/{}", grant["grant_id"].as_str().unwrap())).await
}

/// The credits of the grants of a list, in its order.
async fn listed(server: &TestServer, parameters: &str) -> Vec<Value> {
    let page = get(server, &format!("/grants?{parameters}")).await;
    page["items"].as_array().unwrap().iter().map(|grant| grant["credits"].clone()).collect()
}

#[tokio::test]
async fn a_grant_is_given_read_and_voided() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let body = json!({
            "credits": 100, "source": "adjustment", "priority": 7, "effective_at": "2026-06-02T00:00:00Z",
            "expires_at": "2026-12-01T00:00:00Z", "feature_scope": "off", "reason": "Outage of May",
            "metadata": {"ticket": "1042"}
        });
        let granted = grant(&server, &body).await;
        let expected = json!({
            "grant_id": granted["grant_id"], "source": "adjustment", "state": "open", "credits": "100",
            "remaining_credits": "100", "held_credits": "0", "priority": 7,
            "effective_at": "2026-06-02T00:00:00.000000Z", "expires_at": "2026-12-01T00:00:00.000000Z",
            "feature_scope": "off", "reason": "Outage of May", "metadata": {"ticket": "1042"},
            "created_at": granted["recorded_at"]
        });
        assert_eq!(get_grant(&server, &granted).await, expected);
        assert_eq!(get(&server, "/grants?limit=1").await["items"], json!([expected]));

        let part = void(&server, &granted, json!({"credits": "40", "reason": "Too much"})).await.json();
        assert_eq!((&part["credits"], &part["remaining_credits"]), (&json!("40"), &json!("60")));
        assert_eq!(part["current_credits"], "1060");
        let more = void(&server, &granted, json!({"credits": "60.000001", "reason": "Too much"})).await;
        more.is_problem(409, "void-exceeds-remaining");
        assert_eq!(
            (&more.json()["requested_credits"], &more.json()["remaining_credits"]),
            (&json!("60.000001"), &json!("60"))
        );
        assert_eq!(void(&server, &granted, json!({"reason": "Too much"})).await.json()["remaining_credits"], "0");
        let closed = get_grant(&server, &granted).await;
        assert_eq!((&closed["state"], &closed["remaining_credits"]), (&json!("closed"), &json!("0")));

        let events = get_events(&server).await;
        assert_eq!(events, ["WorkspaceProvisioned", "CreditsGranted", "GrantVoided", "GrantVoided"]);
        let entry = &get(&server, "/ledger?limit=1").await["items"][0];
        assert_eq!((&entry["debit_account"], &entry["credit_account"]), (&json!("grant"), &json!("issued:adjustment")));
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}

async fn get_events(server: &TestServer) -> Vec<Value> {
    let page = server.user(OWN).get("/v1/events").await.json();
    page["items"].as_array().unwrap().iter().map(|event| event["type"].clone()).collect()
}

#[tokio::test]
async fn a_grant_is_refused_where_it_cannot_be_given_or_voided() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        for (field, value, pointer) in [
            ("effective_at", "2036-07-01T00:00:00Z", "/effective_at"),
            ("expires_at", "2026-06-01T12:00:00Z", "/expires_at"),
            ("expires_at", "2036-07-01T00:00:00Z", "/expires_at"),
        ] {
            let mut body = promotion("1");
            body[field] = json!(value);
            let refused = user.post(&path(OWN, "/grants"), &body).await;
            assert_eq!(refused.is_problem(422, "invalid-field").pointer(), pointer);
        }
        let mut body = promotion("1");
        body["feature_scope"] = json!("rendr");
        user.post(&path(OWN, "/grants"), &body).await.is_problem(404, "feature-not-found");

        let purchase = json!({"credits": "5", "amount_minor": 0, "currency": "EUR", "payment_reference": "p"});
        user.post(&path(OWN, "/credits/purchase"), &purchase).await;
        for open in get(&server, "/credits").await["grants"].as_array().unwrap() {
            let refused = void(&server, open, json!({"reason": "r"})).await;
            refused.is_problem(409, "grant-not-voidable");
        }
        // Before the state is cached and after, and in the path of another workspace.
        let granted = grant(&server, &promotion("1")).await;
        assert_eq!(void(&server, &granted, json!({"reason": "r"})).await.status, 200);
        for _ in 0..2 {
            void(&server, &granted, json!({"reason": "r"})).await.is_problem(409, "grant-closed");
            let unknown = json!({"grant_id": FOREIGN});
            void(&server, &unknown, json!({"reason": "r"})).await.is_problem(404, "grant-not-found");
        }
        let other = server.user(FOREIGN);
        let definition = json!({"name": "Other", "plan_code": "pro"});
        assert_eq!(other.put(&path(FOREIGN, ""), &definition).await.status, 201);
        let theirs = other.post(&path(FOREIGN, "/grants"), &promotion("1")).await.json();
        for id in [theirs["grant_id"].as_str().unwrap(), "nonsense"] {
            user.get(&path(OWN, &format!("/grants/{id}"))).await.is_problem(404, "grant-not-found");
            let foreign = user.post(&path(OWN, &format!("/grants/{id}/void")), &json!({"reason": "r"})).await;
            foreign.is_problem(404, "grant-not-found");
        }
        let nobody = server.user_of(Tenancy::All, Scope::ALL);
        let unknown = uuid::Uuid::from_u128(77);
        nobody.get(&format!("/v1/workspaces/{unknown}/grants")).await.is_problem(404, "workspace-not-found");
        nobody.get(&format!("/v1/workspaces/{unknown}/grants/{unknown}")).await.is_problem(404, "workspace-not-found");
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}

#[tokio::test]
async fn the_list_of_grants_follows_their_state_and_the_time() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        for credits in ["1", "2", "3", "4"] {
            let mut body = promotion(credits);
            body["expires_at"] = json!(if credits == "2" { "2026-06-10T00:00:00Z" } else { "2026-08-01T00:00:00Z" });
            let granted = grant(&server, &body).await;
            if credits == "3" {
                void(&server, &granted, json!({"reason": "r"})).await;
            }
        }
        assert_eq!(listed(&server, "").await, ["4", "2", "1", "1000"]);
        assert_eq!(listed(&server, "state=closed").await, ["3"]);
        assert_eq!(listed(&server, "state=all&order=asc").await, ["1000", "1", "2", "3", "4"]);
        let first = get(&server, "/grants?limit=2").await;
        // The last row that was seen closes before the next page is asked for, by the clock.
        server.clock.set(instant("2026-06-10T00:00:00Z"));
        let next = first["next"].as_str().unwrap();
        assert_eq!(listed(&server, &format!("limit=2&cursor={next}")).await, ["1", "1000"]);
        assert_eq!(listed(&server, "state=closed").await, ["3", "2"]);
        let user = server.user(OWN);
        let other = user.get(&path(OWN, &format!("/grants?state=closed&limit=2&cursor={next}"))).await;
        other.is_problem(422, "invalid-cursor");
        user.get(&path(OWN, "/grants?state=scheduled")).await.is_problem(422, "invalid-field");
        // What the next period will grant can be read before it is recorded.
        server.clock.set(instant("2026-07-02T00:00:00Z"));
        let allowance = get(&server, "/credits").await["grants"].as_array().unwrap().last().unwrap().clone();
        let shown = get_grant(&server, &allowance).await;
        assert_eq!(
            (&shown["state"], &shown["remaining_credits"]),
            (&json!("open"), &allowance["remaining"]),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn a_grant_that_begins_later_is_available_from_then_on() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let mut body = promotion("50");
        body["effective_at"] = json!("2026-06-02T00:00:00Z");
        let granted = grant(&server, &body).await;
        assert_eq!(granted["spendable"], false);
        let figures = async || {
            let credits = get(&server, "/credits").await;
            (credits["current_credits"].clone(), credits["available_credits"].clone())
        };
        let deduct = async |credits: &str| {
            let body = json!({"feature_code": "render", "credits": credits});
            server.user(OWN).post(&path(OWN, "/credits/deduct"), &body).await
        };
        assert_eq!(figures().await, (json!("1050"), json!("1000")));
        deduct("1000.000001").await.is_problem(402, "insufficient-credits");
        server.clock.set(instant("2026-06-02T00:00:00Z"));
        assert_eq!(figures().await, (json!("1050"), json!("1050")));
        assert_eq!(deduct("1050").await.status, 200);
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_canceled_subscription_accepts_grants_and_voids() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        user.post(&path(OWN, "/subscription/cancel"), &json!({"effective": "immediate"})).await;
        let granted = grant(&server, &promotion("5")).await;
        assert_eq!((&granted["spendable"], &granted["current_credits"]), (&json!(true), &json!("5")));
        assert_eq!(void(&server, &granted, json!({"reason": "r"})).await.json()["current_credits"], "0");
    }
}

/// How many answers there were of each status.
fn statuses(answers: &[Answer]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.status.as_u16()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn of_sixteen_clients_that_void_one_grant_as_many_succeed_as_its_credits_allow() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        for (body, succeeded) in [(json!({"reason": "r"}), 1), (json!({"credits": 6, "reason": "r"}), 5)] {
            let granted = grant(&server, &promotion("32")).await;
            let (user, void) = (server.user(OWN), void_path(&granted));
            let keys: Vec<_> = (0..16).map(|n| format!("{succeeded}-{n}")).collect();
            let answers = futures::future::join_all(keys.iter().map(|key| user.post_with_key(&void, key, &body))).await;
            assert_eq!(statuses(&answers), BTreeMap::from([(200, succeeded), (409, 16 - succeeded)]), "{answers:?}");
            let again = futures::future::join_all(keys.iter().map(|key| user.post_with_key(&void, key, &body))).await;
            for (first, again) in answers.iter().zip(&again) {
                assert_eq!((again.header("idempotency-replayed"), &again.text), ("true", &first.text));
            }
        }
        assert_eq!(get(&server, "/credits").await["current_credits"], "1002");
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}

#[tokio::test]
async fn sixteen_copies_of_one_grant_give_it_once() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        let (grants, body) = (path(OWN, "/grants"), promotion("7"));
        let answers = futures::future::join_all((0..16).map(|_| user.post_with_key(&grants, "one", &body))).await;
        assert!(answers.iter().all(|answer| answer.status == 201 && answer.text == answers[0].text), "{answers:?}");
        assert_eq!(get(&server, "/credits").await["current_credits"], "1007");
    }
}
