//! Queues and jobs: what is found is locked, and what becomes of it is written together.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::TimeDelta;
use uuid::Uuid;
use visionscope_billing::domain::credits::{Credits, PositiveCredits, Quantity};
use visionscope_billing::domain::dead_letter::LetterState;
use visionscope_billing::domain::hold::Overrun;
use visionscope_billing::domain::ids::{HoldId, JobId, LeaseId, WorkerId, WorkspaceId};
use visionscope_billing::domain::jobs::{
    ActualUse, Completion, Failure, FoundJobs, FoundLeases, Held, Job, JobChanges, JobError, JobHold, JobLease,
    JobOutcome, JobState, LeaseChanges, Queue, QueueNames, QueueSettings, ReplayedLetter, Runner, Schedule, Seat,
    Settlement, Submission, SystemSchedule, Worker, WorkerState, default_queues,
};
use visionscope_billing::domain::metadata::Metadata;
use visionscope_billing::domain::operator_act::OperatorAct;
use visionscope_billing::domain::text::{JobKind, Label, QueueName, UniqueKey};
use visionscope_billing::store::StoreError;
use visionscope_billing::store::cleaning::Leftover;
use visionscope_billing::store::jobs::{JobSelection, ListedJob, SentJobs};

use crate::database::TestDatabase;
use crate::fixtures::{at, feature, workspace};

fn queue() -> QueueName {
    QueueName::new("default").unwrap()
}

fn settings() -> QueueSettings {
    default_queues().into_iter().find(|(name, _)| *name == queue()).unwrap().1
}

fn job_id(number: u128) -> JobId {
    JobId(Uuid::from_u128(number))
}

fn submission(number: u128) -> Submission {
    Submission {
        job_id: job_id(number),
        queue: queue(),
        kind: JobKind::new("mail.send").unwrap(),
        workspace_id: Some(workspace(0)),
        args: "{\"to\":\"é\"}".into(),
        priority: 5,
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

fn with_hold(number: u128) -> Submission {
    let hold = JobHold {
        feature_code: feature("video.render"),
        credits: PositiveCredits::new(Credits::whole(10)),
        quantity: None,
        overrun: Overrun::Overdraft,
        user_id: None,
        metadata: None,
    };
    Submission { hold: Some(hold), ..submission(number) }
}

async fn with_queues(db: &impl TestDatabase, settings: QueueSettings) {
    let queue = Queue { queue: queue(), settings, changed_by: None, changed_at: at(0) };
    db.jobs().create_queues(&[queue]).await.unwrap();
}

/// Finds jobs, and writes what the function makes of them.
async fn change(
    db: &impl TestDatabase,
    which: &JobSelection,
    mut decide: impl FnMut(FoundJobs) -> JobChanges + Send,
) -> Result<(), StoreError> {
    db.jobs().change_jobs(which, &mut decide).await
}

/// What is found. Nothing is changed.
async fn find(db: &impl TestDatabase, which: &JobSelection) -> FoundJobs {
    let mut seen = FoundJobs::default();
    change(db, which, |found| {
        seen = found;
        JobChanges::default()
    })
    .await
    .unwrap();
    seen
}

async fn store(db: &impl TestDatabase, jobs: Vec<Job>) {
    let none = JobSelection::ById(Vec::new());
    change(db, &none, |_| JobChanges { inserted: jobs.clone(), ..JobChanges::default() }).await.unwrap();
}

async fn send(db: &impl TestDatabase, submissions: impl IntoIterator<Item = Submission>) {
    store(db, submissions.into_iter().map(|sent| sent.into_job(&settings(), &mut HashMap::new(), at(0))).collect())
        .await;
}

fn seats(worker: u128, count: u128) -> Vec<Seat> {
    let seat = |n| Seat { worker_id: WorkerId(Uuid::from_u128(worker)), lease_id: lease_id(worker * 1000 + n) };
    (0..count).map(seat).collect()
}

fn lease_id(number: u128) -> LeaseId {
    LeaseId(Uuid::from_u128(number))
}

fn ready(limit: u32) -> JobSelection {
    JobSelection::Ready { queue: queue(), runner: Runner::Worker, limit }
}

/// A worker takes up to so many jobs. Returns them in the order in which it got them.
async fn claim(db: &impl TestDatabase, worker: u128, count: u32) -> Vec<JobId> {
    let mut claimed = Vec::new();
    change(db, &ready(count), |found| {
        let running = found.running.get(&queue()).cloned().unwrap_or_default();
        let settings = found.settings(&queue()).unwrap().clone();
        let changes = JobChanges::claim(found.jobs, &seats(worker, count.into()), &settings, running, at(1));
        claimed = changes.leases.iter().map(|lease| lease.job_id).collect();
        changes
    })
    .await
    .unwrap();
    claimed
}

/// Does something to each of these jobs.
async fn each(
    db: &impl TestDatabase,
    numbers: impl IntoIterator<Item = u128>,
    mut what: impl FnMut(&mut JobChanges, &FoundJobs, Job) + Send,
) {
    let ids = JobSelection::ById(numbers.into_iter().map(job_id).collect());
    change(db, &ids, |found| {
        let mut changes = JobChanges::default();
        for job in found.jobs.clone() {
            what(&mut changes, &found, job);
        }
        changes
    })
    .await
    .unwrap();
}

fn complete(changes: &mut JobChanges, found: &FoundJobs, job: Job) {
    let lease = &found.leases[&job.job_id];
    let completion = Completion { result: Some("{\"n\":1}".into()), actual: None };
    changes.complete(job, lease, completion, found.settings(&queue()).unwrap(), at(5));
}

async fn stored(db: &impl TestDatabase, number: u128) -> ListedJob {
    db.jobs().job(job_id(number), Some(workspace(0))).await.unwrap().unwrap().listed
}

pub async fn a_job_is_read_as_it_was_written_in_every_table(db: &impl TestDatabase) {
    let empty = submission(1).into_job(&settings(), &mut HashMap::new(), at(0));
    let full = Job {
        state: JobState::Settling,
        runner: Runner::Server,
        attempt: 2,
        unique_key: Some(UniqueKey::new("video-17").unwrap()),
        hold_id: Some(HoldId(Uuid::from_u128(5))),
        held_credits: Some(Credits::whole(10)),
        unit_price: Some(Credits::whole(2)),
        hold_expires_at: Some(at(60)),
        outcome: Some(JobOutcome::Completed),
        result: Some("{\"ok\":true}".into()),
        actual: Some(ActualUse { quantity: Quantity::from_micro(1_500_000).ok(), ..ActualUse::default() }),
        ended_by: Some(lease_id(8)),
        cancel_requested_at: Some(at(3)),
        error: Some(JobError::new("timeout", "too slow")),
        replays: Some(ReplayedLetter { dead_letter_id: Uuid::from_u128(70), replay_id: Uuid::from_u128(71) }),
        causation_id: Some(Uuid::from_u128(72)),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        ..with_hold(2).into_job(&settings(), &mut HashMap::new(), at(0))
    };
    let of_server =
        Submission { workspace_id: None, ..submission(3) }.into_job(&settings(), &mut HashMap::new(), at(0));
    store(db, vec![empty.clone(), full.clone(), of_server.clone()]).await;
    assert_eq!(stored(db, 1).await, ListedJob { job: empty, finished: None });
    assert_eq!(stored(db, 2).await, ListedJob { job: full.clone(), finished: None });
    assert_eq!(db.jobs().job(job_id(3), None).await.unwrap().unwrap().listed.job, of_server);
    for (number, workspace_id) in [(1, Some(workspace(1))), (3, Some(workspace(0))), (9, None)] {
        assert_eq!(db.jobs().job(job_id(number), workspace_id).await.unwrap(), None, "{number}");
    }
    with_queues(db, settings()).await;
    each(db, [2], |changes, found, job| {
        let settled = Settlement::Captured(Credits::whole(3));
        changes.settle(job, settled, found.settings(&queue()).unwrap(), at(9));
    })
    .await;
    let over = stored(db, 2).await;
    let finished = over.finished.unwrap();
    assert_eq!((finished.at, finished.captured), (at(9), Some(Credits::whole(3))));
    let expected = Job { state: JobState::Completed, hold_expires_at: None, changed_at: at(9), ..full };
    assert_eq!(over.job, expected);
}

pub async fn what_is_known_of_sent_jobs_is_found_by_their_ids_keys_and_lines(db: &impl TestDatabase) {
    with_queues(db, settings()).await;
    let unique = |number, workspace_id| {
        let unique_key = Some(UniqueKey::new("video-17").unwrap());
        Submission { workspace_id, unique_key, ..submission(number) }
    };
    send(db, [submission(1), unique(2, Some(workspace(0))), unique(3, Some(workspace(1))), unique(4, None)]).await;
    let key = |workspace_id| (workspace_id, JobKind::new("mail.send").unwrap(), UniqueKey::new("video-17").unwrap());
    for (sent, expected) in [
        (SentJobs { ids: vec![job_id(1), job_id(9)], ..SentJobs::default() }, vec![1]),
        (SentJobs { unique_keys: vec![key(Some(workspace(0)))], ..SentJobs::default() }, vec![2]),
        (SentJobs { unique_keys: vec![key(None), key(Some(workspace(1)))], ..SentJobs::default() }, vec![3, 4]),
        (SentJobs { unique_keys: vec![key(Some(workspace(2)))], ..SentJobs::default() }, vec![]),
        (SentJobs::default(), vec![]),
    ] {
        let mut found: Vec<_> =
            find(db, &JobSelection::Sent(sent)).await.jobs.iter().map(|job| job.job_id.0.as_u128()).collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }
    let line = |workspace_id, priority| (queue(), workspace_id, priority);
    let lines = vec![line(workspace(0), 5), line(workspace(0), 6), line(workspace(7), 5)];
    let found = find(db, &JobSelection::Sent(SentJobs { lines, ..SentJobs::default() })).await;
    assert_eq!(found.last_ranks, [(line(workspace(0), 5), at(-300))].into());

    // The same key cannot be stored twice, and in another workspace it is another one.
    let again = unique(8, Some(workspace(0))).into_job(&settings(), &mut HashMap::new(), at(0));
    let none = JobSelection::ById(Vec::new());
    let twice = change(db, &none, |_| JobChanges { inserted: vec![again.clone()], ..JobChanges::default() }).await;
    assert!(matches!(twice, Err(StoreError::Conflict(_))), "{twice:?}");
}

pub async fn ready_jobs_are_claimed_once_and_the_lowest_rank_first(db: &impl TestDatabase) {
    with_queues(db, settings()).await;
    let ranked = |number: u128, priority| Submission { priority, ..submission(number) };
    let of_server = Submission { kind: JobKind::new("system.periods").unwrap(), ..submission(99) };
    let later = Submission { run_at: Some(at(60)), ..submission(98) };
    send(db, [ranked(1, 5), ranked(2, 9), ranked(3, 0), ranked(4, 5), of_server, later]).await;
    assert_eq!(claim(db, 1, 2).await, [job_id(2), job_id(1)]);
    let lease = db.jobs().job(job_id(2), None).await.unwrap().unwrap().lease.unwrap();
    assert_eq!((lease.worker_id.0.as_u128(), lease.leased_until, lease.deadline), (1, at(31), at(301)));
    assert_eq!(claim(db, 2, 9).await, [job_id(4), job_id(3)]);
    assert_eq!(claim(db, 3, 9).await, []);

    send(db, (100..140).map(submission)).await;
    let claims = futures::future::join_all((10..20).map(|worker| claim(db, worker, 5))).await;
    let claimed: Vec<_> = claims.into_iter().flatten().collect();
    assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), claimed.len(), "no job has two workers");
    let rest = claim(db, 30, 40).await;
    assert_eq!(claimed.len() + rest.len(), 40, "none is lost");
}

pub async fn a_claim_knows_the_queue_and_what_runs_in_it(db: &impl TestDatabase) {
    let capped = QueueSettings { max_running: Some(3), ..settings() };
    with_queues(db, capped.clone()).await;
    send(db, (1..4).map(submission)).await;
    send(db, [Submission { workspace_id: Some(workspace(1)), ..submission(4) }, submission(5)]).await;
    assert_eq!(claim(db, 1, 1).await, [job_id(1)]);
    let found = find(db, &ready(10)).await;
    assert_eq!(found.running[&queue()].by_workspace, [(Some(workspace(0)), 1)].into());
    assert_eq!(found.jobs.len(), 2, "as many as may run");
    assert_eq!(found.queues[&queue()].settings, capped);

    let before = found.queues[&queue()].clone();
    let paused = Queue { settings: QueueSettings { is_paused: true, ..capped }, changed_at: at(9), ..before.clone() };
    db.jobs().change_queue(&before, &paused, &act(1)).await.unwrap();
    assert_eq!(find(db, &ready(10)).await.jobs, []);
    let unknown = JobSelection::Ready { queue: QueueName::new("other").unwrap(), runner: Runner::Worker, limit: 1 };
    assert_eq!(find(db, &unknown).await, FoundJobs::default());
}

pub async fn jobs_are_found_when_their_time_has_come_or_their_lease_is_over(db: &impl TestDatabase) {
    with_queues(db, settings()).await;
    let timed = |number, seconds| Submission { run_at: Some(at(seconds)), ..submission(number) };
    send(db, [timed(1, 30), timed(2, 10), timed(3, 20), submission(4)]).await;
    let due = async |seconds, limit| {
        let found = find(db, &JobSelection::Due { now: at(seconds), limit }).await;
        assert_eq!(found.last_ranks.len(), usize::from(!found.jobs.is_empty()), "of the line of the jobs");
        found.jobs.iter().map(|job| job.job_id.0.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(due(9, 10).await, [0; 0]);
    assert_eq!(due(20, 10).await, [2, 3]);
    assert_eq!(due(99, 2).await, [2, 3]);

    assert_eq!(claim(db, 1, 1).await, [job_id(4)]);
    for (seconds, expected) in [(30, vec![]), (31, vec![job_id(4)])] {
        let found = find(db, &JobSelection::Lost { now: at(seconds), limit: 10 }).await;
        assert_eq!(found.jobs.iter().map(|job| job.job_id).collect::<Vec<_>>(), expected);
        assert!(found.jobs.iter().all(|job| found.leases.contains_key(&job.job_id)));
    }
}

pub async fn a_job_that_is_over_leaves_the_others_with_its_attempts_and_its_letter(db: &impl TestDatabase) {
    with_queues(db, QueueSettings { max_attempts: 2, ..settings() }).await;
    let twice = |number| Submission { max_attempts: Some(2), ..submission(number) };
    send(db, [submission(1), twice(2)]).await;
    claim(db, 1, 2).await;
    let failure = || Failure {
        error: JobError::new("timeout", "the model did not answer"),
        is_retryable: true,
        retry_after: Some(TimeDelta::zero()),
    };
    let fail = |changes: &mut JobChanges, found: &FoundJobs, job: Job| {
        let lease = &found.leases[&job.job_id];
        changes.fail(job, lease, failure(), found.settings(&queue()).unwrap(), 0.5, at(6));
    };
    each(db, [1], complete).await;
    each(db, [2], fail).await;
    assert_eq!(stored(db, 2).await.job.state, JobState::Ready);
    claim(db, 2, 1).await;
    each(db, [2], fail).await;
    for (number, state, attempts) in [(1, JobState::Completed, 1), (2, JobState::Failed, 2)] {
        let record = db.jobs().job(job_id(number), None).await.unwrap().unwrap();
        assert_eq!((record.listed.job.state, record.attempts.len(), record.lease), (state, attempts, None));
        assert!(record.listed.finished.is_some());
    }
    let counts = "select cast((select count(*) from jobs) as bigint), cast((select count(*) from jobs_done) as bigint),
        cast((select count(*) from job_leases) as bigint), cast((select count(*) from job_attempts) as bigint)";
    assert_eq!(db.integers(counts).await, [[0, 2, 0, 3]]);
    // Who has ended it gets the same answer again.
    let found = find(db, &JobSelection::ById(vec![job_id(1)])).await;
    assert_eq!(found.ended_by(job_id(1), lease_id(1000)).map(|job| job.state), Some(JobState::Completed));
    assert_eq!(found.ended_by(job_id(1), lease_id(1)), None);

    let letters = db.operations().dead_letters_by_id(&[job_id(2).0]).await.unwrap();
    let letter = &letters[0];
    assert_eq!((letter.work.name(), letter.kind.as_str(), letter.attempts), ("default", "mail.send", 2));
    assert_eq!((letter.work.workspace_id(), letter.state), (Some(workspace(0)), LetterState::Open));

    // A job that tries it again resolves it, if it is being tried.
    let replays = Some(ReplayedLetter { dead_letter_id: letter.dead_letter_id, replay_id: Uuid::from_u128(71) });
    send(db, [Submission { replays, ..submission(3) }]).await;
    db.tamper("update dead_letters set state = 'replaying'").await;
    claim(db, 3, 1).await;
    each(db, [3], complete).await;
    let resolved = db.operations().dead_letters_by_id(&[job_id(2).0]).await.unwrap().remove(0);
    assert_eq!((resolved.state, resolved.resolved_at), (LetterState::Resolved, Some(at(5))));
}

pub async fn jobs_that_were_set_aside_are_found_by_their_workspace(db: &impl TestDatabase) {
    with_queues(db, QueueSettings { max_running_per_workspace: Some(1), ..settings() }).await;
    let of = |number, workspace_id: WorkspaceId| Submission { workspace_id: Some(workspace_id), ..submission(number) };
    send(db, [of(1, workspace(0)), of(2, workspace(0)), of(3, workspace(0)), of(4, workspace(1)), of(5, workspace(1))])
        .await;
    assert_eq!(claim(db, 1, 10).await, [job_id(1), job_id(4)]);
    assert_eq!(claim(db, 2, 10).await, []);
    for (seconds, count) in [(0, 0), (1, 3)] {
        let found = find(db, &JobSelection::SetAside { before: at(seconds), limit: 10 }).await;
        assert_eq!(found.jobs.len(), count);
    }
    let found = find(db, &JobSelection::ById(vec![job_id(1)])).await;
    assert_eq!(found.capped.iter().map(|job| job.job_id.0.as_u128()).collect::<Vec<_>>(), [2, 3]);
    let end = |changes: &mut JobChanges, found: &FoundJobs, job: Job| {
        complete(changes, found, job);
        changes.fill_up(found, at(5));
    };
    each(db, [1], end).await;
    assert_eq!(claim(db, 2, 10).await, [job_id(2)]);
}

fn worker(number: u128) -> Worker {
    Worker {
        worker_id: WorkerId(Uuid::from_u128(number)),
        name: Label::from_stored("gpu-1"),
        subject: "workers".into(),
        runner: Runner::Worker,
        queues: QueueNames(vec![queue()]),
        slots: 4,
        labels: Metadata::from_stored("{\"gpu\":\"a\"}"),
        version: Some(Label::from_stored("1.2")),
        state: WorkerState::Active,
        started_at: at(0),
        seen_at: at(0),
    }
}

pub async fn heartbeats_change_the_leases_and_the_workers_that_are_found(db: &impl TestDatabase) {
    with_queues(db, settings()).await;
    send(db, [submission(1), submission(2)]).await;
    claim(db, 1, 2).await;
    db.jobs().register_worker(&worker(1)).await.unwrap();
    each(db, [2], |changes, _, job| _ = changes.cancel(job, false, &settings(), at(3))).await;
    let mut seen = FoundLeases::default();
    let ids = [job_id(2), job_id(1), job_id(9)];
    let mut decide = |found: FoundLeases| {
        seen = found.clone();
        let extend = |lease: JobLease| JobLease { leased_until: at(90), progress: Some("1".into()), ..lease };
        let leases = found.leases.into_iter().map(extend).collect();
        let workers = found.workers.into_iter().map(|worker| Worker { seen_at: at(9), ..worker }).collect();
        LeaseChanges { leases, workers }
    };
    db.jobs().change_leases(&ids, &[worker(1).worker_id, worker(2).worker_id], &mut decide).await.unwrap();
    let mut found: Vec<_> = seen.leases.iter().map(|lease| lease.job_id.0.as_u128()).collect();
    found.sort_unstable();
    assert_eq!((found, seen.canceled, seen.workers), (vec![1, 2], vec![job_id(2)], vec![worker(1)]));
    let lease = db.jobs().job(job_id(1), None).await.unwrap().unwrap().lease.unwrap();
    assert_eq!((lease.leased_until, lease.progress.as_deref()), (at(90), Some("1")));
    assert_eq!(db.jobs().worker(worker(1).worker_id).await.unwrap().unwrap().seen_at, at(9));
}

pub async fn workers_are_registered_changed_and_noted_as_gone(db: &impl TestDatabase) {
    let quiet = Worker { labels: None, version: None, seen_at: at(5), ..worker(2) };
    for worker in [worker(1), quiet.clone()] {
        db.jobs().register_worker(&worker).await.unwrap();
    }
    assert_eq!(db.jobs().workers(10).await.unwrap(), [quiet.clone(), worker(1)], "the one that was seen last first");
    assert_eq!(db.jobs().workers(1).await.unwrap(), std::slice::from_ref(&quiet));
    assert_eq!(db.jobs().worker(worker(3).worker_id).await.unwrap(), None);
    let draining = Worker { state: WorkerState::Draining, ..worker(1) };
    db.jobs().change_worker(&worker(1), &draining, &act(1)).await.unwrap();
    let again = db.jobs().change_worker(&worker(1), &draining, &act(2)).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    assert_eq!(db.operations().operator_act(act(2).audit_id).await.unwrap(), None);
    assert_eq!(db.jobs().retire_workers(at(5)).await.unwrap(), 1);
    assert_eq!(db.jobs().retire_workers(at(5)).await.unwrap(), 0);
    let states: Vec<_> = db.jobs().workers(10).await.unwrap().into_iter().map(|worker| worker.state).collect();
    assert_eq!(states, [WorkerState::Active, WorkerState::Gone]);
    assert_eq!(db.cleaning().clean(Leftover::GoneWorkers(at(0)), 10).await.unwrap(), 0);
    assert_eq!(db.cleaning().clean(Leftover::GoneWorkers(at(1)), 10).await.unwrap(), 1);
    assert_eq!(db.jobs().workers(10).await.unwrap(), [quiet]);
}

pub async fn a_schedule_fires_once_and_is_changed_by_operators(db: &impl TestDatabase) {
    with_queues(db, settings()).await;
    let [due, later, paused] = [SystemSchedule::Periods, SystemSchedule::Holds, SystemSchedule::Cleaning];
    let later = Schedule { next_at: at(100), ..later.begin(at(0)) };
    let paused = Schedule { is_paused: true, ..paused.begin(at(0)) };
    let all = [paused, later, due.begin(at(0))];
    db.jobs().create_schedules(&all).await.unwrap();
    let again = all.clone().map(|schedule| Schedule { next_at: at(7), ..schedule });
    db.jobs().create_schedules(&again).await.unwrap();
    assert_eq!(
        db.jobs().schedules().await.unwrap().iter().map(|found| found.next_at).max(),
        Some(at(100)),
        "as they were"
    );

    let which = JobSelection::Schedules { now: at(5), queues: vec![queue()] };
    let fire = async |id: u128| {
        let mut sent = Vec::new();
        change(db, &which, |found| {
            let changes = JobChanges::fire(found, |_| queue(), || job_id(id), at(5));
            sent = changes.inserted.iter().map(|job| job.kind.as_str().to_owned()).collect();
            changes
        })
        .await
        .unwrap();
        sent
    };
    assert_eq!(fire(1).await, ["system.periods"]);
    assert_eq!(fire(2).await, [""; 0]);
    let stored = db.jobs().schedules().await.unwrap();
    let fired = stored.iter().find(|schedule| schedule.kind == due.kind()).unwrap().clone();
    assert_eq!((fired.fired_at, fired.job_id), (Some(at(5)), Some(job_id(1))));

    // At once again, while its job is not over: no other job.
    let now = Schedule { next_at: at(5), changed_by: Some("operator-1".into()), ..fired.clone() };
    db.jobs().change_schedule(&fired, &now, &act(1)).await.unwrap();
    let conflict = db.jobs().change_schedule(&fired, &now, &act(2)).await;
    assert!(matches!(conflict, Err(StoreError::Conflict(_))), "{conflict:?}");
    assert_eq!(fire(3).await, [""; 0]);
    assert!(db.jobs().schedules().await.unwrap().iter().all(|schedule| schedule.job_id != Some(job_id(3))));
}

pub async fn holds_that_need_something_are_found(db: &impl TestDatabase) {
    with_queues(db, settings()).await;
    send(db, [with_hold(1), with_hold(2), submission(3)]).await;
    let unsettled = async |seconds: i64| {
        let found = find(db, &JobSelection::Unsettled { before: at(seconds), limit: 10 }).await;
        found.jobs.iter().map(|job| job.job_id.0.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!((unsettled(-1).await, unsettled(0).await), (vec![], vec![1, 2]));
    each(db, [1], |changes, found, job| {
        let held = Held {
            hold_id: HoldId(Uuid::from_u128(5)),
            credits: Credits::whole(10),
            unit_price: None,
            expires_at: at(60),
        };
        let mut last = found.last_ranks.clone();
        assert_eq!(last.get(&job.line().unwrap()), Some(&at(-300)), "of the job that is ready in its line");
        changes.held(job, held, &mut last, &settings(), at(1));
    })
    .await;
    assert_eq!(unsettled(9).await, [2]);
    let ending = async |seconds: i64| {
        let jobs = db.jobs().jobs_with_ending_holds(at(seconds), 10).await.unwrap();
        jobs.iter().map(|job| job.job_id.0.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!((ending(59).await, ending(60).await), (vec![], vec![1]));
    each(db, [1], |changes, _, job| _ = changes.cancel(job, false, &settings(), at(4))).await;
    assert_eq!((ending(60).await, unsettled(9).await), (vec![], vec![2, 1]), "it is being released");
}

pub async fn jobs_of_a_workspace_are_listed_the_newest_first_whether_over_or_not(db: &impl TestDatabase) {
    with_queues(db, settings()).await;
    let sent = |number: u128, seconds| submission(number).into_job(&settings(), &mut HashMap::new(), at(seconds));
    let foreign = Submission { workspace_id: Some(workspace(1)), ..submission(9) }.into_job(
        &settings(),
        &mut HashMap::new(),
        at(3),
    );
    store(db, vec![sent(1, 1), sent(2, 2), sent(3, 3), sent(4, 3), sent(5, 5), foreign]).await;
    claim(db, 1, 2).await;
    each(db, [1, 2], complete).await;
    let page = async |start_at, limit| {
        let jobs = db.jobs().jobs(workspace(0), start_at, limit).await.unwrap();
        jobs.iter().map(|listed| listed.job.job_id.0.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 10).await, [5, 4, 3, 2, 1]);
    assert_eq!(page(None, 2).await, [5, 4]);
    assert_eq!(page(Some((at(3), job_id(3))), 2).await, [3, 2]);
    assert_eq!(page(Some((at(2), job_id(9))), 9).await, [2, 1], "also if that job is gone");
}

pub async fn finished_jobs_are_deleted_with_their_attempts_unless_their_letter_is_open(db: &impl TestDatabase) {
    with_queues(db, settings()).await;
    send(db, (1..5).map(submission)).await;
    claim(db, 1, 4).await;
    let fail = |changes: &mut JobChanges, found: &FoundJobs, job: Job| {
        let failure = Failure { error: JobError::new("x", "y"), is_retryable: false, retry_after: None };
        let lease = &found.leases[&job.job_id];
        changes.fail(job, lease, failure, &settings(), 0.5, at(6));
    };
    each(db, [1, 2], complete).await;
    each(db, [3, 4], fail).await;
    db.tamper("update dead_letters set state = 'discarded', resolved_at = last_failed_at where job_id in (select job_id from jobs_done order by job_id desc limit 1)").await;
    let counts = "select cast((select count(*) from jobs_done) as bigint),
        cast((select count(*) from job_attempts) as bigint), cast((select count(*) from dead_letters) as bigint)";
    let day = 86_400;
    for (leftover, expected) in [
        (Leftover::FinishedJobs(at(7 * day)), [4, 4, 2]),
        (Leftover::FinishedJobs(at(7 * day + 6)), [2, 2, 2]),
        (Leftover::FinishedJobs(at(31 * day)), [1, 1, 2]),
        (Leftover::ResolvedLetters(at(day)), [1, 1, 1]),
    ] {
        while db.cleaning().clean(leftover, 1).await.unwrap() > 0 {}
        assert_eq!(db.integers(counts).await, [expected], "{leftover:?}");
    }
    assert!(db.jobs().job(job_id(3), None).await.unwrap().is_some(), "its letter is open");
}

fn act(number: u128) -> OperatorAct {
    OperatorAct {
        audit_id: Uuid::from_u128(number),
        at: at(1),
        actor: "operator-1".into(),
        action: "queue.change".into(),
        target: "default".into(),
        reason: Label::from_stored("A test"),
        before: None,
        after: None,
    }
}

pub async fn a_queue_is_created_once_and_changed_with_its_record(db: &impl TestDatabase) {
    let all: Vec<_> = default_queues()
        .into_iter()
        .map(|(queue, settings)| Queue { queue, settings, changed_by: None, changed_at: at(0) })
        .collect();
    db.jobs().create_queues(&all).await.unwrap();
    assert_eq!(db.jobs().queues().await.unwrap(), all);
    let other: Vec<_> = all
        .iter()
        .map(|queue| Queue { settings: QueueSettings { weight: 99, ..queue.settings.clone() }, ..queue.clone() })
        .collect();
    db.jobs().create_queues(&other).await.unwrap();
    assert_eq!(db.jobs().queues().await.unwrap(), all, "what operators have changed stays");

    let before = &all[0];
    let changed = Queue { changed_by: Some("operator-1".into()), changed_at: at(2), ..other[0].clone() };
    db.jobs().change_queue(before, &changed, &act(1)).await.unwrap();
    let again = db.jobs().change_queue(before, &changed, &act(2)).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    let by_name: BTreeMap<_, _> =
        db.jobs().queues().await.unwrap().into_iter().map(|queue| (queue.queue.clone(), queue)).collect();
    assert_eq!(by_name[&before.queue], changed);
    assert_eq!(db.operations().operator_act(act(2).audit_id).await.unwrap(), None);
    assert!(db.operations().operator_act(act(1).audit_id).await.unwrap().is_some());
}
