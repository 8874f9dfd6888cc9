//! What must be true of jobs when all are over, whatever was killed meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures::StreamExt as _;
use futures::stream::iter;
use reqwest::StatusCode;
use serde_json::Value;
use uuid::Uuid;

use super::sent::{AllSent, CREDITS, Work};
use super::worker::{Attempt, Report, Said};
use crate::figures::list;
use crate::load::{Client, micro, text};

const READERS: usize = 8;

/// The jobs of all workspaces when they are over, and what workers have said of them.
pub struct Audit<'a> {
    pub client: &'a Client,
    pub sent: &'a AllSent,
    pub reports: &'a HashMap<Attempt, Report>,
    /// By their ids.
    pub jobs: BTreeMap<String, Value>,
}

/// How many of each there were.
#[derive(Debug, Default)]
pub struct Counts {
    pub completed: usize,
    pub failed: usize,
    pub commands: usize,
    pub attempts: usize,
    pub lost: usize,
    /// Ends of attempts that had been lost: they changed nothing.
    pub refused_ends: usize,
    /// Ends that were sent and not answered.
    pub unanswered_ends: usize,
    /// In micro-credits.
    pub captured: i64,
}

impl<'a> Audit<'a> {
    /// Reads all jobs of these workspaces.
    pub async fn read(
        client: &'a Client,
        workspaces: &[Uuid],
        sent: &'a AllSent,
        reports: &'a HashMap<Attempt, Report>,
    ) -> Self {
        let mut paths = Vec::new();
        for id in workspaces {
            let base = format!("/v1/workspaces/{id}/jobs");
            let listed = list(client, &format!("{base}?limit=200")).await;
            paths.extend(listed.iter().map(|job| format!("{base}/{}", text(&job["job_id"]))));
        }
        let count = paths.len();
        let read = iter(paths).map(async |path| client.get(&path).await).buffer_unordered(READERS);
        let jobs: BTreeMap<_, _> = read.map(|job| (text(&job["job_id"]), job)).collect().await;
        assert_eq!(jobs.len(), count, "no job is listed twice");
        Self { client, sent, reports, jobs }
    }

    /// Checks each job by itself: it is over, once, and costs what was said.
    pub fn verify_jobs(&self) -> Counts {
        for (id, sent) in self.sent {
            let job = self.jobs.get(id).unwrap_or_else(|| panic!("{id} was sent and is not there"));
            assert_eq!(job["workspace_id"], sent.workspace.to_string());
        }
        let mut counts = Counts::default();
        for (id, job) in &self.jobs {
            let work = self.sent.get(id).map(|sent| sent.work);
            let is_command = text(&job["kind"]).starts_with("billing.");
            self.verify_attempts(job, work.map(Work::max_attempts), is_command, &mut counts);
            match (job["state"].as_str().unwrap(), work) {
                ("completed", Some(Work::Deduction { credits })) => {
                    assert_eq!(micro(&job["result"]["credits"]), credits, "{job}");
                    counts.commands += 1;
                }
                ("completed", _) => {
                    counts.captured += job.get("captured_credits").map_or(0, micro);
                    counts.completed += 1;
                }
                ("failed", work) => {
                    assert!(!matches!(work, Some(Work::Deduction { .. })), "nothing refuses this one: {job}");
                    assert!(job.get("captured_credits").is_none(), "a job that has failed costs nothing: {job}");
                    counts.failed += 1;
                }
                (_, _) => panic!("it is not over: {job}"),
            }
        }
        self.verify_answers(&mut counts);
        counts
    }

    fn verify_attempts(&self, job: &Value, max_attempts: Option<i64>, is_command: bool, counts: &mut Counts) {
        let attempts = job["attempts"].as_array().unwrap();
        let numbers: Vec<_> = attempts.iter().map(|attempt| attempt["attempt"].as_i64().unwrap()).collect();
        let all: Vec<_> = (1..=job["attempt"].as_i64().unwrap()).collect();
        assert_eq!(numbers, all, "each attempt is there once: {job}");
        let max_attempts = max_attempts.unwrap_or_else(|| job["max_attempts"].as_i64().unwrap());
        let (last, earlier) = attempts.split_last().unwrap();
        assert!(earlier.iter().all(|attempt| attempt["outcome"] != "completed"), "it was done once: {job}");
        assert_eq!(last["outcome"] == "completed", job["state"] == "completed", "{job}");
        counts.attempts += attempts.len();
        for attempt in attempts {
            let report = self.reports.get(&attempt_of(job, attempt));
            let is_last = attempt["attempt"] == last["attempt"];
            match (attempt["outcome"].as_str().unwrap(), report.map(|report| report.said)) {
                ("completed", Some(Said::Completed(cost))) => verify_cost(job, cost),
                ("failed", Some(Said::Failed { is_retryable })) => {
                    let is_over = !is_retryable || attempt["attempt"] == max_attempts;
                    assert_eq!(is_last, is_over, "{job}");
                }
                ("lost", _) => {
                    counts.lost += 1;
                    assert_eq!(is_last, attempt["attempt"] == max_attempts, "{job}");
                }
                (_, None) if is_command => {}
                (outcome, said) => panic!("the attempt is {outcome}, and its worker has said {said:?}: {job}"),
            }
        }
    }

    /// What a worker was told is so.
    fn verify_answers(&self, counts: &mut Counts) {
        for (key, report) in self.reports {
            let job = &self.jobs[&key.0];
            let attempts = job["attempts"].as_array().unwrap();
            let outcome = attempts.iter().find(|attempt| attempt_of(job, attempt) == *key);
            let outcome = outcome.map_or("none", |attempt| attempt["outcome"].as_str().unwrap());
            match (report.answer, report.said) {
                (Some(StatusCode::OK), Said::Completed(_)) => assert_eq!(outcome, "completed", "{key:?} {job}"),
                (Some(StatusCode::OK), Said::Failed { .. }) => assert_eq!(outcome, "failed", "{key:?} {job}"),
                (Some(_), said) => {
                    // A failure may have counted whose answer was lost, if another worker has had the job since.
                    let may_count = matches!(said, Said::Failed { .. }) && outcome == "failed";
                    assert!(outcome == "lost" || may_count, "{key:?} {outcome}: {job}");
                    counts.refused_ends += 1;
                }
                (None, _) => counts.unanswered_ends += 1,
            }
        }
    }

    /// Checks the credits of a workspace: each hold has ended once, and what was used is what the jobs have cost.
    pub async fn verify_workspace(&self, id: Uuid) {
        let own: Vec<_> = self.jobs.values().filter(|job| job["workspace_id"] == id.to_string()).collect();
        let metered: BTreeMap<_, _> =
            own.iter().filter_map(|job| Some((text(job.get("hold_id")?), *job))).collect::<BTreeMap<_, _>>();
        let holds = list(self.client, &format!("/v1/workspaces/{id}/holds?limit=200")).await;
        assert_eq!(holds.len(), metered.len(), "each metered job has one hold");
        for hold in &holds {
            let job = metered.get(&text(&hold["hold_id"])).unwrap_or_else(|| panic!("nobody's hold: {hold}"));
            let state = if job.get("captured_credits").is_some() { "captured" } else { "released" };
            assert_eq!(hold["state"], state, "{hold} {job}");
            assert_eq!(hold.get("captured_credits"), job.get("captured_credits"), "{hold} {job}");
        }
        let cost_of = |job: &&Value| {
            let command = job["result"].get("credits").filter(|_| text(&job["kind"]).starts_with("billing."));
            job.get("captured_credits").or(command).map(micro)
        };
        let charges: Vec<_> = own.iter().filter_map(cost_of).collect();
        let used: i64 = charges.iter().sum();
        let usage = list(self.client, &format!("/v1/workspaces/{id}/usage?limit=200")).await;
        assert_eq!(usage.len(), charges.len(), "each job is charged once");
        assert_eq!(usage.iter().map(|log| micro(&log["credits"])).sum::<i64>(), used);
        let credits = self.client.get(&format!("/v1/workspaces/{id}/credits")).await;
        assert_eq!(micro(&credits["used_this_month"]), used, "each job is charged what was reported");
        assert_eq!(credits["held_credits"], "0", "no hold is open");
        assert_eq!(micro(&credits["current_credits"]), CREDITS * 1_000_000 - used, "no credit has leaked");
        self.verify_events(id, &own).await;
    }

    /// Each metered job is told of twice: when it was sent, and how it has ended.
    async fn verify_events(&self, id: Uuid, own: &[&Value]) {
        let mut told: BTreeMap<(String, String), usize> = BTreeMap::new();
        for event in list(self.client, &format!("/v1/events?workspace_id={id}&limit=200")).await {
            let name = event["type"].as_str().unwrap();
            if name.starts_with("Job") {
                *told.entry((text(&event["data"]["job_id"]), name.to_owned())).or_default() += 1;
            }
        }
        let metered = own.iter().filter(|job| job.get("hold_id").is_some());
        let expected = metered.flat_map(|job| {
            let end = if job["state"] == "completed" { "JobCompleted" } else { "JobFailed" };
            ["JobSubmitted", end].map(|name| ((text(&job["job_id"]), name.to_owned()), 1))
        });
        assert_eq!(told, expected.collect());
    }

    /// Checks that each job that has failed for good has one open dead letter.
    pub async fn verify_letters(&self) {
        let letters = list(self.client, "/v1/ops/dead-letters?source=job&limit=200").await;
        let jobs: BTreeSet<_> = letters.iter().map(|letter| text(&letter["job_id"])).collect();
        assert_eq!(jobs.len(), letters.len(), "no job has two letters");
        let failed = self.jobs.iter().filter(|(_, job)| job["state"] == "failed").map(|(id, _)| id.clone());
        assert_eq!(jobs, failed.collect(), "each failed job has a letter");
    }
}

fn attempt_of(job: &Value, attempt: &Value) -> Attempt {
    (text(&job["job_id"]), attempt["attempt"].as_i64().unwrap(), text(&attempt["worker_id"]))
}

fn verify_cost(job: &Value, cost: Option<i64>) {
    let held = job.get("held_credits").map(micro);
    let expected = held.map(|held| cost.unwrap_or(held)).filter(|cost| *cost > 0);
    assert_eq!(job.get("captured_credits").map(micro), expected, "what was reported is charged: {job}");
    assert_eq!(job["result"]["attempt"], job["attempt"], "the result is that of this attempt: {job}");
}
