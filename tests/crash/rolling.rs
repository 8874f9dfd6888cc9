//! The server is stopped as a supervisor does it (SIGTERM) under load. No request fails.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use crate::load::{Client, deduct_path, one_credit, workspace};
use crate::processes::{Billing, Postgres};

/// Both replicas are restarted once in each; `ROLLING_ROUNDS` asks for more.
const ROUNDS: u32 = 3;
const CLIENTS: usize = 16;
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// A replica that does not answer a probe within this time gets no requests. With the interval, a small part of
/// `server.drain_delay_ms`.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
const READY_TIMEOUT: Duration = Duration::from_mins(1);

async fn provision(client: &Client) {
    let id = workspace(0);
    let body = json!({"name": "Rolling", "plan_code": "scale"});
    assert_eq!(client.put(&format!("/v1/workspaces/{id}"), &body).await, 201);
    let purchase = json!({"credits": "1000000", "amount_minor": 1, "currency": "EUR", "payment_reference": "pay-1"});
    client.post(&format!("/v1/workspaces/{id}/credits/purchase"), "buy", &purchase).await;
}

/// Sends each request to a replica that is ready, in turn, and never twice.
struct Balancer {
    replicas: Vec<(Client, AtomicBool)>,
    next: AtomicUsize,
}

impl Balancer {
    /// Asks each replica every [`PROBE_INTERVAL`] whether it is ready.
    fn watch(self: &Arc<Self>) -> JoinSet<()> {
        let mut probes = JoinSet::new();
        for n in 0..self.replicas.len() {
            let balancer = Arc::clone(self);
            // A client of its own, whose connections no request uses.
            let probe = balancer.replicas[n].0.with_own_connections();
            probes.spawn(async move {
                loop {
                    let is_ready = tokio::time::timeout(PROBE_TIMEOUT, probe.is_ready()).await.unwrap_or(false);
                    balancer.replicas[n].1.store(is_ready, Ordering::SeqCst);
                    tokio::time::sleep(PROBE_INTERVAL).await;
                }
            });
        }
        probes
    }

    /// The next replica that is ready. If none is, it waits: on a busy machine both may miss a probe.
    async fn choose(&self) -> &Client {
        loop {
            let first = self.next.fetch_add(1, Ordering::SeqCst);
            let mut replicas = (0..self.replicas.len()).map(|n| &self.replicas[(first + n) % self.replicas.len()]);
            if let Some((client, _)) = replicas.find(|(_, is_ready)| is_ready.load(Ordering::SeqCst)) {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn wait_until_ready(&self, n: usize) {
        let started = Instant::now();
        while !self.replicas[n].1.load(Ordering::SeqCst) {
            assert!(started.elapsed() < READY_TIMEOUT, "the replica is not ready");
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    }
}

/// Deducts one credit after the other. Returns how many were answered with success, and all that was not.
async fn deduct(balancer: Arc<Balancer>, client: usize, stop: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let (mut answered, mut failures) = (0, Vec::new());
    while !stop.load(Ordering::SeqCst) && failures.len() < 10 {
        let replica = balancer.choose().await;
        let outcome =
            replica.post_once(&deduct_path(workspace(0)), &format!("{client}-{answered}"), &one_credit()).await;
        match outcome {
            Ok(()) => answered += 1,
            Err(failure) => failures.push(failure),
        }
    }
    (answered, failures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_replicas_are_restarted_one_after_the_other() {
    let rounds = std::env::var("ROLLING_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let postgres = Postgres::create().await;
    let mut replicas = Vec::new();
    for _ in 0..2 {
        replicas.push(Billing::create_with(Some(postgres.url()), None, &[]).await);
    }
    let clients = replicas.iter().map(|replica| (Client::new(replica), AtomicBool::new(true)));
    let balancer = Arc::new(Balancer { replicas: clients.collect(), next: AtomicUsize::new(0) });
    provision(&balancer.replicas[0].0).await;
    let probes = balancer.watch();
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    for client in 0..CLIENTS {
        load.spawn(deduct(Arc::clone(&balancer), client, Arc::clone(&stop)));
    }
    for _ in 0..rounds {
        for (n, replica) in replicas.iter_mut().enumerate() {
            replica.terminate().await;
            replica.start();
            replica.wait_until_ready().await;
            balancer.wait_until_ready(n).await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    let results = load.join_all().await;
    drop(probes);
    let answered: usize = results.iter().map(|(answered, _)| answered).sum();
    let failures: Vec<_> = results.into_iter().flat_map(|(_, failures)| failures).collect();
    println!("{answered} requests were answered in {rounds} rounds");
    assert!(failures.is_empty(), "{} requests failed: {failures:?}", failures.len());
    assert!(answered > 100, "too little load: {answered}");
}

/// Sends requests on one connection as long as the server keeps it. Returns how many were answered.
fn use_one_connection(address: &str, request: &str) -> usize {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut buffer = vec![0; 64 * 1024];
    for answered in 0.. {
        stream.write_all(request.as_bytes()).expect("a connection that was not said to close takes a request");
        let len = stream.read(&mut buffer).expect("a request gets an answer");
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        assert!(text.starts_with("HTTP/1.1 "), "request {answered} got no answer");
        if text.contains("connection: close") {
            assert_eq!(stream.read(&mut buffer).unwrap(), 0, "then the connection ends");
            return answered + 1;
        }
    }
    unreachable!("the loop has no end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_answers_every_request_on_a_kept_connection() {
    let mut billing = Billing::create_with(None, None, &[]).await;
    provision(&Client::new(&billing)).await;
    let address = billing.base.strip_prefix("http://").unwrap().to_owned();
    let request = format!(
        "GET /v1/workspaces/{}/credits HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        workspace(0),
        billing.token()
    );
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (address, request) = (address.clone(), request.clone());
            std::thread::spawn(move || use_one_connection(&address, &request))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    billing.terminate().await;
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
    let answered: Vec<usize> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    println!("answered on each connection: {answered:?}");
    assert!(answered.iter().all(|answered| *answered > 2), "too little load: {answered:?}");
}
