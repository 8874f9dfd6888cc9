//! Decides one command: calls the function of the command in the envelope.

use super::advance_period::AdvancePeriod;
use super::command::Command;
use super::effects::Effects;
use super::envelope::Envelope;
use super::expire_grants::ExpireGrants;
use super::expire_holds::ExpireHolds;
use super::refusal::Refusal;
use super::repay_debt::RepayDebt;
use super::warn_of_expiry::WarnOfExpiry;
use super::work::Work;
use crate::domain::event::EventData;
use crate::domain::explanation::Explanation;
use crate::domain::receipt::Receipt;
use crate::domain::rejection::Rejection;
use crate::domain::snapshot::Snapshot;

/// The result of deciding one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write the effects, and answer with the receipt.
    Accepted { effects: Box<Effects>, receipt: Receipt },
    /// Change no credits. Record the refusal, if it is one that is recorded, and raise its event.
    Refused { rejection: Rejection, event: Option<EventData>, explanation: Option<Box<Explanation>> },
    /// A command of the scheduler that found nothing to do. Nothing is recorded.
    Nothing,
}

/// Decides one command on a snapshot, without changing it. The decision contains the effects to apply.
#[must_use]
pub fn decide(snapshot: &Snapshot, envelope: &Envelope) -> Decision {
    let request = envelope.request();
    let outcome = match (&envelope.command, snapshot.workspaces.get(&envelope.workspace_id)) {
        (Command::ProvisionWorkspace(_), Some(_)) => Err(Rejection::WorkspaceExists.into()),
        (Command::ProvisionWorkspace(command), None) => command.decide(snapshot, &request).map(Some),
        (_, None) => Err(Rejection::WorkspaceNotFound.into()),
        (command, Some(state)) => {
            let work = Work::new(state, &request);
            match command {
                Command::DeductCredits(command) => command.decide(work, &request, &snapshot.features).map(Some),
                Command::PurchaseCredits(command) => command.decide(work, &request, &snapshot.payments).map(Some),
                Command::GrantCredits(command) => command.decide(work, &request, &snapshot.features).map(Some),
                Command::VoidGrant(command) => command.decide(work, &request, &snapshot.closed_grants).map(Some),
                Command::RefundUsage(command) => command.decide(work, &request, snapshot).map(Some),
                Command::ReversePurchase(command) => command.decide(work, &request, snapshot).map(Some),
                Command::PlaceHold(command) => command.decide(work, &request, &snapshot.features).map(Some),
                Command::CaptureHold(command) => command.decide(work, &request, &snapshot.holds).map(Some),
                Command::ReleaseHold(command) => command.decide(work, &snapshot.holds).map(Some),
                Command::ExtendHold(command) => command.decide(work, &snapshot.holds).map(Some),
                Command::ResetMonthlyCredits(command) => command.decide(work).map(Some),
                Command::ProcessSubscriptionChange(command) => command.decide(work, &snapshot.plans).map(Some),
                Command::CancelSubscription(command) => command.decide(work).map(Some),
                Command::ResumeSubscription(command) => command.decide(work).map(Some),
                Command::AdvancePeriod(AdvancePeriod) => AdvancePeriod::decide(work),
                Command::RepayDebt(RepayDebt) => RepayDebt::decide(work, state),
                Command::ExpireHolds(ExpireHolds) => ExpireHolds::decide(work, state),
                Command::ExpireGrants(ExpireGrants) => ExpireGrants::decide(work),
                Command::WarnOfExpiry(WarnOfExpiry) => Ok(WarnOfExpiry::decide(work)),
                Command::ProvisionWorkspace(_) => Err(Rejection::WorkspaceExists.into()),
            }
        }
    };
    match outcome {
        Ok(Some((effects, receipt))) => Decision::Accepted { effects: Box::new(effects), receipt },
        Ok(None) => Decision::Nothing,
        Err(Refusal { rejection, event, explanation }) => {
            let is_explained = envelope.command.feature_code().is_some() && rejection.is_explained();
            let explanation = is_explained.then(|| explanation.unwrap_or_default());
            Decision::Refused { rejection, event: event.map(|event| *event), explanation }
        }
    }
}
