//! The events of metered jobs. Each belongs to the command that holds, captures or releases for the job.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::credits::Credits;
use crate::domain::ids::{HoldId, JobId};
use crate::domain::job_ref::JobFailureReason;
use crate::domain::text::{JobKind, QueueName};

/// A metered job was taken: its hold is placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobSubmitted {
    pub job_id: JobId,
    pub kind: JobKind,
    pub queue: QueueName,
    pub hold_id: HoldId,
    /// What is held for it.
    pub credits: Credits,
    pub current_credits: Credits,
}

/// A metered job was done, and what it has cost is charged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobCompleted {
    pub job_id: JobId,
    pub kind: JobKind,
    pub queue: QueueName,
    pub hold_id: HoldId,
    /// What was charged; `CreditConsumed` tells it in detail. Zero if it has cost nothing.
    pub credits: Credits,
    /// The part of the cost that could not be charged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncovered_credits: Option<Credits>,
    pub current_credits: Credits,
}

/// A metered job has ended without success, and its hold is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobFailed {
    pub job_id: JobId,
    pub kind: JobKind,
    pub queue: QueueName,
    pub hold_id: HoldId,
    pub reason: JobFailureReason,
    pub current_credits: Credits,
}
