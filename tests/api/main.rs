//! Tests of the API over TCP, against a server in this process.

#![allow(clippy::unwrap_used, reason = "a test stops where something is not as it should be")]

mod analytics;
mod as_of_now;
mod auth;
mod bad_input;
mod clocks;
mod commands;
mod connections;
mod contract;
mod credits_at;
#[path = "../databases/mod.rs"]
mod databases;
mod decisions;
mod dry_run;
mod export_streams;
mod exports;
mod fake;
mod fake_jobs;
mod grants;
mod harness;
mod holds;
mod job_order;
mod jobs;
mod kpis;
mod lists;
mod main_job;
mod notifications;
mod ops;
mod ops_jobs;
mod purchases;
mod refunds;
mod service;
mod statements;
mod streams;
mod workers;
