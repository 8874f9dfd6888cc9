//! Connections, byte by byte: pipelined, malformed, slow and greedy peers, and the end of the server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use visionscope_billing::domain::text::IdempotencyKey;
use visionscope_billing::http::HttpConfig;

use crate::fake::{ACCEPTED_BODY, Script};
use crate::harness::{FakeServer, OWN, deduct_path, deduction, fake, fake_with};

const GET: &str = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// All that comes until the server closes the connection.
fn read_to_end(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    // A connection that is given up may also be reset; one that stays is a failed read.
    if let Err(error) = stream.read_to_end(&mut text) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the connection was kept");
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Sends these bytes on a new connection and tells what came back until the server closed it, and when.
async fn until_closed(address: SocketAddr, bytes: Vec<u8>) -> (String, Duration) {
    let talk = move || {
        let begun = Instant::now();
        let mut stream = connect(address);
        // The server may close the connection before it has read everything.
        let _ = stream.write_all(&bytes);
        (read_to_end(stream), begun.elapsed())
    };
    spawn_blocking(talk).await.unwrap()
}

/// The same for a peer that closes its side after the last request.
async fn answers(address: SocketAddr, pieces: Vec<Vec<u8>>) -> String {
    let talk = move || {
        let mut stream = connect(address);
        for (n, piece) in pieces.iter().enumerate() {
            if n > 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            stream.write_all(piece).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        read_to_end(stream)
    };
    spawn_blocking(talk).await.unwrap()
}

/// One answer with its body, which has a length.
fn read_answer(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
        if text.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(text).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8_lossy(&body)
}

fn post(fake: &FakeServer, key: &str, body: &str) -> String {
    let token = fake.server.user(OWN).token.unwrap();
    format!(
        "POST {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
        idempotency-key: {key}\r\n{body}",
        deduct_path()
    )
}

fn post_whole(fake: &FakeServer, key: &str) -> String {
    let body = deduction().to_string();
    post(fake, key, &format!("content-length: {}\r\n\r\n{body}", body.len()))
}

fn post_chunked(fake: &FakeServer, key: &str) -> String {
    let body = deduction().to_string();
    let (first, second) = body.split_at(7);
    let rest = second.len();
    post(fake, key, &format!("transfer-encoding: chunked\r\n\r\n7\r\n{first}\r\n{rest:x}\r\n{second}\r\n0\r\n\r\n"))
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_in_any_pieces() {
    let fake = fake();
    let stream = [
        GET.to_owned(),
        post_whole(&fake, "k-1"),
        post_chunked(&fake, "k-2"),
        "\r\nGET /nothing HTTP/1.1\nhost: x\n\n".to_owned(),
        post_whole(&fake, "k-3"),
        GET.to_owned(),
    ]
    .concat();
    for size in [stream.len(), 1400, 500, 333] {
        let pieces = stream.as_bytes().chunks(size).map(<[u8]>::to_vec).collect();
        let text = answers(fake.server.address, pieces).await;
        let statuses: Vec<_> = text.match_indices("HTTP/1.1 ").map(|(at, _)| &text[at + 9..at + 12]).collect();
        assert_eq!(statuses, ["200", "200", "200", "404", "200", "200"], "pieces of {size}: {text}");
        assert_eq!(count(&text, ACCEPTED_BODY), 3, "{text}");
        let keys: Vec<_> = fake.engine.seen.lock().unwrap().drain(..).map(|seen| seen.idempotency_key).collect();
        let keys: Vec<_> = keys.iter().map(IdempotencyKey::as_str).collect();
        assert_eq!(keys, ["k-1", "k-2", "k-3"]);
    }
}

#[tokio::test]
async fn a_request_behind_one_that_is_being_answered_waits_outside() {
    let fake = fake();
    *fake.engine.script.lock().unwrap() = Script::Hang;
    let (address, requests) = (fake.server.address, post_whole(&fake, "k-1") + &post_whole(&fake, "k-2") + GET);
    let talk = spawn_blocking(move || {
        let mut stream = connect(address);
        stream.write_all(requests.as_bytes()).unwrap();
        [(); 3].map(|()| read_answer(&mut stream))
    });
    for n in 1..=2 {
        while fake.engine.seen.lock().unwrap().len() < n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(fake.engine.seen.lock().unwrap().len(), n, "only when the one before is answered");
        fake.engine.release.notify_one();
    }
    let answers = talk.await.unwrap();
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 200 OK\r\n")), "{answers:?}");
}

#[tokio::test]
async fn what_is_no_request_gets_a_problem() {
    let config = HttpConfig { head_timeout: Duration::from_millis(500), ..HttpConfig::default() };
    let fake = fake_with(&config);
    let many = "x: 1\r\n".repeat(97);
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        (
            "two lengths",
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na".into(),
            400,
            "malformed-request",
        ),
        (
            "a length and chunks",
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            400,
            "malformed-request",
        ),
        ("no host", b"GET /livez HTTP/1.1\r\n\r\n".into(), 400, "malformed-request"),
        ("a raw byte in the path", b"GET /\x80 HTTP/1.1\r\nhost: x\r\n\r\n".into(), 400, "malformed-request"),
        ("a version that does not exist", b"GET / HTTP/3.0\r\nhost: x\r\n\r\n".into(), 400, "malformed-request"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 400, "malformed-request"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n".into(), 400, "malformed-request"),
        ("a space before a colon", b"GET / HTTP/1.1\r\nhost : x\r\n\r\n".into(), 400, "malformed-request"),
        ("many headers", format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n").into(), 431, "headers-too-large"),
        (
            "a head without end",
            format!("GET / HTTP/1.1\r\nhost: {}", "x".repeat(100_000)).into(),
            431,
            "headers-too-large",
        ),
        ("a slow head", b"GET / HTTP/1.1\r\nhost:".into(), 408, "request-timeout"),
    ];
    for (name, bytes, status, code) in cases {
        let (text, took) = until_closed(fake.server.address, bytes).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((body["code"].as_str(), body["status"].as_u64()), (Some(code), Some(status.into())), "{name}");
        for header in ["content-type: application/problem+json", "connection: close", "cache-control: no-store"] {
            assert!(head.contains(header), "{name}: {head}");
        }
        assert!(took < Duration::from_secs(5), "{name}: {took:?}");
    }
}

#[tokio::test]
async fn what_follows_a_good_request_in_the_same_packet_gets_a_problem_too() {
    let fake = fake();
    let (text, _) =
        until_closed(fake.server.address, format!("{GET}{GET}GET /\x01 HTTP/1.1\r\n\r\n").into_bytes()).await;
    assert_eq!((count(&text, "HTTP/1.1 200"), count(&text, "HTTP/1.1 400")), (2, 1), "{text}");
    assert!(text.contains("\"malformed-request\""), "{text}");
}

#[tokio::test]
async fn a_body_in_chunks_that_nobody_reads_ends_its_connection() {
    let fake = fake();
    let chunked = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
    };
    for path in ["/nothing", &deduct_path()] {
        let (text, took) = until_closed(fake.server.address, (chunked(path) + GET).into_bytes()).await;
        assert!(text.contains("connection: close") && count(&text, "HTTP/1.1 ") == 1, "{text}");
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}

#[tokio::test]
async fn a_peer_that_is_still_sending_receives_why_it_was_refused() {
    let fake = fake();
    let body = "x".repeat(2_000_000);
    let refused = [
        (
            "no token",
            format!("POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n{body}", deduct_path()),
            "401",
        ),
        ("two lengths", format!("POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{body}"), "400"),
        ("a large head", format!("GET / HTTP/1.1\r\nx: {body}\r\n\r\n"), "431"),
        ("too large", post(&fake, "k", &format!("content-length: 2000000\r\n\r\n{body}")), "413"),
    ];
    for (name, request, status) in refused {
        let (text, _) = until_closed(fake.server.address, request.into_bytes()).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {text:?}");
    }
}

#[tokio::test]
async fn a_second_head_is_as_limited_in_time_as_the_first() {
    let config = HttpConfig { head_timeout: Duration::from_secs(1), ..HttpConfig::default() };
    let fake = fake_with(&config);
    // In one piece with the first request, which leaves its beginning in a buffer.
    let parked = until_closed(fake.server.address, format!("{GET}GET /livez HTTP/1.1\r\n").into_bytes());
    let address = fake.server.address;
    let dripping = spawn_blocking(move || {
        let mut stream = connect(address);
        stream.write_all(GET.as_bytes()).unwrap();
        read_answer(&mut stream);
        let begun = Instant::now();
        stream.write_all(b"GET /livez HTTP/1.1\r\nx-drip: ").unwrap();
        while begun.elapsed() < PATIENCE && stream.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
        begun.elapsed()
    });
    let ((text, parked), dripping) = tokio::join!(parked, dripping);
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("HTTP/1.1 408"), "{text}");
    // The time of a head, and of waiting for the peer to close.
    for took in [parked, dripping.unwrap()] {
        assert!((Duration::from_millis(900)..Duration::from_secs(8)).contains(&took), "{took:?}");
    }
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_without_an_answer() {
    let config = HttpConfig { head_timeout: Duration::from_millis(300), ..HttpConfig::default() };
    let (text, took) = until_closed(fake_with(&config).server.address, Vec::new()).await;
    assert!(text.is_empty() && took > Duration::from_millis(250), "{text} after {took:?}");
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_keep_alive() {
    let config = HttpConfig { keep_alive: Duration::from_secs(1), ..HttpConfig::default() };
    let (text, took) = until_closed(fake_with(&config).server.address, GET.into()).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!((Duration::from_millis(500)..Duration::from_secs(4)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_slow_decision_keeps_its_connection_though_the_connection_is_old() {
    let config = HttpConfig {
        head_timeout: Duration::from_millis(500),
        body_timeout: Duration::from_millis(500),
        decision_timeout: Duration::from_secs(3),
        ..HttpConfig::default()
    };
    let fake = fake_with(&config);
    let user = fake.server.user(OWN);
    assert_eq!(user.post(&deduct_path(), &deduction()).await.status, 200);
    *fake.engine.script.lock().unwrap() = Script::Hang;
    // Longer than the patience with one request, but not while one is waiting.
    tokio::time::sleep(Duration::from_secs(6)).await;
    user.post(&deduct_path(), &deduction()).await.is_problem(503, "unavailable");
}

#[tokio::test]
async fn a_peer_that_does_not_take_its_answer_is_left() {
    let config = HttpConfig { stall_timeout: Duration::from_secs(1), ..HttpConfig::default() };
    let fake = fake_with(&config);
    let request = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n";
    let address = fake.server.address;
    // One never reads, one reads too slowly, one slowly enough, and one only pauses.
    let whole = |stream: TcpStream| read_to_end(stream).len();
    let peers = [
        spawn_blocking(move || {
            let mut stream = connect(address);
            stream.write_all(request.repeat(3).as_bytes()).unwrap();
            std::thread::sleep(Duration::from_secs(6));
            whole(stream)
        }),
        spawn_blocking(move || {
            let mut stream = connect(address);
            stream.write_all(request.repeat(8).as_bytes()).unwrap();
            let begun = Instant::now();
            let mut bytes = [0; 1024];
            while begun.elapsed() < Duration::from_secs(6) && stream.read(&mut bytes).is_ok_and(|len| len > 0) {
                std::thread::sleep(Duration::from_millis(200));
            }
            whole(stream)
        }),
        spawn_blocking(move || {
            let mut stream = connect(address);
            stream.write_all(request.replace("host: x", "host: x\r\nconnection: close").as_bytes()).unwrap();
            let mut len = 0;
            let mut bytes = vec![0; 64 * 1024];
            while let Ok(more @ 1..) = stream.read(&mut bytes) {
                len += more;
                std::thread::sleep(Duration::from_millis(100));
            }
            len
        }),
        spawn_blocking(move || {
            let mut stream = connect(address);
            stream.write_all(request.replace("host: x", "host: x\r\nconnection: close").as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(700));
            whole(stream)
        }),
    ];
    let mut lens = Vec::new();
    for peer in peers {
        lens.push(peer.await.unwrap());
    }
    let one = lens[3];
    assert!(one > 1_000_000, "the file is large: {one}");
    assert!(lens[0] < 3 * one, "it was left: {lens:?}");
    assert!(lens[1] < 8 * one, "it was left: {lens:?}");
    assert_eq!(lens[2], one, "slow but steady");
}

#[tokio::test]
async fn the_server_stops_when_all_that_was_read_is_answered() {
    let fake = fake();
    let address = fake.server.address;
    let mut idle = connect(address);
    let mut late = connect(address);
    for stream in [&mut idle, &mut late] {
        stream.write_all(GET.as_bytes()).unwrap();
        let answer = read_answer(stream);
        assert!(!answer.contains("connection: close"), "{answer}");
    }
    *fake.engine.script.lock().unwrap() = Script::Hang;
    let mut busy = connect(address);
    busy.write_all(post_whole(&fake, "k-1").as_bytes()).unwrap();
    while fake.engine.seen.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // The signal: still answering, but on each connection for the last time.
    fake.server.health.drain();
    late.write_all(GET.as_bytes()).unwrap();
    let answer = read_answer(&mut late);
    assert!(answer.contains("connection: close") && answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(read_to_end(late), "");
    let mut new = connect(address);
    new.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let answer = read_to_end(new);
    assert!(answer.contains("shutting-down") && answer.contains("connection: close"), "{answer}");
    idle.set_nonblocking(true).unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "idle connections stay for now");
    idle.set_nonblocking(false).unwrap();

    // The end of the delay.
    let mut half = connect(address);
    half.write_all(&GET.as_bytes()[..20]).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stopped = fake.server.stop();
    let talk = async {
        let idle = spawn_blocking(move || read_to_end(idle)).await.unwrap();
        assert_eq!(idle, "", "idle connections close");
        half.write_all(&GET.as_bytes()[20..]).unwrap();
        let half = spawn_blocking(move || read_to_end(half)).await.unwrap();
        assert!(half.starts_with("HTTP/1.1 200"), "a request that was begun is answered: {half}");
        fake.engine.release.notify_one();
        let busy = spawn_blocking(move || read_to_end(busy)).await.unwrap();
        assert!(busy.contains(ACCEPTED_BODY) && busy.contains("connection: close"), "{busy}");
    };
    let begun = Instant::now();
    tokio::join!(stopped, talk);
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_request_that_cannot_be_answered_before_the_server_ends_is_told_so() {
    let config = HttpConfig { drain_timeout_s: 1, ..HttpConfig::default() };
    let fake = fake_with(&config);
    *fake.engine.script.lock().unwrap() = Script::Hang;
    let mut waiting = connect(fake.server.address);
    waiting.write_all(post_whole(&fake, "k-1").as_bytes()).unwrap();
    let mut slow = connect(fake.server.address);
    slow.write_all(post(&fake, "k-2", "content-length: 100\r\n\r\n{").as_bytes()).unwrap();
    while fake.engine.seen.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fake.server.health.drain();
    let (waiting, slow) = (spawn_blocking(|| read_to_end(waiting)), spawn_blocking(|| read_to_end(slow)));
    let ((), waiting, slow) = tokio::join!(fake.server.stop(), waiting, slow);
    let (waiting, slow) = (waiting.unwrap(), slow.unwrap());
    assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("\"unavailable\""), "{waiting}");
    assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
}
