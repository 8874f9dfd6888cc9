//! Answers to invalid input, over HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use visionscope_billing::domain::rejection::Rejection;
use visionscope_billing::engine::EngineError;

use crate::fake::Script;
use crate::harness::{FOREIGN, OWN, TestServer, deduct_path, deduction, fake, path, send};

#[tokio::test]
async fn malformed_json_is_refused() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let deep = format!(r#"{{"metadata":{}{}}}"#, "[".repeat(17), "]".repeat(17));
    let cases: [&[u8]; 7] = [
        b"",
        b"{",
        b"{\"feature_code\":\"a\",}",
        b"{\"feature_code\":\"a\",\"feature_code\":\"a\"}",
        b"{\"feature_code\":\"\xff\"}",
        b"\xff\xfe{\x00}\x00",
        deep.as_bytes(),
    ];
    for body in cases {
        user.post_raw(&deduct_path(), body.to_vec()).await.is_problem(400, "malformed-json");
    }
    assert!(fake.engine.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn invalid_fields_of_a_grant_are_named_by_their_pointer() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let grants = path(OWN, "/grants");
    for (field, value, code) in [
        ("credits", json!(0), "amount-out-of-range"),
        ("source", json!("purchase"), "invalid-field"),
        ("source", json!({"promotion": null}), "invalid-field"),
        ("priority", json!(-1), "invalid-field"),
        ("priority", json!(101), "invalid-field"),
        ("priority", json!(50.5), "invalid-field"),
        ("priority", json!("50"), "invalid-field"),
        ("effective_at", json!("tomorrow"), "invalid-field"),
        ("expires_at", json!(5), "invalid-field"),
        ("feature_scope", json!("No Code"), "invalid-text"),
        ("reason", json!(""), "invalid-text"),
        ("reason", json!("x".repeat(201)), "invalid-text"),
        ("amount", json!(1), "unknown-field"),
    ] {
        let mut body = json!({"credits": 1, "source": "promotion", "reason": "r"});
        body[field] = value;
        let answer = user.post(&grants, &body).await;
        assert_eq!(answer.is_problem(422, code).pointer(), format!("/{field}"), "{body}");
    }
    let void = path(OWN, &format!("/grants/{FOREIGN}/void"));
    for (body, code, pointer) in [
        (json!({}), "invalid-field", "/reason"),
        (json!({"reason": "r", "credits": "-1"}), "amount-out-of-range", "/credits"),
    ] {
        assert_eq!(user.post(&void, &body).await.is_problem(422, code).pointer(), pointer, "{body}");
    }
    assert!(fake.engine.seen.lock().unwrap().is_empty());
    let bounds = json!({"credits": 1, "source": "promotion", "reason": "r", "priority": 0});
    assert_eq!(user.post(&grants, &bounds).await.status, 200);
}

#[tokio::test]
async fn invalid_fields_are_named_by_their_pointer() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let too_many: serde_json::Map<_, _> = (0..17).map(|n| (format!("k{n}"), json!("v"))).collect();
    let long = "x".repeat(129);
    let cases = [
        ("deduct", json!({"feature_code": 1, "credits": 1}), "invalid-field", "/feature_code"),
        ("deduct", json!({"credits": 1}), "invalid-field", "/feature_code"),
        ("deduct", json!({"feature_code": "a"}), "invalid-field", "/credits"),
        ("deduct", json!({"feature_code": "a", "credits": 1, "quantity": 1}), "invalid-field", "/credits"),
        ("deduct", json!({"feature_code": "a", "credits": "1.1234567"}), "invalid-field", "/credits"),
        ("deduct", json!({"feature_code": "a", "credits": "1e3"}), "invalid-field", "/credits"),
        ("deduct", json!({"feature_code": "a", "credits": 0.5}), "invalid-field", "/credits"),
        ("deduct", json!({"feature_code": "a", "credits": 0}), "amount-out-of-range", "/credits"),
        ("deduct", json!({"feature_code": "a", "credits": "-0.000001"}), "amount-out-of-range", "/credits"),
        ("deduct", json!({"feature_code": "a", "credits": "1000000000000.000001"}), "amount-out-of-range", "/credits"),
        ("deduct", json!({"feature_code": "a", "quantity": "0"}), "amount-out-of-range", "/quantity"),
        ("deduct", json!({"feature_code": "a", "credits": 1, "user_id": "a\u{0}b"}), "invalid-text", "/user_id"),
        ("deduct", json!({"feature_code": "a", "credits": 1, "user_id": "a\u{202e}b"}), "invalid-text", "/user_id"),
        ("deduct", json!({"feature_code": "a", "credits": 1, "user_id": long}), "invalid-text", "/user_id"),
        ("deduct", json!({"feature_code": "a", "credits": 1, "occurred_at": "now"}), "invalid-field", "/occurred_at"),
        ("deduct", json!({"feature_code": "a", "credits": 1, "metadata": too_many}), "invalid-field", "/metadata"),
        ("deduct", json!({"feature_code": "a", "credits": 1, "metadata": {"k": 1}}), "invalid-field", "/metadata/k"),
        ("deduct", json!({"feature_code": "a", "credits": 1, "user": "u"}), "unknown-field", "/user"),
        (
            "purchase",
            json!({"credits": 1, "amount_minor": -1, "currency": "EUR", "payment_reference": "p"}),
            "amount-out-of-range",
            "/amount_minor",
        ),
        (
            "purchase",
            json!({"credits": 1, "amount_minor": 1_000_000_000_000_001_i64, "currency": "EUR", "payment_reference": "p"}),
            "amount-out-of-range",
            "/amount_minor",
        ),
        (
            "purchase",
            json!({"credits": 1, "amount_minor": 1, "currency": "eur", "payment_reference": "p"}),
            "invalid-field",
            "/currency",
        ),
        (
            "purchase",
            json!({"credits": 1, "amount_minor": 1, "currency": "XXX", "payment_reference": "p"}),
            "invalid-field",
            "/currency",
        ),
        (
            "purchase",
            json!({"credits": 1, "amount_minor": 1, "currency": "EUR", "payment_reference": ""}),
            "invalid-text",
            "/payment_reference",
        ),
        (
            "purchase",
            json!({"credits": 1, "amount_minor": 1, "currency": "EUR", "payment_reference": "p", "expires_at": 5}),
            "invalid-field",
            "/expires_at",
        ),
    ];
    for (command, body, code, pointer) in cases {
        let answer = user.post(&path(OWN, &format!("/credits/{command}")), &body).await;
        assert_eq!(answer.is_problem(422, code).pointer(), pointer, "{body}");
    }
}

#[tokio::test]
async fn invalid_fields_of_the_other_commands_are_named_too() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let cases = [
        ("change", json!({"plan_code": "pro", "effective": "later", "credit_policy": "none"}), "/effective"),
        ("change", json!({"plan_code": "pro", "effective": "immediate"}), "/credit_policy"),
        (
            "change",
            json!({"plan_code": "pro", "effective": {"period_end": null}, "credit_policy": "none"}),
            "/effective",
        ),
        ("cancel", json!({"effective": {"period_end": null}}), "/effective"),
        ("cancel", json!({"effective": "immediate", "expected_version": 0}), "/expected_version"),
        ("resume", json!({"expected_version": 1.5}), "/expected_version"),
    ];
    for (command, body, pointer) in cases {
        let answer = user.post(&path(OWN, &format!("/subscription/{command}")), &body).await;
        assert_eq!(answer.is_problem(422, "invalid-field").pointer(), pointer, "{body}");
    }
    let cases = [
        (json!({"name": "A", "plan_code": "pro", "time_zone": "Mars/Olympus"}), "invalid-field", "/time_zone"),
        (json!({"name": "A\n", "plan_code": "pro"}), "invalid-text", "/name"),
        (json!({"name": "A", "plan_code": "pro", "overdraft_limit": "-1"}), "amount-out-of-range", "/overdraft_limit"),
        (
            json!({"name": "A", "plan_code": "pro", "features": [{"feature_code": "a", "x": 1}]}),
            "unknown-field",
            "/features/0/x",
        ),
        (
            json!({"name": "A", "plan_code": "pro", "features": [{"feature_code": "a"}, {"feature_code": "a"}]}),
            "invalid-field",
            "/features/1/feature_code",
        ),
    ];
    for (body, code, pointer) in cases {
        let answer = user.put(&path(OWN, ""), &body).await;
        assert_eq!(answer.is_problem(422, code).pointer(), pointer, "{body}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_an_object_is_refused() {
    let fake = fake();
    let user = fake.server.user(OWN);
    for body in ["[]", "1", "null", "\"a\""] {
        user.post_raw(&deduct_path(), body).await.is_problem(422, "object-required");
    }
}

#[tokio::test]
async fn bodies_must_be_uncompressed_json_of_limited_size() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let large = format!(r#"{{"feature_code":"{}"}}"#, "x".repeat(64 * 1024));
    user.post_raw(&deduct_path(), large.clone()).await.is_problem(413, "body-too-large");
    let chunks = futures::stream::iter(
        large.into_bytes().chunks(1000).map(<[u8]>::to_vec).map(Ok::<_, std::io::Error>).collect::<Vec<_>>(),
    );
    let request = chunked(&fake.server, futures::StreamExt::map(chunks, |chunk| chunk.unwrap())).await;
    assert!(request.starts_with("HTTP/1.1 413"), "{request}");
    let request =
        || user.request(Method::POST, &deduct_path()).header("idempotency-key", "k").body(deduction().to_string());
    send(request()).await.is_problem(415, "unsupported-media-type");
    send(request().header("content-type", "text/plain")).await.is_problem(415, "unsupported-media-type");
    let twice = request().header("content-type", "application/json").header("content-type", "application/json");
    send(twice).await.is_problem(415, "unsupported-media-type");
    let compressed = request().header("content-type", "application/json").header("content-encoding", "gzip");
    send(compressed).await.is_problem(415, "unsupported-content-encoding");
    let html_only = request().header("content-type", "application/json").header("accept", "text/html");
    send(html_only).await.is_problem(406, "not-acceptable");
}

/// Sends a body in chunks, without a content length.
async fn chunked(server: &TestServer, chunks: impl futures::Stream<Item = Vec<u8>>) -> String {
    let chunks: Vec<_> = futures::StreamExt::collect(chunks).await;
    let head = head(server, "transfer-encoding: chunked\r\n");
    let address = server.address;
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        for chunk in chunks {
            let sent = write!(stream, "{:x}\r\n", chunk.len()).and_then(|()| stream.write_all(&chunk));
            if sent.and_then(|()| stream.write_all(b"\r\n")).is_err() {
                break;
            }
        }
        let _ = stream.write_all(b"0\r\n\r\n");
        read_some(&mut stream)
    })
    .await
    .unwrap()
}

fn head(server: &TestServer, more: &str) -> String {
    format!(
        "POST {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nidempotency-key: k\r\ncontent-type: application/json\r\n{more}\r\n",
        deduct_path(),
        server.user(OWN).token.unwrap()
    )
}

fn read_some(stream: &mut TcpStream) -> String {
    let mut text = vec![0; 8192];
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let read = stream.read(&mut text).unwrap_or(0);
    String::from_utf8_lossy(&text[..read]).into_owned()
}

#[tokio::test]
async fn a_slow_body_gets_408_after_the_timeout() {
    let fake = fake();
    let head = head(&fake.server, "content-length: 100\r\n");
    let address = fake.server.address;
    let begun = Instant::now();
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(b"{").unwrap();
        read_some(&mut stream)
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request-timeout"), "{answer}");
    assert!((Duration::from_secs(9)..Duration::from_secs(15)).contains(&begun.elapsed()));
}

#[tokio::test]
async fn an_empty_body_means_an_empty_object_if_no_field_is_required() {
    let fake = fake();
    let user = fake.server.user(OWN);
    for command in ["/credits/reset", "/subscription/resume"] {
        let request = || user.request(Method::POST, &path(OWN, command)).header("idempotency-key", "k");
        assert_eq!(send(request()).await.status, 200, "{command}");
        assert_eq!(send(request().json(&json!({}))).await.status, 200, "{command}");
        let seen: Vec<_> = fake.engine.seen.lock().unwrap().iter().map(|envelope| envelope.fingerprint).collect();
        let [.., empty, object] = seen[..] else { panic!("two commands") };
        assert_eq!(empty, object);
        send(request().body("{}")).await.is_problem(415, "unsupported-media-type");
    }
    let request = user.request(Method::POST, &deduct_path()).header("idempotency-key", "k");
    send(request).await.is_problem(415, "unsupported-media-type");
}

#[tokio::test]
async fn a_command_needs_one_well_formed_idempotency_key() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let request = || user.request(Method::POST, &deduct_path()).json(&deduction());
    send(request()).await.is_problem(400, "idempotency-key-required");
    for key in ["", "a b", "\"\"", &"k".repeat(256)] {
        send(request().header("idempotency-key", key)).await.is_problem(400, "idempotency-key-required");
    }
    send(request().header("idempotency-key", "a").header("idempotency-key", "b"))
        .await
        .is_problem(400, "idempotency-key-required");
    for key in ["\"quoted\"", "quoted"] {
        assert_eq!(send(request().header("idempotency-key", key)).await.status, 200);
    }
    let seen = fake.engine.seen.lock().unwrap();
    assert_eq!(seen[0].idempotency_key, seen[1].idempotency_key);
}

#[tokio::test]
async fn a_key_used_with_another_request_is_refused() {
    let fake = fake();
    *fake.engine.script.lock().unwrap() = Script::KeyReused;
    let user = fake.server.user(OWN);
    user.post(&deduct_path(), &deduction()).await.is_problem(422, "idempotency-key-reused");
    let definition = json!({"name": "A", "plan_code": "pro"});
    user.put(&path(OWN, ""), &definition).await.is_problem(409, "workspace-exists");
}

#[tokio::test]
async fn unknown_ids_paths_and_methods_have_different_codes() {
    let fake = fake();
    let user = fake.server.user(OWN);
    user.get("/v1/workspaces/not-a-uuid/credits").await.is_problem(404, "workspace-not-found");
    user.get("/v1/workspaces/%00/credits").await.is_problem(404, "workspace-not-found");
    user.get("/v1/events/not-a-uuid").await.is_problem(404, "event-not-found");
    for path in ["/v1", "/v1/workspaces", "/v1/nothing", "/admin", "/v1/plans/", "//v1/plans"] {
        user.get(path).await.is_problem(404, "not-found");
    }
    let cases = [
        (Method::GET, deduct_path(), "POST"),
        (Method::DELETE, path(OWN, ""), "GET, HEAD, PUT"),
        (Method::POST, "/v1/plans".into(), "GET, HEAD"),
        (Method::PATCH, "/livez".into(), "GET, HEAD"),
        (Method::POST, "/docs/".into(), "GET, HEAD"),
        (Method::POST, "/".into(), "GET, HEAD"),
    ];
    for (method, path, allow) in cases {
        let answer = send(user.request(method.clone(), &path)).await;
        let found = answer.is_problem(405, "method-not-allowed").header("allow");
        assert_eq!(found, allow, "{method} {path}");
    }
}

#[tokio::test]
async fn unknown_and_malformed_parameters_are_named() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let cases = [
        (path(OWN, "/usage?page=2"), "unknown-field", "page"),
        (path(OWN, "/usage?limit=0"), "invalid-field", "limit"),
        (path(OWN, "/usage?limit=201"), "invalid-field", "limit"),
        (path(OWN, "/usage?limit=ten"), "invalid-field", "limit"),
        (path(OWN, "/usage?limit=%2B5"), "invalid-field", "limit"),
        (path(OWN, "/usage?limit=05"), "invalid-field", "limit"),
        (format!("/v1/events?workspace_id={}", OWN.0.simple()), "invalid-field", "workspace_id"),
        (path(OWN, "/usage?limit=1&limit=2"), "invalid-field", "limit"),
        (path(OWN, "/usage?cursor=xyz"), "invalid-cursor", "cursor"),
        (path(OWN, "/usage?cursor=latest"), "invalid-cursor", "cursor"),
        (path(OWN, "/usage?cursor=_hQBC0_oMwO3iIqdcoMk4wAGSatQjkQAAAAAAAAAAAI"), "invalid-cursor", "cursor"),
        (path(OWN, "/ledger?from=yesterday"), "invalid-field", "from"),
        (path(OWN, "/ledger?grant_id=1"), "invalid-field", "grant_id"),
        (path(OWN, "/ledger?order=newest"), "invalid-field", "order"),
        (path(OWN, "/usage?feature_code=A%20B"), "invalid-text", "feature_code"),
        ("/v1/events?cursor=nonsense".into(), "invalid-cursor", "cursor"),
        ("/v1/events?cursor=Ck5MKUMuywG3iIqdcoMk4wAGSatQjkQAAAAAAAAAAAE".into(), "invalid-cursor", "cursor"),
        ("/v1/events?after=x".into(), "unknown-field", "after"),
        ("/v1/events?type=CreditsVanished".into(), "invalid-field", "type"),
        ("/v1/events?workspace_id=1".into(), "invalid-field", "workspace_id"),
        ("/v1/events?partition=0".into(), "invalid-field", "partition"),
        ("/v1/events?partition=-1".into(), "invalid-field", "partition"),
        ("/v1/events?after_sequence=1".into(), "invalid-field", "after_sequence"),
        ("/v1/events?partition=0&after_sequence=%2B1".into(), "invalid-field", "after_sequence"),
        ("/v1/plans?x=1".into(), "unknown-field", "x"),
        (path(OWN, "/credits?x=1"), "unknown-field", "x"),
    ];
    for (path, code, parameter) in cases {
        let answer = user.get(&path).await;
        answer.is_problem(422, code);
        assert_eq!(answer.json()["errors"][0]["parameter"], parameter, "{path}");
    }
}

#[tokio::test]
async fn rejections_have_their_status_and_members() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let credits = |text: &str| text.parse().unwrap();
    let cases = [
        (
            Rejection::InsufficientCredits { requested: credits("2.5"), available: credits("1") },
            402,
            "available_credits",
            json!("1"),
        ),
        (Rejection::VersionMismatch { expected: 1, actual: 2 }, 412, "actual_version", json!(2)),
        (Rejection::RateExceeded { limit: credits("9"), window_s: 60, retry_after_s: 7 }, 429, "window_s", json!(60)),
    ];
    for (rejection, status, member, value) in cases {
        *fake.engine.script.lock().unwrap() = Script::Reject(rejection.clone());
        let answer = user.post(&deduct_path(), &deduction()).await;
        answer.is_problem(status, rejection.code());
        assert_eq!(answer.json()[member], value);
        assert_eq!(answer.header("retry-after"), if status == 429 { "7" } else { "" });
    }
}

#[tokio::test]
async fn too_many_or_too_large_headers_are_refused() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let many = (0..70).fold(user.request(Method::GET, "/v1/plans"), |request, n| request.header(format!("x-{n}"), "v"));
    send(many).await.is_problem(431, "headers-too-large");
    let large = user.request(Method::GET, "/v1/plans").header("x-large", "v".repeat(20_000));
    send(large).await.is_problem(431, "headers-too-large");
}

#[tokio::test]
async fn engine_errors_have_their_status_and_retry_after() {
    let fake = fake();
    let user = fake.server.user(OWN);
    for (error, status, code) in [
        (EngineError::Overloaded, 503, "overloaded"),
        (EngineError::OverShare, 429, "too-many-requests"),
        (EngineError::Stopping, 503, "shutting-down"),
        (EngineError::Unavailable, 503, "unavailable"),
        (EngineError::Failed, 500, "internal-error"),
    ] {
        *fake.engine.script.lock().unwrap() = Script::Fail(error);
        let answer = user.post(&deduct_path(), &deduction()).await;
        answer.is_problem(status, code);
        assert_eq!(answer.header("retry-after"), if status == 500 { "" } else { "1" });
    }
}

#[tokio::test]
async fn an_unavailable_database_gives_503_without_details() {
    let fake = fake();
    fake.store.is_unavailable.store(true, std::sync::atomic::Ordering::Relaxed);
    let answer = fake.server.user(OWN).get(&path(OWN, "/credits")).await;
    answer.is_problem(503, "unavailable");
    assert!(!answer.text.contains("10.1.2.3"));
    assert_eq!(answer.header("retry-after"), "1");
}
