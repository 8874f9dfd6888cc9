//! The plans that a workspace can subscribe to.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get};
use serde::Serialize;
use utoipa::ToSchema;

use super::reads::read;
use crate::domain::plan::PlanVersion;
use crate::http::auth::scope;
use crate::http::extract::{Caller, no_query};
use crate::http::problem::Problem;
use crate::http::representation::private_json;
use crate::http::state::AppState;

/// The newest version of every offered plan, by code.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlanList {
    #[schema(value_type = Vec<PlanVersion>)]
    items: Vec<Arc<PlanVersion>>,
    /// Always false: the list is complete.
    has_more: bool,
}

/// List the plans
///
/// The newest version of every offered plan. A plan version never changes. A workspace keeps its version until its
/// subscription changes, even if the plan is no longer offered.
#[utoipa::path(
    tag = "plans",
    responses((status = 200, description = "The plans.", body = PlanList, example = json!({
        "items": [{
            "plan_code": "pro", "version": 1, "name": "Pro", "period_months": 1, "allowance": "1000",
            "rollover_cap": "200", "overdraft_limit": "0",
            "rate_limit": {"credits": "100", "window_s": 60}, "low_credit_thresholds": ["100"],
            "purchased_on_cancel": "keep", "expiry_warning_days": 7,
            "refund_validity_days": 30, "reversal_shortfall": "debt",
            "features": {"video.render": {
                "enabled": true, "unit_price": "0.5", "limit": {"credits": "500", "mode": "soft"}
            }}
        }],
        "has_more": false
    }))),
    extensions(("x-scope" = json!("plans:read"))),
    security(("bearer" = []))
)]
#[get("/v1/plans")]
pub async fn list_plans(_: Caller<scope::PlansRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let items = read(AppState::of(&request).store.plans()).await?;
    private_json(&request, &PlanList { items, has_more: false })
}
