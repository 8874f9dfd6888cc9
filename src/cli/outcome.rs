//! What a command of the command line ends with.

/// What a command ends with: `Ok(false)` when it found something wrong.
pub(super) type Outcome = anyhow::Result<bool>;
