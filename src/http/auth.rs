//! Authentication: who sends a request, and what their token lets them do.
//!
//! A token is a JWT. Its key is looked up by `kid` in a map; the algorithm is the key's, never the
//! header's choice, and urls or keys inside a header are ignored. `exp`, `iss`, `aud` and `sub` are
//! required, `nbf` counts where present. A token that was verified is remembered by its SHA-256 for
//! a short while, because every request carries the same one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use self::claims::Audience;
pub use self::claims::TokenError;
use self::jwks::{Jwks, JwksConfig};
use self::keys::{Key, KeyConfig, KeyError};
use super::ids::hyphenated;
use crate::clock::Clock;
use crate::domain::ids::WorkspaceId;
use crate::domain::text::check_text;
use crate::domain::time::Timestamp;

mod claims;
pub mod jwks;
pub mod keys;

/// How far the issuer's clock may be from this server's.
const LEEWAY_S: i64 = 5;
/// How long a verified token is believed without verifying it again: a key that is withdrawn stops
/// to work within this time.
const CACHE_TTL_S: i64 = 60;
/// The cache is cut into shards so that workers rarely wait for each other.
const CACHE_SHARDS: usize = 16;
/// Tokens per shard; beyond that expired ones go first, then the whole shard.
const CACHE_SHARD_SIZE: usize = 512;
/// A longer token is refused unread: real ones have less than 2 KiB.
const MAX_TOKEN_LEN: usize = 8 * 1024;
/// The most characters of a `sub`: it is stored with every command.
const MAX_SUBJECT_LEN: usize = 255;

/// Who may send requests.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must be or contain.
    pub audience: String,
    pub keys: Vec<KeyConfig>,
    pub jwks: Option<JwksConfig>,
}

/// Why the configuration of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthConfigError {
    #[error("keys[{index}] ({kid}): {source}")]
    Key { index: usize, kid: String, source: KeyError },
    #[error("keys: the kid {0} occurs twice")]
    DuplicateKid(String),
    #[error("issuer and audience must not be empty")]
    EmptyName,
    #[error("there is neither a key nor a jwks url")]
    NoKeys,
    #[error("jwks: {0}")]
    Jwks(String),
}

macro_rules! scopes {
    ($($(#[$doc:meta])* $name:ident $word:literal),+ $(,)?) => {
        /// What a token may be allowed to do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Scope { $($(#[$doc])* $name),+ }

        impl Scope {
            pub const ALL: &[Self] = &[$(Self::$name),+];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }

            const fn bit(self) -> u32 {
                1 << self as u32
            }
        }

        /// One type per scope, for extractors that require it.
        pub mod scope {
            $(#[derive(Debug)] pub struct $name;
            impl super::RequiredScope for $name {
                const SCOPE: super::Scope = super::Scope::$name;
            })+
        }
    };
}

/// A scope known at compile time.
pub trait RequiredScope: 'static {
    const SCOPE: Scope;
}

scopes! {
    /// Deduct credits.
    CreditsWrite "credits:write",
    /// Book purchases.
    CreditsPurchase "credits:purchase",
    /// Begin a billing period that is due.
    CreditsReset "credits:reset",
    /// Read balances, grants and the ledger.
    CreditsRead "credits:read",
    /// Change, cancel and resume a subscription.
    SubscriptionWrite "subscription:write",
    SubscriptionRead "subscription:read",
    /// Read usage logs and the terms of features.
    UsageRead "usage:read",
    EventsRead "events:read",
    PlansRead "plans:read",
    /// Provision workspaces.
    WorkspacesWrite "workspaces:write",
    WorkspacesRead "workspaces:read",
}

/// Which workspaces a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenancy {
    One(WorkspaceId),
    All,
}

/// The bearer of a verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The token's `sub`: the actor of its commands.
    pub subject: String,
    pub tenancy: Tenancy,
    scopes: u32,
    /// When the token ends, in seconds since 1970, without leeway.
    expires_at_s: i64,
}

impl Principal {
    #[must_use]
    pub const fn has(&self, scope: Scope) -> bool {
        self.scopes & scope.bit() != 0
    }

    #[must_use]
    pub fn may_see(&self, workspace_id: WorkspaceId) -> bool {
        match self.tenancy {
            Tenancy::One(own) => own == workspace_id,
            Tenancy::All => true,
        }
    }
}

/// Verifies tokens.
pub struct Verifier {
    issuer: String,
    audience: String,
    keys: HashMap<String, Key>,
    jwks: Option<Arc<Jwks>>,
    clock: Arc<dyn Clock>,
    cache: Vec<Mutex<HashMap<[u8; 32], Cached>>>,
}

struct Cached {
    principal: Arc<Principal>,
    until_s: i64,
}

/// What came of looking at a token without waiting for anything.
pub enum Checked {
    Good(Arc<Principal>),
    Bad(TokenError),
    /// Its key is not known yet: the published key set must be asked.
    AskKeySet,
}

impl Verifier {
    pub fn new(config: &AuthConfig, clock: Arc<dyn Clock>) -> Result<Self, AuthConfigError> {
        if config.issuer.is_empty() || config.audience.is_empty() {
            return Err(AuthConfigError::EmptyName);
        }
        let mut keys = HashMap::with_capacity(config.keys.len());
        for (index, entry) in config.keys.iter().enumerate() {
            let key = Key::from_config(entry).map_err(|source| AuthConfigError::Key {
                index,
                kid: entry.kid.clone(),
                source,
            })?;
            if keys.insert(entry.kid.clone(), key).is_some() {
                return Err(AuthConfigError::DuplicateKid(entry.kid.clone()));
            }
        }
        let jwks = config.jwks.as_ref().map(Jwks::new).transpose().map_err(AuthConfigError::Jwks)?.map(Arc::new);
        if keys.is_empty() && jwks.is_none() {
            return Err(AuthConfigError::NoKeys);
        }
        let cache = (0..CACHE_SHARDS).map(|_| Mutex::default()).collect();
        Ok(Self { issuer: config.issuer.clone(), audience: config.audience.clone(), keys, jwks, clock, cache })
    }

    /// The published key set, whose [`Jwks::run`] the composition root must keep running.
    #[must_use]
    pub fn jwks(&self) -> Option<&Arc<Jwks>> {
        self.jwks.as_ref()
    }

    /// Verifies a token with what is known now.
    #[must_use]
    pub fn check(&self, token: &str) -> Checked {
        if token.len() > MAX_TOKEN_LEN {
            return Checked::Bad(TokenError::Malformed);
        }
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now_s = self.now_s();
        if let Some(principal) = self.cached(&digest, now_s) {
            return Checked::Good(principal);
        }
        let kid = match jsonwebtoken::decode_header(token) {
            // Whoever signed it demands that extensions be understood, and none is (RFC 7515, 4.1.11).
            Ok(header) if header.crit.is_some() => return Checked::Bad(TokenError::Malformed),
            Ok(header) => header.kid,
            Err(_) => return Checked::Bad(TokenError::Malformed),
        };
        let verified = match self.static_key(kid.as_deref()) {
            Some(key) => self.verify(key, token, now_s),
            None => match (&self.jwks, kid.as_deref()) {
                (Some(jwks), Some(kid)) => match jwks.known(kid) {
                    Some(key) => self.verify(&key, token, now_s),
                    None => return Checked::AskKeySet,
                },
                _ => Err(TokenError::UnknownKey),
            },
        };
        match verified {
            Ok(principal) => Checked::Good(self.remember(digest, principal, now_s)),
            Err(error) => Checked::Bad(error),
        }
    }

    /// Verifies a token; its key may have to be fetched first.
    pub async fn verify_fetching(&self, token: &str) -> Result<Arc<Principal>, TokenError> {
        if let (Some(jwks), Ok(header)) = (&self.jwks, jsonwebtoken::decode_header(token))
            && let Some(kid) = header.kid
        {
            jwks.fetch_for(&kid).await;
        }
        match self.check(token) {
            Checked::Good(principal) => Ok(principal),
            Checked::Bad(error) => Err(error),
            Checked::AskKeySet => Err(TokenError::UnknownKey),
        }
    }

    fn now_s(&self) -> i64 {
        self.clock.now().micros().div_euclid(1_000_000)
    }

    /// A token without `kid` is only clear when there is exactly one key.
    fn static_key(&self, kid: Option<&str>) -> Option<&Key> {
        match kid {
            Some(kid) => self.keys.get(kid),
            None if self.keys.len() == 1 && self.jwks.is_none() => self.keys.values().next(),
            None => None,
        }
    }

    fn verify(&self, key: &Key, token: &str, now_s: i64) -> Result<Principal, TokenError> {
        let claims = key.verify(token)?;
        let addressed = match &claims.aud {
            Audience::One(name) => *name == self.audience,
            Audience::Several(names) => names.contains(&self.audience),
        };
        if claims.iss != self.issuer || !addressed {
            return Err(TokenError::Addressee);
        }
        let expired = claims.exp.saturating_add(LEEWAY_S) <= now_s;
        let premature = claims.nbf.is_some_and(|nbf| nbf.saturating_sub(LEEWAY_S) > now_s);
        if expired || premature {
            return Err(TokenError::Time);
        }
        check_text(&claims.sub, MAX_SUBJECT_LEN).map_err(|_| TokenError::Claims)?;
        let tenancy = match claims.workspace_id.as_str() {
            "*" => Tenancy::All,
            id => Tenancy::One(WorkspaceId(hyphenated(id).ok_or(TokenError::Claims)?)),
        };
        let scopes = claims
            .scope
            .split(' ')
            .filter_map(|word| Scope::ALL.iter().find(|scope| scope.as_str() == word))
            .fold(0, |bits, scope| bits | scope.bit());
        Ok(Principal { subject: claims.sub, tenancy, scopes, expires_at_s: claims.exp })
    }

    fn shard(&self, digest: &[u8; 32]) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Cached>> {
        let index = usize::from(digest[0]) % self.cache.len();
        self.cache[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, digest: &[u8; 32], now_s: i64) -> Option<Arc<Principal>> {
        let shard = self.shard(digest);
        shard.get(digest).filter(|cached| now_s < cached.until_s).map(|cached| Arc::clone(&cached.principal))
    }

    fn remember(&self, digest: [u8; 32], principal: Principal, now_s: i64) -> Arc<Principal> {
        let until_s = principal.expires_at_s.saturating_add(LEEWAY_S).min(now_s + CACHE_TTL_S);
        let principal = Arc::new(principal);
        let mut shard = self.shard(&digest);
        if shard.len() >= CACHE_SHARD_SIZE {
            shard.retain(|_, cached| now_s < cached.until_s);
            if shard.len() >= CACHE_SHARD_SIZE {
                shard.clear();
            }
        }
        shard.insert(digest, Cached { principal: Arc::clone(&principal), until_s });
        principal
    }
}

/// What a development token says.
#[derive(Clone, Debug)]
pub struct MintRequest<'a> {
    pub issuer: &'a str,
    pub audience: &'a str,
    pub subject: &'a str,
    pub tenancy: Tenancy,
    pub scopes: &'a [Scope],
    pub issued_at: Timestamp,
    pub valid_for_s: i64,
}

/// Signs a token with a shared secret (HS256): for development and tests. Production tokens come
/// from an identity provider.
pub fn mint(key: &KeyConfig, request: &MintRequest<'_>) -> Result<String, KeyError> {
    let issued_at_s = request.issued_at.micros().div_euclid(1_000_000);
    let workspace_id = match request.tenancy {
        Tenancy::One(id) => id.to_string(),
        Tenancy::All => "*".to_owned(),
    };
    let scope = request.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ");
    let claims = serde_json::json!({
        "iss": request.issuer,
        "aud": request.audience,
        "sub": request.subject,
        "iat": issued_at_s,
        "exp": issued_at_s.saturating_add(request.valid_for_s),
        "scope": scope,
        "workspace_id": workspace_id,
    });
    keys::sign(key, &claims)
}

#[cfg(test)]
mod tests;
