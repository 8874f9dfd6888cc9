//! Jobs on two replicas: one is restarted while workers have long jobs, and each schedule fires once for both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::audit::Audit;
use super::sent::{AllSent, Sent, Work, provision, send};
use super::worker::{Crew, LEASE_S, Manner, Site};
use super::{OPEN_FOR, PAUSE, number_from, settings};
use crate::figures::list;
use crate::load::{Client, text, workspace};
use crate::processes::{Billing, Postgres};
use crate::seed;

/// How many jobs last longer than all restarts.
const LONG_JOBS: usize = 8;
const LONG_JOB: Work = Work::Metered { held: 5_000_000, max_attempts: 20 };
const DEDUCTION: Work = Work::Deduction { credits: 1_000_000 };
/// So long, the schedules are watched; `SCHEDULE_SECONDS` asks for more.
const WATCHED_S: u32 = 32;

async fn replicas(postgres: &Postgres) -> [Billing; 2] {
    let one = Billing::create_with(Some(postgres.url()), None, &settings()).await;
    [one, Billing::create_with(Some(postgres.url()), None, &settings()).await]
}

/// Sends short jobs and deductions until it is told to stop.
async fn send_short(servers: Vec<Client>, stop: Arc<AtomicBool>) -> AllSent {
    let mut sent = AllSent::new();
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let (work, body) = if number % 4 == 0 {
            let args = json!({"feature_code": "video.render", "credits": "1"});
            (DEDUCTION, json!({"kind": "billing.deduct_credits", "args": args}))
        } else {
            let work = Work::Plain { max_attempts: 20 };
            (work, json!({"kind": "crash.plain", "args": {"takes_ms": 30}}))
        };
        let job_id = send(&servers, workspace(0), &format!("short-{number}"), &body).await;
        sent.insert(job_id, Sent { workspace: workspace(0), work });
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    sent
}

async fn send_long(servers: &[Client]) -> AllSent {
    let mut sent = AllSent::new();
    for number in 0..LONG_JOBS {
        let hold = json!({"feature_code": "video.render", "credits": "5"});
        let body = json!({"kind": "crash.render", "args": {"until_told": true}, "hold": hold, "max_attempts": 20});
        let job_id = send(servers, workspace(0), &format!("long-{number}"), &body).await;
        sent.insert(job_id, Sent { workspace: workspace(0), work: LONG_JOB });
    }
    sent
}

/// The jobs of the workspace that are in this state.
async fn in_state(client: &Client, state: &str) -> Vec<Value> {
    list(client, &format!("/v1/workspaces/{}/jobs?state={state}&limit=200", workspace(0))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_job_is_lost_or_run_twice_while_the_replicas_are_restarted() {
    let postgres = Postgres::create().await;
    let mut replicas = replicas(&postgres).await;
    let servers: Vec<_> = replicas.iter().map(Client::new).collect();
    provision(&servers[0], &[workspace(0)]).await;
    let site = Site::new(servers.clone());
    site.is_willing.store(true, Ordering::SeqCst);
    let mut crew = Crew::new(&site, &["crash"], seed());
    for worker in 0..4 {
        crew.hire(Manner::Lively, worker % 2);
    }
    let mut sent = send_long(&servers).await;
    while in_state(&servers[0], "running").await.len() < LONG_JOBS {
        tokio::time::sleep(PAUSE).await;
    }
    let begun = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let short = tokio::spawn(send_short(servers.clone(), Arc::clone(&stop)));
    for (number, replica) in replicas.iter_mut().enumerate() {
        let before = in_state(&servers[0], "completed").await.len();
        replica.terminate().await;
        let meanwhile = in_state(&servers[1 - number], "completed").await.len() - before;
        println!(
            "{meanwhile} jobs were done while a replica was stopping, {:?} since the long jobs began",
            begun.elapsed()
        );
        assert!(meanwhile > 3, "the other replica goes on: {meanwhile}");
        replica.start();
        replica.wait_until_ready().await;
    }
    // Without heartbeats, the leases are over by now.
    tokio::time::sleep(Duration::from_secs(LEASE_S + 2).saturating_sub(begun.elapsed())).await;
    stop.store(true, Ordering::SeqCst);
    sent.extend(short.await.unwrap());
    site.may_end.store(true, Ordering::SeqCst);
    let ended = Instant::now();
    while in_state(&servers[0], "completed").await.len() < sent.len() {
        assert!(ended.elapsed() < OPEN_FOR, "not every job is done");
        tokio::time::sleep(PAUSE).await;
    }
    println!("{} jobs were done, the last {:?} after the restarts", sent.len(), ended.elapsed());
    let reports = site.book.reports.lock().unwrap().clone();
    let audit = Audit::read(&servers[0], &[workspace(0)], &sent, &reports).await;
    assert_eq!(audit.jobs.len(), sent.len());
    for job in audit.jobs.values() {
        assert_eq!((&job["state"], &job["attempt"]), (&json!("completed"), &json!(1)), "it was run once: {job}");
    }
    audit.verify_jobs();
    audit.verify_workspace(workspace(0)).await;
    crew.kill_all().await;
    replicas.iter_mut().for_each(Billing::stop);
    assert!(replicas[0].run(&["verify"]), "every invariant holds");
}

/// The jobs of the schedules: their kind, and the second in which each was sent.
fn firings(postgres: &Postgres) -> Vec<(String, u64)> {
    let columns = "kind, floor(extract(epoch from created_at))::bigint, job_id";
    let of = |table: &str| format!("select {columns} from {table} where kind like 'system.%'");
    let rows = postgres.sql(&format!("{} union {} order by 2", of("jobs"), of("jobs_done")));
    let row = |line: &str| {
        let fields: Vec<_> = line.split('|').collect();
        (fields[0].to_owned(), fields[1].parse().unwrap())
    };
    rows.lines().map(row).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_schedule_fires_once_in_its_interval_on_two_replicas() {
    let postgres = Postgres::create().await;
    let replicas = replicas(&postgres).await;
    let client = Client::new(&replicas[0]);
    let watched = number_from("SCHEDULE_SECONDS").unwrap_or(WATCHED_S);
    tokio::time::sleep(Duration::from_secs(u64::from(watched))).await;
    let workers = client.get("/v1/ops/workers").await;
    let servers = workers["items"].as_array().unwrap().iter().filter(|worker| worker["runner"] == "server");
    assert_eq!(servers.count(), 2, "both take the jobs of schedules");
    let schedules = client.get("/v1/ops/schedules").await;
    let all = firings(&postgres);
    for schedule in schedules["items"].as_array().unwrap() {
        let (interval, kind) =
            (schedule["interval_s"].as_u64().unwrap(), format!("system.{}", text(&schedule["schedule"])));
        let mut fired: BTreeMap<u64, u32> = BTreeMap::new();
        for (_, second) in all.iter().filter(|(found, _)| *found == kind) {
            *fired.entry(second / interval).or_default() += 1;
        }
        println!("{kind}, every {interval} s: {fired:?}");
        assert!(fired.values().all(|jobs| *jobs == 1), "{kind} has two jobs for one firing: {fired:?}");
        let (first, last) = (*fired.keys().next().unwrap(), *fired.keys().next_back().unwrap());
        assert_eq!(u64::try_from(fired.len()).unwrap(), last - first + 1, "{kind} has left out a firing: {fired:?}");
        assert!(fired.len() >= usize::try_from(u64::from(watched) / interval).unwrap(), "{kind}: {fired:?}");
        assert!(schedule["job_id"].is_string(), "{schedule}");
    }
    let done = postgres
        .sql("select count(*) from jobs_done where kind like 'system.%' and (state, attempt) <> ('completed', 1)");
    assert_eq!(done, "0", "each was done at once");
}
