//! WarnOfExpiry: raises `CreditsExpiring` for grants that will expire soon, once for each.
//!
//! When that is due is noted in the grant, because plans differ in how many days ahead they want it.

use super::effects::Effects;
use super::work::Work;
use crate::domain::event::CreditsExpiring;
use crate::domain::receipt::Receipt;

/// How many grants one command reports. The scheduler sends another command while more are due.
const MAX_GRANTS_PER_COMMAND: usize = 100;

/// Reports grants that will expire soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarnOfExpiry;

impl WarnOfExpiry {
    pub(super) fn decide(mut work: Work<'_>) -> Option<(Effects, Receipt)> {
        let now = work.now();
        let due = work.grants().filter(|(_, grant)| grant.is_expiry_warning_due(now)).map(|(index, _)| index);
        let due: Vec<_> = due.take(MAX_GRANTS_PER_COMMAND).collect();
        if due.is_empty() {
            return None;
        }
        for index in due {
            let current_credits = work.credits().current_credits;
            let Some(grant) = work.change_grant(index) else { continue };
            grant.expiry_warning_at = None;
            let Some(expires_at) = grant.expires_at else { continue };
            let (grant_id, source, credits) = (grant.grant_id, grant.source, grant.remaining);
            work.raise(CreditsExpiring { grant_id, source, credits, expires_at, current_credits });
        }
        Some(work.finish_internal())
    }
}
