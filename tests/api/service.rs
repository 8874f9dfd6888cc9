//! Probes, documents, and the headers of every answer.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use visionscope_billing::domain::event::EventType;
use visionscope_billing::engine::EngineError;
use visionscope_billing::http::HttpConfig;
use visionscope_billing::http::limits::LimitsConfig;
use visionscope_billing::telemetry;

use crate::databases::Database;
use crate::fake::Script;
use crate::harness::{OWN, deduct_path, deduction, fake, fake_with, fake_with_limits, path, provisioned, send};

#[tokio::test]
async fn readiness_follows_the_database_the_stream_and_the_shutdown() {
    let fake = fake();
    let anyone = fake.server.anyone();
    assert_eq!(anyone.get("/readyz").await.json(), json!({"status": "ok"}));
    fake.server.health.set_stream_degraded(true);
    assert_eq!(anyone.get("/readyz").await.json(), json!({"status": "degraded"}));
    // The database is asked twice a second.
    let status_becomes = async |status: u16| {
        for _ in 0..100 {
            if anyone.get("/readyz").await.status == status {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the status does not become {status}");
    };
    fake.store.is_unavailable.store(true, std::sync::atomic::Ordering::Relaxed);
    status_becomes(503).await;
    assert_eq!(anyone.get("/readyz").await.is_problem(503, "unavailable").header("retry-after"), "1");
    fake.store.is_unavailable.store(false, std::sync::atomic::Ordering::Relaxed);
    status_becomes(200).await;
    // Reads work and writes do not: the disk may be full.
    let user = fake.server.user(OWN);
    *fake.engine.script.lock().unwrap() = Script::Fail(EngineError::Unavailable);
    user.post(&deduct_path(), &deduction()).await.is_problem(503, "unavailable");
    anyone.get("/readyz").await.is_problem(503, "unavailable");
    fake.server.clock.set(crate::harness::instant("2026-06-01T12:00:06Z"));
    assert_eq!(anyone.get("/readyz").await.status, 200, "it may be tried again");
    user.post(&deduct_path(), &deduction()).await.is_problem(503, "unavailable");
    anyone.get("/readyz").await.is_problem(503, "unavailable");
    *fake.engine.script.lock().unwrap() = Script::Accept;
    assert_eq!(user.post(&deduct_path(), &deduction()).await.status, 200);
    assert_eq!(anyone.get("/readyz").await.status, 200);
    fake.server.health.drain();
    anyone.get("/readyz").await.is_problem(503, "shutting-down");
    assert_eq!(anyone.get("/livez").await.json(), json!({"status": "ok"}));
}

#[tokio::test]
async fn a_head_is_answered_like_its_get_without_the_body() {
    let fake = fake();
    let user = fake.server.user(OWN);
    for path in ["/livez", "/readyz", "/v1/plans"] {
        let answer = send(user.request(Method::HEAD, path)).await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, ""), "{path}");
        assert_eq!(answer.header("content-type"), "application/json");
    }
    assert_eq!(send(user.request(Method::HEAD, &deduct_path())).await.status, 405);
}

#[tokio::test]
async fn metrics_are_the_text_of_the_recorder() {
    let fake = fake();
    let answer = fake.server.anyone().get("/metrics").await;
    assert_eq!((answer.text.as_str(), answer.header("content-type")), ("up 1\n", "text/plain; version=0.0.4"));
}

#[tokio::test]
async fn every_refusal_that_protects_the_server_is_timed() {
    let render = telemetry::metrics();
    let refusals = |reason: &str| {
        let sample = format!("visionscope_http_refusal_seconds_count{{reason=\"{reason}\"}} ");
        render().lines().find_map(|line| line.strip_prefix(&sample)?.parse::<u32>().ok()).unwrap_or(0)
    };
    let limits = LimitsConfig { max_in_flight: 1, max_reads: 1, requests_per_second: 2 };
    let (fake, limited) = (fake(), fake_with_limits(limits));
    for (reason, error) in [
        ("over-share", EngineError::OverShare),
        ("overloaded", EngineError::Overloaded),
        ("waited-too-long", EngineError::WaitedTooLong),
    ] {
        *fake.engine.script.lock().unwrap() = Script::Fail(error);
        let before = refusals(reason);
        fake.server.user(OWN).post(&deduct_path(), &deduction()).await;
        assert!(refusals(reason) > before, "{reason}");
    }
    let before = ["in-flight", "rate"].map(refusals);
    *limited.engine.script.lock().unwrap() = Script::Hang;
    let (user, path) = (limited.server.user(OWN), deduct_path());
    let hanging =
        tokio::spawn(user.request(Method::POST, &path).header("idempotency-key", "k").json(&deduction()).send());
    while limited.engine.seen.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        user.post(&path, &deduction()).await.is_problem(429, "too-many-requests");
    }
    limited.engine.release.notify_waiters();
    assert_eq!(hanging.await.unwrap().unwrap().status(), 200);
    let after = ["in-flight", "rate"].map(refusals);
    assert!(before[0] < after[0] && before[1] < after[1], "{before:?} {after:?}");
}

#[tokio::test]
async fn every_answer_has_the_security_headers_and_a_correlation_id() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let table = [
        ("/livez", "no-store"),
        ("/v1/plans", "private, no-cache"),
        ("/nothing", "no-store"),
        (&path(OWN, "/credits"), "no-store"),
        ("/openapi.json", "no-cache"),
        ("/schemas/events/event.json", "no-cache"),
    ];
    for (path, cached) in table {
        let answer = user.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cache-control"), cached, "{path}");
        assert_eq!(answer.header("x-correlation-id").len(), 36, "{path}");
    }
}

#[tokio::test]
async fn the_docs_are_served_from_here_under_a_strict_policy() {
    let fake = fake();
    let anyone = fake.server.anyone();
    for start in ["/", "/docs"] {
        let answer = anyone.get(start).await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (308, "/docs/"), "{start}");
    }
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
async fn documents_and_lists_are_compressed_and_known_by_their_etag() {
    let server = provisioned(Database::Sqlite).await;
    let user = server.user(OWN);
    let history: Vec<_> = (0..20).map(|_| deduction()).collect();
    for body in &history {
        assert_eq!(user.post(&deduct_path(), body).await.status, 200);
    }
    let paths =
        ["/openapi.json", "/docs/swagger-ui-bundle.js", &path(OWN, "/usage"), &path(OWN, "/ledger"), "/v1/events"];
    for path in paths {
        let get = |name: &'static str, value: String| send(user.request(Method::GET, path).header(name, value));
        let plain = get("accept-encoding", "identity".into()).await;
        assert_eq!((plain.status.as_u16(), plain.header("content-encoding")), (200, ""), "{path}");
        assert!(plain.header("vary").contains("accept-encoding"), "{path}");
        let small = get("accept-encoding", "br, gzip;q=0.5".into()).await;
        assert_eq!((small.status.as_u16(), small.header("content-encoding")), (200, "gzip"), "{path}");
        let length: usize = small.header("content-length").parse().unwrap();
        assert!(length * 2 < plain.text.len(), "{path}: {length} of {}", plain.text.len());
        assert_eq!(small.header("etag"), plain.header("etag"), "{path}");
        for known in [plain.header("etag").to_owned(), format!("\"other\", {}", plain.header("etag")), "*".into()] {
            let again = get("if-none-match", known).await;
            assert_eq!((again.status.as_u16(), again.text.as_str()), (304, ""), "{path}");
            assert_eq!(again.header("etag"), plain.header("etag"), "{path}");
        }
        assert_eq!(get("if-none-match", "\"other\"".into()).await.status, 200, "{path}");
    }
    let refused = send(user.request(Method::GET, "/v1/events?limit=0").header("accept-encoding", "gzip")).await;
    assert_eq!((refused.status.as_u16(), refused.header("etag")), (422, ""));
}

#[tokio::test]
async fn the_schemas_of_events_are_served_by_the_names_that_events_give_them() {
    let fake = fake();
    let anyone = fake.server.anyone();
    for event_type in EventType::ALL {
        let (name, version) = (event_type.as_str(), event_type.schema_version());
        let answer = anyone.get(&format!("/schemas/events/{name}.v{version}.json")).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/schema+json"));
        assert_eq!(answer.json()["$id"], format!("urn:visionscope:event:{name}:{version}"));
    }
    anyone.get("/schemas/events/CreditConsumed.v2.json").await.is_problem(404, "not-found");
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
    assert_eq!(refused.is_problem(403, "origin-not-allowed").header("access-control-allow-origin"), "");
}
