//! What queues and workers read and write, with the statements that both databases share.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;

use super::columns::{Fields, Stored as _};
use super::consumption::{Background, BackgroundTx as _};
use super::dialect::{Dialect, Keys, Parameters, each, rows, rows_by_key};
use super::error::{StoreError, with_answer_timeout};
use super::jobs::{
    DecideJobs, DecideLeases, Finished, JobRecord, JobSelection, Jobs, ListedJob, QueueLoad, SentJobs, resolved_key,
};
use super::reads::{list, list_each};
use super::statements::Statement;
use super::tables::Table;
use crate::domain::ids::{JobId, WorkerId, WorkspaceId};
use crate::domain::jobs::{
    FinishedJob, FoundJobs, FoundLeases, Job, JobChanges, JobLease, JobState, LeaseChanges, Line, Queue, Runner,
    Running, Schedule, Worker,
};
use crate::domain::operator_act::OperatorAct;
use crate::domain::text::{QueueName, UniqueKey};
use crate::domain::time::Timestamp;

/// How many jobs at least are looked at where some may have to be set aside.
const MOST_SET_ASIDE: i64 = 64;

#[async_trait]
impl<D: Background> Jobs for D {
    async fn change_jobs(&self, which: &JobSelection, decide: DecideJobs<'_>) -> Result<(), StoreError> {
        with_answer_timeout(async {
            let mut tx = self.begin_background().await?;
            let found = find(tx.connection(), which).await?;
            let changes = decide(found);
            if !changes.is_empty() {
                write(tx.connection(), &changes).await?;
            }
            tx.commit().await
        })
        .await
    }

    async fn change_leases(
        &self,
        jobs: &[JobId],
        workers: &[WorkerId],
        decide: DecideLeases<'_>,
    ) -> Result<(), StoreError> {
        let statements = D::Connection::job_statements();
        // In one order, so that there are no deadlocks.
        let (jobs, workers): (BTreeSet<_>, BTreeSet<_>) = (jobs.iter().collect(), workers.iter().collect());
        with_answer_timeout(async {
            let mut tx = self.begin_background().await?;
            let connection = tx.connection();
            let leases = rows_by_key(connection, &statements.lock_leases, Keys::of(jobs.iter().copied())).await?;
            let workers = rows_by_key(connection, &statements.lock_workers, Keys::of(workers.iter().copied())).await?;
            let canceled = connection.look_up(&statements.canceled, &Keys::of(jobs.iter().copied())).await?;
            let canceled = each(&canceled, |mut row| row.next())?;
            let LeaseChanges { leases, workers } = decide(FoundLeases { leases, canceled, workers });
            connection.update(&leases).await?;
            connection.update(&workers).await?;
            tx.commit().await
        })
        .await
    }

    async fn register_worker(&self, worker: &Worker) -> Result<(), StoreError> {
        with_answer_timeout(async {
            let mut tx = self.begin_background().await?;
            tx.connection().insert(std::slice::from_ref(worker)).await?;
            tx.commit().await
        })
        .await
    }

    async fn change_worker(&self, before: &Worker, after: &Worker, act: &OperatorAct) -> Result<(), StoreError> {
        let statement = &D::Connection::job_statements().lock_workers;
        change_row(self, statement, Keys::of([&before.worker_id]), (before, after), act).await
    }

    async fn worker(&self, worker_id: WorkerId) -> Result<Option<Worker>, StoreError> {
        let statement = &D::Connection::job_statements().worker;
        let key = Keys::of([&worker_id]);
        with_answer_timeout(async { Ok(rows(&self.reader().await?.look_up(statement, &key).await?)?.pop()) }).await
    }

    async fn workers(&self, limit: u32) -> Result<Vec<Worker>, StoreError> {
        let limit = i64::from(limit);
        list(self, &D::Connection::job_statements().workers, Parameters::of(&limit)).await
    }

    async fn retire_workers(&self, before: Timestamp) -> Result<u64, StoreError> {
        let statement = &D::Connection::job_statements().retire_workers;
        with_answer_timeout(async {
            let mut tx = self.begin_background().await?;
            let retired = tx.connection().list(&statement.text, Parameters::of(&before)).await?.len();
            tx.commit().await?;
            Ok(u64::try_from(retired).unwrap_or(u64::MAX))
        })
        .await
    }

    async fn queues(&self) -> Result<Vec<Queue>, StoreError> {
        list(self, &D::Connection::job_statements().queues, Parameters::default()).await
    }

    async fn create_queues(&self, queues: &[Queue]) -> Result<(), StoreError> {
        create(self, queues).await
    }

    async fn change_queue(&self, before: &Queue, after: &Queue, act: &OperatorAct) -> Result<(), StoreError> {
        let statement = &D::Connection::job_statements().lock_queues;
        change_row(self, statement, Keys::of([&before.queue]), (before, after), act).await
    }

    async fn schedules(&self) -> Result<Vec<Schedule>, StoreError> {
        list(self, &D::Connection::job_statements().schedules, Parameters::default()).await
    }

    async fn create_schedules(&self, schedules: &[Schedule]) -> Result<(), StoreError> {
        create(self, schedules).await
    }

    async fn change_schedule(&self, before: &Schedule, after: &Schedule, act: &OperatorAct) -> Result<(), StoreError> {
        let statement = &D::Connection::job_statements().lock_schedules;
        change_row(self, statement, Keys::of([&before.kind]), (before, after), act).await
    }

    async fn jobs_with_ending_holds(&self, before: Timestamp, limit: u32) -> Result<Vec<Job>, StoreError> {
        let limit = i64::from(limit);
        list(self, &D::Connection::job_statements().ending_holds, Parameters::of(&before).and(&limit)).await
    }

    async fn job(&self, job_id: JobId, workspace_id: Option<WorkspaceId>) -> Result<Option<JobRecord>, StoreError> {
        let statements = D::Connection::job_statements();
        with_answer_timeout(async {
            let mut view = self.view().await?;
            let key = Keys::of([&job_id]);
            let jobs: Vec<Job> = rows(&view.look_up(&statements.jobs_by_id, &key).await?)?;
            let finished: Vec<FinishedJob> = rows(&view.look_up(&statements.finished_by_id, &key).await?)?;
            let mut listed = jobs.into_iter().map(ListedJob::from).chain(finished.into_iter().map(ListedJob::from));
            let is_visible = |listed: &ListedJob| workspace_id.is_none() || listed.job.workspace_id == workspace_id;
            let Some(listed) = listed.next().filter(is_visible) else { return Ok(None) };
            let lease = rows(&view.look_up(&statements.leases_by_id, &key).await?)?.pop();
            let attempts = rows(&view.list(&statements.attempts.text, Parameters::of(&job_id)).await?)?;
            Ok(Some(JobRecord { listed, lease, attempts }))
        })
        .await
    }

    async fn queue_loads(&self, most: u32) -> Result<Vec<QueueLoad>, StoreError> {
        let statement = &D::Connection::job_statements().queue_loads;
        list_each(self, statement, Parameters::of(&i64::from(most)), |mut row| {
            let (queue, runner) = (row.next()?, row.next()?);
            Ok(QueueLoad { queue, runner, running: row.next()?, due: row.next()?, oldest: row.next()? })
        })
        .await
    }

    async fn draining_workers(&self, limit: u32) -> Result<Vec<WorkerId>, StoreError> {
        let statement = &D::Connection::job_statements().draining_workers;
        list_each(self, statement, Parameters::of(&i64::from(limit)), |mut row| row.next()).await
    }

    async fn busy_workers(&self) -> Result<Vec<(WorkerId, i64)>, StoreError> {
        let statement = &D::Connection::job_statements().busy_workers;
        list_each(self, statement, Parameters::default(), |mut row| Ok((row.next()?, row.next()?))).await
    }

    async fn next_jobs(&self, queue: &QueueName, runner: Runner, limit: u32) -> Result<Vec<Job>, StoreError> {
        let statement = &D::Connection::job_statements().next_jobs;
        list(self, statement, Parameters::of(queue).and(&runner).and(&i64::from(limit))).await
    }

    async fn running_jobs(&self, queue: &QueueName, limit: u32) -> Result<Vec<Job>, StoreError> {
        let statement = &D::Connection::job_statements().running_jobs;
        list(self, statement, Parameters::of(queue).and(&i64::from(limit))).await
    }

    async fn finished_jobs(&self, ids: &[JobId]) -> Result<Vec<FinishedJob>, StoreError> {
        let statement = &D::Connection::job_statements().finished_by_id;
        with_answer_timeout(async { rows(&self.reader().await?.look_up(statement, &Keys::of(ids)).await?) }).await
    }

    async fn jobs(
        &self,
        workspace_id: WorkspaceId,
        start_at: Option<(Timestamp, JobId)>,
        limit: u32,
    ) -> Result<Vec<ListedJob>, StoreError> {
        let statements = D::Connection::job_statements();
        let (at, id) = start_at.unwrap_or((Timestamp::MAX, JobId(uuid::Uuid::max())));
        let most = i64::from(limit);
        let parameters = || Parameters::of(&workspace_id).and(&at).and(&id).and(&most);
        with_answer_timeout(async {
            let mut view = self.view().await?;
            let jobs: Vec<Job> = rows(&view.list(&statements.page.text, parameters()).await?)?;
            let finished: Vec<FinishedJob> = rows(&view.list(&statements.done_page.text, parameters()).await?)?;
            let listed = jobs.into_iter().map(ListedJob::from).chain(finished.into_iter().map(ListedJob::from));
            let mut listed: Vec<_> = listed.collect();
            listed.sort_by_key(|listed| std::cmp::Reverse((listed.job.created_at, listed.job.job_id)));
            listed.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            Ok(listed)
        })
        .await
    }
}

/// Stores the rows that do not exist yet.
async fn create<D: Background, T: Table + Sync>(database: &D, missing: &[T]) -> Result<(), StoreError> {
    with_answer_timeout(async {
        let mut tx = database.begin_background().await?;
        tx.connection().insert_missing(missing).await?;
        tx.commit().await
    })
    .await
}

/// What an operator has done to a row, unless it was changed meanwhile.
async fn change_row<D: Background, T: Table + PartialEq + Send + Sync>(
    database: &D,
    lock: &'static Statement,
    key: Keys<'_>,
    (before, after): (&T, &T),
    act: &OperatorAct,
) -> Result<(), StoreError> {
    with_answer_timeout(async {
        let mut tx = database.begin_background().await?;
        let connection = tx.connection();
        let stored: Vec<T> = rows_by_key(connection, lock, key).await?;
        if stored != std::slice::from_ref(before) {
            return Err(StoreError::Conflict(format!("a row of {} was changed meanwhile", T::NAME)));
        }
        connection.update(std::slice::from_ref(after)).await?;
        connection.insert(std::slice::from_ref(act)).await?;
        tx.commit().await
    })
    .await
}

/// Locks and reads what is selected, and what a change of it depends on.
async fn find<C: Dialect>(connection: &mut C, which: &JobSelection) -> Result<FoundJobs, StoreError> {
    let statements = C::job_statements();
    match which {
        JobSelection::Sent(sent) => sent_jobs(connection, sent).await,
        JobSelection::Ready { queue, runner, limit } => {
            let queues = shared_queue(connection, queue, *runner).await?;
            let mut found = FoundJobs { queues, ..FoundJobs::default() };
            let settings = found.settings(queue).map(|settings| settings.for_runner(*runner));
            let Some(settings) = settings.filter(|settings| !settings.is_paused) else { return Ok(found) };
            let mut limit = i64::from(*limit);
            if settings.has_caps() {
                let running = running(connection, [queue]).await?;
                let room = running.get(queue).unwrap_or(&Running::default()).room(&settings);
                // The first ones may be of workspaces that have enough: they are set aside together.
                let most = if settings.max_running_per_workspace.is_some() {
                    limit.max(MOST_SET_ASIDE)
                } else {
                    limit.min(room)
                };
                limit = if room == 0 { 0 } else { most };
                found.running = running;
            }
            let parameters = Parameters::of(queue).and(runner).and(&limit);
            found.jobs = rows(&connection.list(&statements.ready.text, parameters).await?)?;
            Ok(found)
        }
        JobSelection::Due { now, limit } => {
            let limit = i64::from(*limit);
            let parameters = Parameters::of(now).and(&limit);
            let jobs: Vec<Job> = rows(&connection.list(&statements.due.text, parameters).await?)?;
            let last_ranks = last_ranks(connection, jobs.iter().filter_map(Job::line)).await?;
            Ok(FoundJobs { jobs, last_ranks, ..FoundJobs::default() })
        }
        JobSelection::Unsettled { before, limit } => oldest(connection, &statements.unsettled, *before, *limit).await,
        JobSelection::SetAside { before, limit } => oldest(connection, &statements.set_aside, *before, *limit).await,
        JobSelection::Lost { now, limit } => {
            let limit = i64::from(*limit);
            let lost = connection.list(&statements.lost.text, Parameters::of(now).and(&limit)).await?;
            let ids: Vec<JobId> = each(&lost, |mut row| row.next())?;
            jobs_by_id(connection, &ids).await
        }
        JobSelection::Schedules { now, queues } => due_schedules(connection, *now, queues).await,
        JobSelection::ById(ids) => jobs_by_id(connection, ids).await,
    }
}

async fn oldest<C: Dialect>(
    connection: &mut C,
    statement: &'static Statement,
    before: Timestamp,
    limit: u32,
) -> Result<FoundJobs, StoreError> {
    let limit = i64::from(limit);
    let jobs = rows(&connection.list(&statement.text, Parameters::of(&before).and(&limit)).await?)?;
    Ok(FoundJobs { jobs, ..FoundJobs::default() })
}

async fn sent_jobs<C: Dialect>(connection: &mut C, sent: &SentJobs) -> Result<FoundJobs, StoreError> {
    let statements = C::job_statements();
    let SentJobs { ids, unique_keys, lines } = sent;
    let of_workspaces = unique_keys.iter().filter(|(workspace_id, ..)| workspace_id.is_some());
    let of_workspaces =
        Keys(of_workspaces.map(|(id, kind, key)| vec![id.to_value(), kind.to_value(), key.to_value()]).collect());
    let of_server = unique_keys.iter().filter(|(workspace_id, ..)| workspace_id.is_none());
    let of_server = Keys(of_server.map(|(_, kind, key)| vec![kind.to_value(), key.to_value()]).collect());
    let mut jobs: Vec<Job> = rows_by_key(connection, &statements.jobs_by_id, Keys::of(ids)).await?;
    jobs.extend(rows_by_key(connection, &statements.unique, of_workspaces).await?);
    jobs.extend(rows_by_key(connection, &statements.unique_of_server, of_server).await?);
    let finished = rows_by_key(connection, &statements.finished_by_id, Keys::of(ids)).await?;
    let last_ranks = last_ranks(connection, lines.iter().cloned()).await?;
    Ok(FoundJobs { jobs, finished, last_ranks, ..FoundJobs::default() })
}

async fn due_schedules<C: Dialect>(
    connection: &mut C,
    now: Timestamp,
    queues: &[QueueName],
) -> Result<FoundJobs, StoreError> {
    let (statements, is_paused) = (C::job_statements(), false);
    let due = connection.list(&statements.due_schedules.text, Parameters::of(&now).and(&is_paused)).await?;
    let schedules: Vec<Schedule> = rows(&due)?;
    let key = UniqueKey::from_stored(Schedule::UNIQUE_KEY);
    let keys = schedules.iter().map(|schedule| vec![schedule.kind.to_value(), key.to_value()]).collect();
    let jobs = rows_by_key(connection, &statements.unique_of_server, Keys(keys)).await?;
    let queues = by_name(rows_by_key(connection, &statements.queue, Keys::of(queues)).await?);
    Ok(FoundJobs { jobs, queues, schedules, ..FoundJobs::default() })
}

/// The queue, so that nobody changes it meanwhile. With a cap, nobody else counts what runs in it meanwhile either.
async fn shared_queue<C: Dialect>(
    connection: &mut C,
    queue: &QueueName,
    runner: Runner,
) -> Result<BTreeMap<QueueName, Queue>, StoreError> {
    let (statements, key) = (C::job_statements(), Keys::of([queue]));
    let seen: Vec<Queue> = rows(&connection.look_up(&statements.queue, &key).await?)?;
    let has_caps = |queues: &[Queue]| queues.iter().any(|queue| queue.settings.for_runner(runner).has_caps());
    let statement = if has_caps(&seen) { &statements.lock_queues } else { &statements.share_queues };
    let locked: Vec<Queue> = rows(&connection.look_up(statement, &key).await?)?;
    if has_caps(&locked) && !has_caps(&seen) {
        return Err(StoreError::Conflict("the queue was changed meanwhile".into()));
    }
    Ok(by_name(locked))
}

fn by_name(queues: Vec<Queue>) -> BTreeMap<QueueName, Queue> {
    queues.into_iter().map(|queue| (queue.queue.clone(), queue)).collect()
}

/// Locks jobs. Their queues are locked after them, and a claim never waits for a job while it has its queue: so there are no
/// deadlocks.
async fn jobs_by_id<C: Dialect>(connection: &mut C, ids: &[JobId]) -> Result<FoundJobs, StoreError> {
    let statements = C::job_statements();
    let sorted: BTreeSet<JobId> = ids.iter().copied().collect();
    let mut found = FoundJobs::default();
    let jobs: Vec<Job> = rows_by_key(connection, &statements.lock_jobs, Keys::of(&sorted)).await?;
    let mut by_id: HashMap<JobId, Job> = jobs.into_iter().map(|job| (job.job_id, job)).collect();
    let missing: Vec<JobId> = sorted.iter().filter(|id| !by_id.contains_key(id)).copied().collect();
    found.jobs = ids.iter().filter_map(|id| by_id.remove(id)).collect();
    found.finished = rows_by_key(connection, &statements.finished_by_id, Keys::of(&missing)).await?;
    let locked: Vec<_> = found.jobs.iter().map(|job| job.job_id).collect();
    let leases: Vec<JobLease> = rows_by_key(connection, &statements.lock_leases, Keys::of(&locked)).await?;
    found.leases = leases.into_iter().map(|lease| (lease.job_id, lease)).collect();
    let names: BTreeSet<_> = found.jobs.iter().map(|job| job.queue.clone()).collect();
    // Where leases end, nobody counts them meanwhile: a claim has the queue for itself if it has a cap.
    let queues = if found.leases.is_empty() { &statements.queue } else { &statements.share_queues };
    found.queues = by_name(rows_by_key(connection, queues, Keys::of(&names)).await?);
    let holding = found.jobs.iter().filter(|job| job.state == JobState::Holding);
    found.last_ranks = last_ranks(connection, holding.filter_map(Job::line)).await?;
    // Also where the cap was taken away: nobody else brings back what was set aside.
    let of_workspaces = found.leases.values();
    let of_workspaces: BTreeSet<_> =
        of_workspaces.filter_map(|lease| Some((lease.queue.clone(), lease.workspace_id?))).collect();
    found.capped = rows_by_key(connection, &statements.capped, Keys::pairs(&of_workspaces)).await?;
    let capped: BTreeSet<_> = found.capped.iter().map(|job| &job.queue).collect();
    found.running = running(connection, capped).await?;
    Ok(found)
}

async fn running<'q, C: Dialect>(
    connection: &mut C,
    queues: impl IntoIterator<Item = &'q QueueName>,
) -> Result<BTreeMap<QueueName, Running>, StoreError> {
    let counted = connection.look_up(&C::job_statements().running, &Keys::of(queues)).await?;
    let counted = each(&counted, |mut row| Ok((row.next()?, row.next()?, row.next()?)))?;
    let mut running: BTreeMap<QueueName, Running> = BTreeMap::new();
    for (queue, workspace_id, count) in counted {
        running.entry(queue).or_default().by_workspace.insert(workspace_id, count);
    }
    Ok(running)
}

async fn last_ranks<C: Dialect>(
    connection: &mut C,
    lines: impl IntoIterator<Item = Line>,
) -> Result<HashMap<Line, Timestamp>, StoreError> {
    let lines: BTreeSet<_> = lines.into_iter().collect();
    let found = connection.look_up(&C::job_statements().last_ranks, &Keys::triples(&lines)).await?;
    let rank = |mut row: Fields<'_>| Ok(((row.next()?, row.next()?, row.next()?), row.next()?));
    let found: Vec<(Line, Option<Timestamp>)> = each(&found, rank)?;
    Ok(found.into_iter().filter_map(|(line, rank)| Some((line, rank?))).collect())
}

async fn write<C: Dialect>(connection: &mut C, changes: &JobChanges) -> Result<(), StoreError> {
    let statements = C::job_statements();
    let JobChanges {
        inserted,
        updated,
        finished,
        leases,
        ended_leases,
        attempts,
        letters,
        forgotten,
        resolved_letters,
        schedules,
    } = changes;
    connection.update(schedules).await?;
    connection.insert(inserted).await?;
    // One of them may have been sent, done and moved since it was looked for.
    let ids: Vec<_> = inserted.iter().map(|job| job.job_id).collect();
    let over: Vec<FinishedJob> = rows_by_key(connection, &statements.finished_by_id, Keys::of(&ids)).await?;
    if !over.is_empty() {
        return Err(StoreError::Conflict("a job was done meanwhile".into()));
    }
    connection.update(updated).await?;
    delete(connection, &statements.delete_leases, ended_leases).await?;
    connection.insert(leases).await?;
    connection.insert(attempts).await?;
    connection.put(letters).await?;
    let letters = resolved_letters.iter().map(|(letter, at)| resolved_key(letter, *at));
    connection.look_up(&statements.resolve_letters, &Keys(letters.collect())).await?;
    connection.insert(finished).await?;
    let over: Vec<_> = finished.iter().map(|finished| finished.job.job_id).chain(forgotten.iter().copied()).collect();
    delete(connection, &statements.delete_jobs, &over).await
}

/// Deletes rows, each of which must exist.
async fn delete<C: Dialect>(
    connection: &mut C,
    statement: &'static Statement,
    ids: &[JobId],
) -> Result<(), StoreError> {
    let deleted = connection.look_up(statement, &Keys::of(ids)).await?.len();
    if deleted == ids.len() {
        return Ok(());
    }
    Err(StoreError::Conflict(format!("{deleted} of {} jobs were there", ids.len())))
}

impl From<Job> for ListedJob {
    fn from(job: Job) -> Self {
        Self { job, finished: None }
    }
}

impl From<FinishedJob> for ListedJob {
    fn from(finished: FinishedJob) -> Self {
        let FinishedJob { job, finished_at, captured, .. } = finished;
        Self { job, finished: Some(Finished { at: finished_at, captured }) }
    }
}
