//! `visionscope dead-letters`: what failed for good in the running server, events that a consumer could not take and jobs.

use std::time::Duration;

use anyhow::Context;
use clap::{ArgGroup, Args, Subcommand};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::consumers::consumer_named;
use super::outcome::Outcome;
use super::remote::{Answer, CallError, Client, Remote};
use super::table::{Table, printable};
use crate::config::Config;
use crate::domain::consumers::Consumer;
use crate::domain::dead_letter::LetterState;
use crate::domain::text::QueueName;

/// How often the progress of a replay is read.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    list: List,
    #[command(flatten)]
    remote: Remote,
}

/// Which letters are listed, the one that failed last first.
#[derive(Args, Debug)]
struct List {
    /// Only letters in this state: open, replaying, resolved or discarded.
    #[arg(long, value_parser = state_named, default_value = "open")]
    state: LetterState,
    #[command(flatten)]
    filter: Filter,
    /// Maximum number of letters.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Continues a list that had more letters.
    #[arg(long)]
    cursor: Option<String>,
}

#[derive(Args, Debug)]
struct Filter {
    /// Only letters of this consumer.
    #[arg(long, value_parser = consumer_named)]
    consumer: Option<Consumer>,
    /// Only letters of jobs of this queue.
    #[arg(long, value_parser = QueueName::new, conflicts_with = "consumer")]
    queue: Option<QueueName>,
    /// Only letters with this cause.
    #[arg(long)]
    fingerprint: Option<String>,
    /// Only letters of this workspace.
    #[arg(long)]
    workspace: Option<Uuid>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Tries up to 1,000 open letters again, and waits until all were tried.
    Replay(Replay),
    /// Shows how far a replay is.
    Progress { replay_id: Uuid },
    /// Gives the event of an open letter up, for ever: it is in no figure of that consumer.
    Discard {
        dead_letter_id: Uuid,
        /// Why. It is kept with what was done.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("which").args(["ids", "consumer", "queue", "fingerprint", "workspace"]).required(true).multiple(true))]
struct Replay {
    /// This letter. May be given several times.
    #[arg(long = "id", conflicts_with_all = ["consumer", "queue", "fingerprint", "workspace"])]
    ids: Vec<Uuid>,
    #[command(flatten)]
    filter: Filter,
    /// Changes nothing: tries the first 100 letters, and shows which would fail again.
    #[arg(long)]
    dry_run: bool,
    /// How many letters are tried in a second.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    per_second: u32,
    /// Why. It is kept with what was done.
    #[arg(long)]
    reason: String,
    /// How long to wait, in seconds. The replay continues afterwards.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait_s: u64,
    /// Does not wait.
    #[arg(long, conflicts_with_all = ["dry_run", "wait_s"])]
    no_wait: bool,
}

fn state_named(text: &str) -> Result<LetterState, String> {
    let names = || LetterState::ALL.map(LetterState::as_str).join(", ");
    LetterState::from_stored(text).ok_or_else(|| format!("is not one of {}", names()))
}

#[derive(Deserialize)]
struct PageAnswer {
    items: Vec<LetterAnswer>,
    next: Option<String>,
    groups: Vec<GroupAnswer>,
}

#[derive(Deserialize)]
struct LetterAnswer {
    dead_letter_id: String,
    source: String,
    name: String,
    kind: String,
    workspace_id: Option<String>,
    fingerprint: String,
    error: String,
    attempts: i32,
    last_failed_at: String,
    state: String,
}

#[derive(Deserialize)]
struct GroupAnswer {
    fingerprint: String,
    source: String,
    name: String,
    kind: String,
    sample: String,
    count: i64,
    last_failed_at: String,
}

#[derive(Deserialize)]
struct ReplayAnswer {
    replay_id: String,
    matched: u64,
    has_more: bool,
    waiting: i64,
    resolved: i64,
    failed: i64,
    discarded: i64,
}

#[derive(Deserialize)]
struct TrialAnswer {
    matched: u64,
    has_more: bool,
    tried: u64,
    failing: Vec<FailureAnswer>,
}

#[derive(Deserialize)]
struct FailureAnswer {
    dead_letter_id: String,
    error: String,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Outcome {
    let (client, is_json) = (arguments.remote.client(config)?, arguments.remote.json);
    match &arguments.action {
        None => list(&client, &arguments.list, is_json).await,
        Some(Action::Replay(replay)) if replay.dry_run => dry_run(&client, replay, is_json).await,
        Some(Action::Replay(wanted)) => replay(&client, wanted, is_json).await,
        Some(Action::Progress { replay_id }) => {
            let replay = progress(&client, &replay_id.to_string()).await?;
            Ok(print_replay(&replay, is_json))
        }
        Some(Action::Discard { dead_letter_id, reason }) => {
            let path = ["dead-letters", &dead_letter_id.to_string(), "discard"];
            let letter = client.post::<LetterAnswer>(&path, &json!({"reason": reason})).await?;
            if is_json {
                println!("{}", letter.text);
            } else {
                print_letters(&[letter.value]);
            }
            Ok(true)
        }
    }
}

async fn list(client: &Client<'_>, list: &List, is_json: bool) -> Outcome {
    let List { state, filter, limit, cursor } = list;
    let mut query = vec![("state", state.as_str().to_owned()), ("limit", limit.to_string())];
    query.extend(filter.parameters());
    query.extend(cursor.clone().map(|cursor| ("cursor", cursor)));
    let page = client.get::<PageAnswer>(&["dead-letters"], &query).await?;
    if is_json {
        println!("{}", page.text);
        return Ok(true);
    }
    let PageAnswer { items, next, groups } = page.value;
    if items.is_empty() {
        println!("No such dead letter is {}.", state.as_str());
    } else {
        print_letters(&items);
    }
    if let Some(next) = next {
        println!("There are more: repeat this with --cursor {}", printable(&next));
    }
    if !groups.is_empty() {
        println!("\nAll that are {}, by their cause:", state.as_str());
        print_groups(groups);
    }
    Ok(true)
}

fn print_letters(letters: &[LetterAnswer]) {
    let head = ["dead letter", "state", "of", "workspace", "kind", "fingerprint", "attempts", "failed at", "error"];
    let mut table = Table::new(head);
    for letter in letters {
        table.add([
            letter.dead_letter_id.clone(),
            letter.state.clone(),
            format!("{} {}", letter.source, letter.name),
            letter.workspace_id.clone().unwrap_or_default(),
            letter.kind.clone(),
            letter.fingerprint.clone(),
            letter.attempts.to_string(),
            letter.last_failed_at.clone(),
            letter.error.clone(),
        ]);
    }
    println!("{table}");
}

fn print_groups(groups: Vec<GroupAnswer>) {
    let mut table = Table::new(["letters", "fingerprint", "of", "kind", "failed at", "one of the errors"]);
    for group in groups {
        let GroupAnswer { fingerprint, source, name, kind, sample, count, last_failed_at } = group;
        table.add([count.to_string(), fingerprint, format!("{source} {name}"), kind, last_failed_at, sample]);
    }
    println!("{table}");
}

impl Filter {
    /// As the server names them.
    fn parameters(&self) -> Vec<(&'static str, String)> {
        let of_consumer = self.consumer.map(|consumer| ("consumer", consumer.as_str()));
        let of_queue = self.queue.as_ref().map(|queue| ("job", queue.as_str()));
        let mut parameters = Vec::new();
        if let Some((source, name)) = of_consumer.or(of_queue) {
            parameters.extend([("source", source.to_owned()), ("name", name.to_owned())]);
        }
        parameters.extend(self.fingerprint.clone().map(|fingerprint| ("fingerprint", fingerprint)));
        parameters.extend(self.workspace.map(|workspace| ("workspace_id", workspace.to_string())));
        parameters
    }
}

impl Replay {
    fn body(&self) -> serde_json::Value {
        let mut body = json!({"dry_run": self.dry_run, "per_second": self.per_second, "reason": self.reason});
        if !self.ids.is_empty() {
            body["dead_letter_ids"] = json!(self.ids);
        }
        for (name, value) in self.filter.parameters() {
            body[name] = json!(value);
        }
        body
    }
}

const REPLAY_PATH: [&str; 2] = ["dead-letters", "replay"];

/// Is false if a letter would fail again.
async fn dry_run(client: &Client<'_>, wanted: &Replay, is_json: bool) -> Outcome {
    let Answer { text, value } = client.post::<TrialAnswer>(&REPLAY_PATH, &wanted.body()).await?;
    let TrialAnswer { matched, has_more, tried, failing } = value;
    let would_all_pass = failing.is_empty();
    if is_json {
        println!("{text}");
        return Ok(would_all_pass);
    }
    println!("{matched} letters match. Nothing was changed.");
    println!(
        "{tried} of consumers were tried, and {} would fail again. Letters of jobs cannot be tried.",
        failing.len()
    );
    print_has_more(has_more);
    if !would_all_pass {
        let mut table = Table::new(["dead letter", "error"]);
        for FailureAnswer { dead_letter_id, error } in failing {
            table.add([dead_letter_id, error]);
        }
        println!("{table}");
    }
    Ok(would_all_pass)
}

/// Is false if a letter has failed again, or was not tried in time.
async fn replay(client: &Client<'_>, wanted: &Replay, is_json: bool) -> Outcome {
    let begun = client.post::<ReplayAnswer>(&REPLAY_PATH, &wanted.body()).await?;
    if wanted.no_wait {
        print_replay(&begun, is_json);
        return Ok(true);
    }
    let until = Instant::now() + Duration::from_secs(wanted.wait_s);
    let replay = wait(client, begun, until).await?;
    Ok(print_replay(&replay, is_json))
}

/// The replay when no letter waits, or as it is then. A server that is away for a moment does not end the wait.
async fn wait(
    client: &Client<'_>,
    begun: Answer<ReplayAnswer>,
    until: Instant,
) -> anyhow::Result<Answer<ReplayAnswer>> {
    let mut last = begun;
    while last.value.waiting > 0 && Instant::now() < until {
        sleep(PROGRESS_INTERVAL.min(until.saturating_duration_since(Instant::now()))).await;
        match progress(client, &last.value.replay_id).await {
            Ok(now) => {
                if now.value.waiting != last.value.waiting {
                    eprintln!("{} of {} letters wait", now.value.waiting, now.value.matched);
                }
                last = now;
            }
            Err(error) if error.is_transient() => eprintln!("{:#}", anyhow::Error::from(error)),
            Err(error) => return Err(error).with_context(|| format!("the replay {} continues", last.value.replay_id)),
        }
    }
    Ok(last)
}

async fn progress(client: &Client<'_>, replay_id: &str) -> Result<Answer<ReplayAnswer>, CallError> {
    client.get(&["replays", replay_id], &[]).await
}

/// Whether every letter was tried and taken.
fn print_replay(replay: &Answer<ReplayAnswer>, is_json: bool) -> bool {
    let ReplayAnswer { replay_id, matched, has_more, waiting, resolved, failed, discarded } = &replay.value;
    if is_json {
        println!("{}", replay.text);
    } else {
        println!(
            "Replay {}: {matched} letters, {resolved} resolved, {failed} failed again, {discarded} discarded, {waiting} waiting",
            printable(replay_id)
        );
        if *waiting > 0 {
            println!("A consumer that does not run tries its letters when it is resumed, and a job runs in its turn.");
        }
        print_has_more(*has_more);
    }
    *waiting == 0 && *failed == 0
}

fn print_has_more(has_more: bool) {
    if has_more {
        println!("More letters match than one replay may have.");
    }
}
