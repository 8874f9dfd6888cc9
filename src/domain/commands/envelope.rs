//! The envelope of a command: its sender, its key, the time of its receipt, and the rows that deciding it needs.
//!
//! The envelopes of internal commands are created here too.

use uuid::Uuid;

use super::advance_period::AdvancePeriod;
use super::capture_hold::CaptureHold;
use super::command::Command;
use super::due_work::Prerequisite;
use super::expire_grants::ExpireGrants;
use super::expire_holds::ExpireHolds;
use super::extend_hold::ExtendHold;
use super::release_hold::ReleaseHold;
use super::repay_debt::RepayDebt;
use super::request::Request;
use super::warn_of_expiry::WarnOfExpiry;
use crate::domain::ids::{CommandId, SubscriptionId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::snapshot::{KeySet, Snapshot};
use crate::domain::text::IdempotencyKey;
use crate::domain::time::Timestamp;

/// The actor of internal commands.
const SCHEDULER: &str = "scheduler";

/// A command with its sender, its idempotency key and the time of its receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// A new version 7 UUID. All ids that the command creates are derived from it.
    pub message_id: CommandId,
    pub idempotency_key: IdempotencyKey,
    pub workspace_id: WorkspaceId,
    /// The subject of the caller's token, or `scheduler`.
    pub actor: String,
    pub correlation_id: String,
    /// The event or command that caused this one, if there is one.
    pub causation_id: Option<Uuid>,
    pub traceparent: Option<String>,
    pub received_at: Timestamp,
    pub metadata: Option<Metadata>,
    /// SHA-256 over the command's name and its canonical body. The same key with another fingerprint is
    /// refused.
    pub fingerprint: [u8; 32],
    pub command: Command,
}

impl Envelope {
    /// The envelope of an internal command.
    #[must_use]
    pub fn internal(
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

    /// The part of the envelope that commands may depend on.
    pub(super) fn request(&self) -> Request<'_> {
        Request {
            command_id: self.message_id,
            workspace_id: self.workspace_id,
            received_at: self.received_at,
            metadata: self.metadata.as_ref(),
        }
    }

    /// Adds the keys of the rows that deciding this command needs.
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
            Command::DeductCredits(command) => {
                keys.features.insert(command.feature_code.clone());
            }
            Command::PlaceHold(command) => {
                keys.features.insert(command.feature_code.clone());
            }
            Command::CaptureHold(CaptureHold { hold_id, .. })
            | Command::ReleaseHold(ReleaseHold { hold_id, .. })
            | Command::ExtendHold(ExtendHold { hold_id, .. }) => {
                keys.holds.insert((self.workspace_id, *hold_id));
            }
            Command::GrantCredits(command) => keys.features.extend(command.feature_scope.clone()),
            Command::VoidGrant(command) => {
                keys.grants.insert((self.workspace_id, command.grant_id));
            }
            Command::RefundUsage(command) => {
                keys.usages.insert((self.workspace_id, command.usage_id));
            }
            Command::ReversePurchase(command) => {
                keys.purchases.insert((self.workspace_id, command.grant_id));
            }
            Command::ResetMonthlyCredits(_)
            | Command::CancelSubscription(_)
            | Command::ResumeSubscription(_)
            | Command::AdvancePeriod(_)
            | Command::RepayDebt(_)
            | Command::ExpireHolds(_)
            | Command::ExpireGrants(_)
            | Command::WarnOfExpiry(_) => {}
        }
    }

    /// The internal command that must be decided before this one, because the scheduler has not done the work yet.
    #[must_use]
    pub fn prerequisite(&self, snapshot: &Snapshot, command_id: CommandId) -> Option<Self> {
        let state = snapshot.workspaces.get(&self.workspace_id)?;
        let now = self.received_at;
        let due = Prerequisite::at(now, state).find(|due| self.command.comes_after(*due))?;
        let mut envelope = match due {
            Prerequisite::Boundary => {
                let (subscription_id, end) = (state.subscription.subscription_id, state.subscription.period.end);
                AdvancePeriod::envelope(command_id, self.workspace_id, subscription_id, end, now)
            }
            Prerequisite::Repayment => RepayDebt::envelope(command_id, self.workspace_id, now),
            Prerequisite::HoldExpiry => ExpireHolds::envelope(command_id, self.workspace_id, now),
            Prerequisite::Expiry => ExpireGrants::envelope(command_id, self.workspace_id, now),
        };
        envelope.causation_id = Some(self.message_id.0);
        envelope.correlation_id.clone_from(&self.correlation_id);
        envelope.traceparent.clone_from(&self.traceparent);
        Some(envelope)
    }
}

impl AdvancePeriod {
    /// The command for a workspace whose period has ended. Its key contains the boundary, so that a boundary is
    /// passed once even if two replicas, or the scheduler and a deduction, send the command.
    #[must_use]
    pub fn envelope(
        command_id: CommandId,
        workspace_id: WorkspaceId,
        subscription_id: SubscriptionId,
        period_end: Timestamp,
        now: Timestamp,
    ) -> Envelope {
        let end = period_end.micros();
        let key = IdempotencyKey::system(format_args!("advance {subscription_id} {end}"));
        Envelope::internal(command_id, workspace_id, key, now, Command::AdvancePeriod(Self))
    }
}

impl RepayDebt {
    #[must_use]
    pub fn envelope(command_id: CommandId, workspace_id: WorkspaceId, now: Timestamp) -> Envelope {
        let key = IdempotencyKey::system(format_args!("repay {command_id}"));
        Envelope::internal(command_id, workspace_id, key, now, Command::RepayDebt(Self))
    }
}

impl ExpireHolds {
    #[must_use]
    pub fn envelope(command_id: CommandId, workspace_id: WorkspaceId, now: Timestamp) -> Envelope {
        let key = IdempotencyKey::system(format_args!("expire holds {command_id}"));
        Envelope::internal(command_id, workspace_id, key, now, Command::ExpireHolds(Self))
    }
}

impl ExpireGrants {
    #[must_use]
    pub fn envelope(command_id: CommandId, workspace_id: WorkspaceId, now: Timestamp) -> Envelope {
        let key = IdempotencyKey::system(format_args!("expire {command_id}"));
        Envelope::internal(command_id, workspace_id, key, now, Command::ExpireGrants(Self))
    }
}

impl WarnOfExpiry {
    #[must_use]
    pub fn envelope(command_id: CommandId, workspace_id: WorkspaceId, now: Timestamp) -> Envelope {
        let key = IdempotencyKey::system(format_args!("warn {command_id}"));
        Envelope::internal(command_id, workspace_id, key, now, Command::WarnOfExpiry(Self))
    }
}
