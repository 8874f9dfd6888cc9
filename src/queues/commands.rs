//! The commands of a metered job: its hold, and the capture or the release at its end.
//!
//! Each has an idempotency key that is made of the job's id, so it takes effect once, however often it is sent: by the request
//! that sends or ends the job, by the promoter after a crash, or by another server at the same time.

use serde::Deserialize;

use crate::domain::commands::{CaptureHold, Charge, Command, Envelope, ExtendHold, PlaceHold, ReleaseHold};
use crate::domain::credits::{Credits, PositiveCredits};
use crate::domain::hold::HoldDuration;
use crate::domain::ids::{CommandId, HoldId};
use crate::domain::job_ref::{JobFailureReason, JobRef, ReleasedJob};
use crate::domain::jobs::{Held, Job, JobError, JobOutcome, Settlement};
use crate::domain::text::IdempotencyKey;
use crate::domain::time::Timestamp;
use crate::engine::{EngineError, Rendered};

/// How long a hold lasts after the instant that its job is planned for, in seconds.
const HOLD_S: i64 = 24 * 3600;

/// What became of the hold of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HoldAnswer {
    Placed(Held),
    /// The engine's answer, as a deduction would get it, and the error that the job keeps.
    Refused(Rendered, JobError),
    /// The engine's answer was not recorded, so that sending the job again is decided again.
    RefusedForNow(Rendered),
    /// The key was used for a job that is over and forgotten.
    Over,
}

/// The part of a hold's answer that its job keeps.
#[derive(Deserialize)]
struct HoldBody {
    hold_id: HoldId,
    credits: Credits,
    unit_price: Option<Credits>,
    expires_at: Timestamp,
}

#[derive(Deserialize)]
struct CaptureBody {
    captured_credits: Credits,
}

#[derive(Deserialize)]
struct ProblemBody {
    code: String,
    #[serde(default)]
    detail: String,
}

/// The command that reserves what the job may cost.
pub(super) fn place_hold(job: &Job, message_id: CommandId, now: Timestamp) -> Option<Envelope> {
    let hold = job.hold.as_ref()?;
    let charge = match (hold.credits, hold.quantity) {
        (Some(credits), _) => Charge::Credits(credits),
        (None, Some(quantity)) => Charge::Quantity(quantity),
        (None, None) => return None,
    };
    let command = Command::PlaceHold(PlaceHold {
        feature_code: hold.feature_code.clone(),
        charge,
        min_credits: None,
        duration: duration(job.run_at.since(now).as_secs()),
        user_id: hold.user_id.clone(),
        explain: false,
        job: Some(reference(job)),
    });
    envelope(job, "hold", command, message_id, now)
        .map(|envelope| Envelope { metadata: hold.metadata.clone(), ..envelope })
}

/// The command that charges a job that was completed, or gives its hold back.
pub(super) fn end_hold(job: &Job, message_id: CommandId, now: Timestamp) -> Option<Envelope> {
    let (hold_id, outcome) = (job.hold_id?, job.outcome?);
    let actual = job.actual.clone().unwrap_or_default();
    let is_free = actual.credits.is_some_and(|credits| !credits.is_positive()) && actual.quantity.is_none();
    if outcome == JobOutcome::Completed && !is_free {
        let credits = actual.credits.and_then(PositiveCredits::new).map(Charge::Credits);
        let command = Command::CaptureHold(CaptureHold {
            hold_id,
            charge: credits.or(actual.quantity.map(Charge::Quantity)),
            overrun: job.hold.as_ref()?.overrun,
            late_capture: true,
            job: Some(reference(job)),
        });
        let envelope = envelope(job, "capture", command, message_id, now)?;
        return Some(Envelope { metadata: actual.metadata, ..envelope });
    }
    let is_lost = job.error.as_ref().is_some_and(|error| error.class == JobError::LOST);
    let reason = match outcome {
        JobOutcome::Completed => None,
        JobOutcome::Canceled => Some(JobFailureReason::Canceled),
        JobOutcome::Failed if is_lost => Some(JobFailureReason::Lost),
        JobOutcome::Failed => Some(JobFailureReason::Failed),
    };
    let command = Command::ReleaseHold(ReleaseHold { hold_id, job: Some(ReleasedJob { job: reference(job), reason }) });
    envelope(job, "release", command, message_id, now)
}

/// The command that lets the hold of a job last longer, once for each end that the hold has had.
pub(super) fn extend_hold(job: &Job, message_id: CommandId, now: Timestamp) -> Option<Envelope> {
    let command =
        Command::ExtendHold(ExtendHold { hold_id: job.hold_id?, duration: duration(job.run_at.since(now).as_secs()) });
    envelope(job, &format!("extend {}", job.hold_expires_at?), command, message_id, now)
}

fn duration(seconds_ahead: u64) -> HoldDuration {
    let ahead = i64::try_from(seconds_ahead).unwrap_or(i64::MAX);
    HoldDuration::new(ahead.saturating_add(HOLD_S).min(i64::from(HoldDuration::MAX))).unwrap_or(HoldDuration::DEFAULT)
}

fn reference(job: &Job) -> JobRef {
    JobRef { job_id: job.job_id, kind: job.kind.clone(), queue: job.queue.clone() }
}

fn envelope(job: &Job, step: &str, command: Command, message_id: CommandId, now: Timestamp) -> Option<Envelope> {
    let key = IdempotencyKey::system(format_args!("job {} {step}", job.job_id));
    Some(Envelope {
        actor: job.actor.clone(),
        correlation_id: job.correlation_id.clone(),
        causation_id: Some(job.job_id.0),
        traceparent: job.traceparent.clone(),
        ..Envelope::internal(message_id, job.workspace_id?, key, now, command)
    })
}

/// What the engine's answer to a hold means.
pub(super) fn hold_answer(answer: Rendered) -> Result<HoldAnswer, EngineError> {
    if answer.status < 300 {
        let body: HoldBody = serde_json::from_str(&answer.body).map_err(|_| EngineError::Failed)?;
        let HoldBody { hold_id, credits, unit_price, expires_at } = body;
        return Ok(HoldAnswer::Placed(Held { hold_id, credits, unit_price, expires_at }));
    }
    let error = error_of(&answer);
    Ok(HoldAnswer::Refused(answer, error))
}

/// What the engine's answer to the end of a job means. A hold that could not be released is over by itself.
pub(super) fn settlement(command: &Command, answer: &Rendered) -> Result<Settlement, EngineError> {
    if !matches!(command, Command::CaptureHold(_)) {
        return Ok(Settlement::Released);
    }
    if answer.status < 300 {
        let body: CaptureBody = serde_json::from_str(&answer.body).map_err(|_| EngineError::Failed)?;
        return Ok(Settlement::Captured(body.captured_credits));
    }
    let JobError { class, text } = error_of(answer);
    Ok(Settlement::CaptureRefused(format!("{class}: {text}")))
}

/// When a hold expires, as its answer tells. None if it is refused to last longer.
pub(super) fn expires_at(answer: &Rendered) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Body {
        expires_at: Timestamp,
    }
    let body = serde_json::from_str::<Body>(&answer.body).ok().filter(|_| answer.status < 300)?;
    Some(body.expires_at)
}

pub(super) fn error_of(answer: &Rendered) -> JobError {
    let problem = serde_json::from_str::<ProblemBody>(&answer.body);
    let ProblemBody { code, detail } = problem.unwrap_or(ProblemBody { code: "refused".into(), detail: String::new() });
    JobError::new(&code, &detail)
}
