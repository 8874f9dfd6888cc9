//! Credits: spending, buying and resetting them, and the balance.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::charge::charge;
use super::reads::{read, recorded_state, state_as_of_now};
use crate::domain::commands::{
    Command, DeductCredits, PurchaseCredits, ResetMonthlyCredits, available_credits, is_spendable,
};
use crate::domain::credits::{Credits, PositiveCredits, Quantity, SentQuantity};
use crate::domain::grant::{Currency, Grant, GrantSource};
use crate::domain::ids::{GrantId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::period::Period;
use crate::domain::plan::UsageLimit;
use crate::domain::receipt::{DeductReceipt, PurchaseReceipt, ResetReceipt};
use crate::domain::snapshot::WorkspaceState;
use crate::domain::text::{FeatureCode, FieldCode, FieldError, PaymentReference, UserId};
use crate::domain::time::{MAX_CLOCK_DIFFERENCE, Timestamp};
use crate::http::auth::scope;
use crate::http::body::refuse;
use crate::http::extract::{WorkspaceCaller, query};
use crate::http::problem::{Code, Problem};
use crate::http::render::KeyKind;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::http::submit::{CommandRequest, submit};

/// Maximum price of a purchase in minor units: far above any real price, and safe to sum.
const MAX_AMOUNT_MINOR: i64 = 1_000_000_000_000_000;

/// The use of a feature. Exactly one of `credits` and `quantity` is required.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeductCreditsRequest {
    feature_code: FeatureCode,
    /// The price. Either this or `quantity`.
    credits: Option<PositiveCredits>,
    /// How much was used. It costs the product with the unit price of the feature, rounded up to one micro-credit. A
    /// decimal string with at most six places, or an integer. Either this or `credits`.
    #[schema(value_type = Option<SentQuantity>)]
    quantity: Option<Quantity>,
    user_id: Option<UserId>,
    /// When the feature was used: at most 35 days ago and at most 5 minutes in the future. Now by default.
    occurred_at: Option<Timestamp>,
    /// `true`: the answer says why it was accepted (`decision`). A refusal says it in any case.
    #[serde(default)]
    #[schema(required = false)]
    explain: bool,
    metadata: Option<Metadata>,
}

impl CommandRequest for DeductCreditsRequest {
    const NAME: &'static str = "DeductCredits";

    fn into_command(self) -> Result<(Command, Option<Metadata>), Problem> {
        let command = DeductCredits {
            feature_code: self.feature_code,
            charge: charge(self.credits, self.quantity)?,
            user_id: self.user_id,
            occurred_at: self.occurred_at,
            explain: self.explain,
        };
        Ok((Command::DeductCredits(command), self.metadata))
    }
}

/// What was paid, in minor units.
#[derive(Clone, Copy, Debug)]
pub(super) struct AmountMinor(pub(super) i64);

impl<'de> Deserialize<'de> for AmountMinor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        let whole = number.as_i64().filter(|amount| (0..=MAX_AMOUNT_MINOR).contains(amount));
        whole.map(Self).ok_or_else(|| {
            // An integer of more than 64 bits is parsed as a float.
            let is_fraction = number.as_f64().is_some_and(|number| number.is_finite() && number.fract() != 0.0);
            refuse(if is_fraction {
                FieldError::new(FieldCode::Invalid, "must be a whole number")
            } else {
                FieldError::new(FieldCode::AmountOutOfRange, "must be 0 to 10^15 minor units, without an exponent")
            })
        })
    }
}

/// A currency in a request.
#[derive(Clone, Copy, Debug)]
struct CurrencyCode(Currency);

impl<'de> Deserialize<'de> for CurrencyCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = String::deserialize(deserializer)?;
        let refused = || FieldError::new(FieldCode::Invalid, "must be a current currency of ISO 4217, such as EUR");
        let is_current = |listed: iso_currency::Currency| !listed.is_special() && listed.is_superseded().is_none();
        let is_listed = iso_currency::Currency::from_code(&code).is_some_and(is_current);
        Currency::new(&code).filter(|_| is_listed).map(Self).ok_or_else(|| refuse(refused()))
    }
}

/// The credits that were bought, and the payment.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurchaseCreditsRequest {
    credits: PositiveCredits,
    /// Additional promotional credits.
    bonus_credits: Option<PositiveCredits>,
    /// What was paid, in minor units of the currency.
    #[schema(value_type = i64, minimum = 0, maximum = 1_000_000_000_000_000_i64, example = 4900)]
    amount_minor: AmountMinor,
    /// ISO 4217.
    #[schema(value_type = String, pattern = "^[A-Z]{3}$", example = "EUR")]
    currency: CurrencyCode,
    payment_reference: PaymentReference,
    /// When the credits expire: they cannot be spent at or after this instant. Must be in the future.
    expires_at: Option<Timestamp>,
    metadata: Option<Metadata>,
}

impl CommandRequest for PurchaseCreditsRequest {
    const NAME: &'static str = "PurchaseCredits";

    fn into_command(self) -> Result<(Command, Option<Metadata>), Problem> {
        let command = PurchaseCredits {
            credits: self.credits,
            bonus_credits: self.bonus_credits,
            amount_minor: self.amount_minor.0,
            currency: self.currency.0,
            payment_reference: self.payment_reference,
            expires_at: self.expires_at,
        };
        Ok((Command::PurchaseCredits(command), self.metadata))
    }
}

/// The billing period to start.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResetCreditsRequest {
    /// The start of the period that you expect to start. If it is not the next period, the reset is refused.
    period: Option<Timestamp>,
    metadata: Option<Metadata>,
}

impl CommandRequest for ResetCreditsRequest {
    const NAME: &'static str = "ResetMonthlyCredits";
    const MAY_BE_EMPTY: bool = true;

    fn into_command(self) -> Result<(Command, Option<Metadata>), Problem> {
        Ok((Command::ResetMonthlyCredits(ResetMonthlyCredits { period: self.period }), self.metadata))
    }
}

/// An open grant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Grant)]
pub struct GrantView {
    grant_id: GrantId,
    source: GrantSource,
    /// The initial amount.
    amount: Credits,
    /// What is neither spent, expired nor held.
    remaining: Credits,
    held: Credits,
    /// 0 to 100. Lower is spent first.
    priority: i16,
    effective_at: Timestamp,
    /// It cannot be spent at or after this instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// The only feature it may be spent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_scope: Option<FeatureCode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_reference: Option<PaymentReference>,
    /// That of the command that issued it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Metadata>)]
    metadata: Option<Arc<Metadata>>,
    /// Whether it can be spent now: in effect, not expired, not frozen by a cancellation.
    spendable: bool,
}

/// A balance at which `LowCreditWarning` is raised.
#[derive(Debug, Serialize, ToSchema)]
pub struct LowCreditThreshold {
    threshold_credits: Credits,
    /// Whether the warning was raised and cannot be raised again yet.
    fired: bool,
}

/// Which balance. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CreditsParams {
    /// The balance as recorded at this instant, and nothing else (see `CreditsAt`). It must not be in the future. Without
    /// it, the balance of now with its details.
    at: Option<Timestamp>,
}

/// The balance as recorded at an instant.
#[derive(Debug, Serialize, ToSchema)]
pub struct CreditsAt {
    workspace_id: WorkspaceId,
    /// The instant that was asked for.
    at: Timestamp,
    /// The balance after the last ledger entry until then. 0 before the first.
    current_credits: Credits,
    /// When that entry was recorded. Absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    recorded_at: Option<Timestamp>,
}

/// The balance and the usage of a workspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct CreditsView {
    workspace_id: WorkspaceId,
    /// The balance: what remains of all grants, also of those that begin later, less the debt.
    current_credits: Credits,
    /// What can be spent now, whatever the feature: the spendable grants for any feature and the rest of the overdraft,
    /// without what is held.
    available_credits: Credits,
    /// What open holds reserve, in grants and in the overdraft.
    held_credits: Credits,
    /// What was spent beyond the grants.
    debt_credits: Credits,
    /// The maximum of `debt_credits`.
    overdraft_limit: Credits,
    used_this_month: Credits,
    /// The limit of `used_this_month`, if there is one: the workspace's own or the plan's.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<UsageLimit>,
    /// What changes of plan in this period should have taken back, and could not because it was spent. A later change in
    /// this period grants that much less.
    uncollected_credits: Credits,
    period: Period,
    /// The plan's thresholds, and whether each was reported.
    low_credit_warnings: Vec<LowCreditThreshold>,
    /// The open grants, in the order in which they are spent.
    grants: Vec<GrantView>,
}

/// The balance of now with its details, or that of an instant.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum CreditsAnswer {
    Now(Box<CreditsView>),
    At(CreditsAt),
}

impl GrantView {
    fn new(grant: &Grant, state: &WorkspaceState, now: Timestamp) -> Self {
        Self {
            grant_id: grant.grant_id,
            source: grant.source,
            amount: grant.amount,
            remaining: grant.remaining,
            held: grant.held,
            priority: grant.priority,
            effective_at: grant.effective_at,
            expires_at: grant.expires_at,
            feature_scope: grant.feature_scope.clone(),
            payment_reference: grant.payment_reference.clone(),
            metadata: grant.metadata.clone(),
            spendable: is_spendable(state, grant, now),
        }
    }
}

impl CreditsView {
    fn new(state: &WorkspaceState, now: Timestamp) -> Self {
        let credits = &state.credits;
        let available_credits = available_credits(state, now);
        let thresholds = state.plan.low_credit_thresholds.iter().enumerate();
        Self {
            workspace_id: credits.workspace_id,
            current_credits: credits.current_credits,
            available_credits,
            held_credits: credits.held_credits,
            debt_credits: credits.debt_credits,
            overdraft_limit: credits.overdraft_limit,
            used_this_month: credits.used_this_month,
            limit: state.workspace.monthly_limit(&state.plan),
            uncollected_credits: credits.uncollected_credits,
            period: state.subscription.period,
            low_credit_warnings: thresholds
                .map(|(bit, threshold)| LowCreditThreshold {
                    threshold_credits: *threshold,
                    fired: available_credits <= *threshold && credits.low_credit_alerts & (1 << bit) != 0,
                })
                .collect(),
            grants: state.grants.iter().map(|grant| GrantView::new(grant, state, now)).collect(),
        }
    }
}

/// Deduct credits
///
/// Charges for the use of a feature, by credits or by quantity. The checks, in this order: the feature is enabled, the
/// limit of the feature, the monthly limit of the workspace, the rate limit of the plan, the balance plus the overdraft.
/// Raises `CreditConsumed`, and `LowCreditWarning` or `UsageLimitExceeded` when a
/// threshold is crossed. A refusal changes no credits. A refusal for a lack of credits raises
/// `CreditLimitExceeded`, and one at a hard limit raises `UsageLimitExceeded`; both are recorded and replayed.
#[utoipa::path(
    tag = "credits",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace that pays.")),
    request_body(content = DeductCreditsRequest, examples(
        ("credits" = (summary = "By credits", value = json!({"feature_code": "video.render", "credits": "2.5", "user_id": "user-7"}))),
        ("quantity" = (summary = "By quantity", value = json!({"feature_code": "video.render", "quantity": "3", "metadata": {"job": "render-881"}})))
    )),
    responses((status = 200, description = "The credits were deducted.", body = DeductReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "usage_id": "AAZJq1CORAAAAAAAAAAAAQ",
        "feature_code": "video.render", "credits": "2.5",
        "grants": [{"grant_id": "019a0000-0000-7000-8000-000000000003", "source": "allowance", "credits": "2.5"}],
        "current_credits": "997.5", "used_this_month": "2.5", "recorded_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(("x-problems" = json!([
        "insufficient-credits", "feature-not-found", "feature-disabled", "limit-exceeded", "feature-not-priced", "rate-exceeded"
    ])), ("x-scope" = json!("credits:write"))),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/credits/deduct")]
pub async fn deduct_credits(
    caller: WorkspaceCaller<scope::CreditsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    submit::<DeductCreditsRequest, _>(caller, KeyKind::FromCaller, request, payload).await
}

/// Book a purchase of credits
///
/// Adds a grant for the bought credits and a promotional grant for the bonus. Debt is repaid first. The payment
/// reference is unique per workspace, whatever the idempotency key. Raises
/// `CreditsPurchased`.
#[utoipa::path(
    tag = "credits",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace that bought.")),
    request_body(content = PurchaseCreditsRequest, example = json!({
        "credits": "500", "bonus_credits": "50", "amount_minor": 4900, "currency": "EUR",
        "payment_reference": "pay_2f6d"
    })),
    responses((status = 200, description = "The purchase was booked.", body = PurchaseReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "grant_id": "019a0000-0000-7000-8000-000000000004", "credits": "500",
        "bonus_grant_id": "019a0000-0000-7000-8000-000000000005", "bonus_credits": "50",
        "payment_reference": "pay_2f6d", "debt_repaid": "0", "spendable": true, "current_credits": "1547.5",
        "recorded_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(("x-problems" = json!(["payment-reference-used", "too-many-grants"])), ("x-scope" = json!("credits:purchase"))),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/credits/purchase")]
pub async fn purchase_credits(
    caller: WorkspaceCaller<scope::CreditsPurchase>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    submit::<PurchaseCreditsRequest, _>(caller, KeyKind::FromCaller, request, payload).await
}

/// Start the billing periods that are due
///
/// Closes the period that has ended. Its unspent allowance rolls over up to the cap of the plan, and the rest expires.
/// The new allowance is granted, and usage counters and thresholds are reset. Missed periods are processed in order.
/// The server does this by itself; this operation is for callers that need it now. Before the period has ended, the
/// answer is `reset-not-due`. Raises `CreditReset`.
#[utoipa::path(
    tag = "credits",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace whose period has ended.")),
    request_body(content = ResetCreditsRequest, example = json!({"metadata": {"job": "month-end"}})),
    responses((status = 200, description = "The periods that were due have started.", body = ResetReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "resets": [{
            "period": {"start": "2026-02-28T09:00:00.000000Z", "end": "2026-03-31T08:00:00.000000Z"},
            "plan_code": "pro", "plan_version": 1, "expired": "797.5", "rolled_over": "200", "granted": "1000",
            "previously_used": "2.5", "debt_repaid": "0", "current_credits": "1200"
        }],
        "subscription": {
            "subscription_id": "019a0000-0000-7000-8000-000000000002", "plan_code": "pro", "plan_version": 1,
            "status": "active", "version": 1,
            "period": {"start": "2026-02-28T09:00:00.000000Z", "end": "2026-03-31T08:00:00.000000Z"}
        },
        "current_credits": "1200", "recorded_at": "2026-02-28T09:00:01.000000Z"
    }))),
    extensions(
        ("x-problems" = json!(["reset-not-due", "period-mismatch", "subscription-canceled"])),
        ("x-scope" = json!("credits:reset"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/credits/reset")]
pub async fn reset_credits(
    caller: WorkspaceCaller<scope::CreditsReset>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    submit::<ResetCreditsRequest, _>(caller, KeyKind::FromCaller, request, payload).await
}

/// Read the balance
///
/// The balance, what can be spent now, the period and its limits, the thresholds, and the open grants in the order in
/// which they are spent: all as of now, also where the end of the period or an expiry is not recorded yet. With `at`, only
/// the balance as it was recorded at that instant: what the ledger shows, whatever was due and not recorded then.
#[utoipa::path(
    tag = "credits",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), CreditsParams),
    responses((status = 200, description = "The balance.", body = CreditsAnswer, examples(("now" = (summary = "Now", value = json!({
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "current_credits": "997.5", "available_credits": "997.5", "held_credits": "0", "debt_credits": "0",
        "overdraft_limit": "0", "used_this_month": "2.5", "limit": {"credits": "5000", "mode": "hard"},
        "uncollected_credits": "0",
        "period": {"start": "2026-01-31T09:00:00.000000Z", "end": "2026-02-28T09:00:00.000000Z"},
        "low_credit_warnings": [{"threshold_credits": "100", "fired": false}],
        "grants": [{
            "grant_id": "019a0000-0000-7000-8000-000000000003", "source": "allowance", "amount": "1000",
            "remaining": "997.5", "held": "0", "priority": 50, "effective_at": "2026-01-31T09:00:00.000000Z",
            "expires_at": "2026-02-28T09:00:00.000000Z", "spendable": true
        }]
    }))), ("at" = (summary = "At an instant", value = json!({
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10", "at": "2026-02-01T00:00:00.000000Z",
        "current_credits": "997.5", "recorded_at": "2026-01-31T09:00:00.000000Z"
    })))))),
    extensions(("x-scope" = json!("credits:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/credits")]
pub async fn get_credits(
    caller: WorkspaceCaller<scope::CreditsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let CreditsParams { at } = query(&request)?;
    let state = AppState::of(&request);
    let answer = if let Some(at) = at {
        CreditsAnswer::At(credits_at(state, caller.workspace_id, at).await?)
    } else {
        let (state, now) = state_as_of_now(state, caller.workspace_id).await?;
        CreditsAnswer::Now(Box::new(CreditsView::new(&state, now)))
    };
    private_json(&request, &answer)
}

/// The clock of the caller may be ahead by as much as those of two servers may differ.
async fn credits_at(state: &AppState, workspace_id: WorkspaceId, at: Timestamp) -> Result<CreditsAt, Problem> {
    if at > state.clock.now().plus(MAX_CLOCK_DIFFERENCE) {
        return Err(Problem::parameter(Code::InvalidField, "at", "must not be in the future"));
    }
    let last = read(state.store.last_entry(workspace_id, at)).await?;
    if last.is_none() {
        recorded_state(state, workspace_id).await?;
    }
    let (current_credits, recorded_at) =
        last.map_or((Credits::ZERO, None), |entry| (entry.balance_after, Some(entry.recorded_at)));
    Ok(CreditsAt { workspace_id, at, current_credits, recorded_at })
}
