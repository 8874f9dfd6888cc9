//! Probes, documents, and the headers of every answer.

use reqwest::Method;
use serde_json::json;
use visionscope_billing::http::HttpConfig;

use crate::harness::{OWN, fake, fake_with, path, send};

#[tokio::test]
async fn readiness_follows_the_database_the_stream_and_the_shutdown() {
    let fake = fake();
    let anyone = fake.server.anyone();
    assert_eq!(anyone.get("/readyz").await.json(), json!({"status": "ok"}));
    fake.server.health.set_stream_degraded(true);
    assert_eq!(anyone.get("/readyz").await.json(), json!({"status": "degraded"}));
    fake.store.is_away.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(anyone.get("/readyz").await.is_problem(503, "unavailable").header("retry-after"), "1");
    fake.store.is_away.store(false, std::sync::atomic::Ordering::Relaxed);
    fake.server.health.drain();
    anyone.get("/readyz").await.is_problem(503, "shutting-down");
    assert_eq!(anyone.get("/livez").await.json(), json!({"status": "ok"}));
}

#[tokio::test]
async fn metrics_are_the_text_of_the_recorder() {
    let fake = fake();
    let answer = fake.server.anyone().get("/metrics").await;
    assert_eq!((answer.text.as_str(), answer.header("content-type")), ("up 1\n", "text/plain; version=0.0.4"));
}

#[tokio::test]
async fn every_answer_has_the_security_headers_and_a_correlation_id() {
    let fake = fake();
    let user = fake.server.user(OWN);
    for path in ["/livez", "/v1/plans", "/nothing", &path(OWN, "/credits"), "/openapi.json"] {
        let answer = user.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("x-correlation-id").len(), 36, "{path}");
    }
}

#[tokio::test]
async fn the_docs_are_served_from_here_under_a_strict_policy() {
    let fake = fake();
    let anyone = fake.server.anyone();
    let root = anyone.get("/docs").await;
    assert_eq!((root.status.as_u16(), root.header("location")), (308, "/docs/"));
    let page = anyone.get("/docs/").await;
    assert!(page.status == 200 && page.text.contains("swagger-ui"));
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
    let start = anyone.get("/docs/swagger-initializer.js").await;
    assert!(start.text.contains("/openapi.json") && !start.text.contains("petstore"), "{}", start.text);
    for file in ["../Cargo.toml", "oauth2-redirect.html", "%2e%2e/x", "nothing.js"] {
        let answer = anyone.get(&format!("/docs/{file}")).await;
        answer.is_problem(404, "not-found");
    }
}

#[tokio::test]
async fn only_listed_origins_may_call_from_a_browser() {
    let config = HttpConfig { cors_allowed_origins: vec!["https://app.test".into()], ..HttpConfig::default() };
    let fake = fake_with(&config);
    let preflight = |origin: &str| {
        let request = fake.server.anyone().request(Method::OPTIONS, &path(OWN, "/credits/deduct"));
        let request = request.header("origin", origin).header("access-control-request-method", "POST");
        send(request.header("access-control-request-headers", "authorization,idempotency-key"))
    };
    let allowed = preflight("https://app.test").await;
    assert_eq!((allowed.status.as_u16(), allowed.header("access-control-allow-origin")), (200, "https://app.test"));
    assert_eq!(allowed.header("access-control-allow-credentials"), "");
    let refused = preflight("https://evil.test").await;
    assert_eq!(refused.header("access-control-allow-origin"), "");
}
