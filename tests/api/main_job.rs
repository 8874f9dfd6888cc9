//! The main use cases over real stores: provision, spend, replay, read.

use serde_json::json;
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{FOREIGN, OWN, path, provisioned};

#[tokio::test]
async fn credits_are_spent_once_however_often_a_request_is_sent() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        let body = json!({"feature_code": "render", "quantity": "3"});
        let first = user.post_with_key(&path(OWN, "/credits/deduct"), "order-1", &body).await;
        assert_eq!((first.status.as_u16(), first.json()["credits"].as_str()), (200, Some("1.5")));
        for _ in 0..3 {
            let again = user.post_with_key(&path(OWN, "/credits/deduct"), "order-1", &body).await;
            assert_eq!((again.header("idempotency-replayed"), &again.text), ("true", &first.text));
        }
        let other = json!({"feature_code": "render", "quantity": "4"});
        user.post_with_key(&path(OWN, "/credits/deduct"), "order-1", &other)
            .await
            .is_problem(422, "idempotency-key-reused");
        let balance = user.get(&path(OWN, "/credits")).await.json();
        assert_eq!((&balance["current_credits"], &balance["used_this_month"]), (&json!("998.5"), &json!("1.5")));
    }
}

#[tokio::test]
async fn a_workspace_is_provisioned_once() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        let same = user.put(&path(OWN, ""), &json!({"plan_code": "pro", "name": "Acme"})).await;
        assert_eq!((same.status.as_u16(), same.header("idempotency-replayed")), (201, "true"));
        let other = user.put(&path(OWN, ""), &json!({"plan_code": "pro", "name": "Other"})).await;
        other.is_problem(409, "workspace-exists");
    }
}

#[tokio::test]
async fn a_deduction_without_enough_credits_is_refused_and_replayed() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        let body = json!({"feature_code": "render", "credits": "1000.000001"});
        let first = user.post_with_key(&path(OWN, "/credits/deduct"), "k", &body).await;
        first.is_problem(402, "insufficient-credits");
        assert_eq!(first.json()["available_credits"], "1000");
        let again = user.post_with_key(&path(OWN, "/credits/deduct"), "k", &body).await;
        assert_eq!((again.header("idempotency-replayed"), &again.text), ("true", &first.text));
    }
}

#[tokio::test]
async fn a_feature_that_does_not_exist_is_not_found_and_one_that_is_off_is_disabled() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        let deduct = |key: String, feature: &'static str| {
            let body = json!({"feature_code": feature, "credits": 1});
            let (user, path) = (&user, path(OWN, "/credits/deduct"));
            async move { user.post_with_key(&path, &key, &body).await }
        };
        // Before the state is cached, and after.
        for round in ["1", "2"] {
            deduct(round.to_owned(), "rendr").await.is_problem(404, "feature-not-found");
            let events = user.get("/v1/events?type=CreditLimitExceeded&type=UsageLimitExceeded").await.json();
            assert_eq!(events["items"], json!([]));
            assert_eq!(deduct(round.to_owned(), "render").await.status, 200, "the key was not used");
            for replayed in ["", "true"] {
                let answer = deduct(format!("off-{round}"), "off").await;
                assert_eq!(answer.is_problem(403, "feature-disabled").header("idempotency-replayed"), replayed);
            }
        }
    }
}

#[tokio::test]
async fn pages_of_a_list_have_no_gaps() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        for _ in 0..5 {
            user.post(&path(OWN, "/credits/deduct"), &json!({"feature_code": "render", "credits": 1})).await;
        }
        let mut seen = Vec::new();
        let mut next = path(OWN, "/usage?limit=2");
        loop {
            let page = user.get(&next).await.json();
            seen.extend(page["items"].as_array().unwrap().iter().map(|log| log["seq"].as_i64().unwrap()));
            let Some(cursor) = page["next"].as_str() else { break };
            next = path(OWN, &format!("/usage?limit=2&cursor={cursor}"));
        }
        assert_eq!(seen, [5, 4, 3, 2, 1]);
    }
}

#[tokio::test]
async fn events_can_be_polled_by_one_workspace_and_by_a_token_for_all() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        user.post(&path(OWN, "/credits/deduct"), &json!({"feature_code": "render", "credits": 1})).await;
        let page = user.get("/v1/events").await.json();
        let types: Vec<_> = page["items"].as_array().unwrap().iter().map(|event| event["type"].clone()).collect();
        assert_eq!(types, ["WorkspaceProvisioned", "CreditConsumed"]);
        let next = user.get(&format!("/v1/events?cursor={}", page["next"].as_str().unwrap())).await.json();
        assert_eq!((next["items"].as_array().unwrap().len(), &next["next"]), (0, &page["next"]));
        let all = server.user_of(Tenancy::All, Scope::ALL);
        let page = all.get("/v1/events?limit=1").await.json();
        assert_eq!((page["items"].as_array().unwrap().len(), &page["has_more"]), (1, &json!(true)));
        let id = page["items"][0]["id"].as_str().unwrap();
        assert_eq!(user.get(&format!("/v1/events/{id}")).await.status, 200);
        let stranger = server.user(FOREIGN).get(&format!("/v1/events/{id}")).await;
        stranger.is_problem(404, "event-not-found");
    }
}

#[tokio::test]
async fn thirty_two_copies_of_one_request_run_once_and_get_one_answer() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        let body = json!({"feature_code": "render", "credits": "7"});
        let deduct = path(OWN, "/credits/deduct");
        let copies = (0..32).map(|_| user.post_with_key(&deduct, "one", &body));
        let answers = futures::future::join_all(copies).await;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.text == answers[0].text), "{answers:?}");
        let fresh = answers.iter().filter(|answer| !answer.headers.contains_key("idempotency-replayed")).count();
        assert_eq!(fresh, 1, "one execution");
        assert_eq!(user.get(&path(OWN, "/credits")).await.json()["current_credits"], "993");
    }
}

#[tokio::test]
async fn of_sixty_four_clients_exactly_the_thirty_two_that_fit_the_balance_succeed() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        let keys: Vec<_> = (0..64).map(|n| format!("client-{n}")).collect();
        // 1000 credits, 31.25 each: enough for 32.
        let body = json!({"feature_code": "render", "credits": "31.25"});
        let deduct = path(OWN, "/credits/deduct");
        let requests = keys.iter().map(|key| user.post_with_key(&deduct, key, &body));
        let answers = futures::future::join_all(requests).await;
        let succeeded = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(succeeded, 32);
        for refused in answers.iter().filter(|answer| answer.status != 200) {
            refused.is_problem(402, "insufficient-credits");
        }
        assert_eq!(user.get(&path(OWN, "/credits")).await.json()["current_credits"], "0");
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}
