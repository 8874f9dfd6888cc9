//! `visionscope verify`: checks the invariants of the database.

use clap::Args;

use super::outcome::Outcome;
use crate::app::open_existing_store;
use crate::config::Config;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// How many violations of one invariant to list.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Outcome {
    let store = open_existing_store(config).await?;
    let findings = store.audit(arguments.limit).await?;
    store.close().await;
    for finding in &findings {
        let workspace = finding.workspace_id.map(|id| format!(" workspace {id}")).unwrap_or_default();
        let row = finding.row_id.map(|id| format!(" row {id}")).unwrap_or_default();
        println!("{}{workspace}{row}: {}", finding.invariant, finding.detail);
    }
    match findings.len() {
        0 => println!("Every invariant holds."),
        violations => println!("{violations} violations found."),
    }
    Ok(findings.is_empty())
}
