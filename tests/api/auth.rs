//! Tokens over HTTP. The table of forged tokens is in the unit tests of the verifier.

use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::harness::{FOREIGN, OWN, deduct_path, deduction, fake, path, send};

#[tokio::test]
async fn a_request_without_a_token_is_challenged() {
    let fake = fake();
    let answer = fake.server.anyone().post(&deduct_path(), &deduction()).await;
    assert_eq!(answer.is_problem(401, "invalid-token").header("www-authenticate"), "Bearer");
}

#[tokio::test]
async fn an_invalid_token_is_refused_without_a_reason() {
    let fake = fake();
    let mut user = fake.server.user(OWN);
    for token in ["abc", "a.b.c", "e30.e30.", ".."] {
        user.token = Some(token.into());
        let answer = user.post(&deduct_path(), &deduction()).await;
        answer.is_problem(401, "invalid-token");
        assert_eq!(answer.header("www-authenticate"), r#"Bearer error="invalid_token""#);
    }
    assert!(fake.engine.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_expired_token_is_refused_even_if_it_was_cached() {
    let fake = fake();
    let user = fake.server.user(OWN);
    assert_eq!(user.post(&deduct_path(), &deduction()).await.status, 200);
    fake.server.clock.set(crate::harness::instant("2026-06-01T12:10:05Z"));
    user.post(&deduct_path(), &deduction()).await.is_problem(401, "invalid-token");
}

#[tokio::test]
async fn a_missing_scope_is_named() {
    let fake = fake();
    let user = fake.server.user_of(Tenancy::One(OWN), &[Scope::CreditsRead]);
    let answer = user.post(&deduct_path(), &deduction()).await;
    answer.is_problem(403, "missing-scope");
    assert_eq!(answer.header("www-authenticate"), r#"Bearer error="insufficient_scope", scope="credits:write""#);
}

#[tokio::test]
async fn a_foreign_workspace_looks_exactly_like_an_unknown_one() {
    let fake = fake();
    let (own, all) = (fake.server.user(OWN), fake.server.user_of(Tenancy::All, Scope::ALL));
    let foreign = own.get(&path(FOREIGN, "/credits")).await;
    let unknown = all.get(&path(FOREIGN, "/credits")).await;
    foreign.is_problem(404, "workspace-not-found");
    assert_eq!((foreign.status, &foreign.text), (unknown.status, &unknown.text));
    let names = |answer: &crate::harness::Answer| {
        let mut names: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(names(&foreign), names(&unknown));
}

#[tokio::test]
async fn two_authorization_headers_are_refused() {
    let fake = fake();
    let user = fake.server.user(OWN);
    let request = user.request(reqwest::Method::GET, "/v1/plans").header("authorization", "Bearer other");
    send(request).await.is_problem(401, "invalid-token");
}

#[tokio::test]
async fn a_token_for_one_workspace_cannot_ask_for_the_events_of_another() {
    let fake = fake();
    let answer = fake.server.user(OWN).get(&format!("/v1/events?workspace_id={FOREIGN}")).await;
    answer.is_problem(404, "workspace-not-found");
}

#[tokio::test]
async fn the_events_of_an_unknown_workspace_are_not_found_whatever_the_cursor() {
    let fake = fake();
    let all = fake.server.user_of(Tenancy::All, Scope::ALL);
    let first = all.get(&format!("/v1/events?workspace_id={FOREIGN}")).await;
    let later = all.get(&format!("/v1/events?workspace_id={FOREIGN}&cursor=latest")).await;
    later.is_problem(404, "workspace-not-found");
    assert_eq!(first.text, later.text);
}
