//! The domain: what a command may do. Pure: no async, no IO, no clock, no randomness.
//!
//! Reading order: [`commands`] (the envelope, the commands and `decide`), [`batch`] (decides many
//! commands in one transaction), [`snapshot`] (what they read) and [`change_set`] (what they write).
//!
//! *Architecture invariant:* nothing here knows HTTP, SQL or Redis, and no other module of the crate
//! is imported. The only dependency on the API is `utoipa::ToSchema` on the types that are sent to
//! callers (see ADR 2).

pub mod batch;
pub mod change_set;
pub mod cloud_event;
pub mod command_record;
pub mod commands;
pub mod consumers;
pub mod counter;
pub mod credits;
pub mod dead_letter;
pub mod event;
pub mod explanation;
pub mod grant;
pub mod hold;
pub mod ids;
pub mod job_ref;
pub mod jobs;
pub mod kpis;
pub mod ledger;
pub mod metadata;
pub mod operator_act;
pub mod partition_head;
pub mod period;
pub mod plan;
pub mod plan_preview;
pub mod receipt;
pub mod refund;
pub mod rejection;
pub mod reversal;
pub mod snapshot;
pub mod subscription;
#[cfg(test)]
pub(crate) mod tests;
pub mod text;
pub mod time;
pub mod usage;
pub mod workspace;
