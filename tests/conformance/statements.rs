//! Statements: they are read as they were written, closed ones never change, and what does not match is found.

use visionscope_billing::domain::consumers::{Build, Consumer, ConsumerKeys, ConsumerRows, Statement, StatementLine};
use visionscope_billing::domain::credits::Credits;
use visionscope_billing::domain::ids::{Partition, WorkspaceId};
use visionscope_billing::domain::text::PlanCode;
use visionscope_billing::domain::time::Timestamp;
use visionscope_billing::store::StoreError;
use visionscope_billing::store::cleaning::Leftover;

use crate::audits::{audit, found_after_more};
use crate::database::TestDatabase;
use crate::fixtures::{ALLOWANCE, World, advance, at, feature, workspace, world_of};

/// A month in seconds.
const MONTH: i64 = 30 * 86_400;

/// An open statement whose figures are all different.
fn open_statement(period_start: Timestamp) -> Statement {
    Statement {
        version: 1,
        workspace_id: workspace(0),
        period_start,
        partition: Partition::of(workspace(0)),
        period_end: None,
        plan_code: PlanCode::new("pro").unwrap(),
        plan_version: 7,
        opening: -1,
        granted: 2,
        purchased: 4,
        bonus: 8,
        refunded: 16,
        consumed: 32,
        expired: 64,
        removed: 128,
        reversed: 256,
        voided: 512,
        unexplained: Some(0),
        closing: 29 - 992,
        debt_repaid: 1024,
        rolled_over: 2048,
        first_seq: 3,
        last_seq: 4,
        closed_at: None,
        sha256: None,
    }
}

fn closed(statement: Statement) -> Statement {
    let period_end = Some(statement.period_start.plus(chrono::TimeDelta::seconds(MONTH)));
    Statement { period_end, closed_at: Some(at(5)), sha256: Some([9; 32]), ..statement }
}

fn line(statement: &Statement, code: &str, credits: i64) -> StatementLine {
    StatementLine {
        version: statement.version,
        workspace_id: statement.workspace_id,
        period_start: statement.period_start,
        feature_code: feature(code),
        partition: statement.partition,
        credits,
        refunded: 2,
        quantity: 3,
        deductions: 4,
        refused: 5,
    }
}

/// Writes rows, and moves the cursor of their partition.
async fn write(
    db: &impl TestDatabase,
    [from, to]: [i64; 2],
    statements: &[Statement],
    lines: &[StatementLine],
) -> Result<(), StoreError> {
    let rows =
        ConsumerRows { statements: statements.to_vec(), statement_lines: lines.to_vec(), ..ConsumerRows::default() };
    let build = Build { consumer: Consumer::Billing, version: 1 };
    let advance = advance(build, Partition::of(workspace(0)), [from, to], rows);
    db.consumption().advance_consumers(&[advance]).await
}

pub async fn statements_are_read_as_they_were_written(db: &impl TestDatabase) {
    let (older, newer) = (open_statement(at(0)), open_statement(at(MONTH)));
    let lines = [line(&older, "render", 1), line(&older, "upscale", 7)];
    write(db, [0, 1], std::slice::from_ref(&older), &lines).await.unwrap();
    let key = (1, workspace(0));
    let wanted = ConsumerKeys { statements: [key].into(), statement_lines: [key].into(), ..ConsumerKeys::default() };
    let mut loaded = db.consumption().consumer_rows(&wanted).await.unwrap();
    loaded.statement_lines.sort_by(|one, other| one.feature_code.cmp(&other.feature_code));
    assert_eq!((&loaded.statements[..], &loaded.statement_lines[..]), (&[older.clone()][..], &lines[..]));
    let others = ConsumerKeys {
        statements: [(2, workspace(0)), (1, workspace(1))].into(),
        statement_lines: [(2, workspace(0)), (1, workspace(1))].into(),
        ..ConsumerKeys::default()
    };
    assert_eq!(db.consumption().consumer_rows(&others).await.unwrap(), ConsumerRows::default());

    // Lines are added to, and the open statement is another from now on.
    let older = closed(older);
    write(db, [1, 2], &[older.clone(), newer.clone()], &[line(&older, "render", 10)]).await.unwrap();
    let loaded = db.consumption().consumer_rows(&wanted).await.unwrap();
    assert_eq!((loaded.statements, loaded.statement_lines), (vec![newer.clone()], vec![]));
    let store = db.store();
    let (found, mut lines) = store.statement(1, workspace(0), at(0)).await.unwrap().unwrap();
    lines.sort_by(|one, other| one.feature_code.cmp(&other.feature_code));
    let render =
        StatementLine { credits: 11, refunded: 4, quantity: 6, deductions: 8, refused: 10, ..lines[0].clone() };
    assert_eq!((found, &lines[0], lines[1].credits), (older.clone(), &render, 7));

    let list = async |id: WorkspaceId, start_at, limit| {
        let page = store.statements(1, id, start_at, limit).await.unwrap();
        (page.rows, page.has_more)
    };
    assert_eq!(list(workspace(0), None, 2).await, (vec![newer.clone(), older.clone()], false));
    assert_eq!(list(workspace(0), None, 1).await, (vec![newer], true));
    assert_eq!(list(workspace(0), Some(at(0)), 1).await, (vec![older], false));
    assert_eq!(list(workspace(1), None, 2).await, (vec![], false));
    assert_eq!(store.statement(1, workspace(0), at(1)).await.unwrap(), None);
    assert_eq!(store.statement(2, workspace(0), at(0)).await.unwrap(), None);
}

pub async fn a_closed_statement_never_changes_and_is_kept_while_its_build_is_in_use(db: &impl TestDatabase) {
    let (older, newer) = (closed(open_statement(at(0))), open_statement(at(MONTH)));
    let lines = [line(&older, "render", 1), line(&newer, "render", 1)];
    write(db, [0, 1], &[older.clone(), newer], &lines).await.unwrap();
    for refused in [
        "update statements set plan_code = 'other' where closed_at is not null",
        "update statements set closed_at = null, sha256 = null where closed_at is not null",
        "update statement_lines set credits = 0 where period_start = (select min(period_start) from statements)",
        "update statement_lines set feature_code = 'other' where period_start = (select min(period_start) from statements)",
        "insert into statement_lines select version, workspace_id, period_start, 'other', partition_id, 0, 0, 0, 0, 0
            from statements where closed_at is not null",
        "delete from statements where closed_at is not null",
        "delete from statements where closed_at is null",
        "delete from statement_lines",
    ] {
        let error = db.execute(refused).await.unwrap_err();
        assert!(error.contains("immutable") || error.contains("are kept"), "{refused}: {error}");
    }
    let again = Statement { plan_version: 8, ..older.clone() };
    assert!(write(db, [1, 2], &[again], &[]).await.is_err());
    assert!(write(db, [1, 2], &[], &[line(&older, "render", 1)]).await.is_err());
    db.execute("update statements set plan_code = 'other' where closed_at is null").await.unwrap();
    db.execute("update consumers set version = 2 where consumer = 'billing'").await.unwrap();
    db.execute("delete from statement_lines").await.unwrap();
    db.execute("delete from statements").await.unwrap();
    assert_eq!(db.integers("select cast(count(*) as bigint) from statements").await, [[0]]);
}

/// Two statements of one workspace that match its history.
async fn two_statements(db: &impl TestDatabase) {
    let mut world = world_of(db.store(), 1).await;
    let deduct = |world: &mut World, credits, now| _ = world.deduct(workspace(0), Credits::whole(credits), at(now));
    deduct(&mut world, 1, 1);
    deduct(&mut world, 2, 2);
    world.refuse(workspace(0), at(3));
    deduct(&mut world, 3, 4);
    deduct(&mut world, 4, 5);
    world.store(db.store()).await;
    // Events 2, 3, 5 and 6 charge 1 to 4 credits. The period ends with event 4, and the cursor is at event 5.
    let statement = |period_start, seqs: [i64; 2], opening: Credits, granted: Credits, consumed: Credits| Statement {
        opening: opening.micro(),
        granted: granted.micro(),
        consumed: consumed.micro(),
        closing: opening.micro() + granted.micro() - consumed.micro(),
        purchased: 0,
        bonus: 0,
        refunded: 0,
        expired: 0,
        removed: 0,
        reversed: 0,
        voided: 0,
        unexplained: Some(0),
        first_seq: seqs[0],
        last_seq: seqs[1],
        ..open_statement(period_start)
    };
    let older = closed(statement(at(0), [1, 4], Credits::ZERO, ALLOWANCE, Credits::whole(3)));
    let rest = ALLOWANCE.minus(Credits::whole(3)).unwrap();
    let newer = statement(at(MONTH), [4, 5], rest, Credits::ZERO, Credits::whole(3));
    let lines = [line(&older, "render", 3_000_000), line(&newer, "render", 3_000_000)];
    write(db, [0, 5], &[older, newer], &lines).await.unwrap();
}

pub async fn a_statement_that_does_not_match_is_found(db: &impl TestDatabase) {
    two_statements(db).await;
    assert_eq!(audit(db).await, []);
    for (fault, found) in [
        ("update statement_lines set credits = credits + 1", "statement-is-sum-of-usage-logs"),
        ("update statement_lines set credits = credits - 1", ""),
        ("update consumer_cursors set seq = 6 where consumer = 'billing'", "statement-is-sum-of-usage-logs"),
        ("update consumer_cursors set seq = 5 where consumer = 'billing'", ""),
        (
            "update statements set granted = granted + 1, closing = closing + 1 where first_seq = 1",
            "statements-are-a-chain",
        ),
        ("update statements set granted = granted - 1, closing = closing - 1 where first_seq = 1", ""),
        ("update statements set first_seq = 5 where first_seq = 4", "statements-are-a-chain"),
    ] {
        let names = found_after_more(db, fault).await;
        assert_eq!(names.contains(&found), !found.is_empty(), "{fault}: {names:?}");
        assert!(!found.is_empty() || names.is_empty(), "{fault}: {names:?}");
    }
}

pub async fn a_build_that_is_being_deleted_has_no_findings(db: &impl TestDatabase) {
    two_statements(db).await;
    db.execute(
        "insert into consumer_cursors (consumer, version, partition_id, seq, epoch, updated_at)
        select consumer, 2, partition_id, 0, 0, updated_at from consumer_cursors where consumer = 'billing'",
    )
    .await
    .unwrap();
    db.execute("update consumers set version = 2 where consumer = 'billing'").await.unwrap();
    let lines = "select cast(count(*) as bigint) from statement_lines";
    assert_eq!(db.integers(lines).await, [[2]]);
    while db.cleaning().clean(Leftover::OldBuilds, 1).await.unwrap() > 0 {
        assert_eq!(audit(db).await, []);
    }
    assert_eq!(db.integers(lines).await, [[0]]);
}
