//! Jobs: work that waits in a queue, is leased by a worker, and ends.
//!
//! ```text
//! holding ─▶ waiting ─▶ ready ⇄ capped
//!    │          ▲         │
//!    │          └─────────┤ retry, lease lost
//!    ▼                    ▼
//! rejected             running ─▶ settling ─▶ completed, failed or canceled
//! ```
//!
//! A job of a workspace may be *metered*: it begins with a hold (`holding`) and ends with a capture or a release of that hold
//! (`settling`), which are commands of the engine with keys of their own. So a step can be repeated, and takes effect once.
//! Other jobs skip these two states.
//!
//! Every change of a job is a pure function here: rows in, [`JobChanges`] out. The store locks the rows before and writes
//! the changes after, in one transaction. A *lease* says which worker runs a job; who does not name its id changes nothing.
//!
//! Deliberately absent: code in this file. The files of this folder import each other, and never this one.

mod changes;
mod claims;
mod ends;
mod firing;
mod found;
mod holds;
mod job;
mod lease;
mod queue;
mod routing;
mod schedule;
mod submission;
#[cfg(test)]
mod tests;
mod turns;
mod worker;

pub use self::changes::JobChanges;
pub use self::claims::Seat;
pub use self::ends::{Completion, CompletionRefused, Failure};
pub use self::found::{FoundJobs, Running};
pub use self::holds::{Held, Settlement};
pub use self::job::{
    ActualUse, FinishedJob, Job, JobError, JobHold, JobOutcome, JobState, Line, MAX_ARGS_BYTES, MAX_DAYS_AHEAD,
    MAX_DAYS_WAITING, ReplayedLetter, Runner,
};
pub use self::lease::{AttemptOutcome, JobAttempt, JobLease, MAX_PROGRESS_BYTES};
pub use self::queue::{Queue, QueueSettings, RetryDelays, default_queues};
pub use self::routing::{Route, Routes, RoutesError, default_routes};
pub use self::schedule::{Schedule, SystemSchedule};
pub use self::submission::{Submission, Submitted};
pub use self::turns::Turns;
pub use self::worker::{BeatAnswer, FoundLeases, LeaseBeat, LeaseChanges, QueueNames, Worker, WorkerBeat, WorkerState};
