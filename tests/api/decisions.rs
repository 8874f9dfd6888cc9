//! Why a deduction or a hold was decided so, over HTTP, on both databases.

use serde_json::{Value, json};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::plan::{PlanVersion, UsageLimit};
use visionscope_billing::domain::text::PlanCode;

use crate::databases::Database;
use crate::harness::{OWN, TestServer, path, pro, start_on};

fn render(credits: &str) -> Value {
    json!({"feature_code": "render", "credits": credits})
}

/// The workspace has the plan `pro` with a limit of 600 credits, and `large` has 5,000 and no limit.
async fn started(database: Database) -> TestServer {
    let limited = PlanVersion { monthly_limit: Some(UsageLimit::hard(Credits::whole(600))), ..pro() };
    let large = PlanVersion { plan_code: PlanCode::new("large").unwrap(), allowance: Credits::whole(5000), ..pro() };
    let server = start_on(database, &[limited, large]).await;
    let answer = server.user(OWN).put(&path(OWN, ""), &json!({"name": "Acme", "plan_code": "pro"})).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    server
}

#[tokio::test]
async fn an_accepted_request_says_why_where_it_is_asked_to() {
    for database in Database::ALL {
        let server = started(database).await;
        let user = server.user(OWN);
        for (rest, status) in [("/credits/deduct", 200), ("/holds", 201)] {
            let silent = user.post(&path(OWN, rest), &render("1")).await;
            assert_eq!((silent.status.as_u16(), &silent.json()["decision"]), (status, &Value::Null));
            let body = json!({"feature_code": "render", "quantity": "4", "explain": true});
            let answer = user.post(&path(OWN, rest), &body).await.json();
            let decision = &answer["decision"];
            for (field, value) in [
                ("requested_credits", json!("2")),
                ("quantity", json!("4")),
                ("unit_price", json!("0.5")),
                ("grants", answer["grants"].clone()),
                ("thresholds_crossed", json!([])),
                ("remedies", json!([])),
            ] {
                assert_eq!(decision[field], value, "{rest} {field}");
            }
            let limit = &decision["limits"][0];
            assert_eq!((&limit["limit_scope"], &limit["limit_credits"]), (&json!("workspace"), &json!("600")));
        }
    }
}

#[tokio::test]
async fn a_refusal_names_remedies_that_help_when_they_are_taken() {
    for database in Database::ALL {
        let server = started(database).await;
        let user = server.user(OWN);
        user.post(&path(OWN, "/credits/deduct"), &render("500")).await;
        let deduct = path(OWN, "/credits/deduct");
        let refused = user.post_with_key(&deduct, "job-1", &render("150")).await;
        let decision = refused.is_problem(403, "limit-exceeded").json()["decision"].clone();
        assert_eq!(decision["limits"][0]["headroom_credits"], "100");
        assert_eq!(
            decision["remedies"],
            json!([
                {"kind": "wait_until", "at": "2026-07-01T12:00:00.000000Z"},
                {"kind": "raise_limit", "limit_scope": "workspace", "credits": "650"},
                {"kind": "change_plan", "plan_code": "large", "plan_version": 1, "credit_policy": "full"}
            ])
        );
        let change = json!({"plan_code": "large", "effective": "immediate", "credit_policy": "full"});
        assert_eq!(user.post(&path(OWN, "/subscription/change"), &change).await.status, 200);
        let replayed = user.post_with_key(&deduct, "job-1", &render("150")).await;
        assert_eq!((replayed.status, replayed.text), (refused.status, refused.text), "the refusal is stored as it was");
        assert_eq!(user.post_with_key(&deduct, "job-1-again", &render("150")).await.status, 200);

        let refused = user.post(&path(OWN, "/holds"), &render("4350.5")).await;
        let remedies = refused.is_problem(402, "insufficient-credits").json()["decision"]["remedies"].clone();
        assert_eq!(remedies[1], json!({"kind": "buy_credits", "credits": "0.5"}), "{remedies}");
        let purchase = json!({"credits": "0.5", "amount_minor": 1, "currency": "EUR", "payment_reference": "p"});
        user.post(&path(OWN, "/credits/purchase"), &purchase).await;
        assert_eq!(user.post(&path(OWN, "/holds"), &render("4350.5")).await.status, 201);
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}
