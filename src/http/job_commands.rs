//! Jobs that are commands: the server runs them itself, through the engine.

use super::auth::Scope;
use super::body;
use super::problem::Problem;
use super::routes::credits::{DeductCreditsRequest, PurchaseCreditsRequest, ResetCreditsRequest};
use super::routes::subscription::{CancelSubscriptionRequest, ChangeSubscriptionRequest};
use super::submit::CommandRequest;
use crate::domain::commands::Command;
use crate::domain::jobs::JobError;
use crate::domain::metadata::Metadata;
use crate::domain::text::JobKind;
use crate::queues::ParseCommand;

type Parsed = (Command, Option<Metadata>);

/// A kind of job that is a command.
#[derive(Clone, Copy)]
pub struct CommandKind {
    kind: &'static str,
    /// What a token needs to send one.
    pub scope: Scope,
    parse: fn(&str) -> Result<Parsed, Problem>,
}

const KINDS: [CommandKind; 5] = [
    kind::<DeductCreditsRequest>("billing.deduct_credits", Scope::CreditsWrite),
    kind::<PurchaseCreditsRequest>("billing.purchase_credits", Scope::CreditsPurchase),
    kind::<ResetCreditsRequest>("billing.reset_monthly_credits", Scope::CreditsReset),
    kind::<ChangeSubscriptionRequest>("billing.process_subscription_change", Scope::SubscriptionWrite),
    kind::<CancelSubscriptionRequest>("billing.cancel_subscription", Scope::SubscriptionWrite),
];

const fn kind<R: CommandRequest>(kind: &'static str, scope: Scope) -> CommandKind {
    CommandKind { kind, scope, parse: parse::<R> }
}

/// The arguments are the body of the command.
fn parse<R: CommandRequest>(args: &str) -> Result<Parsed, Problem> {
    body::parse::<R>(args.as_bytes(), R::NAME)?.value.into_command()
}

impl CommandKind {
    #[must_use]
    pub fn of(kind: &JobKind) -> Option<Self> {
        KINDS.into_iter().find(|command| command.kind == kind.as_str())
    }

    /// Whether the arguments are a command of this kind. Fields are named as they are in the request that sends the job.
    pub fn check(self, args: &str) -> Result<(), Problem> {
        (self.parse)(args).map(drop).map_err(|problem| problem.inside("/args"))
    }
}

/// Reads the commands of jobs.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobCommands;

impl ParseCommand for JobCommands {
    fn parse(&self, kind: &JobKind, args: &str) -> Result<Parsed, JobError> {
        let Some(command) = CommandKind::of(kind) else {
            return Err(JobError::new("unknown_kind", "this server does not know how to run jobs of this kind"));
        };
        (command.parse)(args).map_err(|problem| JobError::new(problem.code.as_str(), &problem.detail))
    }
}
