//! How far figures are, and waiting until they contain an event.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, Serialize, de};
use tokio::time::{Instant, sleep};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use super::reads::read;
use crate::domain::cloud_event::Sequence;
use crate::domain::consumers::Consumer;
use crate::domain::ids::{Partition, WorkspaceId};
use crate::domain::text::{FieldCode, FieldError};
use crate::domain::time::Timestamp;
use crate::http::problem::{Code, Problem};
use crate::http::state::AppState;
use crate::store::figures::{AsOf, ServerAsOf};

/// How long a request waits for `after_seq`.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// How often it looks meanwhile.
const WAIT_PAUSE: Duration = Duration::from_millis(25);

/// The header of an export that says the same as `as_of` of a page, as JSON.
const EXPORT_AS_OF: &str = "x-as-of";

/// How far figures are.
#[derive(Debug, Serialize, ToSchema)]
pub struct AsOfView {
    /// The last event of the workspace's partition that the figures contain.
    sequence: Sequence,
    /// How long the oldest event of the partition has waited that they do not contain, in seconds and rounded up. 0 if they
    /// contain all.
    lag_seconds: u64,
    /// Whether one of the workspace's events could not be taken, and is in no figure. Its later events wait until an operator
    /// has it tried again or discards it.
    incomplete: bool,
}

impl AsOfView {
    pub(super) fn new(as_of: AsOf, now: Timestamp) -> Self {
        let lag_seconds = lag_seconds(as_of.waiting_since, now);
        let incomplete = as_of.is_parked || as_of.has_discarded;
        Self { sequence: Sequence(as_of.seq), lag_seconds, incomplete }
    }

    /// Says in an export, which has no place for it in its rows, how far its figures are.
    pub(super) fn put_on(&self, mut export: HttpResponse) -> Result<HttpResponse, Problem> {
        let text = serde_json::to_string(self).ok();
        let value = text.and_then(|text| HeaderValue::from_str(&text).ok());
        let value = value.ok_or_else(|| Problem::plain(Code::InternalError))?;
        export.headers_mut().insert(HeaderName::from_static(EXPORT_AS_OF), value);
        Ok(export)
    }
}

/// How far the figures of the whole server are.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ServerAsOf)]
pub struct ServerAsOfView {
    /// All partitions of the server.
    partitions: Vec<PartitionAsOf>,
    /// How long the oldest event has waited that the figures do not contain, in seconds and rounded up. 0 if they contain
    /// all.
    lag_seconds: u64,
    /// Whether an event of any workspace could not be taken. The later events of that workspace wait then, until an
    /// operator acts.
    incomplete: bool,
}

/// How far the figures of a partition are.
#[derive(Debug, Serialize, ToSchema)]
pub struct PartitionAsOf {
    partition: Partition,
    /// The last event of the partition that the figures contain.
    sequence: Sequence,
}

impl ServerAsOfView {
    pub(super) fn new(as_of: ServerAsOf, now: Timestamp) -> Self {
        let partition = |(partition, seq)| PartitionAsOf { partition, sequence: Sequence(seq) };
        Self {
            partitions: as_of.seqs.into_iter().map(partition).collect(),
            lag_seconds: lag_seconds(as_of.waiting_since, now),
            incomplete: as_of.has_parked,
        }
    }
}

/// Rounded up, so that 0 says that nothing waits.
fn lag_seconds(waiting_since: Option<Timestamp>, now: Timestamp) -> u64 {
    let rounded_up = |lag: Duration| lag.as_secs() + u64::from(lag.subsec_nanos() > 0);
    waiting_since.map_or(0, |oldest| rounded_up(now.since(oldest)).max(1))
}

/// The `workspaceseq` of an event that figures should contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfterSeq(i64);

impl<'de> Deserialize<'de> for AfterSeq {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_number = (1..=19).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        let refuse = || FieldError::new(FieldCode::Invalid, "must be the workspaceseq of an event");
        let number = text.parse().ok().filter(|_| is_number);
        number.map(Self).ok_or_else(|| de::Error::custom(refuse()))
    }
}

impl PartialSchema for AfterSeq {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).pattern(Some("^[0-9]{1,19}$")).into()
    }
}

impl ToSchema for AfterSeq {}

/// How far the consumer's figures of a workspace are. With `after`, it waits a little until they contain that event.
pub(super) async fn figures_as_of(
    state: &AppState,
    consumer: Consumer,
    workspace_id: WorkspaceId,
    after: Option<AfterSeq>,
) -> Result<AsOf, Problem> {
    let deadline = Instant::now() + MAX_WAIT;
    loop {
        let as_of = read(state.store.as_of(consumer, workspace_id)).await?;
        let Some(AfterSeq(workspace_seq)) = after else { return Ok(as_of) };
        let wanted = read(state.store.event_seq(workspace_id, workspace_seq)).await?;
        if wanted.is_some_and(|seq| seq <= as_of.seq) || as_of.is_parked || Instant::now() >= deadline {
            return Ok(as_of);
        }
        sleep(WAIT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lag_of_zero_says_that_no_event_waits() {
        let now: Timestamp = "2026-03-01T00:00:05Z".parse().unwrap();
        for (waited_us, lag_seconds) in
            [(None, 0), (Some(-1), 1), (Some(0), 1), (Some(1_000_000), 1), (Some(1_000_001), 2)]
        {
            let waiting_since = waited_us.map(|waited: i64| Timestamp::from_micros(now.micros() - waited));
            let as_of = AsOf { version: 1, seq: 1, waiting_since, is_parked: false, has_discarded: false };
            assert_eq!(AsOfView::new(as_of, now).lag_seconds, lag_seconds, "{waited_us:?}");
        }
    }
}
