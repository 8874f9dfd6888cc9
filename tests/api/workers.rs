//! Workers over HTTP: they take jobs, say that they live, and end what they have, on both databases.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use visionscope_billing::domain::ids::JobId;
use visionscope_billing::http::auth::{Scope, Tenancy};
use visionscope_billing::http::openapi::openapi_document;

use crate::contract::assert_is_as_documented;
use crate::databases::Database;
use crate::harness::{Answer, OWN, TestServer, User, path, provisioned, send};
use crate::jobs::{balance, cancel, get, metered, plain, submitted, told};

/// A worker that has registered.
pub struct TestWorker<'s> {
    user: User<'s>,
    pub id: String,
}

impl<'s> TestWorker<'s> {
    pub async fn register(server: &'s TestServer, queues: &[&str]) -> Self {
        Self::named(server, "workers", queues).await
    }

    async fn named(server: &'s TestServer, subject: &str, queues: &[&str]) -> Self {
        let user = server.user_named(subject, Tenancy::All, &[Scope::Workers]);
        let answer = user.post("/v1/workers", &json!({"name": "gpu-1", "queues": queues, "slots": 4})).await;
        assert_eq!(answer.status.as_u16(), 201, "{}", answer.text);
        let id = answer.json()["worker_id"].as_str().unwrap().to_owned();
        Self { user, id }
    }

    pub async fn call(&self, what: &str, body: &Value) -> Answer {
        self.user.post(&format!("/v1/workers/{}/{what}", self.id), body).await
    }

    pub async fn lease(&self, body: &Value) -> Vec<Value> {
        let answer = self.call("lease", body).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.text);
        answer.json()["jobs"].as_array().unwrap().clone()
    }

    /// One of several jobs.
    pub async fn lease_one_of_many(&self) -> Value {
        self.lease(&json!({"max": 1, "wait_s": 5})).await.remove(0)
    }

    /// The only job.
    pub async fn lease_one(&self) -> Value {
        let mut jobs = self.lease(&json!({"max": 2, "wait_s": 5})).await;
        assert_eq!(jobs.len(), 1, "{jobs:?}");
        jobs.remove(0)
    }

    /// Ends one job: `complete`, `fail` or `release`.
    pub async fn end(&self, job: &Value, how: &str, rest: Value) -> Answer {
        let mut body = json!({"lease_id": job["lease_id"]});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        self.user.post(&format!("/v1/jobs/{}/{how}", job["job_id"].as_str().unwrap()), &body).await
    }
}

fn failure() -> Value {
    json!({"error_class": "timeout", "error": "the model did not answer"})
}

#[tokio::test]
async fn a_metered_job_is_run_and_charged_what_it_has_cost() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let worker = TestWorker::register(&server, &["video_processing"]).await;
        let job = submitted(&server, &metered("20")).await;
        assert_eq!(job["state"], "ready");
        let leased = worker.lease_one().await;
        for (field, expected) in [
            ("job_id", &job["job_id"]),
            ("args", &json!({"video": 17})),
            ("held_credits", &json!("20")),
            ("attempt", &json!(1)),
            ("timeout_s", &json!(7200)),
            ("workspace_id", &json!(OWN)),
        ] {
            assert_eq!(&leased[field], expected, "{leased}");
        }
        let beat = json!({"leases": [
            {"job_id": leased["job_id"], "lease_id": leased["lease_id"], "progress": {"frames": 400}}
        ]});
        let answer = worker.call("heartbeat", &beat).await.json();
        assert_eq!(answer, json!({"lost": [], "cancel": [], "drain": false, "heartbeat_s": 20}));
        let shown = get(&server, &job).await;
        assert_eq!((&shown["state"], &shown["lease"]["progress"]["frames"]), (&json!("running"), &json!(400)));

        let end = json!({"result": {"scenes": 12}, "actual": {"credits": "17.5", "metadata": {"gpu": "l4"}}});
        let done = worker.end(&leased, "complete", end.clone()).await;
        assert_eq!(done.json(), json!({"job_id": job["job_id"], "state": "completed"}), "{}", done.text);
        assert_eq!(worker.end(&leased, "complete", end).await.json(), done.json(), "sent again");
        assert_eq!(worker.end(&leased, "fail", failure()).await.json(), done.json(), "it was completed");
        let shown = get(&server, &job).await;
        assert_eq!((&shown["captured_credits"], &shown["result"]["scenes"]), (&json!("17.5"), &json!(12)));
        assert_eq!(shown["attempts"][0]["outcome"], "completed");
        assert_eq!(balance(&server).await, told("982.5", "0"));
        let events = server.user(OWN).get("/v1/events?limit=200").await.json();
        let types: Vec<_> =
            events["items"].as_array().unwrap().iter().filter_map(|event| event["type"].as_str()).collect();
        for name in ["JobSubmitted", "CreditsHeld", "CreditConsumed", "JobCompleted"] {
            assert!(types.iter().any(|one| one.contains(name)), "{name}: {types:?}");
        }
        let usage = server.user(OWN).get(&path(OWN, "/usage")).await.json();
        assert_eq!(usage["items"][0]["metadata"]["gpu"], "l4", "{usage}");
        assert_eq!(server.store().audit(10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_cost_beyond_the_hold_is_charged_as_the_job_says() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let worker = TestWorker::register(&server, &["video_processing"]).await;
        let mut left = 1000.0;
        for (overrun, cost, status, charged) in
            [("reject", "30", 409, 20.0), ("charge_available", "30", 200, 30.0), ("overdraft", "30", 200, 30.0)]
        {
            let mut job = metered("20");
            job["hold"]["overrun"] = json!(overrun);
            let job = submitted(&server, &job).await;
            let leased = worker.lease_one().await;
            let answer = worker.end(&leased, "complete", json!({"actual": {"credits": cost}})).await;
            assert_eq!(answer.status.as_u16(), status, "{overrun}: {}", answer.text);
            if status == 409 {
                let problem = answer.is_problem(409, "capture-exceeds-hold").json();
                assert_eq!((&problem["held_credits"], &problem["requested_credits"]), (&json!("20"), &json!("30")));
                // The worker still has it.
                assert_eq!(worker.end(&leased, "complete", json!({})).await.json()["state"], "completed");
            }
            left -= charged;
            assert_eq!(balance(&server).await, told(&left.to_string(), "0"), "{overrun}");
            assert_eq!(get(&server, &job).await["captured_credits"], charged.to_string());
        }
        // By quantity, at the price of then; free; and with what makes no sense.
        let job = json!({"kind": "video_processing.cut", "hold": {"feature_code": "render", "quantity": 10}});
        submitted(&server, &job).await;
        let leased = worker.lease_one().await;
        let both = json!({"actual": {"credits": 1, "quantity": 1}});
        worker.end(&leased, "complete", both).await.is_problem(422, "invalid-field");
        worker
            .end(&leased, "complete", json!({"actual": {"credits": -1}}))
            .await
            .is_problem(422, "amount-out-of-range");
        let answer = worker.end(&leased, "complete", json!({"actual": {"quantity": "4"}})).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.text);
        left -= 2.0;
        submitted(&server, &metered("20")).await;
        let leased = worker.lease_one().await;
        assert_eq!(
            worker.end(&leased, "complete", json!({"actual": {"credits": 0}})).await.json()["state"],
            "completed"
        );
        assert_eq!(balance(&server).await, told(&left.to_string(), "0"));
        submitted(&server, &plain("video_processing.look")).await;
        let leased = worker.lease_one().await;
        let answer = worker.end(&leased, "complete", json!({"actual": {"credits": 1}})).await;
        assert_eq!(answer.is_problem(422, "invalid-field").pointer(), "/actual");
        assert_eq!(server.store().audit(10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn several_jobs_are_ended_at_once_and_each_is_answered_on_its_own() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let (worker, other) = (
            TestWorker::register(&server, &["video_processing", "default"]).await,
            TestWorker::register(&server, &["default"]).await,
        );
        for job in [metered("20"), metered("20"), metered("20"), plain("video_processing.look")] {
            submitted(&server, &job).await;
        }
        let mut leased = Vec::new();
        while leased.len() < 4 {
            leased.extend(worker.lease(&json!({"max": 4, "wait_s": 5})).await);
        }
        leased.sort_by_key(|job| job["held_credits"].is_null());
        let of = |job: &Value, rest: Value| {
            let mut body = json!({"job_id": job["job_id"], "lease_id": job["lease_id"]});
            body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            body
        };
        let costs = json!({"actual": {"credits": 5}});
        let wrong = json!({"job_id": leased[2]["job_id"], "lease_id": leased[0]["lease_id"]});
        let jobs = json!({"jobs": [of(&leased[0], costs.clone()), wrong, of(&leased[3], costs.clone())]});
        let answer = worker.call("complete", &jobs).await;
        let results = answer.json()["results"].clone();
        let told: Vec<_> =
            (0..3).map(|n| (results[n]["status"].clone(), results[n]["problem"]["code"].clone())).collect();
        let expected =
            [(json!(200), Value::Null), (json!(409), json!("lease-lost")), (json!(422), json!("invalid-field"))];
        assert_eq!(told, expected, "{results}");
        assert_eq!((&results[0]["state"], &results[1]["job_id"]), (&json!("completed"), &leased[2]["job_id"]));
        let again = worker.call("complete", &json!({"jobs": [of(&leased[0], costs.clone())]})).await.json();
        assert_eq!(again["results"][0], results[0], "sent again");

        // Another worker has no part in it.
        let lied = other.call("complete", &json!({"jobs": [of(&leased[2], json!({}))]})).await.json();
        assert_eq!(lied["results"][0]["problem"]["code"], "lease-lost");
        let mut last = failure();
        last["retryable"] = json!(false);
        let failed = json!({"jobs": [of(&leased[2], failure()), of(&leased[1], last)]});
        let failed = worker.call("fail", &failed).await.json();
        assert_eq!(
            (&failed["results"][0]["state"], &failed["results"][1]["state"]),
            (&json!("waiting"), &json!("failed"))
        );
        let twice = json!({"jobs": [of(&leased[3], json!({})), of(&leased[3], json!({}))]});
        worker.call("complete", &twice).await.is_problem(422, "invalid-field");
        worker.call("complete", &json!({"jobs": []})).await.is_problem(422, "invalid-field");
        assert_eq!(balance(&server).await, self::told("995", "20"));
        let document = serde_json::to_value(openapi_document()).unwrap();
        let operation = &document["paths"]["/v1/workers/{worker_id}/complete"]["post"];
        assert_is_as_documented(&document, operation, &answer);
    }
}

#[tokio::test]
async fn a_worker_speaks_for_itself_only_and_is_told_what_to_stop() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let worker = TestWorker::register(&server, &["video_processing"]).await;
        let job = submitted(&server, &metered("20")).await;
        let leased = worker.lease_one().await;

        let liar = TestWorker { user: server.user_named("liar", Tenancy::All, Scope::ALL), id: worker.id.clone() };
        for (what, body) in [
            ("lease", json!({})),
            ("heartbeat", json!({"leases": []})),
            ("complete", json!({"jobs": [{"job_id": leased["job_id"], "lease_id": leased["lease_id"]}]})),
        ] {
            liar.call(what, &body).await.is_problem(404, "worker-not-found");
        }
        let unknown = TestWorker { user: worker.user.clone(), id: "x".into() };
        unknown.call("lease", &json!({})).await.is_problem(404, "worker-not-found");
        let nobody = json!({"job_id": leased["job_id"], "lease_id": OWN});
        worker.end(&nobody, "complete", json!({})).await.is_problem(409, "lease-lost");

        assert_eq!(cancel(&server, &job).await["state"], "running", "its worker is asked");
        let beat = json!({"leases": [
            {"job_id": leased["job_id"], "lease_id": leased["lease_id"]},
            {"job_id": OWN, "lease_id": OWN}
        ]});
        let told_now = worker.call("heartbeat", &beat).await.json();
        assert_eq!((&told_now["cancel"], &told_now["lost"]), (&json!([job["job_id"]]), &json!([OWN])));
        assert_eq!(worker.end(&leased, "fail", failure()).await.json()["state"], "canceled");
        assert_eq!(cancel(&server, &job).await["state"], "canceled", "again");
        assert_eq!(balance(&server).await, told("1000", "0"));

        // A job that is given back keeps its attempts.
        submitted(&server, &metered("20")).await;
        let leased = worker.lease_one().await;
        assert_eq!(worker.end(&leased, "release", json!({})).await.json()["state"], "ready");
        worker.end(&leased, "complete", json!({})).await.is_problem(409, "lease-lost");
        assert_eq!(worker.lease_one().await["attempt"], 1);

        // It need not wait for a job that is there.
        submitted(&server, &plain("video_processing.look")).await;
        assert_eq!(worker.lease(&json!({})).await.len(), 1);

        // With no job, it waits, and not for longer than it wants.
        let begun = Instant::now();
        assert_eq!(worker.lease(&json!({"max": 1, "wait_s": 1})).await.len(), 0);
        assert!((1.0..10.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
        let wanted = json!({"max": 1, "wait_s": 20});
        let waiting = worker.lease(&wanted);
        let begun = Instant::now();
        let (jobs, _) = tokio::join!(waiting, async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            submitted(&server, &plain("video_processing.look")).await
        });
        assert!(jobs.len() == 1 && begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_worker_that_has_closed_its_connection_gets_no_job() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let (gone, worker) = (
            TestWorker::register(&server, &["video_processing"]).await,
            TestWorker::register(&server, &["video_processing"]).await,
        );
        let wanted = json!({"max": 4, "wait_s": 20});
        let given_up = tokio::time::timeout(Duration::from_millis(500), gone.lease(&wanted)).await;
        assert!(given_up.is_err(), "there was no job");
        // The server hears of it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        submitted(&server, &plain("video_processing.look")).await;
        let leased = worker.lease_one().await;
        assert_eq!(leased["attempt"], 1, "nobody else has had it");
    }
}

#[tokio::test]
async fn what_a_worker_cannot_ask_for_is_refused_with_the_field() {
    let server = provisioned(Database::Sqlite).await;
    let worker = TestWorker::register(&server, &["default"]).await;
    let register = async |rest: Value| {
        let mut body = json!({"name": "gpu-1", "queues": ["default"], "slots": 4});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        worker.user.post("/v1/workers", &body).await
    };
    for (rest, pointer) in [
        (json!({"queues": []}), "/queues"),
        (json!({"queues": ["nowhere"]}), "/queues"),
        (json!({"slots": 0}), "/slots"),
        (json!({"slots": 257}), "/slots"),
        (json!({"name": ""}), "/name"),
        (json!({"labels": {"gpu": 1}}), "/labels/gpu"),
    ] {
        let answer = register(rest.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.pointer().as_str()), (422, pointer), "{rest}: {}", answer.text);
    }
    let job = json!({"job_id": OWN, "lease_id": OWN});
    let with = |name: &str, value: Value| {
        let mut job = job.clone();
        job[name] = value;
        job
    };
    for (what, body, pointer) in [
        ("lease", json!({"max": 33}), "/max"),
        ("lease", json!({"wait_s": 21}), "/wait_s"),
        ("lease", json!({"queues": ["nowhere"]}), "/queues"),
        ("heartbeat", json!({"leases": [with("progress", json!([1]))]}), "/leases/0/progress"),
        ("heartbeat", json!({"leases": [with("progress", json!({"x": "x".repeat(1024)}))]}), "/leases/0/progress"),
        ("complete", json!({"jobs": [with("result", json!(1))]}), "/jobs/0/result"),
        ("complete", json!({"jobs": [with("result", json!({"x": "x".repeat(16 * 1024)}))]}), "/jobs/0/result"),
        ("fail", json!({"jobs": [job]}), "/jobs/0/error_class"),
    ] {
        let answer = worker.call(what, &body).await;
        assert_eq!((answer.status.as_u16(), answer.pointer().as_str()), (422, pointer), "{what}: {}", answer.text);
    }
    let one = server.user_of(Tenancy::One(OWN), Scope::ALL);
    let request = one.request(reqwest::Method::POST, "/v1/workers").json(&json!({}));
    send(request).await.is_problem(403, "all-workspaces-required");
    // A long text is cut, and kept.
    submitted(&server, &plain("mail")).await;
    let leased = worker.lease_one().await;
    let long = json!({"error_class": "x".repeat(1000), "error": "y\u{0}z".repeat(3000), "retryable": false});
    let failed = worker.end(&leased, "fail", long).await;
    assert_eq!(failed.json()["state"], "failed", "{}", failed.text);
    let shown = get(&server, &leased).await;
    assert_eq!(shown["error"]["class"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn the_letter_of_a_failed_job_gets_a_new_job_with_other_arguments_or_is_discarded() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let worker = TestWorker::register(&server, &["video_processing"]).await;
        let operator = server.user_of(Tenancy::All, Scope::ALL);
        let letters = async |query: &str| {
            let page = operator.get(&format!("/v1/ops/dead-letters?source=job{query}")).await.json();
            page["items"].as_array().unwrap().clone()
        };
        let fail = async || {
            let leased = worker.lease_one().await;
            let mut last = failure();
            last["retryable"] = json!(false);
            assert_eq!(worker.end(&leased, "fail", last).await.json()["state"], "failed");
        };
        let first = submitted(&server, &metered("20")).await;
        fail().await;
        let [letter] = &letters("").await[..] else { panic!() };
        assert_eq!((&letter["job_id"], &letter["attempts"]), (&first["job_id"], &json!(1)));
        assert_eq!(balance(&server).await, told("1000", "0"));

        let id = &letter["dead_letter_id"];
        let replay = async |rest: Value| {
            let mut body = json!({"dead_letter_ids": [id], "reason": "The model is back"});
            body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            operator.post("/v1/ops/dead-letters/replay", &body).await
        };
        let trial = replay(json!({"dry_run": true})).await.json();
        assert_eq!((&trial["matched"], &trial["tried"]), (&json!(1), &json!(0)));
        replay(json!({"args": [1]})).await.is_problem(422, "invalid-field");
        let begun = replay(json!({})).await;
        assert_eq!(begun.status.as_u16(), 202, "{}", begun.text);
        replay(json!({})).await;
        fail().await;
        let [again] = &letters("").await[..] else { panic!() };
        assert_eq!((&again["dead_letter_id"], &again["attempts"]), (id, &json!(1)), "the same letter");
        assert_ne!(again["job_id"], first["job_id"]);

        let begun = replay(json!({"args": {"video": 18}})).await.json();
        let act = operator.get("/v1/ops/audit?limit=1").await.json()["items"][0].clone();
        assert_eq!(act["after"]["args"], json!({"video": 18}), "{act}");
        let leased = worker.lease_one().await;
        assert_eq!((&leased["args"], &leased["held_credits"]), (&json!({"video": 18}), &json!("20")));
        assert_eq!(balance(&server).await, told("1000", "20"));
        worker.end(&leased, "complete", json!({"actual": {"credits": 5}})).await;
        let progress = operator.get(&format!("/v1/ops/replays/{}", begun["replay_id"].as_str().unwrap())).await.json();
        assert_eq!((&progress["resolved"], &progress["waiting"]), (&json!(1), &json!(0)), "{progress}");
        assert_eq!(letters("&state=resolved").await[0]["dead_letter_id"], *id);
        assert_eq!(balance(&server).await, told("995", "0"));

        submitted(&server, &metered("20")).await;
        fail().await;
        let letter = letters("").await.remove(0);
        let path = format!("/v1/ops/dead-letters/{}/discard", letter["dead_letter_id"].as_str().unwrap());
        assert_eq!(operator.post(&path, &json!({"reason": "Not needed"})).await.json()["state"], "discarded");
        assert_eq!(server.store().audit(10).await.unwrap(), []);
    }
}

#[tokio::test]
async fn an_operator_who_sends_a_command_with_other_arguments_is_its_author_and_needs_its_scope() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let command = json!({"kind": "billing.deduct_credits", "args": {"feature_code": "render", "credits": "5000"}});
        let job = submitted(&server, &command).await;
        let everything = server.user_named("operator-9", Tenancy::All, Scope::ALL);
        let letter = loop {
            let page = everything.get("/v1/ops/dead-letters?source=job").await.json();
            if let Some(letter) = page["items"].as_array().unwrap().first() {
                break letter["dead_letter_id"].clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let replay = async |user: &User<'_>, args: Value| {
            let body = json!({"dead_letter_ids": [letter], "args": args, "reason": "A wrong amount"});
            user.post("/v1/ops/dead-letters/replay", &body).await
        };
        let fewer = json!({"feature_code": "render", "credits": "5"});
        let only_ops = server.user_of(Tenancy::All, &[Scope::OpsWrite]);
        replay(&only_ops, fewer.clone()).await.is_problem(403, "missing-scope");
        let unknown = replay(&everything, json!({"feature_code": "render", "credit": "5"})).await;
        unknown.is_problem(422, "unknown-field");
        assert_eq!(unknown.pointer(), "/args/credit");
        assert_eq!(replay(&everything, fewer).await.status.as_u16(), 202);
        let jobs = server.user(OWN).get(&path(OWN, "/jobs")).await.json();
        let again = jobs["items"].as_array().unwrap().iter().find(|again| again["job_id"] != job["job_id"]).unwrap();
        while get(&server, again).await["state"] != "completed" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let again = JobId(again["job_id"].as_str().unwrap().parse().unwrap());
        let stored = server.database().server_store.job(again, None).await.unwrap().unwrap();
        assert_eq!(stored.listed.job.actor, "operator-9");
        assert_eq!(balance(&server).await, told("995", "0"));
        assert_eq!(get(&server, &job).await["state"], "failed");
    }
}

#[tokio::test]
async fn a_filter_leaves_out_letters_whose_jobs_are_not_over_yet() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let worker = TestWorker::register(&server, &["video_processing"]).await;
        let mut jobs = Vec::new();
        for _ in 0..2 {
            jobs.push(submitted(&server, &plain("video_processing.look")).await);
            let leased = worker.lease_one().await;
            let mut last = failure();
            last["retryable"] = json!(false);
            worker.end(&leased, "fail", last).await;
        }
        // As if the hold of the first one were being released still.
        let bare = jobs[0]["job_id"].as_str().unwrap().replace('-', "");
        let delete = match database {
            Database::Sqlite => format!("delete from jobs_done where job_id = x'{bare}'"),
            Database::Postgres => format!("delete from jobs_done where job_id = '{bare}'"),
        };
        server.database().execute(&[&delete]).await;
        let operator = server.user_of(Tenancy::All, Scope::ALL);
        let replay = async |wanted: Value| {
            let mut body = json!({"reason": "A test"});
            body.as_object_mut().unwrap().extend(wanted.as_object().unwrap().clone());
            operator.post("/v1/ops/dead-letters/replay", &body).await
        };
        let unsettled = replay(json!({"dead_letter_ids": [jobs[0]["job_id"]]})).await;
        unsettled.is_problem(409, "dead-letter-changed");
        assert_eq!(replay(json!({"source": "job"})).await.json()["matched"], 1);
        assert_eq!(worker.lease_one().await["attempt"], 1);
        assert_eq!(replay(json!({"source": "job"})).await.json()["matched"], 0);
    }
}
