//! `visionscope token`: a bearer token for development and tests.

use anyhow::{Context, bail};
use clap::Args;

use super::outcome::Outcome;
use crate::app::signing_key;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::domain::ids::WorkspaceId;
use crate::http::auth::{MintRequest, Scope, Tenancy, mint};

/// The longest validity of a development token.
const MAX_VALID_FOR_S: i64 = 366 * 24 * 3600;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The workspace that the token is for, or `*` for all.
    #[arg(long)]
    workspace: String,
    /// The scopes of the token, separated by commas. Default: all.
    #[arg(long, value_delimiter = ',')]
    scopes: Vec<String>,
    /// The subject of the token.
    #[arg(long, default_value = "developer")]
    subject: String,
    /// How long the token is valid, in seconds.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(i64).range(1..=MAX_VALID_FOR_S))]
    valid_for_s: i64,
}

pub(super) fn run(config: &Config, arguments: &Arguments) -> Outcome {
    let tenancy = match arguments.workspace.as_str() {
        "*" => Tenancy::All,
        id => Tenancy::One(WorkspaceId(id.parse().context("--workspace is neither a UUID nor *")?)),
    };
    let mut scopes = Vec::new();
    for word in &arguments.scopes {
        match Scope::ALL.iter().find(|scope| scope.as_str() == word) {
            Some(scope) => scopes.push(*scope),
            None => bail!("--scopes: {word} is not one of {}", words(Scope::ALL)),
        }
    }
    let request = MintRequest {
        issuer: &config.auth.issuer,
        audience: &config.auth.audience,
        subject: &arguments.subject,
        tenancy,
        scopes: if scopes.is_empty() { Scope::ALL } else { &scopes },
        issued_at: SystemClock.now(),
        valid_for_s: arguments.valid_for_s,
    };
    println!("{}", mint(&signing_key(config)?, &request)?);
    Ok(true)
}

fn words(scopes: &[Scope]) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(", ")
}
