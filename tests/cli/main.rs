//! The command line, as an operator uses it.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod operators;
mod place;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::assert::OutputAssertExt;

use self::place::{Place, START_TIMEOUT, Server};

#[test]
fn in_a_folder_without_a_database_commands_fail_and_create_nothing() {
    let place = Place::new();
    for arguments in [&["verify"][..], &["token", "--workspace", "*"]] {
        let output = place.command(arguments).assert().failure().code(1);
        let errors = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(errors.starts_with("error: ") && errors.lines().count() == 1, "{errors}");
    }
    assert_eq!(std::fs::read_dir(place.folder.path()).unwrap().count(), 0, "nothing was created");
}

#[test]
fn a_configuration_error_names_the_key_and_its_origin() {
    let place = Place::new();
    let output = place.command(&["serve"]).env("VISIONSCOPE__ENGINE__LANES", "17").assert().failure();
    let errors = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(errors.contains("engine.lanes") && errors.contains("VISIONSCOPE__ENGINE__LANES"), "{errors}");
}

#[test]
fn an_error_names_the_file_that_is_not_a_database() {
    let place = Place::new();
    std::fs::create_dir(place.folder.path().join("data")).unwrap();
    std::fs::write(place.folder.path().join("data/visionscope.db"), "text".repeat(1000)).unwrap();
    let output = place.command(&["serve"]).assert().failure().code(1);
    let errors = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(errors.contains("data/visionscope.db: ") && errors.lines().count() == 1, "{errors}");
}

#[test]
fn migrating_is_idempotent_and_a_new_database_holds_every_invariant() {
    let place = Place::new();
    place.command(&["migrate"]).assert().success();
    place.command(&["migrate"]).assert().success();
    place.command(&["verify"]).assert().success().stdout("Every invariant holds.\n");
}

#[test]
fn without_redis_the_outbox_has_a_status_and_no_streams() {
    let place = Place::new();
    place.command(&["migrate"]).assert().success();
    let text = "redis.url is not set, so nothing is published. The outbox has 0 events; GET /v1/events reads them.\n";
    place.command(&["outbox", "status"]).assert().success().stdout(text);
    for words in [&["outbox", "verify"], &["outbox", "rebuild"]] {
        let output = place.command(words).assert().failure();
        assert!(String::from_utf8_lossy(&output.get_output().stderr).contains("redis.url is not set"));
    }
}

#[test]
fn the_source_of_events_never_changes() {
    const SOURCE: &str = "VISIONSCOPE__EVENTS__SOURCE";
    let place = Place::new();
    place.command(&["migrate"]).env(SOURCE, "https://billing.example.com/eu").assert().success();
    place.command(&["migrate"]).env(SOURCE, "https://billing.example.com/eu").assert().success();
    for words in [&["migrate"][..], &["serve"], &["outbox", "status"]] {
        let output = place.command(words).env(SOURCE, "https://billing.example.com").assert().failure().code(1);
        let errors = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        let told = "events.source: is https://billing.example.com, but the events of this database have the source \
                    https://billing.example.com/eu, which never changes";
        assert!(errors.contains(told), "{errors}");
    }
    let output = place.command(&["migrate"]).env(SOURCE, "billing").assert().failure();
    let errors = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(errors.contains("events.source") && errors.contains("must be a URI"), "{errors}");
}

/// The printed command is run from another folder.
#[test]
fn what_the_demo_prints_leads_to_a_second_workspace() {
    let place = Place::new();
    let printed = place.folder.path().join("printed");
    let server = place.start(std::fs::File::create(&printed).unwrap().into(), Stdio::null());
    let text = std::fs::read_to_string(&printed).unwrap();
    assert!(text.contains("In a second terminal, paste"), "{text}");
    let command = text.lines().rev().find_map(|line| line.strip_prefix("TOKEN=$(")?.strip_suffix(')')).unwrap();
    let output = Command::new("sh").args(["-c", command]).current_dir("/").output().unwrap();
    let token = String::from_utf8(output.stdout).unwrap();
    let body = r#"{"name": "Second", "plan_code": "free"}"#;
    let request = format!(
        "PUT /v1/workspaces/0198a7c2-6f00-7000-8000-0000000000b2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        token.trim(),
        body.len()
    );
    let mut connection = TcpStream::connect(&place.address).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    drop(server);
}

#[test]
fn the_demo_token_works_after_a_restart() {
    let place = Place::new();
    let first = place.serve();
    let token = place.command(&["token", "--workspace", "*", "--scopes", "plans:read"]).output().unwrap();
    let token = String::from_utf8(token.stdout).unwrap();
    drop(first);
    let _second = place.serve();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(async {
        let url = format!("http://{}/v1/plans", place.address);
        reqwest::Client::new().get(url).bearer_auth(token.trim()).send().await.unwrap().status()
    });
    assert_eq!(status, 200);
}

#[test]
fn a_rebuilt_stream_matches_the_outbox() {
    let Ok(redis) = std::env::var("REDIS_URL") else { panic!("REDIS_URL is not set: run scripts/test") };
    let place = Place::new();
    let server = place.serve();
    drop(server);
    let with_redis = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command.env("REDIS_URL", &redis);
        command
    };
    with_redis(&["outbox", "rebuild", "--wait-s", "30"]).assert().success();
    with_redis(&["outbox", "status"]).assert().success();
    let verified = with_redis(&["outbox", "verify"]).assert().success();
    let report = String::from_utf8_lossy(&verified.get_output().stdout).into_owned();
    assert!(report.contains("generation 2: 1 entries") && report.contains("The streams match the outbox."), "{report}");
}

#[test]
fn an_embedded_database_allows_one_server_and_operator_commands() {
    let place = Place::new();
    let first = place.serve();
    let output = place.command(&["serve"]).env("VISIONSCOPE__SERVER__BIND", "127.0.0.1:0").assert().failure().code(1);
    let errors = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(errors.contains("another server serves data/visionscope.db") && errors.lines().count() == 1, "{errors}");
    place.command(&["verify"]).assert().success();
    place.command(&["migrate"]).assert().success();
    place.command(&["token", "--workspace", "*"]).assert().success();
    // Killed, not stopped: the lock ends with its process.
    drop(first);
    let _second = place.serve();
}

#[test]
fn a_malformed_request_is_refused_and_not_logged() {
    let place = Place::new();
    let log = place.folder.path().join("log");
    let server = place.serve_logging_to(std::fs::File::create(&log).unwrap().into());
    let mut connection = TcpStream::connect(&place.address).unwrap();
    connection.write_all(b"no HTTP\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    drop(server);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "");
}

/// The answer to a GET, whole.
fn get(address: &str, path: &str) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    write!(connection, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn operators_have_a_port_of_their_own_if_they_want_one() {
    let place = Place::new();
    let ops = Place::new().address;
    let with_ops = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command.env("VISIONSCOPE__SERVER__OPS_BIND", &ops);
        command
    };
    let mut process = Server(with_ops(&[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let started = Instant::now();
    // It asks the second port.
    while !with_ops(&["healthcheck"]).output().unwrap().status.success() {
        assert!(started.elapsed() < START_TIMEOUT, "the server does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    let main = place.address.as_str();
    let expected = [
        (main, "/livez", "200"),
        (main, "/readyz", "200"),
        (main, "/metrics", "404"),
        (main, "/docs/", "200"),
        (ops.as_str(), "/livez", "200"),
        (&ops, "/readyz", "200"),
        (&ops, "/metrics", "200"),
        (&ops, "/docs/", "404"),
        (&ops, "/openapi.json", "404"),
        (&ops, "/v1/plans", "404"),
    ];
    for (address, path, status) in expected {
        let answer = get(address, path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{address}{path}: {answer}");
    }
    assert!(get(&ops, "/metrics").contains("visionscope_http_requests_total"));
    let mut printed = String::new();
    process.0.kill().unwrap();
    process.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(printed.contains(&format!("Probes and metrics are on http://{ops}")), "{printed}");
}

#[test]
fn both_ports_must_differ() {
    let place = Place::new();
    let output = place.command(&[]).env("VISIONSCOPE__SERVER__OPS_BIND", &place.address).assert().failure();
    let errors = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(errors.contains("server.ops_bind") && errors.contains("must differ from server.bind"), "{errors}");
}
