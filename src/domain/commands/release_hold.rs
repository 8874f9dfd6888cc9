//! ReleaseHold: gives up a hold. Its credits can be spent again.

use super::effects::Effects;
use super::held_credits::{PastHolds, find, receipt, release};
use super::refusal::Refusal;
use super::work::Work;
use crate::domain::credits::Credits;
use crate::domain::event::{EventData, JobCompleted, JobFailed, ReleaseReason};
use crate::domain::ids::HoldId;
use crate::domain::job_ref::{JobRef, ReleasedJob};
use crate::domain::receipt::Receipt;

/// Gives up a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseHold {
    pub hold_id: HoldId,
    /// The job that has ended, if the server releases it for one.
    pub job: Option<ReleasedJob>,
}

impl ReleaseHold {
    pub(super) fn decide(&self, mut work: Work<'_>, past: &PastHolds) -> Result<(Effects, Receipt), Refusal> {
        let open = find(&work, self.hold_id, past)?.open()?;
        let now = work.now();
        let (hold, grants) = release(&mut work, open, ReleaseReason::Released, now)?;
        let receipt = receipt(&work, &hold, grants);
        if let Some(released) = &self.job {
            work.raise(ended(released, self.hold_id, receipt.current_credits));
        }
        Ok((work.finish(), Receipt::HoldChanged(receipt)))
    }
}

fn ended(released: &ReleasedJob, hold_id: HoldId, current_credits: Credits) -> EventData {
    let JobRef { job_id, kind, queue } = released.job.clone();
    match released.reason {
        None => {
            let (credits, uncovered_credits) = (Credits::ZERO, None);
            JobCompleted { job_id, kind, queue, hold_id, credits, uncovered_credits, current_credits }.into()
        }
        Some(reason) => JobFailed { job_id, kind, queue, hold_id, reason, current_credits }.into(),
    }
}
