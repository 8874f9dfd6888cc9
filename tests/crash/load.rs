//! Clients that deduct credits, and hold and capture them, and retry as documented when there is no answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;
use visionscope_billing::domain::credits::Credits;

use crate::processes::Billing;

const WORKSPACES: u128 = 6;
const CLIENTS_PER_WORKSPACE: usize = 3;
/// How long a client retries one command.
const RETRY_TIMEOUT: Duration = Duration::from_mins(1);
/// How long the consumers may take until they have taken all events.
const FIGURES_TIMEOUT: Duration = Duration::from_mins(1);
const PAUSE_BEFORE_RETRY: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

pub struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Vec<Command>>,
}

/// A command that was answered with success.
struct Command {
    workspace: Uuid,
    path: String,
    key: String,
    body: Value,
    answer: String,
    /// How many credits it has used.
    used: i64,
}

/// Every command that was answered with success.
pub struct Acknowledged(Vec<Command>);

fn http() -> reqwest::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(8)).build().unwrap()
}

impl Client {
    pub fn new(billing: &Billing) -> Self {
        Self { http: http(), base: billing.base.clone(), token: billing.token() }
    }

    /// Sends a command until it is answered. Returns whether the answer was replayed, and its body.
    pub async fn post(&self, path: &str, key: &str, body: &Value) -> (bool, String) {
        let started = Instant::now();
        loop {
            assert!(started.elapsed() < RETRY_TIMEOUT, "{path} {key} has no answer");
            let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token);
            let sent = request.header("idempotency-key", key).json(body).send().await;
            if let Ok(response) = sent {
                let status = response.status();
                let replayed = response.headers().contains_key("idempotency-replayed");
                if let Ok(text) = response.text().await {
                    if status.is_success() {
                        return (replayed, text);
                    }
                    assert!(status.is_server_error(), "{status} {text}");
                }
            }
            tokio::time::sleep(PAUSE_BEFORE_RETRY).await;
        }
    }

    /// The same caller with connections of its own.
    pub fn with_own_connections(&self) -> Self {
        Self { http: http(), ..self.clone() }
    }

    pub async fn is_ready(&self) -> bool {
        let answer = self.http.get(format!("{}/readyz", self.base)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Sends a command once.
    pub async fn post_once(&self, path: &str, key: &str, body: &Value) -> Result<(), String> {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token);
        let sent = request.header("idempotency-key", key).json(body).send().await;
        let response = sent.map_err(|error| format!("{error:?}"))?;
        let status = response.status();
        let text = response.text().await.map_err(|error| format!("{error:?}"))?;
        if status == StatusCode::OK { Ok(()) } else { Err(format!("{status} {text}")) }
    }

    pub async fn put(&self, path: &str, body: &Value) -> u16 {
        let request = self.http.put(format!("{}{path}", self.base)).bearer_auth(&self.token).json(body);
        request.send().await.unwrap().status().as_u16()
    }

    pub async fn get(&self, path: &str) -> Value {
        let response = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.json().await.unwrap()
    }
}

pub fn workspace(number: u128) -> Uuid {
    Uuid::from_u128(0x0c8a_5400_0000_7000_8000_0000_0000_0000 + number * 7919)
}

pub fn deduct_path(workspace: Uuid) -> String {
    format!("/v1/workspaces/{workspace}/credits/deduct")
}

pub fn one_credit() -> Value {
    json!({"feature_code": "video.render", "credits": "1"})
}

impl Load {
    /// Provisions the workspaces, buys credits for each, and starts the clients.
    pub async fn start(billing: &Billing, bought_credits: i64) -> Self {
        let client = Client::new(billing);
        for number in 0..WORKSPACES {
            let id = workspace(number);
            let body = json!({"name": "Crash", "plan_code": "scale"});
            assert_eq!(client.put(&format!("/v1/workspaces/{id}"), &body).await, 201);
            let purchase = json!({
                "credits": bought_credits.to_string(), "amount_minor": 1, "currency": "EUR", "payment_reference": "pay-1",
            });
            client.post(&format!("/v1/workspaces/{id}/credits/purchase"), "buy", &purchase).await;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..WORKSPACES {
            for n in 0..CLIENTS_PER_WORKSPACE {
                clients.spawn(run_client(client.clone(), workspace(number), n, Arc::clone(&stop)));
            }
        }
        Self { stop, clients }
    }

    /// Waits until every client has finished its current command.
    pub async fn finish(self) -> Acknowledged {
        self.stop.store(true, Ordering::SeqCst);
        let all = self.clients.join_all().await;
        Acknowledged(all.into_iter().flatten().collect())
    }
}

/// The last client of each workspace holds credits and ends its holds, the others deduct.
async fn run_client(client: Client, workspace: Uuid, number: usize, stop: Arc<AtomicBool>) -> Vec<Command> {
    let mut acknowledged = Vec::new();
    for round in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("client-{number}-{round}");
        let send = async |path: String, key: String, body: Value, used: i64| {
            let (_, answer) = client.post(&path, &key, &body).await;
            Command { workspace, path, key, body, answer, used }
        };
        if number + 1 < CLIENTS_PER_WORKSPACE {
            acknowledged.push(send(deduct_path(workspace), key, one_credit(), 1).await);
            continue;
        }
        let holds = format!("/v1/workspaces/{workspace}/holds");
        let hold = json!({"feature_code": "video.render", "credits": "2"});
        let placed = send(holds.clone(), format!("{key}-hold"), hold, 0).await;
        let placed_answer: Value = serde_json::from_str(&placed.answer).unwrap();
        let hold_id = placed_answer["hold_id"].as_str().unwrap().to_owned();
        acknowledged.push(placed);
        let (end, body, used) =
            if round % 3 == 0 { ("release", json!({}), 0) } else { ("capture", json!({"credits": "1"}), 1) };
        acknowledged.push(send(format!("{holds}/{hold_id}/{end}"), format!("{key}-{end}"), body, used).await);
    }
    acknowledged
}

impl Acknowledged {
    /// Checks that every answer is replayed, and that each command took its credit exactly once.
    pub async fn verify(&self, billing: &Billing, bought_credits: i64) {
        self.verify_with(billing, bought_credits, &[]).await;
    }

    /// The same with further deductions that others have made.
    pub async fn verify_with(&self, billing: &Billing, bought_credits: i64, others: &[(Uuid, i64)]) {
        let client = Client::new(billing);
        let mut per_workspace: BTreeMap<Uuid, i64> = others.iter().copied().collect();
        println!("{} commands were acknowledged", self.0.len());
        assert!(self.0.len() > 100, "too little load");
        for command in &self.0 {
            let (replayed, answer) = client.post(&command.path, &command.key, &command.body).await;
            assert!(replayed, "{} was executed again", command.key);
            assert_eq!(answer, command.answer, "{} has another answer now", command.key);
            *per_workspace.entry(command.workspace).or_default() += command.used;
        }
        for (workspace, expected) in per_workspace {
            let credits = client.get(&format!("/v1/workspaces/{workspace}/credits")).await;
            let used: i64 = credits["used_this_month"].as_str().unwrap().parse().unwrap();
            assert_eq!(used, expected, "each acknowledged command took its credits once");
            assert_eq!(credits["held_credits"], "0", "every hold has ended");
            let current: i64 = credits["current_credits"].as_str().unwrap().parse().unwrap();
            assert_eq!((current + used - bought_credits) % 1000, 0, "bought and granted = spent + balance");
            verify_figures(&client, workspace).await;
        }
    }
}

/// Credits in micro-credits, and how many deductions, by day and feature.
type Usage = BTreeMap<(String, String), (i64, i64)>;

/// Checks that the figures, once all events are in them, are what the usage logs say.
async fn verify_figures(client: &Client, workspace: Uuid) {
    let micro = |item: &Value| item["credits"].as_str().unwrap().parse::<Credits>().unwrap().micro();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (mut expected, mut cursor) = (Usage::new(), String::new());
    loop {
        let page = client.get(&format!("/v1/workspaces/{workspace}/usage?limit=200{cursor}")).await;
        for log in page["items"].as_array().unwrap() {
            let day = text(&log["recorded_at"])[.."2026-01-31".len()].to_owned();
            let (credits, deductions) = expected.entry((day, text(&log["feature_code"]))).or_default();
            (*credits, *deductions) = (*credits + micro(log), *deductions + 1);
        }
        if page["has_more"] == false {
            break;
        }
        cursor = format!("&cursor={}", text(&page["next"]));
    }
    let started = Instant::now();
    let figures = loop {
        let figures = client.get(&format!("/v1/workspaces/{workspace}/analytics/usage")).await;
        if figures["as_of"]["lag_seconds"] == 0 {
            break figures;
        }
        assert!(started.elapsed() < FIGURES_TIMEOUT, "the consumers do not catch up: {}", figures["as_of"]);
        tokio::time::sleep(PAUSE_BEFORE_RETRY).await;
    };
    assert_eq!(figures["as_of"]["incomplete"], false, "no workspace waits behind a dead letter");
    let of_item = |item: &Value| {
        let key = (text(&item["day"]), text(&item["feature_code"]));
        (key, (micro(item), item["deductions"].as_i64().unwrap()))
    };
    let found: Usage = figures["items"].as_array().unwrap().iter().map(of_item).collect();
    assert_eq!(found, expected, "each usage log is counted once");
}
