//! The publisher's units of work as futures, each with its result.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::breaker::BreakerState;
use super::group_lag::read_groups;
use super::partition::{NextEvents, Progress, PublisherContext, ReadResult, Step, StepError, read_next, with_timeout};
use crate::domain::ids::Partition;
use crate::store::StoreError;
use crate::store::queries::{EventPosition, Lease, PartitionStatus, Publication, Recorded};
use crate::stream::GroupPosition;

pub(super) type Work = BoxFuture<'static, Completed>;

/// The result of a unit of work.
pub(super) enum Completed {
    Leased(Result<Vec<Lease>, StoreError>),
    /// The heads, and how long the poll took.
    Polled(Result<Vec<EventPosition>, StoreError>, Duration),
    /// The partitions, and the consumer groups unless the stream did not answer.
    Status(Result<Vec<PartitionStatus>, StoreError>, Option<Vec<(Partition, GroupPosition)>>),
    Read(Vec<ReadResult>),
    Stepped(Progress, Result<Step, StepError>),
    Recorded(Vec<Publication>, Result<Vec<Recorded>, StoreError>),
    /// Whether there may be more old records of batches to delete.
    Cleaned(Result<bool, StoreError>),
}

/// How many records of batches one statement deletes. It takes a few milliseconds, in which nothing else writes to an
/// embedded database.
const BATCHES_PER_DELETION: u32 = 1_000;

pub(super) fn lease(context: &Arc<PublisherContext>, ttl: Duration) -> Work {
    let context = Arc::clone(context);
    async move { Completed::Leased(with_timeout(context.outbox.lease(&context.owner, ttl)).await) }.boxed()
}

pub(super) fn poll(context: &Arc<PublisherContext>, started: Instant) -> Work {
    let context = Arc::clone(context);
    async move { Completed::Polled(with_timeout(context.outbox.heads()).await, started.elapsed()) }.boxed()
}

pub(super) fn status(context: &Arc<PublisherContext>) -> Work {
    let context = Arc::clone(context);
    let status = async move {
        let status = with_timeout(context.outbox.status()).await;
        let mut groups = None;
        // Nobody waits for the groups while the stream is down: each failure may take a whole timeout.
        if let Ok(partitions) = &status
            && context.breaker.state() == BreakerState::Closed
        {
            groups = read_groups(&*context.stream, partitions).await.ok();
        }
        Completed::Status(status, groups)
    };
    status.boxed()
}

pub(super) fn record(context: &Arc<PublisherContext>, publications: Vec<Publication>) -> Work {
    let context = Arc::clone(context);
    let record = async move {
        let recorded = with_timeout(context.outbox.record(&publications)).await;
        Completed::Recorded(publications, recorded)
    };
    record.boxed()
}

/// One short statement for each partition.
pub(super) fn delete_batches(context: &Arc<PublisherContext>, partitions: Vec<Partition>, retain: Duration) -> Work {
    let context = Arc::clone(context);
    let delete = async move {
        let mut has_more = false;
        for partition in partitions {
            let delete = context.outbox.delete_batches(partition, retain, BATCHES_PER_DELETION);
            match with_timeout(delete).await {
                Ok(deleted) => has_more |= deleted >= u64::from(BATCHES_PER_DELETION),
                Err(error) => return Completed::Cleaned(Err(error)),
            }
        }
        Completed::Cleaned(Ok(has_more))
    };
    delete.boxed()
}

pub(super) fn read(context: &Arc<PublisherContext>, partitions: Vec<Progress>) -> Work {
    let context = Arc::clone(context);
    async move { Completed::Read(read_next(&context, partitions).await) }.boxed()
}

pub(super) fn step(context: &Arc<PublisherContext>, mut progress: Progress, next: NextEvents) -> Work {
    let context = Arc::clone(context);
    let step = async move {
        let step = progress.advance(&context, next).await;
        Completed::Stepped(progress, step)
    };
    step.boxed()
}

/// Releases the leases even if the positions cannot be recorded.
pub(super) async fn record_and_release(
    context: &PublisherContext,
    unrecorded: &[Publication],
) -> Result<(), StoreError> {
    let recorded = if unrecorded.is_empty() { Ok(Vec::new()) } else { context.outbox.record(unrecorded).await };
    context.outbox.release(&context.owner).await.and(recorded.map(drop))
}
