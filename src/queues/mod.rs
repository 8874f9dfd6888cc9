//! Queues: jobs are taken, given to workers, settled, and tried again.
//!
//! What becomes of a job is decided in [`crate::domain::jobs`], under the store's locks. This module says when: on a request, on a
//! worker's call, or because time has passed. Everything here can run on many servers at once, and be killed at any time: a
//! step that was begun is done again, and takes effect once.
//!
//! | part | does |
//! |---|---|
//! | `handle` | what the other parts hold, and what a request calls |
//! | `submitter` | gathers jobs that are sent, stores them together, and places their holds |
//! | `dispatcher` | gives ready jobs to the workers that wait for them |
//! | `settler` | captures or releases the holds of jobs that are over |
//! | `ends` | takes what workers say of their jobs (`job_end`) |
//! | `executor` | runs the jobs that are the server's own |
//! | `beats` | takes the heartbeats of workers |
//! | `measure` | the metrics of jobs |
//! | `promoter` | makes ready what was waiting, ends lost leases, and does again what a crash has left |
//!
//! Deliberately absent: a saga or workflow engine. The row of a job is its saga, and the idempotency keys of the engine are its
//! log. And code in this file: the files of this folder import each other, and never this one.

mod beats;
mod commands;
mod dispatcher;
mod ends;
mod executor;
mod handle;
mod job_end;
mod measure;
mod promoter;
mod readiness;
mod settler;
mod start;
mod submitter;

pub use self::executor::{OwnWork, ParseCommand, ScheduledWork};
pub use self::handle::{Accepted, LeaseRequest, Leased, Parts, QueueError, Queues};
pub use self::job_end::{EndAnswer, EndOfJob, JobEnd};
pub use self::promoter::Promoted;
