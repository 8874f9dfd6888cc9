//! Due work: a period that has ended, debt that a grant repays when it begins, and holds and credits that have expired.
//!
//! The scheduler books it by internal commands, except for a repayment. But it may be late. So every other command books
//! it first, and every read does the same in memory. Whoever comes first, callers see the same balance.

use uuid::Uuid;

use super::advance_period::AdvancePeriod;
use super::effects::Effects;
use super::expire_grants::ExpireGrants;
use super::expire_holds::ExpireHolds;
use super::repay_debt::RepayDebt;
use super::request::Request;
use super::work::Work;
use crate::domain::ids::CommandId;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::time::Timestamp;

/// How many internal commands may be due at once in one workspace. One passes up to 36 periods, or books up to 100
/// grants or 50 holds, so this is enough for a century of months and for all open grants and holds.
pub const MAX_DUE_COMMANDS: usize = 64;

/// Work that is due in a workspace and comes before a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prerequisite {
    /// A grant has begun while there is debt: `RepayDebt`.
    Repayment,
    /// Holds were not captured in time: `ExpireHolds`.
    HoldExpiry,
    /// The period has ended: `AdvancePeriod`.
    Boundary,
    /// Credits have expired: `ExpireGrants`.
    Expiry,
}

impl Prerequisite {
    /// What is due at that instant, in the order in which it is done.
    pub(super) fn at(now: Timestamp, state: &WorkspaceState) -> impl Iterator<Item = Self> {
        let repayment = RepayDebt::is_due(state, now).then_some(Self::Repayment);
        let hold_expiry = ExpireHolds::is_due(state, now).then_some(Self::HoldExpiry);
        let boundary = state.subscription.is_boundary_due(now).then_some(Self::Boundary);
        let expiry = state.grants.iter().any(|grant| grant.is_expiry_due(now)).then_some(Self::Expiry);
        repayment.into_iter().chain(hold_expiry).chain(boundary).chain(expiry)
    }
}

impl WorkspaceState {
    /// The state with everything booked that is due: what a command at that instant would find.
    #[must_use]
    pub fn as_of(mut self, now: Timestamp) -> Self {
        for _ in 0..MAX_DUE_COMMANDS {
            let Some(due) = Prerequisite::at(now, &self).next() else { break };
            let Some(effects) = effects_of(due, &self, now) else { break };
            self.apply(effects);
        }
        self
    }
}

/// None if it is refused, as it would be when a command books it.
fn effects_of(due: Prerequisite, state: &WorkspaceState, now: Timestamp) -> Option<Effects> {
    // Nothing of it is recorded, and no id that a read shows derives from the command's.
    let command_id = CommandId(Uuid::nil());
    let workspace_id = state.workspace.workspace_id;
    let work = Work::new(state, &Request { command_id, workspace_id, received_at: now, metadata: None });
    let decided = match due {
        Prerequisite::Repayment => RepayDebt::decide(work, state),
        Prerequisite::HoldExpiry => ExpireHolds::decide(work, state),
        Prerequisite::Boundary => AdvancePeriod::decide(work),
        Prerequisite::Expiry => ExpireGrants::decide(work),
    };
    decided.ok().flatten().map(|(effects, _)| effects)
}
