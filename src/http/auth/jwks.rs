//! A published key set (RFC 7517), fetched from one configured URL.
//!
//! If a fetch fails, the last valid set stays in use. An unknown `kid` causes at most one fetch per
//! [`MIN_FETCH_INTERVAL`], so tokens with forged ids cannot make this server flood the endpoint. Redirects are not
//! followed, and a `kid` never becomes part of the URL.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::keys::Key;

/// Minimum time between two fetches.
pub const MIN_FETCH_INTERVAL: Duration = Duration::from_secs(30);
/// Short, because a request waits for the new key.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For the whole fetch, including the body.
pub(in crate::http) const FETCH_TIMEOUT: Duration = Duration::from_secs(3);
/// Real sets have less than 20 KiB.
const MAX_BODY_LEN: usize = 256 * 1024;
/// More keys than any issuer publishes.
const MAX_KEYS: usize = 100;

/// Where keys are published.
#[derive(Clone, Debug)]
pub struct JwksConfig {
    /// Must be https, or http to a loopback address.
    pub url: String,
    /// Time between two regular fetches.
    pub refresh: Duration,
}

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the endpoint cannot be reached: {0}")]
    Request(#[from] reqwest::Error),
    #[error("the endpoint answered {0}")]
    Status(u16),
    #[error("the set is larger than {MAX_BODY_LEN} bytes")]
    TooLarge,
    #[error("the set is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the set has more than {MAX_KEYS} keys")]
    TooMany,
    #[error("the set has no usable key")]
    Empty,
}

/// The key set of the last successful fetch.
pub struct Jwks {
    url: Url,
    refresh: Duration,
    client: reqwest::Client,
    keys: RwLock<Arc<HashMap<String, Key>>>,
    /// When the last fetch started. The lock makes concurrent callers wait for one fetch.
    last_fetch: Mutex<Option<Instant>>,
}

impl Jwks {
    pub fn new(config: &JwksConfig) -> Result<Self, String> {
        let url = Url::parse(&config.url).map_err(|error| format!("url: {error}"))?;
        let is_loopback = match url.host_str() {
            Some("localhost") => true,
            Some(host) => host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
            None => false,
        };
        if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback) {
            return Err("url: must be https".to_owned());
        }
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(FETCH_TIMEOUT)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { url, refresh: config.refresh, client, keys: RwLock::default(), last_fetch: Mutex::new(None) })
    }

    /// A key of the last successful fetch.
    #[must_use]
    pub fn key(&self, kid: &str) -> Option<Key> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).get(kid).cloned()
    }

    /// Fetches the set if the key is unknown and the last fetch was not within [`MIN_FETCH_INTERVAL`].
    pub async fn fetch_unless_known(&self, kid: &str) {
        let mut last_fetch = self.last_fetch.lock().await;
        let is_recent = last_fetch.is_some_and(|at| at.elapsed() < MIN_FETCH_INTERVAL);
        if is_recent || self.key(kid).is_some() {
            return;
        }
        *last_fetch = Some(Instant::now());
        self.fetch().await;
    }

    /// Fetches the set regularly until `stop` is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            *self.last_fetch.lock().await = Some(Instant::now());
            let wait = if self.fetch().await { self.refresh } else { MIN_FETCH_INTERVAL };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(wait) => {}
            }
        }
    }

    async fn fetch(&self) -> bool {
        match self.try_fetch().await {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "fetched the key set");
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the key set could not be fetched; the last one stays in use");
                false
            }
        }
    }

    async fn try_fetch(&self) -> Result<HashMap<String, Key>, FetchError> {
        let mut response = self.client.get(self.url.clone()).send().await?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_BODY_LEN {
                return Err(FetchError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        let keys = parse(&body)?;
        if keys.is_empty() { Err(FetchError::Empty) } else { Ok(keys) }
    }
}

/// Parses a key set. Keys of unsupported types are skipped.
fn parse(body: &[u8]) -> Result<HashMap<String, Key>, FetchError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(body)?;
    if set.keys.len() > MAX_KEYS {
        return Err(FetchError::TooMany);
    }
    let usable = set.keys.into_iter().filter_map(|value| serde_json::from_value(value).ok());
    let set = JwkSet { keys: usable.collect() };
    let named = |jwk: &jsonwebtoken::jwk::Jwk| Some((jwk.common.key_id.clone()?, Key::from_jwk(jwk)?));
    Ok(set.keys.iter().filter_map(named).collect())
}
