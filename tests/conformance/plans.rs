//! What is stored at start: plans, whose versions never change, and the source of events.

use visionscope_billing::domain::cloud_event::EventSource;
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::snapshot::KeySet;
use visionscope_billing::store::StoreError;

use crate::database::TestDatabase;
use crate::fixtures::{at, load, plan};

async fn listed(db: &impl TestDatabase) -> Vec<(String, i32)> {
    db.store().plans().await.unwrap().iter().map(|plan| (plan.plan_code.to_string(), plan.version)).collect()
}

pub async fn a_plan_is_stored_once_and_again_without_effect(db: &impl TestDatabase) {
    db.store().put_plans(&[plan("pro", 1)], at(0)).await.unwrap();
    db.store().put_plans(&[plan("pro", 1)], at(0)).await.unwrap();
    let plans = db.store().plans().await.unwrap();
    assert_eq!(plans.len(), 1);
    assert_eq!(*plans[0], plan("pro", 1));
    let features = "select cast(count(*) as bigint) from plan_features";
    assert_eq!(db.integers(features).await, [[2]]);
}

pub async fn a_version_with_another_definition_is_a_conflict(db: &impl TestDatabase) {
    db.store().put_plans(&[plan("pro", 1)], at(0)).await.unwrap();
    let mut other = plan("pro", 1);
    other.allowance = Credits::whole(1);
    let refused = db.store().put_plans(&[plan("new", 1), other], at(0)).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    assert_eq!(listed(db).await, [("pro".to_owned(), 1)]);
    assert_eq!(*db.store().plans().await.unwrap()[0], plan("pro", 1));
}

pub async fn the_newest_version_of_every_plan_is_listed(db: &impl TestDatabase) {
    let plans = [plan("pro", 2), plan("pro", 10), plan("pro", 1), plan("basic", 3)];
    db.store().put_plans(&plans, at(0)).await.unwrap();
    assert_eq!(listed(db).await, [("basic".to_owned(), 3), ("pro".to_owned(), 10)]);
    db.store().put_plans(&[plan("pro", 11), plan("basic", 3)], at(1)).await.unwrap();
    assert_eq!(listed(db).await, [("basic".to_owned(), 3), ("pro".to_owned(), 11)]);
}

pub async fn a_plan_that_is_left_out_is_retired_until_it_comes_back(db: &impl TestDatabase) {
    let [pro, basic] = [plan("pro", 1), plan("basic", 3)];
    db.store().put_plans(&[pro.clone(), basic.clone()], at(0)).await.unwrap();
    db.store().put_plans(std::slice::from_ref(&pro), at(1)).await.unwrap();
    assert_eq!(listed(db).await, [("pro".to_owned(), 1)]);
    let keys = KeySet { plans: [pro.plan_code.clone(), basic.plan_code.clone()].into(), ..KeySet::default() };
    let offered = async || {
        let found = load(db.store(), &keys).await.plans;
        assert_eq!(*found["basic"].newest, basic, "its versions are still there");
        [found["pro"].is_offered, found["basic"].is_offered]
    };
    assert_eq!(offered().await, [true, false]);
    db.store().put_plans(&[pro.clone(), basic.clone()], at(2)).await.unwrap();
    assert_eq!(offered().await, [true, true]);
}

pub async fn an_older_version_is_kept_as_history(db: &impl TestDatabase) {
    db.store().put_plans(&[plan("pro", 5)], at(0)).await.unwrap();
    db.store().put_plans(&[plan("pro", 4)], at(0)).await.unwrap();
    assert_eq!(listed(db).await, [("pro".to_owned(), 5)]);
    let versions = "select cast(version as bigint) from plan_versions order by version";
    assert_eq!(db.integers(versions).await, [[4], [5]]);
}

pub async fn an_invalid_plan_is_refused(db: &impl TestDatabase) {
    let mut invalid = plan("pro", 1);
    invalid.period_months = 0;
    let refused = db.store().put_plans(&[plan("basic", 1), invalid], at(0)).await;
    assert!(matches!(refused, Err(StoreError::Corrupt(_))), "{refused:?}");
    assert!(listed(db).await.is_empty());
}

pub async fn the_source_of_events_is_the_one_that_was_stored_first(db: &impl TestDatabase) {
    let [first, other] = ["urn:first", "urn:other"].map(|text| EventSource::new(text).unwrap());
    for wanted in [&first, &other, &first] {
        assert_eq!(db.store().event_source(wanted).await.unwrap(), first);
    }
}
