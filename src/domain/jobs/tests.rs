//! Every transition of a job, by a table.

use std::collections::{BTreeMap, HashMap};

use chrono::TimeDelta;
use uuid::Uuid;

use super::changes::JobChanges;
use super::claims::Seat;
use super::ends::{Completion, CompletionRefused, Failure};
use super::found::{FoundJobs, Running};
use super::holds::{Held, Settlement};
use super::job::{ActualUse, FinishedJob, Job, JobError, JobHold, JobOutcome, JobState, ReplayedLetter, Runner};
use super::lease::{AttemptOutcome, JobLease};
use super::queue::{Queue, QueueSettings, RetryDelays, default_queues};
use super::submission::{Submission, Submitted};
use crate::domain::credits::{Credits, PositiveCredits, Quantity};
use crate::domain::dead_letter::LetterState;
use crate::domain::hold::Overrun;
use crate::domain::ids::{HoldId, JobId, LeaseId, WorkerId, WorkspaceId};
use crate::domain::text::{FeatureCode, JobKind, QueueName, UniqueKey};
use crate::domain::time::Timestamp;

const NOW: Timestamp = Timestamp::from_micros(1_000_000_000_000_000);

fn at(seconds: i64) -> Timestamp {
    NOW.plus(TimeDelta::seconds(seconds))
}

fn settings() -> QueueSettings {
    let (_, settings) = default_queues().remove(1);
    QueueSettings { max_attempts: 3, retry_delays_s: RetryDelays::new(vec![10, 100]).unwrap(), ..settings }
}

fn submission(number: u128) -> Submission {
    Submission {
        job_id: JobId(Uuid::from_u128(number)),
        queue: QueueName::new("default").unwrap(),
        kind: JobKind::new("mail.send").unwrap(),
        workspace_id: Some(WorkspaceId(Uuid::from_u128(1))),
        args: "{}".into(),
        priority: Submission::DEFAULT_PRIORITY,
        run_at: None,
        max_attempts: None,
        unique_key: None,
        fingerprint: [7; 32],
        hold: None,
        replays: None,
        actor: "service-1".into(),
        correlation_id: "c-1".into(),
        causation_id: None,
        traceparent: None,
    }
}

fn plain(state: JobState) -> Job {
    let job = submission(1).into_job(&settings(), &mut HashMap::new(), NOW);
    let attempt = i32::from(state == JobState::Running);
    Job { state, attempt, ..job }
}

fn credits(credits: i64) -> Credits {
    Credits::from_micro(credits * 1_000_000).unwrap()
}

/// A job with a hold of ten credits.
fn metered(state: JobState) -> Job {
    let hold = JobHold {
        feature_code: FeatureCode::new("video.render").unwrap(),
        credits: PositiveCredits::new(credits(10)),
        quantity: None,
        overrun: Overrun::Reject,
        user_id: None,
        metadata: None,
    };
    let is_placed = state != JobState::Holding;
    Job {
        hold: Some(hold),
        hold_id: is_placed.then_some(HoldId(Uuid::from_u128(5))),
        held_credits: is_placed.then(|| credits(10)),
        unit_price: is_placed.then(|| credits(2)),
        hold_expires_at: is_placed.then(|| at(86_400)),
        ..plain(state)
    }
}

fn lease_of(job: &Job) -> JobLease {
    JobLease {
        job_id: job.job_id,
        lease_id: LeaseId(Uuid::from_u128(8)),
        worker_id: WorkerId(Uuid::from_u128(9)),
        queue: job.queue.clone(),
        workspace_id: job.workspace_id,
        started_at: NOW,
        leased_until: at(30),
        deadline: at(300),
        progress: None,
    }
}

fn failure(is_retryable: bool, retry_after: Option<i64>) -> Failure {
    let error = JobError::new("timeout", "the model did not answer in 30 s");
    Failure { error, is_retryable, retry_after: retry_after.map(TimeDelta::seconds) }
}

/// The only job of the changes, over or not.
fn only(changes: &JobChanges) -> &Job {
    let finished = changes.finished.iter().map(|finished| &finished.job);
    let all: Vec<_> = changes.inserted.iter().chain(&changes.updated).chain(finished).collect();
    assert_eq!(all.len(), 1, "{changes:?}");
    assert_eq!(all[0].state.is_final(), !changes.finished.is_empty(), "it is in one table only");
    all[0]
}

fn changed(change: impl FnOnce(&mut JobChanges)) -> JobChanges {
    let mut changes = JobChanges::default();
    change(&mut changes);
    changes
}

#[test]
fn a_job_is_held_if_it_is_metered_and_waits_until_its_time() {
    let hold = metered(JobState::Holding).hold;
    for (hold, run_at, state, due) in [
        (None, None, JobState::Ready, NOW),
        (None, Some(at(60)), JobState::Waiting, at(60)),
        (None, Some(at(-60)), JobState::Ready, NOW),
        (hold.clone(), None, JobState::Holding, NOW),
        (hold, Some(at(60)), JobState::Holding, at(60)),
    ] {
        let job = Submission { run_at, hold, ..submission(1) }.into_job(&settings(), &mut HashMap::new(), NOW);
        assert_eq!((job.state, job.run_at, job.attempt, job.max_attempts), (state, due, 0, 3));
    }
    let most = |max_attempts| {
        Submission { max_attempts, ..submission(1) }.into_job(&settings(), &mut HashMap::new(), NOW).max_attempts
    };
    assert_eq!([Some(1), Some(9), Some(0)].map(most), [1, 3, 1]);
    let runner = |kind: &str| Runner::of(&JobKind::new(kind).unwrap());
    assert_eq!(
        ["billing.x", "system.x", "billing", "mail"].map(runner),
        [Runner::Server, Runner::System, Runner::Worker, Runner::Worker]
    );
}

#[test]
fn what_is_sent_again_is_answered_by_the_first_job() {
    let queues = BTreeMap::from([(QueueName::new("default").unwrap(), settings())]);
    let unique = |number| {
        let unique_key = Some(UniqueKey::new("video-17").unwrap());
        Submission { unique_key, ..submission(number) }
    };
    let stored = unique(1).into_job(&settings(), &mut HashMap::new(), NOW);
    let over = Job { state: JobState::Completed, ..submission(2).into_job(&settings(), &mut HashMap::new(), NOW) };
    let found = FoundJobs {
        jobs: vec![stored.clone()],
        finished: vec![FinishedJob { job: over.clone(), finished_at: NOW, keep_until: NOW, captured: None }],
        ..FoundJobs::default()
    };
    let other_workspace = Submission { workspace_id: Some(WorkspaceId(Uuid::from_u128(2))), ..unique(6) };
    let sent = vec![
        unique(1),
        submission(2),
        Submission { fingerprint: [8; 32], ..submission(2) },
        unique(3),
        submission(4),
        submission(4),
        Submission { queue: QueueName::new("other").unwrap(), ..submission(5) },
        other_workspace,
    ];
    let (changes, answers) = JobChanges::submit(sent, &found, &queues, at(1));
    let new = &changes.inserted;
    assert_eq!(new.iter().map(|job| job.job_id.0.as_u128()).collect::<Vec<_>>(), [4, 6]);
    assert_eq!(
        answers,
        [
            Submitted::Existing(stored.clone()),
            Submitted::Existing(over),
            Submitted::KeyReused,
            Submitted::Existing(stored),
            Submitted::New(new[0].clone()),
            Submitted::Existing(new[0].clone()),
            Submitted::NoQueue,
            Submitted::New(new[1].clone()),
        ]
    );
}

#[test]
fn jobs_of_a_workspace_rank_behind_each_other_and_a_priority_is_a_head_start() {
    let queues = BTreeMap::from([(QueueName::new("default").unwrap(), settings())]);
    let sent = |number, priority| Submission { priority, ..submission(number) };
    let last =
        HashMap::from([(submission(0).into_job(&settings(), &mut HashMap::new(), NOW).line().unwrap(), at(-301))]);
    let found = FoundJobs { last_ranks: last, ..FoundJobs::default() };
    let many = vec![sent(1, 5), sent(2, 5), sent(3, 5), sent(4, 9), sent(5, 0)];
    let (changes, _) = JobChanges::submit(many, &found, &queues, NOW);
    let ranks: Vec<_> = changes.inserted.iter().map(|job| (job.rank.micros() - NOW.micros()) / 1000).collect();
    assert_eq!(ranks, [-300_000, -299_900, -299_800, -540_000, 0]);

    // Promoted together, they rank behind each other too. A job that has run before keeps its place.
    let waiting =
        |number| Job { state: JobState::Waiting, ..sent(number, 5).into_job(&settings(), &mut HashMap::new(), NOW) };
    let again = Job { attempt: 1, rank: at(-1000), ..waiting(8) };
    let early = Job { run_at: at(60), ..waiting(9) };
    let mut last = HashMap::new();
    let promoted = JobChanges::promote(vec![waiting(6), waiting(7), again, early], &mut last, at(1));
    let ranks: Vec<_> = promoted.updated.iter().map(|job| (job.state, job.rank)).collect();
    let behind = at(-300).plus(TimeDelta::milliseconds(100));
    assert_eq!(ranks[..3], [(JobState::Ready, at(-300)), (JobState::Ready, behind), (JobState::Ready, at(-1000)),]);
    assert_eq!(ranks[3].0, JobState::Waiting);
}

fn seats(count: u128) -> Vec<Seat> {
    let seat = |n| Seat { worker_id: WorkerId(Uuid::from_u128(1)), lease_id: LeaseId(Uuid::from_u128(n)) };
    (0..count).map(seat).collect()
}

#[test]
fn a_claim_fills_the_seats_and_sets_aside_what_is_over_a_cap() {
    let ready = |number, workspace| Job {
        workspace_id: Some(WorkspaceId(Uuid::from_u128(workspace))),
        ..submission(number).into_job(&settings(), &mut HashMap::new(), NOW)
    };
    let jobs = || vec![ready(1, 1), ready(2, 1), ready(3, 1), ready(4, 2), ready(5, 2)];
    let runs = |count| Running { by_workspace: [(Some(WorkspaceId(Uuid::from_u128(1))), count)].into() };
    let (any, none) = (settings(), Running::default());
    let capped = |all, each| QueueSettings { max_running: all, max_running_per_workspace: each, ..settings() };
    for (settings, running, count, expected) in [
        (any.clone(), none.clone(), 2, "RR"),
        (any.clone(), none.clone(), 9, "RRRRR"),
        (any.clone(), none.clone(), 0, ""),
        (QueueSettings { is_paused: true, ..any }, none.clone(), 9, ""),
        (capped(Some(3), None), runs(1), 9, "RR"),
        (capped(Some(3), None), runs(4), 9, ""),
        (capped(None, Some(2)), none.clone(), 9, "RRCRR"),
        (capped(None, Some(2)), runs(2), 9, "CCCRR"),
        (capped(None, Some(2)), runs(2), 1, "CCCR"),
        (capped(Some(4), Some(1)), runs(1), 9, "CCCRC"),
    ] {
        let changes = JobChanges::claim(jobs(), &seats(count), &settings, running, NOW);
        let states: String =
            changes.updated.iter().map(|job| if job.state == JobState::Running { 'R' } else { 'C' }).collect();
        assert_eq!(states, expected, "{settings:?}");
        let running: Vec<_> = changes.updated.iter().filter(|job| job.state == JobState::Running).collect();
        assert!(running.iter().all(|job| job.attempt == 1));
        let leases: Vec<_> = changes.leases.iter().map(|lease| (lease.job_id, lease.lease_id.0.as_u128())).collect();
        let expected: Vec<_> = running.iter().zip(0..).map(|(job, n)| (job.job_id, n)).collect();
        assert_eq!(leases, expected);
    }
    let short = QueueSettings { lease_s: 30, timeout_s: 20, ..settings() };
    let lease = JobChanges::claim(jobs(), &seats(1), &short, none, NOW).leases.remove(0);
    assert_eq!((lease.leased_until, lease.deadline), (at(20), at(20)), "no lease lasts beyond its deadline");
}

#[test]
fn what_was_set_aside_is_ready_as_soon_as_its_workspace_may_run_more() {
    let settings = QueueSettings { max_running_per_workspace: Some(2), ..settings() };
    let job = plain(JobState::Running);
    let lease = lease_of(&job);
    let queue = Queue { queue: job.queue.clone(), settings: settings.clone(), changed_by: None, changed_at: NOW };
    let capped = |number| Job { job_id: JobId(Uuid::from_u128(number)), ..plain(JobState::Capped) };
    for (running, ready) in [(3, 0), (2, 1), (1, 2)] {
        let found = FoundJobs {
            jobs: vec![job.clone()],
            leases: [(job.job_id, lease.clone())].into(),
            queues: [(queue.queue.clone(), queue.clone())].into(),
            running: [(queue.queue.clone(), Running { by_workspace: [(job.workspace_id, running)].into() })].into(),
            capped: vec![capped(11), capped(12), capped(13)],
            ..FoundJobs::default()
        };
        let mut changes = JobChanges::default();
        changes.complete(job.clone(), &lease, Completion::default(), &settings, NOW);
        changes.fill_up(&found, NOW);
        let filled: Vec<_> = changes.updated.iter().map(|job| (job.job_id.0.as_u128(), job.state)).collect();
        let expected: Vec<_> = (11..14).take(ready).map(|number| (number, JobState::Ready)).collect();
        assert_eq!(filled, expected, "{running} run");
    }
}

/// What a test does to a running job.
type End = fn(&mut JobChanges, Job, &JobLease);

const COMPLETE: End = |changes, job, lease| {
    changes.complete(job, lease, Completion { result: Some("{}".into()), actual: None }, &settings(), at(5));
};
const FAIL: End = |changes, job, lease| changes.fail(job, lease, failure(true, None), &settings(), 1.0, at(5));
const FAIL_FINALLY: End = |changes, job, lease| changes.fail(job, lease, failure(false, None), &settings(), 1.0, at(5));
const LOSE: End = |changes, job, lease| changes.lose(job, lease, &settings(), 1.0, at(40));
const RELEASE: End = |changes, job, _| changes.release(job, &settings(), at(5));

#[test]
fn every_end_of_an_attempt_leads_to_one_state() {
    let canceled = |job: Job| Job { cancel_requested_at: Some(at(1)), ..job };
    let last = |job: Job| Job { attempt: 3, ..job };
    let [plain, metered] = [plain(JobState::Running), metered(JobState::Running)];
    for (name, job, end, state, outcome, attempts) in [
        ("complete", plain.clone(), COMPLETE, JobState::Completed, Some(JobOutcome::Completed), 1),
        ("complete", metered.clone(), COMPLETE, JobState::Settling, Some(JobOutcome::Completed), 1),
        ("complete", canceled(plain.clone()), COMPLETE, JobState::Completed, Some(JobOutcome::Completed), 1),
        ("fail", plain.clone(), FAIL, JobState::Waiting, None, 1),
        ("fail", metered.clone(), FAIL, JobState::Waiting, None, 1),
        ("fail last", last(plain.clone()), FAIL, JobState::Failed, Some(JobOutcome::Failed), 1),
        ("fail last", last(metered.clone()), FAIL, JobState::Settling, Some(JobOutcome::Failed), 1),
        ("fail canceled", canceled(plain.clone()), FAIL, JobState::Canceled, Some(JobOutcome::Canceled), 1),
        ("fail canceled", canceled(metered.clone()), FAIL, JobState::Settling, Some(JobOutcome::Canceled), 1),
        ("fail finally", plain.clone(), FAIL_FINALLY, JobState::Failed, Some(JobOutcome::Failed), 1),
        ("lose", plain.clone(), LOSE, JobState::Waiting, None, 1),
        ("lose last", last(plain.clone()), LOSE, JobState::Failed, Some(JobOutcome::Failed), 1),
        ("lose last", last(metered.clone()), LOSE, JobState::Settling, Some(JobOutcome::Failed), 1),
        ("lose canceled", canceled(metered.clone()), LOSE, JobState::Settling, Some(JobOutcome::Canceled), 1),
        ("release", plain.clone(), RELEASE, JobState::Ready, None, 0),
        ("release canceled", canceled(plain), RELEASE, JobState::Canceled, Some(JobOutcome::Canceled), 0),
        ("release canceled", canceled(metered.clone()), RELEASE, JobState::Settling, Some(JobOutcome::Canceled), 0),
    ] {
        let lease = lease_of(&job);
        let changes = changed(|changes| end(changes, job.clone(), &lease));
        let after = only(&changes);
        assert_eq!((after.state, after.outcome), (state, outcome), "{name}");
        assert_eq!(
            (changes.ended_leases.as_slice(), changes.attempts.len()),
            ([job.job_id].as_slice(), attempts),
            "{name}"
        );
        let has_failed = outcome == Some(JobOutcome::Failed);
        assert_eq!(changes.letters.len(), usize::from(has_failed), "{name}");
        assert!(
            changes
                .letters
                .iter()
                .all(|letter| letter.state == LetterState::Open && letter.error == after.error.as_ref().unwrap().text)
        );
        let is_told = name.starts_with("complete") || name.starts_with("fail");
        assert_eq!(after.ended_by.is_some(), is_told, "{name}: a worker that sends it again gets the same answer");
        for attempt in &changes.attempts {
            let expected = match name.split(' ').next().unwrap() {
                "complete" => AttemptOutcome::Completed,
                "lose" => AttemptOutcome::Lost,
                _ => AttemptOutcome::Failed,
            };
            assert_eq!((attempt.outcome, attempt.attempt), (expected, job.attempt), "{name}");
        }
    }
    let released = changed(|changes| RELEASE(changes, metered.clone(), &lease_of(&metered)));
    assert_eq!(
        (only(&released).attempt, only(&released).rank),
        (0, metered.rank),
        "it did not count, and kept its place"
    );
}

#[test]
fn a_retry_waits_as_long_as_the_queue_or_the_worker_says() {
    for (attempt, wanted, delay) in
        [(1, None, 10), (2, None, 100), (1, Some(7), 7), (1, Some(90_000), 86_400), (1, Some(-1), 0), (1, Some(0), 0)]
    {
        let job = Job { attempt, ..plain(JobState::Running) };
        let lease = lease_of(&job);
        let changes = changed(|changes| changes.fail(job, &lease, failure(true, wanted), &settings(), 1.0, NOW));
        let state = if delay == 0 { JobState::Ready } else { JobState::Waiting };
        assert_eq!((only(&changes).run_at, only(&changes).state), (at(delay), state), "{attempt} {wanted:?}");
    }
}

#[test]
fn a_cancelation_ends_what_waits_and_asks_the_worker_of_what_runs() {
    use JobState::{Canceled, Capped, Holding, Ready, Running, Settling, Waiting};
    for (job, state, is_asked) in [
        (plain(Waiting), Some(Canceled), false),
        (plain(Ready), Some(Canceled), false),
        (plain(Capped), Some(Canceled), false),
        (metered(Waiting), Some(Settling), false),
        (metered(Ready), Some(Settling), false),
        (plain(Running), Some(Running), true),
        (metered(Holding), Some(Holding), true),
        (metered(Settling), None, false),
        (Job { cancel_requested_at: Some(NOW), ..plain(Running) }, None, false),
    ] {
        let (mut changes, before) = (JobChanges::default(), job.state);
        assert_eq!(changes.cancel(job, false, &settings(), at(5)), state.is_some(), "{before:?}");
        if let Some(state) = state {
            assert_eq!(
                (only(&changes).state, only(&changes).cancel_requested_at.is_some()),
                (state, is_asked),
                "{before:?}"
            );
        } else {
            assert!(changes.is_empty());
        }
        assert_eq!(changes.letters, []);
    }
}

#[test]
fn a_job_fails_that_no_worker_has_taken_for_a_week() {
    let week = TimeDelta::days(7);
    for (state, waited, is_over) in [
        (JobState::Ready, week, true),
        (JobState::Ready, week - TimeDelta::microseconds(1), false),
        (JobState::Capped, week, true),
        (JobState::Running, week, false),
        (JobState::Settling, week, false),
    ] {
        let mut changes = JobChanges::default();
        assert_eq!(changes.expire(metered(state), &settings(), NOW.plus(waited)), is_over, "{state:?} {waited}");
        if is_over {
            let job = only(&changes);
            assert_eq!((job.state, job.outcome), (JobState::Settling, Some(JobOutcome::Failed)));
            assert_eq!(changes.letters[0].error_class, "expired");
        }
    }
}

#[test]
fn a_metered_job_runs_when_it_is_held_and_is_over_when_that_is_settled() {
    let held = |expires_s| Held {
        hold_id: HoldId(Uuid::from_u128(5)),
        credits: credits(10),
        unit_price: Some(credits(2)),
        expires_at: at(expires_s),
    };
    let (holding, later) = (metered(JobState::Holding), Job { run_at: at(60), ..metered(JobState::Holding) });
    let canceled = Job { cancel_requested_at: Some(NOW), ..holding.clone() };
    for (job, state) in [(holding.clone(), JobState::Ready), (later, JobState::Waiting), (canceled, JobState::Settling)]
    {
        let changes = changed(|changes| changes.held(job, held(90), &mut HashMap::new(), &settings(), NOW));
        let job = only(&changes);
        assert_eq!((job.state, job.held_credits, job.hold_expires_at), (state, Some(credits(10)), Some(at(90))));
    }
    let error = JobError::new("insufficient-credits", "too few");
    let rejected = changed(|changes| changes.reject(holding, error.clone(), &settings(), NOW));
    assert_eq!((only(&rejected).state, only(&rejected).error.as_ref()), (JobState::Rejected, Some(&error)));
    assert_eq!(rejected.letters, [], "its sender was told");

    let settling = |outcome| Job { outcome: Some(outcome), ..metered(JobState::Settling) };
    let keep_done = at(7 * 86_400);
    for (outcome, settlement, state, captured, keep_until) in [
        (JobOutcome::Completed, Settlement::Captured(credits(3)), JobState::Completed, Some(credits(3)), keep_done),
        (JobOutcome::Completed, Settlement::Released, JobState::Completed, None, keep_done),
        (JobOutcome::Canceled, Settlement::Released, JobState::Canceled, None, keep_done),
        (JobOutcome::Failed, Settlement::Released, JobState::Failed, None, at(30 * 86_400)),
    ] {
        let changes = changed(|changes| changes.settle(settling(outcome), settlement, &settings(), NOW));
        let FinishedJob { job, captured: found, keep_until: kept, .. } = &changes.finished[0];
        assert_eq!((job.state, *found, *kept), (state, captured, keep_until));
    }
    let refused = Settlement::CaptureRefused("insufficient-credits".into());
    let refused = changed(|changes| changes.settle(settling(JobOutcome::Completed), refused, &settings(), NOW));
    let job = only(&refused);
    assert_eq!((job.state, job.outcome), (JobState::Settling, Some(JobOutcome::Failed)), "its hold is released next");
    assert_eq!(refused.letters[0].error_class, "capture_refused");
}

#[test]
fn a_completion_is_refused_that_the_hold_does_not_cover_or_that_has_none() {
    let actual = |credits: Option<i64>, quantity: Option<i64>| Completion {
        result: None,
        actual: Some(ActualUse {
            credits: credits.map(self::credits),
            quantity: quantity.map(|quantity| Quantity::from_micro(quantity * 1_000_000).unwrap()),
            metadata: None,
        }),
    };
    let exceeds = |requested| Err(CompletionRefused::ExceedsHold { requested: credits(requested), held: credits(10) });
    let job = metered(JobState::Running);
    let with = |overrun| Job { hold: job.hold.clone().map(|hold| JobHold { overrun, ..hold }), ..job.clone() };
    let unpriced = Job { unit_price: None, ..job.clone() };
    for (job, completion, expected) in [
        (job.clone(), actual(Some(10), None), Ok(())),
        (job.clone(), actual(Some(0), None), Ok(())),
        (job.clone(), actual(None, None), Ok(())),
        (job.clone(), actual(Some(11), None), exceeds(11)),
        (job.clone(), actual(None, Some(5)), Ok(())),
        (job.clone(), actual(None, Some(6)), exceeds(12)),
        (with(Overrun::ChargeAvailable), actual(Some(11), None), Ok(())),
        (with(Overrun::Overdraft), actual(None, Some(6)), Ok(())),
        (unpriced, actual(None, Some(1)), Err(CompletionRefused::NotPriced)),
        (plain(JobState::Running), actual(Some(1), None), Err(CompletionRefused::NotMetered)),
        (plain(JobState::Running), Completion::default(), Ok(())),
    ] {
        assert_eq!(completion.check(&job), expected, "{completion:?}");
    }
}

#[test]
fn a_letter_that_is_tried_again_is_resolved_or_open_again() {
    let replays = ReplayedLetter { dead_letter_id: Uuid::from_u128(70), replay_id: Uuid::from_u128(71) };
    let job = Job { replays: Some(replays), attempt: 3, ..plain(JobState::Running) };
    let lease = lease_of(&job);
    let done = changed(|changes| COMPLETE(changes, job.clone(), &lease));
    assert_eq!(
        (done.resolved_letters.as_slice(), done.letters.as_slice()),
        ([(Uuid::from_u128(70), at(5))].as_slice(), [].as_slice())
    );
    let canceled = Job { cancel_requested_at: Some(NOW), ..job.clone() };
    for job in [job, canceled] {
        let failed = changed(|changes| FAIL(changes, job, &lease));
        let letter = &failed.letters[0];
        assert_eq!((letter.dead_letter_id, letter.replay_id), (Uuid::from_u128(70), Some(Uuid::from_u128(71))));
        assert_eq!((letter.state, letter.attempts), (LetterState::Open, 3));
    }
    // Its hold is refused, for good or for now: nobody else would open the letter again.
    let error = || JobError::new("insufficient-credits", "too few");
    let holding = Job { replays: Some(replays), ..metered(JobState::Holding) };
    let rejected = changed(|changes| changes.reject(holding.clone(), error(), &settings(), NOW));
    let forgotten = changed(|changes| changes.forget(holding.clone(), error(), &settings(), NOW));
    for changes in [rejected, forgotten] {
        // The letter is about a job that is kept, so it can be tried again.
        assert_eq!(changes.letters[0].job().map(|job| job.job_id), Some(changes.finished[0].job.job_id));
        assert_eq!(changes.forgotten, []);
        assert_eq!(
            (changes.letters[0].dead_letter_id, changes.letters[0].state),
            (Uuid::from_u128(70), LetterState::Open)
        );
    }
}

#[test]
fn an_error_is_cut_and_has_no_control_characters() {
    let error = JobError::new(&"c".repeat(100), &format!("a\u{0}b\nc{}", "é".repeat(2000)));
    assert_eq!((error.class.len(), &error.text[..5]), (64, "a b\nc"));
    assert!(error.text.len() <= 2048 && error.text.len() > 2044);
}

#[test]
fn a_command_that_is_in_doubt_ends_only_with_an_answer() {
    let kind = |kind: &str| Submission { kind: JobKind::new(kind).unwrap(), ..submission(1) };
    let [command, work] =
        ["billing.deduct_credits", "video"].map(|name| kind(name).into_job(&settings(), &mut HashMap::new(), NOW));
    let last = |job: Job| Job { state: JobState::Running, attempt: 3, cancel_requested_at: Some(at(1)), ..job };
    let unavailable = || {
        let error = JobError::new(JobError::UNAVAILABLE, "the database is unavailable");
        Failure { error, is_retryable: true, retry_after: None }
    };
    let (command, lease) = (last(command), lease_of(&work));
    for doubted in [
        changed(|changes| changes.lose(command.clone(), &lease, &settings(), 1.0, at(40))),
        changed(|changes| changes.fail(command.clone(), &lease, unavailable(), &settings(), 1.0, at(5))),
    ] {
        let job = only(&doubted).clone();
        assert_eq!((job.state, job.attempt, doubted.letters.len()), (JobState::Waiting, 3, 0));
        assert!(job.run_at >= at(3600), "it does not take server after server down");
        // Neither a cancelation nor time ends it, nor that it is given back.
        let uncanceled = Job { cancel_requested_at: None, ..job.clone() };
        let canceled = changed(|changes| assert!(changes.cancel(uncanceled.clone(), false, &settings(), at(50))));
        assert_eq!((only(&canceled).state, only(&canceled).cancel_requested_at), (JobState::Waiting, Some(at(50))));
        let given_up = changed(|changes| assert!(changes.cancel(uncanceled.clone(), true, &settings(), at(50))));
        assert_eq!((only(&given_up).state, given_up.letters.len()), (JobState::Canceled, 0));
        let later = at(30 * 86_400);
        assert!(!JobChanges::default().expire(job.clone(), &settings(), later));
        let again = Job { state: JobState::Running, attempt: 4, ..job };
        let released = changed(|changes| changes.release(again.clone(), &settings(), at(60)));
        assert_eq!(only(&released).state, JobState::Ready);
        // An answer does.
        let failed = changed(|changes| FAIL(changes, again.clone(), &lease));
        assert_eq!(only(&failed).state, JobState::Canceled);
        let completed = changed(|changes| COMPLETE(changes, again, &lease));
        assert_eq!(only(&completed).state, JobState::Completed);
    }
    // A worker's job is over, whatever its worker calls the error.
    let work = Job { cancel_requested_at: None, ..last(work) };
    let failed = changed(|changes| changes.fail(work, &lease, unavailable(), &settings(), 1.0, at(5)));
    assert_eq!((only(&failed).state, failed.letters.len()), (JobState::Failed, 1));
}

#[test]
fn neither_a_pause_nor_a_cap_holds_up_what_a_schedule_is_for_and_it_leaves_no_letter() {
    let system = Submission { kind: JobKind::new("system.periods").unwrap(), workspace_id: None, ..submission(1) };
    let job = system.into_job(&settings(), &mut HashMap::new(), NOW);
    let settings =
        QueueSettings { is_paused: true, max_running: Some(1), max_running_per_workspace: Some(1), ..settings() };
    let running = Running { by_workspace: [(None, 5), (Some(WorkspaceId(Uuid::from_u128(1))), 1)].into() };
    let claimed = JobChanges::claim(vec![job], &seats(1), &settings.for_runner(Runner::System), running, NOW);
    let job = only(&claimed).clone();
    assert_eq!(job.state, JobState::Running);
    let last = Job { attempt: job.max_attempts, ..job };
    let failed = changed(|changes| LOSE(changes, last, &claimed.leases[0]));
    assert_eq!((only(&failed).state, failed.letters.len()), (JobState::Failed, 0));
    // Nor does it count where a cap counts.
    let own = Running { by_workspace: [(None, 5)].into() };
    assert_eq!(own.room(&settings), 1);
}
