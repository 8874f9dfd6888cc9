//! Extractors for the caller, the workspace, the query parameters and the idempotency key.
//!
//! Every request is checked in the same order: token (401), scope (403), workspace (404, with the same answer
//! for an unknown workspace and for another tenant's), `Accept` (406), request rate (429). Parameters and bodies
//! are read only after these checks.

use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::Method;
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use futures::FutureExt as _;
use futures::future::{Either, LocalBoxFuture};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::accept::preferred;
use super::auth::{Principal, RequiredScope, Tenancy, TokenCheck, TokenError, Verifier};
use super::body::field_errors::{SerdeFieldError, last_key};
use super::export::ListForm;
use super::ids::hyphenated;
use super::limits::Permit;
use super::problem::{Code, Problem};
use super::state::AppState;
use crate::domain::ids::{EventId, GrantId, HoldId, JobId, WorkerId, WorkspaceId};
use crate::domain::text::IdempotencyKey;
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageId;

/// What most operations answer with.
const JSON_ONLY: [(&str, ()); 1] = [("application/json", ())];

/// Added to every request by the middleware.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// From `X-Correlation-Id`, or generated.
    pub correlation_id: String,
}

impl RequestContext {
    /// The correlation id of a request. The middleware gives every request one.
    #[must_use]
    pub fn correlation_id_of(request: &HttpRequest) -> String {
        request.extensions().get::<Self>().map(|context| context.correlation_id.clone()).unwrap_or_default()
    }
}

/// A caller whose token has the scope.
#[derive(Debug)]
pub struct Caller<S> {
    pub principal: Arc<Principal>,
    scope: PhantomData<S>,
}

/// A caller whose token has the scope and is for the workspace in the path.
#[derive(Debug)]
pub struct WorkspaceCaller<S> {
    pub principal: Arc<Principal>,
    pub workspace_id: WorkspaceId,
    scope: PhantomData<S>,
    /// Present for a read.
    _read: Option<Permit>,
}

/// A caller of a list that is also exported, with the form of the answer that it prefers.
#[derive(Debug)]
pub struct ListCaller<S> {
    pub caller: WorkspaceCaller<S>,
    pub form: ListForm,
}

/// A caller whose token has the scope and is for all workspaces.
#[derive(Debug)]
pub struct OperatorCaller<S> {
    pub principal: Arc<Principal>,
    scope: PhantomData<S>,
}

/// Ready at once, unless the key of the token must be fetched.
type ExtractorFuture<T> = Either<Ready<Result<T, Problem>>, LocalBoxFuture<'static, Result<T, Problem>>>;

impl<S: RequiredScope> Caller<S> {
    fn authorize(request: &HttpRequest, principal: Arc<Principal>) -> Result<Self, Problem> {
        require_scope::<S>(&principal)?;
        require_accepted(request.headers(), &JSON_ONLY)?;
        Ok(Self { principal, scope: PhantomData })
    }
}

impl<S: RequiredScope> OperatorCaller<S> {
    fn authorize(request: &HttpRequest, principal: Arc<Principal>) -> Result<Self, Problem> {
        let Caller { principal, scope } = Caller::<S>::authorize(request, principal)?;
        if principal.tenancy == Tenancy::All {
            Ok(Self { principal, scope })
        } else {
            Err(Problem::plain(Code::AllWorkspacesRequired))
        }
    }
}

impl<S: RequiredScope> FromRequest for OperatorCaller<S> {
    type Error = Problem;
    type Future = ExtractorFuture<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        authenticate(request, Self::authorize)
    }
}

impl<S: RequiredScope> WorkspaceCaller<S> {
    fn authorize(request: &HttpRequest, principal: Arc<Principal>) -> Result<Self, Problem> {
        Self::authorize_for(request, principal, &JSON_ONLY).map(|(caller, ())| caller)
    }

    /// Answers have one of these media types. The caller's is what it prefers.
    fn authorize_for<T: Copy>(
        request: &HttpRequest,
        principal: Arc<Principal>,
        media_types: &[(&str, T)],
    ) -> Result<(Self, T), Problem> {
        require_scope::<S>(&principal)?;
        let workspace_id = workspace_id(request.match_info().get("workspace_id").unwrap_or_default())?;
        require_workspace(&principal, workspace_id)?;
        let wanted = require_accepted(request.headers(), media_types)?;
        let limits = &AppState::of(request).limits;
        limits.check_rate(workspace_id)?;
        let read = if *request.method() == Method::GET { Some(limits.reads.acquire(workspace_id)?) } else { None };
        Ok((Self { principal, workspace_id, scope: PhantomData, _read: read }, wanted))
    }
}

impl<S: RequiredScope> ListCaller<S> {
    fn authorize(request: &HttpRequest, principal: Arc<Principal>) -> Result<Self, Problem> {
        let (caller, form) = WorkspaceCaller::authorize_for(request, principal, &ListForm::MEDIA_TYPES)?;
        Ok(Self { caller, form })
    }
}

impl<S: RequiredScope> FromRequest for Caller<S> {
    type Error = Problem;
    type Future = ExtractorFuture<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        authenticate(request, Self::authorize)
    }
}

impl<S: RequiredScope> FromRequest for WorkspaceCaller<S> {
    type Error = Problem;
    type Future = ExtractorFuture<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        authenticate(request, Self::authorize)
    }
}

impl<S: RequiredScope> FromRequest for ListCaller<S> {
    type Error = Problem;
    type Future = ExtractorFuture<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        authenticate(request, Self::authorize)
    }
}

/// Verifies the token, then passes the principal to `authorize`.
fn authenticate<T: 'static>(
    request: &HttpRequest,
    authorize: fn(&HttpRequest, Arc<Principal>) -> Result<T, Problem>,
) -> ExtractorFuture<T> {
    let verifier = &AppState::of(request).auth;
    let ready_now = |result| Either::Left(ready(result));
    match bearer(request.headers()) {
        Err(problem) => ready_now(Err(problem)),
        Ok(token) => match verifier.check(token) {
            TokenCheck::Valid(principal) => ready_now(authorize(request, principal)),
            TokenCheck::Invalid(error) => ready_now(Err(invalid_token(error))),
            TokenCheck::UnknownKey => {
                let (verifier, token, request) = (Arc::clone(verifier), token.to_owned(), request.clone());
                Either::Right(
                    async move {
                        let principal = fetch_and_verify(&verifier, &token).await?;
                        authorize(&request, principal)
                    }
                    .boxed_local(),
                )
            }
        },
    }
}

async fn fetch_and_verify(verifier: &Verifier, token: &str) -> Result<Arc<Principal>, Problem> {
    verifier.fetch_key_and_check(token).await.map_err(invalid_token)
}

fn invalid_token(error: TokenError) -> Problem {
    tracing::info!(%error, "refused a token");
    Problem::invalid_token()
}

/// The token of exactly one `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut values = headers.get_all(AUTHORIZATION);
    let Some(value) = values.next() else { return Err(Problem::token_required()) };
    if values.next().is_some() {
        return Err(Problem::invalid_token());
    }
    let (scheme, token) = value.to_str().ok().and_then(|value| value.split_once(' ')).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Problem::token_required());
    }
    Ok(token.trim())
}

fn require_scope<S: RequiredScope>(principal: &Principal) -> Result<(), Problem> {
    if principal.has_scope(S::SCOPE) { Ok(()) } else { Err(Problem::missing_scope(S::SCOPE.as_str())) }
}

/// The answer for an unknown workspace, and for one that the token is not for: a caller must not be able to tell
/// them apart.
#[must_use]
pub fn workspace_not_found() -> Problem {
    Problem::from(&crate::domain::rejection::Rejection::WorkspaceNotFound)
}

/// Parses the workspace id in the path.
fn workspace_id(text: &str) -> Result<WorkspaceId, Problem> {
    let not_a_uuid = || Problem::new(Code::WorkspaceNotFound, "the workspace id in the path is not a hyphenated UUID");
    hyphenated(text).map(WorkspaceId).ok_or_else(not_a_uuid)
}

pub fn require_workspace(principal: &Principal, workspace_id: WorkspaceId) -> Result<(), Problem> {
    if principal.may_access(workspace_id) { Ok(()) } else { Err(workspace_not_found()) }
}

/// The event id in the path.
pub fn event_id(request: &HttpRequest) -> Result<EventId, Problem> {
    let text = request.match_info().get("event_id").unwrap_or_default();
    hyphenated(text).map(EventId).ok_or_else(|| Problem::plain(Code::EventNotFound))
}

/// The grant id in the path. A malformed id gets the same answer as an unknown one.
pub fn grant_id(request: &HttpRequest) -> Result<GrantId, Problem> {
    let text = request.match_info().get("grant_id").unwrap_or_default();
    hyphenated(text).map(GrantId).ok_or_else(|| Problem::plain(Code::GrantNotFound))
}

/// The purchase in the path, which is the id of its grant. A malformed id gets the same answer as an unknown one.
pub fn purchase_id(request: &HttpRequest) -> Result<GrantId, Problem> {
    let text = request.match_info().get("purchase_id").unwrap_or_default();
    hyphenated(text).map(GrantId).ok_or_else(|| Problem::plain(Code::PurchaseNotFound))
}

/// The usage log id in the path. A malformed id gets the same answer as an unknown one.
pub fn usage_id(request: &HttpRequest) -> Result<UsageId, Problem> {
    let text = request.match_info().get("usage_id").unwrap_or_default();
    text.parse().map_err(|_| Problem::plain(Code::UsageLogNotFound))
}

/// The hold id in the path. A malformed id gets the same answer as an unknown one.
pub fn hold_id(request: &HttpRequest) -> Result<HoldId, Problem> {
    let text = request.match_info().get("hold_id").unwrap_or_default();
    hyphenated(text).map(HoldId).ok_or_else(|| Problem::plain(Code::HoldNotFound))
}

/// The job in the path. A malformed id gets the same answer as an unknown one.
pub fn job_id(request: &HttpRequest) -> Result<JobId, Problem> {
    let text = request.match_info().get("job_id").unwrap_or_default();
    hyphenated(text).map(JobId).ok_or_else(|| Problem::plain(Code::JobNotFound))
}

/// The worker in the path. A malformed id gets the same answer as an unknown one.
pub fn worker_id(request: &HttpRequest) -> Result<WorkerId, Problem> {
    let text = request.match_info().get("worker_id").unwrap_or_default();
    hyphenated(text).map(WorkerId).ok_or_else(|| Problem::plain(Code::WorkerNotFound))
}

/// The dead letter in the path. A malformed id gets the same answer as an unknown one.
pub fn dead_letter_id(request: &HttpRequest) -> Result<Uuid, Problem> {
    let text = request.match_info().get("dead_letter_id").unwrap_or_default();
    hyphenated(text).ok_or_else(|| Problem::plain(Code::DeadLetterNotFound))
}

/// The replay in the path. A malformed id gets the same answer as an unknown one.
pub fn replay_id(request: &HttpRequest) -> Result<Uuid, Problem> {
    let text = request.match_info().get("replay_id").unwrap_or_default();
    hyphenated(text).ok_or_else(|| Problem::plain(Code::ReplayNotFound))
}

/// The beginning of a statement's period in the path. A malformed instant gets the same answer as an unknown one.
pub fn period_start(request: &HttpRequest) -> Result<Timestamp, Problem> {
    let text = request.match_info().get("period_start").unwrap_or_default();
    text.parse().map_err(|_| Problem::plain(Code::StatementNotFound))
}

/// A caller that accepts none of the media types gets 406 before anything is done.
fn require_accepted<T: Copy>(headers: &HeaderMap, media_types: &[(&str, T)]) -> Result<T, Problem> {
    preferred(headers, media_types).ok_or_else(|| Problem::plain(Code::NotAcceptable))
}

/// Parses the query parameters; unknown ones are refused.
pub fn query<T: DeserializeOwned>(request: &HttpRequest) -> Result<T, Problem> {
    let parameters = serde_html_form::Deserializer::new(form_pairs(request.query_string()));
    serde_path_to_error::deserialize(parameters).map_err(|error| {
        let message = error.inner().to_string();
        let field_error = SerdeFieldError::parse(&message);
        let name = field_error.field.or_else(|| last_key(error.path()).map(str::to_owned)).unwrap_or_default();
        let detail = match field_error.code {
            Code::UnknownField => "this parameter does not exist".to_owned(),
            _ => field_error.detail,
        };
        Problem::parameter(field_error.code, name, detail)
    })
}

fn form_pairs(query: &str) -> form_urlencoded::Parse<'_> {
    form_urlencoded::parse(query.as_bytes())
}

/// For operations without query parameters.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParameters {}

pub fn no_query(request: &HttpRequest) -> Result<(), Problem> {
    if request.query_string().is_empty() { Ok(()) } else { query::<NoParameters>(request).map(|_| ()) }
}

/// The idempotency key of the request: bare, or in double quotes like a structured field.
pub fn idempotency_key(headers: &HeaderMap) -> Result<IdempotencyKey, Problem> {
    let refuse = |detail: &'static str| Problem::new(Code::IdempotencyKeyRequired, detail);
    let mut values = headers.get_all("idempotency-key");
    let Some(value) = values.next() else {
        return Err(refuse("an Idempotency-Key header is required: unique per command, and the same on a retry"));
    };
    if values.next().is_some() {
        return Err(refuse("there is more than one Idempotency-Key header"));
    }
    let text = value.to_str().unwrap_or_default().trim();
    let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    IdempotencyKey::new(bare).map_err(|error| Problem::new(Code::IdempotencyKeyRequired, error.detail))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn accepts_one_idempotency_key_bare_or_quoted() {
        let key = |pairs: &[(&'static str, &str)]| idempotency_key(&headers(pairs)).map(|key| key.as_str().to_owned());
        assert_eq!(key(&[("idempotency-key", "order-1")]).unwrap(), "order-1");
        assert_eq!(key(&[("idempotency-key", "\"order-1\"")]).unwrap(), "order-1");
        for bad in ["", "\"\"", "a b", "a\"b", "\"a", "a\\b", &"k".repeat(256)] {
            assert_eq!(key(&[("idempotency-key", bad)]).unwrap_err().code, Code::IdempotencyKeyRequired, "{bad}");
        }
        assert!(key(&[]).is_err());
        assert!(key(&[("idempotency-key", "a"), ("idempotency-key", "a")]).is_err());
    }

    #[test]
    fn more_than_one_authorization_header_is_refused() {
        assert_eq!(bearer(&headers(&[("authorization", "bearer abc")])).unwrap(), "abc");
        for bad in [&[][..], &[("authorization", "Basic abc")], &[("authorization", "Bearer")]] {
            assert_eq!(bearer(&headers(bad)).unwrap_err().code, Code::InvalidToken);
        }
        assert!(bearer(&headers(&[("authorization", "Bearer a"), ("authorization", "Bearer b")])).is_err());
    }
}
