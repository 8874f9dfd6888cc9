//! The consumers beside an engine, on both databases: each event is counted once, whatever fails.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod audits;
mod bad_events;
mod builds;
#[path = "../databases/mod.rs"]
mod databases;
mod exactly_once;
mod faulty_consumption;
mod figures;
mod kpis;
mod replays;
mod switches;
mod world;
