//! ExpireHolds: books holds that were not captured in time.
//!
//! A hold cannot be captured from its expiry on, whether the expiry is booked or not; this command gives its credits
//! back. Holds that expired before the end of a period are booked before it, so that their credits roll over as if
//! nothing had been late.

use super::effects::Effects;
use super::held_credits::release;
use super::refusal::Refusal;
use super::work::{Work, until_boundary};
use crate::domain::event::ReleaseReason;
use crate::domain::receipt::Receipt;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::time::Timestamp;

/// How many holds one command books. The scheduler sends another command while more are due.
const MAX_HOLDS_PER_COMMAND: usize = 50;

/// Books expired holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpireHolds;

impl ExpireHolds {
    pub(super) fn is_due(state: &WorkspaceState, now: Timestamp) -> bool {
        let until = until_boundary(state, now);
        state.holds.iter().any(|open| open.hold.is_expired(until))
    }

    pub(super) fn decide(mut work: Work<'_>, state: &WorkspaceState) -> Result<Option<(Effects, Receipt)>, Refusal> {
        let until = until_boundary(state, work.now());
        let mut expired: Vec<_> = state.holds.iter().filter(|open| open.hold.is_expired(until)).collect();
        if expired.is_empty() {
            return Ok(None);
        }
        expired.sort_by_key(|open| (open.hold.expires_at, open.hold.hold_id));
        for open in expired.into_iter().take(MAX_HOLDS_PER_COMMAND) {
            release(&mut work, open, ReleaseReason::Expired, open.hold.expires_at)?;
        }
        Ok(Some(work.finish_internal()))
    }
}
