//! Authentication: who sends a request, and what their token allows.
//!
//! A token is a JWT. Its key is looked up by `kid`. The key determines the algorithm, never the header; URLs and keys
//! in the header are ignored. `exp`, `iss`, `aud` and `sub` are required, and `nbf` is checked if present. Verified
//! tokens are cached for a short time by their SHA-256, because a client sends the same token with every request.

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

/// Allowed difference between the clocks of the issuer and of this server.
const LEEWAY_S: i64 = 5;
/// How long a verified token is cached. After a key is withdrawn, its tokens work for at most this time.
const CACHE_TTL_S: i64 = 60;
/// The cache has shards, so that worker threads rarely wait for each other.
const CACHE_SHARDS: usize = 16;
/// Maximum number of tokens per shard. A full shard evicts its expired tokens, and all of them if none has expired.
const CACHE_SHARD_SIZE: usize = 512;
/// A longer token is refused without parsing. Real ones have less than 2 KiB.
const MAX_TOKEN_LEN: usize = 8 * 1024;
/// Maximum length of `sub`, which is stored with every command.
const MAX_SUBJECT_LEN: usize = 255;

/// Whose tokens are accepted.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// The required `iss`.
    pub issuer: String,
    /// `aud` must be or contain this.
    pub audience: String,
    pub keys: Vec<KeyConfig>,
    pub jwks: Option<JwksConfig>,
}

/// Why the configuration is invalid.
#[derive(Debug, thiserror::Error)]
pub enum AuthConfigError {
    #[error("keys[{index}] ({kid}): {source}")]
    Key { index: usize, kid: String, source: KeyError },
    #[error("keys: the kid {0} occurs more than once")]
    DuplicateKid(String),
    #[error("issuer and audience must not be empty")]
    EmptyName,
    #[error("neither keys nor a jwks url are configured")]
    NoKeys,
    #[error("jwks: {0}")]
    Jwks(String),
}

macro_rules! scopes {
    ($($(#[$doc:meta])* $name:ident $word:literal),+ $(,)?) => {
        /// A permission of a token.
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
    /// Book and reverse purchases.
    CreditsPurchase "credits:purchase",
    /// Grant credits, void what was granted, and refund usage.
    CreditsGrant "credits:grant",
    /// Start a billing period that is due.
    CreditsReset "credits:reset",
    /// Read balances, grants and the ledger.
    CreditsRead "credits:read",
    /// Change, cancel and resume a subscription.
    SubscriptionWrite "subscription:write",
    SubscriptionRead "subscription:read",
    /// Read usage logs and the terms of features.
    UsageRead "usage:read",
    /// Read the figures that this server makes of its events.
    AnalyticsRead "analytics:read",
    EventsRead "events:read",
    /// Read jobs.
    JobsRead "jobs:read",
    /// Submit and cancel jobs.
    JobsWrite "jobs:write",
    /// Run jobs. For tokens for all workspaces.
    Workers "workers",
    /// Look at the consumers, dead letters and what was done by hand. For tokens for all workspaces.
    OpsRead "ops:read",
    /// Stop, start and rebuild consumers. For tokens for all workspaces.
    OpsWrite "ops:write",
    PlansRead "plans:read",
    /// Provision workspaces.
    WorkspacesWrite "workspaces:write",
    WorkspacesRead "workspaces:read",
}

/// The workspaces that a token gives access to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenancy {
    One(WorkspaceId),
    All,
}

/// The caller, from a verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The `sub` of the token: the actor of its commands.
    pub subject: String,
    pub tenancy: Tenancy,
    scopes: u32,
    /// `exp` of the token, in seconds since 1970.
    expires_at_s: i64,
}

impl Principal {
    #[must_use]
    pub const fn has_scope(&self, scope: Scope) -> bool {
        self.scopes & scope.bit() != 0
    }

    #[must_use]
    pub fn may_access(&self, workspace_id: WorkspaceId) -> bool {
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
    cache: Vec<Mutex<HashMap<[u8; 32], CachedPrincipal>>>,
}

struct CachedPrincipal {
    principal: Arc<Principal>,
    cached_until_s: i64,
}

/// The result of checking a token without I/O.
pub enum TokenCheck {
    Valid(Arc<Principal>),
    Invalid(TokenError),
    /// The key is unknown: the published key set must be fetched.
    UnknownKey,
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

    /// The published key set. The caller must run [`Jwks::run`].
    #[must_use]
    pub fn jwks(&self) -> Option<&Arc<Jwks>> {
        self.jwks.as_ref()
    }

    /// Verifies a token with the keys that are known now.
    #[must_use]
    pub fn check(&self, token: &str) -> TokenCheck {
        if token.len() > MAX_TOKEN_LEN {
            return TokenCheck::Invalid(TokenError::Malformed);
        }
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now_s = self.now_s();
        if let Some(principal) = self.cached(&digest, now_s) {
            return TokenCheck::Valid(principal);
        }
        let kid = match jsonwebtoken::decode_header(token) {
            // `crit` names extensions that the verifier must support, and this one supports none (RFC 7515, 4.1.11).
            Ok(header) if header.crit.is_some() => return TokenCheck::Invalid(TokenError::Malformed),
            Ok(header) if !is_access_token(header.typ.as_deref()) => return TokenCheck::Invalid(TokenError::Type),
            Ok(header) => header.kid,
            Err(_) => return TokenCheck::Invalid(TokenError::Malformed),
        };
        let verified = match self.static_key(kid.as_deref()) {
            Some(key) => self.verify(key, token, now_s),
            None => match (&self.jwks, kid.as_deref()) {
                (Some(jwks), Some(kid)) => match jwks.key(kid) {
                    Some(key) => self.verify(&key, token, now_s),
                    None => return TokenCheck::UnknownKey,
                },
                _ => Err(TokenError::UnknownKey),
            },
        };
        match verified {
            Ok(principal) => TokenCheck::Valid(self.insert_cached(digest, principal, now_s)),
            Err(error) => TokenCheck::Invalid(error),
        }
    }

    /// Fetches the published keys if the token needs an unknown one, then verifies it.
    pub async fn fetch_key_and_check(&self, token: &str) -> Result<Arc<Principal>, TokenError> {
        if let (Some(jwks), Ok(header)) = (&self.jwks, jsonwebtoken::decode_header(token))
            && let Some(kid) = header.kid
        {
            jwks.fetch_unless_known(&kid).await;
        }
        match self.check(token) {
            TokenCheck::Valid(principal) => Ok(principal),
            TokenCheck::Invalid(error) => Err(error),
            TokenCheck::UnknownKey => Err(TokenError::UnknownKey),
        }
    }

    fn now_s(&self) -> i64 {
        self.clock.now().micros().div_euclid(1_000_000)
    }

    /// A token without `kid` is accepted only if there is exactly one key.
    fn static_key(&self, kid: Option<&str>) -> Option<&Key> {
        match kid {
            Some(kid) => self.keys.get(kid),
            None if self.keys.len() == 1 && self.jwks.is_none() => self.keys.values().next(),
            None => None,
        }
    }

    fn verify(&self, key: &Key, token: &str, now_s: i64) -> Result<Principal, TokenError> {
        let claims = key.verify(token)?;
        let is_audience_ours = match &claims.aud {
            Audience::One(name) => *name == self.audience,
            Audience::Several(names) => names.contains(&self.audience),
        };
        if claims.iss != self.issuer || !is_audience_ours {
            return Err(TokenError::IssuerOrAudience);
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

    fn shard(&self, digest: &[u8; 32]) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], CachedPrincipal>> {
        let index = usize::from(digest[0]) % self.cache.len();
        self.cache[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, digest: &[u8; 32], now_s: i64) -> Option<Arc<Principal>> {
        let shard = self.shard(digest);
        shard.get(digest).filter(|cached| now_s < cached.cached_until_s).map(|cached| Arc::clone(&cached.principal))
    }

    fn insert_cached(&self, digest: [u8; 32], principal: Principal, now_s: i64) -> Arc<Principal> {
        let cached_until_s = principal.expires_at_s.saturating_add(LEEWAY_S).min(now_s + CACHE_TTL_S);
        let principal = Arc::new(principal);
        let mut shard = self.shard(&digest);
        if shard.len() >= CACHE_SHARD_SIZE {
            shard.retain(|_, cached| now_s < cached.cached_until_s);
            if shard.len() >= CACHE_SHARD_SIZE {
                shard.clear();
            }
        }
        shard.insert(digest, CachedPrincipal { principal: Arc::clone(&principal), cached_until_s });
        principal
    }
}

/// Whether a token of this type may be an access token. An issuer signs others with the same key: to refresh, to log out,
/// to prove possession of a key. RFC 9068 gives access tokens the type `at+jwt`; older issuers write `JWT` or nothing. A
/// type is a media type, whose `application/` may be left out (RFC 7515, 4.1.9).
fn is_access_token(typ: Option<&str>) -> bool {
    let Some(typ) = typ else { return true };
    let is_one_of = |names: &[&str]| names.iter().any(|name| typ.eq_ignore_ascii_case(name));
    is_one_of(&["JWT", "at+jwt", "application/at+jwt"])
}

/// The contents of a development token.
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

/// Signs a token with a shared secret (HS256), for development and tests. Production tokens come from an identity
/// provider.
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
