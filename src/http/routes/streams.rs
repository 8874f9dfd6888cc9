//! For operators: how far the publishing of events to the streams is.

use actix_web::{HttpRequest, HttpResponse, get};
use serde::Serialize;
use utoipa::ToSchema;

use super::reads::read;
use crate::domain::cloud_event::Sequence;
use crate::domain::ids::Partition;
use crate::domain::time::Timestamp;
use crate::http::auth::scope;
use crate::http::extract::{OperatorCaller, no_query};
use crate::http::problem::Problem;
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::store::queries::PartitionStatus;

/// How far the publishing of a partition is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StreamStatus)]
pub struct StreamView {
    partition: Partition,
    /// The number of the stream. Each rebuild begins the next one.
    generation: i32,
    /// The last event of the partition.
    head: Sequence,
    /// The last event that was published to the stream.
    published: Sequence,
    /// The first event that the stream must still hold.
    floor: Sequence,
    /// The event at which the stream differs from the stored events, if it does. Then nothing more is published to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    diverged_sequence: Option<Sequence>,
    /// Stored events that are not published.
    lag_events: i64,
    /// How long the oldest of them has waited.
    lag_seconds: u64,
    /// The server that has leased the partition, to publish its events.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leased_until: Option<Timestamp>,
}

impl StreamView {
    fn new(status: PartitionStatus, now: Timestamp) -> Self {
        let lag_seconds = status.oldest_waiting_at.map_or(0, |oldest| now.since(oldest).as_secs());
        Self {
            partition: status.partition,
            generation: status.generation,
            head: Sequence(status.seq),
            published: Sequence(status.published_seq),
            floor: Sequence(status.floor_seq),
            diverged_sequence: status.diverged_seq.map(Sequence),
            lag_events: status.seq.saturating_sub(status.published_seq).max(0),
            lag_seconds,
            owner: status.owner.filter(|_| status.leased_until.is_some()),
            leased_until: status.leased_until,
        }
    }
}

/// The streams of all partitions, by their number.
#[derive(Debug, Serialize, ToSchema)]
pub struct StreamList {
    items: Vec<StreamView>,
    /// Always false: the list is complete.
    has_more: bool,
}

/// List the streams
///
/// How far the publishing of events to the streams is, in each partition, as the database knows it. Nothing is published where
/// no Redis is configured. What the streams hold and how far their consumer groups are is only known to Redis.
#[utoipa::path(
    tag = "operations",
    responses((status = 200, description = "The streams.", body = StreamList, example = json!({
        "items": [{
            "partition": 0, "generation": 1, "head": "0000000000000000042", "published": "0000000000000000039",
            "floor": "0000000000000000001", "lag_events": 3, "lag_seconds": 0, "owner": "billing-1",
            "leased_until": "2026-01-31T09:00:05.000000Z"
        }],
        "has_more": false
    }))),
    extensions(("x-scope" = json!("ops:read"))),
    security(("bearer" = []))
)]
#[get("/v1/ops/streams")]
pub async fn list_streams(_: OperatorCaller<scope::OpsRead>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let state = AppState::of(&request);
    let statuses = read(state.operations.stream_statuses()).await?;
    let now = state.clock.now();
    let items = statuses.into_iter().map(|status| StreamView::new(status, now)).collect();
    private_json(&request, &StreamList { items, has_more: false })
}
