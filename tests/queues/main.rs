//! Queues beside an engine, over real stores: metered jobs, lost workers, and stores that fail at every step.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

#[path = "../databases/mod.rs"]
mod databases;
mod faults;
mod faulty_jobs;
mod leases;
mod metered;
mod own;
mod plain;
mod world;
