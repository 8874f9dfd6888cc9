//! The engine and the scheduler over real stores, with injected faults.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

#[path = "../databases/mod.rs"]
mod databases;
mod dry_runs;
mod fairness;
mod faults;
mod faulty_store;
mod scheduling;
mod state_cache;
mod world;
