//! Refunding usage and reversing purchases over HTTP, on both databases.

use futures::future::join_all;
use serde_json::{Value, json};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::plan::{PlanVersion, ReversalShortfall};

use crate::databases::Database;
use crate::harness::{Answer, FOREIGN, OWN, TestServer, deduct_path, instant, path, pro, provisioned, start_on};

/// A workspace on a plan without an allowance, with 10 credits of overdraft.
async fn without_allowance(database: Database, shortfall: ReversalShortfall) -> TestServer {
    let plan = PlanVersion {
        allowance: Credits::ZERO,
        overdraft_limit: Credits::whole(10),
        reversal_shortfall: shortfall,
        ..pro()
    };
    let server = start_on(database, &[plan]).await;
    let answer = server.user(OWN).put(&path(OWN, ""), &json!({"name": "Acme", "plan_code": "pro"})).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    server
}

async fn post(server: &TestServer, rest: &str, body: Value) -> Answer {
    server.user(OWN).post(&path(OWN, rest), &body).await
}

async fn deduct(server: &TestServer, credits: &str) -> Value {
    let answer = post(server, "/credits/deduct", json!({"feature_code": "render", "credits": credits})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn buy(server: &TestServer, credits: &str, bonus: Option<&str>, reference: &str) -> Value {
    let mut body = json!({"credits": credits, "amount_minor": 1000, "currency": "EUR", "payment_reference": reference});
    if let Some(bonus) = bonus {
        body["bonus_credits"] = json!(bonus);
    }
    let answer = post(server, "/credits/purchase", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn refund(server: &TestServer, usage: &Value, body: Value) -> Answer {
    let usage_id = usage["usage_id"].as_str().unwrap();
    post(server, &format!("/usage/{usage_id}/refund"), body).await
}

async fn reverse(server: &TestServer, purchase: &Value, body: Value) -> Answer {
    post(server, &format!("/purchases/{}/reverse", purchase["grant_id"].as_str().unwrap()), body).await
}

async fn get(server: &TestServer, rest: &str) -> Value {
    server.user(OWN).get(&path(OWN, rest)).await.json()
}

/// The sources and credits of shares.
fn shares(answer: &Value) -> Vec<(&str, &str)> {
    let shares = answer["grants"].as_array().unwrap().iter();
    shares.map(|share| (share["source"].as_str().unwrap(), share["credits"].as_str().unwrap())).collect()
}

async fn audit(server: &TestServer) {
    assert_eq!(server.store().audit(10).await.unwrap(), []);
}

#[tokio::test]
async fn a_refund_goes_back_in_the_reverse_order_of_what_was_taken() {
    for database in Database::ALL {
        let server = without_allowance(database, ReversalShortfall::Debt).await;
        buy(&server, "20", Some("5"), "p").await;
        let usage = deduct(&server, "30").await;
        assert_eq!(shares(&usage), [("promotion", "5"), ("purchase", "20")]);
        assert_eq!((&usage["overdraft_credits"], &usage["current_credits"]), (&json!("5"), &json!("-5")));

        let first = refund(&server, &usage, json!({"credits": "8", "reason": "Failed"})).await.json();
        assert_eq!((shares(&first), &first["overdraft_credits"]), (vec![("purchase", "3")], &json!("5")));
        assert_eq!((&first["current_credits"], &first["used_this_month"]), (&json!("3"), &json!("22")));
        assert_eq!((&first["debt_repaid"], &first["reason"]), (&json!("0"), &json!("Failed")));
        let second = refund(&server, &usage, json!({"credits": "18"})).await.json();
        assert_eq!(shares(&second), [("purchase", "17"), ("promotion", "1")]);
        let more = refund(&server, &usage, json!({"credits": "4.000001"})).await;
        more.is_problem(409, "refund-exceeds-usage");
        assert_eq!(more.json()["remaining_credits"], "4");
        let usage_id = usage["usage_id"].as_str().unwrap();
        let shown = async || {
            let one = get(&server, &format!("/usage/{usage_id}")).await["refunded_credits"].clone();
            assert_eq!(get(&server, "/usage").await["items"][0]["refunded_credits"], one);
            one
        };
        assert_eq!(shown().await, "26");
        let rest = refund(&server, &usage, json!({})).await.json();
        assert_eq!((shares(&rest), &rest["used_this_month"]), (vec![("promotion", "4")], &json!("0")));
        assert_eq!(shown().await, "30");
        assert_eq!(get(&server, "/features").await["items"][1]["used_this_month"], "0");
        refund(&server, &usage, json!({})).await.is_problem(409, "refund-exceeds-usage");
        assert_eq!(get(&server, "/credits").await["current_credits"], "25");
        let events = server.user(OWN).get("/v1/events?type=CreditsRefunded").await.json();
        assert_eq!(events["items"].as_array().unwrap().len(), 3);
        assert_eq!(events["items"][0]["data"]["refund_id"], first["refund_id"]);
        audit(&server).await;
    }
}

#[tokio::test]
async fn a_refund_is_replayed_and_never_of_another_workspace() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let usage = deduct(&server, "10").await;
        let at = path(OWN, &format!("/usage/{}/refund", usage["usage_id"].as_str().unwrap()));
        let send = async |key: &str, body: Value| {
            let request = server.user(OWN).request(reqwest::Method::POST, &at).header("idempotency-key", key);
            crate::harness::send(request.json(&body)).await
        };
        let first = send("k", json!({"credits": 4})).await;
        let again = send("k", json!({"credits": 4})).await;
        assert_eq!((again.header("idempotency-replayed"), &again.text), ("true", &first.text));
        send("k", json!({"credits": 5})).await.is_problem(422, "idempotency-key-reused");

        let other = server.user(FOREIGN);
        assert_eq!(other.put(&path(FOREIGN, ""), &json!({"name": "Other", "plan_code": "pro"})).await.status, 201);
        let bought = json!({"credits": 5, "amount_minor": 5, "currency": "EUR", "payment_reference": "p"});
        let theirs = other.post(&path(FOREIGN, "/credits/purchase"), &bought).await.json();
        let used = json!({"feature_code": "render", "credits": 1});
        let their_usage = other.post(&path(FOREIGN, "/credits/deduct"), &used).await.json();
        let ours = buy(&server, "1", Some("1"), "q").await;
        let bonus = json!({"grant_id": ours["bonus_grant_id"]});
        for _ in 0..2 {
            for unknown in
                [&their_usage, &json!({"usage_id": "nonsense"}), &json!({"usage_id": "AAZJq1CORAAAAAAAAAAAAQ"})]
            {
                refund(&server, unknown, json!({})).await.is_problem(404, "usage-log-not-found");
            }
            for unknown in [&theirs, &bonus, &json!({"grant_id": FOREIGN}), &json!({"grant_id": "nonsense"})] {
                let answer = reverse(&server, unknown, json!({"reason": "refund"})).await;
                answer.is_problem(404, "purchase-not-found");
            }
        }
        audit(&server).await;
    }
}

#[tokio::test]
async fn what_has_ended_is_refunded_to_an_adjustment_and_counts_no_more() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let body = json!({
            "credits": 5, "source": "promotion", "reason": "r", "feature_scope": "render",
            "expires_at": "2026-06-10T00:00:00Z"
        });
        assert_eq!(post(&server, "/grants", body).await.status, 201);
        let usage = deduct(&server, "12").await;
        server.clock.set(instant("2026-06-11T12:00:00Z"));
        let soon = refund(&server, &usage, json!({"credits": 10})).await.json();
        assert_eq!(shares(&soon), [("allowance", "7"), ("adjustment", "3")]);
        assert_eq!(soon["used_this_month"], "2");
        let grants = get(&server, "/grants?limit=1").await;
        assert_eq!(grants["items"][0]["feature_scope"], "render", "it was for this feature only");
        assert_eq!(grants["items"][0]["expires_at"], "2026-07-11T12:00:00.000000Z");

        let usage = deduct(&server, "50").await;
        server.clock.set(instant("2026-07-02T12:00:00Z"));
        let late = refund(&server, &usage, json!({})).await.json();
        assert_eq!(
            (shares(&late), &late["used_this_month"]),
            (vec![("adjustment", "3"), ("adjustment", "47")], &json!("0"))
        );
        assert_eq!(deduct(&server, "1").await["used_this_month"], "1");
        audit(&server).await;

        let cancel = json!({"effective": "immediate"});
        assert_eq!(post(&server, "/subscription/cancel", cancel).await.status, 200);
        let bought = buy(&server, "10", None, "p").await;
        let usage = deduct(&server, "4").await;
        assert_eq!(refund(&server, &usage, json!({})).await.status, 200);
        let reversed = reverse(&server, &bought, json!({"reason": "mistake"})).await.json();
        assert_eq!(reversed["credits"], "10");
        audit(&server).await;
    }
}

#[tokio::test]
async fn a_purchase_is_reversed_in_parts_with_its_bonus() {
    for database in Database::ALL {
        let server = without_allowance(database, ReversalShortfall::Debt).await;
        let bought = buy(&server, "30", Some("10"), "p").await;
        let part = reverse(&server, &bought, json!({"amount_minor": 333, "reason": "refund"})).await.json();
        let found = ["credits", "credits_removed", "credits_owed", "credits_written_off", "bonus_removed"];
        assert_eq!(found.map(|field| part[field].as_str().unwrap()), ["9.99", "9.99", "0", "0", "3.33"]);
        assert_eq!((&part["amount_minor"], &part["currency"]), (&json!(333), &json!("EUR")));
        for body in [json!({"amount_minor": 668, "reason": "refund"}), json!({"credits": "20.02", "reason": "refund"})]
        {
            let refused = reverse(&server, &bought, body).await;
            refused.is_problem(409, "reversal-exceeds-purchase");
            assert_eq!(
                (&refused.json()["remaining_credits"], &refused.json()["remaining_minor"]),
                (&json!("20.01"), &json!(667))
            );
        }
        let shown = &get(&server, "/purchases").await["items"][0];
        assert_eq!((&shown["reversed_credits"], &shown["reversed_minor"]), (&json!("9.99"), &json!(333)));
        let rest = reverse(&server, &bought, json!({"reason": "chargeback"})).await.json();
        assert_eq!((&rest["credits_removed"], &rest["bonus_removed"]), (&json!("20.01"), &json!("6.67")));
        assert_eq!((&rest["amount_minor"], &rest["current_credits"]), (&json!(667), &json!("0")));
        reverse(&server, &bought, json!({"reason": "refund"})).await.is_problem(409, "reversal-exceeds-purchase");
        audit(&server).await;

        let both = json!({"credits": 1, "amount_minor": 1, "reason": "refund"});
        assert_eq!(reverse(&server, &bought, both).await.is_problem(422, "invalid-field").pointer(), "/amount_minor");
        let none = json!({"amount_minor": 0, "reason": "refund"});
        reverse(&server, &bought, none).await.is_problem(422, "amount-out-of-range");
        assert_eq!(reverse(&server, &bought, json!({})).await.is_problem(422, "invalid-field").pointer(), "/reason");
    }
}

#[tokio::test]
async fn what_was_spent_of_a_purchase_is_owed_or_written_off() {
    for database in Database::ALL {
        for (shortfall, owed, balance) in
            [(ReversalShortfall::Debt, "100", "-104"), (ReversalShortfall::WriteOff, "0", "-4")]
        {
            let server = without_allowance(database, shortfall).await;
            let bought = buy(&server, "100", Some("6"), "p").await;
            let usage = deduct(&server, "110").await;
            let reversed = reverse(&server, &bought, json!({"reason": "chargeback"})).await.json();
            assert_eq!((&reversed["credits_removed"], &reversed["bonus_removed"]), (&json!("0"), &json!("0")));
            assert_eq!((&reversed["credits_owed"], &reversed["current_credits"]), (&json!(owed), &json!(balance)));
            audit(&server).await;
            let refused = post(&server, "/credits/deduct", json!({"feature_code": "render", "credits": 8})).await;
            refused.is_problem(402, "insufficient-credits");
            // The credits that come back repay what is owed.
            let refunded = refund(&server, &usage, json!({})).await.json();
            let back = if owed == "0" { "106" } else { "6" };
            assert_eq!(refunded["current_credits"], back);
            buy(&server, "1", None, "q").await;
            audit(&server).await;
        }
    }
}

#[tokio::test]
async fn concurrent_refunds_and_reversals_never_pass_in_sum() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let bought = buy(&server, "10", None, "p").await;
        let usage = deduct(&server, "10").await;
        let refunds = join_all((0..16).map(|_| refund(&server, &usage, json!({"credits": 3})))).await;
        let accepted = refunds.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(accepted, 3);
        assert!(refunds.iter().all(|answer| [200, 409].contains(&answer.status.as_u16())));
        let body = json!({"credits": 3, "reason": "refund"});
        let reversals = join_all((0..16).map(|_| reverse(&server, &bought, body.clone()))).await;
        assert_eq!(reversals.iter().filter(|answer| answer.status == 200).count(), 3);
        assert_eq!(get(&server, "/credits").await["current_credits"], "1000");
        assert_eq!(
            server.user(OWN).post(&deduct_path(), &json!({"feature_code": "render", "credits": 1000})).await.status,
            200
        );
        audit(&server).await;
    }
}
