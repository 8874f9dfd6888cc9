//! Which job a worker gets next, over HTTP and on both databases.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::TimeDelta;
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use visionscope_billing::clock::Clock as _;
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{TestServer, provisioned, send};
use crate::jobs::submitted;
use crate::workers::TestWorker;

/// The queues with their weights here, and the kinds of their jobs.
const QUEUES: [(&str, u32, &str); 3] = [
    ("default", 8, "mail"),
    ("notifications", 4, "notifications.mail"),
    ("video_processing", 3, "video_processing.look"),
];
/// As many jobs are handed out. Each queue has more of them than that.
const HANDED_OUT: u32 = 150;

/// A server whose queues have these weights and many jobs each.
async fn with_backlog(database: Database) -> TestServer {
    let server = provisioned(database).await;
    let operator = server.user_of(Tenancy::All, Scope::ALL);
    for (queue, weight, kind) in QUEUES {
        let change = json!({"weight": weight, "reason": "A test"});
        let request = operator.request(Method::PATCH, &format!("/v1/ops/queues/{queue}")).json(&change);
        assert_eq!(send(request).await.status.as_u16(), 200);
        join_all((0..HANDED_OUT).map(async |_| submitted(&server, &json!({"kind": kind})).await)).await;
    }
    server
}

fn count(jobs: &[Value]) -> BTreeMap<&str, u32> {
    let mut counts = BTreeMap::new();
    for job in jobs {
        *counts.entry(job["queue"].as_str().unwrap()).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_handed_out_in_the_proportion_of_the_weights() {
    let names = QUEUES.map(|(queue, ..)| queue);
    for database in Database::ALL {
        for (workers, most) in [(1, 1), (1, 10), (4, 1)] {
            let server = with_backlog(database).await;
            let workers = join_all((0..workers).map(|_| TestWorker::register(&server, &names))).await;
            let left = AtomicI64::new(HANDED_OUT.into());
            let taken = workers.iter().map(async |worker| {
                let mut jobs = Vec::new();
                while left.load(Ordering::SeqCst) > 0 {
                    let leased = worker.lease(&json!({"max": most, "wait_s": 5})).await;
                    left.fetch_sub(i64::try_from(leased.len()).unwrap(), Ordering::SeqCst);
                    jobs.extend(leased);
                }
                jobs
            });
            let jobs: Vec<Value> = join_all(taken).await.into_iter().flatten().collect();
            let (counts, all) = (count(&jobs), u32::try_from(jobs.len()).unwrap());
            println!("{database:?}, {} workers, up to {most} jobs at once: {counts:?}", workers.len());
            for (queue, weight, _) in QUEUES {
                let expected = f64::from(all * weight) / 15.0;
                let deviation = (f64::from(counts[queue]) - expected).abs() / expected;
                assert!(deviation <= 0.1, "{queue} got {} of {all}, and not {expected}", counts[queue]);
            }
        }
    }
}

async fn sent(server: &TestServer, priority: u8, name: &str) {
    submitted(server, &json!({"kind": "mail", "args": {"name": name}, "priority": priority})).await;
}

async fn taken(worker: &TestWorker<'_>) -> String {
    worker.lease_one_of_many().await["args"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_higher_priority_goes_first_and_no_job_starves() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let worker = TestWorker::register(&server, &["default"]).await;
        for (priority, name) in [(5, "c"), (0, "f"), (9, "a"), (4, "d"), (9, "b"), (3, "e")] {
            sent(&server, priority, name).await;
        }
        for name in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(taken(&worker).await, name);
        }
        // From now on there is always a job with the highest priority, whose head start is nine minutes.
        sent(&server, 0, "patient").await;
        for minute in 1..=10 {
            server.clock.set(server.clock.now().plus(TimeDelta::seconds(59)));
            sent(&server, 9, "hasty").await;
            let expected = if minute == 10 { "patient" } else { "hasty" };
            assert_eq!(taken(&worker).await, expected, "after {minute} times 59 s");
        }
    }
}
