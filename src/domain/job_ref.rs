//! What commands and events say of the job that they belong to.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::JobId;
use super::text::{JobKind, QueueName};

/// The metered job that a hold is placed, captured or released for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRef {
    pub job_id: JobId,
    pub kind: JobKind,
    pub queue: QueueName,
}

/// Why a metered job has ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobFailureReason {
    /// Its last attempt has failed, or no worker has taken it in time.
    Failed,
    /// Nobody wanted it any more.
    Canceled,
    /// Nothing was heard of the worker of its last attempt.
    Lost,
}

/// The end of a metered job whose hold is released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleasedJob {
    pub job: JobRef,
    /// None if it was completed and has cost nothing.
    pub reason: Option<JobFailureReason>,
}
