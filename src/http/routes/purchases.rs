//! What was bought: each purchase with what was paid and what remains of it, and taking a purchase back.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::credits::AmountMinor;
use super::history::{HistoryParams, HistoryRow, ListPage, history_page};
use super::reads::{read, require_workspace_if_empty};
use crate::domain::commands::{Command, ReversePurchase};
use crate::domain::credits::{Credits, PositiveCredits};
use crate::domain::grant::Grant;
use crate::domain::ids::{GrantId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::receipt::ReversalReceipt;
use crate::domain::reversal::{ReversalReason, ReversedAmount};
use crate::domain::text::PaymentReference;
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::body::string_enum;
use crate::http::extract::{WorkspaceCaller, purchase_id, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListOrder};
use crate::http::problem::{Code, Problem};
use crate::http::render::KeyKind;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::http::submit::submit_as;
use crate::store::queries::Purchase;

/// What to take back of a purchase. At most one of `credits` and `amount_minor`; all that is left without them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReversePurchaseRequest {
    /// How many of the credits. The amount paid falls in proportion.
    credits: Option<PositiveCredits>,
    /// What was given back of the amount paid, in minor units of its currency. The credits fall in proportion.
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 1_000_000_000_000_000_i64, example = 490)]
    amount_minor: Option<AmountMinor>,
    /// `refund` if you gave the money back, `chargeback` if the bank took it back, `mistake` if there was no payment.
    #[serde(deserialize_with = "string_enum")]
    reason: ReversalReason,
    metadata: Option<Metadata>,
}

impl ReversePurchaseRequest {
    fn amount(&self) -> Result<ReversedAmount, Problem> {
        match (self.credits, self.amount_minor) {
            (None, None) => Ok(ReversedAmount::All),
            (Some(credits), None) => Ok(ReversedAmount::Credits(credits)),
            (None, Some(AmountMinor(minor))) if minor > 0 => Ok(ReversedAmount::Minor(minor)),
            (None, Some(_)) => Err(Problem::field(Code::AmountOutOfRange, "/amount_minor", "must be more than zero")),
            (Some(_), Some(_)) => {
                let detail = "only one of credits and amount_minor can be sent";
                Err(Problem::field(Code::InvalidField, "/amount_minor", detail))
            }
        }
    }
}

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
    /// What was taken back of it.
    reversed_credits: Credits,
    /// The part of `amount_minor` that was given back.
    reversed_minor: i64,
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
    fn new(Purchase { grant, bonus, reversed, reversed_minor }: Purchase, now: Timestamp) -> Self {
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
            reversed_credits: reversed,
            reversed_minor,
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
            "remaining_bonus_credits": "47.5", "reversed_credits": "0", "reversed_minor": 0, "amount_minor": 4900, "currency": "EUR", "payment_reference": "pay_2f6d",
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
    let params = HistoryParams { cursor, limit: Some(limit), order, from, to };
    let rows = async |query| state.store.purchases(&query).await;
    let page = history_page(&request, workspace_id, params, ("purchases", ()), rows).await?;
    let ListPage { items, has_more, next }: ListPage<Purchase> = page;
    let items = items.into_iter().map(|item| PurchaseView::new(item, now)).collect();
    private_json(&request, &PurchasePage { items, has_more, next })
}

/// Reverse a purchase
///
/// Takes a purchase back, as a whole or in part, because its money was given back. All its reversals together are never
/// more than was bought and paid. What remains of the purchase is removed first, and a part of its bonus in proportion. What
/// was spent becomes debt (`credits_owed`), also beyond the overdraft limit, or is written off, as the plan's
/// `reversal_shortfall` says; what has expired, and what was spent of the bonus, nobody owes. Other credits repay the debt at
/// once. A canceled subscription accepts reversals too. A dispute that was won is a new purchase. Raises
/// `PurchaseReversed`, and `LowCreditWarning` when a threshold is crossed.
#[utoipa::path(
    tag = "credits",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace's id."),
        ("purchase_id" = GrantId, Path, description = "The purchase: the id of its grant.")
    ),
    request_body(content = ReversePurchaseRequest, example = json!({"amount_minor": 490, "reason": "refund"})),
    responses((status = 200, description = "The purchase was taken back.", body = ReversalReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "reversal_id": "019a0000-0000-7000-8000-00000000000a", "grant_id": "019a0000-0000-7000-8000-000000000004",
        "reason": "refund", "credits": "50", "amount_minor": 490, "currency": "EUR", "credits_removed": "50",
        "credits_owed": "0", "credits_written_off": "0", "bonus_grant_id": "019a0000-0000-7000-8000-000000000005",
        "bonus_removed": "5", "bonus_owed": "0", "debt_repaid": "0", "current_credits": "1018.5",
        "recorded_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(
        ("x-problems" = json!(["purchase-not-found", "reversal-exceeds-purchase"])),
        ("x-scope" = json!("credits:purchase"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/purchases/{purchase_id}/reverse")]
pub async fn reverse_purchase(
    caller: WorkspaceCaller<scope::CreditsPurchase>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let grant_id = purchase_id(&request)?;
    let into_command = |sent: ReversePurchaseRequest| {
        let (amount, reason) = (sent.amount()?, sent.reason);
        Ok((Command::ReversePurchase(ReversePurchase { grant_id, amount, reason }), sent.metadata))
    };
    let name = format!("ReversePurchase {grant_id}");
    submit_as(caller, KeyKind::FromCaller, request, payload, (&name, false), into_command).await
}
