//! The ends of jobs, as workers tell them: one job, or several at once.

use std::collections::BTreeSet;

use actix_web::{HttpRequest, HttpResponse, post, web};
use chrono::TimeDelta;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::job_views::JobObject;
use super::reads::written;
use super::workers::own_worker;
use crate::domain::credits::{LimitCredits, Quantity, SentQuantity};
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::jobs::{ActualUse, Completion, CompletionRefused, Failure, JobError, JobState};
use crate::domain::metadata::Metadata;
use crate::domain::rejection::Rejection;
use crate::domain::text::{FieldCode, FieldError};
use crate::http::auth::scope;
use crate::http::body::{self, object, refuse, whole};
use crate::http::extract::{OperatorCaller, job_id, no_query};
use crate::http::json_object::JsonObject;
use crate::http::problem::{Code, Problem};
use crate::http::representation::private_json;
use crate::http::state::AppState;
use crate::queues::{EndAnswer, EndOfJob, JobEnd};

/// How many jobs one request ends.
const MAX_JOBS: usize = 32;

/// What a metered job has really cost: `credits` or `quantity`, or all that is held if neither is sent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActualUseRequest {
    /// Zero if it was free: then the hold is released.
    credits: Option<LimitCredits>,
    /// How much was used, at the price that the feature had when the hold was placed.
    #[schema(value_type = Option<SentQuantity>)]
    quantity: Option<Quantity>,
    /// Of the usage log and its event.
    metadata: Option<Metadata>,
}

/// A job that is done.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompleteJobRequest {
    lease_id: LeaseId,
    /// For whoever has sent the job: an object of at most 16 KiB.
    #[schema(value_type = Option<Object>)]
    result: Option<JobObject>,
    #[serde(default, deserialize_with = "optional_actual")]
    #[schema(required = false)]
    actual: Option<ActualUseRequest>,
}

/// A job that is done, of several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompletedJobRequest {
    job_id: JobId,
    lease_id: LeaseId,
    /// For whoever has sent the job: an object of at most 16 KiB.
    #[schema(value_type = Option<Object>)]
    result: Option<JobObject>,
    #[serde(default, deserialize_with = "optional_actual")]
    #[schema(required = false)]
    actual: Option<ActualUseRequest>,
}

/// Jobs that are done, each once.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompleteJobsRequest {
    #[serde(deserialize_with = "jobs")]
    #[schema(min_items = 1, max_items = 32)]
    jobs: Vec<CompletedJobRequest>,
}

/// A job that could not be done.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailJobRequest {
    lease_id: LeaseId,
    /// What kind of error it is, such as `timeout`: dead letters with one class and a similar error are shown together. Only the
    /// first 64 bytes are kept.
    error_class: String,
    /// For people. Only the first 2 KiB are kept.
    error: String,
    /// Whether it may be tried again. If not, or if this was the last attempt, it has failed for good.
    #[serde(default = "yes")]
    #[schema(required = false)]
    retryable: bool,
    /// After how many seconds it is tried again, instead of the delay of its queue.
    #[serde(default, deserialize_with = "retry_after_s")]
    #[schema(required = false, minimum = 0, maximum = 86400)]
    retry_after_s: Option<i64>,
}

/// A job that could not be done, of several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailedJobRequest {
    job_id: JobId,
    lease_id: LeaseId,
    /// What kind of error it is, as for one job.
    error_class: String,
    /// For people, as for one job.
    error: String,
    /// Whether it may be tried again.
    #[serde(default = "yes")]
    #[schema(required = false)]
    retryable: bool,
    /// After how many seconds it is tried again, instead of the delay of its queue.
    #[serde(default, deserialize_with = "retry_after_s")]
    #[schema(required = false, minimum = 0, maximum = 86400)]
    retry_after_s: Option<i64>,
}

/// Jobs that could not be done, each once.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailJobsRequest {
    #[serde(deserialize_with = "jobs")]
    #[schema(min_items = 1, max_items = 32)]
    jobs: Vec<FailedJobRequest>,
}

/// A job that is given back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseJobRequest {
    lease_id: LeaseId,
}

/// What became of a job.
#[derive(Debug, Serialize, ToSchema)]
pub struct EndedJob {
    job_id: JobId,
    /// `settling` while the hold of a metered job is being captured or released: that follows by itself.
    state: JobState,
}

/// What became of one of several jobs.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobResult {
    job_id: JobId,
    /// The HTTP status that this job alone would be answered with.
    status: u16,
    /// Present with status 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<JobState>,
    /// Present with any other status.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<ProblemJson>,
}

/// What became of the jobs, in the order in which they were sent.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobResults {
    results: Vec<JobResult>,
}

/// A problem within an answer.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct ProblemJson(Box<RawValue>);

impl PartialSchema for ProblemJson {
    fn schema() -> RefOr<Schema> {
        Ref::from_schema_name("Problem").into()
    }
}

impl ToSchema for ProblemJson {}

const fn yes() -> bool {
    true
}

fn optional_actual<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ActualUseRequest>, D::Error> {
    let actual: ActualUseRequest = object(deserializer)?;
    if actual.credits.is_some() && actual.quantity.is_some() {
        return Err(refuse(FieldError::new(FieldCode::Invalid, "only one of credits and quantity can be sent")));
    }
    Ok(Some(actual))
}

fn retry_after_s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    whole(deserializer, &(0..=86_400)).map(Some)
}

/// A job in a list.
trait Listed {
    fn job_id(&self) -> JobId;
}

impl Listed for CompletedJobRequest {
    fn job_id(&self) -> JobId {
        self.job_id
    }
}

impl Listed for FailedJobRequest {
    fn job_id(&self) -> JobId {
        self.job_id
    }
}

fn jobs<'de, D: Deserializer<'de>, T: Deserialize<'de> + Listed>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let jobs = Vec::<T>::deserialize(deserializer)?;
    let different: BTreeSet<_> = jobs.iter().map(Listed::job_id).collect();
    let refused =
        || refuse(FieldError::new(FieldCode::Invalid, format!("must have from 1 to {MAX_JOBS} different jobs")));
    let is_allowed = (1..=MAX_JOBS).contains(&jobs.len()) && different.len() == jobs.len();
    is_allowed.then_some(jobs).ok_or_else(refused)
}

impl ActualUseRequest {
    fn into_actual(self) -> ActualUse {
        ActualUse { credits: self.credits.map(LimitCredits::get), quantity: self.quantity, metadata: self.metadata }
    }
}

fn completion(result: Option<JobObject>, actual: Option<ActualUseRequest>) -> JobEnd {
    let actual = actual.map(ActualUseRequest::into_actual);
    JobEnd::Complete(Completion { result: result.map(JsonObject::into_text), actual })
}

fn failure([class, text]: [&str; 2], is_retryable: bool, retry_after_s: Option<i64>) -> JobEnd {
    let retry_after = retry_after_s.map(TimeDelta::seconds);
    JobEnd::Fail(Failure { error: JobError::new(class, text), is_retryable, retry_after })
}

fn ended(answer: &EndAnswer) -> Result<JobState, Problem> {
    match answer {
        EndAnswer::Ended(state) => Ok(*state),
        EndAnswer::LeaseLost => Err(Problem::plain(Code::LeaseLost)),
        EndAnswer::Refused(CompletionRefused::ExceedsHold { requested, held }) => {
            Err(Problem::from(&Rejection::CaptureExceedsHold { requested: *requested, held: *held }))
        }
        EndAnswer::Refused(CompletionRefused::NotPriced) => Err(Problem::plain(Code::FeatureNotPriced)),
        EndAnswer::Refused(CompletionRefused::OutOfRange) => {
            Err(Problem::field(Code::AmountOutOfRange, "/actual/quantity", "costs more than any hold can have"))
        }
        EndAnswer::Refused(CompletionRefused::NotMetered) => {
            Err(Problem::field(Code::InvalidField, "/actual", "the job has no hold, so it costs nothing"))
        }
    }
}

/// Ends the job in the path.
async fn end_one(request: &HttpRequest, lease_id: LeaseId, end: JobEnd) -> Result<HttpResponse, Problem> {
    let (state, job_id) = (AppState::of(request), job_id(request)?);
    let ends = vec![EndOfJob { job_id, lease_id, worker_id: None, end }];
    let answer = written(state, state.queues.end(ends)).await?.pop();
    let state = ended(&answer.ok_or_else(|| Problem::plain(Code::InternalError))?)?;
    private_json(request, &EndedJob { job_id, state })
}

/// Ends several jobs of a worker.
async fn end_all(
    request: &HttpRequest,
    worker_id: WorkerId,
    ends: Vec<(JobId, LeaseId, JobEnd)>,
) -> Result<HttpResponse, Problem> {
    let state = AppState::of(request);
    let of_worker = |(job_id, lease_id, end)| EndOfJob { job_id, lease_id, worker_id: Some(worker_id), end };
    let ends: Vec<_> = ends.into_iter().map(of_worker).collect();
    let ids: Vec<_> = ends.iter().map(|end| end.job_id).collect();
    let answers = written(state, state.queues.end(ends)).await?;
    let results = ids.into_iter().zip(answers).map(|(job_id, answer)| match ended(&answer) {
        Ok(state) => JobResult { job_id, status: 200, state: Some(state), problem: None },
        Err(problem) => {
            let json = RawValue::from_string(problem.to_json()).ok().map(ProblemJson);
            JobResult { job_id, status: problem.code.status(), state: None, problem: json }
        }
    });
    private_json(request, &JobResults { results: results.collect() })
}

/// Complete a job
///
/// The job is done. What a metered job has cost is charged, up to its hold without any check, and the rest of the hold is
/// released; a cost beyond the hold is charged as its `overrun` says. Sent again with the same lease, the answer is the same.
#[utoipa::path(
    tag = "workers",
    params(("job_id" = JobId, Path, description = "The job.")),
    request_body(content = CompleteJobRequest, example = json!({
        "lease_id": "5b0ab0a5-0d4e-4f0a-8a54-6c0a3e9f7c21", "result": {"scenes": 12}, "actual": {"credits": "17.5"}
    })),
    responses((status = 200, description = "What became of the job.", body = EndedJob, example = json!({
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "state": "completed"
    }))),
    extensions(
        ("x-problems" = json!(["lease-lost", "capture-exceeds-hold", "feature-not-priced"])),
        ("x-scope" = json!("workers")), ("x-key" = json!("none"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/jobs/{job_id}/complete")]
pub async fn complete_job(
    _: OperatorCaller<scope::Workers>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let sent = body::read::<CompleteJobRequest>(&request, &mut payload, "CompleteJob", false).await?.value;
    end_one(&request, sent.lease_id, completion(sent.result, sent.actual)).await
}

/// Fail a job
///
/// The job could not be done. It is tried again after a while, unless this was its last attempt or it is not retryable: then it
/// has failed, a dead letter is written, and the hold of a metered job is released. If somebody has canceled it, it is canceled.
#[utoipa::path(
    tag = "workers",
    params(("job_id" = JobId, Path, description = "The job.")),
    request_body(content = FailJobRequest, example = json!({
        "lease_id": "5b0ab0a5-0d4e-4f0a-8a54-6c0a3e9f7c21", "error_class": "timeout", "error": "the model did not answer",
        "retry_after_s": 60
    })),
    responses((status = 200, description = "What became of the job.", body = EndedJob, example = json!({
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "state": "waiting"
    }))),
    extensions(("x-problems" = json!(["lease-lost"])), ("x-scope" = json!("workers")), ("x-key" = json!("none"))),
    security(("bearer" = []))
)]
#[post("/v1/jobs/{job_id}/fail")]
pub async fn fail_job(
    _: OperatorCaller<scope::Workers>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let sent = body::read::<FailJobRequest>(&request, &mut payload, "FailJob", false).await?.value;
    let FailJobRequest { lease_id, error_class, error, retryable, retry_after_s } = sent;
    end_one(&request, lease_id, failure([&error_class, &error], retryable, retry_after_s)).await
}

/// Give a job back
///
/// The worker does not do the job, for example because it is told to end. Another worker gets it at once, and the attempt does
/// not count.
#[utoipa::path(
    tag = "workers",
    params(("job_id" = JobId, Path, description = "The job.")),
    request_body(content = ReleaseJobRequest, example = json!({"lease_id": "5b0ab0a5-0d4e-4f0a-8a54-6c0a3e9f7c21"})),
    responses((status = 200, description = "What became of the job.", body = EndedJob, example = json!({
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "state": "ready"
    }))),
    extensions(("x-problems" = json!(["lease-lost"])), ("x-scope" = json!("workers")), ("x-key" = json!("none"))),
    security(("bearer" = []))
)]
#[post("/v1/jobs/{job_id}/release")]
pub async fn release_job(
    _: OperatorCaller<scope::Workers>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let sent = body::read::<ReleaseJobRequest>(&request, &mut payload, "ReleaseJob", false).await?.value;
    end_one(&request, sent.lease_id, JobEnd::Release).await
}

/// Complete jobs
///
/// Completes up to 32 jobs of a worker. Each is answered on its own, as if it were sent alone; only a body that is not well-formed
/// is refused as a whole. It has at most 64 KiB: send fewer jobs at once if their results are long.
#[utoipa::path(
    tag = "workers",
    params(("worker_id" = WorkerId, Path, description = "The worker.")),
    request_body(content = CompleteJobsRequest, example = json!({"jobs": [{
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "lease_id": "5b0ab0a5-0d4e-4f0a-8a54-6c0a3e9f7c21",
        "actual": {"credits": "17.5"}
    }]})),
    responses((status = 200, description = "What became of the jobs.", body = JobResults, example = json!({"results": [
        {"job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "status": 200, "state": "completed"}
    ]}))),
    extensions(
        ("x-problems" = json!(["worker-not-found"])), ("x-scope" = json!("workers")), ("x-key" = json!("none"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workers/{worker_id}/complete")]
pub async fn complete_jobs(
    caller: OperatorCaller<scope::Workers>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let sent = body::read::<CompleteJobsRequest>(&request, &mut payload, "CompleteJobs", false).await?.value;
    let worker_id = own_worker(&caller, &request).await?.worker_id;
    let end = |job: CompletedJobRequest| (job.job_id, job.lease_id, completion(job.result, job.actual));
    end_all(&request, worker_id, sent.jobs.into_iter().map(end).collect()).await
}

/// Fail jobs
///
/// Fails up to 32 jobs of a worker. Each is answered on its own, as if it were sent alone; only a body that is not well-formed is
/// refused as a whole.
#[utoipa::path(
    tag = "workers",
    params(("worker_id" = WorkerId, Path, description = "The worker.")),
    request_body(content = FailJobsRequest, example = json!({"jobs": [{
        "job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "lease_id": "5b0ab0a5-0d4e-4f0a-8a54-6c0a3e9f7c21",
        "error_class": "timeout", "error": "the model did not answer"
    }]})),
    responses((status = 200, description = "What became of the jobs.", body = JobResults, example = json!({"results": [
        {"job_id": "8f14e45f-ceea-867a-9d2b-7d1f0f4a6b3c", "status": 200, "state": "waiting"}
    ]}))),
    extensions(
        ("x-problems" = json!(["worker-not-found"])), ("x-scope" = json!("workers")), ("x-key" = json!("none"))
    ),
    security(("bearer" = []))
)]
#[post("/v1/workers/{worker_id}/fail")]
pub async fn fail_jobs(
    caller: OperatorCaller<scope::Workers>,
    request: HttpRequest,
    mut payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    no_query(&request)?;
    let sent = body::read::<FailJobsRequest>(&request, &mut payload, "FailJobs", false).await?.value;
    let worker_id = own_worker(&caller, &request).await?.worker_id;
    let end = |job: FailedJobRequest| {
        (job.job_id, job.lease_id, failure([&job.error_class, &job.error], job.retryable, job.retry_after_s))
    };
    end_all(&request, worker_id, sent.jobs.into_iter().map(end).collect()).await
}
