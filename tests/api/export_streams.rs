//! Exports, byte by byte: what is read when, callers that do not read, failures in the middle, and the end of the server.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use reqwest::Method;
use tokio::task::spawn_blocking;
use visionscope_billing::http::HttpConfig;
use visionscope_billing::http::limits::LimitsConfig;

use crate::harness::{FakeServer, OWN, fake, fake_with, path, send};

const CSV: &str = "text/csv";
const NDJSON: &str = "application/x-ndjson";
/// Rows of a page of an export.
const PAGE: i64 = 200;
/// Far more than any buffer holds.
const MANY: i64 = 1_000_000;
/// What ends a body in chunks.
const END: &[u8] = b"\r\n0\r\n\r\n";

/// A server whose own workspace has so many usage logs.
fn with_usage(len: i64, config: &HttpConfig) -> FakeServer {
    let fake = fake_with(config);
    fake.store.usage.len.store(len, SeqCst);
    fake
}

fn pages(fake: &FakeServer) -> i64 {
    fake.store.usage.pages.load(SeqCst)
}

/// Asks for an export on a connection of its own.
fn begin(fake: &FakeServer, version: &str, headers: &str) -> TcpStream {
    let token = fake.server.user(OWN).token.unwrap();
    let mut stream = TcpStream::connect(fake.server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let request =
        format!("GET {} {version}\r\nhost: x\r\nauthorization: Bearer {token}\r\n{headers}\r\n", path(OWN, "/usage"));
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// All that comes until the server closes the connection.
async fn rest(mut stream: TcpStream) -> Vec<u8> {
    spawn_blocking(move || {
        let mut bytes = Vec::new();
        if let Err(error) = stream.read_to_end(&mut bytes) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the connection was kept");
        }
        bytes
    })
    .await
    .unwrap()
}

/// Waits until the pages that were read stay the same for a second.
async fn pages_when_quiet(fake: &FakeServer) -> i64 {
    let mut before = -1;
    while before != pages(fake) {
        before = pages(fake);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    before
}

#[tokio::test]
async fn what_fails_before_the_first_byte_is_a_problem_and_later_the_body_has_no_end() {
    for (accept, encoding) in [(CSV, "identity"), (NDJSON, "identity"), (CSV, "gzip"), (NDJSON, "gzip")] {
        for order in ["asc", "desc"] {
            let fake = with_usage(10 * PAGE, &HttpConfig::default());
            let list = path(OWN, &format!("/usage?order={order}"));
            let user = fake.server.user(OWN);
            let request = || {
                let request = user.request(Method::GET, &list);
                request.header("accept", accept).header("accept-encoding", encoding)
            };
            fake.store.usage.fails_from_page.store(1, SeqCst);
            send(request()).await.is_problem(503, "unavailable");
            fake.store.usage.fails_from_page.store(pages(&fake) + 4, SeqCst);
            let answer = request().send().await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(answer.bytes().await.is_err(), "{accept} {encoding} {order}: it looks complete");
            fake.store.usage.fails_from_page.store(0, SeqCst);
            assert!(request().send().await.unwrap().bytes().await.is_ok());
        }
    }
}

#[tokio::test]
async fn an_export_that_fails_closes_its_connection() {
    let fake = with_usage(10 * PAGE, &HttpConfig::default());
    fake.store.usage.fails_from_page.store(3, SeqCst);
    let bytes = rest(begin(&fake, "HTTP/1.1", "accept: text/csv\r\n")).await;
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("transfer-encoding: chunked"), "{text}");
    assert!(text.contains("usage_id,seq,") && !bytes.ends_with(END), "{text}");
}

#[tokio::test]
async fn nothing_is_read_ahead_of_a_caller_that_does_not_read_and_it_is_left() {
    let limits = LimitsConfig { max_reads: 2, ..LimitsConfig::default() };
    let config = HttpConfig { stall_timeout: Duration::from_secs(4), limits, ..HttpConfig::default() };
    for headers in ["accept: application/x-ndjson\r\n", "accept: text/csv\r\naccept-encoding: gzip\r\n"] {
        let fake = with_usage(MANY, &config);
        let user = fake.server.user(OWN);
        let streams = [begin(&fake, "HTTP/1.1", headers), begin(&fake, "HTTP/1.1", headers)];
        let begun = Instant::now();
        let read = pages_when_quiet(&fake).await;
        assert!((2..1000).contains(&read), "{read} of {} pages were read", 2 * MANY / PAGE);
        user.get(&path(OWN, "/usage")).await.is_problem(429, "too-many-requests");
        while user.get(&path(OWN, "/usage")).await.status != 200 {
            assert!(begun.elapsed() < Duration::from_secs(15), "they still count as reads");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for stream in streams {
            assert!(!rest(stream).await.ends_with(END));
        }
    }
}

/// The time of an answer counts for each page.
#[tokio::test]
async fn an_export_may_take_longer_than_a_request() {
    // With the three seconds in which a key is fetched.
    let short = Duration::from_millis(100);
    let config =
        HttpConfig { head_timeout: short, body_timeout: short, decision_timeout: short, ..HttpConfig::default() };
    let fake = with_usage(50 * PAGE, &config);
    fake.store.usage.delay_ms.store(100, SeqCst);
    let begun = Instant::now();
    let request = fake.server.user(OWN).request(Method::GET, &path(OWN, "/usage")).header("accept", NDJSON);
    let answer = send(request).await;
    assert!(begun.elapsed() > Duration::from_secs(4), "it was too short for the test");
    assert_eq!(answer.text.lines().count(), usize::try_from(50 * PAGE).unwrap());
}

#[tokio::test]
async fn an_export_ends_when_the_server_stops() {
    let config = HttpConfig { drain_timeout_s: 2, ..HttpConfig::default() };
    let fake = with_usage(MANY, &config);
    fake.store.usage.delay_ms.store(20, SeqCst);
    let reading = tokio::spawn(rest(begin(&fake, "HTTP/1.1", "accept: text/csv\r\n")));
    let idle = begin(&fake, "HTTP/1.1", "accept: text/csv\r\n");
    while pages(&fake) < 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fake.server.health.drain();
    let begun = Instant::now();
    fake.server.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    for bytes in [reading.await.unwrap(), rest(idle).await] {
        assert!(bytes.starts_with(b"HTTP/1.1 200") && !bytes.ends_with(END), "it looks complete");
    }
}

#[tokio::test]
async fn an_export_needs_a_protocol_that_tells_its_end() {
    let fake = with_usage(PAGE, &HttpConfig::default());
    let text = String::from_utf8(rest(begin(&fake, "HTTP/1.0", "accept: text/csv\r\n")).await).unwrap();
    assert!(text.starts_with("HTTP/1.0 406") && text.contains("\"not-acceptable\""), "{text}");
    let text = String::from_utf8(rest(begin(&fake, "HTTP/1.0", "accept: application/json\r\n")).await).unwrap();
    assert!(text.starts_with("HTTP/1.0 200"), "{text}");
}

#[tokio::test]
async fn head_reads_no_more_than_the_first_page() {
    let fake = with_usage(MANY, &HttpConfig::default());
    let user = fake.server.user(OWN);
    let request = user.request(Method::HEAD, &path(OWN, "/usage")).header("accept", CSV);
    let answer = send(request).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, ""));
    assert!(answer.header("content-type").starts_with(CSV));
    assert_eq!(pages(&fake), 1);
    assert_eq!(user.get("/livez").await.status, 200);
}

#[tokio::test]
async fn rows_that_come_later_do_not_make_an_export_endless() {
    let fake = with_usage(3 * PAGE, &HttpConfig::default());
    fake.store.usage.delay_ms.store(50, SeqCst);
    let user = fake.server.user(OWN);
    for order in ["asc", "desc"] {
        let begun_with = fake.store.usage.len.load(SeqCst);
        let list = path(OWN, &format!("/usage?order={order}"));
        let reading = send(user.request(Method::GET, &list).header("accept", NDJSON));
        let writing = async {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                fake.store.usage.len.fetch_add(PAGE, SeqCst);
            }
        };
        let answer = tokio::select! {
            answer = reading => answer,
            () = writing => unreachable!(),
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("{order}: it is endless"),
        };
        let seqs: Vec<i64> = answer
            .text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_i64().unwrap())
            .collect();
        let newest = *seqs.iter().max().unwrap();
        // Two seconds: so long, a busy machine may take to begin.
        assert!(newest < begun_with + 200 * PAGE, "{order}: it has {newest} rows, of which {begun_with} were there");
        let mut expected: Vec<_> = (1..=newest).collect();
        if order == "desc" {
            expected.reverse();
        }
        assert_eq!(seqs, expected, "{order}");
    }
}

#[tokio::test]
async fn an_export_is_refused_like_any_other_read() {
    let fake = fake();
    let accept =
        |user: &crate::harness::User<'_>| user.request(Method::GET, &path(OWN, "/usage")).header("accept", CSV);
    send(accept(&fake.server.anyone())).await.is_problem(401, "invalid-token");
    send(accept(&fake.server.user(crate::harness::FOREIGN))).await.is_problem(404, "workspace-not-found");
    send(accept(&fake.server.user(OWN))).await.is_problem(404, "workspace-not-found");
}
