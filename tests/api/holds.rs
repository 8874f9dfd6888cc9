//! Holding, capturing, releasing and extending over HTTP, on both databases.

use std::collections::BTreeMap;

use futures::future::join_all;
use serde_json::{Value, json};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::plan::{PlanVersion, UsageLimit};
use visionscope_billing::domain::text::PlanCode;
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{Answer, FOREIGN, OWN, TestServer, instant, path, pro, provisioned, start_on};

fn render(credits: &str) -> Value {
    json!({"feature_code": "render", "credits": credits})
}

async fn place(server: &TestServer, body: &Value) -> Value {
    let answer = server.user(OWN).post(&path(OWN, "/holds"), body).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.json()
}

fn path_of(hold: &Value, rest: &str) -> String {
    path(OWN, &format!("/holds/{}{rest}", hold["hold_id"].as_str().unwrap()))
}

async fn capture(server: &TestServer, hold: &Value, body: Value) -> Answer {
    server.user(OWN).post(&path_of(hold, "/capture"), &body).await
}

async fn release(server: &TestServer, hold: &Value) -> Answer {
    server.user(OWN).post(&path_of(hold, "/release"), &json!({})).await
}

async fn extend(server: &TestServer, hold: &Value, seconds: i64) -> Answer {
    server.user(OWN).post(&path_of(hold, "/extend"), &json!({"expires_in_s": seconds})).await
}

async fn get(server: &TestServer, rest: &str) -> Value {
    let answer = server.user(OWN).get(&path(OWN, rest)).await;
    assert_eq!(answer.status, 200, "{rest}: {}", answer.text);
    answer.json()
}

async fn get_hold(server: &TestServer, hold: &Value) -> Value {
    get(server, &format!("/holds/{}", hold["hold_id"].as_str().unwrap())).await
}

/// The balance, what is held, and what is available.
async fn figures(server: &TestServer) -> [Value; 3] {
    let credits = get(server, "/credits").await;
    ["current_credits", "held_credits", "available_credits"].map(|field| credits[field].clone())
}

async fn event_types(server: &TestServer) -> Vec<Value> {
    let page = server.user(OWN).get("/v1/events").await.json();
    page["items"].as_array().unwrap().iter().map(|event| event["type"].clone()).collect()
}

#[tokio::test]
async fn a_hold_is_placed_read_extended_and_captured() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let allowance = get(&server, "/credits").await["grants"][0]["grant_id"].clone();
        let body = json!({
            "feature_code": "render", "quantity": "600", "expires_in_s": 60, "user_id": "user-7",
            "metadata": {"job": "render-881"}
        });
        let placed = place(&server, &body).await;
        let expected = json!({
            "hold_id": placed["hold_id"], "state": "open", "feature_code": "render", "user_id": "user-7",
            "credits": "300", "grants": [{"grant_id": allowance, "credits": "300"}], "unit_price": "0.5",
            "expires_at": "2026-06-01T12:01:00.000000Z", "created_at": placed["recorded_at"],
            "metadata": {"job": "render-881"}
        });
        assert_eq!(get_hold(&server, &placed).await, expected);
        assert_eq!(get(&server, "/holds?state=open").await["items"], json!([expected]));
        assert_eq!(get(&server, "/holds?state=captured").await["items"], json!([]));
        assert_eq!(figures(&server).await, [json!("1000"), json!("300"), json!("700")]);
        let render = &get(&server, "/features").await["items"][1];
        assert_eq!((&render["used_this_month"], &render["held_credits"]), (&json!("0"), &json!("300")));

        let extended = extend(&server, &placed, 600).await.json();
        assert_eq!(extended["expires_at"], "2026-06-01T12:10:00.000000Z");
        let captured = capture(&server, &placed, json!({"quantity": "250"})).await.json();
        for (field, value) in [
            ("state", json!("captured")),
            ("captured_credits", json!("125")),
            ("released_credits", json!("175")),
            ("uncovered_credits", json!("0")),
            ("quantity", json!("250")),
            ("current_credits", json!("875")),
            ("available_credits", json!("875")),
            ("used_this_month", json!("125")),
        ] {
            assert_eq!(captured[field], value, "{field}");
        }
        assert_eq!(figures(&server).await, [json!("875"), json!("0"), json!("875")]);
        let over = get_hold(&server, &placed).await;
        assert_eq!((&over["state"], &over["captured_credits"]), (&json!("captured"), &json!("125")));
        assert_eq!((&over["usage_id"], &over["closed_at"]), (&captured["usage_id"], &captured["recorded_at"]));
        let log = get(&server, &format!("/usage/{}", captured["usage_id"].as_str().unwrap())).await;
        assert_eq!((&log["credits"], &log["user_id"]), (&json!("125"), &json!("user-7")));
        assert_eq!(log["metadata"], json!({"job": "render-881"}), "that of the hold");
        assert_eq!(event_types(&server).await, ["WorkspaceProvisioned", "CreditsHeld", "CreditConsumed"]);
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_hold_ends_once_and_its_capture_is_replayed() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let (first, second) = (place(&server, &render("10")).await, place(&server, &render("20")).await);
        let user = server.user(OWN);
        let once = user.post_with_key(&path_of(&first, "/capture"), "one", &json!({"credits": "4"})).await;
        let again = user.post_with_key(&path_of(&first, "/capture"), "one", &json!({"credits": "4"})).await;
        assert_eq!((again.header("idempotency-replayed"), &again.text), ("true", &once.text));
        let other = user.post_with_key(&path_of(&second, "/capture"), "one", &json!({"credits": "4"})).await;
        other.is_problem(422, "idempotency-key-reused");
        assert_eq!(release(&server, &second).await.json()["state"], "released");
        for (hold, state) in [(&first, "captured"), (&second, "released")] {
            for answer in
                [capture(&server, hold, json!({})).await, release(&server, hold).await, extend(&server, hold, 60).await]
            {
                assert_eq!(answer.is_problem(409, "hold-over").json()["hold_state"], state);
            }
        }
        assert_eq!(figures(&server).await, [json!("996"), json!("0"), json!("996")]);
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_hold_is_refused_like_a_deduction() {
    for database in Database::ALL {
        let limited = PlanVersion { monthly_limit: Some(UsageLimit::hard(Credits::whole(100))), ..pro() };
        let server = start_on(database, &[limited]).await;
        server.user(OWN).put(&path(OWN, ""), &json!({"name": "Acme", "plan_code": "pro"})).await;
        place(&server, &render("90")).await;
        let user = server.user(OWN);
        let refused = user.post(&path(OWN, "/holds"), &render("10.1")).await;
        let members = refused.is_problem(403, "limit-exceeded").json();
        assert_eq!((&members["used_credits"], &members["held_credits"]), (&json!("0"), &json!("90")));
        user.post(&path(OWN, "/credits/deduct"), &render("10.1")).await.is_problem(403, "limit-exceeded");
        let least = json!({"feature_code": "render", "credits": "50", "min_credits": "10"});
        assert_eq!(place(&server, &least).await["credits"], "10");
        for (field, value, pointer) in [
            ("expires_in_s", json!(59), "/expires_in_s"),
            ("expires_in_s", json!(604_801), "/expires_in_s"),
            ("expires_in_s", json!("60"), "/expires_in_s"),
            ("min_credits", json!("2"), "/min_credits"),
            ("quantity", json!("1"), "/credits"),
        ] {
            let mut body = render("1");
            body[field] = value;
            let refused = user.post(&path(OWN, "/holds"), &body).await;
            assert_eq!(refused.is_problem(422, "invalid-field").pointer(), pointer);
        }
        let nothing = user.post(&path(OWN, "/holds"), &json!({"feature_code": "render"})).await;
        assert_eq!(nothing.is_problem(422, "invalid-field").pointer(), "/credits");
        for (code, status, problem) in [("rendr", 404, "feature-not-found"), ("off", 403, "feature-disabled")] {
            let body = json!({"feature_code": code, "credits": "1"});
            user.post(&path(OWN, "/holds"), &body).await.is_problem(status, problem);
        }
    }
}

#[tokio::test]
async fn a_hold_of_nobody_or_of_another_workspace_is_not_found() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let other = server.user(FOREIGN);
        let definition = json!({"name": "Other", "plan_code": "pro"});
        assert_eq!(other.put(&path(FOREIGN, ""), &definition).await.status, 201);
        let theirs = other.post(&path(FOREIGN, "/holds"), &render("1")).await.json();
        for id in [theirs["hold_id"].clone(), json!("nonsense"), json!(FOREIGN)] {
            let hold = json!({"hold_id": id});
            server.user(OWN).get(&path_of(&hold, "")).await.is_problem(404, "hold-not-found");
            // Before the state is cached and after.
            for _ in 0..2 {
                for answer in [
                    capture(&server, &hold, json!({"late_capture": true})).await,
                    release(&server, &hold).await,
                    extend(&server, &hold, 60).await,
                ] {
                    answer.is_problem(404, "hold-not-found");
                }
            }
        }
        let unknown = uuid::Uuid::from_u128(77);
        let nobody = server.user_of(Tenancy::All, Scope::ALL);
        nobody.get(&format!("/v1/workspaces/{unknown}/holds")).await.is_problem(404, "workspace-not-found");
        let reader = server.user_of(Tenancy::One(OWN), &[Scope::CreditsRead]);
        reader.post(&path(OWN, "/holds"), &render("1")).await.is_problem(403, "missing-scope");
    }
}

#[tokio::test]
async fn a_hold_expires_by_the_clock_and_can_then_be_captured_late() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let hold = place(&server, &render("300")).await;
        server.clock.set(instant("2026-06-01T13:00:00Z"));
        assert_eq!(get_hold(&server, &hold).await["state"], "expired");
        assert_eq!(figures(&server).await, [json!("1000"), json!("0"), json!("1000")]);
        let refused = capture(&server, &hold, json!({})).await;
        assert_eq!(refused.is_problem(409, "hold-expired").json()["expired_at"], "2026-06-01T13:00:00.000000Z");
        extend(&server, &hold, 60).await.is_problem(409, "hold-expired");
        assert_eq!(release(&server, &hold).await.is_problem(409, "hold-over").json()["hold_state"], "expired");
        let late = capture(&server, &hold, json!({"credits": "1100", "late_capture": true})).await.json();
        assert_eq!((&late["captured_credits"], &late["uncovered_credits"]), (&json!("1000"), &json!("100")));
        let again = capture(&server, &hold, json!({"late_capture": true})).await;
        again.is_problem(409, "hold-over");
        let shown = get_hold(&server, &hold).await;
        assert_eq!((&shown["state"], &shown["captured_credits"]), (&json!("expired"), &json!("1000")));
        assert_eq!(
            event_types(&server).await,
            ["WorkspaceProvisioned", "CreditsHeld", "HoldReleased", "CreditConsumed", "LowCreditWarning"]
        );
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_hold_outlives_the_period_a_change_of_plan_and_the_subscription() {
    for database in Database::ALL {
        let big = PlanVersion { plan_code: PlanCode::new("big").unwrap(), allowance: Credits::whole(10), ..pro() };
        let server = start_on(database, &[pro(), big]).await;
        let user = server.user(OWN);
        user.put(&path(OWN, ""), &json!({"name": "Acme", "plan_code": "pro"})).await;
        let holds = [place(&server, &render("100")).await, place(&server, &render("200")).await];
        for hold in &holds {
            extend(&server, hold, 604_800).await;
        }
        // The period ends, another plan follows, and the subscription ends.
        let change = json!({"plan_code": "big", "effective": "period_end", "credit_policy": "none"});
        assert_eq!(user.post(&path(OWN, "/subscription/change"), &change).await.status, 200);
        for now in ["2026-06-07T12:00:00Z", "2026-06-13T12:00:00Z", "2026-06-19T12:00:00Z", "2026-06-25T12:00:00Z"] {
            server.clock.set(instant(now));
            for hold in &holds {
                extend(&server, hold, 604_800).await;
            }
        }
        server.clock.set(instant("2026-07-01T12:00:00Z"));
        assert_eq!(figures(&server).await, [json!("510"), json!("300"), json!("210")], "200 have rolled over");
        let cancel = json!({"effective": "immediate"});
        assert_eq!(server.user(OWN).post(&path(OWN, "/subscription/cancel"), &cancel).await.status, 200);
        assert_eq!(figures(&server).await, [json!("300"), json!("300"), json!("0")]);
        let captured = capture(&server, &holds[0], json!({"credits": "60"})).await.json();
        assert_eq!((&captured["captured_credits"], &captured["current_credits"]), (&json!("60"), &json!("200")));
        release(&server, &holds[1]).await;
        assert_eq!(figures(&server).await, [json!("0"), json!("0"), json!("0")]);
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}

#[tokio::test]
async fn the_list_of_holds_is_paged_and_filtered() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let mut holds = Vec::new();
        for credits in ["1", "2", "3", "4"] {
            holds.push(place(&server, &render(credits)).await);
        }
        release(&server, &holds[2]).await;
        let listed = async |parameters: &str| {
            let page = get(&server, &format!("/holds?{parameters}")).await;
            let credits: Vec<_> =
                page["items"].as_array().unwrap().iter().map(|hold| hold["credits"].clone()).collect();
            (json!(credits), page["next"].as_str().map(str::to_owned))
        };
        assert_eq!(listed("").await.0, json!(["4", "3", "2", "1"]));
        assert_eq!(listed("state=released").await.0, json!(["3"]));
        assert_eq!(listed("state=open&order=asc").await.0, json!(["1", "2", "4"]));
        let (first, next) = listed("state=open&limit=2").await;
        let next = next.unwrap();
        assert_eq!(first, json!(["4", "2"]));
        assert_eq!(listed(&format!("state=open&limit=2&cursor={next}")).await.0, json!(["1"]));
        let user = server.user(OWN);
        user.get(&path(OWN, &format!("/holds?limit=2&cursor={next}"))).await.is_problem(422, "invalid-cursor");
        user.get(&path(OWN, "/holds?state=closed")).await.is_problem(422, "invalid-field");
    }
}

fn statuses(answers: &[Answer]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.status.as_u16()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn of_sixty_four_clients_half_get_a_hold_and_every_credit_is_accounted_for() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let (user, holds) = (server.user(OWN), path(OWN, "/holds"));
        // 1,000 credits for 64 clients that want 31.25 each.
        let body = json!({"feature_code": "render", "credits": "31.25", "expires_in_s": 60});
        let answers = join_all((0..64).map(|_| user.post(&holds, &body))).await;
        assert_eq!(statuses(&answers), BTreeMap::from([(201, 32), (402, 32)]));
        assert_eq!(figures(&server).await, [json!("1000"), json!("1000"), json!("0")]);
        let placed: Vec<_> = answers.iter().filter(|answer| answer.status == 201).map(Answer::json).collect();
        // Each hold is captured twice, released and extended at once: one of them ends it.
        let ends = placed[..16].iter().map(|hold| async {
            tokio::join!(
                capture(&server, hold, json!({"credits": "1.25"})),
                capture(&server, hold, json!({"credits": "2.25"})),
                release(&server, hold),
            )
        });
        let (mut charged, mut ended) = (0.0, 0);
        for (one, other, released) in join_all(ends).await {
            for answer in [&one, &other, &released] {
                if answer.status == 200 {
                    ended += 1;
                    charged += answer.json()["captured_credits"].as_str().map_or(0.0, |text| text.parse().unwrap());
                } else {
                    answer.is_problem(409, "hold-over");
                }
            }
        }
        assert_eq!(ended, 16);
        let left = Credits::whole(1000).minus(charged.to_string().parse().unwrap()).unwrap().to_string();
        // The others are never captured: nothing leaks.
        server.clock.set(instant("2026-06-01T12:01:00Z"));
        assert_eq!(figures(&server).await, [json!(left), json!("0"), json!(left)]);
        assert_eq!(user.post(&path(OWN, "/credits/deduct"), &render(&left)).await.status, 200);
        assert_eq!(get(&server, "/holds?state=open").await["items"], json!([]));
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}
