//! Table tests of every command. Each runs through a batch, and the state is audited after every step.

mod credits;
mod grants;
mod holds;
mod jobs;
mod periods;
mod refunds_and_reversals;
mod remedies;
mod subscriptions;
