//! The whole configuration: its sections and the types of their values. The defaults are in [`super::keys`], the
//! bounds in `super::bounds`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};

use super::queues::{Queue, RouteTo};
use crate::domain::cloud_event::EventSource;
use crate::domain::text::QueueName;

/// The whole configuration, with all bounds checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub server: Server,
    pub database: Database,
    pub redis: Redis,
    pub stream: Stream,
    pub events: Events,
    pub auth: Auth,
    pub engine: Engine,
    pub publisher: Publisher,
    /// Queues of jobs, by their names.
    pub queues: BTreeMap<QueueName, Queue>,
    pub routes: Vec<RouteTo>,
    pub limits: Limits,
    pub telemetry: Telemetry,
    pub plans: Plans,
    /// The folder of the files, if there is one.
    #[serde(skip)]
    pub(super) files_dir: Option<PathBuf>,
}

/// The HTTP server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub bind: SocketAddr,
    /// Where probes and metrics are served apart from the API.
    pub ops_bind: Option<SocketAddr>,
    /// What this server does.
    pub roles: Vec<Role>,
    /// Threads that serve requests. Without it, half the number of processors.
    pub workers: Option<u16>,
    /// Open connections per worker.
    pub max_connections: u32,
    pub client_request_timeout_ms: u64,
    pub body_timeout_ms: u64,
    pub keep_alive_s: u64,
    /// How long `/readyz` answers 503 before the server refuses new requests.
    pub drain_delay_ms: u64,
    pub shutdown_timeout_s: u64,
    pub cors_allowed_origins: Vec<String>,
}

/// A part of what servers do. A large installation runs them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves the API.
    Api,
    /// Publishes events to Redis.
    Publish,
    /// Makes figures, statements and notifications of the events.
    Consume,
    /// Runs the server's own jobs, and looks after all others.
    Work,
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = [("api", Self::Api), ("publish", Self::Publish), ("consume", Self::Consume), ("work", Self::Work)];
        one_of(deserializer, &words)
    }
}

/// PostgreSQL, or the embedded SQLite file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// A `postgres://` address; without it, the embedded database is used.
    pub url: Option<SecretString>,
    /// The file of the embedded database.
    pub path: PathBuf,
    /// PostgreSQL connections for commands.
    pub max_connections: u32,
    /// PostgreSQL connections for reads and the publisher.
    pub read_connections: u32,
    pub acquire_timeout_ms: u64,
    pub statement_timeout_ms: u64,
    pub lock_timeout_ms: u64,
    /// Connections of the embedded database that only read.
    pub readers: u32,
}

/// Where the event streams are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// A `redis://` or `rediss://` address; for a cluster, one or more, separated by commas.
    /// Without it, nothing is published and events are read over HTTP.
    pub url: Option<SecretString>,
    pub cluster: bool,
    pub pool_size: u32,
    pub response_timeout_ms: u64,
    pub connect_timeout_ms: u64,
}

/// How long what was published is kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Events in the streams.
    pub retain_hours: u32,
    /// When they were published, in the database.
    pub batch_retain_days: u32,
}

/// What events say about this server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// Stored in the database at the first start. It never changes.
    pub source: EventSource,
}

/// How bearer tokens are checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    pub issuer: String,
    pub audience: String,
    pub keys: Vec<AuthKey>,
    pub jwks_url: Option<String>,
    pub jwks_refresh_s: u64,
}

/// A configured key, with the only algorithm that it may be used with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthKey {
    /// The id of the key in a token's header.
    pub kid: String,
    pub alg: Algorithm,
    pub(super) secret: Option<SecretString>,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) public_key_pem: Option<String>,
    pub(super) public_key_file: Option<PathBuf>,
}

/// The algorithms of RFC 7518 and RFC 8037 that tokens may be signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Hs256,
    Rs256,
    Es256,
    EdDsa,
}

impl<'de> Deserialize<'de> for Algorithm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = [("HS256", Self::Hs256), ("RS256", Self::Rs256), ("ES256", Self::Es256), ("EdDSA", Self::EdDsa)];
        one_of(deserializer, &words)
    }
}

/// Reads one of the words.
fn one_of<'de, D: Deserializer<'de>, T: Copy>(deserializer: D, words: &[(&str, T)]) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        de::Error::custom(format_args!("must be one of {}", words.join(", ")))
    })
}

/// What a key's signatures are checked with.
#[derive(Clone, Debug)]
pub enum KeyMaterial<'a> {
    /// For HS256: at least 32 bytes.
    Secret(&'a SecretString),
    /// For all others: a public key in PEM form.
    PublicPem(&'a str),
}

/// The lanes and their batches.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// The default depends on the database.
    pub lanes: Option<u8>,
    /// Commands that may wait in one lane.
    pub queue_capacity: usize,
    /// Commands in one transaction.
    pub max_batch: usize,
    /// Approximate size of the cached states.
    pub memory_mb: u16,
}

/// The task that publishes events to Redis.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publisher {
    pub lease_ttl_ms: u64,
    /// The default depends on the database.
    pub poll_ms: Option<u64>,
}

/// Limits of one workspace on one replica.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub workspace_in_flight: u32,
    /// Reads of one workspace in flight.
    pub workspace_reads: u32,
    pub workspace_rate_per_s: u32,
}

/// Logs and traces.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    pub log_format: LogFormat,
    /// In the form of `tracing_subscriber::EnvFilter`.
    pub log_filter: String,
    /// The base address of an OTLP/HTTP receiver; without it, no traces are sent.
    pub otlp_endpoint: Option<String>,
    pub service_instance: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl<'de> Deserialize<'de> for LogFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_of(deserializer, &[("text", Self::Text), ("json", Self::Json)])
    }
}

/// Where the plans come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plans {
    pub file: Option<PathBuf>,
}

/// The minimum length of an HS256 secret: that of the hash (RFC 7518, section 3.2).
const MIN_SECRET_BYTES: usize = 32;

impl Redis {
    /// The addresses of the nodes; only a cluster has more than one.
    #[must_use]
    pub fn urls(&self) -> Vec<SecretString> {
        let urls = self.url.iter().flat_map(|url| url.expose_secret().split(','));
        urls.map(str::trim).filter(|url| !url.is_empty()).map(SecretString::from).collect()
    }
}

impl Server {
    #[must_use]
    pub fn has_role(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    #[must_use]
    pub const fn body_timeout(&self) -> Duration {
        Duration::from_millis(self.body_timeout_ms)
    }
}

impl AuthKey {
    /// What its signatures are checked with. Files were read together with the configuration.
    #[must_use]
    pub fn material(&self) -> Option<KeyMaterial<'_>> {
        match self.alg {
            Algorithm::Hs256 => self.secret.as_ref().map(KeyMaterial::Secret),
            Algorithm::Rs256 | Algorithm::Es256 | Algorithm::EdDsa => {
                self.public_key_pem.as_deref().map(KeyMaterial::PublicPem)
            }
        }
    }

    /// Reads the file with the secret or public key, and checks its content.
    fn read_file(&mut self) -> Result<(), (&'static str, String)> {
        let read = |field: &'static str, file: &PathBuf| {
            std::fs::read_to_string(file).map_err(|error| (field, format!("cannot read {}: {error}", file.display())))
        };
        if let Some(file) = &self.secret_file {
            self.secret = Some(SecretString::from(read("secret_file", file)?.trim_end()));
        }
        if let Some(file) = &self.public_key_file {
            self.public_key_pem = Some(read("public_key_file", file)?);
        }
        let field_of = |inline, in_file, is_file: bool| if is_file { in_file } else { inline };
        match self.material() {
            Some(KeyMaterial::Secret(secret)) if secret.expose_secret().len() < MIN_SECRET_BYTES => {
                let field = field_of("secret", "secret_file", self.secret_file.is_some());
                Err((field, format!("must have at least {MIN_SECRET_BYTES} bytes")))
            }
            Some(KeyMaterial::PublicPem(pem)) if !pem.contains("-----BEGIN ") || pem.contains("PRIVATE KEY") => {
                let field = field_of("public_key_pem", "public_key_file", self.public_key_file.is_some());
                Err((field, "must be a public key in PEM form".to_owned()))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Auth {
    /// Reads the files of all keys. Returns the problems by key.
    pub(super) fn read_key_files(&mut self) -> Vec<(String, String)> {
        let read = self.keys.iter_mut().enumerate().map(|(n, key)| (n, key.read_file()));
        read.filter_map(|(n, result)| {
            let (field, problem) = result.err()?;
            Some((format!("auth.keys[{n}].{field}"), problem))
        })
        .collect()
    }
}
