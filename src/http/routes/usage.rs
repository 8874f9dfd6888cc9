//! Usage logs, and the features of a workspace.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::history::{HistoryParams, HistoryRow, ListPage, history_list};
use super::reads::{read, state_as_of_now};
use crate::domain::commands::{Command, RefundUsage};
use crate::domain::credits::{Credits, PositiveCredits, Quantity};
use crate::domain::ids::{CommandId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::period::Period;
use crate::domain::plan::UsageLimit;
use crate::domain::receipt::RefundReceipt;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::text::{FeatureCode, Label, UserId};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageId;
use crate::domain::workspace::OverrideTerms;
use crate::http::auth::scope;
use crate::http::export::{Column, Exported};
use crate::http::extract::{ListCaller, WorkspaceCaller, no_query, query, usage_id};
use crate::http::pages::{Cursor, CursorText, Limit, ListOrder};
use crate::http::problem::{Code, Problem};
use crate::http::render::KeyKind;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::http::submit::submit_as;
use crate::store::queries::{HistoryQuery, ListedUsage};

/// Which rows, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageParams {
    /// `next` of the previous page. Send the same order and filters with it. An export begins after that page.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of rows of the page. An export takes none.
    #[param(required = false, inline)]
    limit: Option<Limit>,
    /// Newest first (`desc`) or oldest first (`asc`).
    #[serde(default)]
    #[param(required = false, inline)]
    order: ListOrder,
    /// Only rows recorded at or after this instant.
    from: Option<Timestamp>,
    /// Only rows recorded before this instant.
    to: Option<Timestamp>,
    /// Only this feature.
    feature_code: Option<FeatureCode>,
}

/// One accepted deduction or capture.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageLog)]
pub struct UsageLogView {
    usage_id: UsageId,
    /// The number in the workspace, from 1 and without gaps.
    seq: i64,
    command_id: CommandId,
    feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<UserId>,
    credits: Credits,
    /// What was given back of it.
    refunded_credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<Quantity>,
    /// When the feature was used.
    occurred_at: Timestamp,
    /// When the credits were charged.
    recorded_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata>,
}

/// A page of usage logs.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsagePage {
    items: Vec<UsageLogView>,
    /// Whether there are more rows after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
}

impl From<ListedUsage> for UsageLogView {
    fn from(ListedUsage { log, refunded }: ListedUsage) -> Self {
        Self {
            usage_id: log.id(),
            seq: log.seq,
            command_id: log.command_id,
            feature_code: log.feature_code,
            user_id: log.user_id,
            credits: log.credits,
            refunded_credits: refunded,
            quantity: log.quantity,
            occurred_at: log.occurred_at,
            recorded_at: log.recorded_at,
            metadata: log.metadata,
        }
    }
}

impl Exported for UsageLogView {
    const COLUMNS: &'static [Column] = &[
        Column::own("usage_id"),
        Column::own("seq"),
        Column::own("command_id"),
        Column::of_callers("feature_code"),
        Column::of_callers("user_id"),
        Column::own("credits"),
        Column::own("refunded_credits"),
        Column::own("quantity"),
        Column::own("occurred_at"),
        Column::own("recorded_at"),
        Column::of_callers("metadata"),
    ];
}

impl HistoryRow for ListedUsage {
    fn place_and_id(&self) -> ([i64; 2], Uuid) {
        ([self.log.recorded_at.micros(), self.log.seq], self.log.command_id.0)
    }
}

/// What to give back of a deduction or a capture.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefundUsageRequest {
    /// At most what was not refunded yet. All of it by default.
    credits: Option<PositiveCredits>,
    /// For people to read.
    #[schema(example = "The render failed")]
    reason: Option<Label>,
    metadata: Option<Metadata>,
}

/// The current terms of one feature, and its usage in this period.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeatureView {
    feature_code: FeatureCode,
    enabled: bool,
    /// Credits per unit. Without it, a deduction must give `credits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit_price: Option<Credits>,
    /// The limit of this billing period, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<UsageLimit>,
    used_this_month: Credits,
    /// What open holds reserve for it, which counts as used in the limit.
    held_credits: Credits,
    /// Whether an override of this workspace replaces a term of the plan.
    overridden: bool,
}

/// The features of a workspace, by code.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeatureList {
    period: Period,
    items: Vec<FeatureView>,
    /// Always false: the list is complete.
    has_more: bool,
}

impl FeatureView {
    fn new(state: &WorkspaceState, feature_code: &FeatureCode) -> Self {
        let terms = state.feature_terms(feature_code).unwrap_or_default();
        Self {
            feature_code: feature_code.clone(),
            enabled: terms.enabled,
            unit_price: terms.unit_price,
            limit: terms.limit,
            used_this_month: state.feature_usage(feature_code),
            held_credits: state.held_on(feature_code),
            overridden: state.feature_overrides.get(feature_code).is_some_and(|own| *own != OverrideTerms::default()),
        }
    }
}

impl From<&WorkspaceState> for FeatureList {
    fn from(state: &WorkspaceState) -> Self {
        let items = state.feature_codes().into_iter().map(|code| FeatureView::new(state, code)).collect();
        Self { period: state.subscription.period, items, has_more: false }
    }
}

/// List the features
///
/// The current terms and the usage of every feature of the plan and of the workspace's overrides, for this billing
/// period. A feature that a change of plan has removed is listed as not enabled until the period ends, if it was used,
/// and as long as credits are held for it.
#[utoipa::path(
    tag = "usage",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id.")),
    responses((status = 200, description = "The features.", body = FeatureList, example = json!({
        "period": {"start": "2026-01-31T09:00:00.000000Z", "end": "2026-02-28T09:00:00.000000Z"},
        "items": [{
            "feature_code": "video.render", "enabled": true, "unit_price": "0.4",
            "limit": {"credits": "500", "mode": "soft"}, "used_this_month": "2.5", "held_credits": "20",
            "overridden": true
        }],
        "has_more": false
    }))),
    extensions(("x-scope" = json!("usage:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/features")]
pub async fn list_features(
    caller: WorkspaceCaller<scope::UsageRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let (state, _) = state_as_of_now(AppState::of(&request), caller.workspace_id).await?;
    private_json(&request, &FeatureList::from(&state))
}

/// List the usage
///
/// The accepted deductions and captures, in the order of recording.
///
/// With `Accept: text/csv` or `application/x-ndjson` the answer is an export of the whole list.
#[utoipa::path(
    tag = "usage",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), UsageParams),
    responses((status = 200, description = "A page of usage logs, or an export of all.", content(
        (UsagePage = "application/json", example = json!({
            "items": [{
                "usage_id": "AAZJq1CORAAAAAAAAAAAAQ", "seq": 1, "command_id": "019a0000-0000-7000-8000-000000000001",
                "feature_code": "video.render", "user_id": "user-7", "credits": "2.5", "refunded_credits": "0",
                "occurred_at": "2026-01-31T09:00:00.000000Z", "recorded_at": "2026-01-31T09:00:00.000000Z",
                "metadata": {"job": "render-881"}
            }],
            "has_more": true, "next": "Ck5MKUMuywG3iIqdcoMk4wAGSatQjkQAAAAAAAAAAAE"
        })),
        (String = "text/csv", example = "usage_id,seq,command_id,feature_code,user_id,credits,refunded_credits,quantity,\
            occurred_at,recorded_at,metadata\r\n\
            AAZJq1CORAAAAAAAAAAAAQ,1,019a0000-0000-7000-8000-000000000001,video.render,user-7,2.5,0,,\
            2026-01-31T09:00:00.000000Z,2026-01-31T09:00:00.000000Z,\"{\"\"job\"\":\"\"render-881\"\"}\"\r\n"),
        (String = "application/x-ndjson", example = "{\"usage_id\":\"AAZJq1CORAAAAAAAAAAAAQ\",\"seq\":1,\
            \"command_id\":\"019a0000-0000-7000-8000-000000000001\",\"feature_code\":\"video.render\",\
            \"user_id\":\"user-7\",\"credits\":\"2.5\",\"refunded_credits\":\"0\",\
            \"occurred_at\":\"2026-01-31T09:00:00.000000Z\",\"recorded_at\":\"2026-01-31T09:00:00.000000Z\",\
            \"metadata\":{\"job\":\"render-881\"}}\n")
    ))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("usage:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/usage")]
pub async fn list_usage(caller: ListCaller<scope::UsageRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let UsageParams { cursor, limit, order, from, to, feature_code } = query(&request)?;
    let params = HistoryParams { cursor, limit, order, from, to };
    let filter = feature_code.clone();
    let store = Arc::clone(&AppState::of(&request).store);
    let rows = async move |query: HistoryQuery| store.usage(&query, feature_code.as_ref()).await;
    let page = |ListPage { items, has_more, next }| UsagePage { items, has_more, next };
    history_list(&request, caller, params, ("usage", filter), rows, page).await
}

/// Get a usage log
///
/// One accepted deduction or capture, by its `usage_id`.
#[utoipa::path(
    tag = "usage",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace's id."),
        ("usage_id" = UsageId, Path, description = "The usage log's id.")
    ),
    responses((status = 200, description = "The usage log.", body = UsageLogView, example = json!({
        "usage_id": "AAZJq1CORAAAAAAAAAAAAQ", "seq": 1, "command_id": "019a0000-0000-7000-8000-000000000001",
        "feature_code": "video.render", "user_id": "user-7", "credits": "2.5",
        "refunded_credits": "1", "occurred_at": "2026-01-31T09:00:00.000000Z", "recorded_at": "2026-01-31T09:00:00.000000Z",
        "metadata": {"job": "render-881"}
    }))),
    extensions(("x-problems" = json!(["usage-log-not-found"])), ("x-scope" = json!("usage:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/usage/{usage_id}")]
pub async fn get_usage_log(
    caller: WorkspaceCaller<scope::UsageRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let usage_id = usage_id(&request)?;
    let found = read(AppState::of(&request).store.usage_log(caller.workspace_id, usage_id)).await?;
    private_json(&request, &UsageLogView::from(found.ok_or_else(|| Problem::plain(Code::UsageLogNotFound))?))
}

/// Refund a usage
///
/// Gives a deduction or a capture back, as a whole or in part. All its refunds together are never more than it was. The
/// credits go back to the grants that they came from, the last that was taken first, as if the deduction had been smaller.
/// Where such a grant has expired or its period is over, and where an overdraft was repaid meanwhile, they go to a new
/// `adjustment` grant, which is valid for the plan's `refund_validity_days`. Refunded credits repay debt before they can be
/// spent. `used_this_month` falls if the deduction was made in the period that is still the current one. A canceled
/// subscription accepts refunds too. Raises `CreditsRefunded`.
#[utoipa::path(
    tag = "usage",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace's id."),
        ("usage_id" = UsageId, Path, description = "The usage log of the deduction or the capture.")
    ),
    request_body(content = RefundUsageRequest, example = json!({"credits": "1", "reason": "The render failed"})),
    responses((status = 200, description = "The credits were given back.", body = RefundReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "refund_id": "019a0000-0000-7000-8000-000000000009", "usage_id": "AAZJq1CORAAAAAAAAAAAAQ",
        "feature_code": "video.render", "credits": "1",
        "grants": [{
            "grant_id": "019a0000-0000-7000-8000-000000000005", "source": "promotion", "credits": "1"
        }],
        "debt_repaid": "0", "reason": "The render failed", "current_credits": "1073.5", "used_this_month": "1.5",
        "recorded_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(
        ("x-problems" = json!(["usage-log-not-found", "refund-exceeds-usage", "too-many-grants"])),
        ("x-scope" = json!("credits:grant"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/usage/{usage_id}/refund")]
pub async fn refund_usage(
    caller: WorkspaceCaller<scope::CreditsGrant>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let usage_id = usage_id(&request)?;
    let into_command = |RefundUsageRequest { credits, reason, metadata }| {
        Ok((Command::RefundUsage(RefundUsage { usage_id, credits, reason }), metadata))
    };
    let name = format!("RefundUsage {usage_id}");
    submit_as(caller, KeyKind::FromCaller, request, payload, (&name, true), into_command).await
}
