//! The statements of one workspace over its life, and what `billing` refuses.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::domain::cloud_event::EventRecord;
use crate::domain::consumers::consumer::{Build, Consumer};
use crate::domain::consumers::run::{Folded, Treatment, fold, keys};
use crate::domain::ids::{EventId, Partition};

const BUILD: Build = Build { consumer: Consumer::Billing, version: 3 };
const WORKSPACE: WorkspaceId = WorkspaceId(Uuid::from_u128(7));
/// A fold over all events at once.
pub(in crate::domain::consumers) const ALL: usize = 1000;

fn day(text: &str) -> Timestamp {
    format!("{text}T00:00:00Z").parse().unwrap()
}

fn period(start: &str, end: &str) -> Value {
    json!({"start": day(start), "end": day(end)})
}

/// The history of one workspace.
pub(in crate::domain::consumers) struct History(pub(in crate::domain::consumers) Vec<Fact>);

impl History {
    fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds an event. Its balance is what the workspace has after it.
    fn tell(mut self, at: &str, event_type: EventType, balance: i64, data: Value) -> Self {
        let mut data = data;
        data["current_credits"] = balance.to_string().into();
        let seq = i64::try_from(self.0.len()).unwrap() + 1;
        let event = EventRecord {
            event_id: EventId(Uuid::from_u128(u128::try_from(seq).unwrap())),
            event_type: event_type.into(),
            schema_version: 1,
            partition: Partition::of(WORKSPACE),
            seq: seq + 100,
            workspace_id: WORKSPACE,
            workspace_seq: seq,
            recorded_at: day(at),
            correlation_id: String::new(),
            causation_id: Uuid::nil(),
            traceparent: None,
            data: data.to_string(),
        };
        self.0.push(Fact::new(event));
        self
    }

    fn provisioned() -> Self {
        let data = json!({
            "name": "Acme", "time_zone": "UTC", "plan_code": "pro", "plan_version": 1,
            "period": period("2026-01-15", "2026-02-15"), "granted": "100"
        });
        Self::new().tell("2026-01-15", EventType::WorkspaceProvisioned, 100, data)
    }

    fn consume(self, at: &str, feature: &str, credits: i64, balance: i64) -> Self {
        let data = json!({
            "feature_code": feature, "credits": credits.to_string(), "quantity": "3", "grants": [], "used_this_month": "0",
            "occurred_at": day("2026-01-01")
        });
        self.tell(at, EventType::CreditConsumed, balance, data)
    }

    fn reset(self, at: &str, of: &Value, [expired, rolled_over, granted]: [i64; 3], balance: i64) -> Self {
        let data = json!({
            "period": of, "plan_code": "pro", "plan_version": 2, "expired": expired.to_string(),
            "rolled_over": rolled_over.to_string(), "granted": granted.to_string(), "previously_used": "0",
            "debt_repaid": "0"
        });
        self.tell(at, EventType::CreditReset, balance, data)
    }

    /// A change at an instant, to a plan and a period. `moved` is what it grants and what it removes.
    fn change(
        self,
        change: &str,
        [at, effective_at]: [&str; 2],
        (plan, of): (&str, Value),
        [granted, removed]: [i64; 2],
        balance: i64,
    ) -> Self {
        let summary = |plan: &str| {
            let version = if plan == "pro" { 2 } else { 5 };
            json!({"plan_code": plan, "plan_version": version, "status": "active", "period": of, "version": 1})
        };
        let data = json!({
            "change": change, "effective_at": day(effective_at), "before": summary("pro"), "after": summary(plan),
            "features": [], "credits_granted": granted.to_string(), "credits_removed": removed.to_string(),
            "credits_uncollected": "0", "credits_set_off": "0", "frozen_credits": "0"
        });
        self.tell(at, EventType::SubscriptionChanged, balance, data)
    }

    /// What is stored after folds over so many events each.
    pub(in crate::domain::consumers) fn folded(&self, size: usize) -> Result<Stored, Fault> {
        self.folded_without(&[], size)
    }

    /// The same, where an operator has discarded these events of the workspace.
    fn folded_without(&self, discarded: &[i64], size: usize) -> Result<Stored, Fault> {
        let treat = |event: &EventRecord| {
            if discarded.contains(&event.workspace_seq) { Treatment::Skip } else { Treatment::Take }
        };
        let mut stored = Stored::default();
        for facts in self.0.chunks(size) {
            let mut wanted = ConsumerKeys::default();
            keys(BUILD, facts, &mut wanted);
            match fold(BUILD, facts, stored.load(&wanted), treat) {
                Folded::Rows(rows) => stored.write(rows),
                Folded::Faulted { fault, .. } => return Err(fault),
            }
        }
        Ok(stored)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::domain::consumers) struct Stored {
    pub(in crate::domain::consumers) statements: BTreeMap<Timestamp, Statement>,
    lines: BTreeMap<LineKey, StatementLine>,
}

impl Stored {
    fn load(&self, wanted: &ConsumerKeys) -> ConsumerRows {
        let is_open = |statement: &&Statement| statement.closed_at.is_none();
        let open = self.statements.values().find(is_open);
        let key = (BUILD.version, WORKSPACE);
        let lines = self.lines.values().filter(|line| open.is_some_and(|open| open.period_start == line.period_start));
        ConsumerRows {
            statements: open.filter(|_| wanted.statements.contains(&key)).cloned().into_iter().collect(),
            statement_lines: lines.filter(|_| wanted.statement_lines.contains(&key)).cloned().collect(),
            ..ConsumerRows::default()
        }
    }

    fn write(&mut self, rows: ConsumerRows) {
        for statement in rows.statements {
            let replaced = self.statements.insert(statement.period_start, statement);
            assert!(replaced.is_none_or(|old| old.closed_at.is_none()), "a closed statement was written again");
        }
        for added in rows.statement_lines {
            match self.lines.get_mut(&key_of(&added)) {
                Some(line) => add_line(line, &added).unwrap(),
                None => _ = self.lines.insert(key_of(&added), added),
            }
        }
    }

    /// Each statement in a line: its period, its plan, its figures that are not 0 in whole credits, and its events.
    fn told(&self) -> Vec<String> {
        self.statements.values().map(told).collect()
    }
}

fn told(statement: &Statement) -> String {
    let day = |at: Timestamp| at.to_string()[5..10].to_owned();
    let end = statement.period_end.map_or("..".to_owned(), day);
    let figures = [
        ("opening", statement.opening),
        ("granted", statement.granted),
        ("purchased", statement.purchased),
        ("bonus", statement.bonus),
        ("refunded", statement.refunded),
        ("consumed", statement.consumed),
        ("expired", statement.expired),
        ("removed", statement.removed),
        ("reversed", statement.reversed),
        ("voided", statement.voided),
        ("unexplained", statement.unexplained.unwrap_or(i64::MIN)),
        ("closing", statement.closing),
        ("debt_repaid", statement.debt_repaid),
        ("rolled_over", statement.rolled_over),
    ];
    let figures = figures.iter().filter(|(_, micro)| *micro != 0);
    let figures: Vec<_> = figures.map(|(name, micro)| format!("{name} {}", micro / 1_000_000)).collect();
    let closed = statement.closed_at.map_or("open".to_owned(), |at| format!("closed {}", day(at)));
    assert_eq!(statement.sha256.is_some(), statement.closed_at.is_some());
    format!(
        "{} {end} {} {}: {}; {}-{} {closed}",
        day(statement.period_start),
        statement.plan_code.as_str(),
        statement.plan_version,
        figures.join(", "),
        statement.first_seq,
        statement.last_seq
    )
}

/// Everything that can happen in one period. The balance at the end is 131.
fn first_period() -> History {
    let share = json!([]);
    let history = History::provisioned().consume("2026-01-16", "render", 30, 70);
    let history = history
        .tell("2026-01-17", EventType::CreditsPurchased, 125, json!({
            "grant_id": Uuid::nil(), "credits": "50", "bonus_credits": "5", "amount_minor": 500, "currency": "EUR",
            "payment_reference": "p", "debt_repaid": "2", "spendable": true
        }))
        .tell("2026-01-18", EventType::CreditsRefunded, 135, json!({
            "refund_id": Uuid::nil(), "usage_id": "AAZJq1CORAAAAAAAAAAAAQ", "feature_code": "render", "credits": "10",
            "grants": share, "debt_repaid": "0", "used_this_month": "20"
        }))
        .tell("2026-01-19", EventType::CreditsExpired, 130, json!({"credits": "5", "grants": share}))
        .tell("2026-01-20", EventType::CreditsGranted, 150, json!({
            "grant_id": Uuid::nil(), "source": "promotion", "credits": "20", "priority": 1,
            "effective_at": day("2026-01-20"), "reason": "r", "debt_repaid": "0", "spendable": true
        }))
        .consume("2026-01-21", "export", 15, 135)
        .tell("2026-01-22", EventType::PurchaseReversed, 121, json!({
            "reversal_id": Uuid::nil(), "grant_id": Uuid::nil(), "reason": "chargeback", "credits": "15",
            "amount_minor": 150, "currency": "EUR", "credits_removed": "10", "credits_owed": "2",
            "credits_written_off": "3", "bonus_removed": "1", "bonus_owed": "1", "debt_repaid": "0"
        }))
        .tell("2026-01-23", EventType::GrantVoided, 101, json!({
            "grant_id": Uuid::nil(), "source": "promotion", "credits": "20", "remaining_credits": "0", "reason": "r"
        }))
        .tell("2026-01-24", EventType::DebtRepaid, 101, json!({"credits": "2", "grants": share, "debt_credits": "0"}));
    let limit = |refused: bool| {
        json!({
            "scope": "feature", "feature_code": "export", "limit_credits": "1", "used_credits": "1", "held_credits": "0",
            "requested_credits": "1", "refused": refused
        })
    };
    let refused = json!({"feature_code": "render", "requested_credits": "1000", "available_credits": "101"});
    history
        .tell("2026-01-25", EventType::CreditLimitExceeded, 101, refused)
        .tell("2026-01-26", EventType::UsageLimitExceeded, 101, limit(true))
        .tell("2026-01-27", EventType::UsageLimitExceeded, 101, limit(false))
        .change("changed", ["2026-01-28"; 2], ("max", period("2026-01-15", "2026-02-15")), [30, 0], 131)
}

pub(in crate::domain::consumers) fn life() -> History {
    let (spring, june) = (period("2026-03-01", "2026-04-01"), period("2026-05-01", "2026-06-01"));
    first_period()
        // A plan that was scheduled comes into force with the next period.
        .change("changed", ["2026-02-15"; 2], ("pro", period("2026-01-15", "2026-02-15")), [0, 0], 131)
        .reset("2026-02-15", &period("2026-02-15", "2026-03-15"), [81, 20, 100], 150)
        .consume("2026-02-16", "render", 7, 143)
        // A restart tells first that the period is another.
        .change("changed", ["2026-03-01"; 2], ("pro", spring), [0, 0], 143)
        .reset("2026-03-01", &period("2026-03-01", "2026-04-01"), [93, 0, 200], 250)
        // Nobody came for two months.
        .reset("2026-05-20", &period("2026-04-01", "2026-05-01"), [200, 0, 200], 250)
        .reset("2026-05-20", &period("2026-05-01", "2026-06-01"), [200, 0, 200], 250)
        .change("cancel_scheduled", ["2026-05-21", "2026-06-01"], ("pro", june.clone()), [0, 0], 250)
        .change("canceled", ["2026-06-03", "2026-06-01"], ("pro", june), [0, 200], 50)
        .consume("2026-06-04", "render", 10, 40)
        .change("reactivated", ["2026-07-10"; 2], ("max", period("2026-07-10", "2026-08-10")), [0, 0], 40)
        .reset("2026-07-10", &period("2026-07-10", "2026-08-10"), [0, 0, 100], 140)
}

#[test]
fn a_life_of_a_workspace_is_a_chain_of_statements_however_its_events_are_cut() {
    let history = life();
    let expected = [
        "01-15 02-15 max 5: granted 150, purchased 50, bonus 5, refunded 10, consumed 45, expired 86, reversed 14, \
         voided 20, closing 50, debt_repaid 2, rolled_over 20; 1-16 closed 02-15",
        "02-15 03-01 pro 2: opening 50, granted 100, consumed 7, expired 93, closing 50; 16-19 closed 03-01",
        "03-01 04-01 pro 2: opening 50, granted 200, expired 200, closing 50; 19-20 closed 05-20",
        "04-01 05-01 pro 2: opening 50, granted 200, expired 200, closing 50; 20-21 closed 05-20",
        "05-01 06-01 pro 2: opening 50, granted 200, removed 200, closing 50; 21-23 closed 06-03",
        "06-01 07-10 pro 2: opening 50, consumed 10, closing 40; 23-26 closed 07-10",
        "07-10 08-10 pro 2: opening 40, granted 100, closing 140; 26-26 open",
    ];
    let at_once = history.folded(ALL).unwrap();
    assert_eq!(at_once.told(), expected);
    for size in 1..=history.0.len() {
        assert_eq!(history.folded(size).unwrap(), at_once, "{size} events at a time");
    }
}

#[test]
fn the_lines_of_a_statement_say_what_became_of_each_feature() {
    let lines = life().folded(ALL).unwrap().lines;
    let told: Vec<_> = lines
        .values()
        .map(|line| {
            let figures = [line.credits, line.refunded, line.quantity].map(|micro| micro / 1_000_000);
            let day = line.period_start.to_string()[5..10].to_owned();
            (day, line.feature_code.as_str().to_owned(), figures, line.deductions, line.refused)
        })
        .collect();
    let line = |day: &str, feature: &str, figures, deductions, refused| {
        (day.to_owned(), feature.to_owned(), figures, deductions, refused)
    };
    let expected = [
        line("01-15", "export", [15, 0, 3], 1, 1),
        line("01-15", "render", [30, 10, 3], 1, 1),
        line("02-15", "render", [7, 0, 3], 1, 0),
        line("06-01", "render", [10, 0, 3], 1, 0),
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_period_that_begins_with_the_open_statement_replaces_its_terms() {
    let history = History::provisioned()
        .change("canceled", ["2026-01-15"; 2], ("pro", period("2026-01-15", "2026-02-15")), [0, 100], 0)
        .change("reactivated", ["2026-01-15"; 2], ("max", period("2026-01-15", "2026-03-15")), [0, 0], 0)
        .reset("2026-01-15", &period("2026-01-15", "2026-03-15"), [0, 0, 40], 40);
    let told = history.folded(ALL).unwrap().told();
    assert_eq!(told, ["01-15 03-15 pro 2: granted 140, removed 100, closing 40; 1-4 open"]);
}

#[test]
fn an_event_with_another_balance_is_a_fault_and_nothing_is_written() {
    let history = first_period().consume("2026-02-01", "render", 1, 131);
    for size in [1, ALL] {
        let fault = history.folded(size).unwrap_err();
        assert_eq!(fault.class, Fault::CONTRADICTION);
        assert_eq!(
            fault.text, "the statement says a balance of 130000000 micro-credits, and the event 131000000",
            "{size} events at a time"
        );
    }
}

#[test]
fn events_without_a_beginning_and_a_second_beginning_are_faults() {
    let nothing = History::new().consume("2026-02-01", "render", 1, 99).folded(ALL).unwrap_err();
    assert_eq!(nothing.text, format!("the workspace {WORKSPACE} has no open statement"));
    let mut twice = History::provisioned();
    twice.0.extend(History::provisioned().0);
    assert_eq!(twice.folded(ALL).unwrap_err().text, format!("the workspace {WORKSPACE} was created before"));
}

#[test]
fn the_hash_is_of_the_document_without_it_and_of_every_line() {
    let stored = life().folded(1).unwrap();
    for statement in stored.statements.values().filter(|statement| statement.closed_at.is_some()) {
        let lines: Vec<_> =
            stored.lines.values().filter(|line| line.period_start == statement.period_start).cloned().collect();
        let document = StatementDocument::new(statement, &lines);
        assert_eq!(Some(document.clone().sha256().unwrap()), statement.sha256, "{}", told(statement));
        let mut other = document.clone();
        other.figures.last_seq.0 += 1;
        assert_ne!(Some(other.sha256().unwrap()), statement.sha256);
        if !lines.is_empty() {
            let without = StatementDocument::new(statement, &lines[1..]);
            assert_ne!(Some(without.sha256().unwrap()), statement.sha256);
        }
    }
}

#[test]
fn what_a_discarded_event_has_moved_is_unexplained_from_the_next_event_on() {
    let february = period("2026-02-15", "2026-03-15");
    let history = History::provisioned()
        .consume("2026-01-16", "render", 10, 90)
        .consume("2026-01-17", "render", 20, 70)
        .consume("2026-01-18", "render", 1, 69)
        .reset("2026-02-15", &february, [69, 0, 100], 100)
        .consume("2026-02-16", "render", 5, 95);
    let cases: &[(&[i64], &[&str])] = &[
        (
            &[2],
            &[
                "01-15 02-15 pro 1: granted 100, consumed 21, expired 69, unexplained -10; 1-5 closed 02-15",
                "02-15 03-15 pro 2: granted 100, consumed 5, closing 95; 5-6 open",
            ],
        ),
        // Both before the next event, and right before the end of the period.
        (
            &[3, 4],
            &[
                "01-15 02-15 pro 1: granted 100, consumed 10, expired 69, unexplained -21; 1-5 closed 02-15",
                "02-15 03-15 pro 2: granted 100, consumed 5, closing 95; 5-6 open",
            ],
        ),
        // One explained before the other.
        (
            &[2, 4],
            &[
                "01-15 02-15 pro 1: granted 100, consumed 20, expired 69, unexplained -11; 1-5 closed 02-15",
                "02-15 03-15 pro 2: granted 100, consumed 5, closing 95; 5-6 open",
            ],
        ),
        // Without the end of the period, its statement goes on.
        (&[5], &["01-15 02-15 pro 1: granted 100, consumed 36, unexplained 31, closing 95; 1-6 open"]),
    ];
    for (discarded, expected) in cases {
        for size in [1, 2, 3, ALL] {
            let stored = history.folded_without(discarded, size).unwrap();
            assert_eq!(stored.told(), *expected, "without {discarded:?}, in batches of {size}");
        }
    }
    let last = history.folded_without(&[6], ALL).unwrap();
    let open = last.statements.values().next_back().unwrap();
    assert_eq!((open.unexplained, open.last_seq), (None, 6), "nothing has told it yet");
}
