//! Metered jobs: their holds tell in the same transaction what became of them.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::commands::{CaptureHold, Charge, Command, PlaceHold, ReleaseHold};
use crate::domain::event::EventType::{
    CreditConsumed, CreditLimitExceeded, CreditsHeld, HoldReleased, JobCompleted, JobFailed, JobSubmitted,
};
use crate::domain::hold::{HoldDuration, Overrun};
use crate::domain::ids::{HoldId, JobId};
use crate::domain::job_ref::{JobFailureReason, JobRef, ReleasedJob};
use crate::domain::plan::tests::pro;
use crate::domain::tests::{Ran, World, json as parsed};
use crate::domain::text::{FeatureCode, JobKind, QueueName};

fn job() -> JobRef {
    JobRef {
        job_id: JobId(Uuid::from_u128(7)),
        kind: JobKind::new("video_processing.analyse").unwrap(),
        queue: QueueName::new("video_processing").unwrap(),
    }
}

fn hold(world: &mut World, credits: &str) -> Ran {
    world.run(Command::PlaceHold(PlaceHold {
        feature_code: FeatureCode::new("render").unwrap(),
        charge: Charge::Credits(parsed(credits)),
        min_credits: None,
        duration: HoldDuration::DEFAULT,
        user_id: None,
        explain: false,
        job: Some(job()),
    }))
}

fn held() -> (World, HoldId) {
    let mut world = World::on(pro());
    let ran = hold(&mut world, "300").accepted();
    let hold_id = HoldId(ran.receipt()["hold_id"].as_str().unwrap().parse().unwrap());
    assert_eq!(ran.events(), [CreditsHeld, JobSubmitted]);
    check(&ran.data(JobSubmitted), hold_id, json!({"credits": "300", "current_credits": "1000"}));
    (world, hold_id)
}

fn check(data: &Value, hold_id: HoldId, mut expected: Value) {
    let JobRef { job_id, kind, queue } = job();
    expected["job_id"] = json!(job_id);
    expected["kind"] = json!(kind);
    expected["queue"] = json!(queue);
    expected["hold_id"] = json!(hold_id);
    assert_eq!(*data, expected);
}

#[test]
fn a_job_is_completed_with_its_capture_and_says_what_it_has_cost() {
    for (credits, cost) in [
        (Some("120"), json!({"credits": "120", "current_credits": "880"})),
        (None, json!({"credits": "300", "current_credits": "700"})),
    ] {
        let (mut world, hold_id) = held();
        let charge = credits.map(|credits| Charge::Credits(parsed(credits)));
        let (overrun, late_capture) = (Overrun::ChargeAvailable, true);
        let capture = CaptureHold { hold_id, charge, overrun, late_capture, job: Some(job()) };
        let ran = world.run(Command::CaptureHold(capture)).accepted();
        assert_eq!(ran.events(), [CreditConsumed, JobCompleted]);
        check(&ran.data(JobCompleted), hold_id, cost);
    }
    let (mut world, hold_id) = held();
    let (charge, overrun) = (Some(Charge::Credits(parsed("1200"))), Overrun::ChargeAvailable);
    let capture = CaptureHold { hold_id, charge, overrun, late_capture: true, job: Some(job()) };
    let ran = world.run(Command::CaptureHold(capture)).accepted();
    let cost = json!({"credits": "1000", "uncovered_credits": "200", "current_credits": "0"});
    check(&ran.data(JobCompleted), hold_id, cost);
}

#[test]
fn a_job_whose_hold_is_released_has_failed_or_was_free() {
    for (reason, event, data) in [
        (None, JobCompleted, json!({"credits": "0", "current_credits": "1000"})),
        (Some(JobFailureReason::Failed), JobFailed, json!({"reason": "failed", "current_credits": "1000"})),
        (Some(JobFailureReason::Canceled), JobFailed, json!({"reason": "canceled", "current_credits": "1000"})),
        (Some(JobFailureReason::Lost), JobFailed, json!({"reason": "lost", "current_credits": "1000"})),
    ] {
        let (mut world, hold_id) = held();
        let release = ReleaseHold { hold_id, job: Some(ReleasedJob { job: job(), reason }) };
        let ran = world.run(Command::ReleaseHold(release)).accepted();
        assert_eq!(ran.events(), [HoldReleased, event]);
        check(&ran.data(event), hold_id, data);
    }
}

#[test]
fn a_job_whose_hold_is_refused_was_never_submitted() {
    let ran = hold(&mut World::on(pro()), "100000");
    assert_eq!((ran.code(), ran.events()), ("insufficient-credits", vec![CreditLimitExceeded]));
}
