//! Notifications: the first of a key is kept and never changes, and they are listed by event, the newest first.

use uuid::Uuid;
use visionscope_billing::domain::consumers::{
    Build, Consumer, ConsumerKeys, ConsumerRows, CreditsExhaustedData, CreditsExpiringData, LimitReachedData,
    LowCreditData, Notification, NotificationData, NotificationKind, NotifiedPlan, NotifiedWorkspace, PlanChangedData,
    StatementClosedData,
};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::event::{LimitScope, SubscriptionChangeKind};
use visionscope_billing::domain::grant::GrantSource;
use visionscope_billing::domain::ids::{EventId, GrantId, NotificationId, Partition};
use visionscope_billing::domain::subscription::PendingView;
use visionscope_billing::domain::text::{Label, PlanCode};
use visionscope_billing::store::StoreError;
use visionscope_billing::store::figures::NotificationQuery;

use crate::database::TestDatabase;
use crate::fixtures::{advance, at, feature, workspace};

fn known(added_seq: i64) -> NotifiedWorkspace {
    NotifiedWorkspace {
        version: 1,
        workspace_id: workspace(0),
        partition: Partition::of(workspace(0)),
        period_start: at(added_seq),
        added_seq,
        is_exhausted: added_seq % 2 == 0,
    }
}

/// Data of every kind, with all that may be absent.
fn data() -> [NotificationData; 6] {
    let credits = Credits::whole;
    let plan = |code: &str| NotifiedPlan { plan_code: PlanCode::new(code).unwrap(), plan_version: 3 };
    [
        NotificationData::LowCredit(LowCreditData {
            threshold_credits: credits(1),
            available_credits: credits(2),
            current_credits: credits(3),
        }),
        NotificationData::CreditsExhausted(CreditsExhaustedData {
            feature_code: feature("render"),
            requested_credits: credits(1),
            available_credits: credits(2),
            current_credits: credits(3),
        }),
        NotificationData::LimitReached(LimitReachedData {
            scope: LimitScope::Window,
            feature_code: feature("render"),
            limit_credits: credits(1),
            used_credits: credits(2),
            held_credits: credits(3),
            requested_credits: credits(4),
            refused: true,
            resets_at: Some(at(5)),
            window_s: Some(60),
        }),
        NotificationData::CreditsExpiring(CreditsExpiringData {
            grant_id: GrantId(Uuid::from_u128(7)),
            source: GrantSource::Purchase,
            credits: credits(1),
            expires_at: at(9),
            current_credits: credits(2),
        }),
        NotificationData::PlanChanged(PlanChangedData {
            change: SubscriptionChangeKind::CancelScheduled,
            effective_at: at(1),
            before: plan("pro"),
            after: plan("max"),
            pending: Some(PendingView::Cancel {
                effective_at: at(2),
                reason: Some(Label::new("\"quoted\" \u{1F600}").unwrap()),
            }),
            credits_granted: credits(1),
            credits_removed: credits(2),
            current_credits: credits(3),
        }),
        NotificationData::StatementClosed(StatementClosedData {
            period_start: at(1),
            period_end: at(2),
            closing_credits: credits(-3),
        }),
    ]
}

/// A notification of the event with that number. Its id is greater the earlier the event.
fn notification(workspace_seq: i64, data: NotificationData, subject: &str) -> Notification {
    let number = u128::try_from(100 - workspace_seq).unwrap();
    Notification {
        version: 1,
        workspace_id: workspace(0),
        data,
        subject: subject.to_owned(),
        period_start: at(0),
        partition: Partition::of(workspace(0)),
        notification_id: NotificationId(Uuid::from_u128(number << 64)),
        event_id: EventId(Uuid::from_u128(number)),
        workspace_seq,
        created_at: at(workspace_seq),
    }
}

/// Writes rows, and moves the cursor of their partition.
async fn write(
    db: &impl TestDatabase,
    [from, to]: [i64; 2],
    notified_workspaces: &[NotifiedWorkspace],
    notifications: &[Notification],
) -> Result<(), StoreError> {
    let rows = ConsumerRows {
        notified_workspaces: notified_workspaces.to_vec(),
        notifications: notifications.to_vec(),
        ..ConsumerRows::default()
    };
    let build = Build { consumer: Consumer::Notifications, version: 1 };
    let advance = advance(build, Partition::of(workspace(0)), [from, to], rows);
    db.consumption().advance_consumers(&[advance]).await
}

fn all() -> NotificationQuery {
    NotificationQuery { workspace_id: workspace(0), kind: None, start_at: None, limit: 100 }
}

async fn list(db: &impl TestDatabase, query: NotificationQuery) -> (Vec<Notification>, bool) {
    let page = db.store().notifications(1, &query).await.unwrap();
    (page.rows, page.has_more)
}

pub async fn what_notifications_must_know_is_replaced(db: &impl TestDatabase) {
    let key = (1, workspace(0));
    let wanted = ConsumerKeys {
        notified_workspaces: [key, (2, workspace(0)), (1, workspace(1))].into(),
        ..ConsumerKeys::default()
    };
    for (from, added_seq) in [(0, 3), (1, 4)] {
        write(db, [from, from + 1], &[known(added_seq)], &[]).await.unwrap();
        let found = db.consumption().consumer_rows(&wanted).await.unwrap();
        assert_eq!(found.notified_workspaces, [known(added_seq)]);
    }
}

pub async fn notifications_are_listed_by_event_and_by_kind(db: &impl TestDatabase) {
    let mut written: Vec<_> = (1..).zip(data()).map(|(seq, data)| notification(seq, data, "subject")).collect();
    let [first, second, ..] = data().map(|data| notification(7, data, "other"));
    written.extend([first, Notification { notification_id: NotificationId(Uuid::from_u128(1)), ..second }]);
    write(db, [0, 1], &[], &written).await.unwrap();
    // Two of one event are told apart by their ids, the greater first.
    let newest_first = [6, 7, 5, 4, 3, 2, 1, 0].map(|n: usize| written[n].clone());
    assert_eq!(list(db, all()).await, (newest_first.to_vec(), false));
    for kind in NotificationKind::ALL {
        let of_kind = newest_first.iter().filter(|row| row.data.kind() == *kind).cloned().collect();
        assert_eq!(list(db, NotificationQuery { kind: Some(*kind), ..all() }).await, (of_kind, false), "{kind:?}");
    }
    for kind in [None, Some(NotificationKind::LowCredit)] {
        let whole = list(db, NotificationQuery { kind, ..all() }).await.0;
        for (n, row) in whole.iter().enumerate() {
            let start_at = Some((row.workspace_seq, row.notification_id));
            let page = list(db, NotificationQuery { kind, start_at, limit: 2, ..all() }).await;
            let end = whole.len().min(n + 2);
            assert_eq!(page, (whole[n..end].to_vec(), end < whole.len()));
        }
    }
    assert_eq!(list(db, NotificationQuery { workspace_id: workspace(1), ..all() }).await, (vec![], false));
    assert_eq!(db.store().notifications(2, &all()).await.unwrap().rows, []);
}

pub async fn the_first_notification_of_a_key_is_kept_and_never_changes(db: &impl TestDatabase) {
    let [low, exhausted, ..] = data();
    let first = notification(1, low.clone(), "100");
    write(db, [0, 1], &[], std::slice::from_ref(&first)).await.unwrap();
    // The rest of a batch is written.
    let (again, new) = (notification(2, low, "100"), notification(3, exhausted, "100"));
    write(db, [1, 2], &[known(3)], &[again.clone(), new.clone()]).await.unwrap();
    assert_eq!(list(db, all()).await.0, [new.clone(), first.clone()]);
    let next = Notification { period_start: at(1), ..again.clone() };
    let rebuilt = Notification { version: 2, ..again };
    write(db, [2, 3], &[], &[next.clone(), rebuilt.clone()]).await.unwrap();
    assert_eq!(list(db, all()).await.0, [new, next, first]);
    assert_eq!(db.store().notifications(2, &all()).await.unwrap().rows, [rebuilt]);
    for refused in ["update notifications set subject = 'other'", "update notifications set workspace_seq = 9"] {
        let error = db.execute(refused).await.unwrap_err();
        assert!(error.contains("immutable"), "{refused}: {error}");
    }
    db.execute("delete from notifications where workspace_seq < 3").await.unwrap();
    assert_eq!(list(db, all()).await.0.len(), 1, "old ones can be deleted");
    let without_subject = notification(4, data()[5].clone(), "");
    let error = write(db, [3, 4], &[], &[without_subject]).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
}
