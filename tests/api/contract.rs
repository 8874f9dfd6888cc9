//! Every operation of the OpenAPI document exists and checks the token.

use reqwest::Method;
use serde_json::Value;
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::harness::{FOREIGN, OWN, User, fake, send};

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
            let body = content.get("example").cloned().or_else(|| content.get("examples").map(first));
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            all.push(Operation { method, path: path.clone(), scope: scope.copied(), body });
        }
    }
    assert_eq!(all.len(), 23);
    all
}

impl Operation {
    async fn call(&self, user: &User<'_>, workspace: &str) -> crate::harness::Answer {
        let path = self.path.replace("{workspace_id}", workspace).replace("{event_id}", &FOREIGN.to_string());
        let path = path.replace("{usage_id}", "AAZJq1CORAAAAAAAAAAAAQ");
        let path = path.replace("{file_name}", "CreditConsumed.v1.json");
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
        if operation.path.contains("{event_id}") {
            operation.call(&scoped, "").await.is_problem(404, "event-not-found");
        }
    }
    assert_eq!((guarded, open), (18, 5));
    assert!(fake.engine.seen.lock().unwrap().is_empty(), "no unauthorized command reached the engine");
}

#[tokio::test]
async fn the_examples_of_the_document_are_valid_requests() {
    let fake = fake();
    let user = fake.server.user(OWN);
    for operation in operations(&user).await {
        let answer = operation.call(&user, &OWN.to_string()).await;
        let is_command = operation.body.is_some();
        assert!(answer.status == 200 || (!is_command && answer.status == 404), "{}: {}", operation.name(), answer.text);
    }
    assert_eq!(fake.engine.seen.lock().unwrap().len(), 7);
}
