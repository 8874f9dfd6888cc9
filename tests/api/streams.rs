//! How far publishing is, over HTTP and on both databases.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Value, json};
use visionscope_billing::domain::ids::Partition;
use visionscope_billing::http::auth::{Scope, Tenancy};
use visionscope_billing::store::queries::{Publication, Recorded};

use crate::databases::Database;
use crate::harness::{NOW, OWN, TestServer, deduct_path, deduction, instant, provisioned};

/// The partition of the workspace, and how many partitions there are.
async fn stream(server: &TestServer) -> (Value, usize) {
    let answer = server.user_of(Tenancy::All, &[Scope::OpsRead]).get("/v1/ops/streams").await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text);
    let list = answer.json();
    assert_eq!(list["has_more"], false);
    let items = list["items"].as_array().unwrap();
    let own = items.iter().find(|stream| stream["partition"] == Partition::of(OWN).number()).unwrap();
    (own.clone(), items.len())
}

fn sequence(number: i64) -> Value {
    json!(format!("{number:019}"))
}

#[tokio::test]
async fn the_streams_show_what_is_published_and_what_waits() {
    for database in Database::ALL {
        let server = provisioned(database).await;
        server.user(OWN).post(&deduct_path(), &deduction()).await;
        server.clock.set(instant(NOW).plus(TimeDelta::seconds(90)));
        let own = Partition::of(OWN).number();
        let unpublished = json!({
            "partition": own, "generation": 1, "head": sequence(2), "published": sequence(0), "floor": sequence(1),
            "lag_events": 2, "lag_seconds": 90
        });
        assert_eq!(stream(&server).await, (unpublished, 16), "nobody publishes");

        let outbox = server.store();
        let leases = outbox.lease("one", Duration::from_mins(1)).await.unwrap();
        let lease = leases.into_iter().find(|lease| lease.partition == Partition::of(OWN)).unwrap();
        assert_eq!(outbox.record(&[Publication { lease: lease.clone(), seq_to: 1 }]).await.unwrap(), [Recorded::Done]);
        let (half, _) = stream(&server).await;
        assert_eq!((&half["published"], &half["lag_events"], &half["owner"]), (&sequence(1), &json!(1), &json!("one")));
        assert!(half["leased_until"].as_str().unwrap().ends_with('Z'), "{half}");

        assert_eq!(outbox.record(&[Publication { lease: lease.clone(), seq_to: 2 }]).await.unwrap().len(), 1);
        assert_eq!(outbox.mark_diverged(&lease, 2).await.unwrap(), Recorded::Done);
        let (whole, _) = stream(&server).await;
        assert_eq!((&whole["lag_events"], &whole["lag_seconds"]), (&json!(0), &json!(0)));
        assert_eq!(whole["diverged_sequence"], sequence(2));

        outbox.release("one").await.unwrap();
        outbox.start_generation(lease.partition).await.unwrap();
        let (rebuilt, _) = stream(&server).await;
        assert_eq!((&rebuilt["generation"], &rebuilt["published"]), (&json!(2), &sequence(0)));
        for absent in ["diverged_sequence", "owner", "leased_until"] {
            assert!(rebuilt.get(absent).is_none(), "{absent}: {rebuilt}");
        }
    }
}

#[tokio::test]
async fn streams_take_no_parameter() {
    let fake = crate::harness::fake();
    let user = fake.server.user_of(Tenancy::All, Scope::ALL);
    user.get("/v1/ops/streams?partition=1").await.is_problem(422, "unknown-field");
}
