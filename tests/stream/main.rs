//! The stream, the publisher and the operator's commands on a real Redis: what is in the stream is
//! what is in the outbox, whatever dies, hangs, forgets or comes twice.
//!
//! Every test starts its own redis-server on a free loopback port, with its files in a folder that
//! goes with it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod append;
mod cluster;
mod events;
mod handover;
mod memory_outbox;
mod model;
mod operator;
mod publishing;
mod real_stores;
mod redis_server;
mod trouble;
