//! Why a configuration cannot be used: every wrong key, with the origin of its value.

use std::fmt;

/// One wrong value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Such as `server.bind`.
    pub key: String,
    /// Such as `environment variable VISIONSCOPE__SERVER__BIND` or `built-in default`.
    pub origin: String,
    pub problem: String,
}

/// Why the configuration cannot be used: at least one problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub problems: Vec<Problem>,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, origin: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), origin: origin.into(), problem: problem.into() }
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Problem { key, origin, problem }) in self.problems.iter().enumerate() {
            let line_break = if n == 0 { "" } else { "\n" };
            write!(f, "{line_break}configuration key {key} ({origin}): {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
