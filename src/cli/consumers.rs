//! `visionscope consumers`: what makes figures of the events inside the running server.

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;

use super::outcome::Outcome;
use super::remote::Remote;
use super::table::{Table, printable};
use crate::config::Config;
use crate::domain::consumers::Consumer;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lets a consumer stand still. Its figures stay as they are.
    Pause(Change),
    /// Lets a consumer go on, also after it was tripped.
    Resume(Change),
    /// Makes all figures of a consumer again from the first event, beside the old ones.
    Rebuild(Change),
}

#[derive(Args, Debug)]
struct Change {
    #[arg(value_parser = consumer_named)]
    consumer: Consumer,
    /// Why. It is kept with what was done.
    #[arg(long)]
    reason: String,
}

/// The value of an argument that names a consumer.
pub(super) fn consumer_named(text: &str) -> Result<Consumer, String> {
    let names = || Consumer::ALL.map(Consumer::as_str).join(", ");
    Consumer::from_stored(text).ok_or_else(|| format!("is not one of {}", names()))
}

/// A consumer, as the server shows it.
#[derive(Deserialize)]
struct ConsumerAnswer {
    consumer: String,
    state: String,
    reason: Option<String>,
    changed_by: Option<String>,
    version: i32,
    building: Option<BuildAnswer>,
    lag_events: i64,
    lag_seconds: u64,
    parked_workspaces: i64,
    partitions: Vec<PartitionAnswer>,
}

#[derive(Deserialize)]
struct BuildAnswer {
    version: i32,
    lag_events: i64,
}

#[derive(Deserialize)]
struct PartitionAnswer {
    partition: u8,
    waiting_for: Option<String>,
}

#[derive(Deserialize)]
struct ListAnswer {
    items: Vec<ConsumerAnswer>,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Outcome {
    let (client, is_json) = (arguments.remote.client(config)?, arguments.remote.json);
    let (verb, change) = match &arguments.action {
        None => {
            let list = client.get::<ListAnswer>(&["consumers"], &[]).await?;
            if is_json {
                println!("{}", list.text);
            } else {
                print_all(&list.value.items);
            }
            return Ok(list.value.items.iter().all(|consumer| consumer.state != "tripped"));
        }
        Some(Action::Pause(change)) => ("pause", change),
        Some(Action::Resume(change)) => ("resume", change),
        Some(Action::Rebuild(change)) => ("rebuild", change),
    };
    let path = ["consumers", change.consumer.as_str(), verb];
    let changed = client.post::<ConsumerAnswer>(&path, &json!({"reason": change.reason})).await?;
    if is_json {
        println!("{}", changed.text);
    } else {
        print_all(&[changed.value]);
    }
    Ok(true)
}

fn print_all(consumers: &[ConsumerAnswer]) {
    let mut table =
        Table::new(["consumer", "state", "version", "building", "lag (events)", "lag (s)", "parked workspaces"]);
    for consumer in consumers {
        let building = consumer.building.as_ref();
        table.add([
            consumer.consumer.clone(),
            consumer.state.clone(),
            consumer.version.to_string(),
            building.map_or_else(|| "-".to_owned(), |build| format!("{}, {} to go", build.version, build.lag_events)),
            consumer.lag_events.to_string(),
            consumer.lag_seconds.to_string(),
            consumer.parked_workspaces.to_string(),
        ]);
    }
    println!("{table}");
    for consumer in consumers {
        let ConsumerAnswer { consumer: name, state, reason, changed_by, partitions, .. } = consumer;
        if let Some(reason) = reason.as_ref().filter(|_| state != "running") {
            let by = changed_by.as_deref().unwrap_or("-");
            println!("{}", printable(&format!("{name} is {state} by {by}: {reason}")));
        }
        for PartitionAnswer { partition, waiting_for } in partitions {
            if let Some(event) = waiting_for {
                println!(
                    "{}",
                    printable(&format!(
                        "{name} waits in partition {partition} for a newer version of the server, which knows {event}"
                    ))
                );
            }
        }
    }
}
