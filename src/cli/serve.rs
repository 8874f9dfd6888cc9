//! `visionscope serve`, `migrate` and `healthcheck`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::outcome::Outcome;
use crate::app::{App, Purpose, event_source, open_store};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;

/// A server that does not answer within this time is not alive.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn run(config: &Config) -> Outcome {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let app = App::start(config).await?;
    match &app.demo {
        Some(demo) => println!("{demo}"),
        None => println!("VisionScope Billing listens on http://{}", app.address),
    }
    if let Some(address) = app.ops_address {
        println!("Probes and metrics are on http://{address}");
    }
    let stopped_by_signal = app.run_until(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    Ok(stopped_by_signal.await)
}

pub(super) async fn migrate(config: &Config) -> Outcome {
    let plans = config.read_plans()?;
    let store = open_store(config, Purpose::Command).await?;
    store.migrate().await?;
    event_source(config, &*store).await?;
    store.put_plans(&plans, SystemClock.now()).await?;
    store.close().await;
    println!("The database is up to date; {} plans are stored.", plans.len());
    Ok(true)
}

pub(super) async fn healthcheck(config: &Config, url: Option<String>) -> Outcome {
    let url =
        url.unwrap_or_else(|| format!("http://{}", reachable(config.server.ops_bind.unwrap_or(config.server.bind))));
    let client = reqwest::Client::builder().timeout(HEALTH_TIMEOUT).build()?;
    let response = client.get(format!("{url}/livez")).send().await.context("the server does not answer")?;
    println!("{}", response.status());
    Ok(response.status().is_success())
}

/// Where a server that listens on all addresses is reached from this machine.
pub(super) fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = if bind.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { bind.ip() };
    SocketAddr::new(ip, bind.port())
}
