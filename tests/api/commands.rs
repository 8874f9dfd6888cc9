//! The command that a request becomes, and the answer that a reply becomes.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use visionscope_billing::clock::Clock as _;
use visionscope_billing::domain::commands::{Charge, Command};
use visionscope_billing::http::limits::LimitsConfig;

use crate::fake::{ACCEPTED_BODY, Script};
use crate::harness::{FOREIGN, OWN, deduct_path, deduction, fake, fake_with_limits, path, send};

#[tokio::test]
async fn a_command_carries_its_sender_time_and_trace() {
    let fake = fake();
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let body = json!({"feature_code": "render", "quantity": "3", "metadata": {"job": "1"}, "occurred_at": "2026-06-01T11:59:00+00:00"});
    let request = fake.server.user(OWN).request(Method::POST, &deduct_path()).json(&body);
    let request = request.header("x-correlation-id", "checkout-17").header("traceparent", traceparent);
    let answer = send(request.header("idempotency-key", "order-1")).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, ACCEPTED_BODY));
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("x-correlation-id"), "checkout-17");
    assert_eq!(answer.header("idempotency-replayed"), "");
    let seen = fake.engine.seen.lock().unwrap();
    let envelope = &seen[0];
    assert_eq!(envelope.workspace_id, OWN);
    assert_eq!(envelope.actor, "tester");
    assert_eq!(envelope.idempotency_key.as_str(), "order-1");
    assert_eq!(envelope.correlation_id, "checkout-17");
    assert_eq!(envelope.traceparent.as_deref(), Some(traceparent));
    assert_eq!(envelope.received_at, fake.server.clock.now());
    assert_eq!(envelope.message_id.0.get_version_num(), 7);
    assert_eq!(envelope.metadata.as_ref().unwrap().to_json(), r#"{"job":"1"}"#);
    let Command::DeductCredits(command) = &envelope.command else { panic!("{:?}", envelope.command) };
    assert!(matches!(command.charge, Charge::Quantity(_)));
    assert_eq!(command.occurred_at.unwrap().to_string(), "2026-06-01T11:59:00.000000Z");
}

#[tokio::test]
async fn every_command_reaches_the_engine_under_its_name() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let purchase = json!({"credits": "5", "amount_minor": 0, "currency": "EUR", "payment_reference": "p"});
    user.post(&path(OWN, "/credits/purchase"), &purchase).await;
    user.post(&path(OWN, "/grants"), &json!({"credits": 5, "source": "promotion", "reason": "r"})).await;
    user.post(&path(OWN, &format!("/grants/{FOREIGN}/void")), &json!({"reason": "r"})).await;
    user.post(&path(OWN, "/holds"), &json!({"feature_code": "render", "credits": 1})).await;
    for (end, body) in [("capture", json!({})), ("extend", json!({"expires_in_s": 60})), ("release", json!({}))] {
        user.post(&path(OWN, &format!("/holds/{FOREIGN}/{end}")), &body).await;
    }
    user.post(&path(OWN, "/usage/AAZJq1CORAAAAAAAAAAAAQ/refund"), &json!({})).await;
    user.post(&path(OWN, &format!("/purchases/{FOREIGN}/reverse")), &json!({"reason": "refund"})).await;
    user.post(&path(OWN, "/credits/reset"), &json!({})).await;
    let change = json!({"plan_code": "pro", "effective": "period_end", "credit_policy": "none"});
    user.post(&path(OWN, "/subscription/change"), &change).await;
    user.post(&path(OWN, "/subscription/cancel"), &json!({"effective": "immediate"})).await;
    user.post(&path(OWN, "/subscription/resume"), &json!({})).await;
    user.put(&path(OWN, ""), &json!({"name": "A", "plan_code": "pro", "time_zone": "Europe/Berlin"})).await;
    let seen = fake.engine.seen.lock().unwrap();
    let names: Vec<_> = seen.iter().map(|envelope| envelope.command.name()).collect();
    assert_eq!(
        names,
        [
            "PurchaseCredits",
            "GrantCredits",
            "VoidGrant",
            "PlaceHold",
            "CaptureHold",
            "ExtendHold",
            "ReleaseHold",
            "RefundUsage",
            "ReversePurchase",
            "ResetMonthlyCredits",
            "ProcessSubscriptionChange",
            "CancelSubscription",
            "ResumeSubscription",
            "ProvisionWorkspace"
        ]
    );
}

/// The id of the grant is in the path and not in the body.
#[tokio::test]
async fn the_same_body_for_another_grant_is_another_request() {
    let fake = fake();
    let user = fake.server.user(OWN);
    for id in [OWN, FOREIGN, FOREIGN] {
        user.post(&path(OWN, &format!("/grants/{id}/void")), &json!({"reason": "r"})).await;
    }
    let upper_case = FOREIGN.to_string().to_uppercase();
    user.post(&path(OWN, &format!("/grants/{upper_case}/void")), &json!({"reason": "r"})).await;
    let seen = fake.engine.seen.lock().unwrap();
    let fingerprints: Vec<_> = seen.iter().map(|envelope| envelope.fingerprint).collect();
    assert_ne!(fingerprints[0], fingerprints[1]);
    assert!(fingerprints[1..].iter().all(|fingerprint| *fingerprint == fingerprints[1]));
}

#[tokio::test]
async fn times_are_checked_by_the_domain_and_not_by_the_http_layer() {
    let fake = fake();
    let body = json!({"credits": "5", "amount_minor": 0, "currency": "EUR", "payment_reference": "p", "expires_at": "2020-01-01T00:00:00Z"});
    let answer = fake.server.user(OWN).post(&path(OWN, "/credits/purchase"), &body).await;
    assert_eq!(answer.status, 200, "a stored command must be replayed even if its times are in the past now");
}

#[tokio::test]
async fn a_replay_is_the_stored_answer_with_the_replay_header() {
    let fake = fake();
    *fake.engine.script.lock().unwrap() = Script::Replay;
    let answer = fake.server.user(OWN).post(&deduct_path(), &deduction()).await;
    assert_eq!((answer.text.as_str(), answer.header("idempotency-replayed")), (ACCEPTED_BODY, "true"));
}

#[tokio::test]
async fn white_space_key_order_and_escapes_do_not_change_the_fingerprint() {
    let fake = fake();
    let user = fake.server.user(OWN);
    user.post_raw(&deduct_path(), r#"{"feature_code":"render","credits":"2.5"}"#).await;
    user.post_raw(&deduct_path(), "{ \"credits\": \"2.5\", \"feature_code\": \"rend\\u0065r\" }").await;
    user.post_raw(&deduct_path(), r#"{"feature_code":"render","credits":"2.50"}"#).await;
    let seen = fake.engine.seen.lock().unwrap();
    assert_eq!(seen[0].fingerprint, seen[1].fingerprint);
    assert_ne!(seen[0].fingerprint, seen[2].fingerprint, "another text of an amount is another request");
}

#[tokio::test]
async fn an_invalid_correlation_id_or_traceparent_is_ignored() {
    let fake = fake();
    for (sent, trace) in [("", "00-0-0-0"), ("a b", "x"), (&*"c".repeat(129), "")] {
        let request = fake.server.user(OWN).request(Method::POST, &deduct_path()).json(&deduction());
        let request = request.header("x-correlation-id", sent).header("traceparent", trace);
        let answer = send(request.header("idempotency-key", "k")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-correlation-id").len(), 36, "{sent:?}");
    }
    let seen = fake.engine.seen.lock().unwrap();
    assert!(seen.iter().all(|envelope| envelope.traceparent.is_none() && envelope.correlation_id.len() == 36));
}

#[tokio::test]
async fn commands_beyond_the_limit_in_flight_get_429() {
    let fake = fake_with_limits(LimitsConfig { max_in_flight: 2, ..LimitsConfig::default() });
    *fake.engine.script.lock().unwrap() = Script::Hang;
    let user = fake.server.user(OWN);
    let path = deduct_path();
    let hanging = [user.request(Method::POST, &path), user.request(Method::POST, &path)]
        .map(|request| tokio::spawn(request.header("idempotency-key", "k").json(&deduction()).send()));
    while fake.engine.seen.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answer = user.post(&path, &deduction()).await;
    answer.is_problem(429, "too-many-requests");
    assert_eq!(answer.header("retry-after"), "1");
    fake.engine.release.notify_waiters();
    for request in hanging {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
    *fake.engine.script.lock().unwrap() = Script::Accept;
    assert_eq!(user.post(&path, &deduction()).await.status, 200, "the permits were released");
}

#[tokio::test]
async fn reads_beyond_a_workspaces_limit_get_429_and_others_are_not_affected() {
    let fake = fake_with_limits(LimitsConfig { max_reads: 3, ..LimitsConfig::default() });
    let (user, other) = (fake.server.user(OWN), fake.server.user(FOREIGN));
    let held = fake.store.reads.lock().await;
    let read = || tokio::spawn(user.request(Method::GET, &path(OWN, "/credits")).send());
    let waiting = [read(), read(), read()];
    while fake.store.begun.load(std::sync::atomic::Ordering::SeqCst) < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for list in [path(OWN, "/ledger"), "/v1/events".to_owned()] {
        user.get(&list).await.is_problem(429, "too-many-requests");
    }
    assert_eq!(user.post(&deduct_path(), &deduction()).await.status, 200, "a command is no read");
    let others = tokio::spawn(other.request(Method::GET, &path(FOREIGN, "/credits")).send());
    drop(held);
    for answered in waiting.into_iter().chain([others]) {
        assert_eq!(answered.await.unwrap().unwrap().status(), 404, "the store is empty");
    }
    assert_eq!(user.get(&path(OWN, "/credits")).await.status, 404, "the permits were released");
}

#[tokio::test]
async fn requests_beyond_a_workspaces_rate_get_429() {
    let fake = fake_with_limits(LimitsConfig { requests_per_second: 2, ..LimitsConfig::default() });
    let user = fake.server.user(OWN);
    for _ in 0..20 {
        let answer = user.post(&deduct_path(), &deduction()).await;
        if answer.status == 429 {
            answer.is_problem(429, "too-many-requests");
            assert!(!answer.header("retry-after").is_empty());
            return;
        }
    }
    panic!("twenty requests at once passed a rate of two");
}
