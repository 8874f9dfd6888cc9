//! What operators look at and do, over HTTP and on both databases.

use serde_json::{Value, json};
use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::consumers::Consumer;
use visionscope_billing::domain::event::EventType;
use visionscope_billing::http::auth::{Scope, Tenancy};
use visionscope_billing::store::queries::EventQuery;

use crate::databases::Database;
use crate::harness::{Answer, OWN, TestServer, deduct_path, deduction, path, provisioned, start};

async fn get(server: &TestServer, path: &str) -> Answer {
    server.user_of(Tenancy::All, Scope::ALL).get(&format!("/v1/ops{path}")).await
}

async fn act(server: &TestServer, what: &str, reason: &str) -> Answer {
    let path = format!("/v1/ops/consumers/analytics/{what}");
    server.user_of(Tenancy::All, Scope::ALL).post_raw(&path, json!({"reason": reason}).to_string()).await
}

async fn usage(server: &TestServer, after_seq: &str) -> Value {
    server.user(OWN).get(&path(OWN, &format!("/analytics/usage?after_seq={after_seq}&group=none"))).await.json()
}

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !condition().await {
        assert!(begun.elapsed().as_secs() < 30, "not in time");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_consumer_is_paused_resumed_and_rebuilt_with_a_reason() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        server.user(OWN).post(&deduct_path(), &deduction()).await;
        assert_eq!(usage(&server, "2").await["items"][0]["credits"], "2.5");
        let paused = act(&server, "pause", "A check").await;
        assert_eq!((paused.status.as_u16(), &paused.json()["state"]), (200, &json!("paused")), "{}", paused.text);
        // The beat that runs while it is paused may still end.
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        server.user(OWN).post(&deduct_path(), &deduction()).await;
        let old = usage(&server, "3").await;
        assert_eq!(old["items"][0]["credits"], "2.5", "the figures stay as they are");
        let consumers = get(&server, "/consumers").await.json();
        let analytics = &consumers["items"][0];
        assert_eq!((&analytics["lag_events"], &analytics["reason"]), (&json!(1), &json!("A check")));
        assert_eq!(analytics["partitions"].as_array().unwrap().len(), 16);

        assert_eq!(act(&server, "resume", "Checked").await.json()["state"], "running");
        until(async || usage(&server, "3").await["items"][0]["credits"] == "5").await;
        let building = act(&server, "rebuild", "A restore").await.json();
        assert_eq!(building["building"]["version"], 2);
        act(&server, "rebuild", "Again").await.is_problem(409, "consumer-is-building");
        until(async || get(&server, "/consumers").await.json()["items"][0]["version"] == 2).await;
        assert_eq!(usage(&server, "3").await["items"][0]["credits"], "5", "the same figures");
        server.user(OWN).post(&deduct_path(), &deduction()).await;
        until(async || usage(&server, "4").await["items"][0]["credits"] == "7.5").await;

        let audit = get(&server, "/audit").await.json();
        let acts: Vec<_> =
            audit["items"].as_array().unwrap().iter().map(|act| act["action"].as_str().unwrap()).collect();
        assert_eq!(acts, ["consumer.rebuild", "consumer.resume", "consumer.pause"]);
        let first = &audit["items"][2];
        assert_eq!((&first["reason"], &first["before"]["state"]), (&json!("A check"), &json!("running")));
        assert_eq!((&first["after"]["state"], &first["target"]), (&json!("paused"), &json!("analytics")));
        let page = get(&server, "/audit?limit=2").await.json();
        let next = page["next"].as_str().unwrap();
        let rest = get(&server, &format!("/audit?limit=2&cursor={next}")).await.json();
        assert_eq!((&rest["items"][0], &rest["has_more"]), (first, &json!(false)));
        let letters = get(&server, "/dead-letters").await.json();
        assert_eq!((&letters["items"], &letters["groups"]), (&json!([]), &json!([])));
    }
}

/// Makes the first event of this type of the workspace one that nobody can take. Returns it as it was.
async fn poison(server: &TestServer, event_type: EventType) -> EventRecord {
    let query = EventQuery::OfWorkspace { workspace_id: OWN, after: 0, limit: 100 };
    let events = server.database().store.events(&query).await.unwrap();
    let event = events.into_iter().find(|event| event.event_type == event_type).unwrap();
    server.database().change_event(&event, "data = '{}'").await;
    event
}

async fn dead_letters(server: &TestServer, path: &str, body: Value) -> Answer {
    let path = format!("/v1/ops/dead-letters{path}");
    server.user_of(Tenancy::All, Scope::ALL).post_raw(&path, body.to_string()).await
}

/// The open letters, once there are so many.
async fn open_letters(server: &TestServer, count: usize) -> Vec<Value> {
    let mut letters = Vec::new();
    until(async || {
        let page = get(server, "/dead-letters").await.json();
        letters.clone_from(page["items"].as_array().unwrap());
        letters.len() == count
    })
    .await;
    letters
}

/// Pauses all consumers, or lets them go on.
async fn all_consumers(server: &TestServer, what: &str) {
    let operator = server.user_of(Tenancy::All, Scope::ALL);
    for consumer in Consumer::ALL {
        let path = format!("/v1/ops/consumers/{}/{what}", consumer.as_str());
        assert_eq!(operator.post_raw(&path, json!({"reason": "A test"}).to_string()).await.status.as_u16(), 200);
    }
}

#[tokio::test]
async fn dead_letters_are_tried_again_or_discarded() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        all_consumers(&server, "pause").await;
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        server.user(OWN).post(&deduct_path(), &deduction()).await;
        let event = poison(&server, EventType::CreditConsumed).await;
        all_consumers(&server, "resume").await;
        let all = Consumer::ALL.len();
        let letters = open_letters(&server, all).await;
        assert_eq!(usage(&server, "2").await["as_of"]["incomplete"], true);
        let (id, fingerprint) = (&letters[0]["dead_letter_id"], &letters[0]["fingerprint"]);

        let trial =
            dead_letters(&server, "/replay", json!({"workspace_id": OWN, "dry_run": true, "reason": "x"})).await;
        let trial = trial.json();
        assert_eq!((&trial["matched"], &trial["tried"], &trial["has_more"]), (&json!(all), &json!(all), &json!(false)));
        assert_eq!(trial["failing"].as_array().unwrap().len(), all);
        assert_eq!(trial["failing"][0]["error_class"], "unreadable");
        assert_eq!(get(&server, "/audit").await.json()["items"].as_array().unwrap().len(), 2 * all, "nothing was done");

        // It fails again.
        let again = dead_letters(&server, "/replay", json!({"fingerprint": fingerprint, "reason": "Again"})).await;
        assert_eq!(again.status.as_u16(), 202, "{}", again.text);
        let again = again.json();
        let replay = format!("/replays/{}", again["replay_id"].as_str().unwrap());
        assert_eq!((&again["matched"], &again["waiting"]), (&json!(1), &json!(1)));
        until(async || get(&server, &replay).await.json()["failed"] == 1).await;
        let letter =
            open_letters(&server, all).await.into_iter().find(|letter| letter["dead_letter_id"] == *id).unwrap();
        assert_eq!((&letter["attempts"], &letter["replay_id"]), (&json!(2), &again["replay_id"]));

        // One letter is discarded, the other is mended.
        let analytics = letters.iter().find(|letter| letter["name"] == "analytics").unwrap();
        let path = format!("/{}/discard", analytics["dead_letter_id"].as_str().unwrap());
        let discarded = dead_letters(&server, &path, json!({"reason": "A test"})).await.json();
        assert_eq!((&discarded["state"], discarded["resolved_at"].is_string()), (&json!("discarded"), true));
        dead_letters(&server, &path, json!({"reason": "A test"})).await.is_problem(409, "dead-letter-changed");
        until(async || get(&server, "/consumers").await.json()["items"][0]["parked_workspaces"] == 0).await;
        server.database().change_event(&event, &format!("data = '{}'", event.data)).await;
        let rest = open_letters(&server, all - 1).await;
        let ids: Vec<_> = rest.iter().map(|letter| &letter["dead_letter_id"]).collect();
        let last = dead_letters(&server, "/replay", json!({"dead_letter_ids": ids, "reason": "Mended"})).await.json();
        let replay = format!("/replays/{}", last["replay_id"].as_str().unwrap());
        until(async || get(&server, &replay).await.json()["resolved"] == all - 1).await;
        let replay = get(&server, &replay).await.json();
        assert_eq!((&replay["actor"].is_string(), &replay["reason"]), (&true, &json!("Mended")));
        assert_eq!((&replay["waiting"], &replay["failed"]), (&json!(0), &json!(0)));

        server.user(OWN).post(&deduct_path(), &deduction()).await;
        let statements = server.user(OWN).get(&path_of_statements()).await.json();
        assert_eq!(
            (&statements["items"][0]["consumed"], &statements["items"][0]["unexplained"]),
            (&json!("5"), &json!("0"))
        );
        assert_eq!(statements["as_of"]["incomplete"], false);
        let used = usage(&server, "3").await;
        assert_eq!((&used["as_of"]["incomplete"], &used["items"][0]["credits"]), (&json!(true), &json!("2.5")));
        let audit = get(&server, "/audit").await.json();
        let act = &audit["items"][1];
        assert_eq!((&act["action"], &act["target"]), (&json!("dead_letter.discard"), &analytics["dead_letter_id"]));
        assert_eq!((&act["before"]["state"], &act["after"]["state"]), (&json!("open"), &json!("discarded")));
        assert_eq!(audit["items"][0]["after"], json!({"matched": all - 1, "has_more": false, "per_second": 10}));
        let none = dead_letters(&server, "/replay", json!({"workspace_id": OWN, "reason": "x"})).await;
        assert_eq!((none.status.as_u16(), &none.json()["matched"]), (202, &json!(0)));
    }
}

fn path_of_statements() -> String {
    path(OWN, "/statements?after_seq=3")
}

#[tokio::test]
async fn the_event_of_a_new_workspace_cannot_be_discarded() {
    let server = start(Database::Sqlite).await;
    all_consumers(&server, "pause").await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    server.user(OWN).put(&path(OWN, ""), &json!({"name": "Acme", "plan_code": "pro"})).await;
    poison(&server, EventType::WorkspaceProvisioned).await;
    all_consumers(&server, "resume").await;
    let letters = open_letters(&server, Consumer::ALL.len()).await;
    let discard = format!("/{}/discard", letters[0]["dead_letter_id"].as_str().unwrap());
    dead_letters(&server, &discard, json!({"reason": "x"})).await.is_problem(409, "dead-letter-needed");
}

#[tokio::test]
async fn what_operators_send_is_checked() {
    let server = provisioned(Database::Sqlite).await;
    let operator = server.user_of(Tenancy::All, Scope::ALL);
    for (path, body, status, code) in [
        ("consumers/other/pause", json!({"reason": "x"}), 404, "consumer-not-found"),
        ("consumers/analytics/pause", json!({}), 422, "invalid-field"),
        ("consumers/analytics/pause", json!({"reason": ""}), 422, "invalid-text"),
        ("consumers/analytics/pause", json!({"reason": "x", "by": "me"}), 422, "unknown-field"),
    ] {
        operator.post_raw(&format!("/v1/ops/{path}"), body.to_string()).await.is_problem(status, code);
    }
    let (id, none) = (OWN.to_string(), "00000000-0000-0000-0000-000000000000");
    for (path, body, status, code) in [
        ("/replay", json!({"reason": "x"}), 422, "invalid-field"),
        ("/replay", json!({"workspace_id": id, "dead_letter_ids": [id], "reason": "x"}), 422, "invalid-field"),
        ("/replay", json!({"dead_letter_ids": [], "reason": "x"}), 422, "invalid-field"),
        ("/replay", json!({"dead_letter_ids": vec![none; 1001], "reason": "x"}), 422, "invalid-field"),
        ("/replay", json!({"fingerprint": "x", "reason": "x"}), 422, "invalid-field"),
        ("/replay", json!({"workspace_id": id, "per_second": 101, "reason": "x"}), 422, "invalid-field"),
        ("/replay", json!({"workspace_id": id, "per_second": 0, "reason": "x"}), 422, "invalid-field"),
        ("/replay", json!({"workspace_id": id}), 422, "invalid-field"),
        ("/00000000-0000-0000-0000-000000000000/discard", json!({"reason": "x"}), 404, "dead-letter-not-found"),
        ("/1/discard", json!({"reason": "x"}), 404, "dead-letter-not-found"),
    ] {
        dead_letters(&server, path, body).await.is_problem(status, code);
    }
    for id in [none, "1"] {
        get(&server, &format!("/replays/{id}")).await.is_problem(404, "replay-not-found");
    }
    for (path, code) in [
        ("audit?cursor=x", "invalid-cursor"),
        ("dead-letters?state=none", "invalid-field"),
        ("dead-letters?source=none", "invalid-field"),
        ("dead-letters?name=No", "invalid-text"),
        ("audit?by=me", "unknown-field"),
    ] {
        get(&server, &format!("/{path}")).await.is_problem(422, code);
    }
}
