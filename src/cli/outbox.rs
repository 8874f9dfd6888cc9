//! `visionscope outbox`: the state of publishing, and repairs of the streams.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::outcome::Outcome;
use crate::app::{event_source, open_existing_store, open_stream};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::domain::ids::{PARTITIONS, Partition};
use crate::outbox::{rebuild, status, verify};
use crate::store::{Outbox, Store};
use crate::stream::EventStream;

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Shows the events, the published events, the floor, the publisher and the consumer groups of each partition.
    Status,
    /// Compares every entry of the streams with the outbox.
    Verify(Selection),
    /// Starts new, empty streams and fills them from the outbox, from the floor on.
    Rebuild {
        #[command(flatten)]
        selection: Selection,
        /// How long to wait until they are filled. Publishers continue afterwards.
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        wait_s: u64,
    },
}

#[derive(Args, Debug)]
pub(super) struct Selection {
    /// One partition; without it, all.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..i64::from(PARTITIONS)))]
    partition: Option<u8>,
}

impl Selection {
    fn partitions(&self) -> Vec<Partition> {
        match self.partition {
            Some(number) => Partition::new(number).into_iter().collect(),
            None => Partition::all().collect(),
        }
    }
}

pub(super) async fn run(config: &Config, action: &Action) -> Outcome {
    let store: Arc<dyn Store> = open_existing_store(config).await?;
    let outcome = run_on(config, &store, action).await;
    store.close().await;
    outcome
}

async fn run_on(config: &Config, store: &Arc<dyn Store>, action: &Action) -> Outcome {
    let source = event_source(config, &**store).await?;
    let stream = open_stream(config, &source)?;
    let Some(stream) = stream else {
        return match action {
            Action::Status => print_unpublished(&**store).await,
            Action::Verify(_) | Action::Rebuild { .. } => bail!("redis.url is not set: there are no streams"),
        };
    };
    match action {
        Action::Status => print_status(&**store, &*stream).await,
        Action::Verify(selection) => print_verdict(&**store, &*stream, &selection.partitions()).await,
        Action::Rebuild { selection, wait_s } => {
            let outbox: Arc<dyn Outbox> = Arc::clone(store) as Arc<dyn Store>;
            let within = Duration::from_secs(*wait_s);
            print_rebuild(outbox, stream, &selection.partitions(), within).await
        }
    }
}

/// Without Redis, the events wait in the outbox, and that is no error.
async fn print_unpublished(outbox: &dyn Outbox) -> Outcome {
    let heads = outbox.heads().await.context("the status cannot be read")?;
    let events: i64 = heads.iter().map(|head| head.seq).sum();
    println!(
        "redis.url is not set, so nothing is published. The outbox has {events} events; GET /v1/events reads them."
    );
    Ok(true)
}

async fn print_status(outbox: &dyn Outbox, stream: &dyn EventStream) -> Outcome {
    let report = status(outbox, stream).await.context("the status cannot be read")?;
    println!(
        "{:<26} {:>10} {:>10} {:>10} {:>10} {:>8}  publisher",
        "stream", "outbox", "published", "floor", "in redis", "waiting"
    );
    for line in &report.partitions {
        let unknown = if report.stream_error.is_some() { "?" } else { "0" };
        let in_stream = line.stream_seq.map_or_else(|| unknown.to_owned(), |seq| seq.to_string());
        let publisher = line.publisher.as_deref().unwrap_or("-");
        let diverged = line.diverged_seq.map(|seq| format!("  DIVERGED at {seq}")).unwrap_or_default();
        println!(
            "{:<26} {:>10} {:>10} {:>10} {in_stream:>10} {:>8}  {publisher}{diverged}",
            line.stream, line.seq, line.published_seq, line.floor_seq, line.waiting
        );
        for group in &line.groups {
            let behind = if group.is_behind_floor { "  behind the floor: catch up over HTTP" } else { "" };
            println!("  group {:?}: delivered {}, lag {}{behind}", group.name, group.delivered_seq, group.lag);
        }
    }
    if let Some(error) = &report.stream_error {
        println!("Redis cannot be read: {error}");
    }
    Ok(report.is_up_to_date())
}

async fn print_verdict(outbox: &dyn Outbox, stream: &dyn EventStream, partitions: &[Partition]) -> Outcome {
    let report = verify(outbox, stream, partitions).await.context("the streams cannot be compared")?;
    for verdict in &report.partitions {
        println!(
            "partition {:>2} generation {}: {} entries, {} waiting, {} differences",
            verdict.partition.number(),
            verdict.generation,
            verdict.entries,
            verdict.waiting,
            verdict.differences
        );
        for finding in &verdict.findings {
            let entry = finding.entry.as_deref().unwrap_or("-");
            println!(
                "  {:?} seq {}..={} entry {entry} event {}",
                finding.kind, finding.seq, finding.seq_to, finding.event_id
            );
        }
    }
    println!(
        "{}",
        if report.is_equal() { "The streams match the outbox." } else { "The streams differ from the outbox." }
    );
    Ok(report.is_equal())
}

async fn print_rebuild(
    outbox: Arc<dyn Outbox>,
    stream: Arc<dyn EventStream>,
    partitions: &[Partition],
    within: Duration,
) -> Outcome {
    let report = rebuild(outbox, stream, Arc::new(SystemClock), partitions, within).await?;
    for rebuilt in &report.partitions {
        println!(
            "{}: published to {} of {}, from the floor {} on; the old stream {} can be deleted once no consumer reads it",
            rebuilt.stream, rebuilt.published_seq, rebuilt.target_seq, rebuilt.floor_seq, rebuilt.old_stream
        );
    }
    if !report.is_done() {
        println!("Not done yet. The publishers continue; see `visionscope outbox status`.");
    }
    Ok(report.is_done())
}
