//! A reference consumer of the event streams: keeps the credits consumed per workspace and feature.
//!
//! It is made to be copied, and so uses nothing of the server's crate. `apply` in `store.rs` is the work; replace it and
//! the table `consumed` by your own. The rest is what every consumer needs, as docs/EVENTS.md describes it. README.md, one
//! folder up, says what each part is for.
//!
//! Every event takes effect exactly once, in order: the position in each partition is stored in the transaction of the
//! effect. So it does not matter how often an event comes, from where, or which of several consumers gets it.

mod store;

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncConnectionConfig, Client, RedisError, cmd, pipe};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::store::{Event, MAX_HELD, Store};

const PARTITIONS: u8 = 16;
/// Entries that this consumer has in hand at once.
const SLOTS: usize = 256;
const HTTP_PAGE: usize = 200;
/// Dead letters that are kept in the stream of each partition.
const DEAD_LETTERS: usize = 10_000;
/// How often generations and abandoned entries are looked up.
const REFRESH: Duration = Duration::from_secs(1);
/// The longest wait for new entries.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// How often the position is read while another consumer closes a gap.
const GAP_POLL: Duration = Duration::from_millis(20);
/// Of every call to Redis, to the server and to the database.
const TIMEOUT: Duration = Duration::from_secs(10);
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Settings {
    #[command(subcommand)]
    command: Option<Command>,
    #[arg(long, env = "REDIS_URL", default_value = "redis://127.0.0.1:6379/", hide_env_values = true)]
    redis_url: String,
    #[arg(long, env = "BILLING_URL", default_value = "http://127.0.0.1:8080")]
    billing_url: String,
    /// A token for all workspaces with the scope events:read.
    #[arg(long, env = "BILLING_TOKEN", default_value = "", hide_env_values = true)]
    billing_token: String,
    /// One for all consumers of the group.
    #[arg(long, env = "CONSUMER_DATABASE", default_value = "consumer.db")]
    database: String,
    #[arg(long, env = "CONSUMER_GROUP", default_value = "credits-rust")]
    group: String,
    /// Of its own, and the same after a restart.
    #[arg(long, env = "CONSUMER_NAME", default_value = "one")]
    name: String,
    #[arg(long, env = "RETRY_DELAYS_S", default_value = "1,5,30,120,600", value_delimiter = ',', value_parser = seconds)]
    retry_delays: Vec<Duration>,
    /// After which others take an entry.
    #[arg(long, env = "IDLE_LIMIT_S", default_value = "60", value_parser = seconds)]
    idle_limit: Duration,
    /// How long another consumer may take to close a gap.
    #[arg(long, env = "GAP_WAIT_S", default_value = "2", value_parser = seconds)]
    gap_wait: Duration,
    /// For tests: an event about this feature fails.
    #[arg(long, env = "FAIL_FEATURE")]
    fail_feature: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Try the dead letters again, once each.
    Replay,
}

fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.trim().parse()?)?)
}

/// A person must act; trying again does not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Fatal(String);

/// An entry as Redis sends it. One that has left the stream has no fields.
type Entry = (String, Option<HashMap<String, String>>);

/// What the keeper keeps: the keys of streams, and the ids of entries in hand.
type InHand = Arc<Mutex<Vec<(String, Vec<String>)>>>;

struct Partition {
    number: u8,
    key: String,
    /// The position, as last seen.
    last: i64,
    /// Own pending entries first, then `>`: new ones.
    cursor: String,
    claim_from: String,
    /// Whether it catches up over HTTP.
    is_behind: bool,
    /// When the position was last seen to move.
    since: Instant,
    /// Received and not acknowledged, by number.
    hand: BTreeMap<i64, Event>,
}

impl Partition {
    fn take(&mut self, entries: Vec<Entry>) {
        for (id, fields) in entries {
            let mut fields = fields.unwrap_or_default();
            let sequence = id.split('-').next().and_then(|number| number.parse().ok()).unwrap_or_default();
            let event = Event {
                partition: self.number,
                sequence,
                id: fields.remove("event_id").unwrap_or_default(),
                workspace_id: fields.remove("workspace_id").unwrap_or_default(),
                text: fields.remove("event"),
            };
            self.hand.insert(sequence, event);
        }
    }
}

fn ids<'a>(numbers: impl Iterator<Item = &'a i64>) -> Vec<String> {
    numbers.map(|number| format!("{number}-0")).collect()
}

struct Consumer {
    settings: Arc<Settings>,
    store: Store,
    http: reqwest::Client,
    /// Blocks, so it is used for nothing else.
    reader: MultiplexedConnection,
    redis: MultiplexedConnection,
    partitions: BTreeMap<u8, Partition>,
    next_refresh: Instant,
    in_hand: InHand,
    stopping: CancellationToken,
}

impl Consumer {
    async fn turn(&mut self) -> Result<()> {
        if Instant::now() >= self.next_refresh {
            self.refresh().await?;
            self.claim_abandoned().await?;
            self.next_refresh = Instant::now() + REFRESH;
            if self.store.held_count().await? >= MAX_HELD {
                eprintln!("{MAX_HELD} events have failed or wait: nothing is read until there are fewer");
            }
        }
        self.read().await?;
        for number in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.advance(number).await?;
        }
        self.retry_held().await
    }

    async fn free_slots(&mut self) -> Result<usize> {
        if self.store.held_count().await? >= MAX_HELD {
            return Ok(0);
        }
        let in_hand = self.partitions.values().map(|partition| partition.hand.len()).sum();
        Ok(SLOTS.saturating_sub(in_hand))
    }

    /// Looks for new generations, and opens their streams.
    async fn refresh(&mut self) -> Result<()> {
        let mut gets = pipe();
        for number in 0..PARTITIONS {
            gets.cmd("GET").arg(format!("vs:{{p{number:02}}}:generation"));
        }
        let generations: Vec<Option<String>> = gets.query_async(&mut self.redis).await?;
        for (number, generation) in (0..).zip(generations) {
            let Some(generation) = generation else { continue };
            let key = format!("vs:{{p{number:02}}}:g{generation}");
            if self.partitions.get(&number).is_none_or(|known| known.key != key) {
                self.open(number, key).await?;
            }
        }
        Ok(())
    }

    async fn open(&mut self, number: u8, key: String) -> Result<()> {
        let (last, event_id) = self.store.position(number).await?;
        let mut create = cmd("XGROUP");
        create.arg("CREATE").arg(&key).arg(&self.settings.group).arg(format!("{last}-0"));
        let created: Result<(), RedisError> = create.query_async(&mut self.redis).await;
        match created {
            Err(error) if error.to_string().contains("requires the key to exist") => return Ok(()), // no event yet
            Err(error) if error.code() != Some("BUSYGROUP") => return Err(error.into()),
            _ => {}
        }
        // A number means another event if the server's database was restored to an earlier time.
        let found = self.get_events(number, (last - 1).max(0), 1).await?;
        if last > 0 && found.get(&last).is_none_or(|event| event.id != event_id) {
            let what = format!("event {last} of partition {number} is another one now");
            bail!(Fatal(format!("{what}: the server's database was restored")));
        }
        let (hand, since) = (BTreeMap::new(), Instant::now());
        let (cursor, claim_from) = ("0".to_owned(), "0-0".to_owned());
        let partition = Partition { number, key, last, cursor, claim_from, is_behind: false, since, hand };
        self.partitions.insert(number, partition);
        Ok(())
    }

    /// A page of events from the server's database, where all history is.
    async fn get_events(&self, partition: u8, after: i64, limit: usize) -> Result<BTreeMap<i64, Event>> {
        let base = self.settings.billing_url.trim_end_matches('/');
        let url = format!("{base}/v1/events?partition={partition}&after_sequence={after}&limit={limit}");
        let response = self.http.get(&url).bearer_auth(&self.settings.billing_token).send().await?;
        let status = response.status();
        let body = response.text().await?;
        if status == StatusCode::GONE {
            let what = format!("partition {partition} has no event {after} any more");
            bail!(Fatal(format!("{what}: the server's database was restored")));
        }
        if status.is_client_error() && !matches!(status.as_u16(), 408 | 429) {
            bail!(Fatal(format!("{url}: {status} {body}")));
        }
        if status != StatusCode::OK {
            bail!("{url}: {status}");
        }
        let page: Value = serde_json::from_str(&body)?;
        let items = page["items"].as_array().context("the page has no items")?;
        let event = |item: &Value| {
            let sequence = item["sequence"].as_str()?.parse().ok()?;
            let (id, workspace_id) = (item["id"].as_str()?.to_owned(), item["workspaceid"].as_str()?.to_owned());
            Some((sequence, Event { partition, sequence, id, workspace_id, text: Some(item.to_string()) }))
        };
        items.iter().map(event).collect::<Option<_>>().with_context(|| format!("{url}: an item is no event"))
    }

    /// Takes entries that others received and did not acknowledge in time, because they have crashed.
    async fn claim_abandoned(&mut self) -> Result<()> {
        let count = self.free_slots().await? / usize::from(PARTITIONS);
        if count == 0 {
            return Ok(());
        }
        let Settings { group, name, idle_limit, .. } = &*self.settings;
        for partition in self.partitions.values_mut() {
            let mut claim = cmd("XAUTOCLAIM");
            claim.arg(&partition.key).arg(group).arg(name).arg(idle_limit.as_millis().to_string());
            claim.arg(&partition.claim_from).arg("COUNT").arg(count);
            let (next, entries, deleted): (String, Vec<Entry>, Vec<String>) =
                claim.query_async(&mut self.redis).await?;
            partition.claim_from = next;
            partition.take(entries);
            partition.take(deleted.into_iter().map(|id| (id, None)).collect());
        }
        self.tell_keeper();
        Ok(())
    }

    async fn read(&mut self) -> Result<()> {
        let (free, wait) = (self.free_slots().await?, self.wait().await?);
        // A partition with entries in hand waits for earlier events, so it is not read.
        let readable = self.partitions.values_mut().filter(|partition| partition.hand.is_empty());
        let mut readable: HashMap<_, _> = readable.take(free).map(|found| (found.key.clone(), found)).collect();
        if readable.is_empty() {
            tokio::select! { () = sleep(wait) => {}, () = self.stopping.cancelled() => {} }
            return Ok(());
        }
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(&self.settings.group).arg(&self.settings.name).arg("COUNT").arg(free / readable.len());
        read.arg("BLOCK").arg(wait.as_millis().max(1).to_string()).arg("STREAMS"); // 0 would be for ever
        let (keys, cursors): (Vec<_>, Vec<_>) = readable.iter().map(|(key, found)| (key, &found.cursor)).unzip();
        read.arg(keys).arg(cursors);
        let answer: Option<Vec<(String, Vec<Entry>)>> = read.query_async(&mut self.reader).await?;
        for (key, entries) in answer.unwrap_or_default() {
            let partition = readable.get_mut(&key).context("an answer about another stream")?;
            if partition.cursor != ">" {
                partition.cursor = entries.last().map_or_else(|| ">".to_owned(), |(id, _)| id.clone());
            }
            partition.take(entries);
        }
        self.tell_keeper();
        Ok(())
    }

    async fn wait(&mut self) -> Result<Duration> {
        if self.partitions.values().any(|partition| partition.is_behind) {
            return Ok(Duration::ZERO);
        }
        if self.partitions.values().any(|partition| !partition.hand.is_empty()) {
            return Ok(GAP_POLL);
        }
        Ok(self.store.next_held().await?.map_or(MAX_WAIT, |held| held.due_in().min(MAX_WAIT)))
    }

    /// Deals with what is in hand as far as no event is missing, and acknowledges it.
    async fn advance(&mut self, number: u8) -> Result<()> {
        let Some(partition) = self.partitions.get_mut(&number) else { return Ok(()) };
        if partition.hand.is_empty() {
            return Ok(());
        }
        let last = self.store.deal_with(number, &partition.hand).await?;
        let done = ids(partition.hand.range(..=last).map(|(number, _)| number));
        if !done.is_empty() {
            let mut ack = cmd("XACK");
            ack.arg(&partition.key).arg(&self.settings.group).arg(done);
            ack.query_async::<()>(&mut self.redis).await?;
        }
        partition.hand = partition.hand.split_off(&(last + 1));
        if last > partition.last {
            (partition.last, partition.since) = (last, Instant::now());
        }
        // Events are missing. Another consumer may be dealing with them; else they have left the stream.
        let is_lost = partition.hand.values().next().is_some_and(|first| first.text.is_none());
        let is_late = partition.since.elapsed() > self.settings.gap_wait;
        partition.is_behind = !partition.hand.is_empty() && (partition.is_behind || is_lost || is_late);
        let is_behind = partition.is_behind;
        self.tell_keeper();
        if is_behind {
            let events = self.get_events(number, last, HTTP_PAGE).await?;
            if events.is_empty() {
                bail!("partition {number}: the server has no event after {last}, but the stream has");
            }
            self.store.deal_with(number, &events).await?;
        }
        Ok(())
    }

    async fn retry_held(&mut self) -> Result<()> {
        for _ in 0..SLOTS {
            let Some(held) = self.store.next_held().await? else { return Ok(()) };
            if !held.due_in().is_zero() || self.stopping.is_cancelled() {
                return Ok(());
            }
            if !self.store.is_exhausted(&held) {
                self.store.retry(&held).await?;
                continue;
            }
            // First the stream, then the table: after a crash between the two the letter is there twice, not never.
            let mut add = cmd("XADD");
            add.arg(format!("vs:{{p{:02}}}:dlq:{}", held.event.partition, self.settings.group));
            add.arg("MAXLEN").arg("~").arg(DEAD_LETTERS).arg("*").arg("event_id").arg(&held.event.id);
            add.arg("workspace_id").arg(&held.event.workspace_id).arg("sequence").arg(held.event.sequence);
            add.arg("error").arg(&held.error).arg("attempts").arg(held.attempts);
            add.arg("consumer").arg(&self.settings.name).arg("event").arg(&held.event.text);
            add.query_async::<()>(&mut self.redis).await?;
            self.store.bury(&held).await?;
            let (id, attempts, error) = (&held.event.id, held.attempts, &held.error);
            eprintln!("event {id} is a dead letter after {attempts} attempts: {error}");
        }
        Ok(())
    }

    fn tell_keeper(&self) {
        let in_hand = self.partitions.values().map(|partition| (partition.key.clone(), ids(partition.hand.keys())));
        *self.in_hand.lock().unwrap_or_else(PoisonError::into_inner) = in_hand.collect();
    }
}

async fn connect(redis_url: &str) -> Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new();
    let config = config.set_connection_timeout(Some(TIMEOUT)).set_response_timeout(Some(TIMEOUT));
    Ok(Client::open(redis_url)?.get_multiplexed_async_connection_with_config(&config).await?)
}

/// Tells Redis that this consumer still works on its entries, so that no other takes them.
async fn keep_own_entries(settings: Arc<Settings>, in_hand: InHand) {
    loop {
        sleep(settings.idle_limit / 3).await;
        let in_hand = in_hand.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let keep = async {
            let mut redis = connect(&settings.redis_url).await?;
            for (key, ids) in in_hand.iter().filter(|(_, ids)| !ids.is_empty()) {
                let mut claim = cmd("XCLAIM");
                claim.arg(key).arg(&settings.group).arg(&settings.name).arg(0).arg(ids).arg("JUSTID");
                claim.query_async::<()>(&mut redis).await?;
            }
            anyhow::Ok(())
        };
        if let Err(error) = keep.await {
            eprintln!("cannot keep its entries: {error:#}");
        }
    }
}

/// Consumes until it is stopped or something fails.
async fn consume(settings: &Arc<Settings>, stopping: &CancellationToken, backoff: &mut Duration) -> Result<()> {
    let in_hand = Arc::default();
    let mut consumer = Consumer {
        store: open_store(settings).await?,
        http: reqwest::Client::builder().timeout(TIMEOUT).build()?,
        reader: connect(&settings.redis_url).await?,
        redis: connect(&settings.redis_url).await?,
        settings: Arc::clone(settings),
        partitions: BTreeMap::new(),
        next_refresh: Instant::now(),
        in_hand: Arc::clone(&in_hand),
        stopping: stopping.clone(),
    };
    let keeper =
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(keep_own_entries(Arc::clone(settings), in_hand)));
    while !stopping.is_cancelled() {
        consumer.turn().await?;
        *backoff = MIN_BACKOFF;
    }
    drop(keeper);
    Ok(())
}

async fn open_store(settings: &Settings) -> Result<Store> {
    let (delays, fail) = (settings.retry_delays.clone(), settings.fail_feature.clone());
    Store::open(&settings.database, TIMEOUT, delays, fail).await
}

/// Consumes until SIGTERM or SIGINT.
async fn run(settings: Settings) -> Result<()> {
    let settings = Arc::new(settings);
    if let Some(Command::Replay) = settings.command {
        println!("{} dead letters are tried again", open_store(&settings).await?.replay().await?);
        return Ok(());
    }
    if settings.billing_token.is_empty() {
        bail!("BILLING_TOKEN is not set: a token for all workspaces with the scope events:read");
    }
    let stopping = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = stopping.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        stop.cancel();
    });
    let mut backoff = MIN_BACKOFF;
    while !stopping.is_cancelled() {
        // After an error as after a restart: what was in hand is pending, and is read again.
        let Err(error) = consume(&settings, &stopping, &mut backoff).await else { break };
        if error.is::<Fatal>() {
            return Err(error);
        }
        eprintln!("tries again in {backoff:?}: {error:#}");
        tokio::select! { () = sleep(backoff) => {}, () = stopping.cancelled() => {} }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = run(Settings::parse()).await else { return ExitCode::SUCCESS };
    eprintln!("consumer: {error:#}");
    ExitCode::FAILURE
}
