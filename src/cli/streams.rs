//! `visionscope streams`: how far the running server and its replicas are with publishing.

use clap::Args;
use serde::Deserialize;

use super::outcome::Outcome;
use super::remote::Remote;
use super::table::{Table, printable};
use crate::config::Config;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    remote: Remote,
}

#[derive(Deserialize)]
struct ListAnswer {
    items: Vec<StreamAnswer>,
}

/// A partition, as the server shows it.
#[derive(Deserialize)]
struct StreamAnswer {
    partition: u8,
    generation: i32,
    head: String,
    published: String,
    floor: String,
    diverged_sequence: Option<String>,
    lag_events: i64,
    lag_seconds: u64,
    owner: Option<String>,
    leased_until: Option<String>,
}

/// Is false if a partition has diverged.
pub(super) async fn run(config: &Config, arguments: &Arguments) -> Outcome {
    let list = arguments.remote.client(config)?.get::<ListAnswer>(&["streams"], &[]).await?;
    let has_diverged = list.value.items.iter().any(|stream| stream.diverged_sequence.is_some());
    if arguments.remote.json {
        println!("{}", list.text);
    } else {
        print_all(list.value.items);
    }
    Ok(!has_diverged)
}

fn print_all(streams: Vec<StreamAnswer>) {
    let head =
        ["partition", "generation", "head", "published", "floor", "lag (events)", "lag (s)", "owner", "leased until"];
    let mut table = Table::new(head);
    let mut diverged = Vec::new();
    for stream in streams {
        let partition = stream.partition;
        diverged.extend(stream.diverged_sequence.map(|sequence| (partition, sequence)));
        table.add([
            partition.to_string(),
            stream.generation.to_string(),
            without_zeros(&stream.head),
            without_zeros(&stream.published),
            without_zeros(&stream.floor),
            stream.lag_events.to_string(),
            stream.lag_seconds.to_string(),
            stream.owner.unwrap_or_else(|| "-".to_owned()),
            stream.leased_until.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    println!("{table}");
    for (partition, sequence) in diverged {
        println!("partition {partition} has DIVERGED at {}", printable(&without_zeros(&sequence)));
    }
}

/// A sequence as a number.
fn without_zeros(sequence: &str) -> String {
    match sequence.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    }
}
