//! Peers without a token that send and do not read: each costs the server a bounded amount of memory.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::processes::Billing;

const PEERS: usize = 100;
/// The promise of docs/OPERATIONS.md is less. An allocator also keeps what it got for a while.
const MAX_BYTES_PER_PEER: usize = 64 * 1024;

/// A peer with a small buffer, so that little of its answers fits on the way.
fn connect(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// Connects peers that each send these bytes, as far as they are taken, and read nothing. Returns what each cost.
async fn cost_of_a_peer(billing: &Billing, bytes: &[u8]) -> usize {
    let address: SocketAddr = billing.base.strip_prefix("http://").unwrap().parse().unwrap();
    let before = billing.resident_bytes();
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        let mut peer = connect(address);
        let _ = peer.write(bytes);
        peers.push(peer);
    }
    let mut most = 0;
    for _ in 0..15 {
        // They send on whenever there is room.
        tokio::time::sleep(Duration::from_millis(100)).await;
        for peer in &mut peers {
            let _ = peer.write(bytes);
        }
        most = most.max(billing.resident_bytes());
    }
    most.saturating_sub(before) / PEERS
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_sends_and_does_not_read_costs_a_bounded_amount_of_memory() {
    let billing = Billing::create(None, None).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    let headers: String = (0..60).map(|n| format!("a{n}: b\r\n")).fold(String::new(), |all, header| all + &header);
    let attacks = [
        ("large files", get("/docs/swagger-ui-bundle.js").repeat(3)),
        ("small requests", get("/").repeat(4000)),
        ("small requests for more", get("/schemas/events/SubscriptionChanged.v1.json").repeat(2000)),
        ("many headers", format!("GET /livez HTTP/1.1\r\nhost: x\r\n{headers}\r\n").repeat(200)),
        ("a large head", format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(200_000))),
        (
            "a body that nobody wants",
            format!("{}{}", get("/").replace("\r\n\r\n", "\r\ncontent-length: 9000000\r\n\r\n"), "x".repeat(200_000)),
        ),
        (
            "chunks",
            format!(
                "POST /docs/ HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{}",
                "1\r\nx\r\n".repeat(40_000)
            ),
        ),
    ];
    // The files of the documentation are made when the first one is asked for.
    let file = reqwest::get(format!("{}/docs/swagger-ui-bundle.js", billing.base)).await.unwrap();
    assert!(file.bytes().await.unwrap().len() > 1_000_000);
    for (name, bytes) in attacks {
        let cost = cost_of_a_peer(&billing, bytes.as_bytes()).await;
        println!("{name}: {cost} bytes for each peer");
        assert!(cost < MAX_BYTES_PER_PEER, "{name}: {cost} bytes for each peer");
    }
}
