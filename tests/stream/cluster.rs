//! The same on a cluster of three nodes.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use visionscope_billing::domain::ids::Partition;
use visionscope_billing::outbox::verify;
use visionscope_billing::stream::EventStream;
use visionscope_billing::stream::redis::{RedisConfig, RedisStream};

use crate::events::{assert_holds, eventually, eventually_ends_at};
use crate::memory_outbox::MemoryOutbox;
use crate::publishing::{Running, quick};
use crate::redis_server::RedisServer;

/// How long the nodes may take to agree.
const AGREEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Three masters on loopback. A node's bus would be 10,000 above its port, which may not be free or
/// not exist, so it is given one of its own.
fn cluster() -> Vec<RedisServer> {
    let nodes: Vec<RedisServer> = (0..3)
        .map(|_| {
            let bus = RedisServer::planned(&[]).port.to_string();
            let options =
                ["--cluster-enabled", "yes", "--cluster-port", bus.as_str(), "--cluster-node-timeout", "5000"];
            let mut node = RedisServer::planned(&options);
            node.run();
            node
        })
        .collect();
    let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]).args(&addresses).args(["--cluster-replicas", "0", "--cluster-yes"]);
    let output = create.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let started = Instant::now();
    let is_ok = |node: &RedisServer| node.tell::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
    while !nodes.iter().all(is_ok) {
        assert!(started.elapsed() < AGREEMENT_TIMEOUT, "the cluster is not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_are_published_to_a_cluster_and_filled_again_when_a_node_forgets() {
    let nodes = cluster();
    let config = RedisConfig { is_cluster: true, ..RedisConfig::from_urls(&nodes[0].url().into()) };
    let (outbox, stream) = (Arc::new(MemoryOutbox::new()), Arc::new(RedisStream::new(&config).unwrap()));
    for p in Partition::all() {
        outbox.commit(p, 600);
    }
    let running = Running::start(&outbox, &stream, quick());
    eventually("everything is recorded", async || Partition::all().all(|p| outbox.published_seq(p) == 600)).await;
    let sizes: Vec<i64> = nodes.iter().map(|node| node.tell(&["DBSIZE"])).collect();
    assert!(sizes.iter().all(|size| *size > 0), "the partitions are spread over the nodes: {sizes:?}");
    nodes[1].tell::<()>(&["FLUSHALL"]);
    nodes[1].tell::<()>(&["SCRIPT", "FLUSH"]);
    for p in Partition::all() {
        eventually_ends_at(&*stream, p, 1, 600).await;
        assert_holds(&*stream, 1, &outbox.all(p)).await;
    }
    stream.ping().await.unwrap();
    let all: Vec<_> = Partition::all().collect();
    assert!(verify(&*outbox, &*stream, &all).await.unwrap().is_equal());
    running.stop().await;
}
