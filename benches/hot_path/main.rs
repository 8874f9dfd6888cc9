//! What one command costs on its way, part by part: `cargo bench --bench hot_path`.
//!
//! `decide` and `batch` are pure. `request` is what a request costs before its command is queued: the
//! body, its fingerprint, and the token, once verified and once cached. `event` is the check and the
//! text of an event. `write` is a whole batch in the database, durable, on SQLite in a temporary folder
//! and on PostgreSQL when `DATABASE_URL` names one (`scripts/with-servers`, with
//! `WITH_SERVERS_DURABLE=1`).
//!
//! Deliberately absent: HTTP and everything at once, which `scripts/bench` measures.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up must stop")]

mod decisions;
mod requests;
mod world;
mod writes;

use criterion::{criterion_group, criterion_main};

criterion_group!(
    hot_path,
    decisions::decide,
    decisions::batch,
    decisions::event,
    requests::body,
    requests::token,
    writes::write
);
criterion_main!(hot_path);
