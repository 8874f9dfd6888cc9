//! Consumers: leases, cursors that move with their rows, dead letters, builds, and the figures.

use std::time::Duration;

use uuid::Uuid;
use visionscope_billing::domain::consumers::{
    Build, Consumer, ConsumerKeys, ConsumerRows, ConsumerState, Fault, PurchaseRevenue, RevenueDay, UsageDay,
    UsageHour, WorkspaceActivity,
};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::dead_letter::{DeadLetter, FailedEvent, LetterSource, LetterState, ParkedWorkspace};
use visionscope_billing::domain::grant::Currency;
use visionscope_billing::domain::ids::{EventId, GrantId, PARTITIONS, Partition, WorkspaceId};
use visionscope_billing::domain::operator_act::OperatorAct;
use visionscope_billing::domain::text::{Label, PlanCode};
use visionscope_billing::domain::time::{Day, Timestamp};
use visionscope_billing::store::StoreError;
use visionscope_billing::store::consumers::{Advance, Registered};
use visionscope_billing::store::figures::{UsageFigure, UsageFigures, UsageGroup};
use visionscope_billing::store::operations::{DeadLetterQuery, LetterChange, LetterFilter};

use crate::database::TestDatabase;
use crate::fixtures::{self, at, feature, workspace, world_of};

const LONG: Duration = Duration::from_mins(10);
const SHORT: Duration = Duration::from_millis(1);
/// Long enough for a short lease to expire.
const AFTER_SHORT: Duration = Duration::from_millis(60);
const FIRST: Build = Build { consumer: Consumer::Analytics, version: 1 };
const SECOND: Build = Build { consumer: Consumer::Analytics, version: 2 };

fn partition() -> Partition {
    Partition::of(workspace(0))
}

fn day(days: i64) -> Timestamp {
    Day::of(at(0)).plus(days).start()
}

fn advance(from: i64, to: i64, rows: ConsumerRows) -> Advance {
    fixtures::advance(FIRST, partition(), [from, to], rows)
}

fn usage(days: i64, code: &str, credits: i64) -> UsageDay {
    UsageDay {
        version: 1,
        workspace_id: workspace(0),
        day: day(days),
        feature_code: feature(code),
        partition: partition(),
        credits,
        refunded: 1,
        quantity: 2,
        deductions: 3,
        refused: 4,
    }
}

/// A row of each kind.
fn rows(credits: i64) -> ConsumerRows {
    let (version, partition, plan_code) = (1, partition(), PlanCode::new("pro").unwrap());
    ConsumerRows {
        activities: vec![activity(Some(day(0)))],
        revenues: vec![revenue(credits)],
        usage_days: vec![usage(0, "render", credits)],
        usage_hours: vec![UsageHour {
            version,
            partition,
            hour: day(0),
            plan_code: plan_code.clone(),
            feature_code: feature("render"),
            credits,
            deductions: 1,
            refused: 2,
        }],
        revenue_days: vec![RevenueDay {
            version,
            partition,
            day: day(0),
            plan_code,
            currency: "EUR".into(),
            purchases: 1,
            credits_sold: credits,
            paid_minor: 3,
            returned_minor: 4,
            recognised_minor: -5,
            active_workspaces: 6,
            new_workspaces: 7,
            canceled_workspaces: 8,
        }],
        ..ConsumerRows::default()
    }
}

fn activity(active_day: Option<Timestamp>) -> WorkspaceActivity {
    let (workspace_id, plan_code) = (workspace(0), PlanCode::new("pro").unwrap());
    WorkspaceActivity { version: 1, workspace_id, partition: partition(), plan_code, active_day, incomplete: false }
}

fn revenue(used: i64) -> PurchaseRevenue {
    PurchaseRevenue {
        version: 1,
        workspace_id: workspace(0),
        grant_id: GrantId(workspace(0).0),
        partition: partition(),
        currency: Currency::new("EUR").unwrap(),
        amount_minor: 100,
        credits: 1000,
        used,
        recognised_minor: -1,
    }
}

async fn loaded(db: &impl TestDatabase) -> ConsumerRows {
    let keys = ConsumerKeys {
        activities: [(1, workspace(0)), (1, workspace(1)), (2, workspace(0))].into(),
        revenues: [(1, workspace(0), GrantId(workspace(0).0)), (1, workspace(1), GrantId(workspace(0).0))].into(),
        ..ConsumerKeys::default()
    };
    db.consumption().consumer_rows(&keys).await.unwrap()
}

async fn cursor(db: &impl TestDatabase) -> (i64, Option<String>) {
    let cursors = db.consumption().consumer_cursors().await.unwrap();
    let found = cursors.into_iter().find(|cursor| (cursor.build, cursor.partition) == (FIRST, partition())).unwrap();
    (found.seq, found.waiting_for)
}

async fn registered(db: &impl TestDatabase) -> Registered {
    db.consumption().consumers().await.unwrap().into_iter().next().unwrap()
}

async fn sums(db: &impl TestDatabase) -> Vec<i64> {
    let sql = "select cast(coalesce((select sum(credits) from usage_days), 0) as bigint),
        cast(coalesce((select sum(credits) from usage_hours), 0) as bigint),
        cast(coalesce((select sum(paid_minor) from revenue_days), 0) as bigint),
        cast(coalesce((select sum(recognised_minor) from revenue_days), 0) as bigint),
        cast((select count(*) from dead_letters) as bigint), cast((select count(*) from parked_workspaces) as bigint)";
    db.integers(sql).await.remove(0)
}

async fn is_conflict(db: &impl TestDatabase, advances: &[Advance]) -> bool {
    matches!(db.consumption().advance_consumers(advances).await, Err(StoreError::Conflict(_)))
}

pub async fn a_fresh_database_has_a_running_consumer_at_the_beginning(db: &impl TestDatabase) {
    let all = db.consumption().consumers().await.unwrap();
    assert_eq!(all.iter().map(|found| found.consumer).collect::<Vec<_>>(), Consumer::ALL);
    for found in all {
        assert_eq!((found.version, found.building_version, found.state), (1, None, ConsumerState::Running));
        assert!(found.folds(1), "this server makes the figures of a fresh database");
    }
    let cursors = db.consumption().consumer_cursors().await.unwrap();
    assert_eq!(cursors.len(), Consumer::ALL.len() * usize::from(PARTITIONS));
    assert!(cursors.iter().all(|cursor| (cursor.build.version, cursor.seq, cursor.epoch) == (1, 0, 0)));
}

pub async fn consumer_leases_are_taken_kept_taken_over_and_released(db: &impl TestDatabase) {
    let lease = async |owner, ttl| db.consumption().lease_consumers(owner, ttl).await.unwrap().len();
    let all = usize::from(PARTITIONS);
    assert_eq!(lease("one", LONG).await, all);
    assert_eq!((lease("two", LONG).await, lease("one", SHORT).await), (0, all));
    tokio::time::sleep(AFTER_SHORT).await;
    assert_eq!((lease("two", LONG).await, lease("one", LONG).await), (all, 0));
    db.consumption().release_consumer_leases("one").await.unwrap();
    assert_eq!(lease("one", LONG).await, 0, "only the owner releases its leases");
    db.consumption().release_consumer_leases("two").await.unwrap();
    assert_eq!(lease("one", LONG).await, all);
}

pub async fn a_cursor_moves_with_its_rows(db: &impl TestDatabase) {
    db.consumption().advance_consumers(&[advance(0, 3, rows(10))]).await.unwrap();
    let found = loaded(db).await;
    assert_eq!((found.activities, found.revenues), (vec![activity(Some(day(0)))], vec![revenue(10)]));
    let mut second = rows(5);
    second.activities = vec![activity(None)];
    let waiting_for = Some("CreditConsumed 2".to_owned());
    let second = Advance { waiting_for: waiting_for.clone(), ..advance(3, 4, second) };
    db.consumption().advance_consumers(&[second]).await.unwrap();
    assert_eq!(cursor(db).await, (4, waiting_for));
    let found = loaded(db).await;
    assert_eq!((found.activities, found.revenues), (vec![activity(None)], vec![revenue(5)]), "they are replaced");
    assert_eq!(sums(db).await, [15, 15, 6, -10, 0, 0], "figures are added");
    db.consumption().advance_consumers(&[advance(4, 4, ConsumerRows::default())]).await.unwrap();
    assert_eq!(cursor(db).await, (4, None));
}

pub async fn a_cursor_that_is_elsewhere_is_a_conflict_and_nothing_is_written(db: &impl TestDatabase) {
    db.consumption().advance_consumers(&[advance(0, 3, rows(10))]).await.unwrap();
    let other = Partition::all().find(|other| *other != partition()).unwrap();
    let good = Advance { partition: other, rows: ConsumerRows::default(), ..advance(0, 9, rows(0)) };
    let before = sums(db).await;
    for wrong in [
        advance(0, 5, rows(10)),
        advance(4, 5, rows(10)),
        Advance { epoch: 1, ..advance(3, 5, rows(10)) },
        Advance { build: SECOND, ..advance(3, 5, rows(10)) },
    ] {
        assert!(is_conflict(db, std::slice::from_ref(&wrong)).await, "{wrong:?}");
        assert!(is_conflict(db, &[good.clone(), wrong]).await, "none of them moves, or all");
    }
    assert_eq!((sums(db).await, cursor(db).await), (before, (3, None)));
    db.consumption().advance_consumers(&[good, advance(3, 5, rows(1))]).await.unwrap();
    assert_eq!(cursor(db).await.0, 5);
}

pub async fn rows_that_the_database_refuses_are_corrupt_and_nothing_is_written(db: &impl TestDatabase) {
    db.consumption().advance_consumers(&[advance(0, 3, rows(i64::MAX))]).await.unwrap();
    for wrong in [rows(-1), rows(1)] {
        let refused = db.consumption().advance_consumers(&[advance(3, 4, wrong.clone())]).await;
        assert!(matches!(refused, Err(StoreError::Corrupt(_))), "{refused:?} for {wrong:?}");
    }
    assert_eq!((cursor(db).await.0, loaded(db).await.revenues), (3, vec![revenue(i64::MAX)]));
}

pub async fn dead_letters_and_parked_workspaces_are_written_with_the_cursor(db: &impl TestDatabase) {
    world_of(db.store(), 1).await;
    let event = db.store().read(partition(), 0, 1).await.unwrap().remove(0);
    let fault = Fault { class: Fault::REFUSED, text: "for a test".into() };
    let letter = DeadLetter::of_event(FIRST, &event, &fault, at(2));
    let with_letter = |from| Advance {
        letters: vec![letter.clone()],
        parked: ParkedWorkspace::behind(&letter).into_iter().collect(),
        ..advance(from, 1, ConsumerRows::default())
    };
    assert!(is_conflict(db, &[with_letter(7)]).await);
    assert_eq!(sums(db).await[4..], [0, 0]);
    db.consumption().advance_consumers(&[with_letter(0)]).await.unwrap();
    let parked = db.consumption().parked_workspaces().await.unwrap();
    assert_eq!(parked.len(), 1);
    let found = parked[0];
    assert_eq!((found.workspace_id, found.workspace_seq, found.since), (workspace(0), 1, at(2)));
    assert_eq!((found.dead_letter_id, found.partition, found.version), (letter.dead_letter_id, partition(), 1));
    assert_eq!(sums(db).await[4..], [1, 1]);
    let stored = db.store().as_of(Consumer::Analytics, workspace(0)).await.unwrap();
    assert!(stored.is_parked);
    assert!(!db.store().as_of(Consumer::Analytics, workspace(1)).await.unwrap().is_parked);
}

/// Operators let a letter be tried, and the consumer writes what came of it.
pub async fn a_letter_is_changed_only_while_it_is_open(db: &impl TestDatabase) {
    world_of(db.store(), 1).await;
    let event = db.store().read(partition(), 0, 1).await.unwrap().remove(0);
    let letter =
        DeadLetter::of_event(FIRST, &event, &Fault { class: Fault::REFUSED, text: "for a test".into() }, at(2));
    let (letters, behind) = (vec![letter.clone()], ParkedWorkspace::behind(&letter).unwrap());
    let write = Advance { letters, parked: vec![behind], ..advance(0, 1, ConsumerRows::default()) };
    db.consumption().advance_consumers(&[write]).await.unwrap();
    assert_eq!(
        db.operations().dead_letters_by_id(&[letter.dead_letter_id]).await.unwrap(),
        std::slice::from_ref(&letter)
    );
    let (fact, rows) = db.operations().event_trial(letter.event().unwrap()).await.unwrap().unwrap();
    assert_eq!((fact.event, rows), (event.clone(), ConsumerRows::default()));
    let gone = FailedEvent { event_id: EventId(Uuid::nil()), ..*letter.event().unwrap() };
    assert!(db.operations().event_trial(&gone).await.unwrap().is_none());

    let act = operator_act(3);
    let replaying = DeadLetter { state: LetterState::Replaying, replay_id: Some(act.audit_id), ..letter.clone() };
    let change = LetterChange { letter: replaying.clone(), replay_at: at(3), job: None };
    db.operations().change_letters(std::slice::from_ref(&change), &act).await.unwrap();
    let again = db.operations().change_letters(&[change], &operator_act(4)).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    assert_eq!(db.operations().operator_act(act.audit_id).await.unwrap(), Some(act.clone()));
    assert_eq!(db.operations().operator_act(operator_act(4).audit_id).await.unwrap(), None, "nothing was written");
    assert_eq!(db.consumption().dead_letter(letter.dead_letter_id).await.unwrap(), Some(replaying.clone()));
    assert_eq!(db.consumption().parked_workspaces().await.unwrap()[0].replay_at, Some(at(3)));
    assert_eq!(db.operations().replay_progress(act.audit_id).await.unwrap(), [(LetterState::Replaying, 1)]);
    let left_out = db.consumption().events_left_out(&behind, 10).await.unwrap();
    assert_eq!(left_out[0], event);

    // The cursor stays, and its epoch is raised: who writes the same again is too late.
    let discarded = replaying.closed(LetterState::Discarded, at(5));
    let over = Advance {
        epoch_to: 1,
        letters: vec![discarded.clone()],
        freed: vec![workspace(0)],
        ..advance(1, 1, ConsumerRows::default())
    };
    db.consumption().advance_consumers(std::slice::from_ref(&over)).await.unwrap();
    assert!(is_conflict(db, &[over]).await);
    assert_eq!(db.consumption().parked_workspaces().await.unwrap(), []);
    assert_eq!(db.consumption().discarded_events().await.unwrap(), [(Consumer::Analytics, event.event_id)].into());
    let as_of = db.store().as_of(Consumer::Analytics, workspace(0)).await.unwrap();
    assert_eq!((as_of.is_parked, as_of.has_discarded), (false, true));
    assert!(!db.store().as_of(Consumer::Analytics, workspace(1)).await.unwrap().has_discarded);

    let found = async |filter: LetterFilter| {
        let query = DeadLetterQuery { state: LetterState::Discarded, filter, start_at: None, limit: 10 };
        db.operations().dead_letters(&query).await.unwrap().rows
    };
    let all = LetterFilter::default;
    let fingerprint = Some(letter.fingerprint.clone());
    for filter in [
        all(),
        LetterFilter { source: Some(LetterSource::Consumer), ..all() },
        LetterFilter { name: Some("analytics".into()), ..all() },
        LetterFilter { fingerprint, ..all() },
        LetterFilter { workspace_id: Some(workspace(0)), ..all() },
    ] {
        assert_eq!(found(filter.clone()).await, std::slice::from_ref(&discarded), "{filter:?}");
    }
    for filter in [
        LetterFilter { source: Some(LetterSource::Job), ..all() },
        LetterFilter { name: Some("billing".into()), ..all() },
        LetterFilter { fingerprint: Some("0".into()), ..all() },
        LetterFilter { workspace_id: Some(workspace(1)), ..all() },
    ] {
        assert_eq!(found(filter.clone()).await, [], "{filter:?}");
    }
}

fn operator_act(n: u128) -> OperatorAct {
    OperatorAct {
        audit_id: Uuid::from_u128(n),
        at: at(3),
        actor: "operator".into(),
        action: "dead_letters.replay".into(),
        target: "all".into(),
        reason: Label::new("A test").unwrap(),
        before: None,
        after: Some("{}".into()),
    }
}

pub async fn a_build_is_switched_to_only_if_it_is_being_built(db: &impl TestDatabase) {
    db.consumption().switch_consumer(SECOND).await.unwrap();
    assert_eq!(registered(db).await.version, 1);
    db.execute("update consumers set building_version = 2, building_fold_version = 1").await.unwrap();
    assert!(registered(db).await.folds(2) && registered(db).await.folds(1));
    db.consumption().switch_consumer(Build { version: 3, ..SECOND }).await.unwrap();
    assert_eq!(registered(db).await.building_version, Some(2));
    db.consumption().switch_consumer(SECOND).await.unwrap();
    let found = registered(db).await;
    assert_eq!((found.version, found.fold_version, found.building_version), (2, 1, None));
    assert!(found.folds(2) && !found.folds(1));
}

pub async fn only_a_running_consumer_is_tripped(db: &impl TestDatabase) {
    db.execute("update consumers set state = 'paused', reason = 'a person'").await.unwrap();
    db.consumption().trip_consumer(Consumer::Analytics, "too many", at(5)).await.unwrap();
    let found = registered(db).await;
    assert_eq!((found.state, found.reason.as_deref()), (ConsumerState::Paused, Some("a person")));
    db.execute("update consumers set state = 'running'").await.unwrap();
    db.consumption().trip_consumer(Consumer::Analytics, "too many", at(5)).await.unwrap();
    let found = registered(db).await;
    assert_eq!(
        (found.state, found.reason.as_deref(), found.changed_at),
        (ConsumerState::Tripped, Some("too many"), at(5))
    );
    assert_eq!(found.changed_by.as_deref(), Some("server"));
}

pub async fn as_of_is_the_cursor_and_the_first_event_behind_it(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    world.deduct(workspace(0), Credits::whole(1), at(7)).store(db.store()).await;
    let as_of = async || db.store().as_of(Consumer::Analytics, workspace(0)).await.unwrap();
    let found = as_of().await;
    assert_eq!((found.version, found.seq, found.waiting_since), (1, 0, Some(at(0))));
    for (from, to, since) in [(0, 1, Some(at(7))), (1, 2, None)] {
        db.consumption().advance_consumers(&[advance(from, to, ConsumerRows::default())]).await.unwrap();
        let found = as_of().await;
        assert_eq!((found.seq, found.waiting_since, found.is_parked), (to, since, false));
    }
    let seq = async |workspace_seq| db.store().event_seq(workspace(0), workspace_seq).await.unwrap();
    assert_eq!((seq(1).await, seq(2).await, seq(3).await), (Some(1), Some(2), None));
}

async fn figures(db: &impl TestDatabase, id: WorkspaceId, group: UsageGroup, limit: u32) -> Vec<UsageFigure> {
    let mut query = UsageFigures { workspace_id: id, from: day(0), to: day(3), group, start_at: None, limit };
    let mut all = Vec::new();
    loop {
        let page = db.store().usage_figures(1, &query).await.unwrap();
        assert!(page.rows.len() <= usize::try_from(limit).unwrap());
        let Some(last) = page.rows.last().filter(|_| page.has_more) else {
            all.extend(page.rows);
            return all;
        };
        // The next page begins after the last row.
        let next = match (last.day, &last.feature_code) {
            (Some(at), Some(code)) => (at, feature(&format!("{code}a"))),
            (Some(at), None) => (Day::of(at).plus(1).start(), feature("render")),
            (None, Some(code)) => (day(0), feature(&format!("{code}a"))),
            (None, None) => panic!("a total is one row"),
        };
        query.start_at = Some(next);
        all.extend(page.rows);
    }
}

pub async fn usage_is_summed_up_in_each_grouping_and_page_by_page(db: &impl TestDatabase) {
    let mut written = ConsumerRows::default();
    for (days, code, credits) in
        [(0, "render", 1), (0, "upscale", 2), (1, "render", 4), (2, "upscale", 8), (3, "render", 16)]
    {
        written.usage_days.push(usage(days, code, credits));
    }
    written.usage_days.push(UsageDay { version: 2, ..usage(0, "render", 32) });
    written.usage_days.push(UsageDay { workspace_id: workspace(1), ..usage(0, "render", 64) });
    db.consumption().advance_consumers(&[advance(0, 1, written)]).await.unwrap();
    for limit in [1, 2, 100] {
        let found = async |group| {
            let rows = figures(db, workspace(0), group, limit).await;
            rows.into_iter()
                .map(|row| (row.day, row.feature_code.map(|code| code.to_string()), row.credits))
                .collect::<Vec<_>>()
        };
        let (render, upscale) = (|| Some("render".to_owned()), || Some("upscale".to_owned()));
        let on = |days| Some(day(days));
        let each = [(on(0), render(), 1), (on(0), upscale(), 2), (on(1), render(), 4), (on(2), upscale(), 8)];
        assert_eq!(found(UsageGroup::DayAndFeature).await, each);
        assert_eq!(found(UsageGroup::Day).await, [(on(0), None, 3), (on(1), None, 4), (on(2), None, 8)]);
        assert_eq!(found(UsageGroup::Feature).await, [(None, render(), 5), (None, upscale(), 10)]);
        assert_eq!(found(UsageGroup::Nothing).await, [(None, None, 15)]);
    }
    let total = figures(db, workspace(0), UsageGroup::Nothing, 1).await.remove(0);
    assert_eq!((total.refunded, total.quantity, total.deductions, total.refused), (4, 8, 12, 16));
    assert_eq!(figures(db, workspace(2), UsageGroup::DayAndFeature, 1).await, []);
    assert_eq!(figures(db, workspace(2), UsageGroup::Nothing, 1).await[0].credits, 0);
}
