//! Provisioning and reading workspaces.

use actix_web::{HttpRequest, HttpResponse, get, put, web};
use chrono_tz::Tz;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::reads::state_as_of_now;
use crate::domain::commands::{Command, ProvisionWorkspace};
use crate::domain::credits::{Credits, LimitCredits};
use crate::domain::ids::WorkspaceId;
use crate::domain::metadata::Metadata;
use crate::domain::plan::MAX_FEATURES;
use crate::domain::receipt::{ProvisionReceipt, SubscriptionView};
use crate::domain::snapshot::WorkspaceState;
use crate::domain::text::{FeatureCode, FieldCode, FieldError, Label, PlanCode};
use crate::domain::time::Timestamp;
use crate::domain::workspace::{FeatureOverrides, OverrideTerms};
use crate::http::auth::scope;
use crate::http::body::{object, refuse};
use crate::http::extract::{WorkspaceCaller, no_query};
use crate::http::problem::{Code, Problem};
use crate::http::render::KeyKind;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::http::submit::{CommandRequest, submit};

/// An IANA time zone, by name.
#[derive(Clone, Copy, Debug)]
struct TimeZone(Tz);

impl Default for TimeZone {
    fn default() -> Self {
        Self(Tz::UTC)
    }
}

impl<'de> Deserialize<'de> for TimeZone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let refused =
            || FieldError::new(FieldCode::Invalid, "must be the name of an IANA time zone, such as Europe/Berlin");
        name.parse().map(Self).map_err(|_| refuse(refused()))
    }
}

/// Terms of one feature for this workspace only. Each given term replaces the plan's and survives a change of plan.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FeatureOverrideRequest {
    feature_code: FeatureCode,
    enabled: Option<bool>,
    /// Credits per unit.
    unit_price: Option<LimitCredits>,
    /// Maximum credits that may be used in a billing period.
    limit: Option<LimitCredits>,
}

/// Such terms, from an object only.
#[derive(Debug, Deserialize)]
struct FeatureItem(#[serde(deserialize_with = "object")] FeatureOverrideRequest);

/// The definition of a workspace.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutWorkspaceRequest {
    name: Label,
    plan_code: PlanCode,
    /// The IANA time zone in which billing periods are computed. UTC by default.
    #[serde(default)]
    #[schema(value_type = String, required = false, example = "Europe/Berlin")]
    time_zone: TimeZone,
    /// The instant that billing periods are counted from. Not in the future; now by default.
    anchor: Option<Timestamp>,
    /// Maximum credits that may be used in a billing period, instead of the plan's limit.
    monthly_limit: Option<LimitCredits>,
    /// How far below zero the balance may go, instead of the plan's overdraft.
    overdraft_limit: Option<LimitCredits>,
    #[serde(default)]
    #[schema(value_type = Vec<FeatureOverrideRequest>, required = false, max_items = 200)]
    features: Vec<FeatureItem>,
    metadata: Option<Metadata>,
}

impl CommandRequest for PutWorkspaceRequest {
    const NAME: &'static str = "ProvisionWorkspace";

    fn into_command(self) -> Result<(Command, Option<Metadata>), Problem> {
        if self.features.len() > MAX_FEATURES {
            return Err(Problem::field(Code::InvalidField, "/features", "must have at most 200 items"));
        }
        let mut feature_overrides = FeatureOverrides::new();
        for (index, FeatureItem(item)) in self.features.into_iter().enumerate() {
            let terms = OverrideTerms {
                enabled: item.enabled,
                unit_price: item.unit_price.map(LimitCredits::get),
                limit: item.limit.map(LimitCredits::get),
            };
            if feature_overrides.insert(item.feature_code, terms).is_some() {
                let pointer = format!("/features/{index}/feature_code");
                return Err(Problem::field(Code::InvalidField, pointer, "occurs twice"));
            }
        }
        let command = ProvisionWorkspace {
            name: self.name,
            plan_code: self.plan_code,
            time_zone: self.time_zone.0,
            anchor: self.anchor,
            monthly_limit: self.monthly_limit.map(LimitCredits::get),
            overdraft_limit: self.overdraft_limit.map(LimitCredits::get),
            feature_overrides,
        };
        Ok((Command::ProvisionWorkspace(command), self.metadata))
    }
}

/// A workspace.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Workspace)]
pub struct WorkspaceView {
    workspace_id: WorkspaceId,
    name: Label,
    /// The IANA time zone of its billing periods.
    time_zone: String,
    created_at: Timestamp,
    /// The workspace's own limit per billing period, if it has one: it is in force instead of the plan's.
    #[serde(skip_serializing_if = "Option::is_none")]
    monthly_limit: Option<Credits>,
    /// The workspace's own overdraft, if it has one: it is in force instead of the plan's.
    #[serde(skip_serializing_if = "Option::is_none")]
    overdraft_limit: Option<Credits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata>,
    subscription: SubscriptionView,
}

impl From<&WorkspaceState> for WorkspaceView {
    fn from(state: &WorkspaceState) -> Self {
        let workspace = &state.workspace;
        Self {
            workspace_id: workspace.workspace_id,
            name: workspace.name.clone(),
            time_zone: workspace.time_zone.name().to_owned(),
            created_at: workspace.created_at,
            monthly_limit: workspace.monthly_limit_override,
            overdraft_limit: workspace.overdraft_limit_override,
            metadata: workspace.metadata.clone(),
            subscription: state.into(),
        }
    }
}

/// Provision a workspace
///
/// Creates the workspace under the id you choose, subscribes it to the newest version of the plan
/// and grants the first allowance. Raises `WorkspaceProvisioned`. The id is the idempotency key. The
/// same request gets the same answer with `Idempotency-Replayed: true`. Another definition for the same id is refused with
/// `workspace-exists`.
#[utoipa::path(
    tag = "workspaces",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id: a UUID of your choice.")),
    request_body(content = PutWorkspaceRequest, example = json!({
        "name": "Acme Studio", "plan_code": "pro", "time_zone": "Europe/Berlin",
        "features": [{"feature_code": "video.render", "unit_price": "0.4"}]
    })),
    responses((status = 201, description = "The workspace was created.", body = ProvisionReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "name": "Acme Studio", "time_zone": "Europe/Berlin",
        "subscription": {
            "subscription_id": "019a0000-0000-7000-8000-000000000002", "plan_code": "pro", "plan_version": 1,
            "status": "active", "version": 1,
            "period": {"start": "2026-01-31T09:00:00.000000Z", "end": "2026-02-28T09:00:00.000000Z"}
        },
        "current_credits": "1000", "recorded_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(("x-problems" = json!(["workspace-exists", "plan-not-found", "plan-not-offered"])), ("x-scope" = json!("workspaces:write"))),
    security(("bearer" = []))
)]
#[put("/v1/workspaces/{workspace_id}")]
pub async fn put_workspace(
    caller: WorkspaceCaller<scope::WorkspacesWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    submit::<PutWorkspaceRequest, _>(caller, KeyKind::Natural, request, payload).await
}

/// Read a workspace
///
/// The workspace, its own limits, and its subscription.
#[utoipa::path(
    tag = "workspaces",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id.")),
    responses((status = 200, description = "The workspace.", body = WorkspaceView, example = json!({
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "name": "Acme Studio",
        "time_zone": "Europe/Berlin", "created_at": "2026-01-31T09:00:00.000000Z",
        "subscription": {
            "subscription_id": "019a0000-0000-7000-8000-000000000002", "plan_code": "pro", "plan_version": 1,
            "status": "active", "version": 1,
            "period": {"start": "2026-01-31T09:00:00.000000Z", "end": "2026-02-28T09:00:00.000000Z"}
        }
    }))),
    extensions(("x-scope" = json!("workspaces:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}")]
pub async fn get_workspace(
    caller: WorkspaceCaller<scope::WorkspacesRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let (state, _) = state_as_of_now(AppState::of(&request), caller.workspace_id).await?;
    private_json(&request, &WorkspaceView::from(&state))
}
