//! The domain: what a command may do. Pure: no async, no IO, no clock, no randomness.
//!
//! Reading order: [`commands`] (the envelope, the commands and `decide`), [`batch`] (many of them
//! against one running state), [`snapshot`] (what they look at) and [`change_set`] (what they write).
//!
//! *Architecture invariant:* nothing here knows HTTP, SQL or Redis, and no other module of the crate
//! is imported. The only thing from outside the domain is `utoipa::ToSchema` on the types that go
//! over a wire (see ADR 2).

pub mod batch;
pub mod change_set;
pub mod command_record;
pub mod commands;
pub mod counter;
pub mod credits;
pub mod event;
pub mod grant;
pub mod ids;
pub mod ledger;
pub mod metadata;
pub mod partition_head;
pub mod period;
pub mod plan;
pub mod receipt;
pub mod rejection;
pub mod snapshot;
pub mod subscription;
#[cfg(test)]
pub(crate) mod tests;
pub mod text;
pub mod time;
pub mod usage;
pub mod workspace;
