//! Grants: giving credits that nobody paid for, taking them back, and the list of all grants.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::history::{HistoryParams, HistoryRow, ListPage, history_page};
use super::reads::{read, state_as_of_now};
use crate::domain::commands::{Command, GrantCredits, VoidGrant};
use crate::domain::credits::{Credits, PositiveCredits};
use crate::domain::grant::{Grant, GrantSource, GrantedSource, Priority};
use crate::domain::ids::{GrantId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::receipt::{GrantReceipt, VoidReceipt};
use crate::domain::text::{FeatureCode, FieldCode, FieldError, Label, PaymentReference};
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::body::{refuse, string_enum};
use crate::http::extract::{WorkspaceCaller, grant_id, no_query, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListOrder};
use crate::http::problem::{Code, Problem};
use crate::http::render::KeyKind;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::http::submit::{CommandRequest, submit, submit_as};
use crate::store::queries::{GrantFilter, HistoryPosition};

/// The credits to grant.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantCreditsRequest {
    credits: PositiveCredits,
    /// `promotion` for free credits, `adjustment` for a correction.
    #[serde(deserialize_with = "string_enum")]
    source: GrantedSource,
    /// Lower is spent first. 50 by default.
    #[serde(default, deserialize_with = "priority")]
    #[schema(value_type = i64, minimum = 0, maximum = 100, required = false)]
    priority: Priority,
    /// From when on the credits can be spent: at most ten years ahead. Now by default, and where it is in the past.
    effective_at: Option<Timestamp>,
    /// When the credits expire: they cannot be spent at or after this instant. Must be in the future, after
    /// `effective_at`, and at most ten years ahead.
    expires_at: Option<Timestamp>,
    /// The only feature that the credits can be spent on. A version of a plan, or the workspace, must have it.
    feature_scope: Option<FeatureCode>,
    /// For people to read.
    #[schema(example = "Welcome offer")]
    reason: Label,
    metadata: Option<Metadata>,
}

fn priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Priority, D::Error> {
    let refused = || refuse(FieldError::new(FieldCode::Invalid, "must be a whole number from 0 to 100"));
    Priority::new(i64::deserialize(deserializer)?).ok_or_else(refused)
}

impl CommandRequest for GrantCreditsRequest {
    const NAME: &'static str = "GrantCredits";

    fn into_command(self) -> Result<(Command, Option<Metadata>), Problem> {
        let command = GrantCredits {
            credits: self.credits,
            source: self.source,
            priority: self.priority,
            effective_at: self.effective_at,
            expires_at: self.expires_at,
            feature_scope: self.feature_scope,
            reason: self.reason,
        };
        Ok((Command::GrantCredits(command), self.metadata))
    }
}

/// What to take back of a grant.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VoidGrantRequest {
    /// At most what remains. All that remains by default.
    credits: Option<PositiveCredits>,
    /// For people to read.
    #[schema(example = "Granted twice")]
    reason: Label,
    metadata: Option<Metadata>,
}

/// The grants of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum GrantStates {
    #[default]
    Open,
    Closed,
    All,
}

/// Whether anything is left of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum GrantState {
    /// It has remaining or held credits. It may begin later: see `effective_at`.
    Open,
    /// All of it was spent, has expired, was voided, rolled over or repaid debt.
    Closed,
}

/// Which grants, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct GrantParams {
    /// `next` of the previous page. Send the same order and filters with it.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of grants of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Newest first (`desc`) or oldest first (`asc`).
    #[serde(default)]
    #[param(required = false, inline)]
    order: ListOrder,
    /// Only grants recorded at or after this instant.
    from: Option<Timestamp>,
    /// Only grants recorded before this instant.
    to: Option<Timestamp>,
    /// Only grants that are `open` now, the default, or only those that are `closed`, or `all`.
    #[serde(default)]
    #[param(required = false, inline)]
    state: GrantStates,
}

/// A grant, open or closed.
#[derive(Debug, Serialize, ToSchema)]
pub struct GrantDetails {
    grant_id: GrantId,
    source: GrantSource,
    state: GrantState,
    /// The initial amount.
    credits: Credits,
    /// What is neither spent, expired, voided nor held.
    remaining_credits: Credits,
    held_credits: Credits,
    /// 0 to 100. Lower is spent first.
    priority: i16,
    /// From when on it can be spent.
    effective_at: Timestamp,
    /// It cannot be spent at or after this instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// The only feature it may be spent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_scope: Option<FeatureCode>,
    /// Why a caller granted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Label>,
    /// Of a purchase.
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_reference: Option<PaymentReference>,
    /// That of the command that issued it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Metadata>)]
    metadata: Option<Arc<Metadata>>,
    /// When it was recorded.
    created_at: Timestamp,
}

/// A page of grants.
#[derive(Debug, Serialize, ToSchema)]
pub struct GrantPage {
    items: Vec<GrantDetails>,
    /// Whether there are more grants after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
}

impl GrantDetails {
    /// An expiry that is not recorded yet is shown as recorded.
    fn new(grant: Grant, now: Timestamp) -> Self {
        let remaining_credits = if grant.is_expired(now) { Credits::ZERO } else { grant.remaining };
        let is_open = remaining_credits.is_positive() || grant.held.is_positive();
        Self {
            grant_id: grant.grant_id,
            source: grant.source,
            state: if is_open { GrantState::Open } else { GrantState::Closed },
            credits: grant.amount,
            remaining_credits,
            held_credits: grant.held,
            priority: grant.priority,
            effective_at: grant.effective_at,
            expires_at: grant.expires_at,
            feature_scope: grant.feature_scope,
            reason: grant.reason,
            payment_reference: grant.payment_reference,
            metadata: grant.metadata,
            created_at: grant.created_at,
        }
    }
}

impl HistoryRow for Grant {
    fn place_and_id(&self) -> ([i64; 2], Uuid) {
        let HistoryPosition { recorded_at, seq } = HistoryPosition::of_grant(self);
        ([recorded_at.micros(), seq], self.grant_id.0)
    }
}

/// Grant credits
///
/// Gives a workspace free credits (`promotion`), or corrects its balance (`adjustment`). They repay debt first, unless they
/// are for one feature. Credits that begin later are in `current_credits` at once. Before `effective_at` they cannot be
/// spent, do not count in `available_credits`, repay no debt and warn nobody. A canceled subscription accepts grants;
/// `spendable` says whether they can be spent now. Raises `CreditsGranted`.
#[utoipa::path(
    tag = "credits",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace that gets the credits.")),
    request_body(content = GrantCreditsRequest, examples(
        ("promotion" = (summary = "A promotion", value = json!({
            "credits": "100", "source": "promotion", "priority": 20, "expires_at": "2027-01-31T00:00:00Z",
            "reason": "Welcome offer", "metadata": {"campaign": "spring"}
        }))),
        ("later" = (summary = "For one feature, from a later day on", value = json!({
            "credits": "250", "source": "promotion", "effective_at": "2026-12-01T00:00:00Z",
            "expires_at": "2027-01-01T00:00:00Z", "feature_scope": "video.render", "reason": "December of video"
        })))
    )),
    responses((status = 201, description = "The credits were granted.", body = GrantReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "grant_id": "019a0000-0000-7000-8000-000000000006", "source": "promotion", "credits": "100", "priority": 20,
        "effective_at": "2026-01-31T09:00:00.000000Z", "expires_at": "2027-01-31T00:00:00.000000Z",
        "reason": "Welcome offer", "debt_repaid": "0", "spendable": true, "current_credits": "1097.5",
        "recorded_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(
        ("x-problems" = json!(["feature-not-found", "too-many-grants"])),
        ("x-scope" = json!("credits:grant"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/grants")]
pub async fn grant_credits(
    caller: WorkspaceCaller<scope::CreditsGrant>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    submit::<GrantCreditsRequest, _>(caller, KeyKind::FromCaller, request, payload).await
}

/// Void a grant
///
/// Takes back what remains of a promotion or an adjustment, or a part of it. What was spent stays spent. The checks, in
/// this order: the grant exists, its source is one of the two, it is open, and `credits` is not more than what remains.
/// Grants can be voided whatever the state of the subscription. Raises `GrantVoided`, and `LowCreditWarning` when a
/// threshold is crossed.
#[utoipa::path(
    tag = "credits",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace's id."),
        ("grant_id" = GrantId, Path, description = "The grant's id.")
    ),
    request_body(content = VoidGrantRequest, example = json!({"credits": "25", "reason": "Granted twice"})),
    responses((status = 200, description = "The credits were taken back.", body = VoidReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "grant_id": "019a0000-0000-7000-8000-000000000006", "source": "promotion", "credits": "25",
        "remaining_credits": "75", "reason": "Granted twice", "current_credits": "1072.5",
        "recorded_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(
        ("x-problems" = json!(["grant-not-found", "grant-not-voidable", "grant-closed", "void-exceeds-remaining"])),
        ("x-scope" = json!("credits:grant"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/grants/{grant_id}/void")]
pub async fn void_grant(
    caller: WorkspaceCaller<scope::CreditsGrant>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let grant_id = grant_id(&request)?;
    let into_command = |VoidGrantRequest { credits, reason, metadata }| {
        Ok((Command::VoidGrant(VoidGrant { grant_id, credits, reason }), metadata))
    };
    let name = format!("VoidGrant {grant_id}");
    submit_as(caller, KeyKind::FromCaller, request, payload, (&name, false), into_command).await
}

/// List the grants
///
/// All lots of credits, whatever their source, in the order of recording. An expiry is shown at once; the end of a period
/// is shown when it is recorded.
#[utoipa::path(
    tag = "credits",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), GrantParams),
    responses((status = 200, description = "A page of grants.", body = GrantPage, example = json!({
        "items": [{
            "grant_id": "019a0000-0000-7000-8000-000000000006", "source": "promotion", "state": "open", "credits": "100",
            "remaining_credits": "75", "held_credits": "0", "priority": 20,
            "effective_at": "2026-01-31T09:00:00.000000Z", "expires_at": "2027-01-31T00:00:00.000000Z",
            "reason": "Welcome offer", "metadata": {"campaign": "spring"}, "created_at": "2026-01-31T09:00:00.000000Z"
        }],
        "has_more": false
    }))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("credits:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/grants")]
pub async fn list_grants(
    caller: WorkspaceCaller<scope::CreditsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let GrantParams { cursor, limit, order, from, to, state: states } = query(&request)?;
    let params = HistoryParams { cursor, limit: Some(limit), order, from, to };
    let state = AppState::of(&request);
    let now = state.clock.now();
    let filter = match states {
        GrantStates::Open => GrantFilter::Open(now),
        GrantStates::Closed => GrantFilter::Closed(now),
        GrantStates::All => GrantFilter::All,
    };
    let rows = async |query| state.store.grants(&query, filter).await;
    let page = history_page(&request, caller.workspace_id, params, ("grants", states), rows).await?;
    let ListPage { items, has_more, next }: ListPage<Grant> = page;
    let items = items.into_iter().map(|grant| GrantDetails::new(grant, now)).collect();
    private_json(&request, &GrantPage { items, has_more, next })
}

/// Get a grant
///
/// One lot of credits, open or closed, as of now: also where the end of the period or an expiry is not recorded yet.
#[utoipa::path(
    tag = "credits",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace's id."),
        ("grant_id" = GrantId, Path, description = "The grant's id.")
    ),
    responses((status = 200, description = "The grant.", body = GrantDetails, example = json!({
        "grant_id": "019a0000-0000-7000-8000-000000000006", "source": "promotion", "state": "open", "credits": "100",
        "remaining_credits": "75", "held_credits": "0", "priority": 20, "effective_at": "2026-01-31T09:00:00.000000Z",
        "expires_at": "2027-01-31T00:00:00.000000Z", "reason": "Welcome offer", "metadata": {"campaign": "spring"},
        "created_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(("x-problems" = json!(["grant-not-found"])), ("x-scope" = json!("credits:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/grants/{grant_id}")]
pub async fn get_grant(
    caller: WorkspaceCaller<scope::CreditsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let grant_id = grant_id(&request)?;
    let state = AppState::of(&request);
    // The row first: a grant that is issued between the two reads is then in the state.
    let recorded = read(state.store.grant(caller.workspace_id, grant_id)).await?;
    let (current, now) = state_as_of_now(state, caller.workspace_id).await?;
    let open = current.grants.into_iter().find(|grant| grant.grant_id == grant_id);
    let closed = |grant| Grant { remaining: Credits::ZERO, held: Credits::ZERO, ..grant };
    let found = open.or(recorded.map(closed)).ok_or_else(|| Problem::plain(Code::GrantNotFound))?;
    private_json(&request, &GrantDetails::new(found, now))
}
