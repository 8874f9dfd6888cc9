//! What operators did by hand.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::reads::read;
use crate::domain::operator_act::OperatorAct;
use crate::domain::text::Label;
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::extract::{OperatorCaller, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListKey, id_of, place_of};
use crate::http::problem::Problem;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::queries::Page;

/// Which acts. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditParams {
    /// `next` of the previous page.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of acts of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
}

/// What an operator did by hand.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OperatorAct)]
pub struct OperatorActView {
    audit_id: Uuid,
    at: Timestamp,
    /// The `sub` of the token.
    actor: String,
    action: String,
    target: String,
    reason: Label,
    /// What was changed, before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    before: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    after: Option<Box<RawValue>>,
}

/// A page of acts.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditPage {
    items: Vec<OperatorActView>,
    /// Whether there are more acts after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
}

impl From<OperatorAct> for OperatorActView {
    fn from(act: OperatorAct) -> Self {
        let json = |text: Option<String>| text.and_then(|text| RawValue::from_string(text).ok());
        Self {
            audit_id: act.audit_id,
            at: act.at,
            actor: act.actor,
            action: act.action,
            target: act.target,
            reason: act.reason,
            before: json(act.before),
            after: json(act.after),
        }
    }
}

/// List what operators did
///
/// Every change that was made by hand, with who made it and why, the newest first.
#[utoipa::path(
    tag = "operations",
    params(AuditParams),
    responses((status = 200, description = "A page of acts.", body = AuditPage, example = json!({
        "items": [{
            "audit_id": "019a0000-0000-7000-8000-00000000000c", "at": "2026-01-31T09:00:00.000000Z",
            "actor": "operator-1", "action": "consumer.pause", "target": "analytics",
            "reason": "The figures of July are checked first",
            "before": {"state": "running", "version": 1},
            "after": {"state": "paused", "version": 1}
        }],
        "has_more": false
    }))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/audit")]
pub async fn list_operator_acts(
    _: OperatorCaller<scope::OpsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let AuditParams { cursor, limit } = query(&request)?;
    let key = ListKey::new("audit", &());
    let seen = cursor.map(|cursor| key.parse::<2>(&cursor)).transpose()?;
    let start_at = seen.map(|seen| id_of(seen.place));
    let limit = limit.get() + u32::from(seen.is_some());
    let page = read(AppState::of(&request).operations.operator_acts(start_at, limit)).await?;
    let Page { mut rows, has_more } = page;
    let place = |act: &OperatorAct| (place_of(act.audit_id), act.audit_id);
    if let Some(seen) = seen {
        seen.take_from(&mut rows, place)?;
    }
    let next = rows.last().filter(|_| has_more).map(place).map(|(place, id)| key.cursor(place, &id));
    private_json(&request, &AuditPage { items: rows.into_iter().map(OperatorActView::from).collect(), has_more, next })
}
