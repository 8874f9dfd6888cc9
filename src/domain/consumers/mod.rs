//! Consumers: what this server itself makes of events.
//!
//! A consumer is a pure fold. It names the rows that it must know ([`keys`]), gets them, and says how some events change
//! them ([`fold()`]). It knows nothing but events and its own rows: so its figures can be compared with the history that the
//! commands have written.
//!
//! The events are those of one partition in their order, so a workspace's events are never taken out of order. What is of
//! several workspaces (figures of the whole server) has a row for each partition, so two partitions never write one row.
//!
//! *Architecture invariant:* no fold depends on the clock, on how events are cut into batches, or on another consumer.
//!
//! Deliberately absent: code in this file. The files of this folder import each other, and never this one.

mod analytics;
mod beginning;
mod billing;
mod consumer;
mod fact;
mod fault;
mod fold;
mod notification;
mod notifications;
mod rows;
mod run;
mod statement;
#[cfg(test)]
mod tests;

pub use self::consumer::{Build, Consumer, ConsumerState};
pub use self::fact::Fact;
pub use self::fault::Fault;
pub use self::notification::{
    CreditsExhaustedData, CreditsExpiringData, LimitReachedData, LowCreditData, Notification, NotificationData,
    NotificationKind, NotifiedPlan, NotifiedWorkspace, PlanChangedData, StatementClosedData,
};
pub use self::rows::{ConsumerKeys, ConsumerRows, PurchaseRevenue, RevenueDay, UsageDay, UsageHour, WorkspaceActivity};
pub use self::run::{Folded, Newer, Treatment, fold, keys, up_to_newer};
pub use self::statement::{
    Sha256Hex, Statement, StatementDocument, StatementLine, StatementLineView, StatementState, StatementView,
};
