//! Clients that deduct credits, hold and capture them, buy, refund and reverse, and retry as documented when there is no
//! answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;
use visionscope_billing::clock::{Clock as _, SystemClock};
use visionscope_billing::domain::credits::Credits;

use crate::figures::{Money, verify_notifications, verify_revenue, verify_usage};
use crate::processes::Billing;

const WORKSPACES: u128 = 6;
/// Of the plan `scale`.
const ALLOWANCE: i64 = 20_000;
/// The last one buys, the one before it holds, and the others deduct.
const CLIENTS_PER_WORKSPACE: usize = 4;
/// More than any workspace can spend.
const TOO_MANY_CREDITS: &str = "900000000";
/// How long a client retries one command.
const RETRY_TIMEOUT: Duration = Duration::from_mins(1);
pub const PAUSE_BEFORE_RETRY: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

pub struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Vec<Command>>,
    begun: Vec<Command>,
}

/// A command that was answered: with success, or with a refusal for want of credits.
struct Command {
    workspace: Uuid,
    path: String,
    key: String,
    body: Value,
    status: StatusCode,
    answer: String,
}

/// What a command has moved, in micro-credits and in minor units.
#[derive(Clone, Copy, Default)]
struct Moved {
    /// Used, less what was refunded.
    used: i64,
    /// Bought, with the bonus, less what was taken back.
    added: i64,
    paid_minor: i64,
    returned_minor: i64,
}

/// Every command that was answered.
pub struct Acknowledged(Vec<Command>);

fn http() -> reqwest::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(8)).build().unwrap()
}

impl Client {
    pub fn new(billing: &Billing) -> Self {
        Self { http: http(), base: billing.base.clone(), token: billing.token() }
    }

    /// Sends a command until it has succeeded.
    pub async fn post(&self, path: &str, key: &str, body: &Value) {
        let (status, _, text) = self.decided(path, key, body).await;
        assert!(status.is_success(), "{status} {text}");
    }

    /// Sends a command until it is answered. Returns the status, whether the answer was replayed, and its body.
    async fn decided(&self, path: &str, key: &str, body: &Value) -> (StatusCode, bool, String) {
        let started = Instant::now();
        loop {
            assert!(started.elapsed() < RETRY_TIMEOUT, "{path} {key} has no answer");
            let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token);
            let sent = request.header("idempotency-key", key).json(body).send().await;
            if let Ok(response) = sent {
                let status = response.status();
                let replayed = response.headers().contains_key("idempotency-replayed");
                if let Ok(text) = response.text().await {
                    if status.is_success() || status == StatusCode::PAYMENT_REQUIRED {
                        return (status, replayed, text);
                    }
                    assert!(status.is_server_error(), "{status} {text}");
                }
            }
            tokio::time::sleep(PAUSE_BEFORE_RETRY).await;
        }
    }

    /// Sends a request once. Returns the answer, if there is one.
    pub async fn try_post(&self, path: &str, key: Option<&str>, body: &Value) -> Option<(StatusCode, Value)> {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token).json(body);
        let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
        let response = request.send().await.ok()?;
        let (status, text) = (response.status(), response.text().await.ok()?);
        Some((status, serde_json::from_str(&text).unwrap_or_default()))
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

    /// Sends a command of the load until it is answered.
    async fn command(&self, workspace: Uuid, path: String, key: String, body: Value) -> Command {
        let (status, _, answer) = self.decided(&path, &key, &body).await;
        Command { workspace, path, key, body, status, answer }
    }
}

pub fn workspace(number: u128) -> Uuid {
    Uuid::from_u128(0x0c8a_5400_0000_7000_8000_0000_0000_0000 + number * 7919)
}

pub fn deduct_path(workspace: Uuid) -> String {
    format!("/v1/workspaces/{workspace}/credits/deduct")
}

pub fn one_credit() -> Value {
    credits("1")
}

fn credits(credits: &str) -> Value {
    json!({"feature_code": "video.render", "credits": credits})
}

fn purchase_path(workspace: Uuid) -> String {
    format!("/v1/workspaces/{workspace}/credits/purchase")
}

impl Load {
    /// Provisions the workspaces, buys credits for each, and starts the clients.
    pub async fn start(billing: &Billing, bought_credits: i64) -> Self {
        let client = Client::new(billing);
        let mut begun = Vec::new();
        for id in (0..WORKSPACES).map(workspace) {
            let body = json!({"name": "Crash", "plan_code": "scale"});
            assert_eq!(client.put(&format!("/v1/workspaces/{id}"), &body).await, 201);
            let purchase = json!({
                "credits": bought_credits.to_string(), "amount_minor": 9_999_999, "currency": "EUR",
                "payment_reference": "pay-1",
            });
            begun.push(client.command(id, purchase_path(id), "buy".into(), purchase).await);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..WORKSPACES {
            for n in 0..CLIENTS_PER_WORKSPACE {
                clients.spawn(run_client(client.clone(), workspace(number), n, Arc::clone(&stop)));
            }
        }
        Self { stop, clients, begun }
    }

    /// Waits until every client has finished its current command.
    pub async fn finish(mut self) -> Acknowledged {
        self.stop.store(true, Ordering::SeqCst);
        let all = self.clients.join_all().await;
        self.begun.extend(all.into_iter().flatten());
        Acknowledged(self.begun)
    }
}

async fn run_client(client: Client, workspace: Uuid, number: usize, stop: Arc<AtomicBool>) -> Vec<Command> {
    let mut acknowledged = Vec::new();
    for round in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("client-{number}-{round}");
        match CLIENTS_PER_WORKSPACE - number {
            1 => acknowledged.extend(buy(&client, workspace, &key, round).await),
            2 => acknowledged.extend(hold(&client, workspace, &key, round).await),
            _ => acknowledged.push(client.command(workspace, deduct_path(workspace), key, one_credit()).await),
        }
    }
    acknowledged
}

/// Holds credits, and captures some of them or none.
async fn hold(client: &Client, workspace: Uuid, key: &str, round: usize) -> [Command; 2] {
    let holds = format!("/v1/workspaces/{workspace}/holds");
    let placed = client.command(workspace, holds.clone(), format!("{key}-hold"), credits("2")).await;
    let hold_id = text(&placed.told()["hold_id"]);
    let (end, body) =
        if round.is_multiple_of(3) { ("release", json!({})) } else { ("capture", json!({"credits": "1"})) };
    let ended = client.command(workspace, format!("{holds}/{hold_id}/{end}"), format!("{key}-{end}"), body).await;
    [placed, ended]
}

/// Buys credits that are spent before all others, and uses some. Some of that is refunded, some purchases are taken back
/// as a whole or in part, and sometimes there are too few credits.
async fn buy(client: &Client, workspace: Uuid, key: &str, round: usize) -> Vec<Command> {
    let send = async |path: String, what: &str, body: Value| {
        client.command(workspace, path, format!("{key}-{what}"), body).await
    };
    let expires_at = SystemClock.now().plus(chrono::TimeDelta::days(1));
    let purchase = json!({
        "credits": "2", "bonus_credits": "1", "amount_minor": 199, "payment_reference": key,
        "currency": if round.is_multiple_of(2) { "EUR" } else { "USD" },
        "expires_at": expires_at.to_string(),
    });
    let bought = send(purchase_path(workspace), "buy", purchase).await;
    let used = send(deduct_path(workspace), "use", credits("1.5")).await;
    let (purchase_id, usage_id) = (text(&bought.told()["grant_id"]), text(&used.told()["usage_id"]));
    let mut commands = vec![bought, used];
    if !round.is_multiple_of(3) {
        let path = format!("/v1/workspaces/{workspace}/usage/{usage_id}/refund");
        commands.push(send(path, "refund", json!({"credits": "0.7"})).await);
    }
    if round.is_multiple_of(4) {
        let path = format!("/v1/workspaces/{workspace}/purchases/{purchase_id}/reverse");
        let all = round.is_multiple_of(8);
        let body = if all { json!({"reason": "refund"}) } else { json!({"reason": "mistake", "amount_minor": 50}) };
        commands.push(send(path, "reverse", body).await);
    }
    if round % 4 == 1 {
        commands.push(send(deduct_path(workspace), "refused", credits(TOO_MANY_CREDITS)).await);
    }
    commands
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// An amount of credits, in micro-credits.
pub fn micro(value: &Value) -> i64 {
    value.as_str().unwrap().parse::<Credits>().unwrap().micro()
}

impl Command {
    fn told(&self) -> Value {
        serde_json::from_str(&self.answer).unwrap()
    }

    fn currency(&self) -> Option<String> {
        let told = self.told();
        self.body.get("currency").or_else(|| told.get("currency")).map(text)
    }

    fn moved(&self) -> Moved {
        let told = self.told();
        let sum = |fields: &[&str]| fields.iter().map(|field| micro(&told[field])).sum::<i64>();
        let minor = |value: &Value| value["amount_minor"].as_i64().unwrap();
        let nothing = Moved::default();
        match self.path.rsplit('/').next().unwrap() {
            _ if self.status == StatusCode::PAYMENT_REQUIRED => nothing,
            "deduct" => Moved { used: sum(&["credits"]), ..nothing },
            "capture" => Moved { used: sum(&["captured_credits"]), ..nothing },
            "refund" => Moved { used: -sum(&["credits"]), ..nothing },
            "purchase" => Moved { added: sum(&["credits", "bonus_credits"]), paid_minor: minor(&self.body), ..nothing },
            "reverse" => {
                let taken = sum(&["credits_removed", "credits_owed", "bonus_removed", "bonus_owed"]);
                Moved { added: -taken, returned_minor: minor(&told), ..nothing }
            }
            "holds" | "release" => nothing,
            other => panic!("{other}"),
        }
    }
}

impl Acknowledged {
    /// Checks that every answer is replayed, and that each command took its credits exactly once.
    pub async fn verify(&self, billing: &Billing) {
        self.verify_with(billing, &[]).await;
    }

    /// The same with further deductions that others have made, in credits.
    pub async fn verify_with(&self, billing: &Billing, others: &[(Uuid, i64)]) {
        let client = Client::new(billing);
        let mut by_workspace: BTreeMap<Uuid, Moved> = BTreeMap::new();
        let mut money = Money::new();
        for (workspace, used) in others {
            by_workspace.entry(*workspace).or_default().used += Credits::whole(*used).micro();
        }
        println!("{} commands were acknowledged", self.0.len());
        assert!(self.0.len() > 100, "too little load");
        for command in &self.0 {
            let (status, replayed, answer) = client.decided(&command.path, &command.key, &command.body).await;
            assert!(replayed, "{} was executed again", command.key);
            assert_eq!((status, &answer), (command.status, &command.answer), "{} has another answer now", command.key);
            let (moved, sums) = (command.moved(), by_workspace.entry(command.workspace).or_default());
            sums.used += moved.used;
            sums.added += moved.added;
            if let Some(currency) = command.currency() {
                let [paid, returned] = money.entry(currency).or_default();
                *paid += moved.paid_minor;
                *returned += moved.returned_minor;
            }
        }
        let allowance = Credits::whole(ALLOWANCE).micro();
        for (workspace, expected) in by_workspace {
            let credits = client.get(&format!("/v1/workspaces/{workspace}/credits")).await;
            assert_eq!(micro(&credits["used_this_month"]), expected.used, "each command took its credits once");
            assert_eq!(credits["held_credits"], "0", "every hold has ended");
            let balance = allowance + expected.added - expected.used;
            assert_eq!(micro(&credits["current_credits"]), balance, "granted, bought, spent and taken back once");
            verify_usage(&client, workspace).await;
            verify_notifications(&client, workspace).await;
        }
        verify_revenue(&client, &money).await;
    }
}
