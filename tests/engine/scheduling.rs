//! The scheduler: due work is done once, whatever the number of replicas.

use std::sync::Arc;

use visionscope_billing::clock::Clock;
use visionscope_billing::domain::commands::{
    CancelSubscription, Charge, Command, PlaceHold, ProcessSubscriptionChange,
};
use visionscope_billing::domain::event::EventType;
use visionscope_billing::domain::hold::HoldDuration;
use visionscope_billing::domain::ids::WorkspaceId;
use visionscope_billing::domain::subscription::{CreditPolicy, Effective, SubscriptionStatus};
use visionscope_billing::domain::text::{FeatureCode, PlanCode};
use visionscope_billing::engine::EngineConfig;
use visionscope_billing::scheduler::{Due, Scheduler};
use visionscope_billing::store::queries::EventQuery;
use visionscope_billing::store::{Reads, Store};

use crate::databases::Database;
use crate::world::{World, engine_over};

fn scheduler(world: &World) -> Scheduler {
    Scheduler {
        max_workspaces: 100,
        store: Arc::clone(&world.store) as Arc<dyn Store>,
        engine: world.engine.clone(),
        clock: Arc::new(world.clock.clone()),
    }
}

/// Books what is due of each kind once.
async fn tick(scheduler: &Scheduler) -> usize {
    let mut all = 0;
    for due in [Due::Boundaries, Due::Holds, Due::Expiries, Due::Warnings] {
        all += scheduler.book(due).await.unwrap();
    }
    all
}

async fn events(world: &World, workspace_id: WorkspaceId) -> Vec<EventType> {
    let query = EventQuery::OfWorkspace { workspace_id, after: 0, limit: 1000 };
    world.store.events(&query).await.unwrap().iter().filter_map(|event| event.event_type.known()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_the_next_period_when_one_is_over() {
    for database in Database::ALL {
        let world = World::on(database).await;
        world.deduct("spend", "700").await.unwrap();
        let scheduler = scheduler(&world);
        assert_eq!(tick(&scheduler).await, 0, "nothing is due yet");
        world.clock.set("2026-04-01T00:00:00Z".parse().unwrap());
        assert_eq!(tick(&scheduler).await, 1);
        assert_eq!(world.balance().await, "1000");
        assert_eq!(tick(&scheduler).await, 0, "and only once");
        let resets =
            events(&world, world.workspace_id).await.into_iter().filter(|event| *event == EventType::CreditReset);
        assert_eq!(resets.count(), 2, "February 28 and March 31");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn books_expired_grants_and_raises_an_event() {
    for database in Database::ALL {
        let world = World::on(database).await;
        world.purchase("pay-1", "50", Some("2026-02-01T00:00:00Z".parse().unwrap())).await;
        world.purchase("pay-2", "60", Some("2026-02-01T00:00:00Z".parse().unwrap())).await;
        world.clock.set("2026-02-01T00:00:00Z".parse().unwrap());
        assert_eq!(tick(&scheduler(&world)).await, 1);
        assert_eq!(world.balance().await, "1000");
        assert_eq!(events(&world, world.workspace_id).await.last(), Some(&EventType::CreditsExpired));
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn books_expired_holds_once() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let now = world.clock.now();
        let place = PlaceHold {
            feature_code: FeatureCode::new("render").unwrap(),
            charge: Charge::Credits(serde_json::from_value("5".into()).unwrap()),
            min_credits: None,
            duration: HoldDuration::new(60).unwrap(),
            user_id: None,
            explain: false,
            job: None,
        };
        for key in ["one", "other"] {
            world.schedule(world.workspace_id, key, Command::PlaceHold(place.clone())).await;
        }
        assert_eq!(tick(&scheduler(&world)).await, 0, "nothing is due yet");
        world.clock.set(now.plus(chrono::TimeDelta::seconds(61)));
        assert_eq!(tick(&scheduler(&world)).await, 1);
        assert_eq!(tick(&scheduler(&world)).await, 0, "and only once");
        let found = events(&world, world.workspace_id).await;
        assert_eq!(found[found.len() - 2..], [EventType::HoldReleased; 2]);
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_grant_that_expires_soon_is_reported_once() {
    for database in Database::ALL {
        let world = World::on(database).await;
        world.purchase("pay-1", "50", Some("2026-02-10T00:00:00Z".parse().unwrap())).await;
        world.purchase("pay-2", "60", Some("2026-02-12T00:00:00Z".parse().unwrap())).await;
        world.purchase("pay-3", "70", None).await;
        let warnings = async || {
            let found = events(&world, world.workspace_id).await;
            found.into_iter().filter(|event| *event == EventType::CreditsExpiring).count()
        };
        let days = [("2026-02-02T23:59:59Z", 0), ("2026-02-03T00:00:00Z", 1), ("2026-02-05T00:00:00Z", 2)];
        for (now, expected) in days {
            world.clock.set(now.parse().unwrap());
            for _ in 0..2 {
                tick(&scheduler(&world)).await;
                assert_eq!(warnings().await, expected, "{now}");
            }
        }
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_replicas_start_each_period_once() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let others: Vec<_> = (0..20).map(|_| WorkspaceId(world.clock.new_id())).collect();
        for workspace_id in &others {
            world.provision(*workspace_id).await;
        }
        let config =
            EngineConfig { lanes: 2, queue_capacity: 100, max_batch: 10, cache_bytes: 1 << 24, max_clock_ahead: None };
        let replica_store = world.database.replica().await;
        let replica = Scheduler {
            store: Arc::clone(&replica_store),
            engine: engine_over(Arc::clone(&replica_store), &config),
            ..scheduler(&world)
        };
        world.clock.set("2026-03-01T00:00:00Z".parse().unwrap());
        let first = scheduler(&world);
        let (one, other) = tokio::join!(tick(&first), tick(&replica));
        assert_eq!(one + other, 21, "each workspace once");
        for workspace_id in others {
            let resets =
                events(&world, workspace_id).await.into_iter().filter(|event| *event == EventType::CreditReset);
            assert_eq!(resets.count(), 1);
        }
        replica.engine.stop().await;
        replica_store.close().await;
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduled_changes_and_cancellations_take_effect_at_the_end_of_the_period() {
    for database in Database::ALL {
        let world = World::on(database).await;
        let leaving = WorkspaceId(world.clock.new_id());
        world.provision(leaving).await;
        world.schedule(world.workspace_id, "change", change_to("large")).await;
        world.schedule(leaving, "cancel", cancel()).await;
        world.clock.set("2026-02-28T00:00:00Z".parse().unwrap());
        assert_eq!(tick(&scheduler(&world)).await, 2);
        assert_eq!(world.balance().await, "5000", "the allowance of the new plan");
        let left = world.store.workspace(leaving).await.unwrap().unwrap();
        assert_eq!(left.subscription.status, SubscriptionStatus::Canceled);
        assert_eq!(left.credits.current_credits.to_string(), "0");
        world.clock.set("2027-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(tick(&scheduler(&world)).await, 1, "an ended subscription has no periods");
        world.audit_and_close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn due_work_beyond_one_tick_is_done_by_later_ticks() {
    for database in Database::ALL {
        let world = World::on(database).await;
        for _ in 0..30 {
            world.provision(WorkspaceId(world.clock.new_id())).await;
        }
        world.clock.set("2026-02-28T00:00:00Z".parse().unwrap());
        let small = Scheduler { max_workspaces: 7, ..scheduler(&world) };
        let mut done = 0;
        for _ in 0..10 {
            done += tick(&small).await;
        }
        assert_eq!(done, 31);
        world.audit_and_close().await;
    }
}

fn change_to(plan: &str) -> Command {
    Command::ProcessSubscriptionChange(ProcessSubscriptionChange {
        plan_code: PlanCode::new(plan).unwrap(),
        effective: Effective::PeriodEnd,
        credit_policy: CreditPolicy::None,
        expected_version: None,
    })
}

fn cancel() -> Command {
    Command::CancelSubscription(CancelSubscription {
        effective: Effective::PeriodEnd,
        reason: None,
        expected_version: None,
    })
}
