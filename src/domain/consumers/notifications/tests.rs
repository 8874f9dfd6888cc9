//! Tables of what `notifications` makes of events, and that it does not matter how the events are cut into batches.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::domain::consumers::billing::tests::{ALL, life};
use crate::domain::consumers::consumer::{Build, Consumer};
use crate::domain::consumers::run::{Folded, Treatment, fold, keys};
use crate::domain::consumers::tests::event;
use crate::domain::ids::EventId;

const BUILD: Build = Build { consumer: Consumer::Notifications, version: 3 };
/// When the first period of a workspace begins.
const START: &str = "2026-03-01T23:59:59.999999Z";
const SECOND_START: &str = "2026-04-01T00:00:00Z";
const THIRD_START: &str = "2026-05-01T00:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn workspace(number: u128) -> WorkspaceId {
    WorkspaceId(Uuid::from_u128(number))
}

/// Events of workspaces, in order.
#[derive(Default)]
struct History(Vec<Fact>);

impl History {
    /// Workspaces that were created.
    fn of(workspaces: u128) -> Self {
        let created = |number| (EventType::WorkspaceProvisioned, number, json!({}));
        Self::default().tell_all((1..=workspaces).map(created))
    }

    fn tell(mut self, event_type: EventType, number: u128, fields: Value) -> Self {
        let workspace_id = workspace(number);
        let mut fact = event(event_type, workspace_id, at(SECOND_START), fields);
        let of_workspace = self.0.iter().filter(|fact| fact.event.workspace_id == workspace_id).count();
        fact.event.workspace_seq = i64::try_from(of_workspace).unwrap() + 1;
        fact.event.seq = i64::try_from(self.0.len()).unwrap() + 1;
        fact.event.event_id = EventId(Uuid::from_u128(u128::try_from(fact.event.seq).unwrap() << 90));
        self.0.push(fact);
        self
    }

    fn tell_all(self, events: impl IntoIterator<Item = (EventType, u128, Value)>) -> Self {
        events.into_iter().fold(self, |history, (event_type, number, fields)| history.tell(event_type, number, fields))
    }

    /// What is stored after folds over so many events each, again and again.
    fn folded(&self, sizes: &[usize]) -> Result<Stored, Fault> {
        let (mut stored, mut rest, mut sizes) = (Stored::default(), &self.0[..], sizes.iter().cycle());
        while !rest.is_empty() {
            let (facts, left) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            stored.take(facts)?;
            rest = left;
        }
        Ok(stored)
    }

    /// Kind, subject and month of each notification of the first workspace, in the order of events.
    fn told(&self) -> Vec<String> {
        let stored = self.folded(&[ALL]).unwrap();
        let mut all: Vec<_> = stored.notifications.values().filter(|row| row.workspace_id == workspace(1)).collect();
        all.sort_by_key(|row| (row.workspace_seq, row.data.kind()));
        all.iter().map(|row| told(row)).collect()
    }
}

fn told(row: &Notification) -> String {
    format!("{} {} {} {}", row.workspace_seq, row.data.kind().as_str(), row.subject, &row.period_start.to_string()[..7])
}

/// The tables of the consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stored {
    workspaces: BTreeMap<WorkspaceId, NotifiedWorkspace>,
    notifications: BTreeMap<(WorkspaceId, NotificationKind, String, Timestamp), Notification>,
}

impl Stored {
    /// Takes one batch. Returns what it has written.
    fn take(&mut self, facts: &[Fact]) -> Result<ConsumerRows, Fault> {
        let mut wanted = ConsumerKeys::default();
        keys(BUILD, facts, &mut wanted);
        let is_wanted = |row: &&NotifiedWorkspace| wanted.notified_workspaces.contains(&(3, row.workspace_id));
        let known = self.workspaces.values().filter(is_wanted).copied().collect();
        let rows = ConsumerRows { notified_workspaces: known, ..ConsumerRows::default() };
        match fold(BUILD, facts, rows, |_| Treatment::Take) {
            Folded::Rows(rows) => {
                self.workspaces.extend(rows.notified_workspaces.iter().map(|row| (row.workspace_id, *row)));
                for row in rows.notifications.iter().cloned() {
                    let key = (row.workspace_id, row.data.kind(), row.subject.clone(), row.period_start);
                    self.notifications.entry(key).or_insert(row);
                }
                Ok(rows)
            }
            Folded::Faulted { fault, .. } => Err(fault),
        }
    }
}

fn period(start: &str, end: &str) -> Value {
    json!({"start": start, "end": end})
}

fn reset(start: &str, granted: &str) -> (EventType, u128, Value) {
    (EventType::CreditReset, 1, json!({"period": period(start, "2026-12-01T00:00:00Z"), "granted": granted}))
}

/// A change that leaves this version of the subscription.
fn change(kind: &str, version: u32) -> (EventType, u128, Value) {
    let summary = |version: u32| {
        json!({
            "plan_code": "pro", "plan_version": version, "status": "active", "period": period(START, SECOND_START),
            "version": version
        })
    };
    let fields = json!({
        "change": kind, "before": summary(version - 1), "after": summary(version), "effective_at": SECOND_START,
        "credits_removed": "0"
    });
    (EventType::SubscriptionChanged, 1, fields)
}

fn refuse() -> (EventType, u128, Value) {
    (EventType::CreditLimitExceeded, 1, json!({}))
}

fn warn(threshold: &str) -> (EventType, u128, Value) {
    (EventType::LowCreditWarning, 1, json!({"threshold_credits": threshold}))
}

fn limit(scope: &str, feature: &str, limit: &str, is_too_large: bool) -> (EventType, u128, Value) {
    let mut fields = json!({"scope": scope, "feature_code": feature, "limit_credits": limit, "refused": true});
    if !is_too_large {
        fields["resets_at"] = SECOND_START.into();
    }
    (EventType::UsageLimitExceeded, 1, fields)
}

fn expire_soon(grant: u128) -> (EventType, u128, Value) {
    let fields = json!({
        "grant_id": Uuid::from_u128(grant), "source": "purchase", "credits": "5", "expires_at": SECOND_START
    });
    (EventType::CreditsExpiring, 1, fields)
}

#[test]
fn every_subject_is_told_once_in_a_period() {
    let history = History::of(1).tell_all([
        warn("100"),
        warn("20.5"),
        warn("100"),
        limit("feature", "render", "50", false),
        limit("feature", "render", "50", false),
        limit("feature", "render", "50", true),
        limit("feature", "export", "50", false),
        limit("feature", "render", "60", false),
        limit("workspace", "render", "500", false),
        limit("workspace", "export", "500", false),
        limit("window", "render", "7", true),
        expire_soon(1),
        expire_soon(2),
        expire_soon(1),
        reset(SECOND_START, "0"),
        warn("100"),
        limit("workspace", "export", "500", false),
        limit("workspace", "export", "500", false),
    ]);
    let grant = |number| Uuid::from_u128(number).to_string();
    assert_eq!(
        history.told(),
        [
            "2 low_credit 100 2026-03",
            "3 low_credit 20.5 2026-03",
            "5 limit_reached feature:render:50 2026-03",
            "7 limit_reached feature:render:50:request 2026-03",
            "8 limit_reached feature:export:50 2026-03",
            "9 limit_reached feature:render:60 2026-03",
            "10 limit_reached workspace:500 2026-03",
            "12 limit_reached window:7:request 2026-03",
            &format!("13 credits_expiring {} 2026-03", grant(1)),
            &format!("14 credits_expiring {} 2026-03", grant(2)),
            "16 statement_closed statement 2026-03",
            "17 low_credit 100 2026-04",
            "18 limit_reached workspace:500 2026-04",
        ]
    );
}

#[test]
fn every_change_of_a_subscription_is_told_and_its_end_closes_a_statement() {
    let history = History::of(1).tell_all([
        change("change_scheduled", 2),
        change("resumed", 3),
        change("cancel_scheduled", 4),
        change("canceled", 5),
        change("reactivated", 6),
        // The change that restarts a period comes before the reset that begins it.
        reset(THIRD_START, "10"),
        change("changed", 7),
    ]);
    assert_eq!(
        history.told(),
        [
            "2 plan_changed 2 2026-03",
            "3 plan_changed 3 2026-03",
            "4 plan_changed 4 2026-03",
            "5 plan_changed 5 2026-03",
            "5 statement_closed statement 2026-03",
            "6 plan_changed 6 2026-04",
            "7 statement_closed statement 2026-04",
            "8 plan_changed 7 2026-05",
        ]
    );
}

#[test]
fn a_notification_has_the_figures_of_its_event() {
    let fields = json!({"current_credits": "1.5", "requested_credits": "40", "available_credits": "2"});
    let mut changed = change("canceled", 2);
    changed.2["current_credits"] = "-3".into();
    changed.2["credits_removed"] = "4".into();
    let mut begun = reset(THIRD_START, "10");
    begun.2["current_credits"] = "12".into();
    let history = History::of(1)
        .tell(EventType::CreditLimitExceeded, 1, fields.clone())
        .tell(EventType::LowCreditWarning, 1, json!({"threshold_credits": "20", "available_credits": "3"}))
        .tell_all([limit("feature", "render", "50", false), expire_soon(7), changed, begun]);
    let stored = history.folded(&[ALL]).unwrap();
    let mut rows: Vec<_> = stored.notifications.values().collect();
    rows.sort_by_key(|row| (row.workspace_seq, row.data.kind()));
    let data: Vec<_> = rows.iter().map(|row| serde_json::to_value(&row.data).unwrap()).collect();
    let plan = |version: u32| json!({"plan_code": "pro", "plan_version": version});
    let [start, second, third] = [START, SECOND_START, THIRD_START].map(|text| at(text).to_string());
    let expected = [
        json!({
            "feature_code": "render", "requested_credits": "40", "available_credits": "2", "current_credits": "1.5"
        }),
        json!({"threshold_credits": "20", "available_credits": "3", "current_credits": "0"}),
        json!({
            "scope": "feature", "feature_code": "render", "limit_credits": "50", "used_credits": "0",
            "held_credits": "0", "requested_credits": "1", "refused": true, "resets_at": second
        }),
        json!({
            "grant_id": Uuid::from_u128(7), "source": "purchase", "credits": "5", "expires_at": second,
            "current_credits": "0"
        }),
        json!({
            "change": "canceled", "effective_at": second, "before": plan(1), "after": plan(2), "credits_granted": "0",
            "credits_removed": "4", "current_credits": "-3"
        }),
        json!({"period_start": start, "period_end": second, "closing_credits": "-3"}),
        json!({"period_start": second, "period_end": third, "closing_credits": "2"}),
    ];
    assert_eq!(data, expected);
    for row in rows {
        let json = serde_json::to_string(&row.data).unwrap();
        assert_eq!(NotificationData::parse(row.data.kind(), &json).unwrap(), row.data);
        let fact = &history.0[usize::try_from(row.workspace_seq).unwrap() - 1];
        assert_eq!((row.event_id, row.created_at), (fact.event.event_id, fact.event.recorded_at));
        assert_eq!((row.version, row.partition), (BUILD.version, fact.event.partition));
    }
}

#[test]
fn credits_are_exhausted_once_until_some_are_added() {
    let grant = || json!({"grant_id": Uuid::nil(), "credits": "1", "source": "promotion", "reason": "r"});
    let with = |mut fields: Value, more: &[(&str, Value)]| {
        for (name, value) in more {
            fields[*name] = value.clone();
        }
        fields
    };
    let bought = with(grant(), &[("amount_minor", 1.into())]);
    let given = with(grant(), &[("priority", 1.into()), ("effective_at", START.into())]);
    let held = json!({"hold_id": Uuid::nil(), "credits": "1", "expires_at": START});
    let released = with(held.clone(), &[("reason", "released".into())]);
    let captured = |released: &str| json!({"credits": "1", "hold_id": Uuid::nil(), "released_credits": released});
    let reversed = with(grant(), &[("reason", "mistake".into()), ("amount_minor", 1.into())]);
    let voided = with(grant(), &[("remaining_credits", "0".into())]);
    let of_job = |name: &str, value: &str| {
        let job = json!({"job_id": Uuid::nil(), "kind": "render", "queue": "default", "hold_id": Uuid::nil()});
        with(job, &[(name, value.into())])
    };
    let table = [
        (EventType::CreditsPurchased, bought, true),
        (EventType::CreditsGranted, given, true),
        (EventType::CreditsRefunded, json!({"credits": "1"}), true),
        (EventType::HoldReleased, released, true),
        (EventType::DebtRepaid, json!({"credits": "1"}), true),
        (EventType::CreditConsumed, captured("1"), true),
        (EventType::CreditConsumed, captured("0"), false),
        (EventType::CreditConsumed, json!({"credits": "1"}), false),
        (EventType::CreditReset, reset(SECOND_START, "1").2, true),
        (EventType::CreditReset, reset(SECOND_START, "0").2, false),
        (EventType::SubscriptionChanged, change("changed", 2).2, true),
        (EventType::SubscriptionChanged, change("reactivated", 2).2, true),
        (EventType::SubscriptionChanged, change("canceled", 2).2, false),
        (EventType::SubscriptionChanged, change("resumed", 2).2, false),
        (EventType::CreditsHeld, held, false),
        (EventType::CreditLimitExceeded, json!({}), false),
        (EventType::LowCreditWarning, warn("1").2, false),
        (EventType::UsageLimitExceeded, limit("workspace", "render", "1", false).2, false),
        (EventType::GrantVoided, voided, false),
        (EventType::PurchaseReversed, reversed, false),
        (EventType::CreditsExpiring, expire_soon(1).2, false),
        (EventType::CreditsExpired, json!({"credits": "1"}), false),
        (EventType::JobSubmitted, of_job("credits", "1"), false),
        (EventType::JobCompleted, of_job("credits", "1"), false),
        (EventType::JobFailed, of_job("reason", "failed"), false),
    ];
    let types: HashSet<_> = table.iter().map(|(event_type, ..)| event_type).collect();
    assert_eq!(types.len(), EventType::ALL.len() - 1, "all but the first event of a workspace");
    for (event_type, fields, adds) in table {
        let history = History::of(1)
            .tell_all([refuse(), refuse()])
            .tell(event_type, 1, fields.clone())
            .tell_all([refuse(), refuse()]);
        for size in [1, 2, ALL] {
            let stored = history.folded(&[size]).unwrap();
            let exhausted =
                stored.notifications.values().filter(|row| row.data.kind() == NotificationKind::CreditsExhausted);
            let found: Vec<_> = exhausted.map(|row| (row.workspace_seq, row.subject.as_str())).collect();
            let (first, second) = ((2, "0000000000000000001"), (5, "0000000000000000004"));
            let expected = if adds { vec![first, second] } else { vec![first] };
            assert_eq!(found, expected, "{event_type:?} {fields}, {size} events at a time");
        }
    }
}

#[test]
fn a_flood_of_refusals_is_one_notification_and_writes_nothing_more() {
    let mut stored = Stored::default();
    let history = History::of(1).tell_all((0..3000).map(|_| refuse()));
    let written = stored.take(&history.0[..1000]).unwrap();
    assert_eq!((written.notifications.len(), written.notified_workspaces.len()), (1, 1));
    assert_eq!(stored.take(&history.0[1000..]).unwrap(), ConsumerRows::default());
}

#[test]
fn nothing_is_loaded_for_a_deduction() {
    let history = History::default().tell(EventType::CreditConsumed, 1, json!({"credits": "1"})).tell(
        EventType::CreditsHeld,
        2,
        json!({"hold_id": Uuid::nil(), "credits": "1", "expires_at": START}),
    );
    let mut wanted = ConsumerKeys::default();
    keys(BUILD, &history.0, &mut wanted);
    assert_eq!(wanted, ConsumerKeys::default());
    assert_eq!(history.folded(&[ALL]).unwrap(), Stored::default(), "no workspace must be known to it");
}

#[test]
fn the_statements_that_are_told_are_those_that_billing_closes() {
    let of_billing = life();
    let closed = of_billing.folded(ALL).unwrap().statements;
    let closed = closed.values().filter(|statement| statement.closed_at.is_some());
    let expected: Vec<_> = closed
        .map(|statement| {
            let end = statement.period_end.unwrap();
            (statement.period_start, end, statement.closing, statement.last_seq, statement.closed_at.unwrap())
        })
        .collect();
    assert_eq!(expected.len(), 6);
    let stored = History(of_billing.0).folded(&[ALL]).unwrap();
    let told: Vec<_> = stored
        .notifications
        .values()
        .filter_map(|row| {
            let NotificationData::StatementClosed(data) = &row.data else { return None };
            assert_eq!(data.period_start, row.period_start);
            let closing = data.closing_credits.micro();
            Some((data.period_start, data.period_end, closing, row.workspace_seq, row.created_at))
        })
        .collect();
    assert_eq!(told, expected);
}

#[test]
fn what_contradicts_earlier_events_is_a_fault() {
    let unknown = History::default().tell_all([refuse()]).folded(&[ALL]).unwrap_err();
    assert_eq!(unknown, Fault::contradiction(format!("the workspace {} was not created", workspace(1))));
    let mut twice = History::of(1);
    twice.0.extend(History::of(1).0);
    for size in [1, ALL] {
        let fault = twice.folded(&[size]).unwrap_err();
        assert_eq!(fault, Fault::contradiction(format!("the workspace {} was created before", workspace(1))));
    }
    let mut begun = reset(SECOND_START, "1");
    begun.2["current_credits"] = format!("-{}", Credits::MAX).into();
    let fault = History::of(1).tell_all([begun]).folded(&[ALL]).unwrap_err();
    assert_eq!((fault.class, fault.text.as_str()), (Fault::TOO_LARGE, "the balance of a statement is too large"));
}

/// A random history: each number chooses what happens next, and to which workspace.
fn history(choices: &[(u8, u128)]) -> History {
    let mut history = History::of(3);
    for (n, (choice, number)) in choices.iter().enumerate() {
        let month = |at: u8| format!("2026-{:02}-01T00:00:00Z", at % 12 + 1);
        let (event_type, _, fields) = match choice {
            0..=5 => refuse(),
            6..=7 => warn(if choice % 2 == 0 { "10" } else { "20" }),
            8..=10 => limit("feature", "render", &choice.to_string(), choice % 2 == 0),
            11..=12 => expire_soon(u128::from(*choice)),
            13 => change("canceled", u32::try_from(n).unwrap() + 2),
            14 => change("changed", u32::try_from(n).unwrap() + 2),
            15..=17 => reset(&month(u8::try_from(n % 12).unwrap()), if choice % 2 == 0 { "1" } else { "0" }),
            18 => (EventType::CreditsRefunded, 1, json!({"credits": "1"})),
            19 => (EventType::CreditConsumed, 1, json!({"credits": "1", "released_credits": "1"})),
            _ => (EventType::CreditConsumed, 1, json!({"credits": "1"})),
        };
        history = history.tell(event_type, *number, fields);
    }
    history
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_do_not_depend_on_how_events_are_cut_into_batches(
        choices in vec((0..24_u8, 1..=3_u128), 1..60),
        sizes in vec(1..9_usize, 1..9),
    ) {
        let history = history(&choices);
        let whole = history.folded(&[ALL]).unwrap();
        prop_assert_eq!(&history.folded(&sizes).unwrap(), &whole);
        let ids: HashSet<_> = whole.notifications.values().map(|row| row.notification_id).collect();
        prop_assert_eq!(ids.len(), whole.notifications.len());
    }
}
