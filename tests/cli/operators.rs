//! What operators do by calling the running server.

use std::process::Stdio;
use std::time::{Duration, Instant};

use assert_cmd::assert::OutputAssertExt;
use serde_json::Value;
use sqlx::{Connection, SqliteConnection};

use crate::place::{Place, Server};

/// The demo's workspace.
const WORKSPACE: &str = "01980000-0000-7000-8000-000000000d30";
const CONSUMERS: [&str; 3] = ["analytics", "billing", "notifications"];
/// A running beat may still end after a consumer was paused.
const BEAT: Duration = Duration::from_millis(1500);

/// The exit status, what was printed, and the errors.
fn run(place: &Place, arguments: &[&str]) -> (i32, String, String) {
    let output = place.command(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn run_well(place: &Place, arguments: &[&str]) -> String {
    let (code, printed, errors) = run(place, arguments);
    assert_eq!(code, 0, "{arguments:?}: {printed}{errors}");
    printed
}

fn json_of(place: &Place, arguments: &[&str]) -> Value {
    let (_, printed, errors) = run(place, &[arguments, &["--json"]].concat());
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {printed}{errors}"))
}

fn until(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "not in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn execute(place: &Place, statements: &[&str]) {
    let path = place.folder.path().join("data/visionscope.db");
    block_on(async {
        let mut connection = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        for statement in statements {
            sqlx::raw_sql(sqlx::AssertSqlSafe(*statement)).execute(&mut connection).await.unwrap();
        }
        connection.close().await.unwrap();
    });
}

fn consume(place: &Place) {
    let token = run_well(place, &["token", "--workspace", WORKSPACE]);
    let url = format!("http://{}/v1/workspaces/{WORKSPACE}/credits/deduct", place.address);
    let status = block_on(async {
        let body = serde_json::json!({"feature_code": "video.render", "credits": "1"});
        let request = reqwest::Client::new().post(url).bearer_auth(token.trim()).header("idempotency-key", "once");
        request.json(&body).send().await.unwrap().status()
    });
    assert_eq!(status, 200);
}

/// A server with a dead letter of every consumer.
fn with_dead_letters(place: &Place) -> Server {
    let server = place.serve();
    for consumer in CONSUMERS {
        run_well(place, &["consumers", "pause", consumer, "--reason", "A test"]);
    }
    std::thread::sleep(BEAT);
    consume(place);
    execute(
        place,
        &[
            "drop trigger event_outbox_refuse_update",
            "create table kept as select event_id, data from event_outbox where event_type = 'CreditConsumed'",
            "update event_outbox set data = '{}' where event_type = 'CreditConsumed'",
        ],
    );
    for consumer in CONSUMERS {
        run_well(place, &["consumers", "resume", consumer, "--reason", "A test"]);
    }
    until(|| open_letters(place).len() == CONSUMERS.len());
    server
}

fn open_letters(place: &Place) -> Vec<Value> {
    json_of(place, &["dead-letters"])["items"].as_array().unwrap().clone()
}

fn letter_of(letters: &[Value], consumer: &str) -> String {
    let letter = letters.iter().find(|letter| letter["name"] == consumer).unwrap();
    letter["dead_letter_id"].as_str().unwrap().to_owned()
}

#[test]
fn consumers_are_shown_paused_resumed_and_rebuilt() {
    let place = Place::new();
    let _server = place.serve();
    let shown = run_well(&place, &["consumers"]);
    let names: Vec<_> = shown.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["consumer", "analytics", "billing", "notifications"]);
    let paused = run_well(&place, &["consumers", "pause", "billing", "--reason", "A check"]);
    assert!(paused.contains("billing is paused by operator: A check"), "{paused}");
    let listed = json_of(&place, &["consumers"]);
    assert_eq!((&listed["items"][1]["state"], &listed["has_more"]), (&"paused".into(), &false.into()));
    run_well(&place, &["consumers", "resume", "billing", "--reason", "Checked"]);
    let rebuilt = json_of(&place, &["consumers", "rebuild", "billing", "--reason", "A restore"]);
    assert_eq!(rebuilt["building"]["version"], 2);
    until(|| json_of(&place, &["consumers"])["items"][1]["version"] == 2);

    execute(&place, &["update consumers set state = 'tripped', reason = 'too many' where consumer = 'analytics'"]);
    let (code, printed, _) = run(&place, &["consumers"]);
    assert_eq!(code, 1, "a consumer that has stopped itself is a negative result");
    assert!(printed.contains("analytics is tripped by ") && printed.contains(": too many"), "{printed}");
}

#[test]
fn queues_jobs_workers_and_schedules_are_shown_and_changed() {
    let place = Place::new();
    let _server = place.serve();
    let first_words = |shown: &str| -> Vec<String> {
        shown.lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    };
    let queues = run_well(&place, &["queues"]);
    assert_eq!(first_words(&queues), ["queue", "billing", "default", "notifications", "video_processing"]);
    let paused = run_well(&place, &["queues", "pause", "default", "--reason", "A check"]);
    assert!(paused.lines().nth(1).unwrap().contains("true"), "{paused}");
    let resumed = json_of(&place, &["queues", "resume", "default", "--reason", "Checked"]);
    assert_eq!(resumed["settings"]["is_paused"], false);

    let schedules = run_well(&place, &["schedules"]);
    assert_eq!(first_words(&schedules), ["schedule", "cleaning", "expiries", "expiry_warnings", "holds", "periods"]);
    until(|| json_of(&place, &["schedules"])["items"][0]["job_id"].is_string());
    let fired = json_of(&place, &["schedules", "pause", "cleaning", "--reason", "A check"]);
    let job = fired["job_id"].as_str().unwrap();
    until(|| run_well(&place, &["jobs", "get", job]).contains("\"state\": \"completed\""));
    assert!(run_well(&place, &["jobs", "cancel", job, "--reason", "Too late"]).contains("completed"));
    assert_eq!(first_words(&run_well(&place, &["jobs", "list", "billing"])), ["job"]);

    until(|| run_well(&place, &["workers"]).lines().nth(1).is_some_and(|line| line.contains("visionscope")));
    let own = json_of(&place, &["workers"])["items"][0]["worker_id"].as_str().unwrap().to_owned();
    let (code, _, errors) = run(&place, &["workers", "drain", &own, "--reason", "A check"]);
    assert!(code == 1 && errors.contains("404 worker-not-found"), "a server is no such worker: {errors}");
    let (code, _, errors) = run(&place, &["schedules", "run", "nothing", "--reason", "A check"]);
    assert!(code == 2 && errors.contains("cleaning"), "{errors}");
}

#[test]
fn dead_letters_are_listed_tried_again_and_discarded() {
    let place = Place::new();
    let _server = with_dead_letters(&place);
    let letters = open_letters(&place);
    let shown = run_well(&place, &["dead-letters", "--workspace", WORKSPACE, "--consumer", "billing"]);
    let id = letter_of(&letters, "billing");
    assert!(shown.lines().nth(1).unwrap().starts_with(&id) && shown.contains("by their cause:"), "{shown}");
    assert!(!shown.contains(&letter_of(&letters, "analytics")), "{shown}");
    let resolved = run_well(&place, &["dead-letters", "--state", "resolved"]);
    assert_eq!(resolved, "No such dead letter is resolved.\n");
    let first = json_of(&place, &["dead-letters", "--limit", "1"]);
    let rest = json_of(&place, &["dead-letters", "--limit", "2", "--cursor", first["next"].as_str().unwrap()]);
    assert_eq!((first["items"].as_array().unwrap().len(), rest["items"].as_array().unwrap().len()), (1, 2));

    let replay = ["dead-letters", "replay", "--reason", "A test"];
    let (code, printed, errors) = run(&place, &[&replay[..], &["--workspace", WORKSPACE, "--dry-run"]].concat());
    assert_eq!(code, 1, "{printed}{errors}");
    assert!(
        printed
            .starts_with("3 letters match. Nothing was changed.\n3 of consumers were tried, and 3 would fail again."),
        "{printed}"
    );
    let fingerprint = letters.iter().find(|letter| letter["name"] == "billing").unwrap()["fingerprint"].as_str();
    let (code, printed, errors) = run(&place, &[&replay[..], &["--fingerprint", fingerprint.unwrap()]].concat());
    assert_eq!(code, 1, "{printed}{errors}");
    assert!(printed.contains(": 1 letters, 0 resolved, 1 failed again, 0 discarded, 0 waiting"), "{printed}");
    assert_eq!(errors, "0 of 1 letters wait\n");

    let discarded = run_well(&place, &["dead-letters", "discard", &id, "--reason", "A test"]);
    assert!(discarded.contains(" discarded "), "{discarded}");
    let (code, _, errors) = run(&place, &["dead-letters", "discard", &id, "--reason", "A test"]);
    assert!(code == 1 && errors.contains("409 dead-letter-changed") && errors.lines().count() == 1, "{errors}");

    let mend = "update event_outbox set data = kept.data from kept where kept.event_id = event_outbox.event_id";
    execute(&place, &[mend]);
    let (first, second) = (letter_of(&letters, "analytics"), letter_of(&letters, "notifications"));
    let mended = run_well(&place, &[&replay[..], &["--id", &first, "--id", &second, "--per-second", "100"]].concat());
    assert!(mended.contains(": 2 letters, 2 resolved, 0 failed again, 0 discarded, 0 waiting"), "{mended}");
    assert!(open_letters(&place).is_empty());
}

#[test]
fn a_replay_is_waited_for_no_longer_than_asked() {
    let place = Place::new();
    let _server = with_dead_letters(&place);
    run_well(&place, &["consumers", "pause", "billing", "--reason", "A test"]);
    std::thread::sleep(BEAT);
    let replay = ["dead-letters", "replay", "--consumer", "billing", "--reason", "A test", "--wait-s", "1"];
    let begun = Instant::now();
    let (code, printed, _) = run(&place, &replay);
    assert!(code == 1 && begun.elapsed() >= Duration::from_secs(1), "{printed}");
    assert!(
        printed.contains(" 1 waiting\nA consumer that does not run tries its letters when it is resumed, and a job"),
        "{printed}"
    );
    let replay_id = printed.split_whitespace().nth(1).unwrap().trim_end_matches(':');
    run_well(&place, &["consumers", "resume", "billing", "--reason", "A test"]);
    until(|| json_of(&place, &["dead-letters", "progress", replay_id])["failed"] == 1);

    let replay = ["dead-letters", "replay", "--consumer", "analytics", "--reason", "A test", "--no-wait"];
    let begun = json_of(&place, &replay);
    assert_eq!((&begun["matched"], &begun["waiting"]), (&1.into(), &1.into()));
}

#[test]
fn streams_are_shown_and_one_that_has_diverged_is_a_negative_result() {
    let place = Place::new();
    let _server = place.serve();
    let shown = run_well(&place, &["streams"]);
    let lines: Vec<Vec<_>> = shown.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 16);
    // The event that tells of the demo's workspace waits for a publisher.
    let waiting: Vec<_> = lines.iter().filter(|line| line[5] != "0").collect();
    assert_eq!(
        (waiting.len(), &waiting[0][1..6], &waiting[0][7..]),
        (1, &["1", "1", "0", "1", "1"][..], &["-", "-"][..])
    );
    assert_eq!(json_of(&place, &["streams"])["items"][3]["partition"], 3);
    execute(&place, &["update stream_leases set diverged_seq = 70 where partition_id = 3"]);
    let (code, printed, _) = run(&place, &["streams"]);
    assert!(code == 1 && printed.ends_with("\npartition 3 has DIVERGED at 70\n"), "{printed}");
}

#[test]
fn a_call_that_cannot_be_made_is_one_line_that_says_why() {
    let place = Place::new();
    let (code, _, errors) = run(&place, &["consumers"]);
    assert!(
        code == 1 && errors.starts_with("error: a token is needed: give --token-file or VISIONSCOPE_TOKEN"),
        "{errors}"
    );
    let server = place.serve();
    let token = run_well(&place, &["token", "--workspace", "*", "--scopes", "ops:read"]);
    std::fs::write(place.folder.path().join("token"), &token).unwrap();
    run_well(&place, &["consumers", "--token-file", "token"]);
    let url = format!("http://localhost:{}/", place.address.rsplit(':').next().unwrap());
    run_well(&place, &["consumers", "--url", &url]);
    let pause = ["consumers", "pause", "billing", "--reason", "x"];
    let empty = ["consumers", "pause", "billing", "--reason", ""];
    let cases: [(&[&str], &str, &str); 6] = [
        (&pause, token.trim(), "error: the server answered 403 missing-scope: "),
        (&["consumers"], "wrong", "error: the server answered 401 invalid-token: "),
        (&["consumers"], "", "error: VISIONSCOPE_TOKEN: does not hold a token"),
        (&["consumers", "--token-file", "none"], "", "error: --token-file none: "),
        (&["consumers", "--url", "http://billing.example.com"], "x", "error: --url: must be https"),
        (&["dead-letters", "--cursor", "x"], token.trim(), "error: the server answered 422 invalid-cursor: "),
    ];
    for (arguments, token, expected) in cases {
        let output = place.command(arguments).env("VISIONSCOPE_TOKEN", token).assert().failure().code(1);
        let errors = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(errors.starts_with(expected) && errors.lines().count() == 1, "{arguments:?}: {errors}");
    }
    let (code, _, errors) = run(&place, &empty);
    assert!(code == 1 && errors.contains("422 invalid-text: ") && errors.contains("/reason: "), "{errors}");
    drop(server);
    let (code, _, errors) = run(&place, &["consumers"]);
    let expected = format!("error: http://{}/ does not answer: ", place.address);
    assert!(code == 1 && errors.starts_with(&expected) && errors.lines().count() == 1, "{errors}");
}

#[test]
fn a_wrong_command_line_calls_no_server() {
    let place = Place::new();
    let id = "019a0000-0000-7000-8000-00000000000b";
    for arguments in [
        &["consumers", "pause", "billing"][..],
        &["consumers", "pause", "other", "--reason", "x"],
        &["dead-letters", "replay", "--reason", "x"],
        &["dead-letters", "replay", "--reason", "x", "--id", id, "--consumer", "billing"],
        &["dead-letters", "replay", "--reason", "x", "--id", id, "--per-second", "101"],
        &["dead-letters", "replay", "--reason", "x", "--id", id, "--no-wait", "--wait-s", "1"],
        &["dead-letters", "--state", "open", "replay", "--reason", "x", "--id", id],
        &["dead-letters", "--state", "lost"],
        &["dead-letters", "--consumer", "billing", "--queue", "billing"],
        &["dead-letters", "--queue", "No"],
        &["dead-letters", "discard", "1", "--reason", "x"],
    ] {
        place.command(arguments).stdin(Stdio::null()).assert().failure().code(2);
    }
}
