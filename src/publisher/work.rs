//! The publisher's units of work as futures, each with its result.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::partition::{NextEvents, Progress, PublisherContext, ReadResult, Step, StepError, read_next, with_timeout};
use crate::store::StoreError;
use crate::store::queries::{EventPosition, Lease, PartitionStatus, Publication, Recorded};

pub(super) type Work = BoxFuture<'static, Completed>;

/// The result of a unit of work.
pub(super) enum Completed {
    Leased(Result<Vec<Lease>, StoreError>),
    /// The heads, and how long the poll took.
    Polled(Result<Vec<EventPosition>, StoreError>, Duration),
    Status(Result<Vec<PartitionStatus>, StoreError>),
    Read(Vec<ReadResult>),
    Stepped(Progress, Result<Step, StepError>),
    Recorded(Vec<Publication>, Result<Vec<Recorded>, StoreError>),
}

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
    async move { Completed::Status(with_timeout(context.outbox.status()).await) }.boxed()
}

pub(super) fn record(context: &Arc<PublisherContext>, publications: Vec<Publication>) -> Work {
    let context = Arc::clone(context);
    let record = async move {
        let recorded = with_timeout(context.outbox.record(&publications)).await;
        Completed::Recorded(publications, recorded)
    };
    record.boxed()
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
