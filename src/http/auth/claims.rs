//! The claims that are read from a token, and the reasons to refuse one.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Why a token was refused. The reason is only logged; the caller is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is malformed")]
    Malformed,
    #[error("the token is not an access token: its type must be JWT or at+jwt")]
    Type,
    #[error("the key is unknown")]
    UnknownKey,
    #[error("the algorithm or the signature is wrong")]
    Signature,
    #[error("a required claim is missing or malformed")]
    Claims,
    #[error("the issuer or audience is wrong")]
    IssuerOrAudience,
    #[error("the token is not valid at this time")]
    Time,
}

/// The payload of a token.
#[derive(Deserialize)]
pub(super) struct Claims {
    #[serde(deserialize_with = "numeric_date")]
    pub(super) exp: i64,
    #[serde(default, deserialize_with = "optional_numeric_date")]
    pub(super) nbf: Option<i64>,
    pub(super) iss: String,
    pub(super) aud: Audience,
    pub(super) sub: String,
    pub(super) scope: String,
    pub(super) workspace_id: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    Several(Vec<String>),
}

/// A NumericDate (RFC 7519): seconds since 1970, optionally with a fraction.
fn numeric_date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum NumericDate {
        Whole(i64),
        Fraction(f64),
    }
    match NumericDate::deserialize(deserializer)? {
        NumericDate::Whole(seconds) => Ok(seconds),
        NumericDate::Fraction(seconds) => Duration::try_from_secs_f64(seconds)
            .ok()
            .and_then(|since| i64::try_from(since.as_secs()).ok())
            .ok_or_else(|| serde::de::Error::custom("not a NumericDate")),
    }
}

fn optional_numeric_date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    numeric_date(deserializer).map(Some)
}
