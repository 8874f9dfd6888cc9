//! Calls to the running server.
//!
//! Operators' commands that use this never open the database: the server checks what the caller may do, and keeps who did
//! it. Every request has a timeout and every answer a largest size. A token is never an argument, because every user of a
//! machine can read the arguments of a process; and it goes over plain HTTP to this machine only.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use reqwest::{Method, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::serve::reachable;
use crate::app::signing_key;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::http::auth::keys::KeyConfig;
use crate::http::auth::{MintRequest, Scope, Tenancy, mint};

/// The environment variable with a token.
const TOKEN_VAR: &str = "VISIONSCOPE_TOKEN";
/// Real tokens have less than 4 KiB.
const MAX_TOKEN_LEN: u64 = 16 * 1024;
/// The `sub` of a token that is made here.
const SUBJECT: &str = "operator";
/// Each request gets a token of its own, so a long wait does not outlive it.
const TOKEN_VALID_FOR_S: i64 = 120;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For a whole request with its answer. A dry run of a replay reads up to a hundred events.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// A page of 100 dead letters and 100 groups has less than 1 MiB.
const MAX_ANSWER_LEN: usize = 8 * 1024 * 1024;

/// Which server is called, with which token, and how its answer is printed.
#[derive(Args, Debug)]
pub(super) struct Remote {
    /// The server, such as `https://billing.example.com`. Default: the address `server.bind` on this machine.
    #[arg(long, global = true)]
    url: Option<String>,
    /// A file with a token. Default: the environment variable VISIONSCOPE_TOKEN, or else a token that is made with the first
    /// HS256 key of the configuration, or the demo's.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Prints the answer of the server as it is.
    #[arg(long, global = true)]
    pub(super) json: bool,
}

impl Remote {
    pub(super) fn client<'c>(&self, config: &'c Config) -> anyhow::Result<Client<'c>> {
        let base = match &self.url {
            Some(url) => parse_url(url)?,
            None => Url::parse(&format!("http://{}", reachable(config.server.bind)))?,
        };
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT);
        if base.scheme() == "http" {
            // A proxy would get the token in plain text.
            builder = builder.no_proxy();
        }
        let token = match self.given_token()? {
            Some(token) => Token::Given(token),
            None => Token::Made(Box::new(signing_key(config).with_context(|| {
                format!("a token is needed: give --token-file or {TOKEN_VAR}, because none can be made here")
            })?)),
        };
        Ok(Client { http: builder.build()?, base, token, config })
    }

    fn given_token(&self) -> anyhow::Result<Option<SecretString>> {
        let (origin, text) = match (&self.token_file, std::env::var_os(TOKEN_VAR)) {
            (Some(path), _) => (format!("--token-file {}", path.display()), read_token(path)?),
            (None, Some(text)) => {
                (TOKEN_VAR.to_owned(), text.into_string().ok().with_context(|| format!("{TOKEN_VAR} is not text"))?)
            }
            (None, None) => return Ok(None),
        };
        let token = text.trim();
        // Whatever else is in a wrong file does not become a header.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!("{origin}: does not hold a token");
        }
        Ok(Some(token.into()))
    }
}

/// Tokens go over plain HTTP to this machine only.
fn parse_url(text: &str) -> anyhow::Result<Url> {
    let url = Url::parse(text).context("--url")?;
    let is_loopback = match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
        None => false,
    };
    if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback) {
        bail!("--url: must be https, or http to a loopback address: a token would be sent in plain text");
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        bail!("--url: must have no user, no query and no fragment");
    }
    Ok(url)
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("--token-file {}", path.display()))?;
    file.take(MAX_TOKEN_LEN).read_to_string(&mut text).with_context(|| format!("--token-file {}", path.display()))?;
    Ok(text)
}

enum Token {
    Given(SecretString),
    Made(Box<KeyConfig>),
}

/// A server that is called with a token.
pub(super) struct Client<'c> {
    http: reqwest::Client,
    base: Url,
    token: Token,
    config: &'c Config,
}

/// An answer, as it is and as it is understood.
pub(super) struct Answer<T> {
    pub(super) text: String,
    pub(super) value: T,
}

/// Why a call has no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("{url} does not answer")]
    NoAnswer { url: Url, source: reqwest::Error },
    #[error("{url} has not answered, and may have done it all the same: look at GET /v1/ops/audit")]
    Unknown { url: Url, source: reqwest::Error },
    #[error("the server answered {}{}: {detail}", .status.as_u16(), .code.as_ref().map(|code| format!(" {code}")).unwrap_or_default())]
    Refused { status: StatusCode, code: Option<String>, detail: String },
    #[error("the answer is larger than {MAX_ANSWER_LEN} bytes")]
    TooLarge,
    #[error("the answer is not the one of such a server")]
    Unreadable(#[source] serde_json::Error),
    #[error("no token can be made")]
    Token(#[source] anyhow::Error),
}

impl CallError {
    /// Whether the same call may have an answer later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer { .. } | Self::Unknown { .. } => true,
            Self::Refused { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::TooLarge | Self::Unreadable(_) | Self::Token(_) => false,
        }
    }
}

/// A problem of this server (RFC 9457).
#[derive(Deserialize)]
struct ProblemAnswer {
    code: String,
    detail: String,
    #[serde(default)]
    errors: Vec<FieldAnswer>,
}

#[derive(Deserialize)]
struct FieldAnswer {
    pointer: Option<String>,
    parameter: Option<String>,
    detail: String,
}

impl Client<'_> {
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Answer<T>, CallError> {
        let mut url = self.url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.call(self.http.request(Method::GET, url), Scope::OpsRead).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &serde_json::Value,
    ) -> Result<Answer<T>, CallError> {
        self.call(self.http.request(Method::POST, self.url(path)).json(body), Scope::OpsWrite).await
    }

    pub(super) async fn patch<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &serde_json::Value,
    ) -> Result<Answer<T>, CallError> {
        self.call(self.http.request(Method::PATCH, self.url(path)).json(body), Scope::OpsWrite).await
    }

    /// The address of `/v1/ops/…`, also behind a proxy that serves the API in a folder.
    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v1", "ops"]).extend(path);
        }
        url
    }

    fn token(&self, scope: Scope) -> Result<SecretString, CallError> {
        let key = match &self.token {
            Token::Given(token) => return Ok(token.clone()),
            Token::Made(key) => key,
        };
        let request = MintRequest {
            issuer: &self.config.auth.issuer,
            audience: &self.config.auth.audience,
            subject: SUBJECT,
            tenancy: Tenancy::All,
            scopes: &[scope],
            issued_at: SystemClock.now(),
            valid_for_s: TOKEN_VALID_FOR_S,
        };
        Ok(mint(key, &request).map_err(|error| CallError::Token(error.into()))?.into())
    }

    async fn call<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
        scope: Scope,
    ) -> Result<Answer<T>, CallError> {
        let failed = |error: reqwest::Error| {
            let (url, is_unsent) = (self.base.clone(), error.is_connect() || error.is_builder());
            let source = error.without_url();
            if scope == Scope::OpsRead || is_unsent {
                CallError::NoAnswer { url, source }
            } else {
                CallError::Unknown { url, source }
            }
        };
        let mut response = request.bearer_auth(self.token(scope)?.expose_secret()).send().await.map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER_LEN {
                return Err(CallError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        let status = response.status();
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        let value = serde_json::from_slice(&body).map_err(CallError::Unreadable)?;
        Ok(Answer { text: String::from_utf8_lossy(&body).into_owned(), value })
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> CallError {
    let Ok(problem) = serde_json::from_slice::<ProblemAnswer>(body) else {
        let detail = "this is no answer of VisionScope Billing; check --url".to_owned();
        return CallError::Refused { status, code: None, detail };
    };
    let field = |field: FieldAnswer| {
        let place = field.pointer.or(field.parameter).unwrap_or_default();
        format!("; {place}: {}", field.detail)
    };
    let fields: String = problem.errors.into_iter().map(field).collect();
    CallError::Refused { status, code: Some(problem.code), detail: problem.detail + &fields }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_over_plain_http_to_this_machine_only() {
        for allowed in ["https://billing.example.com/eu", "http://127.0.0.1:8080", "http://[::1]:1", "http://localhost"]
        {
            assert!(parse_url(allowed).is_ok(), "{allowed}");
        }
        for refused in [
            "http://billing.example.com",
            "http://127.0.0.1.example.com",
            "ftp://127.0.0.1",
            "127.0.0.1:8080",
            "https://me:secret@billing.example.com",
            "https://billing.example.com?a=b",
        ] {
            assert!(parse_url(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_refusal_names_the_code_and_the_wrong_fields() {
        let body = br#"{"code": "invalid-text", "detail": "A text is wrong.", "errors": [{"pointer": "/reason", "detail": "is empty"}]}"#;
        let error = refusal(StatusCode::UNPROCESSABLE_ENTITY, body);
        assert_eq!(error.to_string(), "the server answered 422 invalid-text: A text is wrong.; /reason: is empty");
        assert!(!error.is_transient());
        let error = refusal(StatusCode::BAD_GATEWAY, b"<html>");
        assert!(error.to_string().starts_with("the server answered 502: ") && error.is_transient(), "{error}");
    }
}
