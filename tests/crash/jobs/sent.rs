//! The jobs that are sent while processes are killed: metered ones, plain ones, and commands.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;
use visionscope_billing::domain::credits::Credits;

use crate::Random;
use crate::load::{Client, PAUSE_BEFORE_RETRY, text, workspace};

/// Of the plan `scale`, and bought.
pub const CREDITS: i64 = 20_000 + 1_000_000;
const SENDERS: usize = 16;
/// How long it takes at least until all jobs are sent.
const SPREAD: Duration = Duration::from_secs(4);
/// A workspace can have 1,000 open holds.
const JOBS_PER_WORKSPACE: usize = 500;
const MIN_WORKSPACES: usize = 4;
const BURST: i64 = 16;

/// What a job is about. Credits are micro-credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Metered {
        held: i64,
        max_attempts: i64,
    },
    Plain {
        max_attempts: i64,
    },
    Deduction {
        credits: i64,
    },
    /// A deduction that no workspace can pay.
    TooDear,
}

/// How many attempts a job has.
pub const MAX_ATTEMPTS: i64 = 20;

impl Work {
    /// That of the job with this number.
    fn of(number: usize) -> Self {
        let mut random = Random(u64::try_from(number).unwrap());
        random.below(2);
        let credits = i64::try_from(1 + random.below(20_000_000)).unwrap();
        // One that is lost once fails for good.
        let max_attempts = if random.below(8) == 0 { 1 } else { MAX_ATTEMPTS };
        match number % 10 {
            0 if number.is_multiple_of(50) => Self::TooDear,
            0 | 5 => Self::Deduction { credits },
            1 => Self::Plain { max_attempts },
            _ => Self::Metered { held: credits, max_attempts },
        }
    }

    pub const fn max_attempts(self) -> i64 {
        match self {
            Self::Metered { max_attempts, .. } | Self::Plain { max_attempts } => max_attempts,
            Self::Deduction { .. } | Self::TooDear => MAX_ATTEMPTS,
        }
    }

    fn body(self, number: usize) -> Value {
        let credits = |micro| Credits::from_micro(micro).unwrap().to_string();
        let takes_ms = if number % 40 == 7 { 2000 } else { number * 37 % 200 };
        let args = json!({"number": number, "takes_ms": takes_ms});
        let charge = |credits: String| json!({"feature_code": "video.render", "credits": credits});
        match self {
            Self::Metered { held, max_attempts } => json!({
                "kind": "crash.render", "args": args, "max_attempts": max_attempts, "hold": charge(credits(held)),
            }),
            Self::Plain { max_attempts } => {
                json!({"kind": "crash.plain", "args": args, "max_attempts": max_attempts})
            }
            Self::Deduction { credits: micro } => {
                json!({"kind": "billing.deduct_credits", "args": charge(credits(micro))})
            }
            Self::TooDear => json!({"kind": "billing.deduct_credits", "args": charge("900000000".into())}),
        }
    }
}

/// A job that was taken.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub workspace: Uuid,
    pub work: Work,
}

/// The jobs by their ids.
pub type AllSent = HashMap<String, Sent>;

pub fn workspaces(jobs: usize) -> Vec<Uuid> {
    let count = (jobs / JOBS_PER_WORKSPACE).max(MIN_WORKSPACES);
    (0..count).map(|number| workspace(u128::try_from(number).unwrap())).collect()
}

/// Makes the workspaces, with more credits than the jobs can cost.
pub async fn provision(client: &Client, workspaces: &[Uuid]) {
    for id in workspaces {
        let body = json!({"name": "Jobs", "plan_code": "scale"});
        assert_eq!(client.put(&format!("/v1/workspaces/{id}"), &body).await, 201);
        let purchase =
            json!({"credits": "1000000", "amount_minor": 1, "currency": "EUR", "payment_reference": "pay-1"});
        client.post(&format!("/v1/workspaces/{id}/credits/purchase"), "buy", &purchase).await;
    }
}

/// Sends a job to one server after the other until it is taken. Returns its id.
pub async fn send(servers: &[Client], workspace: Uuid, key: &str, body: &Value) -> String {
    let path = format!("/v1/workspaces/{workspace}/jobs");
    for server in servers.iter().cycle() {
        if let Some((status, answer)) = server.try_post(&path, Some(key), body).await {
            if status == StatusCode::ACCEPTED {
                return text(&answer["job_id"]);
            }
            assert!(status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS, "{key}: {status} {answer}");
        }
        tokio::time::sleep(PAUSE_BEFORE_RETRY).await;
    }
    unreachable!("there is a server")
}

/// Sends deductions at the same time.
pub async fn send_burst(client: Client, workspace: Uuid, burst: u32) -> AllSent {
    let servers = [client.with_own_connections()];
    let sent = (0..BURST).map(async |number| {
        let (work, key) = (Work::Deduction { credits: 1 + number }, format!("burst-{burst}-{number}"));
        (send(&servers, workspace, &key, &work.body(0)).await, Sent { workspace, work })
    });
    join_all(sent).await.into_iter().collect()
}

/// Sends so many jobs, some of them twice, by several senders.
pub async fn send_all(client: Client, jobs: usize) -> AllSent {
    let (next, mut senders) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    let workspaces = workspaces(jobs);
    let pause = SPREAD.mul_f64(f64::from(u32::try_from(SENDERS).unwrap()) / f64::from(u32::try_from(jobs).unwrap()));
    for _ in 0..SENDERS {
        let (servers, next, workspaces) = ([client.with_own_connections()], Arc::clone(&next), workspaces.clone());
        senders.spawn(async move {
            let mut sent = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                if number >= jobs {
                    return sent;
                }
                let (workspace, work) = (workspaces[number % workspaces.len()], Work::of(number));
                let (key, body) = (format!("job-{number}"), work.body(number));
                let job_id = send(&servers, workspace, &key, &body).await;
                if number % 7 == 0 {
                    assert_eq!(send(&servers, workspace, &key, &body).await, job_id, "it is the same job");
                }
                sent.push((job_id, Sent { workspace, work }));
                tokio::time::sleep(pause).await;
            }
        });
    }
    let all: AllSent = senders.join_all().await.into_iter().flatten().collect();
    assert_eq!(all.len(), jobs, "each job has an id of its own");
    all
}
