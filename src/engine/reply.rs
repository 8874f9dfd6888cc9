//! The engine's answer to a command: a reply, or an error.

use crate::domain::batch::{Outcome, Rendered};
use crate::domain::rejection::Rejection;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Decided now. A refused command has a `rejection`.
    Decided { answer: Rendered, rejection: Option<Rejection> },
    /// Decided before: the stored answer, byte for byte.
    Replayed(Rendered),
    /// The key was used with another body.
    KeyReused,
    /// An internal command that had nothing to do.
    Nothing,
}

/// Why there is no answer. After `Unavailable` the command may have taken effect: sending it again with the same key finds
/// out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The lane's queue is full. Nothing was done.
    #[error("too many commands are waiting")]
    Overloaded,
    /// The command waited in the lane's queue for too long. Nothing was done.
    #[error("the command waited for too long")]
    WaitedTooLong,
    /// The workspace has its share of the lane's queue. Nothing was done.
    #[error("too many commands of this workspace are waiting")]
    OverShare,
    /// Nothing was done.
    #[error("the server is shutting down")]
    Stopping,
    #[error("the database is unavailable")]
    Unavailable,
    /// A defect. Nothing was done, and the log has the details.
    #[error("the command failed")]
    Failed,
}

/// The outcome of an answer, for metrics.
pub(super) fn outcome(answer: Result<&Reply, EngineError>) -> &'static str {
    match answer {
        Ok(Reply::Decided { rejection: None, .. }) => "accepted",
        Ok(Reply::Decided { rejection: Some(rejection), .. }) => rejection.code(),
        Ok(Reply::Replayed(_)) => "replayed",
        Ok(Reply::KeyReused) => "key-reused",
        Ok(Reply::Nothing) => "nothing",
        Err(EngineError::Overloaded | EngineError::OverShare | EngineError::WaitedTooLong) => "overloaded",
        Err(EngineError::Stopping) => "stopping",
        Err(EngineError::Unavailable) => "unavailable",
        Err(EngineError::Failed) => "failed",
    }
}

impl From<Outcome> for Reply {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Accepted(answer) => Self::Decided { answer, rejection: None },
            Outcome::Refused { rejection, answer } => Self::Decided { answer, rejection: Some(rejection) },
            Outcome::Replayed(answer) => Self::Replayed(answer),
            Outcome::KeyReused => Self::KeyReused,
            Outcome::Nothing => Self::Nothing,
        }
    }
}
