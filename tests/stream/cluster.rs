//! The publisher on a Redis Cluster of three nodes.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use visionscope_billing::domain::ids::Partition;
use visionscope_billing::outbox::verify;
use visionscope_billing::stream::EventStream;
use visionscope_billing::stream::redis::{RedisConfig, RedisStream};

use crate::events::{assert_stream_equals, eventually, eventually_ends_at, source};
use crate::memory_outbox::MemoryOutbox;
use crate::publishing::{RunningPublisher, test_config};
use crate::redis_server::RedisServer;

/// How long the nodes may take to form a cluster.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(30);

/// Three masters on loopback. The default cluster bus port is 10,000 above a node's port, which may be taken or out
/// of range, so each node gets a free one.
pub fn cluster() -> Vec<RedisServer> {
    let nodes: Vec<RedisServer> = (0..3)
        .map(|_| {
            let bus = RedisServer::not_started(&[]).port.to_string();
            let options =
                ["--cluster-enabled", "yes", "--cluster-port", bus.as_str(), "--cluster-node-timeout", "5000"];
            let mut node = RedisServer::not_started(&options);
            node.start_process();
            node
        })
        .collect();
    let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]).args(&addresses).args(["--cluster-replicas", "0", "--cluster-yes"]);
    let output = create.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let started = Instant::now();
    let is_ok = |node: &RedisServer| node.execute::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
    while !nodes.iter().all(is_ok) {
        assert!(started.elapsed() < CLUSTER_TIMEOUT, "the cluster is not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    nodes
}

pub fn stream_of(nodes: &[RedisServer]) -> Arc<RedisStream> {
    let config = RedisConfig { is_cluster: true, ..RedisConfig::from_urls(&nodes[0].url().into()) };
    Arc::new(RedisStream::new(&config, source()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_to_a_cluster_and_refills_a_node_that_lost_its_data() {
    let nodes = cluster();
    let (outbox, stream) = (Arc::new(MemoryOutbox::new()), stream_of(&nodes));
    for p in Partition::all() {
        outbox.commit(p, 600);
    }
    let running = RunningPublisher::start(&outbox, &stream, test_config());
    eventually("everything is recorded", async || Partition::all().all(|p| outbox.published_seq(p) == 600)).await;
    let sizes: Vec<i64> = nodes.iter().map(|node| node.execute(&["DBSIZE"])).collect();
    assert!(sizes.iter().all(|size| *size > 0), "the partitions are spread over the nodes: {sizes:?}");
    nodes[1].execute::<()>(&["FLUSHALL"]);
    nodes[1].execute::<()>(&["SCRIPT", "FLUSH"]);
    for p in Partition::all() {
        eventually_ends_at(&*stream, p, 1, 600).await;
        assert_stream_equals(&*stream, 1, &outbox.all(p)).await;
    }
    stream.ping().await.unwrap();
    let all: Vec<_> = Partition::all().collect();
    assert!(verify(&*outbox, &*stream, &all).await.unwrap().is_equal());
    running.stop().await;
}
