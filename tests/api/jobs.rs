//! Jobs as those see them who send them, over HTTP and on both databases.

use reqwest::Method;
use serde_json::{Value, json};
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{Answer, FOREIGN, OWN, TestServer, User, deduct_path, deduction, path, provisioned, send};

/// A job that holds this many credits.
pub fn metered(credits: &str) -> Value {
    json!({
        "kind": "video_processing.analyse", "args": {"video": 17},
        "hold": {"feature_code": "render", "credits": credits, "user_id": "user-7"}
    })
}

pub fn plain(kind: &str) -> Value {
    json!({"kind": kind, "args": {"to": "user-7"}})
}

pub async fn submit(server: &TestServer, job: &Value) -> Answer {
    server.user(OWN).post(&path(OWN, "/jobs"), job).await
}

/// A job that was taken.
pub async fn submitted(server: &TestServer, job: &Value) -> Value {
    let answer = submit(server, job).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text);
    answer.json()
}

pub async fn get(server: &TestServer, job: &Value) -> Value {
    let path = path(OWN, &format!("/jobs/{}", job["job_id"].as_str().unwrap()));
    server.user(OWN).get(&path).await.json()
}

pub async fn cancel(server: &TestServer, job: &Value) -> Value {
    let path = path(OWN, &format!("/jobs/{}/cancel", job["job_id"].as_str().unwrap()));
    let answer = server.user(OWN).post(&path, &Value::Null).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text);
    answer.json()
}

/// The balance, and what is held of it.
pub async fn balance(server: &TestServer) -> (String, String) {
    let credits = server.user(OWN).get(&path(OWN, "/credits")).await.json();
    let of = |name: &str| credits[name].as_str().unwrap_or("0").to_owned();
    (of("current_credits"), of("held_credits"))
}

pub fn told(current: &str, held: &str) -> (String, String) {
    (current.to_owned(), held.to_owned())
}

/// The job once it is over.
async fn over(server: &TestServer, job: &Value) -> Value {
    for _ in 0..500 {
        let job = get(server, job).await;
        if job["finished_at"].is_string() {
            return job;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{job} is not over in time");
}

#[tokio::test]
async fn the_same_key_is_the_same_job_and_a_refused_hold_is_answered_like_a_deduction() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let user = server.user(OWN);
        let first = user.post_with_key(&path(OWN, "/jobs"), "a", &metered("20")).await;
        assert_eq!((first.status.as_u16(), &first.json()["state"]), (202, &json!("ready")), "{}", first.text);
        assert_eq!(first.json()["held_credits"], "20");
        assert_eq!(balance(&server).await, told("1000", "20"));
        let again = user.post_with_key(&path(OWN, "/jobs"), "a", &metered("20")).await;
        assert_eq!((again.status.as_u16(), again.json()), (202, first.json()));
        user.post_with_key(&path(OWN, "/jobs"), "a", &metered("21")).await.is_problem(422, "idempotency-key-reused");
        assert_eq!(balance(&server).await, told("1000", "20"), "it was held once");
        // Keys of commands and of jobs are apart.
        assert_eq!(user.post_with_key(&deduct_path(), "a", &deduction()).await.status.as_u16(), 200);

        let refused = user.post_with_key(&path(OWN, "/jobs"), "b", &metered("5000")).await;
        let deduction = json!({"feature_code": "render", "credits": "5000", "user_id": "user-7"});
        let deducted = user.post(&deduct_path(), &deduction).await;
        refused.is_problem(402, "insufficient-credits");
        for member in ["code", "title", "available_credits", "requested_credits"] {
            assert_eq!(refused.json()[member], deducted.json()[member], "{member}");
        }
        assert!(refused.json()["decision"].is_object());
        let again = user.post_with_key(&path(OWN, "/jobs"), "b", &metered("5000")).await;
        assert_eq!((again.status, again.json()["code"].clone()), (refused.status, json!("insufficient-credits")));
        let off = json!({"kind": "x", "hold": {"feature_code": "off", "credits": 1}});
        submit(&server, &off).await.is_problem(403, "feature-disabled");

        // While a job with this unique key is not over, it is the answer.
        let unique = json!({"kind": "mail", "unique_key": "welcome"});
        let first = submitted(&server, &unique).await;
        let other = submit(&server, &unique).await;
        assert_eq!((other.status.as_u16(), &other.json()["job_id"]), (200, &first["job_id"]), "it was not sent");
        assert_eq!(cancel(&server, &first).await["state"], "canceled");
        assert_ne!(submitted(&server, &unique).await["job_id"], first["job_id"]);
        assert_eq!(server.store().audit(10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn what_cannot_be_a_job_is_refused_with_the_field() {
    let server = provisioned(Database::Sqlite).await;
    let long = "x".repeat(16 * 1024);
    let with = |name: &str, value: Value| {
        let mut job = plain("mail");
        job[name] = value;
        job
    };
    let hold = |hold: Value| json!({"kind": "mail", "hold": hold});
    for (job, code, pointer) in [
        (json!({}), "invalid-field", "/kind"),
        (plain("No Kind"), "invalid-text", "/kind"),
        (plain("system.periods"), "invalid-field", "/kind"),
        (plain("billing.grant_credits"), "invalid-field", "/kind"),
        (with("args", json!([1])), "invalid-field", "/args"),
        (with("args", json!({"text": long})), "invalid-field", "/args"),
        (with("priority", json!(10)), "invalid-field", "/priority"),
        (with("priority", json!(-1)), "invalid-field", "/priority"),
        (with("max_attempts", json!(0)), "invalid-field", "/max_attempts"),
        (with("run_at", json!("2026-06-08T12:00:00Z")), "invalid-field", "/run_at"),
        (with("run_at", json!("soon")), "invalid-field", "/run_at"),
        (with("unique_key", json!("")), "invalid-text", "/unique_key"),
        (with("queue", json!("default")), "unknown-field", "/queue"),
        (hold(json!({"feature_code": "render"})), "invalid-field", "/hold/credits"),
        (hold(json!({"feature_code": "render", "credits": 1, "quantity": 1})), "invalid-field", "/hold/credits"),
        (hold(json!({"feature_code": "render", "credits": 0})), "amount-out-of-range", "/hold/credits"),
        (hold(json!({"feature_code": "render", "credits": 1, "overrun": "no"})), "invalid-field", "/hold/overrun"),
        (hold(json!([])), "invalid-field", "/hold"),
        (json!({"kind": "billing.deduct_credits", "args": {"credits": 1}}), "invalid-field", "/args/feature_code"),
        (
            json!({"kind": "billing.deduct_credits", "args": {"feature_code": "render"}}),
            "invalid-field",
            "/args/credits",
        ),
        (
            json!({"kind": "billing.cancel_subscription", "args": {}, "hold": {"feature_code": "render", "credits": 1}}),
            "invalid-field",
            "/hold",
        ),
    ] {
        let answer = submit(&server, &job).await;
        answer.is_problem(422, code);
        assert_eq!(answer.pointer(), pointer, "{job}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with(&format!("{pointer}: ")), "{detail}");
    }
    let all = server.user_of(Tenancy::All, Scope::ALL);
    all.post(&path(FOREIGN, "/jobs"), &plain("mail")).await.is_problem(404, "workspace-not-found");
    all.get(&path(FOREIGN, "/jobs")).await.is_problem(404, "workspace-not-found");
    for id in ["x", "019a0000-0000-7000-8000-000000000001"] {
        server.user(OWN).get(&path(OWN, &format!("/jobs/{id}"))).await.is_problem(404, "job-not-found");
    }
}

#[tokio::test]
async fn a_hold_and_a_command_need_their_scopes_too() {
    let server = provisioned(Database::Sqlite).await;
    let writer = |scopes: &[Scope]| server.user_of(Tenancy::One(OWN), scopes);
    let sent_by = async |user: &User<'_>, job: &Value| user.post(&path(OWN, "/jobs"), job).await;
    let only_jobs = writer(&[Scope::JobsWrite]);
    assert_eq!(sent_by(&only_jobs, &plain("mail")).await.status.as_u16(), 202);
    for (job, scope) in [
        (metered("1"), Scope::CreditsWrite),
        (json!({"kind": "billing.deduct_credits", "args": deduction()}), Scope::CreditsWrite),
        (json!({"kind": "billing.purchase_credits", "args": {}}), Scope::CreditsPurchase),
        (json!({"kind": "billing.reset_monthly_credits"}), Scope::CreditsReset),
        (json!({"kind": "billing.process_subscription_change"}), Scope::SubscriptionWrite),
        (json!({"kind": "billing.cancel_subscription"}), Scope::SubscriptionWrite),
    ] {
        let refused = sent_by(&only_jobs, &job).await;
        refused.is_problem(403, "missing-scope");
        assert!(refused.json()["detail"].as_str().unwrap().contains(scope.as_str()), "{}", refused.text);
        let allowed = sent_by(&writer(&[Scope::JobsWrite, scope]), &job).await;
        assert_ne!(allowed.status.as_u16(), 403, "{}", allowed.text);
    }
}

#[tokio::test]
async fn a_command_runs_later_and_belongs_to_the_request_that_has_sent_it() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let job = json!({"kind": "billing.deduct_credits", "args": deduction()});
        let user = server.user(OWN);
        let request = user.request(Method::POST, &path(OWN, "/jobs")).json(&job).header("idempotency-key", "later");
        let job = send(request.header("x-correlation-id", "checkout-17")).await.json();
        assert_eq!(job["queue"], "billing", "{job}");
        let done = over(&server, &job).await;
        assert_eq!((&done["state"], &done["result"]["credits"]), (&json!("completed"), &json!("2.5")), "{done}");
        assert_eq!(balance(&server).await, told("997.5", "0"));
        let events = server.user(OWN).get("/v1/events?limit=200").await.json();
        let consumed =
            events["items"].as_array().unwrap().iter().find(|event| event["type"] == "CreditConsumed").unwrap();
        assert_eq!(consumed["correlationid"], "checkout-17", "{consumed}");

        // What is refused for good is a dead letter.
        let too_much = json!({"feature_code": "render", "credits": "5000"});
        let job = submitted(&server, &json!({"kind": "billing.deduct_credits", "args": too_much})).await;
        let failed = over(&server, &job).await;
        assert_eq!((&failed["state"], &failed["error"]["class"]), (&json!("failed"), &json!("insufficient-credits")));
        let letters = server.user_of(Tenancy::All, Scope::ALL).get("/v1/ops/dead-letters?source=job").await.json();
        assert_eq!(letters["items"][0]["job_id"], job["job_id"], "{letters}");
        assert_eq!(letters["items"][0]["name"], "billing");
    }
}

#[tokio::test]
async fn a_list_has_the_newest_first_and_is_filtered_page_by_page() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let mut ids = Vec::new();
        for n in 0..7 {
            let job = submitted(&server, &plain(if n % 2 == 0 { "even" } else { "odd" })).await;
            ids.push(job["job_id"].clone());
        }
        cancel(&server, &json!({"job_id": ids[2]})).await;
        let user = server.user(OWN);
        let list = async |query: &str| user.get(&path(OWN, &format!("/jobs?{query}"))).await;
        let of = |page: &Value| {
            page["items"].as_array().unwrap().iter().map(|job| job["job_id"].clone()).collect::<Vec<_>>()
        };
        let sorted = |mut ids: Vec<Value>| {
            ids.sort_by_key(Value::to_string);
            ids
        };
        let all = list("").await.json();
        assert_eq!((sorted(of(&all)), &all["has_more"]), (sorted(ids.clone()), &json!(false)));
        assert!(all["items"][0].get("args").is_none(), "a list is short");
        let canceled = list("state=canceled").await.json();
        assert_eq!(of(&canceled), [ids[2].clone()]);
        assert!(canceled["items"][0]["finished_at"].is_string());

        let (mut seen, mut query) = (Vec::new(), "kind=even&limit=2".to_owned());
        loop {
            let page = list(&query).await.json();
            seen.extend(of(&page));
            let Some(next) = page["next"].as_str() else { break };
            query = format!("kind=even&limit=2&cursor={next}");
        }
        assert_eq!(sorted(seen), sorted(ids.iter().step_by(2).cloned().collect()));
        list("cursor=x").await.is_problem(422, "invalid-cursor");
        list("state=done").await.is_problem(422, "invalid-field");
        let next = list("limit=1").await.json()["next"].as_str().unwrap().to_owned();
        list(&format!("limit=1&kind=even&cursor={next}")).await.is_problem(422, "invalid-cursor");
    }
}
