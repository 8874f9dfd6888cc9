//! Notifications: what the people of a workspace should be told.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::as_of::{AfterSeq, AsOfView, figures_as_of};
use super::reads::{read, require_workspace_if_empty};
use crate::domain::cloud_event::Sequence;
use crate::domain::consumers::{Consumer, Notification, NotificationData, NotificationKind};
use crate::domain::ids::{EventId, NotificationId, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::extract::{WorkspaceCaller, query};
use crate::http::pages::{Cursor, CursorText, Limit, ListKey, id_of, place_of};
use crate::http::problem::Problem;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::figures::NotificationQuery;
use crate::store::queries::Page;

/// Which notifications, and how many. Unknown parameters are refused.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct NotificationsParams {
    /// `next` of the previous page. Send the same kind with it.
    #[param(required = false, inline)]
    cursor: Option<CursorText>,
    /// Maximum number of notifications of the page.
    #[serde(default)]
    #[param(required = false, inline)]
    limit: Limit,
    /// Only notifications of this kind.
    #[param(required = false)]
    kind: Option<NotificationKind>,
    /// Wait up to two seconds until the event of this workspace with that `workspaceseq` was taken. The answer comes in any
    /// case: `as_of` says which events were.
    #[param(required = false, inline)]
    after_seq: Option<AfterSeq>,
}

/// What the people of a workspace should be told. It never changes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Notification)]
pub struct NotificationView {
    /// The same if the notification is made again. Its order is that of time, to the millisecond.
    notification_id: NotificationId,
    kind: NotificationKind,
    /// What it is about, among others of its kind.
    #[schema(max_length = 128)]
    subject: String,
    /// When the period began that was the workspace's before the event. There is one notification at most for each kind and
    /// subject in a period.
    period_start: Timestamp,
    /// The event that it was made of.
    event_id: EventId,
    /// The number of that event in the workspace.
    workspaceseq: Sequence,
    /// When the event was recorded.
    created_at: Timestamp,
    data: NotificationData,
}

/// A page of notifications.
#[derive(Debug, Serialize, ToSchema)]
pub struct NotificationPage {
    items: Vec<NotificationView>,
    /// Whether there are more notifications after this page.
    has_more: bool,
    /// The cursor of the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Cursor>,
    as_of: AsOfView,
}

impl From<Notification> for NotificationView {
    fn from(notification: Notification) -> Self {
        Self {
            notification_id: notification.notification_id,
            kind: notification.data.kind(),
            subject: notification.subject,
            period_start: notification.period_start,
            event_id: notification.event_id,
            workspaceseq: Sequence(notification.workspace_seq),
            created_at: notification.created_at,
            data: notification.data,
        }
    }
}

/// List the notifications
///
/// What the people of a workspace should be told, the newest first: low credit, exhausted credits, limits that were reached,
/// credits that will expire, changes of the plan, and closed statements. Each is told once for its subject in a period. They
/// are made of the events within moments of each command; `as_of` says how far they are. The server sends them to nobody.
#[utoipa::path(
    tag = "analytics",
    params(("workspace_id" = WorkspaceId, Path, description = "The workspace's id."), NotificationsParams),
    responses((status = 200, description = "A page of notifications.", body = NotificationPage, example = json!({
        "items": [{
            "notification_id": "019a0000-0000-7000-8000-00000000000c", "kind": "credits_exhausted",
            "subject": "0000000000000000003", "period_start": "2026-01-31T09:00:00.000000Z",
            "event_id": "019a0000-0000-7000-8000-000000000007", "workspaceseq": "0000000000000000009",
            "created_at": "2026-02-10T09:00:00.000000Z",
            "data": {
                "feature_code": "video.render", "requested_credits": "40", "available_credits": "12.5",
                "current_credits": "12.5"
            }
        }, {
            "notification_id": "019a0000-0000-7000-8000-00000000000b", "kind": "low_credit", "subject": "100",
            "period_start": "2026-01-31T09:00:00.000000Z", "event_id": "019a0000-0000-7000-8000-000000000006",
            "workspaceseq": "0000000000000000008", "created_at": "2026-02-09T09:00:00.000000Z",
            "data": {"threshold_credits": "100", "available_credits": "99", "current_credits": "99"}
        }],
        "has_more": false,
        "as_of": {"sequence": "0000000000000000042", "lag_seconds": 0, "incomplete": false}
    }))),
    extensions(("x-problems" = json!(["invalid-cursor", "cursor-gone"])), ("x-scope" = json!("analytics:read"))),
    security(("bearer" = []))
)]
#[get("/v1/workspaces/{workspace_id}/notifications")]
pub async fn list_notifications(
    caller: WorkspaceCaller<scope::AnalyticsRead>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let NotificationsParams { cursor, limit, kind, after_seq } = query(&request)?;
    let (state, workspace_id) = (AppState::of(&request), caller.workspace_id);
    let key = ListKey::new("notifications", &(workspace_id, kind));
    let seen = cursor.map(|cursor| key.parse::<3>(&cursor)).transpose()?;
    let as_of = figures_as_of(state, Consumer::Notifications, workspace_id, after_seq).await?;
    let start_at = seen.map(|seen| {
        let [workspace_seq, high, low] = seen.place;
        (workspace_seq, NotificationId(id_of([high, low])))
    });
    let wanted = NotificationQuery { workspace_id, kind, start_at, limit: limit.get() + u32::from(seen.is_some()) };
    let Page { mut rows, has_more } = read(state.store.notifications(as_of.version, &wanted)).await?;
    let place = |row: &Notification| {
        let [high, low] = place_of(row.notification_id.0);
        ([row.workspace_seq, high, low], row.notification_id)
    };
    if let Some(seen) = seen {
        seen.take_from(&mut rows, place)?;
    } else {
        require_workspace_if_empty(state, workspace_id, &rows).await?;
    }
    let next = rows.last().filter(|_| has_more).map(place).map(|(place, id)| key.cursor(place, &id));
    let items = rows.into_iter().map(NotificationView::from).collect();
    let as_of = AsOfView::new(as_of, state.clock.now());
    private_json(&request, &NotificationPage { items, has_more, next, as_of })
}
