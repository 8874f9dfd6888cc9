//! What operators see and do of queues, jobs, workers and schedules, over HTTP and on both databases.

use serde_json::{Value, json};
use visionscope_billing::http::auth::{Scope, Tenancy};

use crate::databases::Database;
use crate::harness::{Answer, OWN, TestServer, provisioned, send};
use crate::jobs::{get as get_job, metered, plain, submitted};
use crate::workers::TestWorker;

async fn get(server: &TestServer, path: &str) -> Answer {
    server.user_of(Tenancy::All, Scope::ALL).get(&format!("/v1/ops{path}")).await
}

async fn post(server: &TestServer, path: &str) -> Answer {
    let body = json!({"reason": "A test"});
    server.user_of(Tenancy::All, Scope::ALL).post(&format!("/v1/ops{path}"), &body).await
}

async fn patch(server: &TestServer, queue: &str, body: Value) -> Answer {
    let user = server.user_of(Tenancy::All, Scope::ALL);
    send(user.request(reqwest::Method::PATCH, &format!("/v1/ops/queues/{queue}")).json(&body)).await
}

/// A queue as the list shows it.
async fn shown(server: &TestServer, name: &str) -> Value {
    let queues = get(server, "/queues").await.json();
    queues["items"].as_array().unwrap().iter().find(|queue| queue["queue"] == name).unwrap().clone()
}

/// The newest act of the audit.
async fn last_act(server: &TestServer) -> Value {
    get(server, "/audit").await.json()["items"][0].clone()
}

#[tokio::test]
async fn a_queue_is_paused_capped_and_scaled_by_what_there_is_to_do() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let worker = TestWorker::register(&server, &["video_processing"]).await;
        for _ in 0..3 {
            submitted(&server, &plain("video_processing.look")).await;
        }
        let leased = worker.lease_one_of_many().await;
        let queue = shown(&server, "video_processing").await;
        assert_eq!(
            (&queue["due"], &queue["running"], &queue["settings"]["is_paused"]),
            (&json!(2), &json!(1), &json!(false))
        );
        let scale = async |query: &str| get(&server, &format!("/queues/video_processing/scale{query}")).await;
        assert_eq!(scale("").await.json()["value"], 3);
        assert_eq!(scale("?slots_per_worker=2").await.json()["value"], 2);
        scale("?slots_per_worker=0").await.is_problem(422, "invalid-field");
        let next = get(&server, "/jobs?queue=video_processing").await.json();
        assert_eq!(next["items"].as_array().unwrap().len(), 2);
        let running = get(&server, "/jobs?queue=video_processing&state=running").await.json();
        assert_eq!(running["items"][0]["job_id"], leased["job_id"]);

        let paused =
            patch(&server, "video_processing", json!({"is_paused": true, "reason": "The model is replaced"})).await;
        assert_eq!(paused.status.as_u16(), 200, "{}", paused.text);
        assert_eq!(
            (&paused.json()["settings"]["is_paused"], &paused.json()["changed_by"]),
            (&json!(true), &json!("tester"))
        );
        assert_eq!(worker.lease(&json!({"max": 2, "wait_s": 1})).await.len(), 0, "nothing is taken");
        assert_eq!(scale("").await.json()["value"], 1, "what runs");
        assert_eq!(worker.end(&leased, "complete", json!({})).await.json()["state"], "completed", "what runs goes on");
        let act = last_act(&server).await;
        assert_eq!((&act["action"], &act["target"]), (&json!("queue.change"), &json!("video_processing")));
        assert_eq!((&act["before"]["is_paused"], &act["after"]["is_paused"]), (&json!(false), &json!(true)));

        let caps = json!({"is_paused": false, "max_running_per_workspace": 1, "reason": "Fairness"});
        assert_eq!(patch(&server, "video_processing", caps).await.json()["settings"]["max_running_per_workspace"], 1);
        assert_eq!(worker.lease(&json!({"max": 2, "wait_s": 5})).await.len(), 1, "one at a time");
        let none =
            patch(&server, "video_processing", json!({"max_running_per_workspace": null, "reason": "Enough"})).await;
        assert!(none.json()["settings"].get("max_running_per_workspace").is_none(), "{}", none.text);
        for (body, pointer) in [
            (json!({"weight": 0, "reason": "x"}), "/weight"),
            (json!({"retry_delays_s": [], "reason": "x"}), "/retry_delays_s"),
            (json!({"max_running": 0, "reason": "x"}), "/max_running"),
            (json!({"weight": 1}), "/reason"),
            (json!({"wait": 1, "reason": "x"}), "/wait"),
        ] {
            let answer = patch(&server, "video_processing", body.clone()).await;
            assert_eq!((answer.status.as_u16(), answer.pointer().as_str()), (422, pointer), "{body}: {}", answer.text);
        }
        patch(&server, "nowhere", json!({"reason": "x"})).await.is_problem(404, "queue-not-found");
    }
}

#[tokio::test]
async fn a_route_is_explained() {
    let server = provisioned(Database::Sqlite).await;
    for (kind, queue, pattern) in
        [("video_processing.cut", "video_processing", "video_processing.*"), ("mail", "default", "*")]
    {
        let routes = get(&server, &format!("/routes?kind={kind}")).await.json();
        assert_eq!(routes["queue"], queue);
        let first = routes["items"].as_array().unwrap().iter().find(|route| route["fits"] == true).unwrap().clone();
        assert_eq!((&first["pattern"], &first["queue"]), (&json!(pattern), &json!(queue)));
    }
    let all = get(&server, "/routes").await.json();
    assert_eq!((all["items"].as_array().unwrap().len(), all.get("queue")), (4, None));
}

#[tokio::test]
async fn a_job_of_any_workspace_is_canceled_with_a_reason() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let job = submitted(&server, &metered("20")).await;
        let path = format!("/jobs/{}", job["job_id"].as_str().unwrap());
        assert_eq!(get(&server, &path).await.json()["workspace_id"], json!(OWN));
        let canceled = post(&server, &format!("{path}/cancel")).await;
        assert_eq!(canceled.json()["state"], "canceled", "{}", canceled.text);
        assert_eq!(get_job(&server, &job).await["state"], "canceled");
        let act = last_act(&server).await;
        assert_eq!(
            (&act["action"], &act["target"], &act["reason"]),
            (&json!("job.cancel"), &job["job_id"], &json!("A test"))
        );
        // It is over: nothing was done, so nothing is told.
        assert_eq!(post(&server, &format!("{path}/cancel")).await.json()["state"], "canceled");
        assert_eq!(last_act(&server).await["audit_id"], act["audit_id"]);
        get(&server, &format!("/jobs/{OWN}")).await.is_problem(404, "job-not-found");
    }
}

#[tokio::test]
async fn a_worker_is_seen_drained_and_resumed() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let worker = TestWorker::register(&server, &["video_processing"]).await;
        submitted(&server, &plain("video_processing.look")).await;
        worker.lease_one().await;
        let workers = get(&server, "/workers").await.json();
        let found =
            workers["items"].as_array().unwrap().iter().find(|found| found["worker_id"] == *worker.id).unwrap().clone();
        assert_eq!(
            (&found["running"], &found["state"], &found["runner"]),
            (&json!(1), &json!("active"), &json!("worker"))
        );
        let own = workers["items"].as_array().unwrap().iter().filter(|found| found["runner"] == "server").count();
        assert_eq!(own, 1, "the server itself");

        let drained = post(&server, &format!("/workers/{}/drain", worker.id)).await.json();
        assert_eq!((&drained["state"], &drained["running"]), (&json!("draining"), &json!(1)));
        assert_eq!(worker.call("heartbeat", &json!({})).await.json()["drain"], true);
        submitted(&server, &plain("video_processing.look")).await;
        assert_eq!(worker.lease(&json!({"max": 1, "wait_s": 1})).await.len(), 0);
        assert_eq!(post(&server, &format!("/workers/{}/resume", worker.id)).await.json()["state"], "active");
        assert_eq!(worker.call("heartbeat", &json!({})).await.json()["drain"], false);
        worker.lease_one().await;
        post(&server, &format!("/workers/{OWN}/drain")).await.is_problem(404, "worker-not-found");
    }
}

#[tokio::test]
async fn a_schedule_is_paused_resumed_and_run_now() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        let shown = async |name: &str| {
            let all = get(&server, "/schedules").await.json();
            all["items"].as_array().unwrap().iter().find(|found| found["schedule"] == name).unwrap().clone()
        };
        let fired = async |name: &str| {
            for _ in 0..500 {
                let found = shown(name).await;
                if found["fired_at"].is_string() {
                    return found;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            panic!("{name} has not fired");
        };
        let first = fired("cleaning").await;
        assert_eq!((&first["interval_s"], &first["is_paused"]), (&json!(600), &json!(false)));
        let paused = post(&server, "/schedules/cleaning/pause").await.json();
        assert_eq!((&paused["is_paused"], &paused["changed_by"]), (&json!(true), &json!("tester")));
        let run = post(&server, "/schedules/cleaning/run").await.json();
        assert!(run["next_at"].as_str() < first["next_at"].as_str(), "{run}");
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        assert_eq!(shown("cleaning").await["job_id"], first["job_id"], "it is paused");
        assert_eq!(post(&server, "/schedules/cleaning/resume").await.json()["is_paused"], false);
        for n in 0.. {
            if shown("cleaning").await["job_id"] != first["job_id"] {
                break;
            }
            assert!(n < 500, "it has not fired again");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let act = last_act(&server).await;
        assert_eq!((&act["action"], &act["target"]), (&json!("schedule.resume"), &json!("cleaning")));
        post(&server, "/schedules/nothing/run").await.is_problem(404, "schedule-not-found");
    }
}
