//! Dry runs over real stores: what a dry run answers is what the command then does, and it writes nothing.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::ids::WorkspaceId;
use visionscope_billing::domain::plan::{PlanVersion, RateLimit, UsageLimit};
use visionscope_billing::domain::snapshot::WorkspaceState;
use visionscope_billing::domain::text::{FeatureCode, PlanCode};
use visionscope_billing::http::auth::{Scope, Tenancy};
use visionscope_billing::http::limits::LimitsConfig;
use visionscope_billing::http::openapi::openapi_document;
use visionscope_billing::store::queries::{EventPosition, EventQuery};

use crate::databases::Database;
use crate::harness::{
    Answer, FOREIGN, OWN, TestServer, deduct_path, deduction, fake, fake_with_limits, instant, path, pro, provisioned,
    send, start_on,
};

/// Another plan: three times the allowance, with limits, and a lower price.
fn scale() -> PlanVersion {
    let mut plan = PlanVersion {
        plan_code: PlanCode::new("scale").unwrap(),
        allowance: Credits::whole(3000),
        overdraft_limit: Credits::whole(50),
        monthly_limit: Some(UsageLimit::hard(Credits::whole(4000))),
        rate_limit: Some(RateLimit { credits: Credits::whole(900), window_s: 60 }),
        ..pro()
    };
    plan.features.remove("off");
    plan.features.get_mut("render").unwrap().unit_price = Some("0.25".parse().unwrap());
    let limit = Some(UsageLimit::hard(Credits::whole(10)));
    let upscale = plan.features["render"];
    plan.features.insert(
        FeatureCode::new("upscale").unwrap(),
        visionscope_billing::domain::plan::FeatureTerms { limit, ..upscale },
    );
    plan
}

/// Replaces every id. Instants and sequence numbers are compared: the clock of the server stands.
fn without_ids(value: &Value) -> Value {
    match value {
        Value::String(text) if Uuid::try_parse(text).is_ok() => json!("an id"),
        Value::Array(items) => items.iter().map(without_ids).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.clone(), without_ids(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

async fn call(server: &TestServer, (method, path): (&str, &str), key: Option<&str>, body: &Value) -> Answer {
    let method: Method = method.parse().unwrap();
    let user = server.user_of(Tenancy::All, Scope::ALL);
    let request = user.request(method, path).json(body);
    send(key.into_iter().fold(request, |request, key| request.header("idempotency-key", key))).await
}

/// Everything that a dry run could change.
async fn stored(server: &TestServer, id: WorkspaceId) -> (Option<WorkspaceState>, Vec<EventPosition>) {
    (server.store().workspace(id).await.unwrap(), server.store().heads().await.unwrap())
}

async fn events_after(server: &TestServer, state: Option<&WorkspaceState>, id: WorkspaceId) -> Vec<EventRecord> {
    let after = state.map_or(0, |state| state.credits.event_seq);
    server.store().events(&EventQuery::OfWorkspace { workspace_id: id, after, limit: 100 }).await.unwrap()
}

/// Tries a command without doing it, then does it, and compares the two. Returns the dry run and the answer.
async fn try_and_do(server: &TestServer, call_of: (&str, &str), key: &str, body: &Value) -> (Value, Answer) {
    let (method, command_path) = call_of;
    let before = stored(server, OWN).await;
    let dry = call(server, (method, &format!("{command_path}?dry_run=true")), None, body).await;
    let name = format!("{method} {command_path} {body}");
    assert_eq!((dry.status.as_u16(), dry.header("content-type")), (200, "application/json"), "{name}: {}", dry.text);
    assert_eq!(stored(server, OWN).await, before, "{name}: a dry run writes nothing");
    assert_is_a_dry_run(&dry.json());
    let done = call(server, call_of, (method == "POST").then_some(key), body).await;
    assert_eq!(done.header("idempotency-replayed") == "true", method == "PUT" && before.0.is_some(), "{name}");
    let dry = dry.json();
    assert_eq!(dry["status"], done.status.as_u16(), "{name}: {dry} and then {}", done.text);
    let mut answer = dry["answer"].clone();
    // The receipt tells it only if it is asked to.
    if let Some(decision) = answer.as_object_mut().unwrap().remove("decision").filter(|_| done.status.is_client_error())
    {
        answer["decision"] = decision;
    }
    assert_eq!(without_ids(&answer), without_ids(&done.json()), "{name}");
    let raised: Vec<_> = events_after(server, before.0.as_ref(), OWN)
        .await
        .iter()
        .map(|event| {
            let data: Value = serde_json::from_str(&event.data).unwrap();
            json!({"type": event.event_type, "data": data})
        })
        .collect();
    let mut told = dry["events"].clone();
    told.as_array_mut().unwrap().iter_mut().for_each(|event| {
        event.as_object_mut().unwrap().remove("due_work");
    });
    assert_eq!(without_ids(&told), without_ids(&raised.into()), "{name}");
    (dry, done)
}

fn assert_is_a_dry_run(answer: &Value) {
    let document: Value = serde_json::to_value(openapi_document()).unwrap();
    let schema = json!({"$ref": "#/components/schemas/DryRun", "components": document["components"]});
    let validator = jsonschema::options().build(&schema).unwrap();
    let wrong: Vec<_> = validator.iter_errors(answer).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty() && answer["dry_run"] == true, "{wrong:?}: {answer}");
}

/// The commands after the workspace is provisioned, in this order: path, body, and the status that each gets.
fn commands() -> Vec<(&'static str, Value, u16)> {
    let change =
        |plan: &str, effective: &str| json!({"plan_code": plan, "effective": effective, "credit_policy": "full"});
    let payment = |credits: &str| json!({"credits": credits, "bonus_credits": "5", "amount_minor": 100, "currency": "EUR", "payment_reference": "p-1"});
    vec![
        ("/credits/deduct", json!({"feature_code": "render", "quantity": "3", "metadata": {"job": "1"}}), 200),
        ("/credits/deduct", json!({"feature_code": "render", "credits": "5000"}), 402),
        ("/credits/deduct", json!({"feature_code": "off", "credits": "1"}), 403),
        ("/credits/deduct", json!({"feature_code": "rendr", "credits": "1"}), 404),
        ("/credits/purchase", payment("50"), 200),
        ("/credits/purchase", payment("60"), 409),
        ("/usage/{usage_id}/refund", json!({"credits": "0.5", "reason": "r"}), 200),
        ("/usage/{usage_id}/refund", json!({"credits": "1.5"}), 409),
        ("/usage/AAZJq1CORAAAAAAAAAAAAQ/refund", json!({}), 404),
        ("/purchases/{purchase_id}/reverse", json!({"credits": "20", "reason": "refund"}), 200),
        ("/purchases/{purchase_id}/reverse", json!({"credits": "31", "reason": "chargeback"}), 409),
        ("/purchases/00000000-0000-0000-0000-000000000001/reverse", json!({"reason": "mistake"}), 404),
        ("/credits/reset", json!({}), 409),
        ("/grants", json!({"credits": "20", "source": "promotion", "feature_scope": "render", "reason": "r"}), 201),
        ("/grants/{grant_id}/void", json!({"credits": "5", "reason": "r"}), 200),
        ("/grants/{grant_id}/void", json!({"credits": "16", "reason": "r"}), 409),
        ("/grants/00000000-0000-0000-0000-000000000001/void", json!({"reason": "r"}), 404),
        ("/holds", json!({"feature_code": "render", "credits": "100", "metadata": {"job": "2"}}), 201),
        ("/holds", json!({"feature_code": "render", "credits": "5000"}), 402),
        ("/holds/{hold_id}/extend", json!({"expires_in_s": 7200}), 200),
        ("/holds/{hold_id}/capture", json!({"credits": "40"}), 200),
        ("/holds/{hold_id}/capture", json!({"credits": "40"}), 409),
        ("/holds", json!({"feature_code": "render", "credits": "30"}), 201),
        ("/holds/{hold_id}/release", json!({}), 200),
        ("/holds/{hold_id}/release", json!({}), 409),
        ("/subscription/change", change("scale", "period_end"), 200),
        ("/subscription/change", change("pro", "immediate"), 409),
        ("/subscription/change", change("none", "immediate"), 422),
        ("/subscription/resume", json!({}), 200),
        ("/subscription/resume", json!({}), 409),
        ("/subscription/change", change("scale", "immediate"), 200),
        ("/subscription/cancel", json!({"effective": "period_end", "expected_version": 1}), 412),
        ("/subscription/cancel", json!({"effective": "immediate"}), 200),
        ("/subscription/cancel", json!({"effective": "immediate"}), 409),
        ("/credits/deduct", json!({"feature_code": "render", "credits": "1"}), 200),
    ]
}

#[tokio::test]
async fn a_dry_run_of_every_command_is_what_the_command_then_does() {
    for database in Database::ALL {
        let server = start_on(database, &[pro(), scale()]).await;
        let workspace = path(OWN, "");
        for body in [json!({"name": "Acme", "plan_code": "none"}), json!({"name": "Acme", "plan_code": "pro"})] {
            try_and_do(&server, ("PUT", &workspace), "", &body).await;
        }
        // Once it is there, the same definition gets its answer again, and another one is refused.
        let again = json!({"name": "Acme", "plan_code": "pro"});
        assert_eq!(try_and_do(&server, ("PUT", &workspace), "", &again).await.0["status"], 201);
        let (mut grant_id, mut hold_id) = (String::new(), String::new());
        let (mut usage_id, mut purchase_id) = (String::new(), String::new());
        let mut tried = 0;
        for (n, (rest, body, status)) in commands().into_iter().enumerate() {
            let rest_of = rest.replace("{grant_id}", &grant_id).replace("{hold_id}", &hold_id);
            let path = path(OWN, &rest_of.replace("{usage_id}", &usage_id).replace("{purchase_id}", &purchase_id));
            let (_, done) = try_and_do(&server, ("POST", &path), &format!("key-{n}"), &body).await;
            assert_eq!(done.status.as_u16(), status, "{path} {body}: {}", done.text);
            let receipt = done.json();
            let id = |name: &str| receipt[name].as_str().map(str::to_owned);
            match rest {
                "/credits/deduct" if status == 200 => usage_id = id("usage_id").unwrap(),
                "/credits/purchase" if status == 200 => purchase_id = id("grant_id").unwrap(),
                "/grants" => grant_id = id("grant_id").unwrap(),
                "/holds" if status == 201 => hold_id = id("hold_id").unwrap(),
                _ => {}
            }
            tried += 1;
        }
        assert_eq!(tried, commands().len());
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}

/// Every command of the document is in the table of this test.
#[test]
fn no_command_is_left_out() {
    let tried: Vec<_> = commands().into_iter().map(|(rest, ..)| rest.to_owned()).collect();
    for (path, item) in &openapi_document().paths.paths {
        // What an operator does is no command, and neither is a job.
        let is_other = ["/v1/ops/", "/v1/jobs", "/v1/workers"].iter().any(|other| path.starts_with(other));
        if item.post.is_some() && !is_other && !path.contains("}/jobs") {
            let rest = path.strip_prefix("/v1/workspaces/{workspace_id}").unwrap();
            assert!(tried.iter().any(|one| one == rest), "{rest} is not tried");
        }
    }
}

#[tokio::test]
async fn another_definition_of_a_workspace_that_is_there_would_be_refused() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let put = ("PUT", &*format!("{}?dry_run=true", path(OWN, "")));
        let dry = call(&server, put, None, &json!({"name": "Other", "plan_code": "pro"})).await.json();
        assert_eq!((&dry["status"], &dry["answer"]["code"]), (&json!(409), &json!("workspace-exists")), "{dry}");
    }
}

#[tokio::test]
async fn work_that_is_due_is_told_before_the_command() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let hold = json!({"feature_code": "render", "credits": "100"});
        assert_eq!(call(&server, ("POST", &path(OWN, "/holds")), Some("h"), &hold).await.status, 201);
        server.clock.set(instant("2026-08-02T00:00:00Z"));
        let (dry, done) = try_and_do(&server, ("POST", &deduct_path()), "d", &deduction()).await;
        assert_eq!(done.status, 200);
        let told = dry["events"].as_array().unwrap().iter();
        let told: Vec<_> =
            told.map(|event| (event["type"].as_str().unwrap().to_owned(), event["due_work"] == true)).collect();
        let due = ["HoldReleased", "CreditReset", "CreditReset"].map(|name| (name.to_owned(), true));
        assert_eq!(told, [&due[..], &[("CreditConsumed".to_owned(), false)]].concat());
        assert_eq!(server.store().audit(5).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_change_of_plan_shows_terms_and_credits_before_and_after() {
    for database in Database::ALL {
        let server = start_on(database, &[pro(), scale()]).await;
        let definition =
            json!({"name": "A", "plan_code": "pro", "features": [{"feature_code": "render", "limit": "700"}]});
        assert_eq!(server.user(OWN).put(&path(OWN, ""), &definition).await.status, 201);
        let hold = json!({"feature_code": "render", "credits": "100"});
        assert_eq!(call(&server, ("POST", &path(OWN, "/holds")), Some("h"), &hold).await.status, 201);
        let limit = json!({"credits": "700", "mode": "hard"});
        let render =
            |price: &str| json!({"feature_code": "render", "enabled": true, "unit_price": price, "limit": limit});
        let off = |code: &str| json!({"feature_code": code, "enabled": false});
        let before = json!({
            "plan_code": "pro", "plan_version": 1, "current_credits": "1000", "available_credits": "900",
            "overdraft_limit": "0", "features": [off("off"), render("0.5"), off("upscale")]
        });
        let ten = json!({"credits": "10", "mode": "hard"});
        let upscale = json!({"feature_code": "upscale", "enabled": true, "unit_price": "0.25", "limit": ten});
        let after = |credits: &str, available: &str| {
            json!({
                "plan_code": "scale", "plan_version": 1, "current_credits": credits, "available_credits": available,
                "overdraft_limit": "50", "monthly_limit": {"credits": "4000", "mode": "hard"},
                "rate_limit": {"credits": "900", "window_s": 60}, "features": [off("off"), render("0.25"), upscale]
            })
        };
        let change = path(OWN, "/subscription/change");
        for (n, (effective, after)) in
            [("period_end", after("1000", "900")), ("immediate", after("3000", "2950"))].into_iter().enumerate()
        {
            let body = json!({"plan_code": "scale", "effective": effective, "credit_policy": "full", "expected_version": n + 1});
            let (dry, _) = try_and_do(&server, ("POST", &change), effective, &body).await;
            let preview = &dry["preview"];
            assert_eq!((&preview["before"], &preview["after"]), (&before, &after), "{effective}");
            assert_eq!(preview["open_holds"], json!({"count": 1, "credits": "100"}));
        }
        // What moved meanwhile is noticed by the version.
        let stale =
            json!({"plan_code": "pro", "effective": "immediate", "credit_policy": "none", "expected_version": 2});
        let (dry, done) = try_and_do(&server, ("POST", &change), "stale", &stale).await;
        assert_eq!((done.status.as_u16(), dry.get("preview")), (412, None));
    }
}

#[tokio::test]
async fn a_key_that_is_sent_is_neither_used_nor_replayed() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let dry = format!("{}?dry_run=true", deduct_path());
        let tried = call(&server, ("POST", &dry), Some("one"), &deduction()).await;
        assert_eq!(tried.json()["answer"]["current_credits"], "997.5");
        let done = call(&server, ("POST", &deduct_path()), Some("one"), &deduction()).await;
        assert_eq!((done.status.as_u16(), done.header("idempotency-replayed")), (200, ""));
        // Also with another body, or a key that no command could have.
        for (key, credits) in [("one", "1"), ("a b", "1")] {
            let body = json!({"feature_code": "render", "credits": credits});
            let tried = call(&server, ("POST", &dry), Some(key), &body).await;
            assert_eq!(
                (tried.header("idempotency-replayed"), &tried.json()["answer"]["current_credits"]),
                ("", &json!("996.5"))
            );
        }
        for dry_run in ["", "?dry_run=false"] {
            let without_key = call(&server, ("POST", &format!("{}{dry_run}", deduct_path())), None, &deduction()).await;
            without_key.is_problem(400, "idempotency-key-required");
        }
    }
}

#[tokio::test]
async fn a_dry_run_passes_the_same_checks_as_its_command() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let dry = format!("{}?dry_run=true", deduct_path());
        server.anyone().post(&dry, &deduction()).await.is_problem(401, "invalid-token");
        let reader = server.user_of(Tenancy::One(OWN), &[Scope::CreditsRead]);
        reader.post(&dry, &deduction()).await.is_problem(403, "missing-scope");
        server.user(FOREIGN).post(&dry, &deduction()).await.is_problem(404, "workspace-not-found");
        let user = server.user(OWN);
        let bad = user.post(&dry, &json!({"feature_code": "render", "credits": "0"})).await;
        assert_eq!(bad.is_problem(422, "amount-out-of-range").pointer(), "/credits");
        user.post_raw(&dry, "{").await.is_problem(400, "malformed-json");
        // A token may be for a workspace that is not there.
        let unknown = server.user(FOREIGN);
        let answer =
            unknown.post(&format!("{}?dry_run=true", path(FOREIGN, "/credits/deduct")), &deduction()).await.json();
        assert_eq!((&answer["status"], &answer["answer"]["code"]), (&json!(404), &json!("workspace-not-found")));
    }
}

#[tokio::test]
async fn the_parameter_is_true_or_false_and_the_only_one() {
    let fake = fake();
    let user = fake.server.user(OWN);
    for (query, parameter, code) in [
        ("dry_run=1", "dry_run", "invalid-field"),
        ("dry_run=", "dry_run", "invalid-field"),
        ("dry_run=TRUE", "dry_run", "invalid-field"),
        ("dry_run=true&dry_run=true", "dry_run", "invalid-field"),
        ("dryrun=true", "dryrun", "unknown-field"),
        ("dry_run=true&limit=1", "limit", "unknown-field"),
    ] {
        let answer = user.post(&format!("{}?{query}", deduct_path()), &deduction()).await;
        assert_eq!(
            answer.is_problem(422, code).json()["errors"][0]["parameter"],
            parameter,
            "{query}: {}",
            answer.text
        );
    }
    assert_eq!(user.post(&format!("{}?dry_run=false", deduct_path()), &deduction()).await.status, 200);
    assert_eq!((fake.engine.seen.lock().unwrap().len(), fake.engine.tried.lock().unwrap().len()), (1, 0));
}

#[tokio::test]
async fn a_dry_run_counts_as_a_read_in_flight_and_not_as_a_command() {
    let fake = fake_with_limits(LimitsConfig { max_in_flight: 1, max_reads: 1, ..LimitsConfig::default() });
    let (user, dry) = (fake.server.user(OWN), format!("{}?dry_run=true", deduct_path()));
    let held = fake.store.reads.lock().await;
    let reading = tokio::spawn(user.request(Method::GET, &path(OWN, "/credits")).send());
    while fake.store.begun.load(std::sync::atomic::Ordering::SeqCst) < 1 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    user.post(&dry, &deduction()).await.is_problem(429, "too-many-requests");
    assert_eq!(user.post(&deduct_path(), &deduction()).await.status, 200);
    drop(held);
    reading.await.unwrap().unwrap();
    assert_eq!(user.post(&dry, &deduction()).await.json()["dry_run"], true);
}
