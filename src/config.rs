//! Configuration: built-in defaults, then `*.toml` files, then the environment; read once, checked
//! at start.
//!
//! [`Config::load`] either gives a configuration in which every bound holds, or an error that names
//! each wrong key and the place it came from. The program starts from any folder without any file:
//! the folder of the files is `VISIONSCOPE_CONFIG_DIR`, or `./config` where there is one.
//!
//! [`keys`] is the one list of all keys with their defaults; `docs/CONFIGURATION.md` is generated
//! from it, and a key that is not on it is an error. Secrets are [`secrecy::SecretString`]: they
//! show up neither in `Debug` nor in an error.
//!
//! Deliberately absent: reloading while running, and defaults anywhere else in the code.

mod bounds;
mod error;
pub mod keys;
pub mod plans;
mod queues;
mod sections;
mod sources;

use std::collections::BTreeMap;
use std::path::Path;

pub use self::error::{ConfigError, Problem};
use self::plans::PlansError;
pub use self::sections::{
    Algorithm, Auth, AuthKey, Config, Database, Engine, Events, KeyMaterial, Limits, LogFormat, Plans, Publisher,
    Redis, Role, Server, Stream, Telemetry,
};
pub use self::sources::ALIASES;
use crate::domain::jobs::{QueueSettings, Routes, RoutesError};
use crate::domain::plan::PlanVersion;
use crate::domain::text::QueueName;

/// Who may call the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Tokens are checked with the configured keys.
    Configured,
    /// Nothing is configured and only this machine can connect: a development key is generated and
    /// a demo workspace is provisioned.
    Demo,
}

impl Config {
    /// Reads the files and the environment of this process.
    pub fn load() -> Result<Self, ConfigError> {
        let vars: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let dir = sources::config_dir(&vars)?;
        Self::read(vars, dir.as_deref())
    }

    /// Reads the files of a folder, if one is given, and these environment variables.
    pub fn read(
        vars: impl IntoIterator<Item = (String, String)>,
        config_dir: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        let merged = sources::merge(vars, config_dir)?;
        let mut config: Self = serde_path_to_error::deserialize(merged.clone()).map_err(|error| {
            let key = error.path().to_string();
            let origin = sources::origin_of(&merged, &key);
            // The words of a type error repeat the value, which may be a secret in the wrong place.
            let problem = if keys::is_secret(&key) {
                "has the wrong form (the value is not shown)".to_owned()
            } else {
                sources::words_of(error.into_inner())
            };
            Problem::new(key, origin, problem)
        })?;
        config.files_dir = config_dir.map(Path::to_path_buf);
        let mut problems = bounds::check(&config);
        problems.extend(config.auth.read_key_files());
        if problems.is_empty() {
            return Ok(config);
        }
        let locate = |(key, problem): (String, String)| {
            let origin = sources::origin_of(&merged, &key);
            Problem::new(key, origin, problem)
        };
        Err(ConfigError { problems: problems.into_iter().map(locate).collect() })
    }

    /// Who may call the server. A server that others can reach never starts without keys.
    pub fn mode(&self) -> Result<Mode, ConfigError> {
        if !self.auth.keys.is_empty() || self.auth.jwks_url.is_some() {
            return Ok(Mode::Configured);
        }
        if self.server.bind.ip().is_loopback() {
            return Ok(Mode::Demo);
        }
        let problem = format!(
            "is required, or auth.jwks_url: server.bind = {} can be reached from other machines, and only a server on a \
             loopback address makes its own development key",
            self.server.bind
        );
        Err(Problem::new("auth.keys", "not set", problem).into())
    }

    /// The folder for what the server keeps beside the database file, such as the development key.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        match self.database.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        }
    }

    /// The queues that must exist. Those that the database has already are left as they are.
    #[must_use]
    pub fn job_queues(&self) -> BTreeMap<QueueName, QueueSettings> {
        queues::all_queues(&self.queues)
    }

    /// Which queue the jobs of a kind go to.
    pub fn job_routes(&self) -> Result<Routes, RoutesError> {
        queues::all_routes(&self.routes)
    }

    /// The plans: from `plans.file`, or `plans.toml` of the configuration's folder, or the built-in ones.
    pub fn read_plans(&self) -> Result<Vec<PlanVersion>, PlansError> {
        let beside = || self.files_dir.as_ref().map(|dir| dir.join(sources::PLANS_FILE)).filter(|file| file.exists());
        match self.plans.file.clone().or_else(beside) {
            Some(file) => plans::read_file(&file),
            None => plans::built_in(),
        }
    }
}

#[cfg(test)]
mod tests;
