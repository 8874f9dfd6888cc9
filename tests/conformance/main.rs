//! One suite for every store.
//!
//! A test takes a [`database::TestDatabase`], a fresh and migrated database of its own, and makes
//! its change sets by hand: no command is decided here. To hold another store to the suite, give it
//! a module with a `TestDatabase` and the line `suite!(ThatDatabase);`.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod database;
#[macro_use]
mod suite;
mod refunds_and_reversals;

mod audits;
mod cleaning;
mod consumers;
mod fixtures;
mod holds;
mod jobs;
mod kpis;
mod migrations;
mod notifications;
mod outbox;
mod plans;
mod postgres;
mod reads;
mod round_trips;
mod sqlite;
mod statements;
mod writes;
