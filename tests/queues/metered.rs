//! Metered jobs: each hold is ended once, and what is captured is what was reported.

use serde_json::Value;
use uuid::Uuid;
use visionscope_billing::domain::credits::Quantity;
use visionscope_billing::domain::dead_letter::LetterState;
use visionscope_billing::domain::hold::Overrun;
use visionscope_billing::domain::ids::JobId;
use visionscope_billing::domain::jobs::{ActualUse, Completion, CompletionRefused, Job, JobHold, JobState, Submission};
use visionscope_billing::domain::text::FeatureCode;
use visionscope_billing::queues::{Accepted, EndAnswer, JobEnd};

use crate::databases::Database;
use crate::world::{ALLOWANCE, World, cost, credits, failure, held};

async fn submit(world: &World, submission: Submission) -> Job {
    match world.queues.submit(submission).await.unwrap() {
        Accepted::Job(job) => *job,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_charged_what_it_has_cost() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let job = submit(&world, world.job(1, Some(held(10, Overrun::ChargeAvailable)))).await;
        assert_eq!((job.state, job.held_credits), (JobState::Ready, Some(credits(10))));
        assert_eq!(world.balance().await, (ALLOWANCE, 10));
        let lease = world.claim_one().await;
        assert_eq!(world.end(&lease, cost(3)).await, EndAnswer::Ended(JobState::Completed));
        assert_eq!(world.balance().await, (ALLOWANCE - 3, 0));
        let done = world.record(1).await;
        assert_eq!(done.listed.finished.unwrap().captured, Some(credits(3)));
        assert_eq!((done.listed.job.result.as_deref(), done.attempts.len()), (Some("{\"ok\":true}"), 1));
        assert_eq!(world.events().await, ["CreditsHeld", "JobSubmitted", "CreditConsumed", "JobCompleted"]);

        // Sent again, both have the same answers, and nothing more is charged.
        assert_eq!(world.end(&lease, cost(9)).await, EndAnswer::Ended(JobState::Completed));
        let again = submit(&world, world.job(1, Some(held(10, Overrun::ChargeAvailable)))).await;
        assert_eq!(again.state, JobState::Completed);
        let other = Submission { fingerprint: [8; 32], ..world.job(1, None) };
        assert_eq!(world.queues.submit(other).await, Ok(Accepted::KeyReused));
        assert_eq!(world.balance().await, (ALLOWANCE - 3, 0));
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_the_hold_is_treated_as_the_sender_wants() {
    for kind in Database::ALL {
        for (overrun, actual, left) in [
            (Overrun::Reject, 11, None),
            (Overrun::ChargeAvailable, 30, Some(ALLOWANCE - 30)),
            (Overrun::ChargeAvailable, 2000, Some(0)),
            (Overrun::Overdraft, 2000, Some(0)),
        ] {
            let world = World::with(kind, 1).await;
            submit(&world, world.job(1, Some(held(10, overrun)))).await;
            let lease = world.claim_one().await;
            let answer = world.end(&lease, cost(actual)).await;
            if let Some(left) = left {
                assert_eq!(answer, EndAnswer::Ended(JobState::Completed));
                assert_eq!(world.balance().await, (left, 0));
            } else {
                let (requested, held) = (credits(actual), credits(10));
                assert_eq!(answer, EndAnswer::Refused(CompletionRefused::ExceedsHold { requested, held }));
                assert_eq!(
                    world.end(&lease, cost(10)).await,
                    EndAnswer::Ended(JobState::Completed),
                    "it can end otherwise"
                );
                assert_eq!(world.balance().await, (ALLOWANCE - 10, 0));
            }
            world.audit_and_close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_hold_is_answered_like_a_deduction_and_nothing_runs() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let much = || world.job(1, Some(held(ALLOWANCE + 1, Overrun::Reject)));
        let Ok(Accepted::Refused(answer)) = world.queues.submit(much()).await else { panic!("it is refused") };
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!((answer.status, body["code"].as_str()), (402, Some("insufficient-credits")));
        assert_eq!(world.claim(1).await, []);
        let job = world.record(1).await.listed.job;
        assert_eq!((job.state, job.error.unwrap().class.as_str()), (JobState::Rejected, "insufficient-credits"));
        assert_eq!(world.events().await, ["CreditLimitExceeded"]);
        assert_eq!(world.queues.submit(much()).await, Ok(Accepted::Refused(answer)), "byte for byte");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_fails_for_good_leaves_a_letter_and_gives_its_credits_back() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        submit(&world, world.job(1, Some(held(10, Overrun::Reject)))).await;
        for _ in 1..5 {
            let lease = world.claim_one().await;
            assert_eq!(world.end(&lease, failure(true)).await, EndAnswer::Ended(JobState::Waiting));
            assert_eq!(world.balance().await, (ALLOWANCE, 10), "it is held while the job waits");
            world.pass(1800);
            assert_eq!(world.queues.promote().await.unwrap().ready, 1);
        }
        let lease = world.claim_one().await;
        assert_eq!(world.end(&lease, failure(true)).await, EndAnswer::Ended(JobState::Failed));
        assert_eq!(world.balance().await, (ALLOWANCE, 0));
        let letters = world.database.server_store.dead_letters_by_id(&[lease.job_id.0]).await.unwrap();
        assert_eq!(
            (letters[0].state, letters[0].attempts, letters[0].error_class.as_str()),
            (LetterState::Open, 5, "timeout")
        );
        assert_eq!(world.events().await, ["CreditsHeld", "JobSubmitted", "HoldReleased", "JobFailed"]);
        assert_eq!(world.record(1).await.attempts.len(), 5);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_free_job_is_completed_and_a_canceled_one_is_not() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        submit(&world, world.job(1, Some(held(10, Overrun::Reject)))).await;
        let lease = world.claim_one().await;
        assert_eq!(world.end(&lease, cost(0)).await, EndAnswer::Ended(JobState::Completed));
        submit(&world, world.job(2, Some(held(10, Overrun::Reject)))).await;
        world.queues.cancel(vec![JobId(Uuid::from_u128(2))], false).await.unwrap();
        assert_eq!(world.record(2).await.listed.job.state, JobState::Canceled);
        // Who runs is asked to stop, and may have been faster.
        for (number, end, state) in [(3, failure(true), JobState::Canceled), (4, cost(4), JobState::Completed)] {
            submit(&world, world.job(number, Some(held(10, Overrun::Reject)))).await;
            let lease = world.claim_one().await;
            let asked = world.queues.cancel(vec![lease.job_id], false).await.unwrap().remove(0);
            assert_eq!((asked.state, asked.cancel_requested_at.is_some()), (JobState::Running, true));
            assert_eq!(world.end(&lease, end).await, EndAnswer::Ended(state));
        }
        assert_eq!(world.balance().await, (ALLOWANCE - 4, 0));
        let told = world.events().await;
        let ends: Vec<_> = told.iter().filter(|name| name.starts_with("Job") && *name != "JobSubmitted").collect();
        assert_eq!(ends, ["JobCompleted", "JobFailed", "JobFailed", "JobCompleted"]);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hold_of_a_job_that_waits_is_extended_until_the_job_is_over() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let run_at = Some(world.in_days(5));
        let planned = Submission { run_at, ..world.job(1, Some(held(10, Overrun::Reject))) };
        let job = submit(&world, planned).await;
        assert_eq!((job.state, job.hold_expires_at), (JobState::Waiting, Some(world.in_days(6))));
        submit(&world, world.job(2, Some(held(10, Overrun::Reject)))).await;
        for _ in 0..12 {
            world.pass(11 * 3600);
            world.queues.promote().await.unwrap();
        }
        assert_eq!(world.balance().await, (ALLOWANCE, 20), "no hold has expired");
        for lease in world.claim(2).await {
            assert_eq!(world.end(&lease, cost(10)).await, EndAnswer::Ended(JobState::Completed));
        }
        assert_eq!(world.balance().await, (ALLOWANCE - 20, 0));
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_hold_has_expired_is_charged_like_a_deduction() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        submit(&world, world.job(1, Some(held(10, Overrun::ChargeAvailable)))).await;
        let lease = world.claim_one().await;
        // No server ran for two days.
        world.pass(2 * 86_400);
        let all = JobEnd::Complete(Completion::default());
        assert_eq!(world.end(&lease, all).await, EndAnswer::Ended(JobState::Completed));
        assert_eq!(world.balance().await, (ALLOWANCE - 10, 0));
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_a_feature_that_is_free_holds_and_costs_nothing() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        let quantity = Quantity::from_micro(3_000_000).ok();
        let feature_code = FeatureCode::new("free").unwrap();
        let hold = JobHold { feature_code, credits: None, quantity, ..held(1, Overrun::Reject) };
        let job = submit(&world, world.job(1, Some(hold))).await;
        assert_eq!((job.state, job.held_credits), (JobState::Ready, Some(credits(0))));
        let lease = world.claim_one().await;
        let actual = ActualUse { quantity, ..ActualUse::default() };
        let end = JobEnd::Complete(Completion { result: None, actual: Some(actual) });
        assert_eq!(world.end(&lease, end).await, EndAnswer::Ended(JobState::Completed));
        assert_eq!(world.record(1).await.listed.finished.unwrap().captured, Some(credits(0)));
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_told_that_its_job_has_failed_if_the_cost_cannot_be_charged() {
    for kind in Database::ALL {
        let world = World::with(kind, 1).await;
        submit(&world, world.job(1, Some(held(10, Overrun::Reject)))).await;
        let late = world.claim_one().await;
        // Its hold expires, and the credits are spent otherwise.
        world.pass(2 * 86_400);
        submit(&world, world.job(2, Some(held(ALLOWANCE - 5, Overrun::Reject)))).await;
        let lease = world.claim_one().await;
        assert_eq!(world.end(&lease, cost(ALLOWANCE - 5)).await, EndAnswer::Ended(JobState::Completed));
        for _ in 0..2 {
            assert_eq!(world.end(&late, cost(10)).await, EndAnswer::Ended(JobState::Failed), "also if it asks again");
        }
        let letters = world.database.server_store.dead_letters_by_id(&[late.job_id.0]).await.unwrap();
        assert_eq!(letters[0].error_class, "capture_refused");
        assert_eq!(world.balance().await, (5, 0));
        world.audit_and_close().await;
    }
}
