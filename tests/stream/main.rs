//! The stream, the publisher and the operator's commands on a real Redis: the stream equals the outbox, whatever
//! dies, hangs, loses data or runs twice.
//!
//! Every test starts a redis-server of its own on a free loopback port, with its files in a temporary folder.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod acl;
mod append;
mod cluster;
mod event_buffer;
mod events;
mod failures;
mod faults;
mod floor;
mod memory_outbox;
mod model;
mod operator;
mod publishing;
mod real_stores;
mod redis_server;
