//! Holds: reserving credits for a use whose cost is not known yet, and charging what it really cost.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::charge::{charge, optional_charge};
use super::history::{HistoryParams, HistoryRow, ListPage, history_page};
use super::reads::read;
use crate::domain::commands::{CaptureHold, Command, ExtendHold, PlaceHold, ReleaseHold};
use crate::domain::credits::{Credits, PositiveCredits, Quantity, SentQuantity};
use crate::domain::hold::{HoldDuration, HoldState, Overrun};
use crate::domain::ids::{GrantId, HoldId, WorkspaceId};
use crate::domain::metadata::Metadata;
use crate::domain::receipt::{CaptureReceipt, HoldReceipt};
use crate::domain::text::{FeatureCode, FieldCode, FieldError, UserId};
use crate::domain::time::Timestamp;
use crate::domain::usage::UsageId;
use crate::http::auth::scope;
use crate::http::body::{refuse, string_enum};
use crate::http::extract::{WorkspaceCaller, hold_id, no_query, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListOrder};
use crate::http::problem::{Code, Problem};
use crate::http::render::KeyKind;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::http::submit::{CommandRequest, submit, submit_as};
use crate::store::queries::{HistoryPosition, ListedHold};

/// The credits to reserve. Exactly one of `credits` and `quantity` is required.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlaceHoldRequest {
    feature_code: FeatureCode,
    /// How much to reserve. Either this or `quantity`.
    credits: Option<PositiveCredits>,
    /// How much will be used, at most. It reserves the product with the unit price of the feature, rounded up to one
    /// micro-credit. Either this or `credits`.
    #[schema(value_type = Option<SentQuantity>)]
    quantity: Option<Quantity>,
    /// Reserve as much as there is, if it is at least this, and at most `credits` or the price of `quantity`.
    min_credits: Option<PositiveCredits>,
    /// How long the hold lasts, in seconds: a minute to seven days. An hour by default.
    #[serde(default = "default_duration", deserialize_with = "duration")]
    #[schema(value_type = u32, minimum = 60, maximum = 604_800, required = false)]
    expires_in_s: HoldDuration,
    user_id: Option<UserId>,
    /// `true`: the answer says why it was accepted (`decision`). A refusal says it in any case.
    #[serde(default)]
    #[schema(required = false)]
    explain: bool,
    metadata: Option<Metadata>,
}

const fn default_duration() -> HoldDuration {
    HoldDuration::DEFAULT
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HoldDuration, D::Error> {
    let refused = || refuse(FieldError::new(FieldCode::Invalid, "must be a whole number from 60 to 604800"));
    HoldDuration::new(i64::deserialize(deserializer)?).ok_or_else(refused)
}

impl CommandRequest for PlaceHoldRequest {
    const NAME: &'static str = "PlaceHold";

    fn into_command(self) -> Result<(Command, Option<Metadata>), Problem> {
        if let (Some(least), Some(credits)) = (self.min_credits, self.credits)
            && least.get() > credits.get()
        {
            return Err(Problem::field(Code::InvalidField, "/min_credits", "must be at most credits"));
        }
        let command = PlaceHold {
            feature_code: self.feature_code,
            charge: charge(self.credits, self.quantity)?,
            min_credits: self.min_credits,
            duration: self.expires_in_s,
            user_id: self.user_id,
            explain: self.explain,
            job: None,
        };
        Ok((Command::PlaceHold(command), self.metadata))
    }
}

/// What the use has cost: `credits` or `quantity`, or all that is held if neither is sent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureHoldRequest {
    /// What to charge.
    credits: Option<PositiveCredits>,
    /// How much was used, at the price that the feature had when the hold was placed.
    #[schema(value_type = Option<SentQuantity>)]
    quantity: Option<Quantity>,
    /// What becomes of the part that is beyond the hold: `charge_available` by default.
    #[serde(default, deserialize_with = "string_enum")]
    #[schema(required = false)]
    overrun: Overrun,
    /// Charge an expired hold like a deduction of now: at the present price, with all checks, and from the overdraft too.
    #[serde(default)]
    #[schema(required = false)]
    late_capture: bool,
    /// Of the event and the usage log. A usage log without it has that of the hold.
    metadata: Option<Metadata>,
}

/// Why a hold is given up.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseHoldRequest {
    metadata: Option<Metadata>,
}

/// How long the hold lasts from now on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendHoldRequest {
    /// In seconds, counted from now: a minute to seven days. A hold never expires earlier than before.
    #[serde(deserialize_with = "duration")]
    #[schema(value_type = u32, minimum = 60, maximum = 604_800)]
    expires_in_s: HoldDuration,
    metadata: Option<Metadata>,
}

/// Which holds, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HoldParams {
    /// `next` of the previous page. Send the same order and filters with it.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of holds of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Newest first (`desc`) or oldest first (`asc`).
    #[serde(default)]
    #[param(required = false, inline)]
    order: ListOrder,
    /// Only holds that were placed at or after this instant.
    from: Option<Timestamp>,
    /// Only holds that were placed before this instant.
    to: Option<Timestamp>,
    /// Only holds whose recorded state is this.
    #[param(required = false, inline)]
    state: Option<HoldState>,
}

/// What a hold reserves of one grant.
#[derive(Debug, Serialize, ToSchema)]
pub struct HeldGrant {
    grant_id: GrantId,
    credits: Credits,
}

/// A hold, open or over.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Hold)]
pub struct HoldView {
    hold_id: HoldId,
    state: HoldState,
    feature_code: FeatureCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<UserId>,
    /// What it reserves, or did.
    credits: Credits,
    /// The grants that it reserves credits of, or did, in burn order.
    grants: Vec<HeldGrant>,
    /// The part that is reserved from the overdraft.
    #[serde(skip_serializing_if = "Option::is_none")]
    overdraft_credits: Option<Credits>,
    /// The price of the feature when the hold was placed.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit_price: Option<Credits>,
    /// It cannot be captured at or after this instant.
    expires_at: Timestamp,
    created_at: Timestamp,
    /// When its end was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    closed_at: Option<Timestamp>,
    /// What was charged, once it was captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    captured_credits: Option<Credits>,
    /// The usage log of the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_id: Option<UsageId>,
    /// That of the command that placed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Metadata>)]
    metadata: Option<Arc<Metadata>>,
}

/// A page of holds.
#[derive(Debug, Serialize, ToSchema)]
pub struct HoldPage {
    items: Vec<HoldView>,
    /// Whether there are more holds after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
}

impl HoldView {
    /// An expiry that is not recorded yet is shown as recorded.
    fn new(ListedHold { hold, shares }: ListedHold, now: Timestamp) -> Self {
        let has_expired = hold.is_open() && hold.is_expired(now);
        let held =
            |share: &crate::domain::hold::HeldShare| HeldGrant { grant_id: share.grant_id, credits: share.amount };
        Self {
            hold_id: hold.hold_id,
            state: if has_expired { HoldState::Expired } else { hold.state },
            feature_code: hold.feature_code,
            user_id: hold.user_id,
            credits: hold.amount,
            grants: shares.iter().map(held).collect(),
            overdraft_credits: hold.overdraft.positive(),
            unit_price: hold.unit_price,
            expires_at: hold.expires_at,
            created_at: hold.created_at,
            closed_at: hold.closed_at,
            captured_credits: hold.usage_id.map(|_| hold.captured),
            usage_id: hold.usage_id,
            metadata: hold.metadata,
        }
    }
}

impl HistoryRow for ListedHold {
    fn place_and_id(&self) -> ([i64; 2], Uuid) {
        let HistoryPosition { recorded_at, seq } = HistoryPosition::of_hold(&self.hold);
        ([recorded_at.micros(), seq], self.hold.hold_id.0)
    }
}

/// Hold credits
///
/// Reserves credits for a use whose cost is not known yet, such as a job of minutes. A hold passes the checks of a
/// deduction, in the same order, and counts as used in every limit until it ends. The credits stay in `current_credits`,
/// but cannot be spent otherwise. They do not expire while they are held, and neither a reset nor a change of plan takes
/// them. Capture the hold when the cost is known, or release it; else it expires. A workspace can have 1,000 open holds,
/// and a hold reserves credits of at most 50 grants. Raises `CreditsHeld`, and otherwise the events of a deduction.
#[utoipa::path(
    tag = "holds",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace that will pay.")),
    request_body(content = PlaceHoldRequest, examples(
        ("credits" = (summary = "By credits", value = json!({
            "feature_code": "video.render", "credits": "20", "expires_in_s": 1800, "user_id": "user-7"
        }))),
        ("as_much_as_there_is" = (summary = "By quantity, or less", value = json!({
            "feature_code": "video.render", "quantity": "12", "min_credits": "5", "metadata": {"job": "render-882"}
        })))
    )),
    responses((status = 201, description = "The credits are held.", body = HoldReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "hold_id": "019a0000-0000-7000-8000-000000000008", "state": "open", "feature_code": "video.render",
        "user_id": "user-7", "credits": "20",
        "grants": [{"grant_id": "019a0000-0000-7000-8000-000000000003", "source": "allowance", "credits": "20"}],
        "expires_at": "2026-01-31T09:30:00.000000Z", "available_credits": "977.5", "current_credits": "997.5",
        "recorded_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(("x-problems" = json!([
        "insufficient-credits", "feature-not-found", "feature-disabled", "limit-exceeded", "feature-not-priced",
        "rate-exceeded", "too-many-holds", "hold-spans-too-many-grants"
    ])), ("x-scope" = json!("credits:write"))),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/holds")]
pub async fn place_hold(
    caller: WorkspaceCaller<scope::CreditsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    submit::<PlaceHoldRequest, _>(caller, KeyKind::FromCaller, request, payload).await
}

/// Capture a hold
///
/// Charges what the use has cost, and releases the rest. Up to what is held, a capture passes no check, also where the
/// subscription has ended meanwhile. The part beyond the hold passes all checks of a deduction, as far as `overrun` says;
/// what does not pass is `uncovered_credits`. With the same key the answer is the same; any other capture of a hold that is
/// over is refused. A hold that has expired is captured only with `late_capture`, and once. Raises `CreditConsumed` with
/// the `hold_id`, and otherwise the events of a deduction; `CreditsExpired` if released credits have expired meanwhile.
#[utoipa::path(
    tag = "holds",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace that pays."),
        ("hold_id" = HoldId, Path, description = "The hold's id.")
    ),
    request_body(content = CaptureHoldRequest, example = json!({"credits": "17.5", "metadata": {"job": "render-881"}})),
    responses((status = 200, description = "The hold was captured.", body = CaptureReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "hold_id": "019a0000-0000-7000-8000-000000000008", "state": "captured",
        "usage_id": "AAZJq1CORAAAAAAAAAAAAQ", "feature_code": "video.render", "captured_credits": "17.5",
        "released_credits": "2.5", "uncovered_credits": "0",
        "grants": [{"grant_id": "019a0000-0000-7000-8000-000000000003", "source": "allowance", "credits": "17.5"}],
        "available_credits": "980", "current_credits": "980", "used_this_month": "20",
        "recorded_at": "2026-01-31T09:10:00.000000Z"
    }))),
    extensions(("x-problems" = json!([
        "hold-not-found", "hold-over", "hold-expired", "capture-exceeds-hold", "insufficient-credits", "feature-disabled",
        "limit-exceeded", "feature-not-priced", "rate-exceeded"
    ])), ("x-scope" = json!("credits:write"))),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/holds/{hold_id}/capture")]
pub async fn capture_hold(
    caller: WorkspaceCaller<scope::CreditsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let hold_id = hold_id(&request)?;
    let into_command = |sent: CaptureHoldRequest| {
        let charge = optional_charge(sent.credits, sent.quantity)?;
        let command =
            CaptureHold { hold_id, charge, overrun: sent.overrun, late_capture: sent.late_capture, job: None };
        Ok((Command::CaptureHold(command), sent.metadata))
    };
    let name = format!("CaptureHold {hold_id}");
    submit_as(caller, KeyKind::FromCaller, request, payload, (&name, true), into_command).await
}

/// Release a hold
///
/// Gives up a hold: its credits can be spent again. Those whose grant has expired meanwhile expire at once. Raises
/// `HoldReleased`, and then `CreditsExpired` if credits have expired.
#[utoipa::path(
    tag = "holds",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace's id."),
        ("hold_id" = HoldId, Path, description = "The hold's id.")
    ),
    request_body(content = ReleaseHoldRequest, example = json!({"metadata": {"reason": "the job failed"}})),
    responses((status = 200, description = "The hold was released.", body = HoldReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "hold_id": "019a0000-0000-7000-8000-000000000008", "state": "released", "feature_code": "video.render",
        "user_id": "user-7", "credits": "20",
        "grants": [{"grant_id": "019a0000-0000-7000-8000-000000000003", "source": "allowance", "credits": "20"}],
        "expires_at": "2026-01-31T09:30:00.000000Z", "available_credits": "997.5", "current_credits": "997.5",
        "recorded_at": "2026-01-31T09:05:00.000000Z"
    }))),
    extensions(("x-problems" = json!(["hold-not-found", "hold-over"])), ("x-scope" = json!("credits:write"))),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/holds/{hold_id}/release")]
pub async fn release_hold(
    caller: WorkspaceCaller<scope::CreditsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let hold_id = hold_id(&request)?;
    let into_command =
        |sent: ReleaseHoldRequest| Ok((Command::ReleaseHold(ReleaseHold { hold_id, job: None }), sent.metadata));
    let name = format!("ReleaseHold {hold_id}");
    submit_as(caller, KeyKind::FromCaller, request, payload, (&name, true), into_command).await
}

/// Extend a hold
///
/// Lets an open hold expire later. Raises no event.
#[utoipa::path(
    tag = "holds",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace's id."),
        ("hold_id" = HoldId, Path, description = "The hold's id.")
    ),
    request_body(content = ExtendHoldRequest, example = json!({"expires_in_s": 3600})),
    responses((status = 200, description = "The hold expires at `expires_at`.", body = HoldReceipt, example = json!({
        "command_id": "019a0000-0000-7000-8000-000000000001",
        "workspace_id": "0b7e6ad2-6a57-4d8a-9d61-6a6a3b6f2a10",
        "hold_id": "019a0000-0000-7000-8000-000000000008", "state": "open", "feature_code": "video.render",
        "user_id": "user-7", "credits": "20",
        "grants": [{"grant_id": "019a0000-0000-7000-8000-000000000003", "source": "allowance", "credits": "20"}],
        "expires_at": "2026-01-31T10:05:00.000000Z", "available_credits": "977.5", "current_credits": "997.5",
        "recorded_at": "2026-01-31T09:05:00.000000Z"
    }))),
    extensions(
        ("x-problems" = json!(["hold-not-found", "hold-over", "hold-expired"])),
        ("x-scope" = json!("credits:write"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workspaces/{workspace_id}/holds/{hold_id}/extend")]
pub async fn extend_hold(
    caller: WorkspaceCaller<scope::CreditsWrite>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let hold_id = hold_id(&request)?;
    let into_command = |sent: ExtendHoldRequest| {
        Ok((Command::ExtendHold(ExtendHold { hold_id, duration: sent.expires_in_s }), sent.metadata))
    };
    let name = format!("ExtendHold {hold_id}");
    submit_as(caller, KeyKind::FromCaller, request, payload, (&name, false), into_command).await
}

/// List the holds
///
/// All holds in the order in which they were placed. One that has expired is shown as `expired` at once; `state` filters by
/// what is recorded.
#[utoipa::path(
    tag = "holds",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), HoldParams),
    responses((status = 200, description = "A page of holds.", body = HoldPage, example = json!({
        "items": [{
            "hold_id": "019a0000-0000-7000-8000-000000000008", "state": "open", "feature_code": "video.render",
            "user_id": "user-7", "credits": "20",
            "grants": [{"grant_id": "019a0000-0000-7000-8000-000000000003", "credits": "20"}], "unit_price": "0.5",
            "expires_at": "2026-01-31T09:30:00.000000Z", "created_at": "2026-01-31T09:00:00.000000Z"
        }],
        "has_more": false
    }))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("credits:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/holds")]
pub async fn list_holds(
    caller: WorkspaceCaller<scope::CreditsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let HoldParams { cursor, limit, order, from, to, state: hold_state } = query(&request)?;
    let params = HistoryParams { cursor, limit: Some(limit), order, from, to };
    let state = AppState::of(&request);
    let now = state.clock.now();
    let rows = async |query| state.store.holds(&query, hold_state).await;
    let page = history_page(&request, caller.workspace_id, params, ("holds", hold_state), rows).await?;
    let ListPage { items, has_more, next }: ListPage<ListedHold> = page;
    let items = items.into_iter().map(|hold| HoldView::new(hold, now)).collect();
    private_json(&request, &HoldPage { items, has_more, next })
}

/// Get a hold
///
/// One hold, open or over, as of now.
#[utoipa::path(
    tag = "holds",
    params(
        ("workspace_id" = WorkspaceId, Path, description = "The workspace's id."),
        ("hold_id" = HoldId, Path, description = "The hold's id.")
    ),
    responses((status = 200, description = "The hold.", body = HoldView, example = json!({
        "hold_id": "019a0000-0000-7000-8000-000000000008", "state": "open", "feature_code": "video.render",
        "user_id": "user-7", "credits": "20",
        "grants": [{"grant_id": "019a0000-0000-7000-8000-000000000003", "credits": "20"}], "unit_price": "0.5",
        "expires_at": "2026-01-31T09:30:00.000000Z", "created_at": "2026-01-31T09:00:00.000000Z"
    }))),
    extensions(("x-problems" = json!(["hold-not-found"])), ("x-scope" = json!("credits:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/holds/{hold_id}")]
pub async fn get_hold(
    caller: WorkspaceCaller<scope::CreditsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let hold_id = hold_id(&request)?;
    let state = AppState::of(&request);
    let found = read(state.store.hold(caller.workspace_id, hold_id)).await?;
    let hold = found.ok_or_else(|| Problem::plain(Code::HoldNotFound))?;
    private_json(&request, &HoldView::new(hold, state.clock.now()))
}
