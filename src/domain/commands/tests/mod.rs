//! Tables of what each command does, run through a batch and audited after every step.

mod credits;
mod periods;
mod subscriptions;
