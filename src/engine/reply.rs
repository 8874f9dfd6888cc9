//! What a caller gets for a command: a reply, or the reason why there is none.

use crate::domain::batch::{Outcome, Rendered};
use crate::domain::rejection::Rejection;

/// What a caller gets for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Decided now. `rejection` is there when it was refused (for a `Retry-After`).
    Decided { answer: Rendered, rejection: Option<Rejection> },
    /// Decided before: the stored answer, byte for byte.
    Replayed(Rendered),
    /// The key was used with another body.
    KeyReused,
    /// An internal command that found nothing to do.
    Nothing,
}

/// Why there is no answer. Whether the command took effect is unknown after `Unavailable` and
/// `Failed`; sending it again with the same key settles it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The lane's queue is full: nothing was done.
    #[error("too many commands are waiting")]
    Overloaded,
    /// The engine is stopping: nothing was done.
    #[error("the server is shutting down")]
    Stopping,
    #[error("the database is unavailable")]
    Unavailable,
    /// A defect; it is in the log.
    #[error("the command failed")]
    Failed,
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
