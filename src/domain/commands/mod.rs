//! Commands: what can be asked for, the envelope it comes in, and the pure function that decides.
//!
//! One file per command. Each is a struct with its checked fields and a function that takes a
//! [`Work`] (what one workspace is and what the decision has changed so far) and returns a receipt
//! or a [`Rejection`].

mod advance_period;
mod cancel_subscription;
mod deduct_credits;
mod expire_grants;
mod process_subscription_change;
mod provision_workspace;
mod purchase_credits;
mod reset_monthly_credits;
mod resume_subscription;
#[cfg(test)]
mod tests;
mod work;

use uuid::Uuid;

pub use self::advance_period::AdvancePeriod;
pub use self::cancel_subscription::CancelSubscription;
pub use self::deduct_credits::{Charge, DeductCredits, OCCURRED_AT_MAX_AGE, OCCURRED_AT_MAX_AHEAD};
pub use self::expire_grants::ExpireGrants;
pub use self::process_subscription_change::ProcessSubscriptionChange;
pub use self::provision_workspace::{FeatureAgreement, ProvisionWorkspace};
pub use self::purchase_credits::PurchaseCredits;
pub use self::reset_monthly_credits::ResetMonthlyCredits;
pub use self::resume_subscription::ResumeSubscription;
pub use self::work::{Effects, available_credits, is_spendable};
use self::work::{Movement, Work};
use super::event::EventData;
use super::ids::{CommandId, WorkspaceId};
use super::metadata::Metadata;
use super::receipt::Receipt;
use super::rejection::Rejection;
use super::snapshot::{KeySet, Snapshot};
use super::text::IdempotencyKey;
use super::time::Timestamp;

/// Who acts in the system's own commands.
const SCHEDULER: &str = "scheduler";

/// Something a caller, or the scheduler, wants done to one workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    DeductCredits(DeductCredits),
    PurchaseCredits(PurchaseCredits),
    ResetMonthlyCredits(ResetMonthlyCredits),
    ProcessSubscriptionChange(ProcessSubscriptionChange),
    CancelSubscription(CancelSubscription),
    ResumeSubscription(ResumeSubscription),
    ProvisionWorkspace(ProvisionWorkspace),
    /// The scheduler's: pass every period boundary that is due.
    AdvancePeriod(AdvancePeriod),
    /// The scheduler's: book what has expired.
    ExpireGrants(ExpireGrants),
}

/// A command with who sent it, when, and under which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// A fresh version 7 UUID; all further ids of the command derive from it.
    pub message_id: CommandId,
    pub idempotency_key: IdempotencyKey,
    pub workspace_id: WorkspaceId,
    /// Whose token it was, or `scheduler`.
    pub actor: String,
    pub correlation_id: String,
    /// The event or command that led to this one, where there is one.
    pub causation_id: Option<Uuid>,
    pub traceparent: Option<String>,
    pub received_at: Timestamp,
    pub metadata: Option<Metadata>,
    /// SHA-256 over the command's name and its canonical body: the same key with another
    /// fingerprint is a mistake of the caller.
    pub fingerprint: [u8; 32],
    pub command: Command,
}

/// What was decided about one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write the effects, and answer with the receipt.
    Accepted { effects: Box<Effects>, receipt: Receipt },
    /// Change no credits; record the refusal (where it is one to record) and raise its event.
    Refused { rejection: Rejection, event: Option<EventData> },
    /// A command of the scheduler that found nothing to do. It leaves no trace.
    Nothing,
}

/// A refusal on its way out of a command, with the event that tells of it.
#[derive(Debug)]
struct Refusal {
    rejection: Rejection,
    event: Option<Box<EventData>>,
}

impl<R: Into<Rejection>> From<R> for Refusal {
    fn from(rejection: R) -> Self {
        Self { rejection: rejection.into(), event: None }
    }
}

/// Refuses a change of a subscription that the caller has not seen in its current version.
fn check_version(work: &Work<'_>, expected: Option<i64>) -> Result<(), Refusal> {
    let actual = work.subscription().version;
    match expected {
        Some(expected) if expected != actual => Err(Rejection::VersionMismatch { expected, actual }.into()),
        Some(_) | None => Ok(()),
    }
}

/// Ends a command that changed what is available: arms or fires the low-credit thresholds.
fn settle(mut work: Work<'_>, movement: Movement) -> Effects {
    let available = work.available();
    work.settle_thresholds(available, movement);
    work.into_effects()
}

impl Command {
    /// The name in the contract.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::DeductCredits(_) => "DeductCredits",
            Self::PurchaseCredits(_) => "PurchaseCredits",
            Self::ResetMonthlyCredits(_) => "ResetMonthlyCredits",
            Self::ProcessSubscriptionChange(_) => "ProcessSubscriptionChange",
            Self::CancelSubscription(_) => "CancelSubscription",
            Self::ResumeSubscription(_) => "ResumeSubscription",
            Self::ProvisionWorkspace(_) => "ProvisionWorkspace",
            Self::AdvancePeriod(_) => "AdvancePeriod",
            Self::ExpireGrants(_) => "ExpireGrants",
        }
    }

    /// Whether the system sends it by itself; nobody waits for the answer.
    #[must_use]
    pub const fn is_internal(&self) -> bool {
        matches!(self, Self::AdvancePeriod(_) | Self::ExpireGrants(_))
    }

    /// Whether a period that is over must be closed before this command is decided.
    const fn wants_current_period(&self) -> bool {
        match self {
            Self::DeductCredits(_)
            | Self::PurchaseCredits(_)
            | Self::ProcessSubscriptionChange(_)
            | Self::CancelSubscription(_)
            | Self::ResumeSubscription(_) => true,
            Self::ResetMonthlyCredits(_)
            | Self::ProvisionWorkspace(_)
            | Self::AdvancePeriod(_)
            | Self::ExpireGrants(_) => false,
        }
    }
}

impl Envelope {
    /// A command that the system sends by itself.
    #[must_use]
    pub fn of_system(
        command_id: CommandId,
        workspace_id: WorkspaceId,
        idempotency_key: IdempotencyKey,
        now: Timestamp,
        command: Command,
    ) -> Self {
        Self {
            message_id: command_id,
            idempotency_key,
            workspace_id,
            actor: SCHEDULER.to_owned(),
            correlation_id: command_id.to_string(),
            causation_id: None,
            traceparent: None,
            received_at: now,
            metadata: None,
            fingerprint: [0; 32],
            command,
        }
    }

    /// Adds the rows that deciding this command looks at.
    pub fn add_keys(&self, keys: &mut KeySet) {
        keys.workspaces.insert(self.workspace_id);
        keys.commands.insert((self.workspace_id, self.idempotency_key.clone()));
        match &self.command {
            Command::PurchaseCredits(command) => {
                keys.payments.insert((self.workspace_id, command.payment_reference.clone()));
            }
            Command::ProcessSubscriptionChange(command) => {
                keys.plans.insert(command.plan_code.clone());
            }
            Command::ProvisionWorkspace(command) => {
                keys.plans.insert(command.plan_code.clone());
            }
            Command::DeductCredits(_)
            | Command::ResetMonthlyCredits(_)
            | Command::CancelSubscription(_)
            | Command::ResumeSubscription(_)
            | Command::AdvancePeriod(_)
            | Command::ExpireGrants(_) => {}
        }
    }

    /// The internal command that must be decided before this one: the workspace's period is over
    /// and the scheduler has not passed the boundary yet.
    #[must_use]
    pub fn prerequisite(&self, snapshot: &Snapshot, command_id: CommandId) -> Option<Self> {
        let state = snapshot.workspaces.get(&self.workspace_id)?;
        let now = state.now(self.received_at);
        if !self.command.wants_current_period() || !state.subscription.is_boundary_due(now) {
            return None;
        }
        let (subscription_id, end) = (state.subscription.subscription_id, state.subscription.period.end);
        let mut envelope = AdvancePeriod::envelope(command_id, self.workspace_id, subscription_id, end, now);
        envelope.causation_id = Some(self.message_id.0);
        envelope.correlation_id.clone_from(&self.correlation_id);
        envelope.traceparent.clone_from(&self.traceparent);
        Some(envelope)
    }
}

/// Decides one command against what is known. It changes nothing: what follows from an acceptance
/// stands in the decision.
#[must_use]
pub fn decide(snapshot: &Snapshot, envelope: &Envelope) -> Decision {
    let outcome = match (&envelope.command, snapshot.workspaces.get(&envelope.workspace_id)) {
        (Command::ProvisionWorkspace(_), Some(_)) => Err(Rejection::WorkspaceExists.into()),
        (Command::ProvisionWorkspace(command), None) => command.decide(snapshot, envelope).map(Some),
        (_, None) => Err(Rejection::WorkspaceNotFound.into()),
        (command, Some(state)) => {
            let work = Work::new(state, envelope);
            match command {
                Command::DeductCredits(command) => command.decide(work, envelope).map(Some),
                Command::PurchaseCredits(command) => command.decide(work, &snapshot.payments).map(Some),
                Command::ResetMonthlyCredits(command) => command.decide(work).map(Some),
                Command::ProcessSubscriptionChange(command) => command.decide(work, &snapshot.plans).map(Some),
                Command::CancelSubscription(command) => command.decide(work).map(Some),
                Command::ResumeSubscription(command) => command.decide(work).map(Some),
                Command::AdvancePeriod(AdvancePeriod) => AdvancePeriod::decide(work),
                Command::ExpireGrants(ExpireGrants) => ExpireGrants::decide(work),
                Command::ProvisionWorkspace(_) => Err(Rejection::WorkspaceExists.into()),
            }
        }
    };
    match outcome {
        Ok(Some((effects, receipt))) => Decision::Accepted { effects: Box::new(effects), receipt },
        Ok(None) => Decision::Nothing,
        Err(Refusal { rejection, event }) => Decision::Refused { rejection, event: event.map(|event| *event) },
    }
}
