//! Random commands against an independent model, on both databases.
//!
//! Each case runs one random history three times. First one command at a time through the engine, each after its dry run,
//! compared with the model after each step. Then the same envelopes in batches on another database, which must give the same answers
//! byte for byte. Then all of them again, which must replay the stored answers. In the end both databases are
//! audited.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

#[path = "../databases/mod.rs"]
mod databases;
mod model;
mod plans;
mod told_grants;
mod told_statements;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::databases::Database;
use crate::model::holds::{HoldStep, Overrun};
use crate::model::refunds_and_reversals::Reversed;
use crate::model::{CREDIT, Given, Policy, Step};
use crate::world::World;

/// Histories per database; each has up to 40 commands.
const CASES: u32 = 48;

fn amounts() -> impl Strategy<Value = i128> {
    prop_oneof![
        8 => 1..60 * CREDIT,
        1 => Just(1),
        1 => 60 * CREDIT..900 * CREDIT,
    ]
}

fn given() -> impl Strategy<Value = Given> {
    let days = |most| proptest::option::of(1..most);
    let scope = prop_oneof![3 => Just(None), 1 => any::<bool>().prop_map(Some)];
    let priority = prop_oneof![2 => Just(50), 1 => 0..=100_u8];
    (amounts(), any::<bool>(), priority, days(40_u8), days(60_u8), scope).prop_map(
        |(amount, adjustment, priority, begins_after_days, lasts_days, scope)| Given {
            amount,
            adjustment,
            priority,
            begins_after_days,
            lasts_days,
            scope,
        },
    )
}

fn seconds() -> impl Strategy<Value = i64> {
    60..7 * 86_400_i64
}

fn hold() -> impl Strategy<Value = Step> {
    let least = proptest::option::of(1..=100_i128);
    (any::<bool>(), amounts(), least, seconds()).prop_map(|(second, amount, percent, seconds)| {
        let least = percent.map(|percent| (amount * percent / 100).max(1));
        Step::OfHolds(HoldStep::Place { second, amount, least, seconds })
    })
}

fn capture() -> impl Strategy<Value = Step> {
    let overrun = prop_oneof![Just(Overrun::Reject), Just(Overrun::ChargeAvailable), Just(Overrun::Overdraft)];
    (0..6_usize, proptest::option::of(amounts()), overrun, any::<bool>())
        .prop_map(|(number, amount, overrun, late)| Step::OfHolds(HoldStep::Capture { number, amount, overrun, late }))
}

fn reversed() -> impl Strategy<Value = Reversed> {
    prop_oneof![Just(Reversed::All), amounts().prop_map(Reversed::Credits), (1..=60_i64).prop_map(Reversed::Minor),]
}

fn steps() -> impl Strategy<Value = Step> {
    let policy = prop_oneof![Just(Policy::None), Just(Policy::Full), Just(Policy::Prorate), Just(Policy::Restart)];
    prop_oneof![
        10 => (any::<bool>(), amounts()).prop_map(|(second, amount)| Step::Deduct { second, amount }),
        3 => (amounts(), proptest::option::of(amounts()), 0..12_u8, proptest::option::of(1..60_u8)).prop_map(
            |(amount, bonus, reference, expires_after_days)| {
                Step::Purchase { amount, bonus, reference, expires_after_days }
            }
        ),
        3 => given().prop_map(Step::Grant),
        2 => (0..6_usize, proptest::option::of(amounts())).prop_map(|(number, amount)| Step::Void { number, amount }),
        4 => (0..8_usize, proptest::option::of(amounts()))
            .prop_map(|(number, amount)| Step::Refund { number, amount }),
        2 => (0..4_usize, reversed()).prop_map(|(number, how)| Step::Reverse { number, how }),
        5 => hold(),
        5 => capture(),
        2 => (0..6_usize).prop_map(|number| Step::OfHolds(HoldStep::Release { number })),
        1 => (0..6_usize, seconds()).prop_map(|(number, seconds)| Step::OfHolds(HoldStep::Extend { number, seconds })),
        1 => Just(Step::ExpireHolds),
        3 => (1..45 * 86_400_i64).prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Wait { seconds: 400 * 86_400 }),
        2 => (0..3_usize, any::<bool>(), policy).prop_map(|(plan, now, policy)| Step::Change { plan, now, policy }),
        1 => any::<bool>().prop_map(|now| Step::Cancel { now }),
        1 => Just(Step::Resume),
        1 => Just(Step::Reset),
        1 => Just(Step::ExpireGrants),
    ]
}

fn histories() -> impl Strategy<Value = (usize, Vec<Step>, Vec<usize>)> {
    (0..3_usize, vec(steps(), 1..40), vec(1..10_usize, 1..8))
}

fn check_random_histories(serial: Database, batched: Database) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = runtime.block_on(World::open(serial, batched));
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let result = runner.run(&histories(), |(plan, steps, batch_sizes)| {
        runtime.block_on(world.run(plan, &steps, &batch_sizes)).map_err(TestCaseError::fail)
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    runtime.block_on(world.audit_and_close());
}

#[test]
fn histories_match_the_model_on_sqlite() {
    check_random_histories(Database::Sqlite, Database::Sqlite);
}

#[test]
fn histories_match_the_model_on_postgres() {
    check_random_histories(Database::Postgres, Database::Postgres);
}

#[test]
fn both_databases_give_the_same_answers_byte_for_byte() {
    check_random_histories(Database::Sqlite, Database::Postgres);
}
