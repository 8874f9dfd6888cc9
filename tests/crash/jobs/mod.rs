//! Jobs while workers, the server and the database are killed: each ends once, and costs what its worker has reported.

mod audit;
mod replicas;
mod sent;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use self::audit::Audit;
use self::sent::{AllSent, provision, send_all, send_burst, workspaces};
use self::worker::{Attempt, Crew, LEASE_S, Manner, Report, Site};
use crate::figures::list;
use crate::load::{Client, text};
use crate::processes::{Billing, Postgres};
use crate::{Random, seed};

/// A long run has `CRASH_JOBS=10000 CRASH_KILLS=150`.
const JOBS: usize = 300;
const KILLS: u32 = 6;
const WORKERS: usize = 6;
/// With every so many kills, there is one more worker that is not heard of for longer than its leases.
const SILENT_EVERY: u32 = 20;
/// From then on, when nobody waits for a worker any more, nothing may be open. A job that is lost is over after one lease, but
/// it may be lost twice.
const OPEN_FOR: Duration = Duration::from_secs(2 * LEASE_S + 5);
/// How long it may take until every job has had a worker.
const BACKLOG_TIMEOUT: Duration = Duration::from_mins(10);
const PAUSE: Duration = Duration::from_millis(200);

/// The queues of the tests have the shortest lease, and no delays.
fn settings() -> Vec<(&'static str, String)> {
    [
        ("VISIONSCOPE__QUEUES__CRASH__LEASE_S", LEASE_S.to_string()),
        ("VISIONSCOPE__QUEUES__CRASH__RETRY_DELAYS_S", "0".to_owned()),
        ("VISIONSCOPE__QUEUES__CRASH__MAX_ATTEMPTS", sent::MAX_ATTEMPTS.to_string()),
        ("VISIONSCOPE__QUEUES__BILLING__LEASE_S", LEASE_S.to_string()),
        ("VISIONSCOPE__QUEUES__BILLING__RETRY_DELAYS_S", "0".to_owned()),
        ("VISIONSCOPE__ROUTES__0__PATTERN", "crash.*".to_owned()),
        ("VISIONSCOPE__ROUTES__0__QUEUE", "crash".to_owned()),
    ]
    .into()
}

fn number_from(name: &str) -> Option<u32> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

struct World {
    postgres: Option<Postgres>,
    billing: Billing,
    client: Client,
    site: Arc<Site>,
    crew: Crew,
    sending: JoinHandle<AllSent>,
    bursts: JoinSet<AllSent>,
    jobs: usize,
    random: Random,
}

impl World {
    async fn create(postgres: Option<Postgres>) -> Self {
        let seed = seed();
        let billing = Billing::create_with(postgres.as_ref().map(Postgres::url), None, &settings()).await;
        let client = Client::new(&billing);
        let jobs = number_from("CRASH_JOBS").map_or(JOBS, |jobs| usize::try_from(jobs).unwrap());
        provision(&client, &workspaces(jobs)).await;
        let site = Site::new(vec![client.clone()]);
        let mut crew = Crew::new(&site, &["crash"], seed);
        for _ in 0..WORKERS {
            crew.hire(Manner::Lively, 0);
        }
        let sending = tokio::spawn(send_all(client.clone(), jobs));
        Self { postgres, billing, client, site, crew, sending, bursts: JoinSet::new(), jobs, random: Random(seed) }
    }

    /// Kills one after the other, at random instants.
    async fn kill_at_random(&mut self) {
        for kill in 0..number_from("CRASH_KILLS").unwrap_or(KILLS) {
            if kill % SILENT_EVERY == 0 {
                self.crew.hire(Manner::Silent, 0);
            }
            tokio::time::sleep(Duration::from_millis(200 + self.random.below(500))).await;
            if kill % 2 == 1 {
                // Most of these are being done while they are cut off.
                let workspace = workspaces(self.jobs)[0];
                self.bursts.spawn(send_burst(self.client.clone(), workspace, kill));
                tokio::time::sleep(Duration::from_millis(self.random.below(80))).await;
            }
            match (kill % 4, &mut self.postgres) {
                (1, _) | (3, None) => self.billing.kill_and_restart().await,
                (3, Some(postgres)) => postgres.kill_and_restart().await,
                _ => {
                    println!("kill a worker");
                    self.crew.kill(usize::try_from(self.random.below(100)).unwrap()).await;
                    self.crew.hire(Manner::Lively, 0);
                }
            }
        }
        self.billing.wait_until_ready().await;
    }

    /// How many jobs of the queues wait for a worker, and how many are with one.
    async fn load(&self) -> [u64; 2] {
        let queues = self.client.get("/v1/ops/queues").await;
        let of = |name: &str| {
            let own = queues["items"].as_array().unwrap().iter().filter(|queue| queue["queue"] != "default");
            own.map(|queue| queue[name].as_u64().unwrap()).sum()
        };
        [of("due"), of("running")]
    }

    async fn open_job(&self, workspace: Uuid) -> Option<Value> {
        let jobs = list(&self.client, &format!("/v1/workspaces/{workspace}/jobs?limit=200")).await;
        jobs.into_iter().find(|job| job.get("finished_at").is_none())
    }

    async fn wait_until_over(&self) {
        let begun = Instant::now();
        while self.load().await[0] > 0 {
            assert!(begun.elapsed() < BACKLOG_TIMEOUT, "the workers do not get to the end");
            tokio::time::sleep(PAUSE).await;
        }
        println!("every job has had a worker after another {:?}", begun.elapsed());
        let begun = Instant::now();
        for id in workspaces(self.jobs) {
            while let Some(open) = self.open_job(id).await {
                assert!(begun.elapsed() < OPEN_FOR, "after two leases it is open: {open}");
                tokio::time::sleep(PAUSE).await;
            }
        }
        assert_eq!(self.load().await, [0, 0]);
        println!("nothing is open after another {:?}", begun.elapsed());
    }

    fn reports(&self) -> HashMap<Attempt, Report> {
        self.site.book.reports.lock().unwrap().clone()
    }

    /// Tries each failed job again, now that every job is done.
    async fn replay(&self, audit: &Audit<'_>) -> usize {
        self.site.is_willing.store(true, Ordering::SeqCst);
        let of_state = |job: &&Value| job["state"] == "failed";
        let failed: Vec<_> = audit.jobs.values().filter(of_state).collect();
        let of_workers = failed.iter().filter(|job| job["queue"] == "crash").count();
        let all = json!({"source": "job", "name": "crash", "per_second": 100, "reason": "The model is back"});
        let replay = self.begin_replay(&all).await;
        assert_eq!((&replay["matched"], &replay["has_more"]), (&json!(of_workers), &json!(false)), "{replay}");
        let mut replays = vec![replay];
        for job in failed.iter().filter(|job| job["queue"] != "crash") {
            // The letter of a job has its id.
            let args = json!({"feature_code": "video.render", "credits": "1"});
            let one = json!({"dead_letter_ids": [job["job_id"]], "args": args, "reason": "It was too dear"});
            replays.push(self.begin_replay(&one).await);
        }
        for replay in replays {
            let (path, begun) = (format!("/v1/ops/replays/{}", text(&replay["replay_id"])), Instant::now());
            while let found = self.client.get(&path).await
                && found["resolved"] != found["matched"]
            {
                assert!(begun.elapsed() < OPEN_FOR, "not every letter is resolved: {found}");
                tokio::time::sleep(PAUSE).await;
            }
        }
        failed.len()
    }

    async fn begin_replay(&self, body: &Value) -> Value {
        let answer = self.client.try_post("/v1/ops/dead-letters/replay", None, body).await;
        let (status, replay) = answer.unwrap();
        assert_eq!(status.as_u16(), 202, "{replay}");
        replay
    }

    async fn verify(mut self) {
        let mut sent = (&mut self.sending).await.unwrap();
        sent.extend(std::mem::take(&mut self.bursts).join_all().await.into_iter().flatten());
        self.wait_until_over().await;
        let (reports, ids) = (self.reports(), workspaces(self.jobs));
        let audit = Audit::read(&self.client, &ids, &sent, &reports).await;
        assert_eq!(audit.jobs.len(), sent.len(), "each job is there once");
        let counts = audit.verify_jobs();
        let book = &self.site.book;
        let (repeated, leased) = (book.repeated.load(Ordering::SeqCst), book.leased.load(Ordering::SeqCst));
        println!("{} jobs: {counts:?}, {leased} leases, {repeated} requests repeated", sent.len());
        assert!(counts.lost > 0 && counts.failed > 0 && counts.commands > 0 && repeated > 0, "too little happened");
        for id in &ids {
            audit.verify_workspace(*id).await;
        }
        audit.verify_letters().await;

        let replayed = self.replay(&audit).await;
        self.wait_until_over().await;
        let reports = self.reports();
        let audit = Audit::read(&self.client, &ids, &sent, &reports).await;
        assert_eq!(audit.jobs.len(), sent.len() + replayed, "each letter has one new job");
        let again = audit.verify_jobs();
        println!("{replayed} letters were replayed: {again:?}");
        assert_eq!((again.failed, again.completed), (counts.failed, counts.completed + replayed));
        for id in &ids {
            audit.verify_workspace(*id).await;
        }
        let open = list(&self.client, "/v1/ops/dead-letters?source=job&limit=200").await;
        assert!(open.is_empty(), "every letter is resolved: {open:?}");
        self.crew.kill_all().await;
        self.billing.stop();
        assert!(self.billing.run(&["verify"]), "every invariant holds");
    }
}

async fn run(postgres: Option<Postgres>) {
    let begun = Instant::now();
    let mut world = World::create(postgres).await;
    world.kill_at_random().await;
    println!("the last kill was after {:?}", begun.elapsed());
    world.verify().await;
    println!("all of it took {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_ends_once_when_workers_server_and_postgres_are_killed() {
    run(Some(Postgres::create().await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_ends_once_when_workers_and_the_embedded_server_are_killed() {
    run(None).await;
}
