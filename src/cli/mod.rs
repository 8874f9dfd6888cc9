//! The command line: the server, and commands for operators.
//!
//! A command prints its result on stdout and everything else on stderr; its exit status is 0 for
//! success, 1 for an error or a negative result, and 2 for a wrong command line.

mod consumers;
mod dead_letters;
mod generate;
mod outbox;
mod outcome;
mod queues;
mod remote;
mod serve;
mod streams;
mod table;
mod token;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::outcome::Outcome;
use crate::config::Config;
use crate::telemetry::Telemetry;

/// Usage-credits billing and events. Without a subcommand it serves the API.
#[derive(Debug, Parser)]
#[command(name = "visionscope", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serves the API until SIGINT or SIGTERM (the default).
    Serve,
    /// Applies missing migrations, and stores the plans.
    Migrate,
    /// Prints a token, signed with the first HS256 key, for development and tests.
    Token(token::Arguments),
    /// Checks the invariants of the database, and prints violations.
    Verify(verify::Arguments),
    /// Inspects and repairs the event streams.
    #[command(subcommand)]
    Outbox(outbox::Action),
    /// Shows, pauses, resumes and rebuilds the consumers of the running server.
    Consumers(consumers::Arguments),
    /// Lists the dead letters of the running server, tries them again, or discards them.
    DeadLetters(dead_letters::Arguments),
    /// Shows, pauses and resumes the queues of the running server.
    Queues(queues::Queues),
    /// Lists the jobs of a queue of the running server, shows and cancels them.
    Jobs(queues::Jobs),
    /// Shows, drains and resumes the workers of the running server.
    Workers(queues::Workers),
    /// Shows, pauses, resumes and runs what the running server does again and again.
    Schedules(queues::Schedules),
    /// Shows how far the running server and its replicas are with publishing events to the streams.
    Streams(streams::Arguments),
    /// Writes the generated files: the OpenAPI document and the schemas of the events.
    Openapi(generate::Arguments),
    /// Checks whether the server on this machine is alive.
    Healthcheck {
        /// The address to check instead of `server.bind`, such as http://127.0.0.1:8080.
        #[arg(long)]
        url: Option<String>,
    },
}

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    // Redis, PostgreSQL and the key sets use the same TLS provider. Installing it twice is harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = match Cli::parse().action.unwrap_or(Action::Serve) {
        Action::Openapi(arguments) => generate::run(&arguments),
        action => configured(action),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn configured(action: Action) -> Outcome {
    let config = Config::load()?;
    let telemetry = Telemetry::start(&config.telemetry)?;
    let threads = crate::app::half_of_the_processors();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let outcome = runtime.block_on(async {
        match action {
            Action::Serve => serve::run(&config).await,
            Action::Migrate => serve::migrate(&config).await,
            Action::Token(arguments) => token::run(&config, &arguments),
            Action::Verify(arguments) => verify::run(&config, &arguments).await,
            Action::Outbox(action) => outbox::run(&config, &action).await,
            Action::Consumers(arguments) => consumers::run(&config, &arguments).await,
            Action::DeadLetters(arguments) => dead_letters::run(&config, &arguments).await,
            Action::Queues(arguments) => queues::queues(&config, &arguments).await,
            Action::Jobs(arguments) => queues::jobs(&config, &arguments).await,
            Action::Workers(arguments) => queues::workers(&config, &arguments).await,
            Action::Schedules(arguments) => queues::schedules(&config, &arguments).await,
            Action::Streams(arguments) => streams::run(&config, &arguments).await,
            Action::Healthcheck { url } => serve::healthcheck(&config, url).await,
            Action::Openapi(arguments) => generate::run(&arguments),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    telemetry.stop();
    outcome
}
