//! Keys for verifying signatures. Each key has exactly one algorithm.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::claims::{Claims, TokenError};

/// A shared secret must be at least as long as the hash (RFC 7518, section 3.2).
const MIN_SECRET_LEN: usize = 32;

/// The supported algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum KeyAlg {
    HS256,
    RS256,
    ES256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl KeyAlg {
    const fn algorithm(self) -> Algorithm {
        match self {
            Self::HS256 => Algorithm::HS256,
            Self::RS256 => Algorithm::RS256,
            Self::ES256 => Algorithm::ES256,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }
}

/// A configured key: a secret for HS256, a public key for all others.
#[derive(Clone, Debug)]
pub struct KeyConfig {
    pub kid: String,
    pub alg: KeyAlg,
    pub secret: Option<SecretString>,
    pub public_key_pem: Option<String>,
}

/// Why a key is invalid, or could not sign.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("HS256 needs a secret of at least {MIN_SECRET_LEN} bytes and no public key")]
    Secret,
    #[error("this algorithm needs public_key_pem and no secret")]
    PublicKey,
    #[error("the key cannot be read: {0}")]
    Unreadable(jsonwebtoken::errors::Error),
    #[error("the token cannot be signed: {0}")]
    Signing(jsonwebtoken::errors::Error),
}

/// A key and its one algorithm.
#[derive(Clone)]
pub struct Key {
    decoding: DecodingKey,
    validation: Validation,
}

impl Key {
    fn new(algorithm: Algorithm, decoding: DecodingKey) -> Self {
        let mut validation = Validation::new(algorithm);
        // The claims are checked in `auth`, against the injected clock.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        Self { decoding, validation }
    }

    pub fn from_config(config: &KeyConfig) -> Result<Self, KeyError> {
        let decoding = match (config.alg, &config.secret, &config.public_key_pem) {
            (KeyAlg::HS256, Some(secret), None) => {
                let secret = secret.expose_secret().as_bytes();
                if secret.len() < MIN_SECRET_LEN {
                    return Err(KeyError::Secret);
                }
                DecodingKey::from_secret(secret)
            }
            (KeyAlg::HS256, ..) => return Err(KeyError::Secret),
            (KeyAlg::RS256, None, Some(pem)) => {
                DecodingKey::from_rsa_pem(pem.as_bytes()).map_err(KeyError::Unreadable)?
            }
            (KeyAlg::ES256, None, Some(pem)) => {
                DecodingKey::from_ec_pem(pem.as_bytes()).map_err(KeyError::Unreadable)?
            }
            (KeyAlg::EdDsa, None, Some(pem)) => {
                DecodingKey::from_ed_pem(pem.as_bytes()).map_err(KeyError::Unreadable)?
            }
            (KeyAlg::RS256 | KeyAlg::ES256 | KeyAlg::EdDsa, ..) => return Err(KeyError::PublicKey),
        };
        Ok(Self::new(config.alg.algorithm(), decoding))
    }

    /// Converts a published key. None if it is not for signatures, or its type is not supported. The type determines
    /// the algorithm. Symmetric keys are refused, because a published secret is none.
    #[must_use]
    pub fn from_jwk(jwk: &Jwk) -> Option<Self> {
        if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return None;
        }
        let (algorithm, jwk_algorithm) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => return None,
        };
        if jwk.common.key_algorithm.as_ref().is_some_and(|stated| *stated != jwk_algorithm) {
            return None;
        }
        DecodingKey::from_jwk(jwk).ok().map(|decoding| Self::new(algorithm, decoding))
    }

    /// Checks the signature and parses the claims. Does not check the claims.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        use jsonwebtoken::errors::ErrorKind;
        jsonwebtoken::decode(token, &self.decoding, &self.validation).map(|data| data.claims).map_err(|error| {
            match error.kind() {
                ErrorKind::Json(_) | ErrorKind::Utf8(_) => TokenError::Claims,
                ErrorKind::InvalidToken | ErrorKind::Base64(_) => TokenError::Malformed,
                _ => TokenError::Signature,
            }
        })
    }
}

/// Signs claims with a configured shared secret.
pub(super) fn sign(config: &KeyConfig, claims: &serde_json::Value) -> Result<String, KeyError> {
    let (KeyAlg::HS256, Some(secret)) = (config.alg, &config.secret) else { return Err(KeyError::Secret) };
    let header = Header { kid: Some(config.kid.clone()), ..Header::new(Algorithm::HS256) };
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret.expose_secret().as_bytes()))
        .map_err(KeyError::Signing)
}
