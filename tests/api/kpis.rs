//! Key figures of the whole server over HTTP, on both databases.

use chrono::TimeDelta;
use serde_json::{Value, json};
use visionscope_billing::domain::time::Day;
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{Answer, FOREIGN, NOW, OWN, TestServer, deduct_path, instant, path, provisioned};

async fn get(server: &TestServer, query: &str) -> Answer {
    server.user_of(Tenancy::All, &[Scope::AnalyticsRead]).get(&format!("/v1/analytics/kpis{query}")).await
}

async fn post(server: &TestServer, path: &str, body: Value, status: u16) -> Value {
    let answer = server.user_of(Tenancy::All, Scope::ALL).post(path, &body).await;
    assert_eq!(answer.status, status, "{}", answer.text);
    answer.json()
}

/// The figures once they contain all events.
async fn kpis(server: &TestServer, query: &str) -> Value {
    let begun = std::time::Instant::now();
    loop {
        let answer = get(server, query).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let found = answer.json();
        if found["as_of"]["lag_seconds"] == 0 {
            return found;
        }
        assert!(begun.elapsed().as_secs() < 30, "not in time: {found}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn day(days: i64) -> String {
    Day::of(instant(NOW)).plus(days).to_string()
}

/// Two workspaces on two days: usage, a refusal, purchases in two currencies, a reversal, and the end of a subscription.
async fn with_two_days(database: Database) -> TestServer {
    let server = provisioned(database).await;
    let other = json!({"name": "Other", "plan_code": "pro", "time_zone": "UTC"});
    let put = server.user_of(Tenancy::All, Scope::ALL).put(&path(FOREIGN, ""), &other).await;
    assert!(put.status.is_success(), "{}", put.text);
    post(&server, &deduct_path(), json!({"feature_code": "render", "credits": "2.5"}), 200).await;
    post(&server, &deduct_path(), json!({"feature_code": "render", "credits": "100000"}), 402).await;
    let bought = |currency: &str, amount_minor: i64| {
        json!({
            "credits": "100", "bonus_credits": "10", "amount_minor": amount_minor, "currency": currency,
            "payment_reference": format!("pay-{currency}")
        })
    };
    post(&server, &path(OWN, "/credits/purchase"), bought("EUR", 1000), 200).await;
    let usd = post(&server, &path(FOREIGN, "/credits/purchase"), bought("USD", 700), 200).await;
    server.clock.set(instant(NOW).plus(TimeDelta::days(1)));
    // The allowance of 1,000 first, then the bonus of 10, then 25 of 100 that were bought.
    post(&server, &deduct_path(), json!({"feature_code": "render", "credits": "1032.5"}), 200).await;
    let reversal = path(FOREIGN, &format!("/purchases/{}/reverse", usd["grant_id"].as_str().unwrap()));
    post(&server, &reversal, json!({"reason": "refund", "credits": "50"}), 200).await;
    post(&server, &path(FOREIGN, "/subscription/cancel"), json!({"effective": "immediate"}), 200).await;
    server
}

#[tokio::test]
async fn usage_workspaces_and_money_are_told_by_day_and_hour() {
    for database in Database::ALL {
        let server = with_two_days(database).await;
        let found = kpis(&server, "").await;
        assert_eq!((&found["from"], &found["to"]), (&json!(day(-28)), &json!(day(2))));
        assert_eq!((&found["step"], &found["has_more"]), (&json!("day"), &json!(false)));
        let first = json!({
            "day": day(0), "usage": {"credits": "2.5", "deductions": 1, "refused": 1},
            "workspaces": {"active": 1, "new": 2, "canceled": 0}
        });
        let second = json!({
            "day": day(1), "usage": {"credits": "1032.5", "deductions": 1, "refused": 0},
            "workspaces": {"active": 1, "new": 0, "canceled": 1}
        });
        assert_eq!(found["items"], json!([first, second]));
        assert_eq!(found["deferred_before"], Value::Null);
        let as_of = &found["as_of"];
        assert_eq!((as_of["partitions"].as_array().unwrap().len(), &as_of["incomplete"]), (16, &json!(false)));

        let by_feature = kpis(&server, "?group=feature").await;
        let usage = |day: String, credits: &str, refused: i64| {
            json!({
                "day": day, "feature_code": "render",
                "usage": {"credits": credits, "deductions": 1, "refused": refused}
            })
        };
        assert_eq!(by_feature["items"], json!([usage(day(0), "2.5", 1), usage(day(1), "1032.5", 0)]));

        let hours = kpis(&server, "?step=hour&group=plan,feature").await;
        let at = |days: i64| instant(NOW).plus(TimeDelta::days(days)).to_string();
        let plan = hours["items"][0]["plan_code"].clone();
        let usage = |at: String, credits: &str, refused: i64| {
            json!({
                "hour": at, "plan_code": plan, "feature_code": "render",
                "usage": {"credits": credits, "deductions": 1, "refused": refused}
            })
        };
        assert_eq!(hours["items"], json!([usage(at(0), "2.5", 1), usage(at(1), "1032.5", 0)]));
        assert_eq!((&hours["from"], &hours["step"]), (&json!(day(0)), &json!("hour")));
    }
}

#[tokio::test]
async fn money_is_told_by_currency_and_what_is_deferred_runs_on() {
    for database in Database::ALL {
        let server = with_two_days(database).await;
        let revenue = |day: String, currency: &str, [purchases, paid, returned, recognised, deferred]: [i64; 5]| {
            json!({"day": day, "currency": currency, "revenue": {
                "purchases": purchases, "credits_sold": (purchases * 100).to_string(), "paid_minor": paid,
                "returned_minor": returned, "recognised_minor": recognised, "deferred_minor": deferred
            }})
        };
        // A quarter of what was bought for euros was used; half of what was bought for dollars was given back.
        let eur = [revenue(day(0), "EUR", [1, 1000, 0, 0, 1000]), revenue(day(1), "EUR", [0, 0, 0, 250, 750])];
        let usd = [revenue(day(0), "USD", [1, 700, 0, 0, 700]), revenue(day(1), "USD", [0, 0, 350, 0, 350])];
        let found = kpis(&server, "?group=currency").await;
        assert_eq!(found["items"], json!([eur[0], usd[0], eur[1], usd[1]]));
        assert_eq!(found["deferred_before"], json!([]));
        let from_second = kpis(&server, &format!("?group=currency&from={}", day(1))).await;
        assert_eq!(from_second["items"], json!([eur[1], usd[1]]));
        let before = json!([{"currency": "EUR", "deferred_minor": 1000}, {"currency": "USD", "deferred_minor": 700}]);
        assert_eq!(from_second["deferred_before"], before);
        let later = kpis(&server, &format!("?group=currency&from={}&to={}", day(3), day(9))).await;
        assert_eq!(later["items"], json!([]), "days without events have no row");
        assert_eq!(later["deferred_before"][0], json!({"currency": "EUR", "deferred_minor": 750}));
        let by_plan = kpis(&server, "?group=currency,plan").await;
        let row = &by_plan["items"][0];
        assert_eq!((&row["revenue"]["deferred_minor"], row["plan_code"].is_string()), (&Value::Null, true));
    }
}

#[tokio::test]
async fn pages_have_the_same_rows_as_the_whole() {
    for database in Database::ALL {
        let server = with_two_days(database).await;
        for parameters in ["step=hour", "group=plan,feature", "group=plan", "group=currency", "group=plan,currency"] {
            let whole = kpis(&server, &format!("?{parameters}")).await;
            let (mut rows, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = kpis(&server, &format!("?{parameters}&limit=1{cursor}")).await;
                assert_eq!(page["deferred_before"], whole["deferred_before"]);
                rows.extend(page["items"].as_array().unwrap().clone());
                let Some(next) = page["next"].as_str() else { break };
                cursor = format!("&cursor={next}");
            }
            assert_eq!((json!(rows), rows.len() > 1), (whole["items"].clone(), true), "{parameters}");
            if !cursor.is_empty() {
                let other = get(&server, &format!("?{parameters}&from={}{cursor}", day(-3))).await;
                other.is_problem(422, "invalid-cursor");
            }
        }
    }
}

#[tokio::test]
async fn groups_that_no_figure_has_and_long_questions_are_refused() {
    let server = provisioned(Database::Sqlite).await;
    for (query, parameter, detail) in [
        ("?group=feature,currency", "group", "usage has no currency"),
        ("?group=plan,feature,currency", "group", "usage has no currency"),
        ("?step=hour&group=currency", "group", "counted by day"),
        ("?step=hour&group=currency,plan", "group", "counted by day"),
        ("?group=week", "group", "must be none or plan"),
        ("?step=week", "step", ""),
        ("?step=hour&from=2026-01-01&to=2026-02-02", "to", "1 to 31 days"),
        ("?from=2025-01-01&to=2026-02-06", "to", "1 to 400 days"),
        ("?from=2026-02-01&to=2026-02-01", "to", "1 to 400 days"),
        ("?from=2026-2-1", "from", "must be a day"),
        ("?limit=201", "limit", "from 1 to 200"),
        ("?after_seq=1", "after_seq", "does not exist"),
    ] {
        let answer = get(&server, query).await;
        let error = &answer.json()["errors"][0];
        assert_eq!((answer.status.as_u16(), &error["parameter"]), (422, &json!(parameter)), "{query}: {}", answer.text);
        assert!(error["detail"].as_str().unwrap().contains(detail), "{query}: {error}");
    }
    get(&server, "?cursor=abc").await.is_problem(422, "invalid-cursor");
    for good in ["?step=hour&from=2026-01-01&to=2026-02-01", "?from=2025-01-01&to=2026-02-05"] {
        assert_eq!(get(&server, good).await.json()["items"], json!([]), "{good}");
    }
    let tenant = server.user_of(Tenancy::One(OWN), Scope::ALL);
    tenant.get("/v1/analytics/kpis").await.is_problem(403, "all-workspaces-required");
}
