//! The statements of queues and jobs, which both databases share.

use super::columns::Kind;
use super::statements::{KeyColumn, Lock, Statement, Syntax, by_key, hint, list, lookup, statements};
use super::tables::Table;
use crate::domain::jobs::{FinishedJob, Job, JobAttempt, JobLease, Queue, Runner, Schedule, Worker};

const QUEUE: &[KeyColumn] = &[("queue", Kind::Text)];
const JOB: &[KeyColumn] = &[("job_id", Kind::Uuid)];
const OF_WORKSPACE: &[KeyColumn] = &[("queue", Kind::Text), ("workspace_id", Kind::Uuid)];
const LINE: &[KeyColumn] = &[("queue", Kind::Text), ("workspace_id", Kind::Uuid), ("priority", Kind::Smallint)];
const UNIQUE: &[KeyColumn] = &[("workspace_id", Kind::Uuid), ("kind", Kind::Text), ("unique_key", Kind::Text)];
const UNIQUE_OF_SERVER: &[KeyColumn] = &[("kind", Kind::Text), ("unique_key", Kind::Text)];
const SCHEDULE: &[KeyColumn] = &[("kind", Kind::Text)];
const WORKER: &[KeyColumn] = &[("worker_id", Kind::Uuid)];
const RESOLVED: &[KeyColumn] = &[("dead_letter_id", Kind::Uuid), ("resolved_at", Kind::Timestamptz)];

statements! {
    /// The statements of queues and jobs, as one database writes them.
    JobStatements:
    queues, queue, lock_queues, share_queues, running, ready, jobs_by_id, lock_jobs, finished_by_id, leases_by_id, lock_leases, due, lost, capped,
    last_ranks, unique, unique_of_server, delete_jobs, delete_leases, resolve_letters, lock_workers, worker, workers, retire_workers, canceled, unsettled, set_aside,
    ending_holds, attempts, page, done_page, schedules, due_schedules, lock_schedules,
    queue_loads, draining_workers, busy_workers, next_jobs, running_jobs
}

/// Few rows: only jobs that workers have.
const RUNNING: &str = "
select l.queue, l.workspace_id, count(*) from {keys} cross join job_leases l
where l.queue = k.queue group by l.queue, l.workspace_id";

/// Few rows, as above.
const LOST: &str = "
select l.job_id from job_leases l where l.leased_until <= $1 order by l.leased_until, l.job_id limit $2";

/// How many jobs that were set aside are looked at for each workspace: as many as one request ends.
const NEXT_CAPPED: u32 = 32;

const LAST_RANKS: &str = "
select k.queue, k.workspace_id, k.priority, (
    select t.rank from jobs t {index}
    where t.queue = k.queue and t.workspace_id = k.workspace_id and t.priority = k.priority
        and t.state in ('ready', 'capped')
    order by t.rank desc limit 1
) from {keys}";

const DELETE_JOBS: &str = "delete from jobs where job_id in (select k.job_id from {keys}) returning 1";

const DELETE_LEASES: &str = "delete from job_leases where job_id in (select k.job_id from {keys}) returning 1";

/// A letter that was discarded meanwhile stays so.
const RESOLVE_LETTERS: &str = "
update dead_letters as t
set state = 'resolved', resolved_at = k.resolved_at
from {keys}
where t.dead_letter_id = k.dead_letter_id and t.state || '' = 'replaying'
returning 1";

/// Few rows: workers.
const RETIRE_WORKERS: &str = "
update workers set state = 'gone' where worker_id in (
    select t.worker_id from workers t where t.state <> 'gone' and t.seen_at < $1 order by t.worker_id {lock}
)
returning 1";

const CANCELED: &str = "
select j.job_id from {keys} cross join jobs j where j.job_id = k.job_id and j.cancel_requested_at is not null";

impl JobStatements {
    pub(super) fn new<S: Syntax>() -> Self {
        let due = "t.state = 'waiting' and t.run_at <= $1 order by t.run_at, t.job_id limit $2";
        let ready = "t.queue = $1 and t.runner = $2 and t.state = 'ready' order by t.rank, t.job_id limit $3";
        let unsettled =
            "t.state in ('holding', 'settling') and t.changed_at <= $1 order by t.changed_at, t.job_id limit $2";
        let set_aside = "t.state = 'capped' and t.changed_at <= $1 order by t.changed_at, t.job_id limit $2";
        let ending = "t.hold_expires_at is not null and t.hold_expires_at <= $1 and t.state <> 'settling'
    order by t.hold_expires_at, t.job_id limit $2";
        Self {
            queues: list("", &format!("select {} from queues t order by t.queue", Queue::select("t"))),
            queue: by_key::<S, Queue>(QUEUE, "queues_pkey", ""),
            lock_queues: by_key::<S, Queue>(QUEUE, "queues_pkey", S::lock(Lock::Change)),
            share_queues: by_key::<S, Queue>(QUEUE, "queues_pkey", S::lock(Lock::Share)),
            running: lookup::<S>(QUEUE, "", RUNNING),
            ready: jobs::<S>("jobs_ready", ready, Lock::ChangeFree),
            jobs_by_id: by_key::<S, Job>(JOB, "jobs_pkey", ""),
            lock_jobs: by_key::<S, Job>(JOB, "jobs_pkey", S::lock(Lock::Change)),
            finished_by_id: by_key::<S, FinishedJob>(JOB, "jobs_done_pkey", ""),
            leases_by_id: by_key::<S, JobLease>(JOB, "job_leases_pkey", ""),
            lock_leases: by_key::<S, JobLease>(JOB, "job_leases_pkey", S::lock(Lock::Change)),
            due: jobs::<S>("jobs_waiting", due, Lock::ChangeFree),
            lost: list("", LOST),
            capped: capped::<S>(),
            last_ranks: lookup::<S>(LINE, "jobs_lines", LAST_RANKS),
            unique: by_key::<S, Job>(
                UNIQUE,
                "jobs_unique",
                "and t.unique_key is not null and t.workspace_id is not null",
            ),
            unique_of_server: by_key::<S, Job>(
                UNIQUE_OF_SERVER,
                "jobs_unique_of_server",
                "and t.unique_key is not null and t.workspace_id is null",
            ),
            delete_jobs: lookup::<S>(JOB, "jobs_pkey", DELETE_JOBS),
            delete_leases: lookup::<S>(JOB, "job_leases_pkey", DELETE_LEASES),
            resolve_letters: lookup::<S>(RESOLVED, "dead_letters_pkey", RESOLVE_LETTERS),
            lock_workers: by_key::<S, Worker>(WORKER, "workers_pkey", S::lock(Lock::Change)),
            worker: by_key::<S, Worker>(WORKER, "workers_pkey", ""),
            workers: list(
                "",
                &format!("select {} from workers t order by t.seen_at desc, t.worker_id limit $1", Worker::select("t")),
            ),
            retire_workers: list("", &RETIRE_WORKERS.replace("{lock}", S::lock(Lock::ChangeFree))),
            canceled: lookup::<S>(JOB, "jobs_pkey", CANCELED),
            unsettled: jobs::<S>("jobs_unsettled", unsettled, Lock::ChangeFree),
            set_aside: jobs::<S>("jobs_set_aside", set_aside, Lock::ChangeFree),
            ending_holds: jobs::<S>("jobs_holds", ending, Lock::None),
            queue_loads: list("", &queue_loads::<S>()),
            draining_workers: list(
                "",
                "select t.worker_id from workers t where t.state = 'draining' order by t.worker_id limit $1",
            ),
            busy_workers: list("", "select l.worker_id, count(*) from job_leases l group by l.worker_id"),
            next_jobs: jobs::<S>("jobs_ready", ready, Lock::None),
            running_jobs: list("", &running_jobs()),
            schedules: list("", &format!("select {} from schedules t order by t.kind", Schedule::select("t"))),
            due_schedules: list("", &due_schedules::<S>()),
            lock_schedules: by_key::<S, Schedule>(SCHEDULE, "schedules_pkey", S::lock(Lock::Change)),
            attempts: list(
                "job_attempts_pkey",
                &format!(
                    "select {} from job_attempts t where t.job_id = $1 order by t.attempt",
                    JobAttempt::select("t")
                ),
            ),
            page: page::<S, Job>("jobs_of_workspace"),
            done_page: page::<S, FinishedJob>("jobs_done_of_workspace"),
        }
    }
}

/// Few rows: queues and leases. At most $1 of the ready jobs of each queue and runner are counted, in their index.
fn queue_loads<S: Syntax>() -> String {
    let hint = hint::<S>("jobs_ready");
    let ready = format!("from jobs t {hint} where t.queue = q.queue and t.runner = r.runner and t.state = 'ready'");
    let runners = Runner::ALL.map(|runner| format!("select '{}' as runner", runner.as_str())).join(" union all ");
    format!(
        "with running as materialized (
    select l.queue, j.runner, count(*) as jobs from job_leases l join jobs j on j.job_id = l.job_id group by l.queue, j.runner
)
select q.queue, r.runner,
    coalesce((select n.jobs from running n where n.queue = q.queue and n.runner = r.runner), 0),
    (select count(*) from (select 1 as one {ready} order by t.rank limit $1) counted),
    (select t.run_at {ready} order by t.rank, t.job_id limit 1)
from queues q cross join ({runners}) r order by q.queue, r.runner"
    )
}

/// Few rows, as above: those of leases.
fn running_jobs() -> String {
    let columns = Job::select("t");
    format!(
        "select {columns} from job_leases l join jobs t on t.job_id = l.job_id
where l.queue = $1 order by l.started_at, l.job_id limit $2"
    )
}

/// Few rows. One that another server is firing is left out.
fn due_schedules<S: Syntax>() -> String {
    let (columns, lock) = (Schedule::select("t"), S::lock(Lock::ChangeFree));
    format!("select {columns} from schedules t where t.next_at <= $1 and t.is_paused = $2 order by t.kind {lock}")
}

fn jobs<S: Syntax>(index: &'static str, filter: &str, lock: Lock) -> Statement {
    let (columns, hint, lock) = (Job::select("t"), hint::<S>(index), S::lock(lock));
    list(index, &format!("select {columns} from jobs t {hint} where {filter} {lock}"))
}

/// Of a workspace ($1) from a position ($2, $3) on, the newest first: at most $4.
fn page<S: Syntax, T: Table>(index: &'static str) -> Statement {
    let (columns, table, hint) = (T::select("t"), T::NAME, hint::<S>(index));
    let text = format!(
        "select {columns} from {table} t {hint}
where t.workspace_id = $1 and t.workspace_id is not null and (t.created_at, t.job_id) <= ($2, $3)
order by t.created_at desc, t.job_id desc limit $4"
    );
    list(index, &text)
}

/// Up to the rank of the last one that is looked at, or of the last one that there is.
fn capped<S: Syntax>() -> Statement {
    let of_workspace = "queue = k.queue and {t}.workspace_id = k.workspace_id and {t}.state = 'capped'";
    let rank = format!("select c.rank from jobs c {{index}} where c.{}", of_workspace.replace("{t}", "c"));
    let text = format!(
        "select {} from {{keys}} cross join jobs t {{index}}
where t.{} and t.rank <= coalesce(
    ({rank} order by c.rank, c.job_id limit 1 offset {}), ({rank} order by c.rank desc, c.job_id desc limit 1)
)
order by t.rank, t.job_id {}",
        Job::select("t"),
        of_workspace.replace("{t}", "t"),
        NEXT_CAPPED - 1,
        S::lock(Lock::ChangeFree),
    );
    lookup::<S>(OF_WORKSPACE, "jobs_capped", &text)
}
