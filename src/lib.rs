//! VisionScope Billing: usage credits and events.

pub mod clock;
pub mod domain;
pub mod engine;
pub mod scheduler;
pub mod store;
