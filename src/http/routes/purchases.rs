//! What was bought: each purchase with what was paid and what remains of it.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::history::{HistoryParams, HistoryRow, ListPage, history_page};
use super::reads::{read, require_workspace_if_empty};
use crate::domain::credits::Credits;
use crate::domain::grant::Grant;
use crate::domain::ids::{GrantId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::text::PaymentReference;
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::extract::{WorkspaceCaller, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListOrder};
use crate::http::problem::Problem;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::queries::Purchase;

/// Which purchases, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PurchaseParams {
    /// `next` of the previous page. Send the same order and filters with it.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of purchases of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Newest first (`desc`) or oldest first (`asc`).
    #[serde(default)]
    #[param(required = false, inline)]
    order: ListOrder,
    /// Only purchases recorded at or after this instant.
    from: Option<Timestamp>,
    /// Only purchases recorded before this instant.
    to: Option<Timestamp>,
    /// Only the purchase with this payment reference, whatever the other parameters are: none or one.
    payment_reference: Option<PaymentReference>,
}

/// Credits that were bought.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Purchase)]
pub struct PurchaseView {
    grant_id: GrantId,
    /// What was bought.
    credits: Credits,
    /// What is neither spent, expired nor held.
    remaining_credits: Credits,
    #[serde(skip_serializing_if = "Option::is_none")]
    bonus_grant_id: Option<GrantId>,
    bonus_credits: Credits,
    remaining_bonus_credits: Credits,
    /// The amount paid, in minor units of the currency.
    amount_minor: i64,
    /// ISO 4217.
    currency: String,
    payment_reference: PaymentReference,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Metadata>)]
    metadata: Option<Arc<Metadata>>,
    recorded_at: Timestamp,
}

/// A page of purchases.
#[derive(Debug, Serialize, ToSchema)]
pub struct PurchasePage {
    items: Vec<PurchaseView>,
    /// Whether there are more purchases after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
}

impl PurchaseView {
    fn new(Purchase { grant, bonus }: Purchase, now: Timestamp) -> Self {
        // An expiry that is not recorded yet is shown as recorded.
        let remaining = |grant: &Grant| if grant.is_expiry_due(now) { Credits::ZERO } else { grant.remaining };
        let (amount_minor, currency) =
            grant.cost_basis.map_or((0, String::new()), |cost| (cost.amount_minor, cost.currency.as_str().to_owned()));
        Self {
            grant_id: grant.grant_id,
            credits: grant.amount,
            remaining_credits: remaining(&grant),
            bonus_grant_id: grant.bonus_grant_id,
            bonus_credits: bonus.as_ref().map_or(Credits::ZERO, |bonus| bonus.amount),
            remaining_bonus_credits: bonus.as_ref().map_or(Credits::ZERO, remaining),
            amount_minor,
            currency,
            payment_reference: grant.payment_reference.unwrap_or_else(|| PaymentReference::from_stored("")),
            expires_at: grant.expires_at,
            metadata: grant.metadata,
            recorded_at: grant.created_at,
        }
    }
}

impl HistoryRow for Purchase {
    fn place_and_id(&self) -> ([i64; 2], Uuid) {
        ([self.grant.created_at.micros(), self.grant.issued_seq], self.grant.grant_id.0)
    }
}

/// List the purchases
///
/// What was bought, in the order of recording, with what was paid and what remains of the credits and of their bonus.
#[utoipa::path(
    tag = "credits",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), PurchaseParams),
    responses((status = 200, description = "A page of purchases.", body = PurchasePage, example = json!({
        "items": [{
            "grant_id": "019a0000-0000-7000-8000-000000000004", "credits": "500", "remaining_credits": "500",
            "bonus_grant_id": "019a0000-0000-7000-8000-000000000005", "bonus_credits": "50",
            "remaining_bonus_credits": "47.5", "amount_minor": 4900, "currency": "EUR", "payment_reference": "pay_2f6d",
            "metadata": {"order": "1042"}, "recorded_at": "2026-01-31T09:00:00.000000Z"
        }],
        "has_more": false
    }))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("credits:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/purchases")]
pub async fn list_purchases(
    caller: WorkspaceCaller<scope::CreditsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let PurchaseParams { cursor, limit, order, from, to, payment_reference } = query(&request)?;
    let (state, workspace_id) = (AppState::of(&request), caller.workspace_id);
    let now = state.clock.now();
    if let Some(reference) = payment_reference {
        let found = read(state.store.purchase(workspace_id, &reference)).await?;
        require_workspace_if_empty(state, workspace_id, found.as_slice()).await?;
        let items = found.into_iter().map(|found| PurchaseView::new(found, now)).collect();
        return private_json(&request, &PurchasePage { items, has_more: false, next: None });
    }
    let params = HistoryParams { cursor, limit, order, from, to };
    let rows = async |query| state.store.purchases(&query).await;
    let page = history_page(&request, workspace_id, params, ("purchases", ()), rows).await?;
    let ListPage { items, has_more, next }: ListPage<Purchase> = page;
    let items = items.into_iter().map(|item| PurchaseView::new(item, now)).collect();
    private_json(&request, &PurchasePage { items, has_more, next })
}
