//! Workers that can be killed at any instant, and a book of all that they have said.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use visionscope_billing::domain::credits::Credits;

use crate::Random;
use crate::load::{Client, PAUSE_BEFORE_RETRY, micro, text};

/// The shortest lease that there is, in seconds.
pub const LEASE_S: u64 = 15;
const HEARTBEAT: Duration = Duration::from_secs(LEASE_S / 3);
const SLOTS: usize = 8;
/// How many jobs one request ends.
const MAX_ENDS: usize = 32;
/// So long, a worker without a heartbeat keeps its jobs before it ends them.
const SILENCE: Duration = Duration::from_millis(LEASE_S * 1000 + 2000);
const SILENT_JOBS: usize = 3;
/// So long, another worker runs a job that a silent one had: that one ends it meanwhile, and must not.
const AGAIN: Duration = Duration::from_millis(2500);

/// What workers share.
pub struct Site {
    /// The servers. A worker that gets no answer asks the next one.
    pub servers: Vec<Client>,
    pub book: Book,
    /// From now on every job is done.
    pub is_willing: AtomicBool,
    /// From now on the jobs end that last until they are told.
    pub may_end: AtomicBool,
}

/// The end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// What it has cost, in micro-credits; all that is held if nothing is said of it.
    Completed(Option<i64>),
    Failed {
        is_retryable: bool,
    },
}

/// What was sent of an attempt, and how the server has answered.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub said: Said,
    pub answer: Option<StatusCode>,
}

/// The job, the number of the attempt, and the worker.
pub type Attempt = (String, i64, String);

/// All that workers have sent, also if they were killed before there was an answer.
#[derive(Default)]
pub struct Book {
    pub reports: Mutex<HashMap<Attempt, Report>>,
    /// Requests that were repeated.
    pub repeated: AtomicUsize,
    /// Jobs that workers have got.
    pub leased: AtomicUsize,
    /// Jobs that silent workers have got.
    silent: Mutex<HashSet<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Lively,
    /// It takes some jobs, and is not heard of until their leases are over. Then it ends them.
    Silent,
}

/// A job that its worker has done.
struct End {
    job: Value,
    said: Said,
}

struct Worker {
    site: Arc<Site>,
    /// Each worker has connections of its own.
    servers: Vec<Client>,
    /// The server that has answered last.
    server: AtomicUsize,
    id: String,
    manner: Manner,
    /// The leases of the jobs that it runs.
    running: Mutex<BTreeMap<String, String>>,
    random: Mutex<Random>,
}

/// The workers that live. One that is dropped is killed.
pub struct Crew {
    site: Arc<Site>,
    queues: Vec<&'static str>,
    workers: Vec<JoinHandle<()>>,
    silent: Vec<JoinHandle<()>>,
    seed: u64,
}

impl Site {
    pub fn new(servers: Vec<Client>) -> Arc<Self> {
        let (is_willing, may_end) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { servers, book: Book::default(), is_willing, may_end })
    }
}

impl Crew {
    pub fn new(site: &Arc<Site>, queues: &[&'static str], seed: u64) -> Self {
        Self { site: Arc::clone(site), queues: queues.to_vec(), workers: Vec::new(), silent: Vec::new(), seed }
    }

    /// Starts a worker that asks this server first.
    pub fn hire(&mut self, manner: Manner, server: usize) {
        self.seed += 1;
        let (site, queues, random) = (Arc::clone(&self.site), self.queues.clone(), Random(self.seed));
        let workers = if manner == Manner::Silent { &mut self.silent } else { &mut self.workers };
        workers.push(tokio::spawn(async move {
            Worker::register(site, &queues, manner, server, random).await.live().await;
        }));
    }

    /// Kills a worker that is heard of, with all that it does.
    pub async fn kill(&mut self, number: usize) {
        let worker = self.workers.remove(number % self.workers.len());
        end(worker).await;
    }

    pub async fn kill_all(self) {
        for worker in self.workers.into_iter().chain(self.silent) {
            end(worker).await;
        }
    }
}

/// Its connections are closed, as the kernel does it for a process.
async fn end(worker: JoinHandle<()>) {
    worker.abort();
    match worker.await {
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        _ => {}
    }
}

/// Sends a request until it is answered, by any of the servers.
async fn call(site: &Site, servers: &[Client], server: &AtomicUsize, path: &str, body: &Value) -> (StatusCode, Value) {
    loop {
        let current = server.load(Ordering::SeqCst) % servers.len();
        if let Some((status, answer)) = servers[current].try_post(path, None, body).await
            && !status.is_server_error()
            && status != StatusCode::TOO_MANY_REQUESTS
        {
            return (status, answer);
        }
        server.store(current + 1, Ordering::SeqCst);
        site.book.repeated.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(PAUSE_BEFORE_RETRY).await;
    }
}

impl Worker {
    async fn register(site: Arc<Site>, queues: &[&str], manner: Manner, server: usize, random: Random) -> Arc<Self> {
        let servers: Vec<_> = site.servers.iter().map(Client::with_own_connections).collect();
        let server = AtomicUsize::new(server);
        let body = json!({"name": "crash", "queues": queues, "slots": SLOTS});
        let (status, answer) = call(&site, &servers, &server, "/v1/workers", &body).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        let (running, random) = (Mutex::default(), Mutex::new(random));
        Arc::new(Self { site, servers, server, id: text(&answer["worker_id"]), manner, running, random })
    }

    async fn call(&self, what: &str, body: &Value) -> (StatusCode, Value) {
        let path = if what.starts_with('/') { what.to_owned() } else { format!("/v1/workers/{}/{what}", self.id) };
        call(&self.site, &self.servers, &self.server, &path, body).await
    }

    async fn live(self: Arc<Self>) {
        let (ends, ended) = mpsc::unbounded_channel();
        if self.manner == Manner::Silent {
            tokio::select! {
                () = self.take_some(&ends) => {}
                () = self.end_jobs(ended) => {}
            }
        } else {
            tokio::select! {
                () = self.take_jobs(&ends) => {}
                () = self.end_jobs(ended) => {}
                () = self.beat() => {}
            }
        }
    }

    async fn take_jobs(self: &Arc<Self>, ends: &mpsc::UnboundedSender<End>) {
        let mut runs = JoinSet::new();
        loop {
            while let Some(run) = runs.try_join_next() {
                run.unwrap();
            }
            if runs.len() == SLOTS {
                runs.join_next().await.unwrap().unwrap();
                continue;
            }
            for job in self.lease(SLOTS - runs.len()).await {
                let (worker, ends) = (Arc::clone(self), ends.clone());
                runs.spawn(async move { worker.run(job, &ends).await });
            }
        }
    }

    /// Takes some jobs, and then none any more.
    async fn take_some(&self, ends: &mpsc::UnboundedSender<End>) {
        let mut jobs = Vec::new();
        while jobs.is_empty() {
            jobs = self.lease(SILENT_JOBS).await;
        }
        self.site.book.silent.lock().unwrap().extend(jobs.iter().map(|job| text(&job["job_id"])));
        tokio::time::sleep(SILENCE).await;
        for job in jobs {
            let said = self.decide(&job);
            let _ = ends.send(End { job, said });
        }
        std::future::pending::<()>().await;
    }

    async fn lease(&self, most: usize) -> Vec<Value> {
        let (status, answer) = self.call("lease", &json!({"max": most, "wait_s": 1})).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let jobs = answer["jobs"].as_array().unwrap().clone();
        self.site.book.leased.fetch_add(jobs.len(), Ordering::SeqCst);
        let leases = jobs.iter().map(|job| (text(&job["job_id"]), text(&job["lease_id"])));
        self.running.lock().unwrap().extend(leases);
        jobs
    }

    async fn run(&self, job: Value, ends: &mpsc::UnboundedSender<End>) {
        let said = self.decide(&job);
        tokio::time::sleep(Duration::from_millis(job["args"]["takes_ms"].as_u64().unwrap_or_default())).await;
        if self.site.book.silent.lock().unwrap().contains(&text(&job["job_id"])) {
            tokio::time::sleep(AGAIN).await;
        }
        while job["args"]["until_told"] == true && !self.site.may_end.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = ends.send(End { job, said });
    }

    /// What this worker will say of the job.
    fn decide(&self, job: &Value) -> Said {
        let mut random = self.random.lock().unwrap();
        let held = job.get("held_credits").map(micro);
        let share = random.below(100);
        match (share, held) {
            (0..8, _) if !self.site.is_willing.load(Ordering::SeqCst) => Said::Failed { is_retryable: true },
            (8..12, _) if !self.site.is_willing.load(Ordering::SeqCst) => Said::Failed { is_retryable: false },
            (_, None) | (12..24, _) => Said::Completed(None),
            (24..30, _) => Said::Completed(Some(0)),
            // More than is held.
            (30..36, Some(held)) => Said::Completed(Some(held + 1 + of_u64(random.below(1_000_000)))),
            (_, Some(held)) => Said::Completed(Some(1 + of_u64(random.below(held.unsigned_abs())))),
        }
    }

    /// Ends jobs: one that is alone as one, and others together.
    async fn end_jobs(&self, mut ended: mpsc::UnboundedReceiver<End>) {
        let mut ends = Vec::new();
        while ended.recv_many(&mut ends, MAX_ENDS).await > 0 {
            let (completed, failed): (Vec<_>, Vec<_>) =
                ends.drain(..).partition(|end| matches!(end.said, Said::Completed(_)));
            self.end_as("complete", completed).await;
            self.end_as("fail", failed).await;
        }
    }

    async fn end_as(&self, how: &str, mut ends: Vec<End>) {
        // Those that it has lost are not ended.
        ends.retain(|end| self.running.lock().unwrap().contains_key(end.job["job_id"].as_str().unwrap()));
        for end in &ends {
            let report = Report { said: end.said, answer: None };
            self.site.book.reports.lock().unwrap().insert(self.attempt(&end.job), report);
        }
        match &ends[..] {
            [] => {}
            [end] => {
                let mut body = end.body();
                let job_id = body.as_object_mut().unwrap().remove("job_id").unwrap();
                let path = format!("/v1/jobs/{}/{how}", text(&job_id));
                let (status, _) = self.call(&path, &body).await;
                self.answered(end, status);
            }
            ends => {
                let body = json!({"jobs": ends.iter().map(End::body).collect::<Vec<_>>()});
                let (status, answer) = self.call(how, &body).await;
                assert_eq!(status, StatusCode::OK, "{answer}");
                for (end, result) in ends.iter().zip(answer["results"].as_array().unwrap()) {
                    assert_eq!(result["job_id"], end.job["job_id"]);
                    let status = u16::try_from(result["status"].as_u64().unwrap()).unwrap();
                    self.answered(end, StatusCode::from_u16(status).unwrap());
                }
            }
        }
    }

    fn answered(&self, end: &End, status: StatusCode) {
        assert!(matches!(status, StatusCode::OK | StatusCode::CONFLICT), "{status} for {:?}", end.said);
        self.site.book.reports.lock().unwrap().get_mut(&self.attempt(&end.job)).unwrap().answer = Some(status);
        self.running.lock().unwrap().remove(end.job["job_id"].as_str().unwrap());
    }

    fn attempt(&self, job: &Value) -> Attempt {
        (text(&job["job_id"]), job["attempt"].as_i64().unwrap(), self.id.clone())
    }

    async fn beat(&self) {
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            let running = self.running.lock().unwrap().clone();
            let leases = running.iter().map(|(job_id, lease_id)| json!({"job_id": job_id, "lease_id": lease_id}));
            let (status, answer) = self.call("heartbeat", &json!({"leases": leases.collect::<Vec<_>>()})).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            for lost in answer["lost"].as_array().unwrap() {
                let mut now = self.running.lock().unwrap();
                // It may have got it again meanwhile.
                if now.get(lost.as_str().unwrap()) == running.get(lost.as_str().unwrap()) {
                    now.remove(lost.as_str().unwrap());
                }
            }
        }
    }
}

impl End {
    fn body(&self) -> Value {
        let mut body = json!({"job_id": self.job["job_id"], "lease_id": self.job["lease_id"]});
        match self.said {
            Said::Completed(cost) => {
                body["result"] = json!({"attempt": self.job["attempt"]});
                if let Some(cost) = cost {
                    body["actual"] = json!({"credits": Credits::from_micro(cost).unwrap().to_string()});
                }
            }
            Said::Failed { is_retryable } => {
                body["error_class"] = json!("timeout");
                body["error"] = json!("the model did not answer");
                body["retryable"] = json!(is_retryable);
            }
        }
        body
    }
}

fn of_u64(number: u64) -> i64 {
    i64::try_from(number).unwrap()
}
