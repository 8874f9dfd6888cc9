//! Cleaning: what nobody needs any more is deleted in steps, and nothing else.

use uuid::Uuid;
use visionscope_billing::domain::consumers::{
    Build, Consumer, ConsumerRows, Fault, Notification, NotificationData, StatementClosedData, UsageHour,
};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::dead_letter::{DeadLetter, LetterState, ParkedWorkspace};
use visionscope_billing::domain::ids::{EventId, NotificationId, Partition};
use visionscope_billing::domain::text::PlanCode;
use visionscope_billing::domain::time::{Day, Timestamp};
use visionscope_billing::store::cleaning::Leftover;
use visionscope_billing::store::consumers::Advance;

use crate::database::TestDatabase;
use crate::fixtures::{advance, at, feature, workspace, world_of};

fn day(days: i64) -> Timestamp {
    Day::of(at(0)).plus(days).start()
}

fn hour(days: i64) -> UsageHour {
    UsageHour {
        version: 1,
        partition: Partition::of(workspace(0)),
        hour: day(days),
        plan_code: PlanCode::new("pro").unwrap(),
        feature_code: feature("render"),
        credits: 1,
        deductions: 1,
        refused: 0,
    }
}

fn notification(days: i64) -> Notification {
    let number = u128::try_from(days + 100).unwrap();
    let (period_start, period_end, closing_credits) = (day(days), day(days + 1), Credits::ZERO);
    Notification {
        version: 1,
        workspace_id: workspace(0),
        data: NotificationData::StatementClosed(StatementClosedData { period_start, period_end, closing_credits }),
        subject: "statement".into(),
        period_start,
        partition: Partition::of(workspace(0)),
        notification_id: NotificationId(Uuid::from_u128(number)),
        event_id: EventId(Uuid::from_u128(number)),
        workspace_seq: days + 100,
        created_at: day(days),
    }
}

async fn write(db: &impl TestDatabase, consumer: Consumer, rows: ConsumerRows, letters: Vec<DeadLetter>) {
    let open = letters.iter().filter(|letter| letter.state == LetterState::Open);
    let parked = open.filter_map(ParkedWorkspace::behind).collect();
    let build = Build { consumer, version: 1 };
    let advance = Advance { parked, letters, ..advance(build, Partition::of(workspace(0)), [0, 1], rows) };
    db.consumption().advance_consumers(&[advance]).await.unwrap();
}

/// Deletes two rows at a time. Returns how many each step has deleted.
async fn clean(db: &impl TestDatabase, leftover: Leftover) -> Vec<u64> {
    let mut steps = Vec::new();
    loop {
        match db.cleaning().clean(leftover, 2).await.unwrap() {
            0 => return steps,
            deleted => steps.push(deleted),
        }
    }
}

async fn count(db: &impl TestDatabase, table: &str) -> i64 {
    db.integers(&format!("select cast(count(*) as bigint) from {table}")).await[0][0]
}

pub async fn usage_by_the_hour_and_notifications_are_deleted_when_they_are_old(db: &impl TestDatabase) {
    let hours = ConsumerRows { usage_hours: (-3..2).map(hour).collect(), ..ConsumerRows::default() };
    write(db, Consumer::Analytics, hours, Vec::new()).await;
    let told = ConsumerRows { notifications: (-3..2).map(notification).collect(), ..ConsumerRows::default() };
    write(db, Consumer::Notifications, told, Vec::new()).await;
    assert_eq!(clean(db, Leftover::UsageHours(day(-3))).await, [0; 0]);
    assert_eq!(clean(db, Leftover::UsageHours(day(0))).await, [2, 1]);
    assert_eq!((count(db, "usage_hours").await, count(db, "notifications").await), (2, 5));
    assert_eq!(clean(db, Leftover::Notifications(day(0))).await, [2, 1]);
    assert_eq!(count(db, "notifications").await, 2);
    assert_eq!(clean(db, Leftover::OldBuilds).await, [0; 0], "the build is in use");
}

pub async fn dead_letters_are_deleted_some_time_after_they_were_resolved(db: &impl TestDatabase) {
    world_of(db.store(), 1).await;
    let event = db.store().read(Partition::of(workspace(0)), 0, 1).await.unwrap().remove(0);
    let fault = Fault { class: Fault::REFUSED, text: "for a test".into() };
    let build = Build { consumer: Consumer::Analytics, version: 1 };
    let letter = |number: u128, state, failed: i64, closed: Option<i64>| DeadLetter {
        dead_letter_id: Uuid::from_u128(number),
        state,
        resolved_at: closed.map(day),
        ..DeadLetter::of_event(build, &event, &fault, day(failed))
    };
    let letters = vec![
        letter(1, LetterState::Resolved, -9, Some(-8)),
        letter(2, LetterState::Resolved, -9, Some(-1)),
        letter(3, LetterState::Resolved, -9, Some(0)),
        letter(4, LetterState::Discarded, -9, Some(-8)),
        letter(5, LetterState::Open, -9, None),
    ];
    write(db, Consumer::Analytics, ConsumerRows::default(), letters).await;
    assert_eq!(clean(db, Leftover::ResolvedLetters(day(0))).await, [2]);
    let left = db.operations().dead_letters_by_id(&[1, 2, 3, 4, 5].map(Uuid::from_u128)).await.unwrap();
    let mut left: Vec<_> = left.into_iter().map(|letter| letter.dead_letter_id.as_u128()).collect();
    left.sort_unstable();
    assert_eq!(left, [3, 4, 5]);
    // A later event of the workspace is being taken: it waits behind a letter that is resolved.
    db.tamper("update dead_letters set state = 'resolved', resolved_at = last_failed_at where state = 'open'").await;
    assert_eq!(clean(db, Leftover::ResolvedLetters(day(0))).await, [0; 0]);

    // A newer build is in use: nothing of the old one is needed.
    db.tamper("update consumers set version = 2").await;
    let consumers = u64::try_from(Consumer::ALL.len()).unwrap();
    let deleted: u64 = clean(db, Leftover::OldBuilds).await.into_iter().sum();
    assert_eq!(deleted, consumers * 16 + 1 + 3, "cursors, a parked workspace, letters");
    assert_eq!((count(db, "dead_letters").await, count(db, "parked_workspaces").await), (0, 0));
}
