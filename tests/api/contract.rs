//! Every operation of the OpenAPI document exists and checks the token.

use reqwest::Method;
use serde_json::Value;
use visionscope_billing::http::auth::{Scope, Tenancy};
use visionscope_billing::http::openapi::openapi_document;

use crate::databases::Database;
use crate::harness::{FOREIGN, OWN, User, fake, instant, send, start_on};

struct Operation {
    method: Method,
    path: String,
    scope: Option<Scope>,
    body: Option<Value>,
}

/// The operations of the served document, each with an example of its body.
async fn operations(user: &User<'_>) -> Vec<Operation> {
    let document = user.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let description = operation["description"].as_str().unwrap();
            let scope = Scope::ALL.iter().find(|scope| description.ends_with(&format!("Scope: `{}`.", scope.as_str())));
            let content = &operation["requestBody"]["content"]["application/json"];
            let first = |examples: &Value| examples.as_object().unwrap().values().next().unwrap()["value"].clone();
            let mut body = content.get("example").cloned().or_else(|| content.get("examples").map(first));
            // Nothing comes.
            body.as_mut().and_then(Value::as_object_mut).and_then(|body| body.remove("wait_s"));
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            all.push(Operation { method, path: path.clone(), scope: scope.copied(), body });
        }
    }
    assert_eq!(all.len(), 76);
    all
}

impl Operation {
    async fn call(&self, user: &User<'_>, workspace: &str) -> crate::harness::Answer {
        let path = self.path.replace("{workspace_id}", workspace).replace("{event_id}", &FOREIGN.to_string());
        let path =
            path.replace("{usage_id}", "AAZJq1CORAAAAAAAAAAAAQ").replace("{period_start}", "2026-01-31T09:00:00Z");
        let path = path
            .replace("{grant_id}", &FOREIGN.to_string())
            .replace("{purchase_id}", &FOREIGN.to_string())
            .replace("{hold_id}", &FOREIGN.to_string())
            .replace("{dead_letter_id}", &FOREIGN.to_string())
            .replace("{job_id}", &FOREIGN.to_string())
            .replace("{worker_id}", &FOREIGN.to_string())
            .replace("{queue}", "default")
            .replace("{schedule}", "cleaning");
        let path = if path == "/v1/ops/jobs" { path + "?queue=default" } else { path };
        let path = path.replace("{file_name}", "CreditConsumed.v1.json").replace("{consumer}", "analytics");
        let request = user.request(self.method.clone(), &path).header("idempotency-key", "k");
        match &self.body {
            Some(body) => send(request.json(body)).await,
            None => send(request).await,
        }
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

#[tokio::test]
async fn every_operation_refuses_a_missing_token_a_wrong_scope_and_another_workspace() {
    let fake = fake();
    let server = &fake.server;
    let anyone = server.anyone();
    let (mut guarded, mut open) = (0, 0);
    for operation in operations(&anyone).await {
        let Some(scope) = operation.scope else {
            open += 1;
            assert_eq!(operation.call(&anyone, "").await.status, 200, "{}", operation.name());
            continue;
        };
        guarded += 1;
        operation.call(&anyone, &OWN.to_string()).await.is_problem(401, "invalid-token");
        let others: Vec<_> = Scope::ALL.iter().copied().filter(|other| *other != scope).collect();
        let unscoped = server.user_of(Tenancy::One(OWN), &others);
        operation.call(&unscoped, &OWN.to_string()).await.is_problem(403, "missing-scope");
        let scoped = server.user_of(Tenancy::One(OWN), &[scope]);
        if operation.path.contains("{workspace_id}") {
            operation.call(&scoped, &FOREIGN.to_string()).await.is_problem(404, "workspace-not-found");
        }
        let is_for_all = ["/v1/ops/", "/v1/workers", "/v1/jobs/", "/v1/analytics/kpis"];
        if is_for_all.iter().any(|own| operation.path.starts_with(own)) {
            operation.call(&scoped, "").await.is_problem(403, "all-workspaces-required");
        }
        if operation.path.contains("{event_id}") {
            operation.call(&scoped, "").await.is_problem(404, "event-not-found");
        }
    }
    assert_eq!((guarded, open), (71, 5));
    assert!(fake.engine.seen.lock().unwrap().is_empty(), "no unauthorized command reached the engine");
}

/// On the built-in plans, with the ids that earlier answers gave. Each answer is what the document says it is.
#[tokio::test]
async fn the_examples_can_be_sent_in_the_order_of_the_document() {
    const EXAMPLE: &str = "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10";
    for database in Database::ALL {
        let server = start_on(database, &visionscope_billing::config::plans::built_in().unwrap()).await;
        let document = server.anyone().get("/openapi.json").await.json();
        let (mut usage_id, mut event_id, mut grant_id) = (String::new(), String::new(), String::new());
        let (mut purchase_id, mut period_start, mut replay_id) = (String::new(), String::new(), String::new());
        let (mut job_id, mut worker_id) = (String::new(), String::new());
        let mut hold_ids = [String::new(), String::new()];
        // A parsed document has its paths in another order.
        for path in openapi_document().paths.paths.keys() {
            // There is no dead letter, and no lease of these jobs. tests/api/ops.rs discards one, and tests/api/workers.rs ends
            // jobs.
            if path.contains("{dead_letter_id}") || path.starts_with("/v1/jobs/") {
                continue;
            }
            let item = &document["paths"][path];
            if path.ends_with("/credits/reset") {
                server.clock.set(instant("2026-07-01T12:00:00Z"));
            }
            let user = server.user_of(Tenancy::All, Scope::ALL);
            for method in ["put", "post", "patch", "get"] {
                let Some(operation) = item.get(method) else { continue };
                let path = path.replace("{workspace_id}", EXAMPLE).replace("{usage_id}", &usage_id);
                let path = path.replace("{event_id}", &event_id).replace("{grant_id}", &grant_id);
                let path = path.replace("{purchase_id}", &purchase_id).replace("{period_start}", &period_start);
                // The first event was taken some time ago, but nothing promises it.
                let path = if path.ends_with("/statements") { path + "?after_seq=1" } else { path };
                // So that, in most runs, there are some to compare with their schema.
                let path = if path.ends_with("/notifications") { path + "?after_seq=12" } else { path };
                let [captured, released] = &hold_ids;
                let path = path.replace("{hold_id}", if path.ends_with("/release") { released } else { captured });
                let path = path.replace("{file_name}", "CreditConsumed.v1.json").replace("{consumer}", "analytics");
                let path = path.replace("{replay_id}", &replay_id);
                let path = path.replace("{job_id}", &job_id).replace("{worker_id}", &worker_id);
                let path = path.replace("{queue}", "video_processing").replace("{schedule}", "cleaning");
                let path = if path == "/v1/ops/jobs" { path + "?queue=video_processing" } else { path };
                for (n, mut body) in bodies(operation).into_iter().enumerate() {
                    // Nothing comes.
                    body.as_object_mut().and_then(|body| body.remove("wait_s"));
                    let method: Method = method.to_uppercase().parse().unwrap();
                    let request = user.request(method.clone(), &path).header("idempotency-key", format!("{path}{n}"));
                    let answer = send(if body.is_null() { request } else { request.json(&body) }).await;
                    assert!(answer.status.is_success(), "{method} {path} {body}: {}", answer.text);
                    if answer.header("content-type").ends_with("json") {
                        assert_is_as_documented(&document, operation, &answer);
                        let json = answer.json();
                        let nth =
                            |n: usize, field: &str| json["items"][n][field].as_str().unwrap_or_default().to_owned();
                        let first = |field: &str| nth(0, field);
                        match path.rsplit('/').next() {
                            Some("usage") => usage_id = first("usage_id"),
                            Some("holds") if method == Method::GET => hold_ids = [0, 1].map(|n| nth(n, "hold_id")),
                            Some("purchases") => purchase_id = first("grant_id"),
                            Some("statements?after_seq=1") => period_start = first("period_start"),
                            Some("replay") => replay_id = json["replay_id"].as_str().unwrap().to_owned(),
                            Some("grants") => grant_id = first("grant_id"),
                            Some("jobs") if method == Method::GET => job_id = first("job_id"),
                            Some("workers") if method == Method::POST => {
                                worker_id = json["worker_id"].as_str().unwrap().to_owned();
                            }
                            Some("events") => event_id = first("id"),
                            _ => {}
                        }
                    }
                }
            }
        }
        assert_eq!(server.store().audit(10).await.unwrap(), []);
    }
}

/// The examples of an operation's body; null if it has none.
fn bodies(operation: &Value) -> Vec<Value> {
    let content = &operation["requestBody"]["content"]["application/json"];
    match (content.get("example"), content.get("examples")) {
        (Some(example), _) => vec![example.clone()],
        (None, Some(examples)) => examples.as_object().unwrap().values().map(|one| one["value"].clone()).collect(),
        (None, None) => vec![Value::Null],
    }
}

pub fn assert_is_as_documented(document: &Value, operation: &Value, answer: &crate::harness::Answer) {
    let response = &operation["responses"][answer.status.as_str()];
    let content = response["content"].as_object().unwrap().values().next().unwrap();
    let mut schema = content["schema"].clone();
    schema["components"] = document["components"].clone();
    let validator = jsonschema::options().build(&schema).unwrap();
    let wrong: Vec<_> = validator.iter_errors(&answer.json()).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{}: {wrong:?}: {}", operation["operationId"], answer.text);
}

#[tokio::test]
async fn the_examples_of_the_document_are_valid_requests() {
    let fake = fake();
    let user = fake.server.user_of(Tenancy::All, Scope::ALL);
    for operation in operations(&user).await {
        let answer = operation.call(&user, &OWN.to_string()).await;
        let is_command = operation.body.is_some();
        assert!(
            answer.status.is_success()
                || (!is_command && answer.status == 404)
                || (operation.path.contains("/jobs") && [404, 409].contains(&answer.status.as_u16())),
            "{}: {}",
            operation.name(),
            answer.text
        );
    }
    assert_eq!(fake.engine.seen.lock().unwrap().len(), 15);
}
