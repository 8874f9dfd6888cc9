//! `visionscope queues`, `jobs`, `workers` and `schedules`: work that waits in the running server, and who does it.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

use super::outcome::Outcome;
use super::remote::{Answer, Remote};
use super::table::Table;
use crate::config::Config;
use crate::domain::jobs::SystemSchedule;
use crate::domain::text::QueueName;

#[derive(Args, Debug)]
pub(super) struct Queues {
    #[command(subcommand)]
    action: Option<QueueAction>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum QueueAction {
    /// Lets no job of a queue be taken. Those that run go on.
    Pause(OnQueue),
    /// Lets jobs of a queue be taken again.
    Resume(OnQueue),
}

#[derive(Args, Debug)]
struct OnQueue {
    #[arg(value_parser = QueueName::new)]
    queue: QueueName,
    /// Why. It is kept with what was done.
    #[arg(long)]
    reason: String,
}

#[derive(Args, Debug)]
pub(super) struct Jobs {
    #[command(subcommand)]
    action: JobAction,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum JobAction {
    /// Lists the next jobs of a queue, in the order in which they are taken.
    List {
        #[arg(value_parser = QueueName::new)]
        queue: QueueName,
        /// The jobs that workers have, instead.
        #[arg(long)]
        running: bool,
        /// Maximum number of jobs.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
        limit: u32,
    },
    /// Shows a job with its arguments, its result and its attempts, as JSON.
    Get { job_id: Uuid },
    /// Ends a job that no worker has, or asks its worker to stop.
    Cancel {
        job_id: Uuid,
        /// Why. It is kept with what was done.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Args, Debug)]
pub(super) struct Workers {
    #[command(subcommand)]
    action: Option<WorkerAction>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum WorkerAction {
    /// Lets a worker end when it has done the jobs that it has.
    Drain(OnWorker),
    /// Lets a worker take jobs again.
    Resume(OnWorker),
}

#[derive(Args, Debug)]
struct OnWorker {
    worker_id: Uuid,
    /// Why. It is kept with what was done.
    #[arg(long)]
    reason: String,
}

#[derive(Args, Debug)]
pub(super) struct Schedules {
    #[command(subcommand)]
    action: Option<ScheduleAction>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum ScheduleAction {
    /// Lets a schedule not fire.
    Pause(OnSchedule),
    /// Lets a schedule fire again.
    Resume(OnSchedule),
    /// Lets a schedule fire now.
    Run(OnSchedule),
}

#[derive(Args, Debug)]
struct OnSchedule {
    #[arg(value_parser = schedule_named)]
    schedule: SystemSchedule,
    /// Why. It is kept with what was done.
    #[arg(long)]
    reason: String,
}

fn schedule_named(text: &str) -> Result<SystemSchedule, String> {
    let names = || SystemSchedule::ALL.map(SystemSchedule::as_str).join(", ");
    SystemSchedule::ALL
        .into_iter()
        .find(|known| known.as_str() == text)
        .ok_or_else(|| format!("is not one of {}", names()))
}

/// What is at that place of a row, as a text; `-` if nothing is.
fn text_at(row: &Value, pointer: &str) -> String {
    match row.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            items.iter().map(|item| item.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ")
        }
        Some(other) => other.to_string(),
    }
}

/// Prints rows as a table: each column has a head and a place.
fn print_rows<const N: usize>(columns: [(&str, &str); N], rows: &[Value]) {
    let mut table = Table::new(columns.map(|(head, _)| head));
    for row in rows {
        table.add(columns.map(|(_, pointer)| text_at(row, pointer)));
    }
    println!("{table}");
}

const QUEUE_COLUMNS: [(&str, &str); 8] = [
    ("queue", "/queue"),
    ("paused", "/settings/is_paused"),
    ("running", "/running"),
    ("due", "/due"),
    ("oldest (s)", "/oldest_due_s"),
    ("weight", "/settings/weight"),
    ("most", "/settings/max_running"),
    ("of a workspace", "/settings/max_running_per_workspace"),
];
const JOB_COLUMNS: [(&str, &str); 6] = [
    ("job", "/job_id"),
    ("kind", "/kind"),
    ("workspace", "/workspace_id"),
    ("state", "/state"),
    ("attempt", "/attempt"),
    ("run at", "/run_at"),
];
const WORKER_COLUMNS: [(&str, &str); 8] = [
    ("worker", "/worker_id"),
    ("name", "/name"),
    ("state", "/state"),
    ("running", "/running"),
    ("slots", "/slots"),
    ("queues", "/queues"),
    ("version", "/version"),
    ("seen at", "/seen_at"),
];
const SCHEDULE_COLUMNS: [(&str, &str); 5] = [
    ("schedule", "/schedule"),
    ("every (s)", "/interval_s"),
    ("paused", "/is_paused"),
    ("next at", "/next_at"),
    ("fired at", "/fired_at"),
];

/// Prints an answer as it is, or as a table.
fn print<const N: usize>(is_json: bool, answer: &Answer<Value>, columns: [(&str, &str); N]) {
    if is_json {
        println!("{}", answer.text);
        return;
    }
    let rows = answer.value.get("items").and_then(Value::as_array);
    print_rows(columns, rows.map_or(std::slice::from_ref(&answer.value), Vec::as_slice));
}

pub(super) async fn queues(config: &Config, arguments: &Queues) -> Outcome {
    let client = arguments.remote.client(config)?;
    let (on, is_paused) = match &arguments.action {
        None => {
            print(arguments.remote.json, &client.get(&["queues"], &[]).await?, QUEUE_COLUMNS);
            return Ok(true);
        }
        Some(QueueAction::Pause(on)) => (on, true),
        Some(QueueAction::Resume(on)) => (on, false),
    };
    let body = json!({"is_paused": is_paused, "reason": on.reason});
    print(arguments.remote.json, &client.patch(&["queues", on.queue.as_str()], &body).await?, QUEUE_COLUMNS);
    Ok(true)
}

pub(super) async fn jobs(config: &Config, arguments: &Jobs) -> Outcome {
    let (client, is_json) = (arguments.remote.client(config)?, arguments.remote.json);
    match &arguments.action {
        JobAction::List { queue, running, limit } => {
            let state = if *running { "running" } else { "ready" };
            let of = [("queue", queue.to_string()), ("state", state.to_owned()), ("limit", limit.to_string())];
            print(is_json, &client.get(&["jobs"], &of).await?, JOB_COLUMNS);
        }
        JobAction::Get { job_id } => {
            let job = client.get::<Value>(&["jobs", &job_id.to_string()], &[]).await?;
            println!("{}", if is_json { job.text } else { serde_json::to_string_pretty(&job.value)? });
        }
        JobAction::Cancel { job_id, reason } => {
            let path = ["jobs", &job_id.to_string(), "cancel"];
            print(is_json, &client.post(&path, &json!({"reason": reason})).await?, JOB_COLUMNS);
        }
    }
    Ok(true)
}

pub(super) async fn workers(config: &Config, arguments: &Workers) -> Outcome {
    let client = arguments.remote.client(config)?;
    let (verb, on) = match &arguments.action {
        None => {
            print(arguments.remote.json, &client.get(&["workers"], &[]).await?, WORKER_COLUMNS);
            return Ok(true);
        }
        Some(WorkerAction::Drain(on)) => ("drain", on),
        Some(WorkerAction::Resume(on)) => ("resume", on),
    };
    let path = ["workers", &on.worker_id.to_string(), verb];
    print(arguments.remote.json, &client.post(&path, &json!({"reason": on.reason})).await?, WORKER_COLUMNS);
    Ok(true)
}

pub(super) async fn schedules(config: &Config, arguments: &Schedules) -> Outcome {
    let client = arguments.remote.client(config)?;
    let (verb, on) = match &arguments.action {
        None => {
            print(arguments.remote.json, &client.get(&["schedules"], &[]).await?, SCHEDULE_COLUMNS);
            return Ok(true);
        }
        Some(ScheduleAction::Pause(on)) => ("pause", on),
        Some(ScheduleAction::Resume(on)) => ("resume", on),
        Some(ScheduleAction::Run(on)) => ("run", on),
    };
    let path = ["schedules", on.schedule.as_str(), verb];
    print(arguments.remote.json, &client.post(&path, &json!({"reason": on.reason})).await?, SCHEDULE_COLUMNS);
    Ok(true)
}
