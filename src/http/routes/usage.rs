//! Usage: what was consumed by whom, and the terms of every feature.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::reading::{read, require_existing, workspace_state};
use crate::domain::credits::{Credits, Quantity};
use crate::domain::ids::{CommandId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::period::Period;
use crate::domain::plan::UsageLimit;
use crate::domain::snapshot::WorkspaceState;
use crate::domain::text::{FeatureCode, UserId};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageLog;
use crate::domain::workspace::WorkspaceFeature;
use crate::http::auth::scope;
use crate::http::extract::{WorkspaceCaller, no_query, query};
use crate::http::pages::{Cursor, Limit};
use crate::http::problem::{Code, Problem};
use crate::http::state::AppState;
use crate::store::views::{HistoryQuery, Page};

/// Which rows, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageParams {
    /// `next` of the page before.
    #[param(required = false)]
    cursor: Option<Cursor>,
    /// The most rows of the page; it may have fewer and still not be the last.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Only what was recorded at or after this instant.
    from: Option<Timestamp>,
    /// Only what was recorded before this instant.
    to: Option<Timestamp>,
    /// Only this feature.
    feature_code: Option<FeatureCode>,
}

/// One accepted deduction.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageLog)]
pub struct UsageLogView {
    /// Gap-free within the workspace, from 1.
    seq: i64,
    command_id: CommandId,
    feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<UserId>,
    credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<Quantity>,
    /// When it was used.
    occurred_at: Timestamp,
    /// When it was charged.
    recorded_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata>,
}

/// A page of usage logs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsagePage {
    items: Vec<UsageLogView>,
    /// Where the next page begins; absent on the last one. A page may have fewer items than its limit,
    /// or none, while this is there: go on until it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
}

impl From<UsageLog> for UsageLogView {
    fn from(log: UsageLog) -> Self {
        Self {
            seq: log.seq,
            command_id: log.command_id,
            feature_code: log.feature_code,
            user_id: log.user_id,
            credits: log.credits,
            quantity: log.quantity,
            occurred_at: log.occurred_at,
            recorded_at: log.recorded_at,
            metadata: log.metadata,
        }
    }
}

/// The terms of one feature in force, and what was used of it in this period.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeatureView {
    feature_code: FeatureCode,
    enabled: bool,
    /// Credits for one unit; without it, a deduction must name its credits.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit_price: Option<Credits>,
    /// The bound on what may be used in this billing period, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<UsageLimit>,
    used_this_month: Credits,
    /// Whether some of the terms are this workspace's own and not its plan's.
    overridden: bool,
}

/// The features of a workspace, by code.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeatureList {
    period: Period,
    items: Vec<FeatureView>,
}

impl From<&WorkspaceFeature> for FeatureView {
    fn from(feature: &WorkspaceFeature) -> Self {
        let terms = feature.terms();
        Self {
            feature_code: feature.feature_code.clone(),
            enabled: terms.enabled,
            unit_price: terms.unit_price,
            limit: terms.limit,
            used_this_month: feature.used_this_month,
            overridden: feature.overrides != crate::domain::workspace::FeatureOverrides::default(),
        }
    }
}

impl From<&WorkspaceState> for FeatureList {
    fn from(state: &WorkspaceState) -> Self {
        Self { period: state.subscription.period, items: state.features.iter().map(FeatureView::from).collect() }
    }
}

/// List the features
///
/// The terms in force for every feature (the plan's, with what the workspace agreed on for itself),
/// and what was used of it in this billing period.
#[utoipa::path(
    tag = "usage",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id.")),
    responses((status = 200, description = "The features.", body = FeatureList, example = json!({
        "period": {"start": "2026-01-31T09:00:00.000000Z", "end": "2026-02-28T09:00:00.000000Z"},
        "items": [{
            "feature_code": "video.render", "enabled": true, "unit_price": "0.4",
            "limit": {"credits": "500", "mode": "soft"}, "used_this_month": "2.5", "overridden": true
        }]
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
    let found = workspace_state(AppState::of(&request), caller.workspace_id).await?;
    Ok(HttpResponse::Ok().json(FeatureList::from(&found)))
}

/// List the usage
///
/// What was consumed, by whom, for how much: accepted deductions, newest first.
#[utoipa::path(
    tag = "usage",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), UsageParams),
    responses((status = 200, description = "A page of usage logs.", body = UsagePage, example = json!({
        "items": [{
            "seq": 1, "command_id": "019a0000-0000-7000-8000-000000000001", "feature_code": "video.render",
            "user_id": "user-7", "credits": "2.5", "occurred_at": "2026-01-31T09:00:00.000000Z",
            "recorded_at": "2026-01-31T09:00:00.000000Z", "metadata": {"job": "render-881"}
        }],
        "next": "dQAAAAAAAAAB"
    }))),
    extensions(("x-scope" = json!("usage:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/usage")]
pub async fn list_usage(
    caller: WorkspaceCaller<scope::UsageRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let UsageParams { cursor, limit, from, to, feature_code } = query(&request)?;
    let before_seq = match cursor {
        None => None,
        Some(Cursor::Usage { before_seq }) => Some(before_seq),
        Some(_) => return Err(Problem::parameter(Code::InvalidField, "cursor", "is not a cursor of this list")),
    };
    let state = AppState::of(&request);
    let workspace_id = caller.workspace_id;
    let wanted = HistoryQuery { workspace_id, before_seq, feature_code, from, to, limit: limit.get() };
    let Page { rows, next_before_seq } = read(state.store.usage(&wanted)).await?;
    require_existing(state, workspace_id, &rows).await?;
    let next = next_before_seq.map(|before_seq| Cursor::Usage { before_seq });
    Ok(HttpResponse::Ok().json(UsagePage { items: rows.into_iter().map(Into::into).collect(), next }))
}
