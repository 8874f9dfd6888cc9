//! The subscription: changing, canceling and resuming it.

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::reads::state_as_of_now;
use crate::domain::commands::{CancelSubscription, Command, ProcessSubscriptionChange, ResumeSubscription};
use crate::domain::ids::WorkspaceId;
use crate::domain::metadata::Metadata;
use crate::domain::receipt::{SubscriptionReceipt, SubscriptionView};
use crate::domain::subscription::{CreditPolicy, Effective};
use crate::domain::text::{FieldCode, FieldError, Label, PlanCode};
use crate::http::auth::scope;
use crate::http::body::{refuse, string_enum};
use crate::http::extract::{WorkspaceCaller, no_query};
use crate::http::problem::Problem;
use crate::http::render::KeyKind;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::http::submit::{CommandRequest, submit};

/// The version of the subscription that the caller expects: at least 1.
#[derive(Clone, Copy, Debug)]
struct ExpectedVersion(i64);

impl<'de> Deserialize<'de> for ExpectedVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let version = i64::deserialize(deserializer)?;
        if version >= 1 {
            Ok(Self(version))
        } else {
            Err(refuse(FieldError::new(FieldCode::Invalid, "must be at least 1")))
        }
    }
}

/// The new plan, and when the change takes effect.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeSubscriptionRequest {
    plan_code: PlanCode,
    #[serde(deserialize_with = "string_enum")]
    effective: Effective,
    /// What an immediate change does with the credits of the current period. Ignored for a change at the end of the
    /// period, and for a subscription that has ended.
    #[serde(deserialize_with = "string_enum")]
    credit_policy: CreditPolicy,
    /// The change is refused if the subscription has another version.
    #[schema(value_type = Option<i64>, minimum = 1)]
    expected_version: Option<ExpectedVersion>,
    metadata: Option<Metadata>,
}

impl CommandRequest for ChangeSubscriptionRequest {
    const NAME: &'static str = "ProcessSubscriptionChange";

    fn into_command(self) -> Result<(Command, Option<Metadata>), Problem> {
        let command = ProcessSubscriptionChange {
            plan_code: self.plan_code,
            effective: self.effective,
            credit_policy: self.credit_policy,
            expected_version: self.expected_version.map(|version| version.0),
        };
        Ok((Command::ProcessSubscriptionChange(command), self.metadata))
    }
}

/// When the subscription ends, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelSubscriptionRequest {
    #[serde(deserialize_with = "string_enum")]
    effective: Effective,
    /// Free text; the event contains it.
    reason: Option<Label>,
    /// The cancellation is refused if the subscription has another version.
    #[schema(value_type = Option<i64>, minimum = 1)]
    expected_version: Option<ExpectedVersion>,
    metadata: Option<Metadata>,
}

impl CommandRequest for CancelSubscriptionRequest {
    const NAME: &'static str = "CancelSubscription";

    fn into_command(self) -> Result<(Command, Option<Metadata>), Problem> {
        let command = CancelSubscription {
            effective: self.effective,
            reason: self.reason,
            expected_version: self.expected_version.map(|version| version.0),
        };
        Ok((Command::CancelSubscription(command), self.metadata))
    }
}

/// Withdraws what is scheduled.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeSubscriptionRequest {
    /// The command is refused if the subscription has another version.
    #[schema(value_type = Option<i64>, minimum = 1)]
    expected_version: Option<ExpectedVersion>,
    metadata: Option<Metadata>,
}

impl CommandRequest for ResumeSubscriptionRequest {
    const NAME: &'static str = "ResumeSubscription";
    const MAY_BE_EMPTY: bool = true;

    fn into_command(self) -> Result<(Command, Option<Metadata>), Problem> {
        let command = ResumeSubscription { expected_version: self.expected_version.map(|version| version.0) };
        Ok((Command::ResumeSubscription(command), self.metadata))
    }
}

/// Change the plan
///
/// Moves the workspace to the newest version of a plan, now or at the end of the period. `credit_policy` decides what
/// happens to the credits of the current period, whatever the plans cost. Overrides of the workspace are kept. At most
/// one change is pending; another one replaces it. A subscription that has ended accepts only an immediate change, which
/// starts a new period, whatever the `credit_policy`. Raises `SubscriptionChanged`.
#[utoipa::path(
    tag = "subscription",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id.")),
    request_body(content = ChangeSubscriptionRequest, example = json!({
        "plan_code": "scale", "effective": "immediate", "credit_policy": "prorate", "expected_version": 1
    })),
    responses((status = 200, description = "The plan was changed, or the change is scheduled.", body = SubscriptionReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "subscription": {
            "subscription_id": "019a0000-0000-7000-8000-000000000002", "plan_code": "scale", "plan_version": 1,
            "status": "active", "version": 2,
            "period": {"start": "2026-01-31T09:00:00.000000Z", "end": "2026-02-28T09:00:00.000000Z"}
        },
        "credits_granted": "9500", "credits_removed": "0", "credits_uncollected": "0", "credits_set_off": "0",
        "frozen_credits": "0",
        "current_credits": "11047.5", "recorded_at": "2026-02-14T09:00:00.000000Z"
    }))),
    extensions(
        ("x-problems" = json!([
            "plan-not-found", "plan-not-offered", "version-mismatch", "plan-unchanged", "restart-required", "subscription-canceled"
        ])),
        ("x-scope" = json!("subscription:write"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/subscription/change")]
pub async fn change_subscription(
    caller: WorkspaceCaller<scope::SubscriptionWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    submit::<ChangeSubscriptionRequest, _>(caller, KeyKind::FromCaller, request, payload).await
}

/// Cancel the subscription
///
/// Ends the subscription now or at the end of the period. A scheduled cancellation can be withdrawn until then. The
/// allowance expires with the subscription; `purchased_on_cancel` of the plan decides about purchased credits. Raises
/// `SubscriptionChanged`.
#[utoipa::path(
    tag = "subscription",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id.")),
    request_body(content = CancelSubscriptionRequest, example = json!({
        "effective": "period_end", "reason": "project finished"
    })),
    responses((status = 200, description = "The subscription was canceled, or the cancellation is scheduled.", body = SubscriptionReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "subscription": {
            "subscription_id": "019a0000-0000-7000-8000-000000000002", "plan_code": "pro", "plan_version": 1,
            "status": "active", "version": 2,
            "period": {"start": "2026-01-31T09:00:00.000000Z", "end": "2026-02-28T09:00:00.000000Z"},
            "pending": {
                "kind": "cancel", "effective_at": "2026-02-28T09:00:00.000000Z", "reason": "project finished"
            }
        },
        "credits_granted": "0", "credits_removed": "0", "credits_uncollected": "0", "credits_set_off": "0",
        "frozen_credits": "0",
        "current_credits": "997.5", "recorded_at": "2026-02-14T09:00:00.000000Z"
    }))),
    extensions(
        ("x-problems" = json!(["version-mismatch", "subscription-canceled"])),
        ("x-scope" = json!("subscription:write"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/subscription/cancel")]
pub async fn cancel_subscription(
    caller: WorkspaceCaller<scope::SubscriptionWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    submit::<CancelSubscriptionRequest, _>(caller, KeyKind::FromCaller, request, payload).await
}

/// Withdraw a scheduled change or cancellation
///
/// Withdraws what is scheduled for the end of the period. A subscription that has ended cannot be resumed: change to a
/// plan instead. Raises `SubscriptionChanged`.
#[utoipa::path(
    tag = "subscription",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id.")),
    request_body(content = ResumeSubscriptionRequest, example = json!({"expected_version": 3})),
    responses((status = 200, description = "The scheduled change or cancellation was withdrawn.", body = SubscriptionReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "subscription": {
            "subscription_id": "019a0000-0000-7000-8000-000000000002", "plan_code": "pro", "plan_version": 1,
            "status": "active", "version": 3,
            "period": {"start": "2026-01-31T09:00:00.000000Z", "end": "2026-02-28T09:00:00.000000Z"}
        },
        "credits_granted": "0", "credits_removed": "0", "credits_uncollected": "0", "credits_set_off": "0",
        "frozen_credits": "0",
        "current_credits": "997.5", "recorded_at": "2026-02-15T09:00:00.000000Z"
    }))),
    extensions(
        ("x-problems" = json!(["version-mismatch", "nothing-scheduled", "subscription-canceled"])),
        ("x-scope" = json!("subscription:write"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/subscription/resume")]
pub async fn resume_subscription(
    caller: WorkspaceCaller<scope::SubscriptionWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    submit::<ResumeSubscriptionRequest, _>(caller, KeyKind::FromCaller, request, payload).await
}

/// Read the subscription
///
/// The plan and its version, the period, and the pending change.
#[utoipa::path(
    tag = "subscription",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id.")),
    responses((status = 200, description = "The subscription.", body = SubscriptionView, example = json!({
        "subscription_id": "019a0000-0000-7000-8000-000000000002", "plan_code": "pro", "plan_version": 1,
        "status": "active", "version": 1,
        "period": {"start": "2026-01-31T09:00:00.000000Z", "end": "2026-02-28T09:00:00.000000Z"},
        "pending": {
            "kind": "change", "plan_code": "scale", "plan_version": 1,
            "effective_at": "2026-02-28T09:00:00.000000Z"
        }
    }))),
    extensions(("x-scope" = json!("subscription:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/subscription")]
pub async fn get_subscription(
    caller: WorkspaceCaller<scope::SubscriptionRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let (state, _) = state_as_of_now(AppState::of(&request), caller.workspace_id).await?;
    private_json(&request, &SubscriptionView::from(&state))
}
