//! The engine and the scheduler over real stores, with faults put between them.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

#[path = "../databases/mod.rs"]
mod databases;
mod faults;
mod faulty_store;
mod memory;
mod scheduling;
mod world;
