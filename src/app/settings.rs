//! Converts the sections of the configuration to the settings of each part.

use std::time::Duration;

use secrecy::SecretString;

use super::error::StartError;
use crate::config::{Algorithm, Config, KeyMaterial, Mode, Role};
use crate::demo;
use crate::http::auth::AuthConfig;
use crate::http::auth::jwks::JwksConfig;
use crate::http::auth::keys::{KeyAlg, KeyConfig};
use crate::http::limits::LimitsConfig;
use crate::http::{HttpConfig, Port};

/// SQLite has one writer, so a second lane would only wait.
const LANES_SQLITE: usize = 1;
/// Each lane keeps one database session busy. Fewer lanes make larger batches, which cost less per command. The
/// other half of the processors is left to the database.
const MAX_DEFAULT_LANES: usize = 8;

/// The default number of threads that serve requests, and of those that decide, write and publish. More threads
/// than processors cost more to wake than they gain.
#[must_use]
pub fn half_of_the_processors() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (processors / 2).max(1)
}

pub(super) fn default_lanes(config: &Config) -> usize {
    if config.database.url.is_none() {
        return LANES_SQLITE;
    }
    half_of_the_processors().min(MAX_DEFAULT_LANES)
}

/// The settings that tokens are checked with. In demo mode the generated key is returned too, to sign tokens.
pub(super) fn auth(config: &Config, mode: Mode) -> Result<(Option<KeyConfig>, AuthConfig), StartError> {
    let key_config = |kid: &str, alg: Algorithm, material: Option<KeyMaterial<'_>>| KeyConfig {
        kid: kid.to_owned(),
        alg: match alg {
            Algorithm::Hs256 => KeyAlg::HS256,
            Algorithm::Rs256 => KeyAlg::RS256,
            Algorithm::Es256 => KeyAlg::ES256,
            Algorithm::EdDsa => KeyAlg::EdDsa,
        },
        secret: match material {
            Some(KeyMaterial::Secret(secret)) => Some(SecretString::clone(secret)),
            Some(KeyMaterial::PublicPem(_)) | None => None,
        },
        public_key_pem: match material {
            Some(KeyMaterial::PublicPem(pem)) => Some(pem.to_owned()),
            Some(KeyMaterial::Secret(_)) | None => None,
        },
    };
    let mut keys: Vec<_> = config.auth.keys.iter().map(|key| key_config(&key.kid, key.alg, key.material())).collect();
    let demo_key = match mode {
        Mode::Configured => None,
        Mode::Demo => Some(demo::key(config.data_dir())?),
    };
    keys.extend(demo_key.clone());
    let refresh = Duration::from_secs(config.auth.jwks_refresh_s);
    let auth = AuthConfig {
        issuer: config.auth.issuer.clone(),
        audience: config.auth.audience.clone(),
        keys,
        jwks: config.auth.jwks_url.clone().map(|url| JwksConfig { url, refresh }),
    };
    Ok((demo_key, auth))
}

pub(super) fn http(config: &Config) -> HttpConfig {
    let server = &config.server;
    HttpConfig {
        workers: server.workers.map_or_else(half_of_the_processors, usize::from),
        max_connections: usize::try_from(server.max_connections).unwrap_or(usize::MAX),
        head_timeout: Duration::from_millis(server.client_request_timeout_ms),
        body_timeout: server.body_timeout(),
        decision_timeout: HttpConfig::default().decision_timeout,
        stall_timeout: HttpConfig::default().stall_timeout,
        keep_alive: Duration::from_secs(server.keep_alive_s),
        drain_timeout_s: server.shutdown_timeout_s,
        cors_allowed_origins: server.cors_allowed_origins.clone(),
        limits: LimitsConfig {
            max_in_flight: config.limits.workspace_in_flight,
            max_reads: config.limits.workspace_reads,
            requests_per_second: config.limits.workspace_rate_per_s,
        },
    }
}

/// What the main port serves.
pub(super) fn main_port(config: &Config) -> Port {
    match (config.server.has_role(Role::Api), config.server.ops_bind) {
        (true, None) => Port::Only,
        (true, Some(_)) => Port::Main,
        (false, _) => Port::Operations,
    }
}

/// How long `/readyz` answers 503 before the server refuses new requests.
pub(super) fn drain_delay(config: &Config, mode: Mode) -> Duration {
    match mode {
        Mode::Configured => Duration::from_millis(config.server.drain_delay_ms),
        Mode::Demo => Duration::ZERO,
    }
}
