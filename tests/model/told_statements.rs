//! The statements that the events of a workspace tell: they end with its balance, and say what its usage logs say.

use visionscope_billing::domain::cloud_event::EventRecord;
use visionscope_billing::domain::consumers::{Build, Consumer, ConsumerRows, Fact, Folded, Treatment, fold};
use visionscope_billing::domain::credits::Credits;

/// Folds the whole history of a workspace. `consumed` is what its usage logs say.
pub fn check(events: &[EventRecord], balance: Credits, consumed: i64) -> Result<(), String> {
    let facts: Vec<_> = events.iter().cloned().map(Fact::new).collect();
    let build = Build { consumer: Consumer::Billing, version: 1 };
    let rows = match fold(build, &facts, ConsumerRows::default(), |_| Treatment::Take) {
        Folded::Rows(rows) => rows,
        Folded::Faulted { index, fault } => return Err(format!("{fault:?} at {:?}", facts[index])),
    };
    let mut statements = rows.statements;
    statements.sort_by_key(|statement| statement.period_start);
    let starts = statements.windows(2).all(|pair| {
        (Some(pair[1].period_start), pair[1].opening) == (pair[0].period_end, pair[0].closing)
            && pair[1].first_seq == pair[0].last_seq
            && pair[0].sha256.is_some()
    });
    let ends = statements.last().is_some_and(|last| last.closed_at.is_none() && last.closing == balance.micro());
    let in_statements: i64 = statements.iter().map(|statement| statement.consumed).sum();
    let in_lines: i64 = rows.statement_lines.iter().map(|line| line.credits).sum();
    if starts && ends && (in_statements, in_lines) == (consumed, consumed) {
        return Ok(());
    }
    Err(format!("a balance of {balance} and a usage of {consumed} are not told by {statements:?}"))
}
