//! The result of a command of the command line.

/// `Ok(false)` if the command found a problem.
pub(super) type Outcome = anyhow::Result<bool>;
